"""Measuring: clocks, memory, contenders; and the table and figures that come of it."""

import inspect
import json
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import whtnet.tables.measure as tables_measure
from whtnet.bench import LAYERS, MEMORY, BenchError, NetworkSpec, Site, compare, measure
from whtnet.bench.contenders import inference_call, layer_call, training_call
from whtnet.bench.measure import time_layers, time_networks
from whtnet.bench.timing import Timing
from whtnet.kernels import BACKENDS
from whtnet.tables import load_spec, speed_tables, to_csv, with_measurement
from whtnet.tables.devices import measurements, of_device
from whtnet.tables.figures import draw_growth, draw_ratios
from whtnet.tables.measure import TESTS, contender, measure_speed, site_of

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def test_compare_takes_turns_and_orders_percentiles():
    order = []
    timings = compare(
        {
            "slow": lambda: (order.append("s"), time.sleep(0.004)),
            "fast": lambda: (order.append("f"), time.sleep(0.001)),
        },
        seconds=0.05,
        calls=20,
    )
    assert list(timings) == ["slow", "fast"]
    for timing in timings.values():
        assert timing.low <= timing.median <= timing.high
        assert timing.calls >= 20
    assert 0.004 <= timings["slow"].median < 0.1
    assert timings["fast"].median < timings["slow"].median
    turns = "".join(order)
    assert "sf" in turns[4:]
    assert "fs" in turns[4:]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
def test_peak_memory():
    # In a process of its own: memory that other tests have freed, and training keeps, would be used again.
    code = """
import torch
from whtnet.bench import peak_memory
before = torch.ones(1 << 24)  # memory in use before does not count
print(peak_memory(lambda: torch.ones(1 << 24)), peak_memory(lambda: before.sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new, none = map(int, done.stdout.split())
    assert new > 60e6
    assert none < 10e6


def test_ratios_are_those_of_the_turns():
    fast, slow = (Timing(0, 0, 0, 3, turns) for turns in ((1.0, 2.0, 4.0), (10.0, 30.0, 80.0)))
    assert fast.times_as_fast(slow) == (15, 12.5, 17.5)
    assert slow.times_as_fast(fast).median == pytest.approx(1 / 15)


def test_squeeze_excite_equals_its_definition():
    layer, x = LAYERS["squeeze_excite"](Site(2, 1024, 5)), torch.randn(2, 1024, 5, 5)
    pooled, (reduce, expand) = x.flatten(2).mean(2), (layer.fc1, layer.fc2)
    hidden = (pooled @ reduce.weight.flatten(1).T + reduce.bias).clamp(min=0)
    scale = ((hidden @ expand.weight.flatten(1).T + expand.bias + 3) / 6).clamp(0, 1)
    torch.testing.assert_close(layer(x), torch.einsum("nchw,nc->nchw", x, scale))


SPEC = load_spec(ROOT / "experiments", "speed")
PLACES = [(TESTS[test], [contender(row) for row in SPEC.rows if row["test"] == test]) for test in TESTS]
PLACES += [(site_of(site), site["layers"]) for site in SPEC.sites]


@pytest.mark.parametrize(("site", "names"), PLACES, ids=lambda value: str(value) if isinstance(value, Site) else "")
def test_layers_of_a_site_do_the_same_job(site, names):
    x = torch.randn(1, *site.shape[1:])
    for name in names:
        if not name.endswith("_compiled"):
            with torch.no_grad():
                assert LAYERS[name](site)(x).shape == (1, site.out, site.size, site.size), name


def test_calls_of_both_modes():
    site = Site(10, 64, 8)
    _, build = layer_call(site, "fwht2d", "channels_last", "forward", CPU)
    assert build()().is_contiguous(memory_format=torch.channels_last)
    _, build = layer_call(site, "fwht2d", "NCHW", "training", CPU)
    gradients = build()()
    assert [tuple(g.shape) for g in gradients] == [(10, 64, 8, 8), (8, 8), (8, 8)]
    _, build = layer_call(Site(2, 24, 4, 144), "bwht1d", "NCHW", "training", CPU)
    assert [tuple(g.shape) for g in build()()] == [(2, 24, 4, 4), (8,), (8,)]


def test_layers_are_compared_with_each_other():
    timed = time_layers({"images": 2, "channels": 16, "size": 4}, ["conv3x3", "fwht2d", "copy"], "forward", 0.01, CPU)
    assert list(timed) == ["conv3x3", "fwht2d", "copy"]
    for name, timing in timed.items():
        assert timing["calls"] >= 30
        assert set(timing["times_as_fast"]) == set(timed) - {name}
        assert json.loads(json.dumps(timing)) == timing
    assert timed["copy"]["times_as_fast"]["conv3x3"]["median"] > 1


def test_networks():
    spec = NetworkSpec({"name": "resnet20"}, "paper")
    model, cost = spec.build(CPU)
    assert cost["parameters"] == 133_082
    folded = inference_call(model, spec.input_size, 2, CPU)()
    assert folded.shape == (2, 10)
    before = [p.detach().clone() for p in model.parameters()]
    training_call(model, spec.input_size, 4, CPU)()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True) if a.dim() > 1)
    assert isinstance(model, nn.Module)


def test_folded_networks_compute_the_same():
    model = NetworkSpec({"name": "resnet20"}, "paper").build(CPU)[0].eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.running_mean)
    torch.manual_seed(3)
    got = inference_call(model, (3, 32, 32), 2, CPU)()
    torch.manual_seed(3)
    torch.testing.assert_close(got, model(torch.randn(2, 3, 32, 32)), atol=1e-4, rtol=1e-4)


def test_networks_are_compared_with_the_unreplaced_one():
    networks = [{"backbone": {"name": "resnet20"}, "policy": policy} for policy in ("none", "paper")]
    timed = time_networks(networks, "inference", 1, 0.01, CPU)
    assert [cost["parameters"] for cost in timed["costs"]] == [273_066, 133_082]
    assert timed["timings"][0]["times_as_fast"] == {"median": 1, "low": 1, "high": 1}
    assert timed["timings"][1]["times_as_fast"]["median"] > 0


@pytest.mark.slow
def test_measuring_in_a_fresh_process():
    result = measure({"do": "time_sizes", "sizes": [4, 64], "points": 1 << 12, "seconds": 0.02})
    assert list(result) == ["bwht1d", "conv1x1", "copy"]
    assert all(list(values) == ["4", "64"] for values in result.values())
    assert measure({"do": "conditions", "memory": "kept"})["backend"] in BACKENDS
    with pytest.raises(BenchError, match="nothing"):
        measure({"do": "nothing"})


def pretend(task, *, pinned=False):
    """What a task gives, without the time that it takes; its arguments must be those of its function."""
    task = dict(task)
    function = getattr(sys.modules["whtnet.bench.measure"], task.pop("do"))  # the package has a function of that name
    task.pop("threads", None)
    memory = task.pop("memory", "default")
    inspect.signature(function).bind(**{**task, "device": CPU})
    assert memory in MEMORY
    quartiles = dict.fromkeys(("median", "low", "high"), 1.0)
    timing = {**quartiles, "calls": 30, "memory_format": "NCHW"}
    match function.__name__:
        case "time_layers":
            others = {name: quartiles for name in task["names"]}
            return {name: {**timing, "times_as_fast": others} for name in task["names"]}
        case "time_networks":
            count = len(task["networks"])
            return {"timings": [{**timing, "times_as_fast": quartiles}] * count, "costs": [{}] * count}
        case "time_sizes":
            return {"bwht1d": {}, "conv1x1": {}, "copy": {}}
        case "conditions":
            assert not pinned
            return {"backend": "cpu", "variables": {}, "load": 0.0}
    return {"bytes": 1}


def test_every_task_of_the_table_is_one(monkeypatch):
    steps = []
    monkeypatch.setattr(tables_measure, "measure", pretend)
    stored = measure_speed(SPEC, CPU, 0.01, lambda fraction, what: steps.append(fraction))
    assert set(stored["sites"]) == {site["id"] for site in SPEC.sites}
    assert len(stored["networks"]) == len(SPEC.networks)
    assert stored["layers"]["kept"]["2d"]["training"].keys() > stored["layers"]["default"]["2d"]["training"].keys()
    assert steps[-1] < 1 <= steps[-1] + 1.01 * (steps[-1] - steps[-2])


@pytest.fixture
def measured():
    """Every contender takes half a second, a third, … of its base's time, in every turn."""

    def timing(names, base):
        seconds = {name: base / (i + 1) for i, name in enumerate(names)}
        return {
            name: {
                **dict.fromkeys(("median", "low", "high"), mine),
                "calls": 9,
                "memory_format": "NCHW",
                "times_as_fast": {
                    other: dict.fromkeys(("median", "low", "high"), theirs / mine)
                    for other, theirs in seconds.items()
                    if other != name
                },
            }
            for name, mine in seconds.items()
        }

    names = {test: [contender(row) for row in SPEC.rows if row["test"] == test] for test in TESTS}
    modes = {
        test: {mode: timing(names[test], base) for mode in ("forward", "training")}
        for test, base in (("2d", 3.0), ("1d", 5.0))
    }
    networks = [
        {
            "label": policy,
            "backbone": {"name": "resnet20"},
            "policy": policy,
            "cost": {"parameters": 1000, "macs": 2e6},
            **{
                key: {"median": 1 / speed, "times_as_fast": {"median": speed, "low": speed, "high": speed}}
                for key in ("inference_1", "inference_128", "training")
            },
            "training_bytes": 7e6,
        }
        for policy, speed in (("none", 1.0), ("paper", 2.0))
    ]
    return {
        "layers": dict.fromkeys(MEMORY, modes),
        "layer_memory": {test: {name: 8e6 / (i + 1) for i, name in enumerate(names[test])} for test in TESTS},
        "sites": {
            site["id"]: {
                "forward": timing(site["layers"][::-1], 1.0),  # ours is the fastest
                "training": timing(site["layers"], 1.0),  # and here the slowest
            }
            for site in SPEC.sites
        },
        "sizes": {name: {"2": 1e-9, "16": 4e-9} for name in ("bwht1d", "conv1x1", "copy")},
        "networks": networks,
        "conditions": {"backend": "cpu", "variables": {}, "load": 0.25},
        "environment": where("a machine"),
    }


def where(device):
    return {"device_name": device, "threads": 2, "commit": "0" * 40, "dirty": False, "versions": {"torch": "2.15"}}


def test_the_table_compares_with_the_convolution(measured):
    layers, fresh, pays, networks = speed_tables(SPEC, measured)
    rows = {row[1]: dict(zip(layers.headings, row, strict=True)) for row in layers.texts if row[0] == "10×1024×8×8"}
    ours = rows["2D-FWHT"]
    assert (ours["forward (ms)"], ours["× both"]) == ("600.000 (600.000–600.000)", "5.0 (5.0–5.0)")
    assert (ours["peak memory (MB)"], ours["memory"]) == ("1.6", "-80.0%")
    assert (ours["published ×"], ours["published memory"], ours["source"]) == ("24", "-19.51%", "BWHT, abstract")
    assert rows["3×3 convolution, bias, ReLU"]["× forward"] == ""
    assert len(fresh.rows) == len(layers.rows)
    assert [row[4] for row in networks.texts] == ["", "2.00 (2.00–2.00)"]
    assert layers.notes[0].startswith("Measured on a machine, 2 threads, torch 2.15, commit 00000000, each bound to a ")
    assert "processor, backend `cpu`, load average before 0.2." in layers.notes[0]
    head, line = to_csv(layers).splitlines()[:6:5]
    assert head.startswith("test,layer,format,forward_s_median,forward_s_low,forward_s_high,forward_ratio_median,")
    assert line.startswith("10×1024×8×8,2D-FWHT,NCHW,0.6,0.6,0.6,5,5,5,")
    first, second = ([*pays.rows[i].values()][-1] for i in (0, 1))
    assert first == "3×3 convolution, depthwise 3×3, BSConv, squeeze-and-excite"
    assert second == "nothing"


def test_measurements_of_other_processors_stand_beside_the_first(measured):
    slower = {**measured, "networks": [], "environment": where("another")}
    stored = with_measurement(with_measurement(None, measured), slower)
    again = {**slower, "networks": measured["networks"]}
    assert with_measurement(None, measured) == measured
    assert with_measurement(stored, again) == {**measured, "others": [again]}
    assert with_measurement(stored, measured | {"sizes": {}}) == {**measured, "sizes": {}, "others": [slower]}
    assert of_device(stored, slower) == slower
    assert of_device(stored, {"environment": where("a third")}) == of_device(stored, measured) == measured
    *same, devices = speed_tables(SPEC, stored)
    assert [table.texts for table in same] == [table.texts for table in speed_tables(SPEC, measured)]
    assert devices.headings[2:] == ["× a machine", "× another"]
    assert ["2D-FWHT", "forward + backward", "5.0 (5.0–5.0)", "5.0 (5.0–5.0)"] in devices.texts
    assert ["paper", "training step", "2.00 (2.00–2.00)", ""] in devices.texts
    control = [{**measured["networks"][1], "label": "control"}]  # measured there alone
    texts = speed_tables(SPEC, with_measurement(measured, {**slower, "networks": control}))[-1].texts
    assert ["control", "training step", "", "2.00 (2.00–2.00)"] in texts
    assert [note.split(",")[0] for note in devices.notes] == ["Measured on a machine", "Measured on another"]


def test_figures(measured, tmp_path):
    for suffix in (".svg", ".png"):
        draw_ratios(SPEC, measured, tmp_path / "a" / f"ratios{suffix}")
        draw_growth(measured, tmp_path / "a" / f"growth{suffix}")
    for name in ("ratios", "growth"):
        svg = (tmp_path / "a" / f"{name}.svg").read_bytes()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert (tmp_path / "a" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    draw_growth(measured, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == svg


def test_the_committed_measurement_is_whole():
    stored = json.loads((ROOT / "results" / "speed.json").read_text())
    measured = [row["label"] for one in measurements(stored) for row in one["networks"]]
    assert set(measured) == {row["label"] for row in SPEC.networks}
    assert len(speed_tables(SPEC, stored)[0].rows) == len(SPEC.rows)
