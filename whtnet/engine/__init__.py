"""Training: settings (`config`), the loop (`fit`), checkpoints (`checkpoint`)."""

from whtnet.engine.checkpoint import CHECKPOINT, CheckpointError, load_checkpoint, save_checkpoint
from whtnet.engine.config import TrainConfig
from whtnet.engine.fit import FitResult, NonFiniteLossError, Progress, evaluate, fit, parameter_groups

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
    "parameter_groups",
    "save_checkpoint",
]
