"""The table of exported networks: each runtime's files, their size, speed and memory, beside the baseline's."""

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from whtnet.bench import measure
from whtnet.engine import Progress
from whtnet.export import RUNTIMES
from whtnet.tables.devices import devices_table, measurements
from whtnet.tables.spec import TableSpec
from whtnet.tables.speed import CLAIM_COLUMNS
from whtnet.tables.table import NOT_AT_HAND, Cell, Column, Table
from whtnet.tables.training import place

THREADS, BATCHES = (1, 2), (1, 64)
_PROTOCOL = "tflite"


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def measure_deployment(spec: TableSpec, seconds: float, on_step: Progress) -> dict[str, Any]:
    """Export and measure everything that a table of this kind shows, each part in a process of its own.

    Args:
        spec: the table.
        seconds: time for each contender of a comparison.
        on_step: called with the fraction done and what comes next.

    Returns:
        ``runtimes``: by row, ``missing`` (a command) or for each network ``bytes``, ``difference``, ``memory``, by
        threads and batch ``timings``, and by batch the ``profile`` of a runtime that tells it. ``layers``: the same but
        for profiles for each layer of the paper's protocol.
    """
    there = [row for row in spec.rows if not RUNTIMES[row["runtime"]].missing()]
    with tempfile.TemporaryDirectory() as folder:
        runner = _Runner(folder, seconds, len(there) + (_PROTOCOL in [row["runtime"] for row in there]), on_step)
        runtimes = {
            row["id"]: runner.networks(row, spec.networks) if row in there else {"missing": _remedy(row["runtime"])}
            for row in spec.rows
        }
        lacking = RUNTIMES[_PROTOCOL].missing()
        layers = {"missing": _remedy(_PROTOCOL)} if lacking else runner.layers(spec.layers)
    return {"runtimes": runtimes, "layers": layers}


def _remedy(runtime: str) -> str:
    return f"not installed: pip install {RUNTIMES[runtime].packages}"


class _Runner:
    """Measures in processes whose files lie in ``folder``, and tells how far it is."""

    def __init__(self, folder: str, seconds: float, total: int, on_step: Progress) -> None:
        self._folder, self._seconds, self._total, self._done = folder, seconds, total, 0
        self._on_step = on_step

    def networks(self, row: Mapping[str, Any], networks: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
        runtime = row["runtime"]
        self._begin(row["label"])
        paths = [f"{self._folder}/{runtime}-{i}-{RUNTIMES[runtime].file}" for i in range(len(networks))]
        entries = []
        for network, path in zip(networks, paths, strict=True):
            of = {key: network[key] for key in ("backbone", "policy")}
            written = measure({"do": "export_network", "network": of, "runtime": runtime, "path": path})
            memory = measure({"do": "export_memory", "runtime": runtime, "path": path, "batch": BATCHES[-1]})
            entries.append({**written, "memory": memory["bytes"], "timings": {}})
            if RUNTIMES[runtime].profile:
                task = {"do": "profile_export", "runtime": runtime, "path": path, "batches": BATCHES}
                entries[-1]["profile"] = measure(task)
        task = {"do": "time_exports", "runtime": runtime, "paths": paths, "batches": BATCHES, "seconds": self._seconds}
        for threads in THREADS:
            timed = measure({**task, "threads": threads})
            for i, entry in enumerate(entries):
                entry["timings"][str(threads)] = {batch: timings[i] for batch, timings in timed.items()}
        return {"networks": entries}

    def layers(self, layers: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
        self._begin("the paper's protocol")
        paths = [f"{self._folder}/{row['layer']}.tflite" for row in layers]
        entries = {}
        for row, path in zip(layers, paths, strict=True):
            written = measure({"do": "write_tflite_layer", "layer": row["layer"], "path": path})
            memory = measure({"do": "tflite_layer_memory", "path": path})
            entries[row["layer"]] = {**written, "memory": memory["bytes"], "timings": {}}
        for threads in THREADS:
            task = {"do": "time_tflite_layers", "paths": paths, "seconds": self._seconds, "threads": threads}
            for entry, timing in zip(entries.values(), measure(task)["timings"], strict=True):
                entry["timings"][str(threads)] = timing
        return entries

    def _begin(self, what: str) -> None:
        self._on_step(self._done / self._total, what)
        self._done += 1


def deployment_tables(spec: TableSpec, stored: Mapping[str, Any]) -> list[Table]:
    """The tables of networks, layers, profiles and other processors.

    Args:
        spec: the table.
        stored: what :func:`~whtnet.tables.devices.with_measurement` made of :func:`measure_deployment`'s results.
    """
    everywhere = measurements(stored)
    note = f"Measured on {place(stored['environment'])}. Each file's logits are within 1e-4 of the model's."
    tables = [
        Table(spec.title, _NETWORK_COLUMNS, _networks(spec, stored), spec.intro, [note]),
        Table(
            "The paper's speed test in LiteRT",
            _LAYER_COLUMNS,
            _layer_rows(spec, stored["layers"]),
            'Ten inputs of 8×8×1024, one at a time, float32. "×" is the time of the convolution over the layer\'s.',
        ),
        *_profile_tables(spec, everywhere),
    ]
    return [*tables, _devices_table(spec, everywhere)] if len(everywhere) > 1 else tables


_TIMES = [(threads, batch) for batch in BATCHES for threads in THREADS]

_NETWORK_COLUMNS = (
    Column("runtime"),
    Column("network"),
    Column("bytes", "file (kB)", ",.0f", 1e-3),
    *(
        column
        for threads, batch in _TIMES
        for column in (
            Column(f"s_{threads}_{batch}", f"batch {batch}, {_threads(threads)} (ms)", ".2f", 1e3),
            Column(f"ratio_{threads}_{batch}", "×", ".2f"),
        )
    ),
    Column("memory", "peak memory (MB)", ".1f", 1e-6),
    Column("difference", "difference", ".0e"),
)


def _networks(spec: TableSpec, measured: Mapping[str, Any]) -> list[dict[str, Cell]]:
    return [cells for row in spec.rows for cells in _network_rows(spec, row, measured["runtimes"].get(row["id"]))]


def _network_rows(spec: TableSpec, row: Mapping[str, Any], result: Mapping[str, Any] | None) -> list[dict[str, Cell]]:
    if result is None or "missing" in result:
        reason = result["missing"] if result else NOT_AT_HAND
        return [{"id": row["id"], "runtime": row["label"], "network": reason}]
    base = result["networks"][0]["timings"]
    rows = []
    for network, entry in zip(spec.networks, result["networks"], strict=True):
        cells: dict[str, Cell] = {"id": f"{row['id']}, {network['label']}", "runtime": row["label"]}
        cells |= {"network": network["label"], **{key: entry[key] for key in ("bytes", "memory", "difference")}}
        for threads, batch in _TIMES:
            mine, theirs = (timings[str(threads)][str(batch)]["median"] for timings in (entry["timings"], base))
            cells |= {f"s_{threads}_{batch}": mine, f"ratio_{threads}_{batch}": theirs / mine}
        rows.append(cells)
    return rows


_LAYER_COLUMNS = (
    Column("layer"),
    *(
        column
        for threads in THREADS
        for column in (
            Column(f"s_{threads}", f"{_threads(threads)} (ms)", ".2f", 1e3),
            Column(f"ratio_{threads}", "×", ".1f"),
        )
    ),
    Column("memory", "peak memory (MB)", ".1f", 1e-6),
    *CLAIM_COLUMNS,
)


def _layer_rows(spec: TableSpec, measured: Mapping[str, Any]) -> list[dict[str, Cell]]:
    if "missing" in measured:
        return [{"layer": row["label"], "source": measured["missing"]} for row in spec.layers]
    base = measured[spec.layers[0]["layer"]]
    rows = []
    for row in spec.layers:
        entry, published = measured[row["layer"]], row.get("published", {})
        cells: dict[str, Cell] = {"id": row["layer"], "layer": row["label"], "memory": entry["memory"]}
        if entry is not base:
            cells["memory_change"] = entry["memory"] / base["memory"] - 1
        if published:
            cells |= {"published_ratio": published["speed"], "published_memory_change": published["memory"]}
            cells["source"] = published["source"]
        for threads in THREADS:
            mine, theirs = (timings[str(threads)]["median"] for timings in (entry["timings"], base["timings"]))
            cells |= {f"s_{threads}": mine, f"ratio_{threads}": theirs / mine}
        rows.append(cells)
    return rows


def _profile_tables(spec: TableSpec, measured: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Of each runtime that tells it: milliseconds by kind of operator, on each device where that was asked."""
    return [
        _profile_table(spec, row, [network["profile"] for network in networks], one["environment"])
        for one in measured
        for row in spec.rows
        if (networks := one["runtimes"].get(row["id"], {}).get("networks")) and networks[0].get("profile")
    ]


def _profile_table(
    spec: TableSpec, row: Mapping[str, Any], profiles: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]
) -> Table:
    shown = [
        (f"{network['label']}, batch {batch} (ms)", profile[str(batch)])
        for batch in BATCHES
        for network, profile in zip(spec.networks, profiles, strict=True)
    ]
    operators = sorted({name for _, times in shown for name in times}, key=lambda name: -shown[-1][1].get(name, 0))
    rows: list[dict[str, Cell]] = [
        {"operator": name, **{heading: times.get(name) for heading, times in shown}} for name in operators
    ]
    rows.append({"operator": "all", **{heading: sum(times.values()) for heading, times in shown}})
    return Table(
        f"Where {row['label']}'s time goes",
        [Column("operator"), *(Column(heading, form=".3f", scale=1e3) for heading, _ in shown)],
        rows,
        "By kind of operator, one thread; the median of each node's calls, summed. A convolution takes the sum and the "
        "ReLU behind it along.",
        [f"Measured on {place(environment)}."],
    )


def _devices_table(spec: TableSpec, measured: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    networks = [{cells["id"]: cells for cells in _networks(spec, one)} for one in measured]
    for row, network in itertools.product(spec.rows, spec.networks[1:]):
        cells = [one.get(f"{row['id']}, {network['label']}", {}) for one in networks]
        for threads, batch in _TIMES:
            texts = (f"{network['label']} in {row['label']}", f"batch {batch}, {_threads(threads)}")
            rows.append((texts, [one.get(f"ratio_{threads}_{batch}") for one in cells]))
    layers = [{cells["layer"]: cells for cells in _layer_rows(spec, one["layers"])} for one in measured]
    for layer, threads in itertools.product(spec.layers[1:], THREADS):
        texts = (f"{layer['label']} in LiteRT", f"ten images, {_threads(threads)}")
        rows.append((texts, [one[layer["label"]].get(f"ratio_{threads}") for one in layers]))
    return devices_table(
        (Column("what", "network or layer"), Column("when")),
        rows,
        measured,
        "The time of the network without the policy, or of the convolution, over the network's or the layer's.",
    )
