"""One run from plain settings to its record: build → replace → fit → record.

Where several processes train one model, each calls the same function; the first one alone writes and logs.
"""

import contextlib
import copy
import datetime
import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from whtnet import distributed
from whtnet.backbones import build_backbone
from whtnet.data import ImageDataset, Loaders, load_dataset
from whtnet.engine import FitResult, Progress, TrainConfig
from whtnet.files import exclusive_folder
from whtnet.finetune import FineTuneConfig, fit_in_stages, load_start_
from whtnet.inspection import describe_layers
from whtnet.memory import keep_freed_memory
from whtnet.policy import Policy, Report, SiteFit, apply_policy_
from whtnet.preemption import listening
from whtnet.records import environment, write_json
from whtnet.seeding import seed_everything
from whtnet.settings import ConfigError
from whtnet.tracking import NullSink, RunInfo, Sink

RECORD = "record.json"
RESUME = ("auto", "never")

_SUMMARY = ("epochs", "test_top1", "test_loss", "images_per_s", "duration_s")


@dataclass(frozen=True)
class Experiment:
    """The settings of a run, as plain data.

    Attributes:
        backbone: keywords of :func:`whtnet.backbones.build_backbone`, ``name`` among them.
        policy: data of a :class:`whtnet.Policy`.
        dataset: keywords of :func:`whtnet.data.load_dataset`, ``name`` among them.
        trainer: keywords of :class:`whtnet.engine.TrainConfig`.
        seed: of weights, batches and augmentation.
        device: ``auto``, ``cpu``, ``cuda``, ….
        finetune: keywords of :class:`whtnet.finetune.FineTuneConfig`.

    Raises:
        ConfigError: for a seed that is no whole number from 0, or a backbone with a number of classes of its own.
    """

    backbone: Mapping[str, Any]
    policy: Mapping[str, Any]
    dataset: Mapping[str, Any]
    trainer: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    finetune: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ConfigError(f"seed={self.seed!r} is no seed; give a whole number from 0")
        if "num_classes" in self.backbone:
            raise ConfigError("backbone.num_classes is the data set's number of classes; leave it out")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Experiment":
        """Read a composed ``configs/config.yaml``."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the result: everything but where the data lies and which device computes."""
        dataset = {k: v for k, v in self.dataset.items() if k not in ("root", "download")}
        trainer = {k: v for k, v in self.trainer.items() if k not in ("workers", "dry_run", "cuda_graph")}
        parts = {"backbone": dict(self.backbone), "policy": dict(self.policy), "dataset": dataset, "trainer": trainer}
        return parts | {"seed": self.seed, "finetune": dict(self.finetune)}

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that identify the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def backbone_name(self) -> str:
        """Name of the backbone without the slash that separates it from its library's."""
        return str(self.backbone["name"]).replace("/", "-")

    @property
    def name(self) -> str:
        """Name of the run, the same whenever the settings are the same."""
        return f"{self.backbone_name}-{self.policy['name']}-seed{self.seed}-{self.fingerprint}"

    def folder(self, root: Path) -> Path:
        """The run's own folder under ``root``."""
        return root / str(self.dataset["name"]) / self.name


def run(
    experiment: Experiment,
    *,
    sink: Sink,
    root: Path = Path("runs"),
    resume: str = "auto",
    group: str | None = None,
    tags: Sequence[str] = (),
    on_report: Callable[[Report], None] = lambda report: None,
    on_fits: Callable[[list[SiteFit]], None] = lambda fits: None,
    on_progress: Progress = lambda fraction, status: None,
) -> dict[str, Any]:
    """Train one model and return its record, which is also written to the run's folder as ``record.json``.

    SIGTERM, SIGUSR1 and SIGUSR2 end it after the step that runs; the next call goes on from there.

    Args:
        experiment: the settings.
        sink: where the curves go besides the record.
        root: folder of all runs; each has a folder of its own there, named by its settings.
        resume: ``auto`` goes on from the folder's checkpoint, and returns the record of a run that is finished;
            ``never`` starts afresh in a folder with a new number.
        group: of the run on a dashboard; dataset and backbone if None.
        tags: more tags for a dashboard.
        on_report: called with the policy's report before training starts.
        on_fits: called with what ``finetune.init=fit`` reached.
        on_progress: called with the fraction done and a line of status.

    Raises:
        UserError: for settings that can't be, data that is missing, a damaged checkpoint, a run that is in progress in
            another process, a loss that is not finite.
        PreemptedError: on one of the signals.
    """
    if isinstance(tags, str) or not isinstance(tags, Sequence) or not all(isinstance(tag, str) for tag in tags):
        raise ConfigError(f"tags={tags!r} is no list of words; write tags=[first,second], a number as '1'")
    with contextlib.ExitStack() as held:
        folder, finished = distributed.from_first(lambda: _claim(experiment.folder(root), resume, held))
        if finished is not None:
            return finished
        parts = distributed.together(lambda: _prepare(experiment))
        on_report(parts.report)
        default_group = f"{experiment.dataset['name']}-{experiment.backbone_name}"
        info = RunInfo(
            name=experiment.name,
            group=group or default_group,
            tags=[experiment.backbone["name"], experiment.policy["name"], experiment.dataset["name"], *tags],
            config=experiment.settings | {"cost": parts.cost, "environment": environment(parts.device)},
            run_dir=folder,
        )
        sink = sink if distributed.is_first() else NullSink()
        sink.start(info)
        record: dict[str, Any] = {}
        try:
            with listening() as stop_requested:
                model, result = parts.fit(
                    experiment,
                    folder=folder,
                    should_stop=stop_requested,
                    on_fits=on_fits,
                    on_epoch=lambda metrics: sink.log(int(metrics["epoch"]), metrics),
                    on_progress=on_progress,
                )
            record = _record(experiment, parts, model, result)
            distributed.from_first(lambda: write_json(folder / RECORD, record))
        finally:
            summary = {key: record[key] for key in _SUMMARY if key in record}
            sink.finish(summary | parts.cost, failed=not record)
    return record


def dry_run(experiment: Experiment) -> tuple[Report, dict[str, float]]:
    """Build the model, train and evaluate one batch, write nothing; returns the policy's report and the metrics."""
    parts = distributed.together(lambda: _prepare(experiment))
    return parts.report, parts.fit(experiment)[1].history[-1]


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is a GPU where there is one, and for each of several processes its own.

    Raises:
        ConfigError: if there is no such device here, or one GPU is named for several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.count() > 1 and name != "cpu":
        if name != "cuda":
            raise ConfigError(f"device={name!r} can't serve {distributed.count()} processes; give device=auto")
        name = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device={name!r} can't be used here: {reason}; try device=auto, and no more processes than GPUs"
        ) from error
    return device


@dataclass(frozen=True)
class _Parts:
    config: TrainConfig
    finetune: FineTuneConfig
    device: torch.device
    original: nn.Module
    policy: Policy
    report: Report
    loaders: Loaders
    dataset: ImageDataset

    @property
    def cost(self) -> dict[str, int]:
        return self.report.to_dict()["after"]

    def fit(self, experiment: Experiment, **options: Any) -> tuple[nn.Module, FitResult]:
        identity = {"seed": experiment.seed, "fingerprint": experiment.fingerprint}
        extra = {"classifier": self.classifier(experiment)}
        what = (self.original, self.policy, self.dataset.input_size, self.loaders, self.config, self.finetune)
        return fit_in_stages(*what, device=self.device, extra=extra, **identity, **options)

    def classifier(self, experiment: Experiment) -> dict[str, Any]:
        """Keywords of a :class:`whtnet.classifier.Classifier` that holds this network."""
        dataset = self.dataset
        return {
            "backbone": dict(experiment.backbone),
            "policy": dict(experiment.policy),
            "classes": dataset.classes,
            "input_size": list(dataset.input_size),
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "dataset": experiment.settings["dataset"],
        }


def _prepare(experiment: Experiment) -> _Parts:
    config = TrainConfig.from_dict(experiment.trainer)
    for name in ("compile", "cuda_graph"):
        if getattr(config, name) and distributed.count() > 1:
            raise ConfigError(f"trainer.{name}=true is for one process; leave it out, or start without torchrun")
    finetune = FineTuneConfig.from_dict(experiment.finetune)
    policy = Policy.from_dict(experiment.policy)
    device = resolve_device(experiment.device)
    if config.cuda_graph and device.type != "cuda":
        raise ConfigError(f"trainer.cuda_graph=true needs a GPU, and this run is on {device.type}; leave it out")
    if device.type == "cpu":
        keep_freed_memory()
    dataset: ImageDataset = load_dataset(**experiment.dataset)
    seed_everything(experiment.seed)
    original = build_backbone(**experiment.backbone, num_classes=dataset.num_classes)
    if finetune.start is not None:
        load_start_(original, finetune.start)
    report = apply_policy_(copy.deepcopy(original).to("meta"), policy, dataset.input_size)
    loaders = dataset.loaders(
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        device=device,
        seed=experiment.seed,
        channels_last=config.channels_last,
        workers=config.workers,
    )
    return _Parts(config, finetune, device, original, policy, report, loaders, dataset)


def _claim(folder: Path, resume: str, held: contextlib.ExitStack) -> tuple[Path, dict[str, Any] | None]:
    """Lock the run's folder as long as ``held`` lasts; also returns the record that is there already."""
    if resume not in RESUME:
        raise ConfigError(f"unknown resume={resume!r}; choose one of {', '.join(RESUME)}")
    if resume == "never":
        folder = _unused(folder)
    held.enter_context(exclusive_folder(folder))
    record = folder / RECORD
    return folder, json.loads(record.read_text(encoding="utf-8")) if record.exists() else None


def _record(experiment: Experiment, parts: _Parts, model: nn.Module, result: FitResult) -> dict[str, Any]:
    last = result.history[-1]
    images, _ = next(iter(parts.loaders.test))
    return {
        "run": experiment.name,
        "seed": experiment.seed,
        "epochs": last["epoch"],
        "test_top1": last["test_top1"],
        "test_loss": last["test_loss"],
        "best": result.best,
        "cost": parts.cost,
        "images_per_s": statistics.median(metrics["images_per_s"] for metrics in result.history),
        "duration_s": result.seconds,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "precision": str(parts.config.autocast_dtype(parts.device) or torch.float32).removeprefix("torch."),
        "settings": experiment.settings,
        "environment": environment(parts.device),
        "history": result.history,
        "layers": describe_layers(model, images),
    }


def _unused(folder: Path) -> Path:
    number, candidate = 2, folder
    while candidate.exists():
        candidate = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return candidate
