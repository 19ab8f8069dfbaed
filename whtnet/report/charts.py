"""The charts of the report as geometry that ``charts.html`` draws as SVG.

Along x all is in percent of the chart's width and along y in pixels, so that a chart fits every width without a script,
and its texts keep their size. The layout of labels is found for a narrow chart; it holds in wider ones.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whtnet.report.scale import Scale, engineering, plain
from whtnet.tables.labels import GAP, Place, place_labels, spread_out
from whtnet.tables.points import (
    COSTS,
    METRICS,
    Point,
    front,
    principal_rows,
    published_points,
    short_name,
    trained_points,
)
from whtnet.tables.spec import TableSpec
from whtnet.tables.speed import growth, layer_ratios, network_ratios
from whtnet.tables.training import TrainedRow

_NARROW = 270  # pixels of a chart on a page of 420
_LETTER = 6.8  # pixels of a label's letter, on average
_HEIGHT, _LINE = 260, 15  # pixels
_QUESTIONS = {"test_top1": "How does the accuracy rise in training?", "train_loss": "How does the loss fall?"}


@dataclass(frozen=True)
class Tick:
    """A mark of an axis at ``place``: percent from the left, or pixels from the top."""

    place: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point with its label.

    Attributes:
        x: percent.
        y: pixels from the top, as ``top`` and ``bottom``, the ends of its deviation.
        kind: ``trained``, ``control``, ``published``, or ``end`` of a curve, which is not drawn.
        color: number of a curve's colour; 0 without one.
        label: beside it, at ``dx`` and ``dy`` pixels from it.
        text: all about it, shown when it is pointed at.
    """

    x: float
    y: float
    top: float
    bottom: float
    kind: str
    label: str
    dx: float
    dy: float
    text: str
    color: int = 0


@dataclass(frozen=True)
class Line:
    """A curve: ``points`` as SVG has them, x in tenths of a percent; ``band`` is the outline of its deviations."""

    points: str
    kind: str
    text: str = ""
    color: int = 0
    band: str = ""


@dataclass(frozen=True)
class Chart:
    """Marks and lines between two axes, under a question; ``labels_outside`` says that labels stand to the right."""

    title: str
    height: int
    x_title: str
    y_title: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line]
    marks: Sequence[Mark]
    labels_outside: bool = False


@dataclass(frozen=True)
class Bar:
    """``share`` in percent of the width, and the value as text."""

    series: str
    share: float
    text: str


@dataclass(frozen=True)
class Bars:
    """Bars by label, under a question; ``one`` is where the value 1 is, in percent."""

    title: str
    series: Sequence[str]
    groups: Mapping[str, Sequence[Bar]]
    one: float


def pareto_chart(rows: Sequence[TrainedRow], every_row: Sequence[TrainedRow], cost: str) -> Chart:
    """Accuracy against parameters or MACs.

    Args:
        rows: trained by one recipe.
        every_row: of the table, for what is published of them.
        cost: a key of :data:`COSTS`.
    """
    ours = trained_points(rows, cost)
    points = [*ours, *published_points(every_row, cost)]
    height = max(_HEIGHT, _LINE * len(points) + 60)
    x = Scale.around([point.cost for point in points])
    y = Scale.around([top for point in points for top in _deviation(point)], air=0.1)
    where = [(_NARROW * x.share(point.cost), height * (1 - y.share(point.top1.mean))) for point in points]
    places = place_labels(where, [_LETTER * len(point.label) for point in points], (_NARROW, height), _LINE)
    marks = [
        _mark(point, COSTS[cost], 100 * x.share(point.cost), y, height, place)
        for point, place in zip(points, places, strict=True)
    ]
    best = front(ours)
    corners = [best[0], *(corner for a, b in itertools.pairwise(best) for corner in ((b[0], a[1]), b))]
    line = Line(_path(corners, x, y, height), "front")
    x_ticks, y_ticks = _axes(x, y, height, engineering, plain)
    return Chart(
        title=f"How much accuracy for how many {COSTS[cost]}?",
        height=height,
        x_title=COSTS[cost],
        y_title=METRICS["test_top1"],
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        lines=[line],
        marks=marks,
    )


def _deviation(point: Point) -> tuple[float, float]:
    return point.top1.mean - point.top1.sd, point.top1.mean + point.top1.sd


def _mark(point: Point, unit: str, x: float, y: Scale, height: int, place: Place) -> Mark:
    bottom, top = (height * (1 - y.share(value)) for value in _deviation(point))
    shown = f"{point.top1.mean:.2f}" if point.kind == "published" else str(point.top1)
    return Mark(
        x=x,
        y=height * (1 - y.share(point.top1.mean)),
        top=top,
        bottom=bottom,
        kind=point.kind,
        label=point.label,
        dx=GAP if place.right else -GAP,
        dy=place.shift,
        text=f"{point.text}: {shown} %, {point.cost:,} {unit}",
    )


def curve_chart(rows: Sequence[TrainedRow], metric: str) -> Chart:
    """A metric by epoch, of the principal ones of rows that one recipe trained; bands of ± one standard deviation."""
    rows = principal_rows(rows)
    curves = {short_name(row): row.curve(metric) for row in rows}
    x = Scale(0, max(epoch for curve in curves.values() for epoch in curve))
    y = Scale.around([s.mean + sign * s.sd for curve in curves.values() for s in curve.values() for sign in (-1, 1)])
    lines = []
    for color, (row, curve) in enumerate(zip(rows, curves.values(), strict=True), start=1):
        edges = [[(epoch, s.mean + sign * s.sd) for epoch, s in curve.items()] for sign in (-1, 1)]
        band = _path([*edges[0], *reversed(edges[1])], x, y, _HEIGHT) if any(s.sd for s in curve.values()) else ""
        means = [(epoch, s.mean) for epoch, s in curve.items()]
        lines.append(Line(_path(means, x, y, _HEIGHT), "curve", row.label, color, band))
    ends = {name: (max(curve), curve[max(curve)].mean) for name, curve in curves.items()}
    texts = [f"{row.label}: {curve[max(curve)]}" for row, curve in zip(rows, curves.values(), strict=True)]
    x_ticks, y_ticks = _axes(x, y, _HEIGHT, plain, plain)
    return Chart(
        title=_QUESTIONS[metric],
        height=_HEIGHT,
        x_title="epoch",
        y_title=METRICS[metric],
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        lines=lines,
        marks=_ends(ends, texts, x, y),
        labels_outside=True,
    )


def _ends(ends: Mapping[str, tuple[float, float]], texts: Sequence[str], x: Scale, y: Scale) -> list[Mark]:
    """The labels of curves, beyond their last points."""
    tops = [_HEIGHT * (1 - y.share(value)) for _, value in ends.values()]
    shown = spread_out(tops, _LINE, _HEIGHT)
    return [
        Mark(
            x=100 * x.share(end),
            y=top,
            top=top,
            bottom=top,
            kind="end",
            label=label,
            dx=GAP,
            dy=at - top,
            text=text,
            color=color,
        )
        for color, ((label, (end, _)), top, at, text) in enumerate(
            zip(ends.items(), tops, shown, texts, strict=True), start=1
        )
    ]


def growth_chart(measured: Mapping[str, Any]) -> Chart:
    """Time of layers over channels against the number of channels."""
    curves = growth(measured)
    sizes = sorted({n for points in curves.values() for n, _ in points})
    x = Scale(sizes[0], sizes[-1], log=True)
    y = Scale.around([time for points in curves.values() for _, time in points], log=True)
    lines = [
        Line(_path(points, x, y, _HEIGHT), "curve", label, color)
        for color, (label, points) in enumerate(curves.items(), start=1)
    ]
    ends = {label: points[-1] for label, points in curves.items()}
    texts = [f"{label}: " + ", ".join(f"n = {n}: {t:.3g} ns" for n, t in points) for label, points in curves.items()]
    x_ticks = [Tick(100 * x.share(n), str(n)) for n in sizes[::2]]
    _, y_ticks = _axes(x, y, _HEIGHT, plain, engineering)
    return Chart(
        title="How does the time grow with the channels?",
        height=_HEIGHT,
        x_title="channels n",
        y_title="time for n numbers (ns)",
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        lines=lines,
        marks=_ends(ends, texts, x, y),
        labels_outside=True,
    )


def layer_bars(spec: TableSpec, measured: Mapping[str, Any]) -> Bars:
    """Layers against the convolutions of their tests."""
    return _bars("How many times as fast as the convolution is a layer?", layer_ratios(spec, measured), log=True)


def network_bars(measured: Mapping[str, Any]) -> Bars:
    """Networks with a policy against those without."""
    return _bars("How many times as fast as without a policy is a whole network?", network_ratios(measured), log=False)


def _bars(title: str, ratios: Mapping[str, Mapping[str, float]], *, log: bool) -> Bars:
    values = [value for bars in ratios.values() for value in bars.values()]
    scale = Scale(min(*values, 1) / 2 if log else 0, max(values) * (2 if log else 1.15), log=log)
    series = list(next(iter(ratios.values())))
    groups = {
        label: [Bar(name, 100 * scale.share(value), _times(value)) for name, value in bars.items()]
        for label, bars in ratios.items()
    }
    return Bars(title, series, groups, 100 * scale.share(1))


def _times(value: float) -> str:
    return f"{value:,.0f}×" if value >= 100 else f"{value:.3g}×"


def _path(points: Sequence[tuple[float, float]], x: Scale, y: Scale, height: int) -> str:
    return " ".join(f"{1000 * x.share(a):.4g},{height * (1 - y.share(b)):.4g}" for a, b in points)


def _axes(
    x: Scale, y: Scale, height: int, x_text: Callable[[float], str], y_text: Callable[[float], str]
) -> tuple[list[Tick], list[Tick]]:
    return (
        [Tick(100 * x.share(tick), x_text(tick)) for tick in x.ticks()],
        [Tick(height * (1 - y.share(tick)), y_text(tick)) for tick in y.ticks()],
    )
