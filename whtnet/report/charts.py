"""The charts of the report as plotly figures; the page adds the colours of its theme."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from whtnet.tables.figures import COSTS, METRICS, PALETTE, row_styles
from whtnet.tables.spec import TableSpec
from whtnet.tables.speed import growth, layer_ratios, network_ratios
from whtnet.tables.table import spread
from whtnet.tables.training import TrainedRow, pareto_front, time_axis
from whtnet.transforms import sequency_permutation

_GREY = "#888888"  # for what must be seen on a light and on a dark page
_HEIGHT, _ROW, _LEGEND_LINE, _LABEL_LINE, _MAP = 340, 34, 20, 17, 250  # pixels
_SYMBOLS = {"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up"}  # Matplotlib's markers
_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}  # and lines
_NEUTRAL = {"threshold": 0.0, "weight": 1.0}  # no thresholding; where weights start


@dataclass(frozen=True)
class Chart:
    """A figure under a title; ``small`` ones stand several in a line."""

    title: str
    figure: go.Figure
    small: bool = False

    @property
    def data(self) -> dict[str, Any]:
        """What ``Plotly.newPlot`` takes, as plain JSON."""
        return json.loads(self.figure.to_json())


def pareto_charts(rows: Sequence[TrainedRow]) -> list[Chart]:
    """Accuracy against parameters, and against MACs, with the front of the rows that no cheaper one beats."""
    return [_pareto(rows, cost, name) for cost, name in COSTS.items()]


def _pareto(rows: Sequence[TrainedRow], cost: str, name: str) -> Chart:
    front = pareto_front([(row.cost[cost], row.top1.mean) for row in rows])
    x, y = zip(*front, strict=True)
    traces = [
        go.Scatter(x=x, y=y, mode="lines", line=_line(_GREY, dash="dot", shape="hv"), name="front", hoverinfo="skip")
    ]
    for row, (color, marker, _) in zip(rows, row_styles(rows), strict=True):
        symbol = _SYMBOLS[marker]
        deviation = {"type": "data", "array": [row.top1.sd], "visible": row.top1.n > 1}
        where = row.cost[cost], row.top1.mean
        traces.append(_point(*where, _wrapped(row.label), str(row.top1), error_y=deviation, color=color, symbol=symbol))
        if cost in row.published and "top1" in row.published:
            text = f"{row.published['top1']:.2f}<br>{_wrapped(row.published['source'])}"
            marker = {"color": color, "symbol": f"{symbol}-open", "line": {"width": 2}}
            traces.append(_point(row.published[cost], row.published["top1"], "published", text, **marker))
    layout = {"xaxis_title": name, "yaxis_title": METRICS["test_top1"]}
    return Chart(f"Accuracy against {name}", _figure(traces, **layout))


def _point(x: float, y: float, name: str, text: str, error_y: Any = None, **marker: Any) -> go.Scatter:
    template = "%{x:,}<br>%{text}"
    return go.Scatter(
        x=[x],
        y=[y],
        mode="markers",
        marker={"size": 11, **marker},
        error_y=error_y,
        name=name,
        text=[text],
        hovertemplate=template,
    )


def curve_charts(rows: Sequence[TrainedRow]) -> list[Chart]:
    """Accuracy and loss in training: mean, and a band of ± one standard deviation where there are several seeds."""
    charts = []
    title, units = time_axis(rows)
    for metric, name in METRICS.items():
        styled = zip(rows, row_styles(rows), units, strict=True)
        traces = [
            trace for row, (color, _, line), unit in styled for trace in _curve(row, metric, color, _DASHES[line], unit)
        ]
        layout = {"xaxis_title": title, "yaxis_title": name, "hovermode": "x unified"}
        charts.append(Chart(name[0].upper() + name[1:], _figure(traces, **layout)))
    return charts


def _curve(row: TrainedRow, metric: str, color: str, dash: str, unit: float) -> list[go.Scatter]:
    curve = row.curve(metric)
    times, spreads = [unit * epoch for epoch in curve], list(curve.values())
    mean = go.Scatter(
        x=times,
        y=[s.mean for s in spreads],
        mode="lines",
        line=_line(color, dash=dash),
        name=_wrapped(row.label),
        text=[str(s) for s in spreads],
        hovertemplate="%{text}",
        legendgroup=row.label,
    )
    if all(s.n == 1 for s in spreads):
        return [mean]
    band = go.Scatter(
        x=[*times, *reversed(times)],
        y=[*(s.mean + s.sd for s in spreads), *(s.mean - s.sd for s in reversed(spreads))],
        fill="toself",
        fillcolor=_transparent(color),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=row.label,
    )
    return [band, mean]


def speed_charts(spec: TableSpec, measured: Mapping[str, Any]) -> list[Chart]:
    """Layers against convolutions, time against the number of channels, networks against their baselines."""
    layers = layer_ratios(spec, measured)
    modes = {
        mode: {label: ratios[i] for label, ratios in layers.items()}
        for i, mode in enumerate(("forward", "forward + backward"))
    }
    networks = network_ratios(measured)
    by_mode = {
        mode: {label: ratios[mode] for label, ratios in networks.items()} for mode in next(iter(networks.values()))
    }
    lines = [
        go.Scatter(
            x=[n for n, _ in points],
            y=[time for _, time in points],
            mode="lines+markers",
            name=label,
            line=_line(color),
            hovertemplate="n = %{x}: %{y:.3g} ns",
        )
        for (label, points), color in zip(growth(measured).items(), (PALETTE[1], PALETTE[0], _GREY), strict=True)
    ]
    layout = {"xaxis_title": "channels n", "yaxis_title": "time for n numbers (ns)"}
    sizes = lines[0].x[::2]
    log = {"xaxis_type": "log", "xaxis_tickvals": sizes, "xaxis_ticktext": sizes, "yaxis_type": "log", "yaxis_dtick": 1}
    return [
        Chart("Times as fast as the convolution, layers", _ratio_bars(modes, "× (3×3 for 2D, 1×1 for 1D)", "log")),
        Chart("Times as fast as without the policy, networks", _ratio_bars(by_mode, "×", "linear")),
        Chart("Time against the number of channels", _figure(lines, **layout, **log)),
    ]


def _ratio_bars(by_mode: Mapping[str, Mapping[str, float]], title: str, scale: str) -> go.Figure:
    figure = _bars({mode: {_wrapped(k, 26): v for k, v in bars.items()} for mode, bars in by_mode.items()}, ",.3~r")
    figure.add_vline(1, line=_line(_GREY, dash="dot"))
    return figure.update_layout(xaxis_title=title, xaxis_type=scale)


def zero_chart(rows: Sequence[TrainedRow]) -> Chart:
    """Share of coefficients that are zero after thresholding, by row and layer; mean and deviation over seeds."""
    found = {}
    for row in rows:
        shares: dict[str, list[float]] = {}
        for layer in (layer for record in row.records for layer in record.get("layers", ())):
            shares.setdefault(layer["name"], []).append(100 * layer["zero_share"])
        if shares:
            found[_wrapped(row.label)] = {name: spread(values) for name, values in shares.items()}
    names = list(dict.fromkeys(name for shares in found.values() for name in shares))
    cells = [[shares.get(name) for name in names] for shares in found.values()]
    trace = go.Heatmap(
        x=names,
        y=list(found),
        z=[[cell and cell.mean for cell in line] for line in cells],
        text=[[str(cell or "") for cell in line] for line in cells],
        texttemplate="%{z:.0f}",
        hovertemplate="%{y}<br>%{x}: %{text}<extra></extra>",
        hoverongaps=False,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
    )
    lines = len(found) * max((1 + label.count("<br>") for label in found), default=0)
    # The theme's scale has the page's own colour in its middle: that is 0 %.
    colors = {"cmin": -100, "cmax": 100, "showscale": False}
    figure = _figure([trace], height=140 + _LABEL_LINE * lines, coloraxis=colors)
    figure.update_xaxes(showgrid=False, tickangle=-45)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return Chart("Coefficients set to zero by thresholding (%), by layer", figure)


def layer_charts(row: TrainedRow) -> list[Chart]:
    """Thresholds, then transform-domain weights, of the recorded layers of the row's first seed, in sequency order."""
    layers = next(record["layers"] for record in row.records if record.get("layers"))
    return [
        Chart(f"{layer['name']}: {name}{path}", figure, small=True)
        for key, name in (("threshold", "thresholds T"), ("weight", "weights V"))
        for layer in layers
        if layer[key] is not None
        for path, figure in _panels(layer, key)
    ]


def _panels(layer: Mapping[str, Any], key: str) -> list[tuple[str, go.Figure]]:
    values = torch.tensor(layer[key])
    if key == "threshold" and layer["clamp"]:
        values = values.relu()
    if layer["kind"] == "BWHT1d":
        return [("", _block_lines(in_sequency_order(values, dims=1)))]
    neutral = _NEUTRAL[key]
    maps = in_sequency_order(values, dims=2).reshape(-1, *values.shape[-2:])
    if len(maps) == 1:
        return [("", _heatmap(maps[0], neutral))]
    return [(f", path {path}", _heatmap(one, neutral)) for path, one in enumerate(maps, start=1)]


def in_sequency_order(values: Tensor, dims: int) -> Tensor:
    """Sort the last ``dims`` dimensions, whose sizes are powers of two, from natural into sequency order."""
    for dim in range(-dims, 0):
        values = values.index_select(dim, sequency_permutation(values.shape[dim]))
    return values


def _heatmap(values: Tensor, neutral: float) -> go.Figure:
    hover = "sequency (%{y}, %{x}): %{z:.4g}<extra></extra>"
    trace = go.Heatmap(z=_digits(values), coloraxis="coloraxis", hovertemplate=hover)
    figure = _figure([trace], height=_MAP, coloraxis={"cmid": neutral, "colorbar": {"thickness": 10, "len": 1}})
    figure.update_xaxes(constrain="domain", showgrid=False)
    return figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain", showgrid=False)


def _block_lines(values: Tensor) -> go.Figure:
    traces = [
        go.Scatter(
            y=_digits(block),
            mode="lines",
            line=_line(PALETTE[i % len(PALETTE)], width=1.5),
            name=f"block {i}",
            hovertemplate="sequency %{x}: %{y:.4g}",
        )
        for i, block in enumerate(values)
    ]
    return _figure(traces, height=_MAP, showlegend=False, xaxis_title="sequency")


def _bars(groups: Mapping[str, Mapping[str, float]], digits: str) -> go.Figure:
    # By the group, by the label of a bar: its value.
    traces = [
        go.Bar(
            y=list(bars),
            x=list(bars.values()),
            orientation="h",
            name=name,
            marker={"color": color},
            hovertemplate=f"%{{y}}: %{{x:{digits}}}",
            texttemplate=f"%{{x:{digits}}}",
            textposition="outside",
            cliponaxis=False,
        )
        for (name, bars), color in zip(groups.items(), PALETTE, strict=False)
    ]
    labels = {label for bars in groups.values() for label in bars}
    figure = _figure(traces, height=120 + _ROW * max(1, len(groups)) * len(labels) // 2 + _ROW * len(labels) // 2)
    return figure.update_yaxes(autorange="reversed", showgrid=False)


def _figure(traces: list[Any], height: int = _HEIGHT, **layout: Any) -> go.Figure:
    lines = sum(1 + trace.name.count("<br>") for trace in traces if trace.name and trace.showlegend is not False)
    shown = layout.get("showlegend", len(traces) > 1)
    figure = go.Figure(traces)
    figure.update_layout(
        template="none",
        height=height + _LEGEND_LINE * lines * shown,
        margin={"l": 8, "r": 24, "t": 8, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        showlegend=shown,
        **{key: value for key, value in layout.items() if key != "showlegend"},
    )
    figure.update_xaxes(automargin=True)
    return figure.update_yaxes(automargin=True)


def _line(color: str, **options: Any) -> dict[str, Any]:
    return {"color": color, "width": 2, **options}


def _transparent(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"


def _wrapped(text: str, width: int = 40) -> str:
    return "<br>".join(textwrap.wrap(text, width))


def _digits(values: Tensor) -> Any:
    return json.loads(json.dumps(values.double().tolist()), parse_float=lambda number: float(f"{float(number):.4g}"))
