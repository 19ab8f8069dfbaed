"""Figures for a paper and the README."""

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whtnet.files import atomic_write
from whtnet.tables.results import Results
from whtnet.tables.spec import TableSpec
from whtnet.tables.speed import growth, layer_ratios
from whtnet.tables.training import TrainedRow, pareto_front, time_axis

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that is too pale for lines.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
COSTS = {"parameters": "parameters", "macs": "MACs"}
METRICS = {"test_top1": "test top-1 (%)", "train_loss": "training loss"}


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
        rows = [row for row in results.rows(spec) if row.records]
        draw_pareto(rows, paths[0])
        draw_curves(rows, paths[1])
    elif paths:
        measured = results.measured(spec)
        draw_ratios(spec, measured, paths[0])
        draw_growth(measured, paths[1])
    return paths


def draw_pareto(rows: Sequence[TrainedRow], path: Path) -> None:
    """Points: accuracy with its deviation over seeds against parameters and MACs."""
    figure, axes = _subplots(ncols=2, sharey=True, figsize=(8, 3.6 + 0.2 * len(rows)))
    for ax, (cost, name) in zip(axes, COSTS.items(), strict=True):
        points = [(row.cost[cost], row.top1.mean) for row in rows]
        ax.plot(
            *zip(*pareto_front(points), strict=True),
            "--",
            drawstyle="steps-post",
            color="#999999",
            linewidth=1,
            zorder=1,
        )
        for (x, y), row, (color, marker, _) in zip(points, rows, row_styles(rows), strict=True):
            ax.errorbar(x, y, row.top1.sd, fmt=marker, color=color, capsize=3, label=row.label)
        ax.set_xlabel(name)
        ax.xaxis.set_major_formatter(_engineering())
        ax.margins(x=0.15, y=0.15)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("test top-1 (%)")
    _legend_below(figure, axes[0])
    _save(figure, path)


def draw_curves(rows: Sequence[TrainedRow], path: Path) -> None:
    """Lines: accuracy and loss in training, mean and a band of ± one deviation over seeds."""
    figure, axes = _subplots(ncols=2, figsize=(8, 3.6 + 0.2 * len(rows)))
    title, units = time_axis(rows)
    for ax, (metric, name) in zip(axes, METRICS.items(), strict=True):
        for row, unit, (color, _, line) in zip(rows, units, row_styles(rows), strict=True):
            curve = row.curve(metric)
            x = [unit * epoch for epoch in curve]
            ax.plot(x, [s.mean for s in curve.values()], line, color=color, label=row.label)
            low, high = ([s.mean + sign * s.sd for s in curve.values()] for sign in (-1, 1))
            ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        ax.set_xlabel(title)
        ax.set_ylabel(name)
        ax.grid(alpha=0.3)
    _legend_below(figure, axes[0])
    _save(figure, path)


def draw_ratios(spec: TableSpec, measured: Mapping[str, Any], path: Path) -> None:
    """Bars: how many times as fast as the convolution each layer is, forward and with backward."""
    ratios = layer_ratios(spec, measured)
    figure, axes = _subplots(figsize=(8, 0.45 * len(ratios) + 1.2))
    for mode, (offset, label) in enumerate(((-0.2, "forward"), (0.2, "forward + backward"))):
        values = [pair[mode] for pair in ratios.values()]
        bars = axes.barh([i + offset for i in range(len(values))], values, 0.38, color=PALETTE[mode], label=label)
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
    figure, axes = _subplots(figsize=(6.4, 4.4))
    for (label, points), color in zip(growth(measured).items(), ("#d55e00", "#0072b2", "#666666"), strict=True):
        axes.plot(*zip(*points, strict=True), "o-", color=color, label=label, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("channels n")
    axes.set_ylabel("time for n numbers (ns)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def row_styles(rows: Sequence[TrainedRow]) -> list[tuple[str, str, str]]:
    """Colour, marker and line (Matplotlib's names) of each row; where colours begin again, the other two change."""
    styles = [
        (color, marker, line) for marker, line in zip("osD^", ("-", "--", ":", "-."), strict=True) for color in PALETTE
    ]
    return list(itertools.islice(itertools.cycle(styles), len(rows)))


def _engineering() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def _legend_below(figure: Any, axes: Any) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=1, frameon=False)


def _subplots(*, ncols: int = 1, sharey: bool = False, **options: Any) -> tuple[Any, Any]:
    import matplotlib  # slow to import, and needed here alone
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "whtnet"  # the same figure, the same file
    figure = Figure(layout="constrained", **options)
    return figure, figure.subplots(ncols=ncols, sharey=sharey)


def _save(figure: Any, path: Path) -> None:
    options = {".svg": {"metadata": {"Date": None}}, ".png": {"dpi": 160}}[path.suffix]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], facecolor="white", **options)
    atomic_write(path, buffer.getvalue())
