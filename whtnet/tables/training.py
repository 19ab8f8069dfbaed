"""Training tables: records → mean ± standard deviation over seeds; the costs of all rows, counted on built models."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from whtnet.backbones import build_backbone
from whtnet.policy import Policy, apply_policy_
from whtnet.tables.render import NOT_AT_HAND, Table
from whtnet.tables.spec import TableSpec

Counts = Mapping[str, Sequence[Mapping[str, int]]]
"""By the id of a row, its :class:`whtnet.cost.Cost` at each of the table's ``counted`` sizes."""

_CLASSES = 10  # of CIFAR-10


@dataclass(frozen=True)
class TrainedRow:
    """A row of a training table, trained by one recipe.

    Attributes:
        label: as shown.
        published: ``top1`` in percent, ``parameters``, ``source``; empty where nothing is at hand.
        cost: what :class:`whtnet.cost.Cost` counts; empty where the row was neither trained nor counted.
        baseline: the cost of the row that it is compared with.
        records: of its runs, one a seed; may be empty.
    """

    label: str
    published: Mapping[str, Any]
    cost: Mapping[str, int]
    baseline: Mapping[str, int]
    records: Sequence[Mapping[str, Any]]

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


def count_training_rows(
    spec: TableSpec, compose: Callable[[Sequence[str]], Mapping[str, Any]], on_step: Callable[[str], None]
) -> dict[str, list[dict[str, int]]]:
    """Count what the rows of a training table cost, without training them.

    Args:
        spec: the table.
        compose: the config that a list of overrides makes.
        on_step: called with the id of each row when it is done.

    Returns:
        :data:`Counts`.
    """
    counts = {}
    for row in spec.rows:
        counts[row["id"]] = []
        for size in spec.counted:
            config = compose([*spec.overrides, *row["overrides"], *size.get("overrides", ())])
            model = build_backbone(**config["backbone"], num_classes=_CLASSES).to("meta")  # nothing is computed
            report = apply_policy_(model, Policy.from_dict(config["policy"]), tuple(size["input_size"]))
            counts[row["id"]].append(report.to_dict()["after"])
        on_step(row["id"])
    return counts


def trained_rows(spec: TableSpec, records: Sequence[Mapping[str, Any]], counts: Counts) -> list[TrainedRow]:
    """The rows of ``spec`` with their records, one for each recipe that a row was trained by, the longest first.

    A label names the recipe where it is another than that of most rows.
    """
    records = [record for record in records if record["table"] == spec.name]
    epochs = {record["recipe"]: record["epochs"] for record in records}
    uses = Counter(recipe for _, recipe in {(record["row"], record["recipe"]) for record in records})
    usual = max(sorted(uses), key=lambda recipe: (uses[recipe], -epochs[recipe]), default=None)
    costs = {record["row"]: record["cost"] for record in records} | {row: counted[0] for row, counted in counts.items()}
    rows = []
    for row in spec.rows:
        mine = [record for record in records if record["row"] == row["id"]]
        for recipe in sorted({record["recipe"] for record in mine}, key=lambda r: (-epochs[r], r)) or [None]:
            runs = [record for record in mine if record["recipe"] == recipe]
            label = row["label"] if recipe in (None, usual) else f"{row['label']}; recipe {recipe}"
            cost, baseline = costs.get(row["id"], {}), costs.get(row.get("baseline", spec.rows[0]["id"]), {})
            rows.append(TrainedRow(label, row.get("published") or {}, cost, baseline, runs))
    return rows


def time_axis(rows: Sequence[TrainedRow]) -> tuple[str, list[float]]:
    """The axis that curves of trained rows share: its title, and for each row the factor from epochs to its unit.

    The unit is an epoch where all rows have as many, else a percent of the row's own.
    """
    epochs = [row.records[0]["epochs"] for row in rows]
    return ("epoch", [1.0] * len(rows)) if len(set(epochs)) == 1 else ("epochs done (%)", [100 / n for n in epochs])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of ``points``, (cost, accuracy), that are more accurate than every cheaper one, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def training_tables(spec: TableSpec, records: Sequence[Mapping[str, Any]], counts: Counts) -> list[Table]:
    """Build the tables of ``spec`` from the records of its runs: the rows, trained or not; what they cost elsewhere."""
    trained = trained_rows(spec, records, counts)
    rows = []
    for row in trained:
        published = row.published
        rows.append(
            [
                row.label,
                *_cost_cells(row.cost, row.baseline),
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
        *_COST_COLUMNS,
        "test top-1 (%)",
        "published top-1 (%)",
        "published parameters",
        "source",
        "recipe",
        "time a run",
    ]
    used = [record for row in trained for record in row.records]
    tables = [Table(spec.title, columns, rows, spec.intro, _provenance(used), ("source", "recipe"))]
    return [*tables, _cost_table(spec, counts)] if len(spec.counted) > 1 and counts else tables


_COST_COLUMNS = ("parameters", "change", "MACs (M)")


def _cost_cells(cost: Mapping[str, int], baseline: Mapping[str, int]) -> list[str]:
    if not cost:
        return ["not run", "", ""]
    change = f"{cost['parameters'] / baseline['parameters'] - 1:+.1%}" if baseline else ""
    return [f"{cost['parameters']:,}", change, f"{cost['macs'] / 1e6:,.1f}"]


def _cost_table(spec: TableSpec, counts: Counts) -> Table:
    columns = ["row", *(f"{size['label']}: {name}" for size in spec.counted for name in ("parameters", "MACs (M)"))]
    body = []
    for row in spec.rows:
        cells = ((f"{cost['parameters']:,}", f"{cost['macs'] / 1e6:,.1f}") for cost in counts[row["id"]])
        body.append([row["label"], *(cell for pair in cells for cell in pair)])
    return Table(f"{spec.title}: parameters and MACs by size of the images", columns, body)


def _recipe(records: Sequence[Mapping[str, Any]]) -> str:
    recipes = {
        f"`{r['recipe']}`: {r['settings']['trainer']['schedule']}, {r['epochs']} epochs, {r['precision']}"
        for r in records
    }
    return "; ".join(sorted(recipes))


def _duration(records: Sequence[Mapping[str, Any]]) -> str:
    # Not by the clock: a machine that was busy, or slept, for a while says nothing about the run.
    times = [r["epochs"] * statistics.median(epoch["seconds"] for epoch in r["history"]) for r in records]
    return f"{statistics.median(times) / 60:.1f} min" if times else ""


def _provenance(records: Sequence[Mapping[str, Any]]) -> list[str]:
    if not records:
        return []
    places = sorted({place(record["environment"]) for record in records})
    return [
        "Accuracy at the last epoch, mean ± standard deviation over n seeds; time at the median epoch's speed.",
        *(f"Measured on {p}." for p in places),
    ]


def place(environment: Mapping[str, Any]) -> str:
    """Where something was measured, from :func:`whtnet.records.environment`, in a line."""
    commit = (environment["commit"] or "none")[:8] + (" with local changes" if environment["dirty"] else "")
    torch_version, threads = environment["versions"]["torch"], environment["threads"]
    plural = "" if threads == 1 else "s"
    return f"{environment['device_name']}, {threads} thread{plural}, torch {torch_version}, commit {commit}"
