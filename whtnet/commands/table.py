"""Reproduce tables: ``whtnet table``."""

import argparse
import itertools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from whtnet.classifier import Classifier
from whtnet.commands.compose import backbone_settings, compose_config
from whtnet.commands.places import PLACE, ROOT
from whtnet.console import ProgressView, TaskView, console, exit_on_user_error
from whtnet.errors import UserError
from whtnet.experiment import Experiment
from whtnet.extensions import trust_typed
from whtnet.jobs import Job, default_at_once, run_jobs
from whtnet.policy import shipped_policies
from whtnet.records import environment, put_record, read_records, write_json
from whtnet.released import released_folder
from whtnet.runs import RECORD, finished_folder, resolve_device
from whtnet.tables import (
    Identities,
    Results,
    Table,
    TableError,
    TableSpec,
    command_for,
    comparisons,
    count_coverage,
    count_families,
    count_rows,
    count_training_rows,
    draw_figures,
    load_spec,
    measure_deployment,
    measure_layers,
    measure_released,
    measure_speed,
    pages,
    row_experiment,
    run_overrides,
    stored_tables,
    table_names,
    to_rich,
    update_page,
    write_tables,
)
from whtnet.tracking import RunInfo, make_sink

QUICK = ("parameters", "digits")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Folders:
    """Where things are.

    Attributes:
        root: of the project, see :mod:`whtnet.commands.compose`.
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

    def reference(self) -> Results:
        """What the project publishes."""
        return Results(self.experiments, self.root / "results", self.identities)

    def yours(self, *, filled: bool = False) -> Results:
        """What was made here; ``filled`` up with the reference where it was not."""
        return Results(self.experiments, self.own, self.identities, self.reference() if filled else None)

    def shown(self, path: Path) -> str:
        """A path for people."""
        return path.relative_to(self.place).as_posix()


@exit_on_user_error
def main(arguments: argparse.Namespace) -> None:
    """Reproduce the tables one after another."""
    trust_typed(arguments.override)
    if arguments.update and ROOT != PLACE:
        raise UserError("--update makes the project's own results; it works in a checkout only")
    folders = Folders(ROOT, PLACE, arguments.update, Identities(compose_config))
    specs = [load_spec(folders.experiments, name) for name in arguments.tables or QUICK]
    if arguments.list:
        _list_tables(folders.experiments)
        return
    _check(specs, arguments)
    for spec in specs:
        _MEASURE[spec.kind](spec, folders, arguments)
        _publish(spec, folders, arguments)


def _check(specs: Sequence[TableSpec], arguments: argparse.Namespace) -> None:
    """Find what can't be, or would be passed over, before the first table is made."""
    for spec in specs:
        make_sink(**compose_config([*spec.overrides, f"logger={arguments.logger}", *arguments.override])["logger"])
        if spec.kind != "training":
            continue
        _chosen_rows(spec, arguments.rows)
        if arguments.recipe and spec.recipe and shlex.split(arguments.recipe)[0] != spec.recipe:
            raise TableError(f"table {spec.name!r} is made by the recipe {spec.recipe}; leave out --recipe")


def _list_tables(experiments: Path) -> None:
    for name in table_names(experiments):
        quick = " (quick: part of the default)" if name in QUICK else ""
        console.print(f"  {name:<20} {load_spec(experiments, name).title}{quick}")


def _measure_parameters(spec: TableSpec, folders: Folders, _: argparse.Namespace) -> None:
    total = len(spec.rows) + len(spec.families) * len(shipped_policies())
    with ProgressView() as view:
        bar, done = view.task(spec.title), itertools.count(1)
        rows = count_rows(spec, backbone_settings, lambda step: bar(next(done) / total, step))
        families = count_families(spec, backbone_settings, lambda step: bar(next(done) / total, step))
    write_json(folders.own / f"{spec.name}.json", {"rows": rows, "families": families})


def _measure_coverage(spec: TableSpec, folders: Folders, _: argparse.Namespace) -> None:
    total = len(spec.rows) * len(shipped_policies())
    with ProgressView() as view:
        bar, done = view.task(spec.title), itertools.count(1)
        counted = count_coverage(spec, backbone_settings, lambda step: bar(next(done) / total, step))
    write_json(folders.own / f"{spec.name}.json", {"pairs": counted})


def _measure_training(spec: TableSpec, folders: Folders, arguments: argparse.Namespace) -> None:
    if spec.counted:
        _count(spec, folders)
    if not arguments.no_training:
        _train(spec, folders, arguments)


def _count(spec: TableSpec, folders: Folders) -> None:
    with ProgressView() as view:
        bar, done = view.task(f"{spec.title}: counting"), itertools.count(1)
        rows = count_training_rows(spec, compose_config, lambda step: bar(next(done) / len(spec.rows), step))
    write_json(folders.own / f"{spec.name}.json", {"rows": rows})


def _train(spec: TableSpec, folders: Folders, arguments: argparse.Namespace) -> None:
    device = resolve_device("auto")
    trainer = spec.recipe or arguments.recipe or ("authors" if device.type == "cuda" else "short")
    recipe = _recipe_with_overrides(spec, trainer, arguments.override)
    runs = [(row, seed) for row in _chosen_rows(spec, arguments.rows) for seed in _seeds(spec, row, arguments.seeds)]
    recorded = set() if arguments.fresh else _recorded(spec, folders)
    missing = [(row, seed) for row, seed in runs if folders.identities(spec, row, recipe, seed) not in recorded]
    if len(missing) < len(runs):
        console.print(f"{spec.name}: {len(runs) - len(missing)} of {len(runs)} runs are recorded")
    jobs = _jobs(spec, missing, lambda row, seed: _job(spec, row, seed, trainer, folders, arguments))
    rows = {job.title: row for (row, _), job in jobs.items()}
    at_once = default_at_once(device, len(jobs)) if arguments.jobs is None else arguments.jobs
    bars: dict[str, TaskView] = {}
    with ProgressView(spec.name, len(jobs)) as view:

        def begin(job: Job) -> TaskView:
            bars[job.title] = view.task(job.title)
            return bars[job.title]

        def keep(job: Job, record: dict[str, Any]) -> None:
            layers = record.pop("layers")
            labels = {"table": spec.name, "row": rows[job.title], "recipe": recipe}
            put_record(folders.yours().records_folder, labels | record, layers)
            bars[job.title].finish()

        run_jobs(list(jobs.values()), at_once, on_start=begin, on_record=keep, on_print=console.print)


def _chosen_rows(spec: TableSpec, chosen: Sequence[str] | None) -> list[Mapping[str, Any]]:
    ids = [row["id"] for row in spec.rows]
    if unknown := sorted(set(chosen or ()) - set(ids)):
        raise TableError(f"table {spec.name!r} has no row {', '.join(unknown)}; there are {', '.join(ids)}")
    return [row for row in spec.rows if chosen is None or row["id"] in chosen]


def _seeds(spec: TableSpec, row: Mapping[str, Any], chosen: Sequence[int] | None) -> Sequence[int]:
    return row.get("seeds", spec.seeds) if chosen is None else chosen


def _recorded(spec: TableSpec, folders: Folders) -> set[str]:
    """Identities of the runs that are not trained again."""
    recorded = [] if spec.rerun else folders.reference().records
    if not folders.update:
        recorded = [*recorded, *read_records(folders.yours().records_folder)]
    return {record["identity"] for record in recorded if record["table"] == spec.name}


def _recipe_with_overrides(spec: TableSpec, trainer: str, overrides: Sequence[str]) -> str:
    """What the runs are recorded as: a recipe that is overridden is another one, unless the result is the same."""

    def identity(*more: str) -> str:
        overrides = run_overrides(spec, spec.rows[0], shlex.join([trainer, *more]))
        return Experiment.from_config(compose_config(overrides)).identity

    return shlex.join([trainer, *(o for o in overrides if identity(o) != identity())])


def _jobs(
    spec: TableSpec, runs: Sequence[tuple[Row, int]], make: Callable[[Row, int], Job]
) -> dict[tuple[str, int], Job]:
    """The jobs of ``runs`` by row and seed, each behind its start; that is one of them where it isn't finished here."""
    asked = {(row["id"], seed) for row, seed in runs}
    jobs: dict[tuple[str, int], Job] = {}

    def add(row: Row, seed: int) -> None:
        if (row["id"], seed) in jobs:
            return
        job = make(row, seed)
        if (first := job.experiment.start) is not None:
            start = spec.row(row["start"])
            if (start["id"], seed) in asked or finished_folder(first, job.options["root"]) is None:
                add(start, seed)
        jobs[row["id"], seed] = job

    for row, seed in runs:
        add(row, seed)
    return jobs


def _job(
    spec: TableSpec,
    row: Row,
    seed: int,
    trainer: str,
    folders: Folders,
    arguments: argparse.Namespace,
) -> Job:
    title = f"{row['id']}, seed {seed}"
    experiment = row_experiment(spec, row, trainer, compose_config, arguments.override).with_seed(seed)
    config = compose_config([*run_overrides(spec, row, trainer), f"logger={arguments.logger}", *arguments.override])
    options = {
        "root": folders.place / config["run_root"],
        "resume": "never" if arguments.fresh else "auto",
        "label": title,
        "group": spec.name,
        "tags": (spec.name, row["id"]),
    }
    return Job(title, experiment, config["logger"], options)


def _measure_speed(spec: TableSpec, folders: Folders, arguments: argparse.Namespace) -> None:
    if arguments.no_training:
        return
    device = resolve_device("auto")
    with ProgressView() as view:
        measured = measure_speed(spec, device, arguments.seconds, view.task(spec.title))
    write_json(folders.own / f"{spec.name}.json", {"environment": environment(device), **measured})


def _measure_deployment(spec: TableSpec, folders: Folders, arguments: argparse.Namespace) -> None:
    if arguments.no_training:
        return
    with ProgressView() as view:
        measured = measure_deployment(spec, arguments.seconds, view.task(spec.title))
    environment_here = environment(torch.device("cpu"))
    write_json(folders.own / f"{spec.name}.json", {"environment": environment_here, **measured})


def _measure_released(spec: TableSpec, folders: Folders, _: argparse.Namespace) -> None:
    folder = released_folder()
    with ProgressView() as view:
        bar, done = view.task(spec.title), itertools.count()
        rows = measure_released(spec, folder, lambda step: bar(next(done) / len(spec.rows), step))
    write_json(folders.own / f"{spec.name}.json", {"rows": rows})


def _measure_layers(spec: TableSpec, folders: Folders, arguments: argparse.Namespace) -> None:
    if arguments.no_training:
        return

    def load(row: Mapping[str, Any]) -> Classifier:
        of = load_spec(folders.experiments, row["table"])
        seed, of_row = row.get("seed", 0), of.row(row["row"])
        run_root = compose_config([*run_overrides(of, of_row, row["recipe"]), *arguments.override])["run_root"]
        trained = row_experiment(of, of_row, row["recipe"], compose_config, arguments.override)
        folder = trained.with_seed(seed).folder(folders.place / run_root)
        if not (folder / RECORD).exists():
            remedy = f'{command_for(of)} ARGS="--recipe {row["recipe"]} --rows {row["row"]} --seeds {seed} --fresh"'
            raise TableError(f"table {spec.name!r} needs the run in {folder}, which is not there; `{remedy}` makes it")
        return Classifier.load(folder)

    with ProgressView() as view:
        rows = measure_layers(spec, load, view.task(spec.title))
    write_json(folders.own / f"{spec.name}.json", {"rows": rows})


def _measure_nothing(*_: Any) -> None:
    """For a table that is made of the others' results."""


_MEASURE = {
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


def _publish(spec: TableSpec, folders: Folders, arguments: argparse.Namespace) -> None:
    results = folders.reference() if folders.update else folders.yours(filled=True)
    tables = stored_tables(spec, results)
    path = write_tables(folders.own, spec.name, tables, command_for(spec))
    draw_figures(spec, results, folders.own / "figures")
    compared = []
    if folders.update:
        for page in pages(folders.root):
            update_page(page, spec, tables)
    else:
        compared = comparisons(spec, folders.reference(), folders.yours())
    for table in [*tables, *compared]:
        console.print(to_rich(table))
    console.print(f"Written: {folders.shown(path)}\n")
    if spec.kind == "training":
        _show_on_dashboard(spec, results, tables, arguments)


def _show_on_dashboard(
    spec: TableSpec, results: Results, tables: Sequence[Table], arguments: argparse.Namespace
) -> None:
    """A run of its own in the table's group, with the tables and the figures."""
    config = compose_config([*spec.overrides, f"logger={arguments.logger}", *arguments.override])
    folder = PLACE / config["run_root"] / "tables" / spec.name
    figures = draw_figures(spec, results, folder, ".png")
    sink = make_sink(**config["logger"])
    info = RunInfo(
        name=f"table {spec.name}",
        group=spec.name,
        config={"table": spec.name},
        run_dir=folder,
        job_type="table",
        tags=(spec.name, "table"),
    )
    sink.start(info)
    rows = {table.title: (table.headings, table.texts) for table in tables}
    sink.show(rows, {figure.stem.removeprefix(f"{spec.name}_"): figure for figure in figures})
    sink.finish({})
