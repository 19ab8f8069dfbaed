"""Where the curves of a run go, beside its record on disk: wandb, or nowhere.

Records never depend on wandb, and nothing that wandb does stops a training.
"""

import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from whtnet.errors import UserError
from whtnet.files import atomic_write
from whtnet.records import plain

Rows = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Columns and rows of a table."""


class SinkError(UserError):
    """A sink that cannot be had as asked for."""


@dataclass(frozen=True)
class RunInfo:
    """What a sink shows of a run before its first epoch.

    Args:
        name: of the run.
        group: the table, or dataset/backbone: what a dashboard puts together.
        config: the whole configuration, as plain dicts and lists.
        run_dir: the run's own folder; a run that begins in it again is a resumed one.
        tags: such as backbone, policy and dataset.
        notes: a free text.
    """

    name: str
    group: str
    config: dict[str, Any]
    run_dir: Path
    tags: Sequence[str] = ()
    notes: str | None = None


class Sink(Protocol):
    """Where a training loop sends its curves."""

    def start(self, run: RunInfo) -> None:
        """Begin a run."""

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Take one epoch's metrics; ``epoch`` counts on across a resume."""

    def show(self, tables: Mapping[str, Rows], images: Mapping[str, Path]) -> None:
        """Take tables, each as its columns and rows, and image files, by name."""

    def finish(self, summary: dict[str, Any], *, failed: bool = False) -> None:
        """End the run with the numbers that stand for it."""


class NullSink(Sink):
    """Keeps nothing: the run record on disk is enough."""


class WandbSink(Sink):
    """Logs to wandb: online where there is an API key, else into files that can be browsed and uploaded later.

    Once a run has begun, no failure of wandb reaches the training: it warns once, and the run goes on without it.

    Args:
        project: of wandb.
        entity: user or team; None is the account's default.
        mode: ``"auto"`` takes the environment variable WANDB_MODE, else what `wandb offline` or `wandb disabled` set
            here, else online with an API key and offline without; or ``"online"``, ``"offline"``, ``"disabled"``.
        dir: the folder that gets a folder ``wandb``.

    Raises:
        SinkError: for an unknown mode.
    """

    def __init__(self, project: str = "whtnet", entity: str | None = None, mode: str = "auto", dir: str = ".") -> None:
        if mode not in ("auto", "online", "offline", "disabled"):
            raise SinkError(f"unknown wandb mode {mode!r}; choose one of auto, online, offline, disabled")
        self.project, self.entity, self.mode, self.dir = project, entity, mode, dir
        self._run: Any = None

    def start(self, run: RunInfo) -> None:
        """Begin a run; a resumed one goes on under its first wandb id.

        Raises:
            SinkError: where wandb is not installed, or where ``mode="online"`` was asked for and cannot be had.
        """
        wandb = _import_wandb()
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
                warnings.warn(f"wandb cannot log {attempt}: {error!r}", RuntimeWarning, stacklevel=2)
            else:
                if self._run.offline:
                    _say_offline(os.path.join(".", Path(self._run.dir).parents[1]), reason)
                return

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Log one epoch. The step is the epoch, so that the parts of a resumed run line up, offline too."""
        if self._run is not None:
            try:
                self._run.log({**metrics, "epoch": epoch}, step=epoch, commit=True)
            except Exception as error:
                self._give_up(error)

    def show(self, tables: Mapping[str, Rows], images: Mapping[str, Path]) -> None:
        """Log ``wandb.Table`` and ``wandb.Image`` objects."""
        if self._run is not None:
            wandb = _import_wandb()
            try:
                shown = {
                    name: wandb.Table(list(columns), [list(r) for r in rows])
                    for name, (columns, rows) in tables.items()
                }
                self._run.log(shown | {name: wandb.Image(str(path)) for name, path in images.items()})
            except Exception as error:
                self._give_up(error)

    def finish(self, summary: dict[str, Any], *, failed: bool = False) -> None:
        """End the run; ``failed`` marks it as such."""
        if self._run is not None:
            try:
                self._run.summary.update(plain(summary))
                self._run.finish(exit_code=int(failed))
                self._run = None
            except Exception as error:
                self._give_up(error)

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
            tags=list(info.tags),
            notes=info.notes,
            config=plain(info.config),
            id=known,
            resume="allow" if known else None,
            settings=wandb.Settings(
                silent=True,
                console="off",
                reinit="create_new",  # a run that was given up must not become the next one
                # What a result needs of the machine is in its record; host, paths and all packages are not.
                host="",
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        atomic_write(id_file, run.id)
        return run

    def _give_up(self, error: Exception) -> None:
        self._run = None
        warnings.warn(f"wandb failed, this run goes on without it: {error!r}", RuntimeWarning, stacklevel=3)


def make_sink(name: Literal["wandb", "none"], **options: Any) -> Sink:
    """Build the sink of a configuration in configs/logger/.

    Raises:
        SinkError: for an unknown name.
    """
    sinks = {"wandb": WandbSink, "none": NullSink}
    if name not in sinks:
        raise SinkError(f"unknown logger {name!r}; choose one of {', '.join(sinks)}")
    return sinks[name](**options)


def _import_wandb() -> Any:
    remedy = "wandb is not installed: `pip install whtnet[wandb]`, or choose logger=none"
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
        raise SinkError(f"wandb refuses its settings: {error}; mend them, or choose logger=none") from error
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
