"""What layers learned: pictures of thresholds and weights, and the shares of coefficients that thresholding zeroes."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from whtnet.tables.table import Spread, spread
from whtnet.tables.training import TrainedRow
from whtnet.transforms import sequency_permutation

_NEUTRAL = {"threshold": 0.0, "weight": 1.0}  # no thresholding; where weights start
_COLORS = ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00))  # below and above that; it is transparent itself


@dataclass(frozen=True)
class Picture:
    """Values as a PNG in a ``data:`` address, a pixel a value, under a title that names its range."""

    title: str
    address: str
    width: int
    height: int


def layer_pictures(row: TrainedRow) -> list[Picture]:
    """Thresholds, then transform-domain weights, of the recorded layers of the row's first seed, in sequency order."""
    layers = next(record["layers"] for record in row.records if record.get("layers"))
    return [
        picture
        for key, name in (("threshold", "thresholds T"), ("weight", "weights V"))
        for layer in layers
        if layer[key] is not None
        for picture in _pictures(layer, key, f"{layer['name']}: {name}")
    ]


def _pictures(layer: Mapping[str, Any], key: str, title: str) -> list[Picture]:
    values = torch.tensor(layer[key])
    if key == "threshold" and layer["clamp"]:
        values = values.relu()
    if layer["kind"] == "BWHT1d":  # a line a block
        return [_picture(torch.atleast_2d(in_sequency_order(values, dims=1)), _NEUTRAL[key], title)]
    maps = in_sequency_order(values, dims=2).reshape(-1, *values.shape[-2:])
    if len(maps) == 1:
        return [_picture(maps[0], _NEUTRAL[key], title)]
    return [_picture(one, _NEUTRAL[key], f"{title}, path {path}") for path, one in enumerate(maps, start=1)]


def in_sequency_order(values: Tensor, dims: int) -> Tensor:
    """Sort the last ``dims`` dimensions, whose sizes are powers of two, from natural into sequency order."""
    for dim in range(-dims, 0):
        values = values.index_select(dim, sequency_permutation(values.shape[dim]))
    return values


def _picture(values: Tensor, neutral: float, title: str) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(pixels(values, neutral).numpy()).save(buffer, "PNG", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    height, width = values.shape
    return Picture(f"{title}, {values.min():.3g} to {values.max():.3g}", address, width, height)


def pixels(values: Tensor, neutral: float) -> Tensor:
    """Colours of values, ``(H, W)`` → ``(H, W, 4)`` bytes: the farther from ``neutral``, the more opaque.

    A light and a dark page show through alike.
    """
    distance = (values - neutral).double()
    opacity = distance.abs() / distance.abs().max().clamp(min=1e-12)
    colors = torch.tensor(_COLORS, dtype=torch.uint8)[(distance > 0).long()]
    return torch.cat([colors, (255 * opacity).round().to(torch.uint8).unsqueeze(-1)], dim=-1)


@dataclass(frozen=True)
class Zeros:
    """Percent of coefficients that are zero after thresholding: by the label of a row, a cell a layer."""

    layers: Sequence[str]
    rows: Mapping[str, Sequence[Spread | None]]


def zeros_by_layer(rows: Sequence[TrainedRow]) -> Zeros:
    """Mean and deviation over seeds, of the rows whose layers were recorded."""
    found = {}
    for row in rows:
        shares: dict[str, list[float]] = {}
        for layer in (layer for record in row.records for layer in record.get("layers", ())):
            shares.setdefault(layer["name"], []).append(100 * layer["zero_share"])
        if shares:
            found[row.label] = {name: spread(values) for name, values in shares.items()}
    names = list(dict.fromkeys(name for shares in found.values() for name in shares))
    return Zeros(names, {label: [shares.get(name) for name in names] for label, shares in found.items()})
