"""Every shipped policy on many families of classifiers: it applies and trains a step, or refuses and says why."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from whtnet import BWHT1d, apply_policy_
from whtnet.backbones import build_backbone
from whtnet.policy import PolicyError, shipped_policies
from whtnet.tables import load_spec

ROWS = [row["id"] for row in load_spec(Path(__file__).parents[1] / "experiments", "backbones").rows]
SIZE = (3, 64, 64)


def apply_or_refuse(model, policy):
    try:
        return apply_policy_(model, policy, SIZE), None
    except PolicyError as error:
        return None, str(error)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ROWS)
def test_policies_apply_and_train_or_refuse(backbone):
    torch.manual_seed(0)
    original = build_backbone(backbone, num_classes=10)
    applied = []
    for policy in shipped_policies():
        model = copy.deepcopy(original)
        before = {name: value.shape for name, value in model.state_dict().items()}
        report, refusal = apply_or_refuse(model, policy)
        if refusal:
            assert policy in refusal or "can't be replaced" in refusal
            assert {name: value.shape for name, value in model.state_dict().items()} == before
            continue
        applied.append(policy)
        if not report.replacements:
            continue
        logits = model.train()(torch.randn(2, *SIZE))
        assert logits.shape == (2, 10)
        F.cross_entropy(logits, torch.tensor([1, 2])).backward()
        new = [model.get_submodule(r.name) for r in report.replacements]
        gradients = [p.grad for m in new for p in m.parameters()]
        assert all(g is not None and g.isfinite().all() for g in gradients)
        assert not gradients or any(g.abs().sum() > 0 for g in gradients)  # a control may have no parameters
    assert "none" in applied


def test_linear_layers_of_convnext_are_1x1_convolutions():
    model = build_backbone("torchvision/convnext_tiny", num_classes=10)
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".block." in n]
    assert len(linear) == 36
    report = apply_policy_(model, {"rules": [{"match": "conv1x1", "where": {"stride": 1}, "replace": "BWHT1d"}]}, SIZE)
    assert [r.name for r in report.replacements] == linear
    layer = model.get_submodule(linear[0])
    assert (layer.in_channels, layer.out_channels, layer.channel_dim) == (96, 384, -1)
    assert report.replacements[0].input_shape == (96, 16, 16)
    assert report.after.wht_additions > 0
    assert model(torch.randn(2, *SIZE)).shape == (2, 10)


@pytest.mark.parametrize("interleave", [False, True])
def test_channels_may_be_the_last_dimension(interleave):
    first = BWHT1d(12, 20, block_size=8, blocks="separate", interleave=interleave)
    last = BWHT1d(12, 20, block_size=8, blocks="separate", interleave=interleave, channel_dim=-1)
    last.load_state_dict(first.state_dict())
    x = torch.randn(2, 12, 5, 6)
    torch.testing.assert_close(last(x.permute(0, 2, 3, 1)), first(x).permute(0, 2, 3, 1))
    assert last.wht_additions((2, 5, 6, 12)) == first.wht_additions((2, 12, 5, 6))
    assert "channel_dim=-1" in repr(last)
    with pytest.raises(ValueError, match=r"\(N, \*spatial, 12\)"):
        last(x)
    with pytest.raises(ValueError, match="channel_dim"):
        BWHT1d(12, 20, channel_dim=2)


def test_models_of_the_paper_are_registered_with_timm():
    model = timm.create_model("whtnet_resnet20_paper", num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 133_082
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert timm.create_model("whtnet_resnet20_paper", img_size=16, num_classes=3)(torch.randn(2, 3, 16, 16)).shape == (
        2,
        3,
    )
    small = build_backbone("timm/whtnet_mobilenet_v2_540k", num_classes=10)
    assert sum(p.numel() for p in small.parameters()) == 506_122


def test_an_image_that_the_model_does_not_take_is_named():
    model = build_backbone("timm/vit_tiny_patch16_224", num_classes=10)
    with pytest.raises(PolicyError, match="VisionTransformer can't run on a 3×32×32 image"):
        apply_policy_(model, "none", (3, 32, 32))
