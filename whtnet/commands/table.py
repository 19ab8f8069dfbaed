"""Reproduce tables: ``whtnet table``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from whtnet.commands.compose import compose_config
from whtnet.commands.measuring import MEASURE, Folders, asked_runs, trained_run
from whtnet.console import console, exit_on_user_error
from whtnet.errors import UserError, few
from whtnet.extensions import trust_typed
from whtnet.jobs import JobError
from whtnet.records import local_changes
from whtnet.shipped import PLACE, ROOT
from whtnet.tables import (
    Asked,
    Identities,
    Results,
    Table,
    TableError,
    TableSpec,
    command_for,
    comparisons,
    draw_figures,
    load_spec,
    pages,
    stored_tables,
    table_names,
    to_rich,
    update_page,
    write_tables,
)
from whtnet.tracking import RunInfo, make_sink

QUICK = ("parameters", "digits")

_OPTIONS = {"training": ("rows", "seeds", "recipe", "override", "jobs"), "layers": ("override",)}
"""Those that tables of a kind heed, beyond what all do."""

_OF_A_COMMIT = ("training", "speed", "deployment")
"""Kinds of tables whose numbers name the commit that they were measured at."""


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
    _check(specs, folders, arguments)
    failures = []
    for spec in specs:
        try:
            MEASURE[spec.kind](spec, folders, arguments)
        except JobError as error:  # the other runs are worth showing
            failures.append(str(error))
        _publish(spec, folders, arguments)
    if failures:
        raise JobError("\n".join(failures))


def _check(specs: Sequence[TableSpec], folders: Folders, arguments: argparse.Namespace) -> None:
    """Find what can't be, or would be passed over, before the first table is made."""
    _check_use(specs, arguments)
    if arguments.update and not arguments.no_training and any(spec.kind in _OF_A_COMMIT for spec in specs):
        _check_committed(folders.root)
    for spec in specs:
        if spec.kind == "training":
            asked = asked_runs(spec, folders, arguments)
            asked.check()
            make_sink(**asked.config(asked.rows[0], f"logger={arguments.logger}")["logger"])
        elif spec.kind == "layers":
            for row in spec.rows:
                trained_run(row, folders, arguments).check()


def _check_use(specs: Sequence[TableSpec], arguments: argparse.Namespace) -> None:
    """Find an option that none of the tables heeds."""
    used = {option for spec in specs for option in _OPTIONS.get(spec.kind, ())}
    given = {option for options in _OPTIONS.values() for option in options if getattr(arguments, option)}
    if unused := sorted(given - used):
        names = ", ".join(spec.name for spec in specs)
        raise TableError(f"--{unused[0]} does nothing for {names}; it is for tables that train")


def _check_committed(root: Path) -> None:
    """See whether the code is that of a commit: else nobody could repeat what the project would publish."""
    if changed := local_changes(root):
        raise UserError(
            f"--update names the commit of what it measures, and {few(changed, most=3)} differ from it: commit first, "
            "or leave --update out"
        )


def _list_tables(experiments: Path) -> None:
    for name in table_names(experiments):
        quick = " (quick: part of the default)" if name in QUICK else ""
        console.print(f"  {name:<27} {load_spec(experiments, name).title}{quick}")


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
        _show_on_dashboard(asked_runs(spec, folders, arguments), results, tables, arguments.logger)


def _show_on_dashboard(asked: Asked, results: Results, tables: Sequence[Table], logger: str) -> None:
    """A run of its own in the table's group, with the tables and the figures."""
    name, config = asked.spec.name, asked.config(asked.rows[0], f"logger={logger}")
    folder = PLACE / config["run_root"] / "tables" / name
    figures = draw_figures(asked.spec, results, folder, ".png")
    sink = make_sink(**config["logger"])
    info = RunInfo(
        name=f"table {name}",
        group=name,
        config={"table": name},
        run_dir=folder,
        job_type="table",
        tags=(name, "table"),
    )
    sink.start(info)
    rows = {table.title: (table.headings, table.texts) for table in tables}
    sink.show(rows, {figure.stem.removeprefix(f"{name}_"): figure for figure in figures})
    sink.finish({})
