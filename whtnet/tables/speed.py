"""The speed table: layers against the convolutions they replace, whole networks against their baselines."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from whtnet.bench import MEMORY, measure
from whtnet.tables.render import NOT_AT_HAND, Table
from whtnet.tables.spec import TableSpec

TESTS = {"2d": "2-D, 10×1024×8×8", "1d": "1-D, 10×1024×32×32"}
SIZES = tuple(2**k for k in range(1, 13))
_POINTS = 1 << 20  # numbers that each size is timed on
_TRAINING_BATCH, _BATCHES = 128, (1, 128)

_MODES = {f"inference, batch {batch}": f"inference_{batch}" for batch in _BATCHES} | {"training step": "training"}

Step = Callable[[float, str], None]


def measure_speed(spec: TableSpec, device: torch.device, seconds: float, on_step: Step) -> dict[str, Any]:
    """Measure everything that a speed table shows; every part in a process of its own.

    Args:
        spec: the table.
        device: where the layers and networks run.
        seconds: time for each contender of a comparison.
        on_step: called with the fraction done and what comes next.

    Returns:
        ``layers``: by memory (:data:`whtnet.bench.MEMORY`), by test, by mode, by name: a timing and the best memory
        format. ``layer_memory``: by test and name, bytes. ``sizes``: by name, by n, seconds.
        ``networks``: by row, cost, timings and bytes. ``conditions``: backend and environment variables.
    """
    networks = [{key: network[key] for key in ("backbone", "policy")} for network in spec.networks]
    names = {test: [_contender(row) for row in spec.rows if row["test"] == test] for test in TESTS}
    total = 2 * len(MEMORY) * len(TESTS) + sum(map(len, names.values())) + len(_BATCHES) + len(networks)
    done = 0

    def run(what: str, **task: Any) -> dict[str, Any]:
        nonlocal done
        on_step(done / total, what)
        threads = torch.get_num_threads()
        result = measure({**task, "device": str(device), "threads": threads})
        done += 1
        return result

    layers: dict[str, Any] = {memory: {} for memory in MEMORY}
    for memory, test in itertools.product(MEMORY, TESTS):
        # Compiling takes a minute.
        chosen = [name for name in names[test] if memory == "recycled" or not name.endswith("_compiled")]
        layers[memory][test] = {
            mode: run(
                f"{test}, {mode}",
                do="time_layers",
                test=test,
                names=chosen,
                mode=mode,
                seconds=seconds,
                memory=memory,
            )
            for mode in ("forward", "training")
        }
    layer_memory = {
        test: {
            name: run(
                f"{test}, memory of {name}",
                do="layer_memory",
                test=test,
                name=name,
                memory_format=layers["recycled"][test]["forward"][name]["memory_format"],
            )["bytes"]
            for name in names[test]
            if not name.endswith("_compiled")  # the compiler itself would be counted
        }
        for test in TESTS
    }
    sizes = run("sizes", do="time_sizes", sizes=SIZES, points=_POINTS, seconds=seconds / 4)
    steps = [(f"inference_{batch}", "inference", batch, seconds) for batch in _BATCHES]
    steps.append(("training", "training", _TRAINING_BATCH, 3 * seconds))
    timed = {
        key: run(
            f"networks, {key}",
            do="time_networks",
            networks=networks,
            mode=mode,
            batch=batch,
            seconds=time,
            memory="kept",  # as training does
        )
        for key, mode, batch, time in steps
    }
    rows = [
        {
            "label": row["label"],
            **network,
            "cost": timed["training"]["costs"][i],
            **{key: part["timings"][i] for key, part in timed.items()},
            "training_bytes": run(
                f"memory of {row['label']}", do="network_memory", network=network, batch=_TRAINING_BATCH
            )["bytes"],
        }
        for i, (row, network) in enumerate(zip(spec.networks, networks, strict=True))
    ]
    conditions = measure({"do": "conditions", "device": str(device)})
    return {"layers": layers, "layer_memory": layer_memory, "sizes": sizes, "networks": rows, "conditions": conditions}


def speed_tables(spec: TableSpec, measured: Mapping[str, Any], place: str) -> list[Table]:
    """The tables of layers and of networks from what :func:`measure_speed` returned; ``place`` says where that was."""
    backend = measured["conditions"]["backend"]
    notes = [f"Measured on {place}, backend `{backend}`, default allocator."]
    return [
        Table(
            spec.title,
            _LAYER_COLUMNS,
            _layer_rows(spec, measured, "recycled"),
            spec.intro,
            notes,
            ("layer", "format", "source"),
        ),
        *(
            Table(
                f"The same with {title}",
                _LAYER_COLUMNS[:7],
                [row[:7] for row in _layer_rows(spec, measured, memory)],
                intro,
                text_columns=("layer", "format"),
            )
            for memory, (title, intro) in _OTHER_MEMORY.items()
        ),
        _network_table(measured["networks"]),
    ]


_OTHER_MEMORY = {
    "fresh": (
        "fresh memory",
        "After `whtnet.recycle_results(0)` the layers' results too come from the system in fresh pages each time, "
        "which for 42 MB costs more than the layer.",
    ),
    "kept": (
        "kept memory",
        "After `whtnet.keep_freed_memory()`, as in training, the C library keeps freed memory, for all contenders.",
    ),
}

_LAYER_COLUMNS = [
    "test",
    "layer",
    "format",
    "forward (ms)",
    "× forward",
    "forward + backward (ms)",
    "× both",
    "peak memory (MB)",
    "memory",
    "published ×",
    "published memory",
    "source",
]


def _contender(row: Mapping[str, Any]) -> str:
    return row.get("contender", row["id"])


def _layer_rows(spec: TableSpec, measured: Mapping[str, Any], memory: str) -> list[list[str]]:
    rows = []
    for row in spec.rows:
        name, test = _contender(row), row["test"]
        modes, size = measured["layers"][memory][test], measured["layer_memory"][test]
        if name not in modes["forward"]:
            continue
        first = next(_contender(r) for r in spec.rows if r["test"] == test)
        published = row.get("published") or {}
        times = [(modes[mode][name]["median"], modes[mode][first]["median"]) for mode in ("forward", "training")]
        rows.append(
            [
                TESTS[test],
                row["label"],
                modes["forward"][name]["memory_format"],
                *(cell for mine, base in times for cell in (f"{mine * 1e3:.3f}", f"{base / mine:.1f}")),
                f"{size[name] / 1e6:.1f}" if name in size else "",
                f"{size[name] / size[first] - 1:+.1%}" if name in size and name != first else "",
                f"{published['speed']:g}" if "speed" in published else NOT_AT_HAND * bool(published),
                f"{published['memory']:+.2%}" if "memory" in published else NOT_AT_HAND * bool(published),
                published.get("source", ""),
            ]
        )
    return rows


def layer_ratios(spec: TableSpec, measured: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """By the label of each layer but the convolutions: how many times as fast as its test's convolution it is.

    Returns:
        Two ratios of medians, of the forward pass and of forward and backward.
    """
    ratios = {}
    for row in (row for row in spec.rows if "conv" not in row["id"]):
        modes = measured["layers"]["recycled"][row["test"]]
        base = next(_contender(r) for r in spec.rows if r["test"] == row["test"])
        forward, both = (
            modes[m][base]["median"] / modes[m][_contender(row)]["median"] for m in ("forward", "training")
        )
        ratios[f"{row['label']} ({row['test'].upper()})"] = (forward, both)
    return ratios


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


def _network_table(networks: list[Mapping[str, Any]]) -> Table:
    body = []
    for row in networks:
        base = _unreplaced(row, networks)
        cells = [row["label"], f"{row['cost']['parameters']:,}", f"{row['cost']['macs'] / 1e6:,.1f}"]
        for key in (*(f"inference_{batch}" for batch in _BATCHES), "training"):
            mine, theirs = row[key]["median"], base[key]["median"]
            cells += [f"{mine * 1e3:.2f}", f"{theirs / mine:.2f}"]
        body.append([*cells, f"{row['training_bytes'] / 1e6:,.0f}"])
    columns = ["network", "parameters", "MACs (M)"]
    for batch in _BATCHES:
        columns += [f"inference, batch {batch} (ms)", f"× batch {batch}"]
    columns += [f"training step, batch {_TRAINING_BATCH} (ms)", "× training", "training, peak memory (MB)"]
    return Table(
        "Speed of whole networks",
        columns,
        body,
        "Images of 3×32×32, the MobileNets with a CIFAR stem; precision and memory format as training chooses them, "
        "freed memory kept. "
        '"×" is the time of the network without replacements over this one\'s.',
    )
