"""The training loop: one function, resumable after every epoch, deterministic given the seed."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from whtnet.data import Loaders
from whtnet.engine.checkpoint import load_checkpoint, save_checkpoint
from whtnet.engine.config import TrainConfig
from whtnet.errors import UserError
from whtnet.layers import spectral_parameter_names
from whtnet.seeding import seed_everything

_LOSS_CHECK_STEPS = 50  # reading the loss waits for a GPU, so it is looked at this often, and at the end of an epoch

Progress = Callable[[float, str], None]
"""Called with the fraction of the run that is done and a line of status."""


class NonFiniteLossError(UserError, RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


@dataclass(frozen=True)
class FitResult:
    """Outcome of a run.

    Attributes:
        history: metrics of every epoch, in order: ``epoch`` (from 1), ``lr``, ``train_loss``, ``train_top1``,
            ``test_loss``, ``test_top1`` (percent; on epochs that were evaluated), ``holdout_*`` if there is a held-out
            part, ``images_per_s``, ``seconds``.
        best: epoch and metrics of the best held-out accuracy, or None without a held-out part.
        seconds: training and evaluation time, over all sessions of a resumed run.
    """

    history: list[dict[str, float]]
    best: dict[str, float] | None
    seconds: float


def fit(
    model: nn.Module,
    loaders: Loaders,
    config: TrainConfig,
    *,
    device: torch.device,
    seed: int,
    checkpoint: Path | None = None,
    fingerprint: str = "",
    extra: Mapping[str, Any] = MappingProxyType({}),
    on_epoch: Callable[[dict[str, float]], None] = lambda metrics: None,
    on_progress: Progress = lambda fraction, status: None,
) -> FitResult:
    """Train ``model`` in place.

    With a ``checkpoint`` path the state is written there after every epoch, and a run that finds one goes on from it;
    everything random in an epoch is drawn from (seed, epoch), so that on the CPU an interrupted and resumed run ends
    with the same bits as an uninterrupted one. ``best.pt`` beside it keeps the weights of the best held-out epoch.

    Args:
        model: the classifier.
        loaders: batches of ``(N, C, H, W)`` images and labels, see :class:`whtnet.data.Loaders`.
        config: how to train.
        device: where.
        seed: of the run.
        checkpoint: file to resume from and write to, or None.
        fingerprint: identifies the settings in the checkpoint.
        extra: plain data to keep in the checkpoint besides.
        on_epoch: called with the metrics of each epoch, those of a resumed run's earlier epochs not included.
        on_progress: called every few steps.

    Raises:
        NonFiniteLossError: if the loss is NaN or infinite.
        CheckpointError: if the checkpoint is damaged or another run's.
    """
    state = _State.create(model, config, device)
    if checkpoint is not None and checkpoint.exists():
        state.load(load_checkpoint(checkpoint, fingerprint, device))
    run = _Run(state, loaders, config, device, seed, on_progress)
    while state.epoch < config.epochs:
        started = time.perf_counter()
        metrics = run.train_epoch()
        if state.epoch % config.eval_every == 0 or state.epoch == config.epochs or config.dry_run:
            metrics |= run.evaluate_epoch()
        state.seconds += time.perf_counter() - started
        state.history.append(metrics)
        improved = state.note_best(metrics)
        if checkpoint is not None and not config.dry_run:
            if improved:
                weights = {"model": state.evaluated.state_dict(), "history": [metrics]}
                save_checkpoint(checkpoint.with_name("best.pt"), weights | extra, fingerprint)
            save_checkpoint(checkpoint, state.dump() | extra, fingerprint)
        on_epoch(metrics)
        if config.dry_run:
            break
    if state.ema is not None:
        model.load_state_dict(state.ema.module.state_dict())
    return FitResult(state.history, state.best, state.seconds)


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Any, *, autocast: torch.dtype | None = None, max_batches: int | None = None
) -> dict[str, float]:
    """Mean cross-entropy ``loss`` and ``top1`` accuracy in percent of ``model`` over a loader."""
    was_training = model.training
    model.eval()
    loss, correct, seen = 0.0, 0, 0
    for i, (images, labels) in enumerate(loader):
        if i == max_batches:
            break
        with _autocast(images.device, autocast):
            logits = model(images)
        loss += F.cross_entropy(logits.float(), labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
        seen += len(labels)
    model.train(was_training)
    return {"loss": loss / seen, "top1": 100 * correct / seen}


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The trainable parameters by their ``weight_decay`` and ``lr_factor`` (see :class:`TrainConfig`)."""
    spectral = spectral_parameter_names(model)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = "bias" in name or (name in spectral and not config.decay_spectral)
            settings = (0.0 if exempt else config.weight_decay, config.spectral_lr if name in spectral else 1.0)
            groups.setdefault(settings, []).append(parameter)
    return [{"params": group, "weight_decay": d, "lr_factor": f} for (d, f), group in groups.items()]


@dataclass
class _State:
    """All that changes while training, and so all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    epoch: int
    seconds: float
    history: list[dict[str, float]]
    best: dict[str, float] | None = None

    @classmethod
    def create(cls, model: nn.Module, config: TrainConfig, device: torch.device) -> "_State":
        memory_format = torch.channels_last if config.use_channels_last(device) else torch.preserve_format
        model.to(device=device, memory_format=memory_format).train()
        optimizer = torch.optim.SGD(
            parameter_groups(model, config), lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
        )
        ema = None
        if config.ema_decay:
            ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
        if config.compile:
            model.compile()
        return cls(model, optimizer, ema, 0, 0.0, [])

    @property
    def evaluated(self) -> nn.Module:
        return self.model if self.ema is None else self.ema.module

    def note_best(self, metrics: dict[str, float]) -> bool:
        if "holdout_top1" not in metrics or (self.best and metrics["holdout_top1"] <= self.best["holdout_top1"]):
            return False
        self.best = metrics
        return True

    def dump(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "history": self.history,
            "best": self.best,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.history, self.best = state["history"], state["best"]


@dataclass
class _Run:
    state: _State
    loaders: Loaders
    config: TrainConfig
    device: torch.device
    seed: int
    on_progress: Progress

    def __post_init__(self) -> None:
        self.autocast = self.config.autocast_dtype(self.device)
        self.steps = len(self.loaders.train)

    def train_epoch(self) -> dict[str, float]:
        state, config = self.state, self.config
        seed_everything(self.seed, state.epoch)
        self.loaders.train.set_epoch(state.epoch)
        state.model.train()
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        seen, lr = 0, 0.0
        started = time.perf_counter()
        for i, (images, labels) in enumerate(self.loaders.train):
            lr = config.lr_at(state.epoch * self.steps + i, self.steps)
            for group in state.optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]
            with _autocast(self.device, self.autocast):
                logits = state.model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            state.optimizer.step()
            if state.ema is not None:
                state.ema.update_parameters(state.model)
            loss_sum += loss.detach() * len(labels)
            correct += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            if (i + 1) % _LOSS_CHECK_STEPS == 0 or i + 1 == self.steps or config.dry_run:
                self._check_finite(loss_sum, i)
            self.on_progress((state.epoch + (i + 1) / self.steps) / config.epochs, self._status())
            if config.dry_run:
                break
        train_loss = loss_sum.item() / seen  # waits for the device, so that the time below is the time it took
        elapsed = time.perf_counter() - started
        state.epoch += 1
        return {
            "epoch": state.epoch,
            "lr": lr,
            "train_loss": train_loss,
            "train_top1": 100 * correct.item() / seen,
            "images_per_s": seen / elapsed,
            "seconds": elapsed,
        }

    def evaluate_epoch(self) -> dict[str, float]:
        max_batches = 1 if self.config.dry_run else None
        metrics = {}
        for split in ("test", "holdout"):
            loader = getattr(self.loaders, split)
            if loader is not None:
                result = evaluate(self.state.evaluated, loader, autocast=self.autocast, max_batches=max_batches)
                metrics |= {f"{split}_{name}": value for name, value in result.items()}
        return metrics

    def _check_finite(self, loss_sum: Tensor, step: int) -> None:
        if not math.isfinite(loss_sum.item()):
            raise NonFiniteLossError(
                f"the loss became {loss_sum.item()} in epoch {self.state.epoch + 1}, by step {step + 1} of "
                f"{self.steps}; the checkpoint of the last good epoch is kept. Try a lower trainer.lr, "
                "trainer.precision=fp32, or policy.options.clamp=true"
            )

    def _status(self) -> str:
        last = self.state.history[-1] if self.state.history else {}
        accuracy = f", test {last['test_top1']:.2f} %" if "test_top1" in last else ""
        return f"epoch {self.state.epoch + 1}/{self.config.epochs}{accuracy}"


def _autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()
