"""Training tables: records → mean ± standard deviation over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from whtnet.tables.render import NOT_AT_HAND, Table
from whtnet.tables.spec import TableSpec


@dataclass(frozen=True)
class TrainedRow:
    """A row of a training table.

    Attributes:
        label: as shown.
        published: ``top1`` in percent, ``parameters``, ``source``; empty where nothing is at hand.
        records: of its runs, one a seed; may be empty.
    """

    label: str
    published: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]

    @property
    def cost(self) -> Mapping[str, int]:
        """What :class:`whtnet.cost.Cost` counts, the same for all seeds; empty without a record."""
        return self.records[0]["cost"] if self.records else {}

    @property
    def top1(self) -> "Spread":
        """Test accuracy in percent at the last epoch over the seeds."""
        return spread([record["test_top1"] for record in self.records])

    def curve(self, metric: str) -> dict[int, "Spread"]:
        """By epoch, a metric of the histories over the seeds; epochs at which no seed measured it are missing."""
        values: dict[int, list[float]] = {}
        for epoch in (epoch for record in self.records for epoch in record["history"]):
            if epoch.get(metric) is not None:
                values.setdefault(epoch["epoch"], []).append(epoch[metric])
        return {epoch: spread(values[epoch]) for epoch in sorted(values)}


class Spread(NamedTuple):
    """Mean and sample standard deviation (0 for a single value) of n values."""

    mean: float
    sd: float
    n: int

    def __str__(self) -> str:
        """As ``91.20 ± 0.15 (n=3)``; one value alone has no deviation."""
        return f"{self.mean:.2f} ± {self.sd:.2f} (n={self.n})" if self.n > 1 else f"{self.mean:.2f} (n=1)"


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of at least one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def trained_rows(spec: TableSpec, records: Sequence[Mapping[str, Any]]) -> list[TrainedRow]:
    """The rows of ``spec`` with their records."""
    return [
        TrainedRow(
            row["label"],
            row.get("published") or {},
            [r for r in records if r["table"] == spec.name and r["row"] == row["id"]],
        )
        for row in spec.rows
    ]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of ``points``, (cost, accuracy), that are more accurate than every cheaper one, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def training_table(spec: TableSpec, records: Sequence[Mapping[str, Any]]) -> Table:
    """Build the table of ``spec`` from the records of its runs; rows without a record say so."""
    trained = trained_rows(spec, records)
    baseline = next((row.cost["parameters"] for row in trained if row.records), None)
    rows = []
    for row in trained:
        parameters, published = row.cost.get("parameters"), row.published
        rows.append(
            [
                row.label,
                f"{parameters:,}" if row.records else "not run",
                f"{parameters / baseline - 1:+.1%}" if row.records and baseline else "",
                f"{row.cost['macs'] / 1e6:,.1f}" if row.records else "",
                str(row.top1) if row.records else "not run",
                f"{published['top1']:.2f}" if "top1" in published else NOT_AT_HAND,
                f"{published['parameters']:,}" if "parameters" in published else NOT_AT_HAND,
                published.get("source", ""),
                _recipe(row.records),
                _duration(row.records),
            ]
        )
    columns = [
        "row",
        "parameters",
        "change",
        "MACs (M)",
        "test top-1 (%)",
        "published top-1 (%)",
        "published parameters",
        "source",
        "recipe",
        "time a run",
    ]
    text = ("source", "recipe")
    used = [record for row in trained for record in row.records]
    return Table(spec.title, columns, rows, spec.intro, _provenance(used), text)


def _recipe(records: Sequence[Mapping[str, Any]]) -> str:
    recipes = {f"{r['settings']['trainer']['schedule']}, {r['epochs']} epochs, {r['precision']}" for r in records}
    return "; ".join(sorted(recipes))


def _duration(records: Sequence[Mapping[str, Any]]) -> str:
    return f"{statistics.median(r['duration_s'] for r in records) / 60:.1f} min" if records else ""


def _provenance(records: Sequence[Mapping[str, Any]]) -> list[str]:
    if not records:
        return []
    places = sorted({place(record["environment"]) for record in records})
    return [
        "Accuracy at the last epoch, mean ± standard deviation over n seeds.",
        *(f"Measured on {p}." for p in places),
    ]


def place(environment: Mapping[str, Any]) -> str:
    """Where something was measured, from :func:`whtnet.records.environment`, in a line."""
    commit = (environment["commit"] or "none")[:8] + (" with local changes" if environment["dirty"] else "")
    torch_version, threads = environment["versions"]["torch"], environment["threads"]
    return f"{environment['device_name']}, {threads} threads, torch {torch_version}, commit {commit}"
