"""The table of exported networks: what is measured, and how it looks."""

import pytest
import torch
from shipped import EXPERIMENTS

from whtnet.bench import deployment as bench
from whtnet.bench import measure
from whtnet.tables import deployment, deployment_tables, load_spec, measure_deployment

SPEC = load_spec(EXPERIMENTS, "deployment")
CPU = torch.device("cpu")


def timing(seconds):
    return {"median": seconds, "low": seconds, "high": seconds, "calls": 30}


def pretend(task):
    """Every second contender takes half the first one's time."""
    match task["do"]:
        case "export_network":
            return {"bytes": 1_000_000, "difference": 2e-6}
        case "export_memory" | "tflite_layer_memory":
            return {"bytes": 5_000_000}
        case "time_exports":
            times = {1: 4e-3, 64: 80e-3}
            return {str(b): [timing(times[b] / task["threads"] / (i + 1)) for i in range(2)] for b in task["batches"]}
        case "write_tflite_layer":
            return {"bytes": 100}
        case "time_tflite_layers":
            return {"timings": [timing(0.9 / (i + 1)) for i in range(len(task["paths"]))]}
    raise AssertionError(task)


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(deployment, "measure", pretend)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    steps = []
    result = measure_deployment(SPEC, 0.1, lambda fraction, what: steps.append(fraction))
    assert steps == sorted(steps)
    assert max(steps) < 1
    return result


def test_rows_stand_beside_the_baseline(measured):
    networks, layers = deployment_tables(SPEC, measured, "a machine")
    rows = {row["id"]: row for row in networks.rows}
    assert rows["tflite, paper"]["ratio_1_1"] == rows["tflite, paper"]["ratio_2_64"] == pytest.approx(2)
    assert rows["tflite, without the policy"]["s_2_64"] == pytest.approx(40e-3)
    fwht = next(row for row in layers.rows if row["id"] == "fwht2d")
    assert (fwht["ratio_1"], fwht["published_ratio"], fwht["memory_change"]) == (pytest.approx(3), 24, 0)
    assert "a machine" in networks.notes[0]


def test_a_missing_runtime_says_what_to_install(measured):
    texts = [" ".join(row) for row in deployment_tables(SPEC, measured, "a machine")[0].texts]
    assert "ONNX Runtime not installed: pip install onnx onnxscript onnxruntime" in texts[0]
    assert len(texts) == 1 + 2 * (len(SPEC.rows) - 1)


def test_without_litert_the_protocol_says_so(monkeypatch):
    monkeypatch.setattr(deployment, "measure", pretend)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    layers = deployment_tables(SPEC, measure_deployment(SPEC, 0.1, lambda *_: None), "here")[1]
    assert all("pip install ai-edge-litert" in row["source"] for row in layers.rows)


def test_the_protocols_layers_are_measured(tmp_path):
    pytest.importorskip("ai_edge_litert")
    path = str(tmp_path / "layer.tflite")
    assert bench.write_tflite_layer("fwht2d", path, CPU)["bytes"] == (tmp_path / "layer.tflite").stat().st_size
    task = {"do": "tflite_layer_memory", "path": path}
    assert measure(task)["bytes"] > 8 * 8 * 1024 * 4  # in a process of its own: nothing freed is left to hide behind
    timings = bench.time_tflite_layers([path], 0.05, CPU)["timings"]
    assert 0 < timings[0]["median"] < 10


@pytest.mark.slow
def test_an_exported_network_is_measured(tmp_path):
    pytest.importorskip("ai_edge_litert")
    path = str(tmp_path / "network.tflite")
    network = {key: SPEC.networks[1][key] for key in ("backbone", "policy")}
    written = bench.export_network(network, "tflite", path, CPU)
    assert written["bytes"] > 4 * 100_000
    assert written["difference"] < 1e-4
    task = {"do": "export_memory", "runtime": "tflite", "path": path, "batch": 2}
    assert measure(task)["bytes"] > 1e6
    timings = bench.time_exports("tflite", [path, path], [1, 2], 0.05, CPU)
    assert [len(timings[batch]) for batch in ("1", "2")] == [2, 2]
