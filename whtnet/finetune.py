"""From a trained network to one with Walsh-Hadamard layers: its start, the stages of replacement, and its teacher.

Training from scratch is the case of one stage, fresh layers and no teacher.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from whtnet import distributed
from whtnet.backbones import load_matching_
from whtnet.classifier import Classifier
from whtnet.data import Loaders
from whtnet.engine import CHECKPOINT, FitResult, Progress, TrainConfig, fit
from whtnet.policy import Policy, Report, SiteFit, apply_policy_, fit_layers_
from whtnet.seeding import seed_everything
from whtnet.settings import ConfigError, check_fields, read_settings

INITS = ("fresh", "fit")


@dataclass(frozen=True)
class FineTuneConfig:
    """How to go on from a trained network; the defaults are training from scratch.

    Attributes:
        start: a trained model without replaced layers, as :meth:`whtnet.classifier.Classifier.load` takes it, whose
            weights the network begins with; None for the backbone's own (fresh, or the library's pretrained ones).
        init: of the new layers: ``fresh``, or ``fit`` to the activations of the layers that they replace.
        init_images: number of training images for ``fit``.
        stages: replace the last 1/stages of the sites, train, replace as many before them, and so on. The epochs are
            shared out, and every stage has the whole learning rate schedule.
        distill: share of the loss that compares with ``start``'s own answers, in [0, 1].
        temperature: that both networks' logits are divided by in that comparison.
    """

    start: str | None = None
    init: str = "fresh"
    init_images: int = 256
    stages: int = 1
    distill: float = 0.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        check_fields(self, "finetune")
        if self.init not in INITS:
            raise ConfigError(f"unknown finetune.init {self.init!r}; choose one of {', '.join(INITS)}")
        if self.init == "fit" and distributed.count() > 1:
            raise ConfigError("finetune.init=fit is for one process; start without torchrun")
        for name in ("init_images", "stages"):
            if getattr(self, name) < 1:
                raise ConfigError(f"finetune.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.distill <= 1:
            raise ConfigError(f"finetune.distill must be in [0, 1], got {self.distill}")
        if self.temperature <= 0:
            raise ConfigError(f"finetune.temperature must be positive, got {self.temperature}")
        if self.distill and self.start is None:
            raise ConfigError("finetune.distill needs a teacher: finetune.start=MODEL, trained without a policy")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "FineTuneConfig":
        """Read plain data, as under ``finetune`` in ``configs/config.yaml``."""
        return read_settings(cls, settings, "finetune")


def load_start_(model: nn.Module, source: str) -> None:
    """Give ``model``, a backbone without replaced layers, the weights of a trained one.

    Raises:
        ConfigError: if that one is another network, has other classes, or has replaced layers.
        CheckpointError: if it can't be read.
    """
    start = Classifier.load(source)
    if start.report.replacements:
        raise ConfigError(f"finetune.start={source} has replaced layers itself; name a model with policy=none")
    try:
        model.load_state_dict(start.network.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"finetune.start={source} is {start.report.architecture} with {len(start.classes)} classes, which does not "
            f"fit this network: {error}"
        ) from error


def fit_in_stages(
    original: nn.Module,
    policy: Policy,
    input_size: tuple[int, int, int],
    loaders: Loaders,
    config: TrainConfig,
    finetune: FineTuneConfig,
    *,
    device: torch.device,
    seed: int,
    folder: Path | None = None,
    extra: Mapping[str, Any],
    on_fits: Callable[[list[SiteFit]], None] = lambda fits: None,
    on_epoch: Callable[[dict[str, float]], None] = lambda metrics: None,
    on_progress: Progress = lambda fraction, status: None,
    **options: Any,
) -> tuple[nn.Module, FitResult]:
    """Replace layers of ``original`` and train, stage by stage.

    Args:
        original: the backbone, with the weights to begin with; stays as it is.
        policy: what to replace.
        input_size: (C, H, W) of an image.
        loaders: batches.
        config: how to train, all stages together.
        finetune: the stages and what else.
        device: where.
        seed: of the run.
        folder: of the run, for checkpoints; None for none. Stages before the last have folders of their own in it.
        extra: what the checkpoints hold besides; each has the ``share`` of its stage put into ``classifier``.
        on_fits: called with what ``init=fit`` reached.
        on_epoch: as of :func:`whtnet.engine.fit`, epochs counted over all stages.
        on_progress: likewise.
        options: of :func:`whtnet.engine.fit`.

    Returns:
        The network, and its result: the history over all stages, the best epoch of the last one.
    """
    if config.epochs < finetune.stages:
        raise ConfigError(f"{finetune.stages} stages need as many epochs, trainer.epochs is {config.epochs}")
    model, done, history, seconds = original, frozenset[str](), list[dict[str, float]](), 0.0
    distillation = {}
    if finetune.distill:
        teacher = copy.deepcopy(original).to(device).eval().requires_grad_(False)
        distillation = {"teacher": teacher, "distill": finetune.distill, "temperature": finetune.temperature}
    for stage in range(1, finetune.stages + 1):
        share = stage / finetune.stages
        place = None if folder is None else folder if stage == finetune.stages else folder / f"stage-{stage}"
        checkpoint = None if place is None else place / CHECKPOINT
        if stage > 1:
            seed_everything(seed, stage)  # fresh layers must not depend on whether the stage before ran just now
        previous, (model, report) = model, _replace(original, model, policy, input_size, share)
        new = tuple(site for site in report.replacements if site.name not in done)
        done |= {site.name for site in new}
        if finetune.init == "fit" and not (checkpoint and checkpoint.exists()):
            images = loaders.train.first_images(finetune.init_images)
            on_fits(
                fit_layers_(
                    model.to(device), previous.to(device), dataclasses.replace(report, replacements=new), images
                )
            )
        first = (stage - 1) * (config.epochs // finetune.stages)
        epochs = config.epochs - first if stage == finetune.stages else config.epochs // finetune.stages

        def counted(metrics: dict[str, float], first: int = first) -> dict[str, float]:
            return metrics | {"epoch": metrics["epoch"] + first}

        result = fit(
            model,
            loaders,
            dataclasses.replace(config, epochs=epochs),
            device=device,
            seed=seed,
            checkpoint=checkpoint,
            extra={**extra, "classifier": {**extra["classifier"], "share": share}},
            on_epoch=lambda metrics, counted=counted: on_epoch(counted(metrics)),
            on_progress=lambda fraction, status, first=first, epochs=epochs: on_progress(
                (first + fraction * epochs) / config.epochs, status
            ),
            **distillation,
            **options,
        )
        history += [counted(metrics) for metrics in result.history]
        seconds += result.seconds
        if config.dry_run:
            break
    return model, FitResult(history, counted(result.best) if result.best else None, seconds)


def _replace(
    original: nn.Module, trained: nn.Module, policy: Policy, input_size: tuple[int, int, int], share: float
) -> tuple[nn.Module, Report]:
    """A copy of ``original`` with a share of its sites replaced, and all else as in ``trained``."""
    model = copy.deepcopy(original)
    report = apply_policy_(model, policy, input_size, share)
    load_matching_(model, trained.state_dict())
    return model, report
