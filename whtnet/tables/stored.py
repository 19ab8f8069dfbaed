"""Tables again from the measurements in ``results/``, without measuring anything."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whtnet.records import read_layers, read_records
from whtnet.tables.counts import coverage_tables, parameter_tables
from whtnet.tables.spec import TableError, TableSpec
from whtnet.tables.speed import speed_tables
from whtnet.tables.table import Table
from whtnet.tables.training import Counts, TrainedRow, place, trained_rows, training_tables

RECORDS = "runs"


def command_for(spec: TableSpec) -> str:
    """The command that makes a table."""
    return f"make reproduce-table TABLE={spec.name}"


def measurements_file(spec: TableSpec) -> str:
    """Name of the file in ``results/`` that holds what a table shows."""
    return RECORDS if spec.kind == "training" else f"{spec.name}.json"


def stored_tables(spec: TableSpec, results: Path) -> list[Table]:
    """The tables of ``spec``.

    Raises:
        TableError: if nothing was measured for it; names the command that does.
        RecordError: for a damaged file of records.
    """
    if spec.kind == "training":
        return training_tables(spec, *_runs_and_counts(spec, results))
    stored = stored_measurements(spec, results)
    match spec.kind:
        case "parameters":
            return parameter_tables(spec, stored["rows"], stored["families"])
        case "coverage":
            return coverage_tables(spec, stored["pairs"])
        case _:
            return speed_tables(spec, stored, place(stored["environment"]))


def stored_rows(spec: TableSpec, results: Path) -> list[TrainedRow]:
    """The rows of a training table, those without a record left out; raises as :func:`stored_tables`."""
    return [row for row in trained_rows(spec, *_runs_and_counts(spec, results)) if row.records]


def counts_file(spec: TableSpec) -> str:
    """Name of the file in ``results/`` that holds what the rows of a training table cost."""
    return f"{spec.name}.json"


def stored_measurements(spec: TableSpec, results: Path) -> Mapping[str, Any]:
    """What was counted or timed for a table of another kind; raises as :func:`stored_tables`."""
    path = results / measurements_file(spec)
    if not path.is_file():
        raise _missing(spec, results)
    return json.loads(path.read_text(encoding="utf-8"))


def _runs_and_counts(spec: TableSpec, results: Path) -> tuple[list[dict[str, Any]], Counts]:
    folder = results / RECORDS
    records = [
        record | {"layers": read_layers(folder, record)}
        for record in read_records(folder)
        if record["table"] == spec.name
    ]
    path = results / counts_file(spec)
    counts = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else {}
    if not records and not counts:
        raise _missing(spec, results)
    return records, counts


def _missing(spec: TableSpec, results: Path) -> TableError:
    path = results / measurements_file(spec)
    return TableError(f"{path} holds nothing of table {spec.name!r}; make it with `{command_for(spec)}`")
