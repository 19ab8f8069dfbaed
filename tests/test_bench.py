"""Measuring: clocks, memory, contenders; and the table and figures that come of it."""

import json
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from whtnet.bench import LAYER_TESTS, MEMORY, BenchError, NetworkSpec, compare, measure, peak_memory
from whtnet.bench.contenders import Copy, inference_call, layer_call, training_call
from whtnet.kernels import BACKENDS
from whtnet.tables import load_spec, speed_tables
from whtnet.tables.figures import draw_growth, draw_ratios

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
    )
    assert list(timings) == ["slow", "fast"]
    for timing in timings.values():
        assert timing.low <= timing.median <= timing.high
        assert timing.calls >= 3
    assert 0.004 <= timings["slow"].median < 0.1
    assert timings["fast"].median < timings["slow"].median
    turns = "".join(order)
    assert "sf" in turns[4:]
    assert "fs" in turns[4:]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
def test_peak_memory():
    before = torch.ones(1 << 24)  # memory in use before does not count
    assert peak_memory(lambda: torch.ones(1 << 24)) > 60e6
    assert peak_memory(lambda: before.sum()) < 10e6


def test_squeeze_excite_equals_its_definition():
    layer, x = LAYER_TESTS["2d"].layers["squeeze_excite"](), torch.randn(2, 1024, 3, 5)
    pooled, (reduce, expand) = x.flatten(2).mean(2), (layer.fc1, layer.fc2)
    hidden = (pooled @ reduce.weight.flatten(1).T + reduce.bias).clamp(min=0)
    scale = ((hidden @ expand.weight.flatten(1).T + expand.bias + 3) / 6).clamp(0, 1)
    torch.testing.assert_close(layer(x), torch.einsum("nchw,nc->nchw", x, scale))


def test_copy_keeps_its_memory():
    layer, x = Copy(), torch.randn(2, 3)
    with torch.no_grad():
        y = layer(x)
        assert torch.equal(y, x)
        assert layer(x + 1).data_ptr() == y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("test", LAYER_TESTS)
def test_layers_of_a_test_do_the_same_job(test):
    x = torch.randn(1, *LAYER_TESTS[test].shape[1:])
    for name, build in LAYER_TESTS[test].layers.items():
        if not name.endswith("_compiled"):
            with torch.no_grad():
                assert build()(x).shape == x.shape, name


def test_calls_of_both_modes():
    _, build = layer_call(LAYER_TESTS["2d"], "fwht2d", "channels_last", "forward", CPU)
    assert build()().is_contiguous(memory_format=torch.channels_last)
    _, build = layer_call(LAYER_TESTS["2d"], "fwht2d", "NCHW", "training", CPU)
    gradients = build()()
    assert [tuple(g.shape) for g in gradients] == [(10, 1024, 8, 8), (8, 8), (8, 8)]


def test_networks():
    spec = NetworkSpec({"name": "resnet20"}, "paper")
    model, cost = spec.build(CPU)
    assert cost["parameters"] == 133_082
    assert inference_call(model, spec.input_size, 2, CPU)().shape == (2, 10)
    before = [p.detach().clone() for p in model.parameters()]
    training_call(model, spec.input_size, 4, CPU)()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True) if a.dim() > 1)
    assert isinstance(model, nn.Module)


@pytest.mark.slow
def test_measuring_in_a_fresh_process():
    result = measure({"do": "time_sizes", "sizes": [4, 64], "points": 1 << 12, "seconds": 0.02})
    assert list(result) == ["bwht1d", "conv1x1", "copy"]
    assert all(list(values) == ["4", "64"] for values in result.values())
    assert measure({"do": "conditions", "memory": "kept"})["backend"] in BACKENDS
    with pytest.raises(BenchError, match="nothing"):
        measure({"do": "nothing"})


@pytest.fixture
def measured():
    timing = {"low": 1.0, "high": 1.0, "calls": 9, "memory_format": "NCHW"}
    base = {"2d": 3.0, "1d": 5.0}
    modes = {
        test: {
            mode: {n: {**timing, "median": base[test] / (i + 1)} for i, n in enumerate(LAYER_TESTS[test].layers)}
            for mode in ("forward", "training")
        }
        for test in LAYER_TESTS
    }
    networks = [
        {
            "label": policy,
            "backbone": {"name": "resnet20"},
            "policy": policy,
            "cost": {"parameters": 1000, "macs": 2e6},
            **{key: {"median": 1 / (i + 1)} for key in ("inference_1", "inference_128", "training")},
            "training_bytes": 7e6,
        }
        for i, policy in enumerate(("none", "paper"))
    ]
    return {
        "layers": dict.fromkeys(MEMORY, modes),
        "layer_memory": {t: {n: 8e6 / (i + 1) for i, n in enumerate(LAYER_TESTS[t].layers)} for t in LAYER_TESTS},
        "sizes": {name: {"2": 1e-9, "16": 4e-9} for name in ("bwht1d", "conv1x1", "copy")},
        "networks": networks,
        "conditions": {"backend": "cpu", "variables": {}},
    }


def test_the_table_compares_with_the_convolution(measured):
    layers, kept, networks = speed_tables(load_spec(ROOT / "experiments", "speed"), measured, "a machine")
    rows = {row[1]: dict(zip(layers.headings, row, strict=True)) for row in layers.texts if row[0].startswith("2-D")}
    ours = rows["2D-FWHT"]
    assert (ours["forward (ms)"], ours["× forward"], ours["× both"]) == ("1000.000", "3.0", "3.0")
    assert (ours["peak memory (MB)"], ours["memory"]) == ("2.7", "-66.7%")
    assert (ours["published ×"], ours["published memory"], ours["source"]) == ("24", "-19.51%", "BWHT, abstract")
    assert rows["3×3 convolution, bias, ReLU"]["× forward"] == "1.0"
    assert len(kept.rows) == len(layers.rows)
    assert [row[4] for row in networks.texts] == ["1.00", "2.00"]
    assert "a machine" in layers.notes[0]


def test_figures(measured, tmp_path):
    for suffix in (".svg", ".png"):
        draw_ratios(load_spec(ROOT / "experiments", "speed"), measured, tmp_path / "a" / f"ratios{suffix}")
        draw_growth(measured, tmp_path / "a" / f"growth{suffix}")
    for name in ("ratios", "growth"):
        svg = (tmp_path / "a" / f"{name}.svg").read_bytes()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert (tmp_path / "a" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    draw_growth(measured, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == svg


def test_the_committed_measurement_is_whole():
    stored = json.loads((ROOT / "results" / "speed.json").read_text())
    spec = load_spec(ROOT / "experiments", "speed")
    assert len(stored["networks"]) == len(spec.networks)
    assert len(speed_tables(spec, stored, "here")[0].rows) == len(spec.rows)
