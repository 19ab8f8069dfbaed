"""Training tables: records → mean ± standard deviation over seeds; the costs of all rows, counted on built models."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whtnet.backbones import build_backbone
from whtnet.policy import Policy, apply_policy_
from whtnet.tables.counts import relative_change
from whtnet.tables.spec import TableSpec
from whtnet.tables.table import NOT_AT_HAND, Cell, Column, Spread, Table, spread

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
    def top1(self) -> Spread:
        """Test accuracy in percent at the last epoch over the seeds."""
        return spread([record["test_top1"] for record in self.records], [record["seed"] for record in self.records])

    def curve(self, metric: str) -> dict[int, Spread]:
        """By epoch, a metric of the histories over the seeds; epochs at which no seed measured it are missing."""
        values: dict[int, list[float]] = {}
        for epoch in (epoch for record in self.records for epoch in record["history"]):
            if epoch.get(metric) is not None:
                values.setdefault(epoch["epoch"], []).append(epoch[metric])
        return {epoch: spread(values[epoch]) for epoch in sorted(values)}


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


_COLUMNS = (
    Column("row"),
    Column("parameters", form=","),
    Column("change", form="+.1%"),
    Column("macs", "MACs (M)", ",.1f", 1e-6),
    Column("test_top1", "test top-1 (%)", ".2f", spreads=True),
    Column("published_top1", "published top-1 (%)", ".2f"),
    Column("published_parameters", "published parameters", ","),
    Column("source"),
    Column("recipe"),
    Column("minutes", "minutes a run", ".1f"),
)


def training_tables(spec: TableSpec, records: Sequence[Mapping[str, Any]], counts: Counts) -> list[Table]:
    """Build the tables of ``spec`` from the records of its runs: the rows, trained or not; what they cost elsewhere."""
    trained = trained_rows(spec, records, counts)
    used = [record for row in trained for record in row.records]
    tables = [Table(spec.title, _COLUMNS, [_cells(row) for row in trained], spec.intro, _provenance(used))]
    return [*tables, _cost_table(spec, counts)] if len(spec.counted) > 1 and counts else tables


def _cells(row: TrainedRow) -> dict[str, Cell]:
    compared = bool(row.cost and row.baseline)
    return {
        "row": row.label,
        "parameters": row.cost.get("parameters", "not run"),
        "change": relative_change(row.cost, row.baseline) if compared else None,
        "macs": row.cost.get("macs"),
        "test_top1": row.top1 if row.records else "not run",
        "published_top1": row.published.get("top1", NOT_AT_HAND),
        "published_parameters": row.published.get("parameters", NOT_AT_HAND),
        "source": row.published.get("source"),
        "recipe": _recipe(row.records),
        "minutes": _minutes(row.records),
    }


def _cost_table(spec: TableSpec, counts: Counts) -> Table:
    columns = [Column("row")]
    for size in spec.counted:
        label = size["label"]
        columns += [
            Column(f"{label}: parameters", form=","),
            Column(f"{label}: macs", f"{label}: MACs (M)", ",.1f", 1e-6),
        ]
    rows = []
    for row in spec.rows:
        sizes = zip(spec.counted, counts[row["id"]], strict=True)
        costs = {f"{size['label']}: {name}": cost[name] for size, cost in sizes for name in ("parameters", "macs")}
        rows.append({"row": row["label"], **costs})
    return Table(f"{spec.title}: parameters and MACs by size of the images", columns, rows)


def _recipe(records: Sequence[Mapping[str, Any]]) -> str:
    recipes = {
        f"`{r['recipe']}`: {r['settings']['trainer']['schedule']}, {r['epochs']} epochs, {r['precision']}"
        for r in records
    }
    return "; ".join(sorted(recipes))


def _minutes(records: Sequence[Mapping[str, Any]]) -> float | None:
    # Not by the clock: a machine that was busy, or slept, for a while says nothing about the run.
    times = [r["epochs"] * statistics.median(epoch["seconds"] for epoch in r["history"]) for r in records]
    return statistics.median(times) / 60 if times else None


def _provenance(records: Sequence[Mapping[str, Any]]) -> list[str]:
    if not records:
        return []
    places = sorted({place(record["environment"]) for record in records})
    return [
        "Accuracy at the last epoch, mean ± standard deviation over n seeds; minutes at the median epoch's speed.",
        *(f"Measured on {p}." for p in places),
    ]


def place(environment: Mapping[str, Any]) -> str:
    """Where something was measured, from :func:`whtnet.records.environment`, in a line."""
    commit = (environment["commit"] or "none")[:8] + (" with local changes" if environment["dirty"] else "")
    torch_version, threads = environment["versions"]["torch"], environment["threads"]
    plural = "" if threads == 1 else "s"
    return f"{environment['device_name']}, {threads} thread{plural}, torch {torch_version}, commit {commit}"
