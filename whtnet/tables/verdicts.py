"""The verdicts: each published claim beside what was counted, trained or timed here, judged by rule."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from whtnet.tables.released import TOLERANCE, is_equal
from whtnet.tables.results import Results
from whtnet.tables.spec import TableError, TableSpec
from whtnet.tables.speed import memory_change, speed_ratio
from whtnet.tables.statistics import mean_interval, welch_interval
from whtnet.tables.table import Cell, Column, Shown, Spread, Table
from whtnet.tables.training import TrainedRow

REPRODUCED, IN_PART, NOT_REPRODUCED, NOT_RUN = "reproduced", "only in part", "not reproduced", "not run"
RULES = (
    "Verdicts are computed. A count is reproduced where it is equal; a speed or a memory where ours is at least as "
    f"good; released weights where they give what their log says within {TOLERANCE} points.",
    "A trained accuracy is reproduced where it is at least what is published and its loss against the baseline is at "
    "most the published loss, each within its interval at 95 % over seeds (Student's and Welch's t); only in part "
    "where one of the two holds. Fewer than three runs have no interval, which would hold nearly everything: their "
    "mean counts. Row and baseline are by the same recipe, the longest that both were trained by.",
)
FEWEST_RUNS = 3
"""With whose interval an accuracy is judged: of two, Student's quantile is 12.7."""

_COLUMNS = (
    Column("claim"),
    Column("published", form="g"),
    Column("published_change", "to its baseline", "+.2f"),
    Column("ours", form="g", spreads=True),
    Column("change", "to our baseline", "+.2f"),
    Column("control", form="g", spreads=True),
    Column("verdict"),
    Column("evidence", "where from"),
    Column("source", "published in"),
)


@dataclass(frozen=True)
class Claim:
    """A row of the table.

    Attributes:
        id: of its own.
        claim: what is claimed, in words.
        published: the number: a count, percent, how many times as fast, a relative change of memory.
        source: where it is published.
        kind: of the evidence: ``count``, ``accuracy``, ``speed``, ``memory`` or ``weights``.
        table: that has the evidence.
        row: of that table.
        baseline: published accuracy of the network without replacements.
        control: row of the same table that stands beside.
    """

    id: str
    claim: str
    published: float
    source: str
    kind: str
    table: str
    row: str
    baseline: float | None = None
    control: str | None = None


def read_claims(spec: TableSpec) -> list[Claim]:
    """The rows of a table of verdicts.

    Raises:
        TableError: for a row that lacks something or has too much.
    """
    try:
        claims = [Claim(**row) for row in spec.rows]
    except TypeError as error:
        raise TableError(f"table {spec.name!r}: {error}") from error
    if unknown := sorted({claim.kind for claim in claims} - set(_EVIDENCE)):
        raise TableError(f"table {spec.name!r}: unknown kind {unknown[0]!r}; choose one of {', '.join(_EVIDENCE)}")
    return claims


def verdict_tables(spec: TableSpec, results: Results) -> list[Table]:
    """The table of verdicts on what ``results`` hold."""
    rows = [_verdict_row(claim, results) for claim in read_claims(spec)]
    return [Table(spec.title, _COLUMNS, rows, spec.intro, RULES)]


def _verdict_row(claim: Claim, results: Results) -> dict[str, Cell]:
    spec = results.spec(claim.table)
    for row in (claim.row, claim.control):
        if row is not None and row not in [known["id"] for known in spec.rows]:
            raise TableError(f"verdict {claim.id!r}: table {claim.table!r} has no row {row!r}")
    form, unit, judge = _EVIDENCE[claim.kind]
    cells: dict[str, Cell] = {
        "id": claim.id,
        "claim": claim.claim,
        "published": Shown(claim.published, form, unit),
        "published_change": claim.baseline and claim.published - claim.baseline,
        "verdict": NOT_RUN,
        "evidence": f"`{claim.table}`, {claim.row}",
        "source": claim.source,
    }
    found = judge(claim, spec, results)
    for name in ("ours", "control"):
        if name in found:
            found[name] = Shown(found[name], form, unit)
    if claim.control is not None and "control" in found:
        found["control"] = found["control"]._replace(unit=f"{unit}: {spec.row(claim.control)['label']}")
    return cells | found


def _count(claim: Claim, spec: TableSpec, results: Results) -> dict[str, Any]:
    ours = results.numbers(spec).get(f"{claim.row}: as published")
    if ours is None:
        return {}
    return {"ours": ours, "verdict": REPRODUCED if ours == claim.published else NOT_REPRODUCED}


def _speed(claim: Claim, spec: TableSpec, results: Results) -> dict[str, Any]:
    return _timed(claim, spec, results, speed_ratio, at_least=True)


def _memory(claim: Claim, spec: TableSpec, results: Results) -> dict[str, Any]:
    return _timed(claim, spec, results, memory_change, at_least=False)


def _timed(
    claim: Claim,
    spec: TableSpec,
    results: Results,
    number: Callable[[TableSpec, Mapping[str, Any], str], float],
    *,
    at_least: bool,
) -> dict[str, Any]:
    measured = results.measured(spec)
    if measured is None:
        return {}
    ours = number(spec, measured, claim.row)
    good = ours >= claim.published if at_least else ours <= claim.published
    control = {"control": number(spec, measured, claim.control)} if claim.control else {}
    return {"ours": ours, "verdict": REPRODUCED if good else NOT_REPRODUCED, **control}


def _weights(claim: Claim, spec: TableSpec, results: Results) -> dict[str, Any]:
    measured = results.measured(spec) or {}
    ours = {row["id"]: row["ours"] for row in measured.get("rows", ())}.get(claim.row)
    if ours is None:
        return {}
    good = is_equal(ours, claim.published)
    control = next((row["ours"] for row in measured["rows"] if row["id"] == claim.control), None)
    return {"ours": ours, "verdict": REPRODUCED if good else NOT_REPRODUCED} | ({"control": control} if control else {})


def _accuracy(claim: Claim, spec: TableSpec, results: Results) -> dict[str, Any]:
    rows = [row for row in results.rows(spec) if row.records]
    mine = [row for row in rows if row.id == claim.row]
    if not mine:
        return {}
    row = max(mine, key=lambda row: (row.top1_change is not None, row.records[0]["epochs"]))
    control = next((other for other in rows if (other.id, other.recipe) == (claim.control, row.recipe)), None)
    return {
        "ours": row.top1,
        "change": row.top1_change,
        "verdict": judge_accuracy(claim, row),
        "evidence": f"`{claim.table}`, {claim.row}, recipe `{row.recipe}`",
        **({"control": control.top1} if control else {}),
    }


def judge_accuracy(claim: Claim, row: TrainedRow) -> str:
    """The verdict on a trained accuracy, see :data:`RULES`."""
    tests = [highest_mean(row.top1) >= claim.published]
    if claim.baseline is not None:
        compared = row.baseline if row.top1_change is not None else None
        change = highest_change(row.top1, compared.top1) if compared else -math.inf
        tests.append(change >= claim.published - claim.baseline)
    return REPRODUCED if all(tests) else IN_PART if any(tests) else NOT_REPRODUCED


def highest_mean(mine: Spread) -> float:
    """The upper end of the interval of a mean, the mean itself of too few runs."""
    return mean_interval(mine)[1] if mine.n >= FEWEST_RUNS else mine.mean


def highest_change(mine: Spread, baseline: Spread) -> float:
    """The upper end of the interval of a difference, the difference itself where one side has too few runs."""
    interval = welch_interval(mine, baseline) if min(mine.n, baseline.n) >= FEWEST_RUNS else None
    return mine.mean - baseline.mean if interval is None else interval[1]


_EVIDENCE = {
    "count": (",", "", _count),
    "accuracy": (".2f", "", _accuracy),
    "weights": (".2f", "", _weights),
    "speed": (",.3g", "×", _speed),
    "memory": ("+.2%", "", _memory),
}
"""By the kind of evidence: how its numbers look, their unit, and what finds ours, a control and the verdict."""
