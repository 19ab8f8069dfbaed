"""One run from its settings to its record: build → replace → fit → record.

Where several processes train one model, each calls the same function; the first one alone writes and logs.
"""

import contextlib
import copy
import dataclasses
import datetime
import itertools
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from whtnet import distributed
from whtnet.backbones import build_backbone
from whtnet.data import ImageDataset, Loaders, load_dataset
from whtnet.engine import CHECKPOINT, FitResult, Progress, load_checkpoint
from whtnet.experiment import Experiment
from whtnet.files import exclusive_folder
from whtnet.finetune import check_classes, fit_in_stages, load_start_
from whtnet.inspection import describe_layers
from whtnet.memory import keep_freed_memory
from whtnet.policy import Replacement, Report, SiteFit, apply_policy_
from whtnet.preemption import EXIT_STATUS, PreemptedError, listening
from whtnet.records import FORMAT, environment, layers_beside, plain, read_record, write_record
from whtnet.seeding import seed_everything
from whtnet.settings import ConfigError
from whtnet.tracking import NullSink, RunInfo, Sink, best_and_last
from whtnet.tracking.follow import Follower
from whtnet.tracking.sink import Rows

RECORD = "record.json"
RESUME = ("auto", "never")

_SUMMARY = ("epochs", "images_per_s", "duration_s")


def run(
    experiment: Experiment,
    *,
    sink: Sink,
    root: Path = Path("runs"),
    resume: str = "auto",
    label: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    on_folder: Callable[[Path, bool], None] = lambda folder, finished: None,
    on_report: Callable[[Report], None] = lambda report: None,
    on_fits: Callable[[list[SiteFit]], None] = lambda fits: None,
    on_notice: Callable[[str], None] = lambda text: None,
    on_epoch: Callable[[dict[str, float]], None] = lambda metrics: None,
    on_progress: Progress = lambda fraction, status: None,
) -> dict[str, Any]:
    """Train one model and return its record as written to the run's folder, with the ``layers`` kept beside it.

    SIGTERM, SIGUSR1 and SIGUSR2 end it after the step that runs; the next call goes on from there.

    Args:
        experiment: the settings; one with a ``start`` begins with the last finished run of that below ``root``.
        sink: where the curves go besides the record.
        root: folder of all runs; each has a folder of its own there, named by its settings.
        resume: ``auto`` goes on from the folder's checkpoint, and returns the record of a run that is finished;
            ``never`` starts afresh in a folder with a new number.
        label: of the run on a dashboard; backbone, policy and seed if None.
        group: of the run on a dashboard; dataset and backbone if None.
        tags: more tags for a dashboard.
        on_folder: called with the run's folder, and whether the run was finished there earlier.
        on_report: called with the policy's report before training starts.
        on_fits: called with what ``finetune.init=fit`` reached.
        on_notice: called with a line for the user: classes and images, smaller batches, a resumed run, an early end.
        on_epoch: called with each epoch's metrics (:class:`whtnet.engine.FitResult`), after the sink.
        on_progress: called with the fraction done and a line of status.

    Raises:
        UserError: for settings that can't be, data that is missing, a start that was not trained, a damaged checkpoint,
            a run that is in progress in another process, a loss that is not finite.
        PreemptedError: on one of the signals.
    """
    if isinstance(tags, str) or not isinstance(tags, Sequence) or not all(isinstance(tag, str) for tag in tags):
        raise ConfigError(f"tags={tags!r} is no list of words; write tags=[first,second], a number as '1'")
    if resume not in RESUME:
        raise ConfigError(f"unknown resume={resume!r}; choose one of {', '.join(RESUME)}")
    if experiment.trainer.dry_run:
        raise ConfigError("trainer.dry_run=true trains one batch, which is no run; whtnet.runs.dry_run does it")
    device = distributed.together(lambda: resolve_device(experiment.device))
    distributed.together(lambda: experiment.identity)
    folder = distributed.from_main_process(lambda: experiment.folder(root))
    if resume == "auto" and (finished := distributed.from_main_process(lambda: _finished(folder))) is not None:
        on_folder(folder, True)
        return finished
    experiment = distributed.together(lambda: _begun(experiment, root))
    parts = distributed.together(lambda: _prepare(experiment, device))
    with contextlib.ExitStack() as held:
        folder = distributed.from_main_process(lambda: _claim(folder, resume, held))
        done = distributed.from_main_process(lambda: _epochs_done(folder, experiment, parts.dataset))
        sink = sink if distributed.is_main_process() else NullSink()
        sink.start(_info(experiment, parts, folder, label, group, tags, done))
        follower = Follower(sink, folder, parts.dataset, parts.loaders, on_epoch)
        with _ending(sink, parts.cost, resume) as summary:
            sink.show({"replaced sites": _sites(parts.report)}, {})
            on_folder(folder, False)
            parts.tell(experiment, on_report, on_notice)
            with listening() as stop_requested:
                model, result = parts.fit(
                    experiment,
                    folder=folder,
                    should_stop=stop_requested,
                    on_fits=on_fits,
                    on_notice=on_notice,
                    on_step=follower.on_step,
                    on_network=follower.on_network,
                    on_epoch=follower.on_epoch,
                    on_progress=on_progress,
                )
            record = _record(experiment, parts, result)
            layers = describe_layers(model, follower.images)
            follower.end(model, result.history, folder / CHECKPOINT)
            distributed.from_main_process(lambda: write_record(folder / RECORD, record, layers))
            summary |= {key: record[key] for key in _SUMMARY} | best_and_last(result.history)
    return distributed.from_main_process(lambda: _whole_record(folder / RECORD))


def how_to_go_on(resume: str | None, place: str = "there") -> str:
    """What to do about a run that was stopped, for people; ``place`` is where its state stands."""
    return "the same command begins anew" if resume == "never" else f"the same command goes on from {place}"


def dry_run(
    experiment: Experiment,
    *,
    on_report: Callable[[Report], None] = lambda report: None,
    on_notice: Callable[[str], None] = lambda text: None,
) -> dict[str, float]:
    """Build the model, train and evaluate one batch, write nothing.

    Args:
        experiment: the settings.
        on_report: as for :func:`run`.
        on_notice: likewise.

    Returns:
        The metrics of the batch.
    """
    parts = distributed.together(lambda: _prepare(experiment, resolve_device(experiment.device)))
    parts.tell(experiment, on_report, on_notice)
    return parts.fit(experiment)[1].history[-1]


def finished_folder(experiment: Experiment, root: Path) -> Path | None:
    """The folder of the last finished run of ``experiment`` below ``root``; None where there is none."""
    existing = itertools.takewhile(Path.exists, _numbered(experiment.folder(root)))
    return next((folder for folder in reversed(list(existing)) if (folder / RECORD).exists()), None)


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is a GPU where there is one, and for each of several processes its own.

    Raises:
        ConfigError: if there is no such device here, or one GPU is named for several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.world_size() > 1 and name != "cpu":
        if name != "cuda":
            raise ConfigError(f"device={name!r} can't serve {distributed.world_size()} processes; give device=auto")
        name = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ConfigError(
            f"device={name!r} can't be used here: {reason}; try device=auto, and no more processes than GPUs"
        ) from error
    return device


@dataclass(frozen=True)
class _Parts:
    device: torch.device
    original: nn.Module
    begun: nn.Module
    report: Report
    loaders: Loaders
    dataset: ImageDataset

    @property
    def cost(self) -> dict[str, int]:
        return self.report.to_dict()["after"]

    def tell(
        self, experiment: Experiment, on_report: Callable[[Report], None], on_notice: Callable[[str], None]
    ) -> None:
        """Say what is going to be trained on what."""
        on_report(self.report)
        on_notice(self.dataset.summary)
        if (size := self.loaders.train.batch_size) < experiment.trainer.batch_size:
            images = f"the {size} training images that there are"
            on_notice(f"warning: trainer.batch_size={experiment.trainer.batch_size} is cut down to {images}")

    def fit(self, experiment: Experiment, **options: Any) -> tuple[nn.Module, FitResult]:
        return fit_in_stages(
            self.original,
            self.begun,
            experiment.policy,
            self.dataset.input_size,
            self.loaders,
            experiment.trainer,
            experiment.finetune,
            device=self.device,
            seed=experiment.seed,
            fingerprint=experiment.identity,
            extra={"classifier": self.classifier(experiment)},
            **options,
        )

    def classifier(self, experiment: Experiment) -> dict[str, Any]:
        """Keywords of a :class:`whtnet.classifier.Classifier` that holds this network."""
        dataset, settings = self.dataset, experiment.settings
        return {
            "backbone": settings["backbone"],
            "policy": settings["policy"],
            "classes": dataset.classes,
            "input_size": list(dataset.input_size),
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "dataset": settings["dataset"],
        }


def _prepare(experiment: Experiment, device: torch.device) -> _Parts:
    config = experiment.trainer
    for name in ("compile", "cuda_graph"):
        if getattr(config, name) and distributed.world_size() > 1:
            raise ConfigError(f"trainer.{name}=true is for one process; leave it out, or start without torchrun")
    if config.cuda_graph and device.type != "cuda":
        raise ConfigError(f"trainer.cuda_graph=true needs a GPU, and this run is on {device.type}; leave it out")
    if device.type == "cpu":
        keep_freed_memory()
    dataset: ImageDataset = load_dataset(**experiment.dataset.to_dict())
    seed_everything(experiment.seed)
    original = build_backbone(**experiment.backbone.to_dict(), num_classes=dataset.num_classes)
    begun = load_start_(original, experiment.finetune, experiment.policy, dataset.input_size, dataset.classes)
    report = apply_policy_(copy.deepcopy(original).to("meta"), experiment.policy, dataset.input_size)
    if (stages := experiment.finetune.stages) > max(1, len(report.replacements)):
        sites = f"policy {report.policy!r} replaces {len(report.replacements)} sites"
        raise ConfigError(f"finetune.stages={stages} replace a part of the sites each, and {sites}; give fewer stages")
    loaders = dataset.loaders(
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        device=device,
        seed=experiment.seed,
        channels_last=config.channels_last,
        workers=config.workers,
    )
    return _Parts(device, original, begun, report, loaders, dataset)


def _begun(experiment: Experiment, root: Path) -> Experiment:
    """The same experiment, its ``finetune.start`` the folder of its start's run, as one would type it here."""
    if experiment.start is None:
        return experiment
    if (folder := finished_folder(experiment.start, root)) is None:
        raise ConfigError(
            f"{experiment.start.folder(root)} holds no finished run, and this run begins with it; train it first"
        )
    finetune = dataclasses.replace(experiment.finetune, start=Path(os.path.relpath(folder)).as_posix())
    return dataclasses.replace(experiment, finetune=finetune, known_inputs=experiment.inputs)


def _finished(folder: Path) -> dict[str, Any] | None:
    file = folder / RECORD
    return _whole_record(file) if file.exists() else None


def _whole_record(file: Path) -> dict[str, Any]:
    """The record of a run, with its layers."""
    return read_record(file) | {"layers": layers_beside(file)}


def _claim(folder: Path, resume: str, held: contextlib.ExitStack) -> Path:
    """Lock the run's folder as long as ``held`` lasts."""
    if resume == "never":
        folder = _unused(folder)
    held.enter_context(exclusive_folder(folder))
    return folder


def _epochs_done(folder: Path, experiment: Experiment, dataset: ImageDataset) -> float:
    """How many epochs the checkpoints have that the run would go on from, whose classes must be the data's."""
    done = 0.0
    for path in folder.rglob(CHECKPOINT):
        saved = load_checkpoint(path, experiment.identity, torch.device("cpu"))
        check_classes(str(path), saved["classifier"]["classes"], dataset.classes)
        done += saved["epoch"]
    return done


def _info(
    experiment: Experiment,
    parts: _Parts,
    folder: Path,
    label: str | None,
    group: str | None,
    tags: Sequence[str],
    epochs_done: float,
) -> RunInfo:
    """What a dashboard shows; the policy is there by its name, and its sites are a table of their own."""
    policy = experiment.policy
    config = {
        **experiment.settings,
        "policy": {"name": policy.name, "options": dict(policy.options)},
        "cost": parts.cost,
        "environment": environment(parts.device),
        "run_folder": folder.as_posix(),
    }
    return RunInfo(
        name=label or f"{experiment.backbone_name}-{policy.name}-seed{experiment.seed}",
        group=group or f"{experiment.dataset.name}-{experiment.backbone_name}",
        tags=[experiment.backbone.name, policy.name, experiment.dataset.name, *tags],
        config=config,
        run_dir=folder,
        steps=len(parts.loaders.train),
        epochs_done=epochs_done,
    )


def _sites(report: Report) -> Rows:
    columns = [field.name for field in dataclasses.fields(Replacement)]
    rows = [[getattr(site, name) for name in columns] for site in report.replacements]
    return columns, [["×".join(map(str, v)) if isinstance(v, tuple) else v for v in row] for row in rows]


@contextlib.contextmanager
def _ending(sink: Sink, cost: Mapping[str, int], resume: str) -> Iterator[dict[str, Any]]:
    """Finish the sink, however what is in here ends; yields the summary to fill."""
    summary: dict[str, Any] = dict(cost)
    status = 1
    try:
        yield summary
        status = 0
    except PreemptedError as error:
        status = EXIT_STATUS
        error.args = (f"{error}; {how_to_go_on(resume)}",)
        raise
    except KeyboardInterrupt as error:
        error.args = (how_to_go_on(resume, "the last checkpoint"),)
        raise
    finally:
        sink.finish(summary, status=status)


def _record(experiment: Experiment, parts: _Parts, result: FitResult) -> dict[str, Any]:
    last = result.history[-1]
    return {
        "format": FORMAT,
        "identity": experiment.identity,
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
        "precision": str(experiment.trainer.autocast_dtype(parts.device) or torch.float32).removeprefix("torch."),
        "settings": plain(experiment.settings),
        "inputs": experiment.inputs,
        "environment": environment(parts.device),
        "history": result.history,
    }


def _unused(folder: Path) -> Path:
    return next(candidate for candidate in _numbered(folder) if not candidate.exists())


def _numbered(folder: Path) -> Iterator[Path]:
    """Where one run after another of an experiment lies: its folder, and those with a number behind its name."""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
