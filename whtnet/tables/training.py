"""Training tables: records → mean ± standard deviation over seeds; the costs of all rows, counted on built models."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whtnet.backbones import build_backbone, without_weights
from whtnet.policy import Policy, apply_policy_
from whtnet.tables.counts import relative_change
from whtnet.tables.runs import Compose, Runs
from whtnet.tables.spec import TableSpec
from whtnet.tables.table import NOT_AT_HAND, Cell, Column, Spread, Table, spread

Counts = Mapping[str, Sequence[Mapping[str, int]]]
"""By the id of a row, its :class:`whtnet.cost.Cost` at each of the table's ``counted`` sizes."""

_CLASSES = 10  # of CIFAR-10


@dataclass(frozen=True)
class TrainedRow:
    """A row of a training table, trained by one recipe.

    Attributes:
        id: of the row.
        label: as shown.
        recipe: that its records were trained by; None where there are none.
        published: ``top1`` in percent, ``parameters``, ``source``; empty where nothing is at hand.
        cost: what :class:`whtnet.cost.Cost` counts; empty where the row was neither trained nor counted.
        records: of its runs, one a seed; may be empty.
        baseline: the row that it is compared with, by the same recipe; None for itself, or where there is none.
        control: whether it does without the layer in question.
    """

    id: str
    label: str
    recipe: str | None
    published: Mapping[str, Any]
    cost: Mapping[str, int]
    records: Sequence[Mapping[str, Any]]
    baseline: "TrainedRow | None" = None
    control: bool = False

    @property
    def top1(self) -> Spread:
        """Test accuracy in percent at the last epoch over the seeds."""
        return spread([record["test_top1"] for record in self.records], [record["seed"] for record in self.records])

    @property
    def top1_change(self) -> float | None:
        """Difference of the mean test accuracies to the baseline's, in points; None where one of them was not run."""
        if self.baseline is None or not self.baseline.records or not self.records:
            return None
        return self.top1.mean - self.baseline.top1.mean

    def curve(self, metric: str) -> dict[int, Spread]:
        """By epoch, a metric of the histories over the seeds; epochs at which no seed measured it are missing."""
        values: dict[int, list[float]] = {}
        for epoch in (epoch for record in self.records for epoch in record["history"]):
            if epoch.get(metric) is not None:
                values.setdefault(epoch["epoch"], []).append(epoch[metric])
        return {epoch: spread(values[epoch]) for epoch in sorted(values)}


def count_training_rows(
    spec: TableSpec, compose: Compose, on_step: Callable[[str], None]
) -> dict[str, list[dict[str, int]]]:
    """Count what the rows of a training table cost, without training them.

    Args:
        spec: the table.
        compose: the config that a list of overrides makes.
        on_step: called with the id of each row when it is done.

    Returns:
        :data:`Counts`.
    """
    counts: dict[str, list[dict[str, int]]] = {}
    for row in spec.rows:
        counts[row["id"]] = []
        for size in spec.counted:
            config = compose([*spec.overrides, *row["overrides"], *size.get("overrides", ())])
            backbone = without_weights(config["backbone"])
            model = build_backbone(**backbone, num_classes=_CLASSES).to("meta")  # nothing is computed
            report = apply_policy_(model, Policy.from_dict(config["policy"]), tuple(size["input_size"]))
            counts[row["id"]].append(report.to_dict()["after"])
        on_step(row["id"])
    return counts


def trained_rows(spec: TableSpec, runs: Runs, counts: Counts) -> list[TrainedRow]:
    """The rows of ``spec`` with their records, one for each recipe that a row was trained by, the longest first.

    A label names the recipe where it is another than that of most rows.
    """
    epochs = {recipe: records[0]["epochs"] for (_, recipe), records in runs.rows.items()}
    uses = Counter(recipe for _, recipe in runs.rows)
    usual = max(sorted(uses), key=lambda recipe: (uses[recipe], -epochs[recipe]), default=None)
    made: dict[tuple[str, str | None], TrainedRow] = {}
    for row in spec.rows:
        recipes = sorted((r for name, r in runs.rows if name == row["id"]), key=lambda r: (-epochs[r], r))
        for recipe in recipes or (None,):
            records = runs.rows[row["id"], recipe] if recipe is not None else ()
            made[row["id"], recipe] = TrainedRow(
                id=row["id"],
                label=row["label"] if recipe in (None, usual) else f"{row['label']}; recipe {recipe}",
                recipe=recipe,
                published=row.get("published") or {},
                cost=counts[row["id"]][0] if row["id"] in counts else records[0]["cost"] if records else {},
                records=records,
                control=row.get("control", False),
            )
    baselines = {row["id"]: row.get("baseline", spec.rows[0]["id"]) for row in spec.rows}
    return [_compared(row, baselines[row.id], made) for row in made.values()]


def _compared(row: TrainedRow, baseline: str, rows: Mapping[tuple[str, str | None], TrainedRow]) -> TrainedRow:
    if row.id == baseline:
        return row
    same_recipe = rows.get((baseline, row.recipe))
    other = next((other for (name, _), other in rows.items() if name == baseline), None)  # costs the same
    return replace(row, baseline=same_recipe or (other and replace(other, records=[])))


_COLUMNS = (
    Column("row"),
    Column("parameters", form=","),
    Column("change", form="+.1%"),
    Column("macs", "MACs (M)", ",.1f", 1e-6),
    Column("test_top1", "test top-1 (%)", ".2f", spreads=True),
    Column("top1_change", "against baseline", "+.2f"),
    Column("published_top1", "published top-1 (%)", ".2f"),
    Column("published_parameters", "published parameters", ","),
    Column("source"),
    Column("recipe"),
    Column("minutes", "minutes a run", ".1f"),
)


def training_tables(spec: TableSpec, runs: Runs, counts: Counts) -> list[Table]:
    """Build the tables of ``spec`` from the records of its runs: the rows, trained or not; what they cost elsewhere."""
    rows = trained_rows(spec, runs, counts)
    notes = [*_provenance(runs.records), *_left_out(runs.others)]
    tables = [Table(spec.title, _COLUMNS, [_cells(row) for row in rows], spec.intro, notes)]
    return [*tables, _cost_table(spec, counts)] if len(spec.counted) > 1 and counts else tables


def _cells(row: TrainedRow) -> dict[str, Cell]:
    base = row.baseline.cost if row.baseline else row.cost
    return {
        "id": row.id,
        "comparable": row.baseline is None or not row.records or row.top1_change is not None,
        "row": row.label,
        "parameters": row.cost.get("parameters", "not run"),
        "change": relative_change(row.cost, base) if row.cost and base else None,
        "macs": row.cost.get("macs"),
        "test_top1": row.top1 if row.records else "not run",
        "top1_change": row.top1_change,
        "published_top1": row.published.get("top1", NOT_AT_HAND),
        "published_parameters": row.published.get("parameters", NOT_AT_HAND),
        "source": row.published.get("source"),
        "recipe": describe_recipe(row.records),
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


def describe_recipe(records: Sequence[Mapping[str, Any]]) -> str:
    """The recipe that runs were trained by: its name, schedule, epochs and precision."""
    recipes = {
        f"`{r['recipe']}`: {r['settings']['trainer']['schedule']}, {r['epochs']} epoch{'s' * (r['epochs'] != 1)}, "
        f"{r['precision']}"
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


def _left_out(others: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is said of the records that were made with other settings."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for record in others:
        seeds.setdefault((record["row"], record["recipe"]), []).append(record["seed"])
    runs = "; ".join(f"{row} by `{recipe}`, seed {', '.join(map(str, n))}" for (row, recipe), n in seeds.items())
    what = "1 record was" if len(others) == 1 else f"{len(others)} records were"
    return [f"{what} made with other settings than the rows have today, and not shown: {runs}."] if others else []


def place(environment: Mapping[str, Any]) -> str:
    """Where something was measured, from :func:`whtnet.records.environment`, in a line."""
    commit = (environment["commit"] or "none")[:8] + (" with local changes" if environment["dirty"] else "")
    torch_version, threads = environment["versions"]["torch"], environment["threads"]
    plural = "" if threads == 1 else "s"
    return f"{environment['device_name']}, {threads} thread{plural}, torch {torch_version}, commit {commit}"
