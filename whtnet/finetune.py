"""From a trained network to one with Walsh-Hadamard layers: its start, the stages of replacement, and its teacher.

Training from scratch is the case of one stage, fresh layers and no teacher.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from whtnet import distributed
from whtnet.backbones import load_matching_
from whtnet.classifier import Classifier
from whtnet.data import Loaders
from whtnet.engine import CHECKPOINT, FitResult, Progress, TrainConfig, fit
from whtnet.files import file_digest
from whtnet.policy import Policy, Report, SiteFit, apply_policy_, canonical_policy, fit_layers_
from whtnet.seeding import seed_everything
from whtnet.settings import ConfigError, check_fields, read_settings


@dataclass(frozen=True)
class FineTuneConfig:
    """How to go on from a trained network; the defaults are training from scratch.

    Attributes:
        start: a trained model, as :meth:`whtnet.classifier.Classifier.load` takes it, whose weights the network begins
            with: one without replaced layers, or one with the run's own policy, whose layers are taken over too. None
            for the backbone's own weights (fresh, or the library's pretrained ones).
        init: of the new layers: ``fresh``, or ``fit`` to the activations of the trained layers that they replace.
        init_images: number of training images for ``fit``.
        stages: replace the last 1/stages of the sites, train, replace as many before them, and so on. The epochs are
            shared out, and every stage has the whole learning rate schedule.
        distill: share of the loss that compares with ``start``'s own answers, in [0, 1].
        temperature: that both networks' logits are divided by in that comparison.
    """

    start: str | None = None
    init: Literal["fresh", "fit"] = "fresh"
    init_images: PositiveInt = 256
    stages: PositiveInt = 1
    distill: Annotated[float, Field(ge=0, le=1)] = 0.0
    temperature: PositiveFloat = 4.0

    def __post_init__(self) -> None:
        check_fields(self, "finetune")
        if self.init == "fit" and distributed.world_size() > 1:
            raise ConfigError("finetune.init=fit is for one process; start without torchrun")
        if self.distill and self.start is None:
            raise ConfigError("finetune.distill needs a teacher: finetune.start=MODEL")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "FineTuneConfig":
        """Read plain data, as under ``finetune`` in ``configs/config.yaml``."""
        return read_settings(cls, settings, "finetune")


def start_identity(source: str) -> str:
    """What the model called ``source`` is: a digest of its weights' file, or its name on the hub."""
    path = Path(source)
    for file in (path / CHECKPOINT, path / "model.safetensors", path):
        if file.is_file():
            return file_digest(file)
    return source


def load_start_(
    model: nn.Module,
    finetune: FineTuneConfig,
    policy: Policy,
    input_size: tuple[int, int, int],
    classes: Sequence[str],
) -> nn.Module:
    """Read the trained network that a run begins with.

    Args:
        model: the run's backbone without replaced layers; gets the weights of what the trained one has not replaced.
        finetune: whose ``start`` it is: a network without replaced layers, or with all those of ``policy``; None for
            ``model`` as it is.
        policy: of the run.
        input_size: (C, H, W) of an image.
        classes: names of the data set's classes, which that one must have been trained on.

    Returns:
        ``model``, or a copy of it with the replaced layers, and their weights.

    Raises:
        ConfigError: if that one is another network, has other classes, other replaced layers, or nothing left to
            replace in stages or to fit.
        CheckpointError: if it can't be read.
    """
    if finetune.start is None:
        return model
    start = Classifier.load(finetune.start)
    origin = f"finetune.start={finetune.start}"
    check_classes(origin, start.classes, classes)
    weights = start.network.state_dict()
    begun = model
    if start.report.replacements:
        if canonical_policy(Policy.from_dict(start.policy)) != canonical_policy(policy):
            raise ConfigError(
                f"{origin} has layers replaced by the policy {start.report.policy!r}, not as {policy.name!r} does it; "
                f"take policy={start.report.policy} to go on with them, or a start with policy=none"
            )
        if start.share < 1:
            raise ConfigError(f"{origin} has only a part of its layers replaced; name the folder of the whole run")
        if finetune.stages > 1 or finetune.init != "fresh":
            raise ConfigError(f"{origin} has all its layers replaced; leave out finetune.stages and finetune.init")
        load_matching_(model, weights)
        begun = copy.deepcopy(model)
        apply_policy_(begun, policy, input_size)
    try:
        begun.load_state_dict(weights)
    except RuntimeError as error:
        height, width = start.input_size[1:]
        raise ConfigError(
            f"{origin} is {start.backbone['name']} for images of {height}×{width}, whose weights do not fit this "
            f"network, for images of {input_size[1]}×{input_size[2]}; give backbone, its settings and the size of the "
            "images as they were there"
        ) from error
    return begun


def check_classes(origin: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Compare the class names of a trained model with those of the data, whose order is that of the outputs.

    Raises:
        ConfigError: naming ``origin`` and the first class that differs.
    """
    if len(theirs) != len(ours):
        raise ConfigError(
            f"{origin} has {len(theirs)} classes, and the data set has {len(ours)}; take a model of this data"
        )
    for number, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        if a != b:
            raise ConfigError(
                f"{origin} has other classes than the data set: number {number} is {a!r} there and {b!r} here; take a "
                "model of this data"
            )


def fit_in_stages(
    original: nn.Module,
    begun: nn.Module,
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
    on_notice: Callable[[str], None] = lambda text: None,
    on_step: Callable[[dict[str, float]], None] = lambda metrics: None,
    on_network: Callable[[int, nn.Module], None] = lambda epoch, network: None,
    on_epoch: Callable[[dict[str, float]], None] = lambda metrics: None,
    on_progress: Progress = lambda fraction, status: None,
    **options: Any,
) -> tuple[nn.Module, FitResult]:
    """Replace layers of ``original`` and train, stage by stage.

    Args:
        original: the backbone, with the weights to begin with; stays as it is.
        begun: the network to begin with: ``original``, or one with the policy's layers (:func:`load_start_`).
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
        on_notice: as of :func:`whtnet.engine.fit`, with the stage where there are several.
        on_step: likewise, epochs counted over all stages.
        on_network: likewise.
        on_epoch: likewise.
        on_progress: likewise.
        options: of :func:`whtnet.engine.fit`.

    Returns:
        The network, and its result: the history over all stages, the best epoch of the last one.
    """
    options |= {"device": device, "seed": seed}
    if finetune.distill:
        teacher = copy.deepcopy(begun).to(device).eval().requires_grad_(False)
        options |= {"teacher": teacher, "distill": finetune.distill, "temperature": finetune.temperature}
    model, report, results = begun, None, list[FitResult]()
    for stage in stages_of(config, finetune, folder):
        if stage.number > 1:
            seed_everything(seed, stage.number)  # fresh layers must not depend on whether the stage before ran just now
        done: set[str] = {site.name for site in report.replacements} if report else set()
        previous, (model, report) = model, _replace(original, model, policy, input_size, stage.share)
        if finetune.init == "fit" and not (stage.checkpoint and stage.checkpoint.exists()):
            new = tuple(site for site in report.replacements if site.name not in done)
            images = loaders.train.first_images(finetune.init_images)
            fresh = dataclasses.replace(report, replacements=new)
            on_fits(fit_layers_(model.to(device), previous.to(device), fresh, images))
        result = fit(
            model,
            loaders,
            dataclasses.replace(config, epochs=stage.epochs),
            checkpoint=stage.checkpoint,
            epochs_before=stage.first,
            epochs_in_all=config.epochs,
            extra={**extra, "classifier": {**extra["classifier"], "share": stage.share}},
            **stage.callbacks(on_notice, on_step, on_network, on_epoch, on_progress, config.epochs),
            **options,
        )
        results.append(stage.counted(result))
        if config.dry_run:
            break
    history = [metrics for result in results for metrics in result.history]
    return model, FitResult(history, results[-1].best, sum(result.seconds for result in results))


@dataclass(frozen=True)
class Stage:
    """One of the trainings that a run is made of.

    Attributes:
        number: from 1.
        count: of them all.
        first: epochs of the run before it.
        epochs: its own.
        checkpoint: its file, or None.
    """

    number: int
    count: int
    first: int
    epochs: int
    checkpoint: Path | None

    @property
    def share(self) -> float:
        """Of the policy's sites, what is replaced in it."""
        return self.number / self.count

    def callbacks(
        self,
        on_notice: Callable[[str], None],
        on_step: Callable[[dict[str, float]], None],
        on_network: Callable[[int, nn.Module], None],
        on_epoch: Callable[[dict[str, float]], None],
        on_progress: Progress,
        total: int,
    ) -> dict[str, Any]:
        """The run's callbacks for this training; of a run with no other stage, they are the run's own."""
        if self.epochs == total:
            return {
                "on_notice": on_notice,
                "on_step": on_step,
                "on_network": on_network,
                "on_epoch": on_epoch,
                "on_progress": on_progress,
            }
        return {
            "on_notice": lambda text: on_notice(f"{self}: {text}"),
            "on_step": lambda metrics: on_step(self._shifted(metrics)),
            "on_network": lambda epoch, network: on_network(self.first + epoch, network),
            "on_epoch": lambda metrics: on_epoch(self._shifted(metrics)),
            "on_progress": lambda fraction, status: on_progress(
                (self.first + fraction * self.epochs) / total, f"{self}, {status}"
            ),
        }

    def __str__(self) -> str:
        return f"stage {self.number} of {self.count}"

    def counted(self, result: FitResult) -> FitResult:
        """A result of this training with its epochs counted over the run."""
        best = result.best and self._shifted(result.best)
        return FitResult([self._shifted(metrics) for metrics in result.history], best, result.seconds)

    def _shifted(self, metrics: dict[str, float]) -> dict[str, float]:
        return metrics | {"epoch": metrics["epoch"] + self.first}


def stages_of(config: TrainConfig, finetune: FineTuneConfig, folder: Path | None) -> list[Stage]:
    """Share the epochs out; the last stage has what is left over, and the run's own folder."""
    count, each = finetune.stages, config.epochs // finetune.stages
    stages = []
    for number in range(1, count + 1):
        place = folder and (folder if number == count else folder / f"stage-{number}")
        first = (number - 1) * each
        epochs = config.epochs - first if number == count else each
        stages.append(Stage(number, count, first, epochs, place and place / CHECKPOINT))
    return stages


def _replace(
    original: nn.Module, trained: nn.Module, policy: Policy, input_size: tuple[int, int, int], share: float
) -> tuple[nn.Module, Report]:
    """A copy of ``original`` with a share of its sites replaced, and all else as in ``trained``."""
    model = copy.deepcopy(original)
    report = apply_policy_(model, policy, input_size, share)
    load_matching_(model, trained.state_dict())
    return model, report
