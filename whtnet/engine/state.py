"""What changes while training, and so what a checkpoint holds."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from whtnet.engine.config import TrainConfig
from whtnet.engine.optimisation import make_optimizer


@dataclass
class PartOfEpoch:
    """How far an epoch has come.

    Attributes:
        steps: that were taken.
        totals: ``(3,)``: sum of the losses and number of right answers over their images, sum of the steps' gradient
            norms.
        seconds: that they took.
        random: states of the generators: the CPU's, and the GPU's where there is one.
    """

    steps: int
    totals: Tensor
    seconds: float = 0.0
    random: list[Tensor] = field(default_factory=list)


@dataclass
class State:
    """All that changes while training, and so all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    epoch: int
    seconds: float
    history: list[dict[str, float]]
    best: dict[str, float] | None = None
    part: PartOfEpoch | None = None

    @classmethod
    def create(cls, model: nn.Module, config: TrainConfig, device: torch.device) -> "State":
        """The state at the beginning, with the model on its device and in its memory format."""
        memory_format = torch.channels_last if config.channels_last else torch.preserve_format
        model.to(device).to(memory_format=memory_format)
        optimizer = make_optimizer(model, config)
        ema = None
        if config.ema_decay:
            ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
        if config.compile:
            model.compile()
        return cls(model, optimizer, ema, 0, 0.0, [])

    @property
    def evaluated(self) -> nn.Module:
        """The model, or its moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def note_best(self, metrics: dict[str, float]) -> bool:
        """Keep ``metrics`` if no held-out accuracy was better; returns whether they were kept."""
        if "holdout_top1" not in metrics or (self.best and metrics["holdout_top1"] <= self.best["holdout_top1"]):
            return False
        self.best = metrics
        return True

    def is_finished(self, config: TrainConfig) -> bool:
        """Whether all epochs are done, or no held-out accuracy was better for as long as ``config`` has patience."""
        if self.epoch >= config.epochs:
            return True
        if not (config.patience and self.best and "holdout_top1" in self.history[-1]):
            return False
        return self.epoch - self.best["epoch"] >= config.patience

    def dump(self) -> dict[str, Any]:
        """As plain containers and tensors."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "history": self.history,
            "best": self.best,
            "part": None if self.part is None else asdict(self.part),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`dump` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.history, self.best = state["history"], state["best"]
        self.part = PartOfEpoch(**state["part"]) if state.get("part") else None
