"""The speed table: layers against the convolutions they replace, whole networks against their baselines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from whtnet.bench import MODES, Quartiles, Site
from whtnet.tables.devices import devices_table, measurements
from whtnet.tables.measure import BATCHES, KEPT, TESTS, TRAINING_BATCH, contender, site_of
from whtnet.tables.spec import TableSpec
from whtnet.tables.table import NOT_AT_HAND, Cell, Column, Shown, Table
from whtnet.tables.training import place

_STEPS = {f"inference, batch {batch}": f"inference_{batch}" for batch in BATCHES} | {"training step": "training"}
_PASSES = dict(zip(MODES, ("forward", "forward + backward"), strict=True))

CLAIM_COLUMNS = (
    Column("memory_change", "memory", "+.1%"),
    Column("published_ratio", "published ×", "g"),
    Column("published_memory_change", "published memory", "+.2%"),
    Column("source"),
)
"""The change of memory, and what is published on speed and memory."""

_LAYER_COLUMNS = (
    Column("test"),
    Column("layer"),
    Column("format"),
    Column("forward_s", "forward (ms)", ".3f", 1e3, quartiles=True),
    Column("forward_ratio", "× forward", ".1f", quartiles=True),
    Column("training_s", "forward + backward (ms)", ".3f", 1e3, quartiles=True),
    Column("training_ratio", "× both", ".1f", quartiles=True),
    Column("peak_bytes", "peak memory (MB)", ".1f", 1e-6),
    *CLAIM_COLUMNS,
)
_TIMES = 7  # the columns of times come first


def speed_tables(spec: TableSpec, measured: Mapping[str, Any]) -> list[Table]:
    """The tables of layers and of networks from what :func:`~whtnet.tables.devices.with_measurement` returned."""
    conditions = measured["conditions"]
    notes = [
        f"Measured on {place(measured['environment'])}, each bound to a processor, backend `{conditions['backend']}`, "
        f"load average before {conditions['load']:.1f}. Freed memory is kept, for all contenders alike "
        "(`whtnet.keep_freed_memory()`, as training does)."
    ]
    fresh = Table(
        "The same with fresh memory",
        _LAYER_COLUMNS[:_TIMES],
        _layer_rows(spec, measured, "default"),
        "As the C library does by itself: large results are made of pages that the system has to find and clear each "
        "time, for all contenders alike.",
    )
    tables = [
        Table(spec.title, _LAYER_COLUMNS, _layer_rows(spec, measured, KEPT), spec.intro, notes),
        fresh,
        pays_table(spec, measured),
        _network_table(measured["networks"]),
    ]
    everywhere = measurements(measured)
    return [*tables, _devices_table(spec, everywhere)] if len(everywhere) > 1 else tables


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
        "test": _shape(TESTS[test]),
        "layer": row["label"],
        "format": modes["forward"][name]["memory_format"],
        "peak_bytes": sizes.get(name),
        "memory_change": sizes[name] / sizes[base] - 1 if name in sizes and name != base else None,
        "published_ratio": published.get("speed", missing),
        "published_memory_change": published.get("memory", missing),
        "source": published.get("source"),
    }
    for mode in MODES:
        cells |= {f"{mode}_s": _time(modes[mode][name]), f"{mode}_ratio": _ratio(modes[mode], name, base)}
    return cells


def _shape(site: Site) -> str:
    return "×".join(map(str, site.shape))


def _time(timing: Mapping[str, Any]) -> Quartiles:
    return Quartiles(timing["median"], timing["low"], timing["high"])


def _ratio(timed: Mapping[str, Any], name: str, other: str) -> Quartiles | None:
    """How many times as fast as the other; None for the other itself."""
    return None if name == other else Quartiles(**timed[name]["times_as_fast"][other])


def _convolution(spec: TableSpec, row: Mapping[str, Any]) -> str:
    """What a row's layer is compared with: the first of its test."""
    return contender(next(other for other in spec.rows if other["test"] == row["test"]))


def speed_ratio(spec: TableSpec, measured: Mapping[str, Any], row_id: str, mode: str = "forward") -> float:
    """How many times as fast as its test's convolution the layer of a row is, in the median turn."""
    row = spec.row(row_id)
    ratio = _ratio(measured["layers"][KEPT][row["test"]][mode], contender(row), _convolution(spec, row))
    return ratio.median if ratio else 1.0


_COMPETITORS = {
    "conv3x3": "3×3 convolution",
    "depthwise3x3": "depthwise 3×3",
    "bsconv": "BSConv",
    "squeeze_excite": "squeeze-and-excite",
    "conv1x1": "1×1 convolution",
}


def pays_table(spec: TableSpec, measured: Mapping[str, Any]) -> Table:
    """When a layer pays: at each site, how many times as fast as each of its competitors it is."""
    columns = [
        Column("site"),
        Column("of"),
        Column("layer"),
        Column("what", "passes"),
        *(Column(name, f"× {label}", ".2f", quartiles=True) for name, label in _COMPETITORS.items()),
        Column("pays", "pays against"),
    ]
    rows = [row for site in spec.sites for row in _site_rows(site, measured["sites"][site["id"]])]
    return Table(
        "When a layer pays",
        columns,
        rows,
        "The competitor's time over the layer's, median and quartiles of turns, float32, freed memory kept. A layer "
        "pays against what it is faster than in more than three quarters of the turns.",
    )


def _site_rows(site: Mapping[str, Any], timed: Mapping[str, Any]) -> list[dict[str, Cell]]:
    layer = next(name for name in site["layers"] if name not in _COMPETITORS)
    where = site_of(site)
    rows: list[dict[str, Cell]] = []
    for mode, passes in _PASSES.items():
        ratios = {name: _ratio(timed[mode], layer, name) for name in site["layers"] if name in _COMPETITORS}
        won = [_COMPETITORS[name] for name, ratio in ratios.items() if ratio and ratio.low > 1]
        to = f" → {where.out}" if where.out_channels else ""
        rows.append(
            {
                "id": f"{site['id']}_{mode}",
                "site": f"{where.images}×{where.channels}{to}×{where.size}×{where.size}",
                "of": site["of"],
                "layer": {"fwht2d": "2D-FWHT", "bwht1d": "BWHT"}[layer],
                "what": passes,
                **ratios,
                "pays": ", ".join(won) or "nothing",
            }
        )
    return rows


def memory_change(spec: TableSpec, measured: Mapping[str, Any], row_id: str) -> float:
    """By what fraction the peak memory of a row's layer is above its test's convolution's."""
    row = spec.row(row_id)
    sizes = measured["layer_memory"][row["test"]]
    return sizes[contender(row)] / sizes[_convolution(spec, row)] - 1


def layer_ratios(spec: TableSpec, measured: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By the label of each layer but the convolutions, by passes: how many times as fast as its test's convolution."""
    return {
        f"{row['label']} ({row['test'].upper()})": {
            passes: speed_ratio(spec, measured, row["id"], mode) for mode, passes in _PASSES.items()
        }
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
    return {
        row["label"]: {name: row[key]["times_as_fast"]["median"] for name, key in _STEPS.items()}
        for row in measured["networks"]
        if row["policy"] != "none"
    }


_NETWORK_COLUMNS = (
    Column("network"),
    Column("parameters", form=","),
    Column("macs", "MACs (M)", ",.1f", 1e-6),
    *(
        column
        for batch in BATCHES
        for column in (
            Column(f"inference_{batch}_s", f"inference, batch {batch} (ms)", ".2f", 1e3),
            Column(f"inference_{batch}_ratio", f"× batch {batch}", ".2f", quartiles=True),
        )
    ),
    Column("training_s", f"training step, batch {TRAINING_BATCH} (ms)", ".2f", 1e3),
    Column("training_ratio", "× training", ".2f", quartiles=True),
    Column("training_bytes", "training, peak memory (MB)", ",.0f", 1e-6),
)


def _network_table(networks: list[Mapping[str, Any]]) -> Table:
    rows = []
    for row in networks:
        cells: dict[str, Cell] = {"network": row["label"], "training_bytes": row["training_bytes"]}
        cells |= {name: row["cost"][name] for name in ("parameters", "macs")}
        for key in _STEPS.values():
            ratio = None if row["policy"] == "none" else Quartiles(**row[key]["times_as_fast"])
            cells |= {f"{key}_s": row[key]["median"], f"{key}_ratio": ratio}
        rows.append(cells)
    return Table(
        "Speed of whole networks",
        _NETWORK_COLUMNS,
        rows,
        "Images of 3×32×32, the MobileNets with a CIFAR stem, channels_last, freed memory kept. Inference: float32, "
        "batch norm folded into what is in front of it (`whtnet.fuse_for_inference`), without a compiler. Training: in "
        'the precision that a run chooses. "×" is the time of the network without replacements over this one\'s.',
    )


def _devices_table(spec: TableSpec, measured: list[Mapping[str, Any]]) -> Table:
    return devices_table(
        (Column("what", "layer or network"), Column("passes")),
        [*_layers_by_device(spec, measured), *_networks_by_device(measured)],
        measured,
        "The time of the convolution, or of the network without replacements, over the layer's or the network's: "
        "median and quartiles of the turns, freed memory kept. A training step is in bfloat16 where the processor "
        "computes in it.",
    )


_OnDevices = Iterator[tuple[tuple[str, str], Sequence[Cell]]]


def _layers_by_device(spec: TableSpec, measured: list[Mapping[str, Any]]) -> _OnDevices:
    """The layers that the front page shows: label and passes, and the ratio on each device."""
    for row in spec.rows:
        base = _convolution(spec, row)
        for mode, passes in _PASSES.items() if row["id"] in spec.front["rows"] and base != contender(row) else ():
            timed = [one["layers"][KEPT][row["test"]][mode].get(contender(row)) for one in measured]
            ratios = [Shown(Quartiles(**one["times_as_fast"][base]), ".1f") if one else None for one in timed]
            yield (row["label"], passes), ratios


def _networks_by_device(measured: list[Mapping[str, Any]]) -> _OnDevices:
    """The networks with a policy, likewise."""
    networks = [{row["label"]: row for row in one["networks"]} for one in measured]
    changed = (row["label"] for one in measured for row in one["networks"] if row["policy"] != "none")
    for label in dict.fromkeys(changed):
        for passes, key in _STEPS.items():
            ratios = [Quartiles(**one[label][key]["times_as_fast"]) if label in one else None for one in networks]
            yield (label, passes), ratios
