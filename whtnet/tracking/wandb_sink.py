"""Curves to Weights & Biases, online or into files."""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from whtnet.errors import warn_caller
from whtnet.files import atomic_write
from whtnet.preemption import EXIT_STATUS
from whtnet.records import plain
from whtnet.tracking.sink import BETTER, Answers, Dashboard, Rows, RunInfo, SinkError

_SPLITS = ("train", "holdout", "test")
_MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")
_MOST_CLASSES = 100  # of a confusion matrix; its chart has a row for each pair, of which wandb takes 10,000


class WandbSink(Dashboard):
    """Logs to wandb: online where there is an API key, else into files that can be browsed and uploaded later.

    Once a run has begun, no failure of wandb reaches the training: it warns once, and the run goes on without it.
    The step of wandb is that of training, and the axis of the curves is ``epoch``, so that the parts of a resumed run
    line up, offline too.

    Args:
        project: of wandb.
        entity: user or team; None is the account's default.
        mode: ``"auto"`` takes the environment variable WANDB_MODE, else what `wandb offline` or `wandb disabled` set
            here, else online with an API key and offline without; or ``"online"``, ``"offline"``, ``"disabled"``.
        dir: the folder that gets a folder ``wandb``.
        artifact: whether the trained network, as its checkpoint, becomes an artifact.

    Raises:
        SinkError: for an unknown mode.
    """

    title = "wandb"

    def __init__(
        self,
        project: str = "whtnet",
        entity: str | None = None,
        mode: str = "auto",
        dir: str = ".",
        artifact: bool = True,
    ) -> None:
        if mode not in ("auto", "online", "offline", "disabled"):
            raise SinkError(f"unknown wandb mode {mode!r}; choose one of auto, online, offline, disabled")
        if (variable := os.environ.get("WANDB_MODE")) and variable not in _MODES:
            modes = ", ".join(_MODES)
            raise SinkError(f"WANDB_MODE={variable!r} is no mode of wandb; set one of {modes}, or choose logger=none")
        super().__init__()
        self.project, self.entity, self.mode, self.dir, self.artifact = project, entity, mode, dir, artifact

    def start(self, run: RunInfo) -> None:
        """Begin a run; a resumed one goes on under its first wandb id.

        Raises:
            SinkError: where wandb is not installed, or where ``mode="online"`` was asked for and cannot be had.
        """
        wandb = _import_wandb()
        self._steps = run.steps
        mode, reason = _choose_mode(wandb) if self.mode == "auto" else (self.mode, "")
        if mode == "disabled":
            return
        for attempt in dict.fromkeys((mode, "offline")):
            try:
                self._run = self._init(wandb, run, attempt)
            except Exception as error:
                if self.mode == "online":
                    remedy = "check `wandb login` and the network, or choose logger.mode=auto"
                    raise SinkError(f"wandb cannot log online: {error}; {remedy}") from error
                warn_caller(f"wandb cannot log {attempt}: {error!r}", RuntimeWarning)
            else:
                if self._run.offline:
                    _say_offline(os.path.join(".", Path(self._run.dir).parents[1]), reason)
                return

    def log_step(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """Log metrics from within an epoch, as ``steps/…``."""
        self._log(epoch, {f"steps/{name}": value for name, value in metrics.items()}, commit=False)

    def log_layers(self, epoch: int, describe: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        """Log numbers of each layer, as ``layers/NAME/…``."""
        if self._run is not None:
            layers = describe()
            values = {f"layers/{name}/{key}": value for name, of in layers.items() for key, value in of.items()}
            self._log(epoch, values, commit=False)

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Log one epoch."""
        self._log(epoch, metrics, commit=True)

    def show(self, tables: Mapping[str, Rows], images: Mapping[str, Path]) -> None:
        """Log ``wandb.Table`` and ``wandb.Image`` objects."""

        def show(run: Any) -> None:
            wandb = _import_wandb()
            shown: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in images.items()}
            for name, (columns, rows) in tables.items():
                shown[name] = wandb.Table(list(columns), [list(row) for row in rows])
            run.log(shown, commit=False)

        self._attempt(show)

    def show_answers(self, collect: Callable[[], Answers]) -> None:
        """Log a chart of how classes are confused, and a table of images with what they were taken for."""
        if self._run is None:
            return
        answers = collect()

        def show(run: Any) -> None:
            wandb = _import_wandb()
            rows = [
                [wandb.Image(image), label, answer, round(confidence, 4)]
                for image, label, answer, confidence in answers.samples()
            ]
            run.log({"predictions": wandb.Table(["image", "class", "taken for", "confidence"], rows)}, commit=False)
            if len(answers.classes) <= _MOST_CLASSES:
                chart = wandb.plot.confusion_matrix(
                    y_true=answers.labels.tolist(),
                    preds=answers.logits.argmax(1).tolist(),
                    class_names=list(answers.classes),
                    title="confusion matrix",
                )
                run.log({"confusion_matrix": chart}, commit=False)

        self._attempt(show)

    def keep_model(self, checkpoint: Path) -> None:
        """Make the checkpoint an artifact ``model-RUN``; the file itself is uploaded, with no copy on disk."""

        def keep(run: Any) -> None:
            artifact = _import_wandb().Artifact(f"model-{run.id}", "model")
            artifact.add_file(str(checkpoint.resolve()), policy="immutable", skip_cache=True)
            run.log_artifact(artifact)

        if self.artifact:
            self._attempt(keep)

    def finish(self, summary: dict[str, Any], *, status: int = 0) -> None:
        """End the run; a preempted one is marked as such, and other statuses than 0 as failed."""

        def finish(run: Any) -> None:
            run.summary.update(plain(summary))
            if status == EXIT_STATUS:
                run.mark_preempting()
            run.finish(exit_code=status)
            self._run = None

        self._attempt(finish)

    def _log(self, epoch: float, metrics: Mapping[str, float], *, commit: bool) -> None:
        self._attempt(lambda run: run.log({**metrics, "epoch": epoch}, step=self._step(epoch), commit=commit))

    def _init(self, wandb: Any, info: RunInfo, mode: str) -> Any:
        id_file = Path(info.run_dir) / "wandb_id"
        known = id_file.read_text().strip() if id_file.exists() else None
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,
            dir=self.dir,
            name=info.name,
            group=info.group,
            job_type=info.job_type,
            tags=list(info.tags),
            notes=info.notes,
            config=plain(info.config),
            id=known,
            resume="allow" if known else None,
            settings=wandb.Settings(
                silent=True,
                console="wrap",
                reinit="create_new",  # a run that was given up must not become the next one
                # What a result needs of the machine is in its record; host, paths and all packages are not.
                host="",
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        for split in _SPLITS:
            for kind, better in BETTER.items():
                summary = f"{better.__name__},last"
                run.define_metric(f"{split}_{kind}", step_metric="epoch", summary=summary)
        atomic_write(id_file, run.id)
        return run


def _import_wandb() -> Any:
    remedy = "wandb is not installed: `pip install wandb`, or choose logger=none"
    try:
        import wandb
    except ImportError as error:
        raise SinkError(remedy) from error
    if not hasattr(wandb, "init"):  # not the library: Python took the folder of earlier runs, ./wandb, for a package
        raise SinkError(remedy)
    return wandb


def _choose_mode(wandb: Any) -> tuple[str, str]:
    """The mode, and why, where there is something to say."""
    # Silent, because login would else ask the network for the name to greet. The settings know what the commands
    # `wandb offline` and `wandb disabled` left behind, but not who said "online".
    try:
        mode = os.environ.get("WANDB_MODE") or wandb.setup(wandb.Settings(silent=True)).settings.mode
    except Exception as error:
        reason = " ".join(str(error).split())  # pydantic has several lines to say
        raise SinkError(f"wandb refuses its settings: {reason}; mend them, or choose logger=none") from error
    if mode == "online" and "WANDB_MODE" not in os.environ:
        try:
            if not wandb.login(prompt=False, verify=False):  # asks neither the user nor the network
                return "offline", "no API key found, "
        except Exception as error:  # a malformed key, say
            return "offline", f"{error}, "
    return mode, ""


@functools.cache  # once per process and folder
def _say_offline(folder: str, reason: str) -> None:
    print(
        f"wandb: {reason}logging offline to {folder}; browse with `wandb leet {folder}`, "
        f"upload with `wandb sync --yes {folder}/offline-run-*`",
        flush=True,
    )
