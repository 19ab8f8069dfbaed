"""Training: settings (`config`), the loop (`fit`), checkpoints (`checkpoint`)."""

from whtnet.engine.checkpoint import CHECKPOINT, CheckpointError, load_checkpoint, save_checkpoint
from whtnet.engine.config import ConfigError, TrainConfig, check_types, read_settings
from whtnet.engine.fit import FitResult, NonFiniteLossError, Progress, evaluate, fit, parameter_groups

__all__ = [
    "CHECKPOINT",
    "CheckpointError",
    "ConfigError",
    "FitResult",
    "NonFiniteLossError",
    "Progress",
    "TrainConfig",
    "check_types",
    "evaluate",
    "fit",
    "load_checkpoint",
    "parameter_groups",
    "read_settings",
    "save_checkpoint",
]
