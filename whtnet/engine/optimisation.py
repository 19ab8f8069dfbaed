"""Optimiser, its learning rate at every step, and the norm of the gradients: timm's and PyTorch's, as settings say.

The training loop imports this late, because timm takes its time.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from whtnet.engine.config import TrainConfig
from whtnet.layers import spectral_parameter_names


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The trainable parameters by their ``weight_decay`` and ``lr_scale`` (see :class:`TrainConfig`).

    Thresholds and transform-domain weights have ``use_fallback``: each of their values acts by itself, so that timm's
    Muon, which takes other parameters of two dimensions for matrices, leaves them to AdamW.
    """
    spectral = spectral_parameter_names(model)
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            of_its_kind = config.decay_spectral if name in spectral else config.decay_norm or parameter.dim() > 1
            decay = config.weight_decay if of_its_kind and "bias" not in name else 0.0
            groups.setdefault((decay, name in spectral), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": decay,
            "lr_scale": config.spectral_lr_scale if is_spectral else 1.0,
            "use_fallback": is_spectral,
        }
        for (decay, is_spectral), parameters in groups.items()
    ]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of the trainable parameters."""
    options: dict[str, Any] = {"nesterov": config.nesterov} if config.opt == "sgd" else {}
    options |= config.opt_options or {}
    momentum = options.pop("momentum", config.momentum)
    return create_optimizer_v2(
        parameter_groups(model, config), opt=config.opt, lr=config.lr, momentum=momentum, **options
    )


def make_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Scheduler:
    """The schedule, which has no state: its ``step_update(step)`` sets the rates of a step, counted from 0."""
    total = config.epochs * steps_per_epoch
    rise = config.warmup * total
    # The first step has one part of the rise already, the last one a part of the fall: neither is lost.
    rising: dict[str, Any] = {"warmup_t": rise, "warmup_lr_init": config.lr / (rise + 1), "warmup_prefix": True}
    falling: dict[str, Any] = {"t_initial": total - rise, "t_in_epochs": False}
    if config.schedule == "onecycle":
        return PolyLRScheduler(optimizer, power=1.0, **rising, **falling)
    if config.schedule == "cosine":
        return CosineLRScheduler(optimizer, **rising, **falling)
    milestones = config.milestones if config.schedule == "multistep" else ()
    starts = [round(milestone * config.epochs) * steps_per_epoch for milestone in milestones]
    return _FactorsLRScheduler(optimizer, starts, config.gammas)


class _FactorsLRScheduler(Scheduler):
    """From each of ``starts``, in steps, a factor more; timm's own has one factor for all, and is a step early."""

    def __init__(self, optimizer: torch.optim.Optimizer, starts: Sequence[int], factors: Sequence[float]) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.starts, self.factors = starts, factors

    def _get_lr(self, t: int) -> list[float]:
        reached = [factor for start, factor in zip(self.starts, self.factors, strict=False) if t >= start]
        return [value * math.prod(reached) for value in self.base_values]


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate that is set, of parameters whose scale is 1."""
    group = optimizer.param_groups[0]
    return group["lr"] / group["lr_scale"]


def clip_gradients_(model: nn.Module, limit: float) -> Tensor:
    """Scale the gradients down to a norm of ``limit`` where theirs is larger (0: leave them); returns that norm."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if limit:
        clip_grads_with_norm_(parameters, limit, norm)
    return norm
