"""Settings of a training run, checked when they are made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from whtnet.settings import ConfigError, check_fields, read_settings

PRECISIONS = ("auto", "fp32", "bf16")
SCHEDULES = ("multistep", "onecycle")


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are the authors' recipe for ResNet-20 (released code of HT-2023).

    Attributes:
        epochs: passes over the training set.
        batch_size: images a step.
        lr: learning rate; the peak of a one-cycle schedule.
        momentum: of SGD.
        nesterov: use Nesterov momentum.
        weight_decay: L2 penalty, on every parameter whose name lacks "bias", as the authors have it.
        decay_spectral: put it on thresholds and transform-domain weights too. Default True, because the authors' recipe
            does; False exempts them.
        spectral_lr: learning rate of thresholds and transform-domain weights, as a factor of ``lr``.
        schedule: ``multistep`` (the authors') or ``onecycle`` (the short recipe: linear warm-up, then linear to zero).
        milestones: where ``multistep`` multiplies the rate by ``gamma``, as fractions of the epochs, so that a
            shortened run keeps the recipe's shape. Epochs 82, 122 and 163 of 200.
        gamma: factor of ``multistep``.
        warmup: fraction of the steps in which ``onecycle`` rises.
        label_smoothing: of the cross-entropy loss.
        ema_decay: decay per step of an exponential moving average of the weights, which is then what is evaluated and
            reported; 0 for none.
        precision: ``bf16`` autocast, ``fp32``, or ``auto``: bf16 where the hardware computes in it.
        channels_last: keep images and weights in channels_last, which is faster on GPUs and CPUs.
        compile: compile the model with torch.compile.
        cuda_graph: record the network's passes once and replay them; for one process on a GPU.
        eval_every: evaluate every so many epochs, and always after the last one.
        eval_batch_size: images a step in evaluation.
        workers: processes that load data sets too large for memory.
        dry_run: train one batch, evaluate one batch, and stop.
    """

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_spectral: bool = True
    spectral_lr: float = 1.0
    schedule: str = "multistep"
    milestones: tuple[float, ...] = (0.41, 0.61, 0.815)
    gamma: float = 0.1
    warmup: float = 0.25
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    precision: str = "auto"
    channels_last: bool = True
    compile: bool = False
    cuda_graph: bool = False
    eval_every: int = 1
    eval_batch_size: int = 500
    workers: int = 2
    dry_run: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.milestones, list):
            object.__setattr__(self, "milestones", tuple(self.milestones))
        check_fields(self, "trainer")
        for name in ("epochs", "batch_size", "eval_every", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"trainer.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("momentum", "weight_decay", "workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"trainer.{name} must not be negative, got {getattr(self, name)}")
        for name in ("lr", "spectral_lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"trainer.{name} must be positive, got {getattr(self, name)}")
        for name in ("warmup", "label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"trainer.{name} must be in [0, 1), got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"unknown trainer.precision {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"unknown trainer.schedule {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")
        if self.compile and self.cuda_graph:
            raise ConfigError("trainer.compile and trainer.cuda_graph exclude each other; leave one out")
        if any(not 0 <= m <= 1 for m in self.milestones):
            raise ConfigError(f"trainer.milestones are fractions of the epochs, got {self.milestones}")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "TrainConfig":
        """Read plain data, as in ``configs/trainer/*.yaml``."""
        return read_settings(cls, settings, "trainer")

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted from 0."""
        if self.schedule == "multistep":
            epoch = step // steps_per_epoch
            return self.lr * self.gamma ** sum(epoch >= round(m * self.epochs) for m in self.milestones)
        total = self.epochs * steps_per_epoch
        rise = self.warmup * total
        if step < rise:
            return self.lr * (step + 1) / (rise + 1)
        return self.lr * (total - step) / (total - rise)

    def autocast_dtype(self, device: torch.device) -> torch.dtype | None:
        """The dtype to autocast to on ``device``, or None for float32."""
        if self.precision == "auto":
            return torch.bfloat16 if _computes_bf16(device) else None
        return torch.bfloat16 if self.precision == "bf16" else None


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":  # emulated bf16 is slower than float32, so ask for the instructions themselves
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
