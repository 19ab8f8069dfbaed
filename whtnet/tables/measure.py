"""Measuring what the speed table shows, every part in a process of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch

from whtnet.bench import MODES, Site, measure
from whtnet.engine import Progress
from whtnet.tables.spec import TableSpec

TESTS = {"2d": Site(10, 1024, 8), "1d": Site(10, 1024, 32)}
SIZES = tuple(2**k for k in range(1, 13))
BATCHES, TRAINING_BATCH = (1, 128), 128
KEPT = "kept"
"""Of :data:`whtnet.bench.MEMORY`: what all contenders of all tables have, but for the one that shows the difference."""

_POINTS = 1 << 20  # numbers that each size is timed on


def contender(row: Mapping[str, Any]) -> str:
    """Name of a row's layer in :data:`whtnet.bench.LAYERS`."""
    return row.get("contender", row["id"])


def measure_speed(spec: TableSpec, device: torch.device, seconds: float, on_step: Progress) -> dict[str, Any]:
    """Measure everything that a speed table shows.

    Args:
        spec: the table.
        device: where the layers and networks run.
        seconds: time for each contender of a comparison.
        on_step: called with the fraction done and what comes next.

    Returns:
        ``layers``: by memory (:data:`whtnet.bench.MEMORY`), by test, by mode, by name, what
        :func:`whtnet.bench.measure.time_layers` gives. ``layer_memory``: by test and name, bytes. ``sites``: by id, by
        mode, by name. ``sizes``: by name, by n, seconds. ``networks``: by row, cost, timings and bytes.
        ``conditions``: backend and environment variables.
    """
    # Other work on the machine is seen before there is any of ours.
    conditions = measure({"do": "conditions", "device": str(device)})
    names = {test: [contender(row) for row in spec.rows if row["test"] == test] for test in TESTS}
    # A compiler's own memory would be counted, and it takes a minute: compiled layers are timed once.
    plain = {test: [name for name in chosen if not name.endswith("_compiled")] for test, chosen in names.items()}
    steps = 4 * len(TESTS) + sum(map(len, plain.values())) + 2 * len(spec.sites) + len(BATCHES) + len(spec.networks) + 2
    meter = _Meter(device, steps, on_step)

    def timed(site: Site, layers: Sequence[str], memory: str, what: str, time: float) -> dict[str, Any]:
        task = {"do": "time_layers", "site": asdict(site), "names": layers, "seconds": time, "memory": memory}
        return {mode: meter(f"{what}, {mode}", mode=mode, **task) for mode in MODES}

    kept = {test: timed(site, names[test], KEPT, test, seconds) for test, site in TESTS.items()}
    fresh = {test: timed(site, plain[test], "default", test, seconds) for test, site in TESTS.items()}
    return {
        "layers": {KEPT: kept, "default": fresh},
        "layer_memory": {test: _layer_bytes(meter, test, kept[test], plain[test]) for test in TESTS},
        "sites": {
            site["id"]: timed(site_of(site), site["layers"], KEPT, site["id"], seconds / 5) for site in spec.sites
        },
        "sizes": meter("sizes", do="time_sizes", sizes=SIZES, points=_POINTS, seconds=seconds / 4, memory=KEPT),
        "networks": _measure_networks(meter, spec.networks, seconds),
        "conditions": conditions,
    }


def site_of(entry: Mapping[str, Any]) -> Site:
    """Of an entry of a specification's ``sites``."""
    return Site(**{field.name: entry[field.name] for field in fields(Site) if field.name in entry})


class _Meter:
    """Measures tasks one after another and tells how far it is."""

    def __init__(self, device: torch.device, total: int, on_step: Progress) -> None:
        self._where = {"device": str(device), "threads": torch.get_num_threads()}
        self._total, self._done, self._on_step = total, 0, on_step

    def __call__(self, what: str, **task: Any) -> dict[str, Any]:
        self._on_step(self._done / self._total, what)
        self._done += 1
        return measure({**task, **self._where}, pinned=True)


def _layer_bytes(meter: _Meter, test: str, timed: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    def peak(name: str) -> int:
        memory_format = timed["forward"][name]["memory_format"]
        task = {"do": "layer_memory", "site": asdict(TESTS[test]), "name": name, "memory_format": memory_format}
        return meter(f"{test}, memory of {name}", **task)["bytes"]

    return {name: peak(name) for name in names}


def _measure_networks(meter: _Meter, rows: Sequence[Mapping[str, Any]], seconds: float) -> list[dict[str, Any]]:
    networks = [{key: row[key] for key in ("backbone", "policy")} for row in rows]
    steps = {f"inference_{batch}": {"mode": "inference", "batch": batch, "seconds": seconds} for batch in BATCHES}
    steps["training"] = {"mode": "training", "batch": TRAINING_BATCH, "seconds": seconds}
    task = {"do": "time_networks", "networks": networks, "memory": KEPT}
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
