"""The speed table: layers against the convolutions they replace, whole networks against their baselines."""

from collections.abc import Mapping
from typing import Any

from whtnet.tables.measure import BATCHES, TESTS, TRAINING_BATCH, contender
from whtnet.tables.spec import TableSpec
from whtnet.tables.table import NOT_AT_HAND, Cell, Column, Table

_MODES = {f"inference, batch {batch}": f"inference_{batch}" for batch in BATCHES} | {"training step": "training"}

_LAYER_COLUMNS = (
    Column("test"),
    Column("layer"),
    Column("format"),
    Column("forward_s", "forward (ms)", ".3f", 1e3),
    Column("forward_ratio", "× forward", ".1f"),
    Column("training_s", "forward + backward (ms)", ".3f", 1e3),
    Column("training_ratio", "× both", ".1f"),
    Column("peak_bytes", "peak memory (MB)", ".1f", 1e-6),
    Column("memory_change", "memory", "+.1%"),
    Column("published_ratio", "published ×", "g"),
    Column("published_memory_change", "published memory", "+.2%"),
    Column("source"),
)
_TIMES = 7  # the columns of times come first


def speed_tables(spec: TableSpec, measured: Mapping[str, Any], place: str) -> list[Table]:
    """The tables of layers and of networks from what :func:`measure_speed` returned; ``place`` says where that was."""
    notes = [f"Measured on {place}, backend `{measured['conditions']['backend']}`, default allocator."]
    rows = _layer_rows(spec, measured, "default")
    kept = Table(
        "The same with kept memory",
        _LAYER_COLUMNS[:_TIMES],
        _layer_rows(spec, measured, "kept"),
        "After `whtnet.keep_freed_memory()`, as in training, the C library keeps freed memory, for all contenders.",
    )
    return [
        Table(spec.title, _LAYER_COLUMNS, rows, spec.intro, notes),
        kept,
        _network_table(measured["networks"]),
    ]


def _layer_rows(spec: TableSpec, measured: Mapping[str, Any], memory: str) -> list[dict[str, Cell]]:
    timed = measured["layers"][memory]
    return [
        _layer_row(row, measured, memory, _convolution(spec, row))
        for row in spec.rows
        if contender(row) in timed[row["test"]]["forward"]
    ]


def _layer_row(row: Mapping[str, Any], measured: Mapping[str, Any], memory: str, base: str) -> dict[str, Cell]:
    name, test = contender(row), row["test"]
    modes, sizes = measured["layers"][memory][test], measured["layer_memory"][test]
    published = row.get("published") or {}
    missing = NOT_AT_HAND if published else None
    cells: dict[str, Cell] = {
        "id": row["id"],
        "test": TESTS[test],
        "layer": row["label"],
        "format": modes["forward"][name]["memory_format"],
        "peak_bytes": sizes.get(name),
        "memory_change": sizes[name] / sizes[base] - 1 if name in sizes and name != base else None,
        "published_ratio": published.get("speed", missing),
        "published_memory_change": published.get("memory", missing),
        "source": published.get("source"),
    }
    for mode in ("forward", "training"):
        mine, theirs = modes[mode][name]["median"], modes[mode][base]["median"]
        cells |= {f"{mode}_s": mine, f"{mode}_ratio": theirs / mine}
    return cells


def _convolution(spec: TableSpec, row: Mapping[str, Any]) -> str:
    """What a row's layer is compared with: the first of its test."""
    return contender(next(other for other in spec.rows if other["test"] == row["test"]))


def speed_ratio(spec: TableSpec, measured: Mapping[str, Any], row_id: str, mode: str = "forward") -> float:
    """How many times as fast as its test's convolution the layer of a row is, by medians."""
    row = next(row for row in spec.rows if row["id"] == row_id)
    timed = measured["layers"]["default"][row["test"]][mode]
    return timed[_convolution(spec, row)]["median"] / timed[contender(row)]["median"]


def memory_change(spec: TableSpec, measured: Mapping[str, Any], row_id: str) -> float:
    """By what fraction the peak memory of a row's layer is above its test's convolution's."""
    row = next(row for row in spec.rows if row["id"] == row_id)
    sizes = measured["layer_memory"][row["test"]]
    return sizes[contender(row)] / sizes[_convolution(spec, row)] - 1


def layer_ratios(spec: TableSpec, measured: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """By the label of each layer but the convolutions: how many times as fast as its test's convolution it is.

    Returns:
        Two ratios of medians, of the forward pass and of forward and backward.
    """
    return {
        f"{row['label']} ({row['test'].upper()})": (
            speed_ratio(spec, measured, row["id"]),
            speed_ratio(spec, measured, row["id"], "training"),
        )
        for row in spec.rows
        if "conv" not in row["id"]
    }


def growth(measured: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """By the label of a layer over channels: (n, nanoseconds for a vector of n channels), by rising n."""
    labels = {"conv1x1": "1×1 convolution", "bwht1d": "1D-FWHT", "copy": "copy"}
    return {
        label: sorted((int(n), seconds * 1e9) for n, seconds in measured["sizes"][name].items())
        for name, label in labels.items()
    }


def network_ratios(measured: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By the label of a network with a policy, by mode: the time without the policy over the time with it."""
    ratios = {}
    for row in (row for row in measured["networks"] if row["policy"] != "none"):
        base = _unreplaced(row, measured["networks"])
        ratios[row["label"]] = {name: base[key]["median"] / row[key]["median"] for name, key in _MODES.items()}
    return ratios


def _unreplaced(row: Mapping[str, Any], networks: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(other for other in networks if other["backbone"] == row["backbone"] and other["policy"] == "none")


_NETWORK_COLUMNS = (
    Column("network"),
    Column("parameters", form=","),
    Column("macs", "MACs (M)", ",.1f", 1e-6),
    *(
        column
        for batch in BATCHES
        for column in (
            Column(f"inference_{batch}_s", f"inference, batch {batch} (ms)", ".2f", 1e3),
            Column(f"inference_{batch}_ratio", f"× batch {batch}", ".2f"),
        )
    ),
    Column("training_s", f"training step, batch {TRAINING_BATCH} (ms)", ".2f", 1e3),
    Column("training_ratio", "× training", ".2f"),
    Column("training_bytes", "training, peak memory (MB)", ",.0f", 1e-6),
)


def _network_table(networks: list[Mapping[str, Any]]) -> Table:
    rows = []
    for row in networks:
        base = _unreplaced(row, networks)
        cells = {"network": row["label"], "training_bytes": row["training_bytes"]}
        cells |= {name: row["cost"][name] for name in ("parameters", "macs")}
        for key in _MODES.values():
            cells |= {f"{key}_s": row[key]["median"], f"{key}_ratio": base[key]["median"] / row[key]["median"]}
        rows.append(cells)
    return Table(
        "Speed of whole networks",
        _NETWORK_COLUMNS,
        rows,
        "Images of 3×32×32, the MobileNets with a CIFAR stem; precision and memory format as training chooses them, "
        "freed memory kept. "
        '"×" is the time of the network without replacements over this one\'s.',
    )
