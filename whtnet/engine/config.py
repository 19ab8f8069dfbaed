"""Settings of a training run, checked when they are made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from whtnet.settings import ConfigError, check_fields, read_settings

BelowOne = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are the authors' recipe for ResNet-20 (released code of HT-2023).

    Attributes:
        epochs: passes over the training set.
        batch_size: images a step.
        opt: the optimiser, by its name in ``timm.optim``: ``sgd``, ``adam``, ``adamw``, ``lamb``, ``muon``, ….
        opt_options: further keywords of it, such as ``betas`` and ``eps``; None for none.
        lr: learning rate; the peak of ``onecycle`` and ``cosine``.
        momentum: of optimisers that have one.
        nesterov: use Nesterov momentum in ``sgd``.
        weight_decay: L2 penalty (``adamw`` and others: decoupled), on every parameter whose name lacks "bias", as
            HT-2023's code has it, but for the exceptions below.
        decay_spectral: put it on thresholds and transform-domain weights too. Default True, because HT-2023's code
            does; BWHT's doesn't.
        decay_norm: put it on other parameters of one dimension too: batch norm's weights. Default True, as in HT-2023's
            code; both False leaves the kernels of convolutions and dense layers.
        spectral_lr_scale: learning rate of thresholds and transform-domain weights, as a factor of ``lr``.
        clip_grad: largest norm of a step's gradients, which are scaled down to it; 0 for none.
        schedule: of the learning rate: ``constant``; ``multistep`` (the authors'); ``onecycle`` (the short recipe:
            linear warm-up, then linear to zero); ``cosine`` (the same warm-up, then half a cosine wave to zero).
        milestones: where ``multistep`` multiplies the rate by ``gamma``, as fractions of the epochs, so that a
            shortened run keeps the recipe's shape. Epochs 82, 122 and 163 of 200.
        gamma: factor of ``multistep``, or a list with one for each milestone.
        warmup: fraction of the steps in which ``onecycle`` and ``cosine`` rise.
        label_smoothing: of the cross-entropy loss.
        mixup: α of mixup (Zhang et al., 2018), which averages pairs of images and their labels; 0 for none. With
            ``cutmix``, each batch gets one of them. Accuracy in training is that of the label with the larger share.
        cutmix: α of CutMix (Yun et al., 2019), which pastes a part of one image into another; 0 for none.
        ema_decay: decay per step of an exponential moving average of the weights, which is then what is evaluated and
            reported; 0 for none.
        precision: ``bf16`` autocast, ``fp32``, or ``auto``: bf16 where the hardware computes in it.
        channels_last: keep images and weights in channels_last, which is faster on GPUs and CPUs.
        compile: compile the model with torch.compile.
        cuda_graph: record the network's passes once and replay them; for one process on a GPU.
        eval_every: evaluate every so many epochs, and always after the last one.
        patience: stop when the accuracy on the held-out part (``dataset.holdout``) has not risen for so many epochs; 0:
            never.
        eval_batch_size: images a step in evaluation.
        workers: processes that load data sets too large for memory.
        dry_run: train one batch, evaluate one batch, and stop.
    """

    epochs: PositiveInt = 200
    batch_size: PositiveInt = 128
    opt: str = "sgd"
    opt_options: dict[str, Any] | None = None
    lr: PositiveFloat = 0.1
    momentum: BelowOne = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 1e-4
    decay_spectral: bool = True
    decay_norm: bool = True
    spectral_lr_scale: PositiveFloat = 1.0
    clip_grad: NonNegativeFloat = 0.0
    schedule: Literal["constant", "multistep", "onecycle", "cosine"] = "multistep"
    milestones: tuple[float, ...] = (0.41, 0.61, 0.815)
    gamma: PositiveFloat | tuple[PositiveFloat, ...] = 0.1
    warmup: BelowOne = 0.25
    label_smoothing: BelowOne = 0.0
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    ema_decay: BelowOne = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    cuda_graph: bool = False
    eval_every: PositiveInt = 1
    patience: NonNegativeInt = 0
    eval_batch_size: PositiveInt = 500
    workers: Annotated[int, Field(ge=0, le=1024)] = 2
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("milestones", "gamma"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        check_fields(self, "trainer")
        if self.compile and self.cuda_graph:
            raise ConfigError("trainer.compile and trainer.cuda_graph exclude each other; leave one out")
        if any(not 0 <= m <= 1 for m in self.milestones):
            raise ConfigError(f"trainer.milestones are fractions of the epochs, got {self.milestones}")
        if len(self.gammas) != len(self.milestones):
            raise ConfigError(f"trainer.gamma has {len(self.gammas)} factors for {len(self.milestones)} milestones")
        if len(set(self.gammas)) <= 1:  # one schedule, one way to say it
            object.__setattr__(self, "gamma", next(iter(self.gammas), TrainConfig.gamma))
        options = self.opt_options or {}
        if self.opt == "sgd" and self.nesterov and not options.get("momentum", self.momentum):
            raise ConfigError("trainer.nesterov=true needs a momentum; give trainer.momentum=0.9, say")
        if reserved := sorted({"lr", "weight_decay", "opt"} & set(options)):
            raise ConfigError(f"trainer.opt_options can't have {reserved[0]}, which is trainer.{reserved[0]}")
        if self.opt != "sgd" or options:
            from whtnet.engine.optimizers import check_optimizer  # it needs timm, which takes its time

            check_optimizer(self.opt, options)

    @property
    def gammas(self) -> tuple[float, ...]:
        """The factor of each milestone."""
        return self.gamma if isinstance(self.gamma, tuple) else (self.gamma,) * len(self.milestones)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "TrainConfig":
        """Read plain data, as in ``configs/trainer/*.yaml``."""
        return read_settings(cls, settings, "trainer")

    def autocast_dtype(self, device: torch.device) -> torch.dtype | None:
        """The dtype to autocast to on ``device``, or None for float32."""
        if self.precision == "auto":
            return torch.bfloat16 if _computes_bf16(device) else None
        return torch.bfloat16 if self.precision == "bf16" else None


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":  # emulated bf16 is slower than float32, so ask for the instructions themselves
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
