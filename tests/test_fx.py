"""torch.fx on networks after a policy: layers are leaves, so what works before works after."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from whtnet import BWHT1d, FWHT2d, HTPerceptron2d, apply_policy_
from whtnet.backbones import build_backbone
from whtnet.layers import SpectralLayer

HALF = {"name": "half", "fraction": "1/2", "include": ["conv1x1"]}
MODELS = [
    (lambda: torchvision.models.mobilenet_v2(num_classes=10), HALF, 64, "features.18"),
    (lambda: torchvision.models.resnet18(num_classes=10), "paper", 64, "layer4"),
    (lambda: build_backbone("resnet20"), "ht2023/1path", 32, "layer2"),
    (lambda: timm.create_model("resnet18", num_classes=10), "paper", 64, "layer3"),
]


@pytest.mark.parametrize(("make", "policy", "side", "node"), MODELS)
def test_features_before_and_after(make, policy, side, node):
    model, x = make().eval(), torch.randn(1, 3, side, side)
    before = create_feature_extractor(model, {node: "f"})(x)["f"].shape
    names = set(get_graph_node_names(model)[1])
    report = apply_policy_(model, policy, (3, side, side))
    model.eval()
    assert create_feature_extractor(model, {node: "f"})(x)["f"].shape == before
    lost = names - set(get_graph_node_names(model)[1])
    assert all("pool" in name for name in lost)  # the layer before it and itself stand there now
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    assert sum(isinstance(m, SpectralLayer) for m in traced.modules()) == len(report.replacements)


@pytest.mark.parametrize("layer", [FWHT2d(8), BWHT1d(3, 3), HTPerceptron2d(3, 3, 8)])
def test_a_layer_alone_is_not_traced(layer):
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"keeps a \w+ whole.*nn\.Sequential\(layer\)"):
        torch.fx.symbolic_trace(layer)
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(layer))(x), layer(x))


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of what it will remove
@pytest.mark.parametrize("aware", [False, True])
def test_quantization_leaves_the_layers_in_float(aware):
    torch.manual_seed(0)
    model, x = build_backbone("resnet20"), torch.randn(8, 3, 32, 32)
    apply_policy_(model, "paper")
    model.train(aware)
    prepare, mapping = (
        (prepare_qat_fx, get_default_qat_qconfig_mapping) if aware else (prepare_fx, get_default_qconfig_mapping)
    )
    prepared = prepare(model, mapping("x86"), (x,))
    for _ in range(3):
        prepared(x)
    quantized = convert_fx(prepared.eval())
    assert sum(isinstance(m, SpectralLayer) for m in quantized.modules()) == 11
    assert sum(".quantized." in type(m).__module__ for m in quantized.modules()) >= 10
    y = quantized(x)
    assert y.shape == (8, 10)
    assert aware or (y - model(x)).abs().max() < 0.2 * model(x).abs().max()


def test_timm_s_extractor_by_graph():
    x = torch.randn(1, 3, 32, 32)
    torch.manual_seed(0)
    maps = timm.create_model("whtnet_resnet20_paper", features_only=True, feature_cls="fx").eval()(x)
    torch.manual_seed(0)
    expected = timm.create_model("whtnet_resnet20_paper", features_only=True).eval()(x)
    assert all(a.equal(b) for a, b in zip(maps, expected, strict=True))
