"""The training loop: one function, resumable, deterministic given the seed, in one process or several."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from whtnet import distributed
from whtnet.data import Loaders
from whtnet.engine.checkpoint import load_checkpoint, save_checkpoint
from whtnet.engine.config import TrainConfig
from whtnet.engine.loss import Loss
from whtnet.preemption import PreemptedError
from whtnet.settings import ConfigError

if TYPE_CHECKING:
    from whtnet.engine.epochs import Epochs

_CPU = torch.device("cpu")

Progress = Callable[[float, str], None]
"""Called with the fraction of the run that is done and a line of status."""


@dataclass(frozen=True)
class FitResult:
    """Outcome of a run.

    Attributes:
        history: metrics of every epoch, in order: ``epoch`` (from 1), ``lr``, ``train_loss``, ``train_top1``,
            ``test_loss``, ``test_top1`` (percent; on epochs that were evaluated), ``holdout_*`` if there is a held-out
            part, ``gradient_norm`` (mean over the steps, before clipping), ``images_per_s``, ``seconds``.
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
    epochs_before: int = 0,
    epochs_in_all: int | None = None,
    extra: Mapping[str, Any] = MappingProxyType({}),
    teacher: nn.Module | None = None,
    distill: float = 0.0,
    temperature: float = 1.0,
    should_stop: Callable[[], bool] = lambda: False,
    on_notice: Callable[[str], None] = lambda text: None,
    on_step: Callable[[dict[str, float]], None] = lambda metrics: None,
    on_network: Callable[[int, nn.Module], None] = lambda epoch, network: None,
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

    The model is put into training mode, except for its frozen parts: those modules in evaluation mode whose parameters
    all have ``requires_grad`` False, with all that lies in them. A batch norm thus keeps its statistics after
    ``norm.eval().requires_grad_(False)``; after one of the two alone it does not.

    Args:
        model: the classifier.
        loaders: batches of ``(N, C, H, W)`` images and labels, see :class:`whtnet.data.Loaders`.
        config: how to train.
        device: where.
        seed: of the run.
        checkpoint: file to resume from and write to, or None.
        fingerprint: identifies the settings in the checkpoint.
        epochs_before: those of a run's earlier trainings, which count where a person is told of an epoch.
        epochs_in_all: of all trainings of the run; None for those of ``config``.
        extra: plain data to keep in the checkpoint besides.
        teacher: a trained classifier in evaluation mode, on the device, to distil from (Hinton et al., 2015).
        distill: share of the distillation in the loss.
        temperature: that both networks' logits are divided by in it.
        should_stop: asked after every step, and in every process: whether to keep the state and leave.
        on_notice: called with a line for the user: where the run is resumed, why it ends early.
        on_step: called every 50 steps and at the end of an epoch with ``epoch`` (2.5 in the middle of the third one),
            ``loss`` (mean since the last call) and ``lr``.
        on_network: called after each epoch, before ``on_epoch``, with its number and the network as it was evaluated.
        on_epoch: called with the metrics of each epoch, those of a resumed run's earlier epochs not included.
        on_progress: called every few steps.

    Raises:
        ConfigError: for settings that don't go with the data: ``patience`` without a held-out part, mixing with an odd
            batch, a batch that leaves a normalisation layer one value per channel.
        NonFiniteLossError: if the loss is NaN or infinite.
        CheckpointError: if the checkpoint is damaged or another run's.
        PreemptedError: when ``should_stop`` said so.
        PeerError: if another process ended.
    """
    from whtnet.engine.epochs import Epochs  # they need timm, which takes its time
    from whtnet.engine.state import State

    if config.patience and loaders.holdout is None:
        raise ConfigError("trainer.patience needs a held-out part: give dataset.holdout=0.1, say")
    state = State.create(model, config, device)

    def load() -> dict[str, Any] | None:
        return load_checkpoint(checkpoint, fingerprint, _CPU) if checkpoint and checkpoint.exists() else None

    def save(contents: dict[str, Any], name: str | None = None) -> None:
        if checkpoint and not config.dry_run:
            path = checkpoint.with_name(name or checkpoint.name)
            distributed.from_main_process(lambda: save_checkpoint(path, {**contents, **extra}, fingerprint))

    if (saved := distributed.from_main_process(load)) is not None:
        state.load(saved)
    if not state.is_finished(config):
        if saved is not None:
            on_notice(f"resumed at epoch {epochs_before + state.epoch + 1} of {epochs_in_all or config.epochs}")
        run = Epochs(
            state=state,
            loaders=loaders,
            config=config,
            device=device,
            seed=seed,
            loss=Loss(config.label_smoothing, teacher, distill, temperature),
            checkpoint=checkpoint,
            should_stop=should_stop,
            on_step=on_step,
            on_progress=on_progress,
            epochs_before=epochs_before,
            epochs_in_all=epochs_in_all or config.epochs,
        )
        with run.passes():
            _train(run, save, on_network, on_epoch)
        if state.best and state.is_finished(config) and state.epoch < config.epochs:
            last, best = epochs_before + state.epoch, epochs_before + state.best["epoch"]
            on_notice(f"stopped after epoch {last}: no better held-out accuracy since epoch {best}")
    if state.ema is not None:
        model.load_state_dict(state.ema.module.state_dict())
    return FitResult(state.history, state.best, state.seconds)


def _train(
    run: "Epochs",
    save: Callable[..., None],
    on_network: Callable[[int, nn.Module], None],
    on_epoch: Callable[[dict[str, float]], None],
) -> None:
    state, config = run.state, run.config
    while not state.is_finished(config):
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
        on_network(state.epoch, state.evaluated)
        on_epoch(metrics)
        if config.dry_run:
            break
