"""Measuring what the speed table shows, every part in a process of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from whtnet.bench import MEMORY, measure
from whtnet.tables.spec import TableSpec

TESTS = {"2d": "2-D, 10×1024×8×8", "1d": "1-D, 10×1024×32×32"}
SIZES = tuple(2**k for k in range(1, 13))
BATCHES, TRAINING_BATCH = (1, 128), 128
_POINTS = 1 << 20  # numbers that each size is timed on

Step = Callable[[float, str], None]


def contender(row: Mapping[str, Any]) -> str:
    """Name of a row's layer in :mod:`whtnet.bench.contenders`."""
    return row.get("contender", row["id"])


def measure_speed(spec: TableSpec, device: torch.device, seconds: float, on_step: Step) -> dict[str, Any]:
    """Measure everything that a speed table shows.

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
    names = {test: [contender(row) for row in spec.rows if row["test"] == test] for test in TESTS}
    # A compiler's own memory would be counted, and it takes a minute: compiled layers are timed once.
    plain = {test: [name for name in chosen if not name.endswith("_compiled")] for test, chosen in names.items()}
    layer_tasks = 2 * len(MEMORY) * len(TESTS) + sum(map(len, plain.values()))
    meter = _Meter(device, layer_tasks + len(BATCHES) + len(spec.networks) + 3, on_step)
    layers = {
        memory: {
            test: _time_layers(meter, test, (names if memory == "default" else plain)[test], memory, seconds)
            for test in TESTS
        }
        for memory in MEMORY
    }
    return {
        "layers": layers,
        "layer_memory": {test: _layer_bytes(meter, test, layers["default"][test], plain[test]) for test in TESTS},
        "sizes": meter("sizes", do="time_sizes", sizes=SIZES, points=_POINTS, seconds=seconds / 4),
        "networks": _measure_networks(meter, spec.networks, seconds),
        "conditions": meter("conditions", do="conditions"),
    }


class _Meter:
    """Measures tasks one after another and tells how far it is."""

    def __init__(self, device: torch.device, total: int, on_step: Step) -> None:
        self._where = {"device": str(device), "threads": torch.get_num_threads()}
        self._total, self._done, self._on_step = total, 0, on_step

    def __call__(self, what: str, **task: Any) -> dict[str, Any]:
        self._on_step(self._done / self._total, what)
        self._done += 1
        return measure({**task, **self._where})


def _time_layers(meter: _Meter, test: str, names: Sequence[str], memory: str, seconds: float) -> dict[str, Any]:
    task = {"do": "time_layers", "test": test, "names": names, "seconds": seconds, "memory": memory}
    return {mode: meter(f"{test}, {mode}", mode=mode, **task) for mode in ("forward", "training")}


def _layer_bytes(meter: _Meter, test: str, timed: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    def peak(name: str) -> int:
        memory_format = timed["forward"][name]["memory_format"]
        task = {"do": "layer_memory", "test": test, "name": name, "memory_format": memory_format}
        return meter(f"{test}, memory of {name}", **task)["bytes"]

    return {name: peak(name) for name in names}


def _measure_networks(meter: _Meter, rows: Sequence[Mapping[str, Any]], seconds: float) -> list[dict[str, Any]]:
    networks = [{key: row[key] for key in ("backbone", "policy")} for row in rows]
    steps = {f"inference_{batch}": {"mode": "inference", "batch": batch, "seconds": seconds} for batch in BATCHES}
    steps["training"] = {"mode": "training", "batch": TRAINING_BATCH, "seconds": 3 * seconds}
    task = {"do": "time_networks", "networks": networks, "memory": "kept"}  # kept, as training does
    timed = {key: meter(f"networks, {key}", **task, **step) for key, step in steps.items()}
    return [
        {
            "label": row["label"],
            **network,
            "cost": timed["training"]["costs"][i],
            **{key: part["timings"][i] for key, part in timed.items()},
            "training_bytes": _network_bytes(meter, row["label"], network),
        }
        for i, (row, network) in enumerate(zip(rows, networks, strict=True))
    ]


def _network_bytes(meter: _Meter, label: str, network: Mapping[str, Any]) -> int:
    return meter(f"memory of {label}", do="network_memory", network=network, batch=TRAINING_BATCH)["bytes"]
