"""Figures for a paper and the README, as SVG and PNG."""

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whtnet.files import atomic_write
from whtnet.tables.spec import TableSpec
from whtnet.tables.speed import growth, layer_ratios
from whtnet.tables.stored import stored_measurements, stored_rows
from whtnet.tables.training import TrainedRow, pareto_front, time_axis

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that is too pale for lines.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
COSTS = {"parameters": "parameters", "macs": "MACs"}
METRICS = {"test_top1": "test top-1 (%)", "train_loss": "training loss"}


def draw_figures(spec: TableSpec, results: Path) -> None:
    """Draw the figures of a table from its measurements in ``results`` into ``results/figures``.

    A training table with runs has NAME_pareto and NAME_curves, a speed table NAME_ratios and NAME_growth, others none.

    Raises:
        TableError: if nothing was measured for it; names the command that does.
    """
    figures = results / "figures"
    if spec.kind == "training" and (rows := stored_rows(spec, results)):
        draw_pareto(rows, figures / f"{spec.name}_pareto")
        draw_curves(rows, figures / f"{spec.name}_curves")
    elif spec.kind == "speed":
        measured = stored_measurements(spec, results)
        draw_ratios(spec, measured, figures / f"{spec.name}_ratios")
        draw_growth(measured, figures / f"{spec.name}_growth")


def draw_pareto(rows: Sequence[TrainedRow], path: Path) -> None:
    """Points: accuracy with its deviation over seeds against parameters and MACs. ``path``: no suffix."""
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
    """Lines: accuracy and loss in training, mean and a band of ± one deviation over seeds. ``path``: no suffix."""
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
    """Bars: how many times as fast as the convolution each layer is, forward and with backward. ``path``: no suffix."""
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
    """Lines: time for a vector of n channels against n, with the copy as the floor. ``path``: no suffix."""
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
    for suffix, options in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": 160})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], facecolor="white", **options)
        atomic_write(path.with_suffix(suffix), buffer.getvalue())
