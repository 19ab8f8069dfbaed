"""Training: settings (`config`), the run (`fit`) and its epochs (`epochs`), optimiser and schedule (`optimisation`)."""

from whtnet.engine.checkpoint import CHECKPOINT, CheckpointError, load_checkpoint, save_checkpoint
from whtnet.engine.config import TrainConfig
from whtnet.engine.evaluate import evaluate
from whtnet.engine.fit import FitResult, Progress, fit
from whtnet.engine.loss import NonFiniteLossError
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
    "save_checkpoint",
]
