"""What a reproduction reproduced: its numbers beside the reference's, row by row."""

from collections.abc import Mapping
from typing import Any

from whtnet.tables.devices import of_device
from whtnet.tables.results import Results
from whtnet.tables.spec import TableSpec
from whtnet.tables.speed import layer_ratios, network_ratios
from whtnet.tables.statistics import INTERVAL_COLUMNS, SINGLE_RUN, interval_cells, welch_interval
from whtnet.tables.table import Cell, Column, Spread, Table
from whtnet.tables.training import TrainedRow

NOISE, DIFFERS, EQUAL = "within seed noise", "differs", "equal"
UNTOLD, NO_REFERENCE = "can't tell (n=1)", "no reference"

_TEST = f"Within seed noise: the interval of the difference at 95 %, by Welch's t, holds 0; {SINGLE_RUN}."


def comparisons(spec: TableSpec, reference: Results, yours: Results) -> list[Table]:
    """The tables that compare what was made of ``spec`` here with the reference; none where nothing was made here.

    Args:
        spec: the table.
        reference: what is published with the project.
        yours: what was made here alone, without the reference's numbers where yours lack.
    """
    tables = []
    if spec.kind == "training":
        tables.append(_accuracies(spec, reference, yours))
    if spec.kind == "speed":
        tables.append(_ratios(spec, reference, yours))
    else:
        tables.append(_counts(spec, reference, yours))
    return [table for table in tables if table.rows]


_ACCURACY_COLUMNS = (
    Column("row"),
    Column("reference", "reference top-1 (%)", ".2f", spreads=True),
    Column("yours", "yours", ".2f", spreads=True),
    Column("difference", form="+.2f"),
    *INTERVAL_COLUMNS,
    Column("verdict", "yours is"),
)


def _accuracies(spec: TableSpec, reference: Results, yours: Results) -> Table:
    known = {(row.id, row.recipe): row for row in reference.rows(spec)}
    rows = [_accuracy(row, known.get((row.id, row.recipe))) for row in yours.rows(spec) if row.records]
    return Table(f"{spec.title}: yours and the reference", _ACCURACY_COLUMNS, rows, notes=[_TEST])


def _accuracy(yours: TrainedRow, reference: TrainedRow | None) -> dict[str, Cell]:
    cells: dict[str, Cell] = {"row": yours.label, "yours": yours.top1, "verdict": NO_REFERENCE}
    if reference is None or not reference.records:
        return cells
    theirs, mine = reference.top1, yours.top1
    cells |= {"reference": theirs, "difference": mine.mean - theirs.mean, **interval_cells(mine, theirs)}
    return cells | {"verdict": judge(mine, theirs)}


def judge(mine: Spread, theirs: Spread) -> str:
    """Whether two means over seeds agree, in words."""
    if mine.mean == theirs.mean:
        return EQUAL
    interval = welch_interval(mine, theirs)
    if interval is None:
        return UNTOLD
    return NOISE if interval[0] <= 0 <= interval[1] else DIFFERS


_COUNT_COLUMNS = (
    Column("count", "counts"),
    Column("reference", form=","),
    Column("yours", form=","),
    Column("verdict", "yours is"),
)


def _counts(spec: TableSpec, reference: Results, yours: Results) -> Table:
    theirs, mine = reference.numbers(spec), yours.numbers(spec)
    shared = [name for name in mine if name in theirs]
    unlike = [name for name in shared if mine[name] != theirs[name]]
    rows: list[dict[str, Cell]] = [
        {"count": name, "reference": theirs[name], "yours": mine[name], "verdict": DIFFERS} for name in unlike
    ]
    rows += [{"count": name, "yours": n, "verdict": NO_REFERENCE} for name, n in mine.items() if name not in theirs]
    if equal := len(shared) - len(unlike):
        rest = "the others" if rows else "all"
        rows.append({"count": rest, "reference": equal, "yours": equal, "verdict": EQUAL})
    return Table(f"{spec.title}: your counts and the reference's", _COUNT_COLUMNS, rows)


_RATIO_COLUMNS = (
    Column("what", "times as fast as without WHT layers"),
    Column("reference", form=".3g"),
    Column("yours", form=".3g"),
)


def _ratios(spec: TableSpec, reference: Results, yours: Results) -> Table:
    measured, published = yours.measured(spec), reference.measured(spec)
    mine = _speedups(spec, measured)
    theirs = _speedups(spec, of_device(published, measured)) if measured and published else {}
    rows: list[dict[str, Cell]] = [
        {"what": name, "reference": theirs.get(name), "yours": ratio} for name, ratio in mine.items()
    ]
    note = "For information: ratios differ with the machine, and its other work."
    return Table(f"{spec.title}: yours and the reference", _RATIO_COLUMNS, rows, notes=[note])


def _speedups(spec: TableSpec, measured: Mapping[str, Any] | None) -> dict[str, float]:
    if measured is None:
        return {}
    ratios = layer_ratios(spec, measured) | network_ratios(measured)
    return {f"{label}, {passes}": ratio for label, times in ratios.items() for passes, ratio in times.items()}
