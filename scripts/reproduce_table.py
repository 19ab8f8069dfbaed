"""Reproduce tables: ``python scripts/reproduce_table.py [TABLE …]``; without a name, the quick ones."""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _compose import ROOT, compose_config

from whtnet.console import ProgressView, TaskView, console, exit_on_user_error
from whtnet.experiment import Experiment
from whtnet.jobs import Job, default_at_once, run_jobs
from whtnet.policy import shipped_policies
from whtnet.records import environment, put_record, read_records, write_json
from whtnet.runs import resolve_device
from whtnet.tables import (
    Table,
    TableError,
    TableSpec,
    command_for,
    count_coverage,
    count_families,
    count_rows,
    count_training_rows,
    counts_file,
    draw_figures,
    load_spec,
    measure_speed,
    stored_tables,
    table_names,
    to_rich,
    update_readme,
    write_tables,
)
from whtnet.tracking import RunInfo, make_sink

QUICK = ("parameters", "digits")
EXPERIMENTS = ROOT / "experiments"
RESULTS = ROOT / "results"
RECORDS = RESULTS / "runs"


@exit_on_user_error
def main() -> None:
    """Parse the command line and reproduce the tables one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "tables", nargs="*", help=f"from {', '.join(table_names(EXPERIMENTS))}; default: the quick ones"
    )
    parser.add_argument("--list", action="store_true", help="list the tables and stop")
    parser.add_argument("--logger", default="wandb", help="where training curves go besides the records: wandb or none")
    parser.add_argument(
        "--override", action="append", default=[], metavar="KEY=VALUE", help="a Hydra override for all runs"
    )
    parser.add_argument("--seconds", type=float, default=1.5, help="time for each contender of a speed table")
    parser.add_argument("--fresh", action="store_true", help="train again what is recorded or was begun")
    parser.add_argument(
        "--recipe", help="a trainer config, such as authors or short; default: authors on a GPU, else short"
    )
    parser.add_argument("--rows", type=_words, metavar="ID,…", help="train these rows only")
    parser.add_argument("--seeds", type=_numbers, metavar="N,…", help="train these seeds in place of the table's")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once; default: 1 on the CPU, many on a GPU")
    parser.add_argument(
        "--no-training", action="store_true", help="count the rows of training tables and show what is recorded"
    )
    arguments = parser.parse_args()
    specs = [load_spec(EXPERIMENTS, name) for name in arguments.tables or QUICK]
    if arguments.list:
        _list_tables()
        return
    for spec in specs:
        _REPRODUCE[spec.kind](spec, arguments)
        _publish(spec, arguments)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 0,1,2") from None


def _list_tables() -> None:
    for name in table_names(EXPERIMENTS):
        quick = " (quick: part of the default)" if name in QUICK else ""
        console.print(f"  {name:<20} {load_spec(EXPERIMENTS, name).title}{quick}", markup=False)


def _reproduce_parameters(spec: TableSpec, _: argparse.Namespace) -> None:
    total = len(spec.rows) + len(spec.families) * len(shipped_policies())
    with ProgressView() as view:
        bar, done = view.task(spec.title), itertools.count(1)
        rows = count_rows(spec, _backbone_settings, lambda step: bar(next(done) / total, step))
        families = count_families(spec, _backbone_settings, lambda step: bar(next(done) / total, step))
    write_json(RESULTS / f"{spec.name}.json", {"environment": environment("cpu"), "rows": rows, "families": families})


def _reproduce_coverage(spec: TableSpec, _: argparse.Namespace) -> None:
    total = len(spec.rows) * len(shipped_policies())
    with ProgressView() as view:
        bar, done = view.task(spec.title), itertools.count(1)
        counted = count_coverage(spec, _backbone_settings, lambda step: bar(next(done) / total, step))
    write_json(RESULTS / f"{spec.name}.json", {"environment": environment("cpu"), "pairs": counted})


def _backbone_settings(row: Mapping[str, Any]) -> dict[str, Any]:
    return compose_config([f"backbone={row['backbone']}", *row.get("overrides", ())], "count_params")["backbone"]


def _reproduce_training(spec: TableSpec, arguments: argparse.Namespace) -> None:
    if spec.counted:
        _count(spec)
    if arguments.no_training:
        return
    device = resolve_device("auto")
    recipe = spec.recipe or arguments.recipe or ("authors" if device.type == "cuda" else "short")
    recorded_as = _recipe_with_overrides(spec, recipe, arguments)
    runs = [(row, seed) for row in _chosen_rows(spec, arguments.rows) for seed in _seeds(spec, row, arguments.seeds)]
    recorded = {(r["table"], r["row"], r["seed"], r["recipe"]) for r in read_records(RECORDS)}
    anew = spec.rerun or arguments.fresh
    missing = [(row, seed) for row, seed in runs if anew or (spec.name, row["id"], seed, recorded_as) not in recorded]
    if len(missing) < len(runs):
        console.print(f"{spec.name}: {len(runs) - len(missing)} of {len(runs)} runs are recorded in {_shown(RECORDS)}")
    jobs = [_job(spec, row, seed, recipe, arguments) for row, seed in missing]
    at_once = default_at_once(device, len(jobs)) if arguments.jobs is None else arguments.jobs
    rows = {job.title: row["id"] for job, (row, _) in zip(jobs, missing, strict=True)}
    bars: dict[str, TaskView] = {}
    with ProgressView(spec.name, len(jobs)) as view:

        def begin(job: Job) -> TaskView:
            bars[job.title] = view.task(job.title)
            return bars[job.title]

        def keep(job: Job, record: dict[str, Any]) -> None:
            layers = record.pop("layers")
            put_record(RECORDS, {"table": spec.name, "row": rows[job.title], "recipe": recorded_as, **record}, layers)
            bars[job.title].finish()

        run_jobs(jobs, at_once, on_start=begin, on_record=keep, on_print=console.print)


def _count(spec: TableSpec) -> None:
    with ProgressView() as view:
        bar, done = view.task(f"{spec.title}: counting"), itertools.count(1)
        rows = count_training_rows(spec, compose_config, lambda step: bar(next(done) / len(spec.rows), step))
    write_json(RESULTS / counts_file(spec), {"environment": environment("cpu"), "rows": rows})


def _chosen_rows(spec: TableSpec, chosen: Sequence[str] | None) -> list[Mapping[str, Any]]:
    ids = [row["id"] for row in spec.rows]
    if unknown := sorted(set(chosen or ()) - set(ids)):
        raise TableError(f"table {spec.name!r} has no row {', '.join(unknown)}; there are {', '.join(ids)}")
    return [row for row in spec.rows if chosen is None or row["id"] in chosen]


def _seeds(spec: TableSpec, row: Mapping[str, Any], chosen: Sequence[int] | None) -> Sequence[int]:
    return row.get("seeds", spec.seeds) if chosen is None else chosen


def _recipe_with_overrides(spec: TableSpec, recipe: str, arguments: argparse.Namespace) -> str:
    """What the runs are recorded as: a recipe that is overridden is another one, unless the result is the same."""

    def identity(*more: str) -> str:
        return Experiment.from_config(_compose_run(spec, spec.rows[0], recipe, *more)).identity

    return " ".join([recipe, *(o for o in arguments.override if identity(o) != identity())])


def _compose_run(spec: TableSpec, row: Mapping[str, Any], recipe: str, *more: str) -> dict[str, Any]:
    return compose_config([*spec.overrides, f"trainer={recipe}", *row["overrides"], *more])


def _job(spec: TableSpec, row: Mapping[str, Any], seed: int, recipe: str, arguments: argparse.Namespace) -> Job:
    config = _compose_run(spec, row, recipe, f"seed={seed}", f"logger={arguments.logger}", *arguments.override)
    options = {
        "root": ROOT / config["run_root"],
        "resume": "never" if arguments.fresh else "auto",
        "group": spec.name,
        "tags": (spec.name, row["id"]),
    }
    return Job(f"{row['id']}, seed {seed}", Experiment.from_config(config), config["logger"], options)


def _reproduce_speed(spec: TableSpec, arguments: argparse.Namespace) -> None:
    device = resolve_device("auto")
    with ProgressView() as view:
        measured = measure_speed(spec, device, arguments.seconds, view.task(spec.title))
    write_json(RESULTS / f"{spec.name}.json", {"environment": environment(device), **measured})


_REPRODUCE = {
    "parameters": _reproduce_parameters,
    "coverage": _reproduce_coverage,
    "training": _reproduce_training,
    "speed": _reproduce_speed,
}


def _publish(spec: TableSpec, arguments: argparse.Namespace) -> None:
    tables = stored_tables(spec, RESULTS)
    for table in tables:
        console.print(to_rich(table))
    path = write_tables(RESULTS, spec.name, tables, command_for(spec))
    draw_figures(spec, RESULTS)
    update_readme(ROOT / "README.md", spec.name, tables[0])
    console.print(f"Written: {_shown(path)}\n")
    if spec.kind == "training":
        _show_on_dashboard(spec, tables, arguments)


def _show_on_dashboard(spec: TableSpec, tables: Sequence[Table], arguments: argparse.Namespace) -> None:
    """A run of its own in the table's group, with the tables and the figures."""
    config = compose_config([f"logger={arguments.logger}", *arguments.override])
    folder = ROOT / config["run_root"] / "tables" / spec.name
    figures = sorted((RESULTS / "figures").glob(f"{spec.name}_*.png"))
    sink = make_sink(**config["logger"])
    sink.start(RunInfo(f"table {spec.name}", spec.name, {"table": spec.name}, folder, tags=(spec.name, "table")))
    rows = {table.title: (table.headings, table.texts) for table in tables}
    sink.show(rows, {figure.stem.removeprefix(f"{spec.name}_"): figure for figure in figures})
    sink.finish({})


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    main()
