"""What charts of trained rows show: one recipe at a time, a point for each row, published points once each."""

from collections.abc import Sequence
from dataclasses import dataclass

from whtnet.tables.table import Spread
from whtnet.tables.training import TrainedRow

COSTS = {"parameters": "parameters", "macs": "MACs"}
METRICS = {"test_top1": "test top-1 (%)", "train_loss": "training loss"}
_MOST = 6  # rows whose curves can be told apart in one chart


@dataclass(frozen=True)
class Point:
    """Accuracy at a cost.

    Attributes:
        label: short, for beside it.
        text: what the row is.
        kind: ``trained``, ``control`` or ``published``.
        cost: parameters or MACs.
        top1: percent; a single published value has n = 1.
    """

    label: str
    text: str
    kind: str
    cost: float
    top1: Spread


def by_recipe(rows: Sequence[TrainedRow]) -> dict[str, list[TrainedRow]]:
    """The trained rows by their recipe, the longest first.

    A recipe that trained a single row compares nothing, and is left out unless all are such.
    """
    found: dict[str, list[TrainedRow]] = {}
    for row in rows:
        if row.recipe is not None:
            found.setdefault(row.recipe, []).append(row)
    most = max(map(len, found.values()), default=0)
    kept = {recipe: trained for recipe, trained in found.items() if len(trained) >= min(2, most)}
    return dict(sorted(kept.items(), key=lambda item: (-item[1][0].records[0]["epochs"], item[0])))


def short_name(row: TrainedRow) -> str:
    """What a row is called beside its point or curve."""
    return row.id.replace("_", " ")


def trained_points(rows: Sequence[TrainedRow], cost: str) -> list[Point]:
    """A point for each of the rows, all trained by one recipe; ``cost`` is a key of :data:`COSTS`."""
    return [
        Point(short_name(row), row.label, "control" if row.control else "trained", row.cost[cost], row.top1)
        for row in rows
    ]


def published_points(rows: Sequence[TrainedRow], cost: str) -> list[Point]:
    """A point for each published accuracy whose cost is published too, once, trained here or not."""
    points: dict[str, Point] = {}
    for row in rows:
        if cost in row.published and "top1" in row.published:
            top1 = Spread(row.published["top1"], 0.0, 1)
            text = f"published, {row.published['source']}"
            points.setdefault(
                row.id, Point(f"{short_name(row)}, published", text, "published", row.published[cost], top1)
            )
    return list(points.values())


def front(points: Sequence[Point]) -> list[tuple[float, float]]:
    """The Pareto front of points, (cost, percent), by rising cost."""
    return pareto_front([(point.cost, point.top1.mean) for point in points])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of ``points``, (cost, accuracy), that are more accurate than every cheaper one, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def principal_rows(rows: Sequence[TrainedRow]) -> list[TrainedRow]:
    """The few rows that a chart of curves shows, in order.

    Those are the first (the baseline), the controls, those with a published accuracy, and of the others the most
    accurate.
    """
    first, *others = rows
    ranked = sorted(others, key=lambda row: (not row.control, "top1" not in row.published, -row.top1.mean))
    kept = {id(row) for row in (first, *ranked[: _MOST - 1])}
    return [row for row in rows if id(row) in kept]
