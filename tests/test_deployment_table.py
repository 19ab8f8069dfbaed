"""The table of exported networks: what is measured, and how it looks."""

import pytest
import torch
from shipped import EXPERIMENTS

from whtnet.bench import deployment as bench
from whtnet.bench import measure
from whtnet.tables import deployment, deployment_tables, load_spec, measure_deployment, with_measurement

SPEC = load_spec(EXPERIMENTS, "deployment")
CPU = torch.device("cpu")


def timing(seconds):
    return {"median": seconds, "low": seconds, "high": seconds, "calls": 30}


def pretend(task):
    """Every second contender takes half the first one's time."""
    match task["do"]:
        case "export_network":
            return {"bytes": 1_000_000, "difference": 2e-6}
        case "profile_export":
            baseline = "-0-" in task["path"]
            spent = {"Conv": 1e-3} if baseline else {"Conv": 0.25e-3, "MatMul": 0.5e-3}
            return {str(b): {name: b * seconds for name, seconds in spent.items()} for b in task["batches"]}
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


def measure_pretending(monkeypatch, missing=()):
    monkeypatch.setattr(deployment, "measure", pretend)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else object())
    steps = []
    result = measure_deployment(SPEC, 0.1, lambda fraction, what: steps.append(fraction))
    assert steps == sorted(steps)
    assert max(steps) < 1
    return {"environment": where("a machine"), **result}


def where(device):
    return {"device_name": device, "threads": 2, "commit": "0" * 40, "dirty": False, "versions": {"torch": "2.15"}}


def test_rows_stand_beside_the_baseline(monkeypatch):
    networks, layers, _ = deployment_tables(SPEC, measure_pretending(monkeypatch))
    rows = {row["id"]: row for row in networks.rows}
    assert rows["tflite, paper"]["ratio_1_1"] == rows["tflite, paper"]["ratio_2_64"] == pytest.approx(2)
    assert rows["tflite, without the policy"]["s_2_64"] == pytest.approx(40e-3)
    fwht = next(row for row in layers.rows if row["id"] == "fwht2d")
    assert (fwht["ratio_1"], fwht["published_ratio"], fwht["memory_change"]) == (pytest.approx(3), 24, 0)
    assert "a machine" in networks.notes[0]


def test_the_profile_is_by_operator_and_begins_with_the_slowest(monkeypatch):
    profile = deployment_tables(SPEC, measure_pretending(monkeypatch))[2]
    assert profile.title == "Where ONNX Runtime's time goes"
    assert profile.headings[::4] == ["operator", "paper, batch 64 (ms)"]
    assert [[row[0], *row[3:]] for row in profile.texts] == [
        ["MatMul", "", "32.000"],
        ["Conv", "64.000", "16.000"],
        ["all", "64.000", "48.000"],
    ]


def test_other_processors_stand_beside_the_first(monkeypatch):
    first = measure_pretending(monkeypatch)
    other = {**measure_pretending(monkeypatch, ["onnxruntime"]), "environment": where("another")}
    *same, devices = deployment_tables(SPEC, with_measurement(first, other))
    assert [table.texts for table in same] == [table.texts for table in deployment_tables(SPEC, first)]
    assert devices.headings[2:] == ["× a machine", "× another"]
    assert ["paper in ONNX Runtime", "batch 64, 2 threads", "2.00", ""] in devices.texts
    assert ["paper in AOTInductor", "batch 1, 1 thread", "2.00", "2.00"] in devices.texts
    assert ["2D-FWHT in LiteRT", "ten images, 1 thread", "3.00", "3.00"] in devices.texts


def test_a_missing_runtime_says_what_to_install(monkeypatch):
    tables = deployment_tables(SPEC, measure_pretending(monkeypatch, ["onnxruntime"]))
    texts = [" ".join(row) for row in tables[0].texts]
    assert "ONNX Runtime not installed: pip install onnx onnxscript onnxruntime" in texts[0]
    assert len(texts) == 1 + 2 * (len(SPEC.rows) - 1)
    assert len(tables) == 2


def test_without_litert_the_protocol_says_so(monkeypatch):
    layers = deployment_tables(SPEC, measure_pretending(monkeypatch, ["ai_edge_litert"]))[1]
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


def test_the_profile_of_a_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path, x = tmp_path / "model.onnx", onnx.helper.make_tensor_value_info("images", 1, ["n", 3, 32, 32])
    nodes = [onnx.helper.make_node("Softmax", ["images"], ["y"]), onnx.helper.make_node("Softmax", ["y"], ["z"])]
    nodes.append(onnx.helper.make_node("Tanh", ["z"], ["logits"]))
    y = onnx.helper.make_tensor_value_info("logits", 1, ["n", 3, 32, 32])
    graph = onnx.helper.make_graph(nodes, "g", [x], [y])
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    profile = bench.profile_export("onnx", str(path), [1, 64], CPU)
    assert [sorted(of) for of in profile.values()] == [["Softmax", "Tanh"]] * 2
    assert 0 < profile["1"]["Softmax"] < profile["64"]["Softmax"] < 10
    assert bench.profile_export("tflite", str(path), [1], CPU) == {}
    assert list(tmp_path.iterdir()) == [path]
