"""Figures for a paper and the README."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whtnet.files import atomic_write
from whtnet.tables.labels import GAP, place_labels
from whtnet.tables.points import (
    COSTS,
    METRICS,
    Point,
    by_recipe,
    front,
    principal_rows,
    published_points,
    short_name,
    trained_points,
)
from whtnet.tables.results import Results
from whtnet.tables.spec import TableSpec
from whtnet.tables.speed import growth, layer_ratios
from whtnet.tables.training import TrainedRow, describe_recipe

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that is too pale for lines.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
_GREY = "#666666"
_POINTS = {  # by the kind of a point, how Matplotlib draws it
    "trained": {"fmt": "o", "color": PALETTE[0]},
    "control": {"fmt": "s", "color": _GREY},
    "published": {"fmt": "D", "color": PALETTE[1], "markerfacecolor": "white"},
}
_LABEL = 8  # points, the size of labels


def figure_names(spec: TableSpec, results: Results) -> list[str]:
    """Names of the figures of a table: of a training table with runs, and of a speed table, two; others have none."""
    if spec.kind == "training" and any(row.records for row in results.rows(spec)):
        return [f"{spec.name}_pareto", f"{spec.name}_curves"]
    if spec.kind == "speed" and results.measured(spec):
        return [f"{spec.name}_ratios", f"{spec.name}_growth"]
    return []


def draw_figures(spec: TableSpec, results: Results, folder: Path, suffix: str = ".svg") -> list[Path]:
    """Draw the figures of a table; returns their files, in the order of :func:`figure_names`.

    Args:
        spec: the table.
        results: what was measured for it.
        folder: of the files.
        suffix: ``.svg`` or ``.png``.
    """
    paths = [folder / f"{name}{suffix}" for name in figure_names(spec, results)]
    if paths and spec.kind == "training":
        rows = results.rows(spec)
        draw_pareto(rows, paths[0])
        draw_curves(rows, paths[1])
    elif paths and (measured := results.measured(spec)):
        draw_ratios(spec, measured, paths[0])
        draw_growth(measured, paths[1])
    return paths


def draw_pareto(rows: Sequence[TrainedRow], path: Path) -> None:
    """Accuracy, with its deviation over seeds, against parameters: a panel for each recipe, labels at the points."""
    groups = by_recipe(rows)
    published = published_points(rows, "parameters")
    panels = [trained_points(group, "parameters") + published for group in groups.values()]
    heights = [2.8 + 0.1 * len(points) for points in panels]
    figure, axes = _subplots((8, sum(heights)), nrows=len(panels), height_ratios=heights)
    axes = axes[:, 0]
    for ax, group, points in zip(axes, groups.values(), panels, strict=True):
        ax.set_title(describe_recipe(group[0].records).replace("`", ""), fontsize=10, loc="left")
        _draw_points(ax, points)
    keys = {name: key for ax in axes for key, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(keys.values(), keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=8)
    axes[-1].set_xlabel(COSTS["parameters"])
    for ax, points in zip(axes, panels, strict=True):
        _label_points(ax, points)
    _save(figure, path)


def _draw_points(ax: Any, points: Sequence[Point]) -> None:
    ours = [point for point in points if point.kind != "published"]
    steps = {"drawstyle": "steps-post", "color": "#999999", "linewidth": 1, "zorder": 1}
    ax.plot(*zip(*front(ours), strict=True), "--", label="Pareto front", **steps)
    for kind, style in _POINTS.items():
        if chosen := [point for point in points if point.kind == kind]:
            x, y = [point.cost for point in chosen], [point.top1.mean for point in chosen]
            ax.errorbar(x, y, [point.top1.sd for point in chosen], label=kind, linestyle="", capsize=3, **style)
    ax.xaxis.set_major_formatter(_engineering())
    ax.set_ylabel(METRICS["test_top1"])
    ax.margins(x=0.08, y=0.1)
    ax.grid(alpha=0.3)


def _label_points(ax: Any, points: Sequence[Point]) -> None:
    """Label each point beside it, once the size of the axes is known."""
    ax.figure.draw_without_rendering()
    unit = ax.figure.dpi / 72  # from pixels to points, in which text is measured
    where = (ax.transData.transform([(point.cost, point.top1.mean) for point in points]) - ax.bbox.min) / unit
    widths = [_LABEL * 0.6 * len(point.label) for point in points]
    places = place_labels(where.tolist(), widths, tuple(ax.bbox.size / unit), 1.3 * _LABEL)
    for point, place in zip(points, places, strict=True):
        ax.annotate(
            point.label,
            (point.cost, point.top1.mean),
            (GAP if place.right else -GAP, place.shift),
            textcoords="offset points",
            ha="left" if place.right else "right",
            va="center",
            fontsize=_LABEL,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            in_layout=False,
        )


def draw_curves(rows: Sequence[TrainedRow], path: Path) -> None:
    """Accuracy and loss in training, of a few rows: a line of panels for each recipe, and bands of ± one deviation."""
    groups = [principal_rows(group) for group in by_recipe(rows).values()]
    figure, axes = _subplots((8, 3.4 * len(groups)), nrows=len(groups), ncols=len(METRICS))
    for line, group in zip(axes, groups, strict=True):
        for ax, (metric, name) in zip(line, METRICS.items(), strict=True):
            _draw_curves(ax, group, metric)
            ax.set_xlabel(f"epoch, recipe {group[0].recipe}")
            ax.set_ylabel(name)
            ax.grid(alpha=0.3)
        line[0].legend(frameon=False, fontsize=8, loc="lower right")
    _save(figure, path)


def _draw_curves(ax: Any, rows: Sequence[TrainedRow], metric: str) -> None:
    for row, color in zip(rows, PALETTE, strict=False):
        curve = row.curve(metric)
        ax.plot(list(curve), [s.mean for s in curve.values()], color=color, label=short_name(row))
        low, high = ([s.mean + sign * s.sd for s in curve.values()] for sign in (-1, 1))
        ax.fill_between(list(curve), low, high, color=color, alpha=0.2, linewidth=0)


def draw_ratios(spec: TableSpec, measured: Mapping[str, Any], path: Path) -> None:
    """Bars: how many times as fast as the convolution each layer is, forward and with backward."""
    ratios = layer_ratios(spec, measured)
    figure, ((axes,),) = _subplots((8, 0.45 * len(ratios) + 1.2))
    for passes, offset, color in zip(next(iter(ratios.values())), (-0.2, 0.2), PALETTE[:2], strict=True):
        values = [layer[passes] for layer in ratios.values()]
        bars = axes.barh([i + offset for i in range(len(values))], values, 0.38, color=color, label=passes)
        axes.bar_label(bars, [f" {value:,.0f}×" if value >= 100 else f" {value:.2g}×" for value in values], fontsize=8)
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast as the convolution (3×3 for 2D, 1×1 for 1D)")
    axes.legend(frameon=False)
    _save(figure, path)


def draw_growth(measured: Mapping[str, Any], path: Path) -> None:
    """Lines: time for a vector of n channels against n, with the copy as the floor."""
    figure, ((axes,),) = _subplots((6.4, 4.4))
    for (label, points), color in zip(growth(measured).items(), (PALETTE[1], PALETTE[0], _GREY), strict=True):
        axes.plot(*zip(*points, strict=True), "o-", color=color, label=label, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("channels n")
    axes.set_ylabel("time for n numbers (ns)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def _engineering() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def _subplots(figsize: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure, and the array of its axes, in lines."""
    import matplotlib  # slow to import, and needed here alone
    from matplotlib.figure import Figure

    # The same figure, the same file; text as text, which is small and can be searched.
    matplotlib.rcParams.update({"svg.hashsalt": "whtnet", "svg.fonttype": "none"})
    figure = Figure(figsize, layout="constrained")
    return figure, figure.subplots(squeeze=False, **options)


def _save(figure: Any, path: Path) -> None:
    options: dict[str, dict[str, Any]] = {".svg": {"metadata": {"Date": None}}, ".png": {"dpi": 160}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], facecolor="white", **options[path.suffix])
    atomic_write(path, buffer.getvalue())
