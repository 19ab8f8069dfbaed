"""Layers as matrix products, and what the files of each runtime hold."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.utils.prune
import yaml
from shipped import ROOT

from whtnet.classifier import Classifier
from whtnet.export import (
    TOLERANCE,
    ExportError,
    export_aoti,
    export_onnx,
    export_safetensors,
    export_tflite,
    export_torch,
)
from whtnet.export.checks import check
from whtnet.export.products import ChannelProducts, as_products
from whtnet.fusion import fuse_for_inference
from whtnet.layers import BWHT1d, FWHT2d, HTPerceptron2d, PreGAPFWHT2d, SpectralLayer

LAYERS = {
    "map": (lambda: FWHT2d(8), 8),
    "soft map": (lambda: FWHT2d(8, threshold="soft"), 8),
    "clamped map": (lambda: FWHT2d(8, threshold="soft", clamp=True), 8),
    "padded map": (lambda: FWHT2d((7, 6), keep_dc=True), (7, 6)),
    "soft map that keeps its mean": (lambda: FWHT2d(7, threshold="soft", keep_dc=True), 7),
    "large map": (lambda: FWHT2d((16, 32), weight=False), (16, 32)),
    "large padded map": (lambda: FWHT2d((14, 14), norm="backward"), 14),
    "strided map": (lambda: FWHT2d(9, stride=2), 9),
    "residual": (lambda: FWHT2d(8, residual=True, norm="backward"), 8),
    "with its norm": (lambda: PreGAPFWHT2d(24, 8, residual=True), 8),
    "perceptron": (lambda: HTPerceptron2d(24, 24, 8), 8),
    "paths": (lambda: HTPerceptron2d(24, 12, 7, paths=3, keep_dc=True), 7),
    "large paths": (lambda: HTPerceptron2d(24, 12, 16, paths=2, threshold="smooth"), 16),
    "one block": (lambda: BWHT1d(24, 40, stride=2, keep_dc=True), 9),
    "one block down": (lambda: BWHT1d(24, 7), 8),
    "expansion": (lambda: BWHT1d(8, 32, block_size=8, stride=2), 8),
    "means": (lambda: BWHT1d(8, 3, block_size=8, norm="backward"), 8),
    "windows": (lambda: BWHT1d(24, 48, block_size=8), 8),
    "separate": (lambda: BWHT1d(24, 40, block_size=8, blocks="separate", interleave=True), 8),
    "wide": (lambda: BWHT1d(24, 128), 8),
    "channels last": (lambda: BWHT1d(24, 24, channel_dim=-1), None),
}
KEPT = {"windows", "separate", "wide", "channels last"}


@pytest.mark.parametrize("signs", ["as trained", "some negative"])
@pytest.mark.parametrize("name", LAYERS)
def test_products_compute_what_the_layer_does(name, signs):
    make, size = LAYERS[name]
    torch.manual_seed(0)
    layer = make().eval()
    with torch.no_grad():
        for module in layer.modules():
            if isinstance(module, SpectralLayer):
                module.threshold.uniform_(-0.3 if signs == "some negative" else 0.05, 0.8)
                if module.weight is not None:
                    module.weight.normal_()
    before = copy.deepcopy(layer.state_dict())
    channels = next((m.in_channels for m in layer.modules() if hasattr(m, "in_channels")), 24)
    h, w = (size, size) if isinstance(size, int) else size or (5, channels)
    x = torch.randn(3, 5 if size is None else channels, h, w)
    model = torch.nn.Sequential(layer)
    products = as_products(model)
    torch.testing.assert_close(products(x), layer(x), atol=1e-5, rtol=1e-4)
    assert any(isinstance(m, SpectralLayer) for m in products.modules()) == (name in KEPT)
    assert model[0] is layer
    torch.testing.assert_close(dict(layer.state_dict()), dict(before))


def test_layers_of_a_size_share_their_matrix():
    model = torch.nn.Sequential(FWHT2d(8), FWHT2d(7), BWHT1d(64, 64), FWHT2d(16), FWHT2d((16, 32)))
    sizes = [len(p) for name, p in as_products(model).named_parameters() if "matri" in name]
    assert sorted(sizes) == [16, 32, 64]
    assert isinstance(as_products(model)[2], ChannelProducts)


def build(policy, backbone="resnet20"):
    torch.manual_seed(0)
    data = {"name": "none", "rules": []}
    if policy != "none":
        data = yaml.safe_load((ROOT / "configs" / "policy" / f"{policy}.yaml").read_text())
    settings = {"backbone": {"name": backbone}, "policy": data, "classes": list("abc"), "input_size": (3, 32, 32)}
    model = Classifier(**settings, mean=[0.5] * 3, std=[0.2] * 3).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
            elif isinstance(module, SpectralLayer):
                module.weight.uniform_(0.5, 1.5)
    return model


@pytest.mark.slow
def test_an_onnx_file_follows_its_parameters(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    sizes = {}
    for policy in ("none", "paper/resnet20"):
        model, path = build(policy), tmp_path / f"{policy.replace('/', '_')}.onnx"
        export_onnx(model, path)
        sizes[policy] = path.stat().st_size
        numbers = sum(t.numel() for t in model.network.state_dict().values())
        assert sizes[policy] < 4 * numbers + 110_000
    assert sizes["paper/resnet20"] < 0.58 * sizes["none"]
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" not in nodes
    assert nodes.count("MatMul") == 6 * 4 + 3 * 2  # two a direction at 32×32 and 16×16, one at 8×8
    assert nodes.count("Tanh") == nodes.count("Abs") == 11
    assert len(nodes) < 170


def test_layers_that_are_finished_stay():
    model = build("paper/resnet20")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(as_products(fuse_for_inference(model))(x), model(x), atol=1e-4, rtol=1e-4)


# --- every format ---


class Small(torch.nn.Sequential):
    input_size = (3, 8, 8)


@pytest.mark.parametrize(
    ("export", "needs"),
    [
        pytest.param(export_torch, "torch", marks=pytest.mark.slow),
        (export_safetensors, "safetensors"),
        (export_tflite, "ai_edge_litert"),
        pytest.param(export_onnx, "onnxruntime", marks=pytest.mark.slow),
    ],
)
def test_an_export_leaves_every_module_in_its_mode(tmp_path, export, needs):
    pytest.importorskip(needs)
    model = build("paper/resnet20").train()
    model.network.bn1.eval()
    assert export(model, tmp_path / "model") < TOLERANCE  # of the model in evaluation mode
    assert [name for name, module in model.named_modules() if not module.training] == ["network.bn1"]
    assert model.network.layer1[0].bn1.num_batches_tracked == 0


def test_what_is_no_number_agrees_with_nothing():
    model = Small(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    with pytest.raises(ExportError, match="differs from the model by nan"):
        check(model, lambda images: model(images) * float("nan"), "a file")
    torch.nn.init.constant_(model[1].bias, float("inf"))
    with pytest.raises(ExportError, match="no finite numbers"):
        check(model, model, "a file")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("export", "needs"),
    [
        (export_torch, "torch"),
        (export_tflite, "ai_edge_litert"),
        pytest.param(export_onnx, "onnxruntime", marks=pytest.mark.slow),
    ],
)
def test_a_model_in_another_precision_is_exported_in_float32(tmp_path, export, needs, dtype):
    pytest.importorskip(needs)
    model = Small(torch.nn.Conv2d(3, 4, 1), FWHT2d(8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).to(dtype)
    assert export(model, tmp_path / "model") < TOLERANCE
    assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda network: network.bn1.register_forward_hook(lambda *call: 2 * call[-1]), "differs"),
        (
            lambda network: setattr(network, "fc", torch.nn.Linear(64, 7)),
            r"no longer what its settings build.*fc\.weight",
        ),
    ],
)
def test_a_network_that_its_settings_do_not_build_leaves_no_folder(tmp_path, change, words):
    model = build("none")
    change(model.network)
    with pytest.raises(ExportError, match=f"(?s){words}"):
        export_safetensors(model, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_pruned_model_has_products():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), FWHT2d(8))
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(as_products(model)(x), model(x))


# --- TFLite ---


@pytest.fixture(scope="module")
def tflite():
    pytest.importorskip("ai_edge_litert")
    from whtnet.export import tflite
    from whtnet.export.tflite.network import lower

    def run(model, x):
        interpreter = tflite.tflite_interpreter(lower(as_products(model), tuple(x.shape[1:])))
        y = torch.from_numpy(tflite.run_tflite(interpreter, x.permute(0, 2, 3, 1).contiguous().numpy()))
        return y.permute(0, 3, 1, 2) if y.dim() == 4 else y

    return run


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in KEPT | {"strided map"}])
def test_tflite_computes_what_the_layer_does(tflite, name, batch):
    make, size = LAYERS[name]
    torch.manual_seed(0)
    model = torch.nn.Sequential(make()).eval()
    channels = next((m.in_channels for m in model.modules() if hasattr(m, "in_channels")), 24)
    h, w = (size, size) if isinstance(size, int) else size
    x = torch.randn(batch, channels, h, w)
    with torch.no_grad():
        torch.testing.assert_close(tflite(model, x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "policy"), [("resnet20", "none"), ("resnet20", "paper/resnet20"), ("resnet20", "ht2023/3path")]
)
def test_tflite_files_do_what_the_network_does(tmp_path, tflite, backbone, policy):
    assert export_tflite(build(policy, backbone), tmp_path / "m.tflite") < TOLERANCE


def test_tflite_mobilenet_parts(tflite):
    nn = torch.nn
    blocks = [nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.BatchNorm2d(8), nn.Hardswish(), nn.BatchNorm2d(8), nn.ReLU6()]
    head = [nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5, bias=False)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.Conv2d(8, 8, 1), nn.Hardsigmoid(), *head).eval()
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(tflite(model, x), model(x), atol=1e-5, rtol=1e-4)


def test_tflite_takes_batch_norms_without_parameters(tflite):
    nn = torch.nn
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, affine=False)).eval()
    for norm in (model[0], model[2]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(tflite(model, x), model(x), atol=1e-5, rtol=1e-4)


def test_tflite_names_what_it_lacks(tflite):
    norm = torch.nn.BatchNorm2d(4, track_running_stats=False)
    for module in (torch.nn.GELU(), torch.nn.Conv2d(4, 4, 3, dilation=2), FWHT2d(9, stride=2), BWHT1d(4, 128), norm):
        with pytest.raises(ExportError, match="TFLite"):
            tflite(torch.nn.Sequential(module), torch.randn(1, 4, 9, 9))


def test_tflite_names_a_function_that_it_lacks(tflite):
    class Pooled(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.adaptive_avg_pool2d(x, 1)

    with pytest.raises(ExportError, match="the function adaptive_avg_pool2d has no counterpart"):
        tflite(Pooled(), torch.randn(1, 4, 9, 9))


def test_a_missing_runtime_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match="pip install ai-edge-litert flatbuffers"):
        export_tflite(build("none"), tmp_path / "m.tflite")


# --- AOTInductor ---


@pytest.mark.slow
def test_a_compiled_package_runs_without_this_package(tmp_path):
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    model = Small(torch.nn.Conv2d(3, 8, 3, padding=1), FWHT2d(8), torch.nn.Flatten(), torch.nn.Linear(512, 3))
    assert export_aoti(model, tmp_path / "m.pt2") < TOLERANCE
    assert model.training  # as before
    load = "import sys, torch, torch._inductor; f = torch._inductor.aoti_load_package(sys.argv[1])"
    code = f"{load}; print(f(torch.ones(2, 3, 8, 8)).tolist()); assert 'whtnet' not in sys.modules"
    command = [sys.executable, "-c", code, tmp_path / "m.pt2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    with torch.no_grad():
        torch.testing.assert_close(found, model(torch.ones(2, 3, 8, 8)), atol=1e-5, rtol=1e-4)
