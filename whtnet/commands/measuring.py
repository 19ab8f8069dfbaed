"""How ``whtnet table`` makes each kind of table: counts, trains or times, and keeps what came out."""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whtnet.classifier import Classifier
from whtnet.commands.compose import backbone_settings, compose_config
from whtnet.console import ProgressView, TaskView, console
from whtnet.jobs import Job, default_at_once, run_jobs
from whtnet.policy import shipped_policies
from whtnet.records import environment, put_record, read_json, read_records, write_json
from whtnet.released import released_folder
from whtnet.runs import finished_folder, resolve_device
from whtnet.tables import (
    Asked,
    Identities,
    Results,
    TableError,
    TableSpec,
    command_for,
    count_coverage,
    count_families,
    count_rows,
    count_training_rows,
    load_spec,
    measure_deployment,
    measure_layers,
    measure_released,
    measure_speed,
    with_measurement,
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Folders:
    """Where things are.

    Attributes:
        root: of the project, see :mod:`whtnet.shipped`.
        place: of what is made now, likewise.
        update: whether the reference itself is made.
        identities: of the runs that the tables' rows ask for.
    """

    root: Path
    place: Path
    update: bool
    identities: Identities

    @property
    def experiments(self) -> Path:
        """Of the tables' specifications."""
        return self.root / "experiments"

    @property
    def own(self) -> Path:
        """Of what is made now."""
        return self.root / "results" if self.update else self.place / "runs" / "results"

    def file(self, spec: TableSpec) -> Path:
        """Of what is counted, timed or measured now for a table; its runs have files of their own."""
        return self.own / f"{spec.name}.json"

    def reference(self) -> Results:
        """What the project publishes."""
        return Results(self.experiments, self.root / "results", self.identities)

    def yours(self, *, filled: bool = False) -> Results:
        """What was made here; ``filled`` up with the reference where it was not."""
        return Results(self.experiments, self.own, self.identities, self.reference() if filled else None)

    def shown(self, path: Path) -> str:
        """A path for people."""
        return path.relative_to(self.place).as_posix()


def asked_runs(spec: TableSpec, folders: Folders, arguments: argparse.Namespace) -> Asked:
    """The rows of a training table that are to be trained."""
    if arguments.recipe is not None and not _words(arguments.recipe):
        raise TableError(f"--recipe {arguments.recipe!r} is no recipe; give a trainer config, and overrides behind it")
    if arguments.recipe and spec.recipe and _words(arguments.recipe)[0] != spec.recipe:
        raise TableError(f"table {spec.name!r} is made by the recipe {spec.recipe}; leave out --recipe")
    trainer = arguments.recipe or spec.recipe or ("authors" if resolve_device("auto").type == "cuda" else "short")
    return Asked(spec, spec.chosen(arguments.rows), trainer, arguments.override, folders.identities)


def _words(recipe: str) -> list[str]:
    try:
        return shlex.split(recipe)
    except ValueError:  # a quote without its end
        return []


def trained_run(row: Row, folders: Folders, arguments: argparse.Namespace) -> Asked:
    """The row of a training table whose run a row of a table of layers looks into."""
    of = load_spec(folders.experiments, row["table"])
    return Asked(of, [of.row(row["row"])], row["recipe"], arguments.override, folders.identities)


def _measure_parameters(spec: TableSpec, folders: Folders, _: argparse.Namespace) -> None:
    total = len(spec.rows) + len(spec.families) * len(shipped_policies())
    with ProgressView() as view:
        on_step = view.steps(spec.title, total)
        rows = count_rows(spec, backbone_settings, on_step)
        families = count_families(spec, backbone_settings, on_step)
    write_json(folders.file(spec), {"rows": rows, "families": families})


def _measure_coverage(spec: TableSpec, folders: Folders, _: argparse.Namespace) -> None:
    total = len(spec.rows) * len(shipped_policies())
    with ProgressView() as view:
        counted = count_coverage(spec, backbone_settings, view.steps(spec.title, total))
    write_json(folders.file(spec), {"pairs": counted})


def _measure_training(spec: TableSpec, folders: Folders, arguments: argparse.Namespace) -> None:
    if spec.counted:
        _count(spec, folders)
    if not arguments.no_training:
        _train(spec, folders, arguments)


def _count(spec: TableSpec, folders: Folders) -> None:
    with ProgressView() as view:
        rows = count_training_rows(spec, compose_config, view.steps(f"{spec.title}: counting", len(spec.rows)))
    write_json(folders.file(spec), {"rows": rows})


def _train(spec: TableSpec, folders: Folders, arguments: argparse.Namespace) -> None:
    asked = asked_runs(spec, folders, arguments)
    runs = [(row, seed) for row in asked.rows for seed in arguments.seeds or row.get("seeds", spec.seeds)]
    recorded = set() if arguments.fresh else _recorded(spec, folders)
    missing = [(row, seed) for row, seed in runs if asked.experiment(row, seed).identity not in recorded]
    if len(missing) < len(runs):
        console.print(f"{spec.name}: {len(runs) - len(missing)} of {len(runs)} runs are recorded")
    jobs = asked.jobs(missing, arguments.logger, folders.place, fresh=arguments.fresh)
    rows = {job.title: row["id"] for row, job in jobs}
    at_once = arguments.jobs or default_at_once(resolve_device("auto"), len(jobs))
    bars: dict[str, TaskView] = {}
    with ProgressView(spec.name, len(jobs)) as view:

        def begin(job: Job) -> TaskView:
            bars[job.title] = view.task(job.title)
            return bars[job.title]

        def keep(job: Job, record: dict[str, Any]) -> None:
            layers = record.pop("layers")
            labels = {"table": spec.name, "row": rows[job.title], "recipe": asked.recipe}
            put_record(folders.yours().records_folder, labels | record, layers)
            bars[job.title].finish()

        run_jobs([job for _, job in jobs], at_once, on_start=begin, on_record=keep, on_print=console.print)


def _recorded(spec: TableSpec, folders: Folders) -> set[str]:
    """Identities of the runs that are not trained again."""
    recorded = [] if spec.rerun else folders.reference().records
    if not folders.update:
        recorded = [*recorded, *read_records(folders.yours().records_folder)]
    return {record["identity"] for record in recorded if record["table"] == spec.name}


def _measure_speed(spec: TableSpec, folders: Folders, arguments: argparse.Namespace) -> None:
    if arguments.no_training:
        return
    device = resolve_device("auto")
    with ProgressView() as view:
        measured = measure_speed(spec, device, arguments.seconds, view.task(spec.title))
    _keep(spec, folders, {"environment": environment(device), **measured})


def _measure_deployment(spec: TableSpec, folders: Folders, arguments: argparse.Namespace) -> None:
    if arguments.no_training:
        return
    with ProgressView() as view:
        measured = measure_deployment(spec, arguments.seconds, view.task(spec.title))
    _keep(spec, folders, {"environment": environment("cpu"), **measured})


def _keep(spec: TableSpec, folders: Folders, measured: Mapping[str, Any]) -> None:
    """Beside what was measured on other devices."""
    path = folders.file(spec)
    write_json(path, with_measurement(read_json(path) if path.exists() else None, measured))


def _measure_released(spec: TableSpec, folders: Folders, _: argparse.Namespace) -> None:
    folder = released_folder()
    with ProgressView() as view:
        rows = measure_released(spec, folder, view.steps(spec.title, len(spec.rows)))
    write_json(folders.file(spec), {"rows": rows})


def _measure_layers(spec: TableSpec, folders: Folders, arguments: argparse.Namespace) -> None:
    if arguments.no_training:
        return

    def load(row: Row) -> Classifier:
        trained, seed = trained_run(row, folders, arguments), row.get("seed", 0)
        (trained_row,) = trained.rows
        run_root = folders.place / trained.config(trained_row)["run_root"]
        experiment = trained.experiment(trained_row, seed)
        if (folder := finished_folder(experiment, run_root)) is None:
            words = ["--recipe", trained.trainer, "--rows", row["row"], "--seeds", str(seed), "--fresh"]
            words += [word for override in arguments.override for word in ("--override", override)]
            remedy = f'{command_for(trained.spec)} ARGS="{shlex.join(words)}"'
            missing = experiment.folder(run_root)
            raise TableError(f"table {spec.name!r} needs the run in {missing}, which is not there; `{remedy}` makes it")
        return Classifier.load(folder)

    with ProgressView() as view:
        rows = measure_layers(spec, load, view.task(spec.title))
    write_json(folders.file(spec), {"rows": rows})


def _measure_nothing(*_: Any) -> None:
    """For a table that is made of the others' results."""


MEASURE = {
    "parameters": _measure_parameters,
    "coverage": _measure_coverage,
    "training": _measure_training,
    "speed": _measure_speed,
    "deployment": _measure_deployment,
    "released": _measure_released,
    "layers": _measure_layers,
    "study": _measure_nothing,
    "verdicts": _measure_nothing,
}
