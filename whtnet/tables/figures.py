"""Figures of the speed table, as SVG and PNG."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whtnet.files import atomic_write
from whtnet.tables.spec import TableSpec


def draw_ratios(spec: TableSpec, measured: Mapping[str, Any], path: Path) -> None:
    """Bars: how many times as fast as the convolution each layer is, forward and with backward. ``path``: no suffix."""
    rows = [row for row in spec.rows if "conv" not in row["id"]]
    figure, axes = _subplots(figsize=(8, 0.45 * len(rows) + 1.2))
    for offset, mode, color in ((-0.2, "forward", "#0072b2"), (0.2, "training", "#d55e00")):
        values = []
        for row in rows:
            layers = measured["layers"][row["test"]][mode]
            base = next(r["id"] for r in spec.rows if r["test"] == row["test"])
            values.append(layers[base]["median"] / layers[row.get("contender", row["id"])]["median"])
        label = {"forward": "forward", "training": "forward + backward"}[mode]
        bars = axes.barh([i + offset for i in range(len(rows))], values, 0.38, color=color, label=label)
        axes.bar_label(bars, [f" {value:,.0f}×" if value >= 100 else f" {value:.2g}×" for value in values], fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row['label']} ({row['test'].upper()})" for row in rows])
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
    styles = {"conv1x1": ("1×1 convolution", "#d55e00"), "bwht1d": ("1D-FWHT", "#0072b2"), "copy": ("copy", "#666666")}
    for name, (label, color) in styles.items():
        points = sorted((int(n), seconds) for n, seconds in measured["sizes"][name].items())
        axes.plot(*zip(*[(n, s * 1e9) for n, s in points], strict=True), "o-", color=color, label=label, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("channels n")
    axes.set_ylabel("time for n numbers (ns)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, path)


def _subplots(**options: Any) -> tuple[Any, Any]:
    import matplotlib  # slow to import, and needed here alone
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "whtnet"  # the same figure, the same file
    figure = Figure(layout="constrained", **options)
    return figure, figure.subplots()


def _save(figure: Any, path: Path) -> None:
    for suffix, options in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": 160})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], facecolor="white", **options)
        atomic_write(path.with_suffix(suffix), buffer.getvalue())
