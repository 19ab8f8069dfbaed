"""The training loop: one function, resumable, deterministic given the seed, in one process or several."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from whtnet import distributed
from whtnet.data import Loaders
from whtnet.engine.checkpoint import load_checkpoint, save_checkpoint
from whtnet.engine.config import TrainConfig
from whtnet.engine.cuda_graph import recorded
from whtnet.engine.global_batch import GlobalBatch
from whtnet.engine.precision import mixed_precision
from whtnet.errors import UserError
from whtnet.layers import spectral_parameter_names
from whtnet.preemption import PreemptedError
from whtnet.seeding import seed_everything

_LOSS_CHECK_STEPS = 50  # reading the loss waits for a GPU, so it is looked at this often, and at the end of an epoch

_CPU = torch.device("cpu")

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
    teacher: nn.Module | None = None,
    distill: float = 0.0,
    temperature: float = 1.0,
    should_stop: Callable[[], bool] = lambda: False,
    on_epoch: Callable[[dict[str, float]], None] = lambda metrics: None,
    on_progress: Progress = lambda fraction, status: None,
) -> FitResult:
    """Train ``model`` in place.

    With a ``checkpoint`` path the state is written there after every epoch, and after the step in which
    ``should_stop`` says so, and a run that finds one goes on from it; everything random in an epoch is drawn from
    (seed, epoch), so that on the CPU an interrupted and resumed run ends with the same bits as an uninterrupted one.
    ``best.pt`` beside it keeps the weights of the best held-out epoch.

    Under ``torchrun`` every process calls this with its shares of the batches, and takes the same steps as a single
    one would, up to rounding (see :class:`~whtnet.engine.global_batch.GlobalBatch`). The first one writes the files.

    Args:
        model: the classifier.
        loaders: batches of ``(N, C, H, W)`` images and labels, see :class:`whtnet.data.Loaders`.
        config: how to train.
        device: where.
        seed: of the run.
        checkpoint: file to resume from and write to, or None.
        fingerprint: identifies the settings in the checkpoint.
        extra: plain data to keep in the checkpoint besides.
        teacher: a trained classifier in evaluation mode, on the device, to distil from (Hinton et al., 2015).
        distill: share of the distillation in the loss.
        temperature: that both networks' logits are divided by in it.
        should_stop: asked after every step, and in every process: whether to keep the state and leave.
        on_epoch: called with the metrics of each epoch, those of a resumed run's earlier epochs not included.
        on_progress: called every few steps.

    Raises:
        NonFiniteLossError: if the loss is NaN or infinite.
        CheckpointError: if the checkpoint is damaged or another run's.
        PreemptedError: when ``should_stop`` said so.
        PeerError: if another process ended.
    """
    state = _State.create(model, config, device)

    def load() -> dict[str, Any] | None:
        return load_checkpoint(checkpoint, fingerprint, _CPU) if checkpoint and checkpoint.exists() else None

    def save(contents: dict[str, Any], name: str | None = None) -> None:
        if checkpoint and not config.dry_run:
            path = checkpoint.with_name(name or checkpoint.name)
            distributed.from_first(lambda: save_checkpoint(path, contents | extra, fingerprint))

    if (saved := distributed.from_first(load)) is not None:
        state.load(saved)
    loss = _Loss(config.label_smoothing, teacher, distill, temperature)
    run = _Run(state, loaders, config, device, seed, loss, should_stop, on_progress)
    with run.passes():
        _train(run, save, on_epoch)
    if state.ema is not None:
        model.load_state_dict(state.ema.module.state_dict())
    return FitResult(state.history, state.best, state.seconds)


def _train(run: "_Run", save: Callable[..., None], on_epoch: Callable[[dict[str, float]], None]) -> None:
    state, config = run.state, run.config
    while state.epoch < config.epochs:
        started = time.perf_counter()
        try:
            metrics = run.train_epoch()
        except PreemptedError:
            state.seconds += time.perf_counter() - started
            save(state.dump())
            raise
        if state.epoch % config.eval_every == 0 or state.epoch == config.epochs or config.dry_run:
            metrics |= run.evaluate_epoch()
        state.seconds += time.perf_counter() - started
        state.history.append(metrics)
        if state.note_best(metrics):
            save({"model": state.evaluated.state_dict(), "history": [metrics]}, "best.pt")
        save(state.dump())
        on_epoch(metrics)
        if config.dry_run:
            break


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Any, *, autocast: torch.dtype | None = None, max_batches: int | None = None
) -> dict[str, float]:
    """Mean cross-entropy ``loss`` and ``top1`` accuracy in percent of ``model`` over a loader, in all processes."""
    was_training = model.training
    model.eval()
    totals, seen = torch.zeros(2, dtype=torch.float64), 0  # the former on the device: no batch waits for another
    for i, (images, labels) in enumerate(loader):
        if i == max_batches:
            break
        with mixed_precision(images.device, autocast):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        correct = (logits.argmax(1) == labels).sum()
        totals = totals.to(images.device) + torch.stack([loss.double(), correct.double()])
        seen += len(labels)
    model.train(was_training)
    loss, correct, seen = distributed.summed(torch.tensor([*totals.tolist(), seen], dtype=torch.float64)).tolist()
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
class _PartOfEpoch:
    """How far an epoch has come.

    Attributes:
        steps: that were taken.
        totals: ``(2,)``, sum of the losses and number of right answers over their images.
        seconds: that they took.
        random: states of the generators: the CPU's, and the GPU's where there is one.
    """

    steps: int
    totals: Tensor
    seconds: float = 0.0
    random: list[Tensor] = field(default_factory=list)


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
    part: _PartOfEpoch | None = None

    @classmethod
    def create(cls, model: nn.Module, config: TrainConfig, device: torch.device) -> "_State":
        memory_format = torch.channels_last if config.channels_last else torch.preserve_format
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
            "part": None if self.part is None else asdict(self.part),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.history, self.best = state["history"], state["best"]
        self.part = _PartOfEpoch(**state["part"]) if state.get("part") else None


@dataclass(frozen=True)
class _Loss:
    label_smoothing: float
    teacher: nn.Module | None
    distill: float
    temperature: float

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor | None:
        return None if self.teacher is None else self.teacher(images)

    def __call__(self, logits: Tensor, labels: Tensor, wanted: Tensor | None) -> Tensor:
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if wanted is None:
            return loss
        ours, theirs = (F.log_softmax(x.float() / self.temperature, 1) for x in (logits, wanted))
        # Gradients of the softened answers shrink with the temperature squared.
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.distill) * loss + self.distill * divergence


@dataclass
class _Run:
    state: _State
    loaders: Loaders
    config: TrainConfig
    device: torch.device
    seed: int
    loss: "_Loss"
    should_stop: Callable[[], bool]
    on_progress: Progress

    def __post_init__(self) -> None:
        self.autocast = self.config.autocast_dtype(self.device)
        self.steps = len(self.loaders.train)
        self.batch_size = self.loaders.train.batch_size
        self.model, self.whole_batch = self.state.model, contextlib.nullcontext()
        if distributed.count() > 1:
            with distributed.conversation():
                self.model = DistributedDataParallel(self.model)
            self.whole_batch = GlobalBatch(self.batch_size)

    def passes(self) -> contextlib.AbstractContextManager[None]:
        """What surrounds all epochs."""
        if not self.config.cuda_graph:
            return contextlib.nullcontext()
        return recorded(self.model, self.loaders.train.first_images(1)[0], self.autocast)

    def train_epoch(self) -> dict[str, float]:
        state, config = self.state, self.config
        started = time.perf_counter()
        part = self._begin_epoch()
        for images, labels in self.loaders.train:
            part.totals += self._step(images, labels, self._lr(part.steps))
            part.steps += 1
            if part.steps % _LOSS_CHECK_STEPS == 0 or part.steps == self.steps or config.dry_run:
                self._check_finite(part)
            self.on_progress((state.epoch + part.steps / self.steps) / config.epochs, self._status())
            if config.dry_run:
                break
            if distributed.anywhere(self.should_stop()):
                self._leave(part, time.perf_counter() - started)
        loss, correct = distributed.summed(part.totals).tolist()  # waits for the device, so that the time below is true
        seconds = part.seconds + time.perf_counter() - started
        images = part.steps * self.batch_size
        metrics = {
            "epoch": state.epoch + 1,
            "lr": self._lr(part.steps - 1),
            "train_loss": loss / images,
            "train_top1": 100 * correct / images,
            "images_per_s": images / seconds,
            "seconds": seconds,
        }
        state.epoch += 1
        return metrics

    def _begin_epoch(self) -> _PartOfEpoch:
        """Go to where the epoch begins, or to where it was left."""
        state = self.state
        seed_everything(self.seed, state.epoch)
        part, state.part = state.part or _PartOfEpoch(0, torch.zeros(2)), None
        for generator, random in zip(self._generators(), part.random, strict=False):  # it may have been left on a GPU
            generator.set_state(random)
        if not distributed.is_first():
            part.totals.zero_()  # the first process's has everyone's
        part.totals = part.totals.to(self.device)
        self.loaders.train.set_epoch(state.epoch, part.steps)
        state.model.train()
        return part

    def _step(self, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        """Take a step; returns the sum of the losses and the number of right answers, of this process's images."""
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        with mixed_precision(self.device, self.autocast), self.whole_batch:
            logits = self.model(images)
            wanted = self.loss.teacher_logits(images)
        loss = self.loss(logits.float(), labels, wanted)
        state.optimizer.zero_grad(set_to_none=True)
        with distributed.conversation():  # DDP averages over processes; what is wanted is the mean over images
            (loss * (distributed.count() * len(labels) / self.batch_size)).backward()
        state.optimizer.step()
        if state.ema is not None:
            state.ema.update_parameters(state.model)
        return torch.stack([loss.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()])

    def _lr(self, step: int) -> float:
        return self.config.lr_at(self.state.epoch * self.steps + step, self.steps)

    def _leave(self, part: _PartOfEpoch, seconds: float) -> None:
        random = [generator.get_state() for generator in self._generators()]
        self.state.part = _PartOfEpoch(part.steps, distributed.summed(part.totals), part.seconds + seconds, random)
        raise PreemptedError(
            f"stopped on request in epoch {self.state.epoch + 1}, after step {part.steps} of {self.steps}; "
            "the same command goes on from there"
        )

    def _generators(self) -> list[torch.Generator]:
        if self.device.type != "cuda":
            return [torch.default_generator]
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        return [torch.default_generator, torch.cuda.default_generators[index]]

    def evaluate_epoch(self) -> dict[str, float]:
        max_batches = 1 if self.config.dry_run else None
        metrics = {}
        for split in ("test", "holdout"):
            loader = getattr(self.loaders, split)
            if loader is not None:
                result = evaluate(self.state.evaluated, loader, autocast=self.autocast, max_batches=max_batches)
                metrics |= {f"{split}_{name}": value for name, value in result.items()}
        return metrics

    def _check_finite(self, part: _PartOfEpoch) -> None:
        loss = distributed.summed(part.totals)[0].item()

        def check() -> None:
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"the loss became {loss} in epoch {self.state.epoch + 1}, by step {part.steps} of {self.steps}; "
                    "the checkpoint of the last good epoch is kept. Try a lower trainer.lr, trainer.precision=fp32, or "
                    "policy.options.clamp=true"
                )

        distributed.from_first(check)  # and so it is said once

    def _status(self) -> str:
        last = self.state.history[-1] if self.state.history else {}
        accuracy = f", test {last['test_top1']:.2f} %" if "test_top1" in last else ""
        return f"epoch {self.state.epoch + 1}/{self.config.epochs}{accuracy}"
