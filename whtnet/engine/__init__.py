"""Training: settings (`config`), the loop (`fit`), its precision (`precision`), checkpoints (`checkpoint`)."""

from whtnet.engine.checkpoint import CHECKPOINT, CheckpointError, load_checkpoint, save_checkpoint
from whtnet.engine.config import TrainConfig
from whtnet.engine.fit import FitResult, NonFiniteLossError, Progress, evaluate, fit, parameter_groups
from whtnet.engine.precision import mixed_precision

__all__ = [
    "CHECKPOINT",
    "CheckpointError",
    "FitResult",
    "NonFiniteLossError",
    "Progress",
    "TrainConfig",
    "evaluate",
    "fit",
    "load_checkpoint",
    "mixed_precision",
    "parameter_groups",
    "save_checkpoint",
]
