"""The registered timm models take what timm's own take, and do what those do with it."""

import copy
import pickle
from collections import Counter

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from torch import nn

from whtnet import PreGAPFWHT2d, apply_policy_
from whtnet.backbones import TIMM_MODELS, BackboneError, CifarResNet, build_backbone
from whtnet.layers import SpectralLayer

SIDES = {"whtnet_resnet20_paper": 32, "whtnet_mobilenet_v2_paper": 64, "whtnet_mobilenet_v3_large_paper": 64}
SIDES |= {"whtnet_mobilenet_v2_540k": 64, "whtnet_resnet18_paper": 64}
every_model = pytest.mark.parametrize("name", SIDES)


def create(name, **keywords):
    torch.manual_seed(0)
    return timm.create_model(name, img_size=SIDES[name], **{"num_classes": 4, **keywords}).eval()


def images(name, channels=3):
    return torch.randn(2, channels, SIDES[name], SIDES[name])


def spectral(model):
    return [type(m).__name__ for m in model.modules() if isinstance(m, SpectralLayer)]


def test_they_are_listed():
    assert set(timm.list_models("whtnet_*")) == set(TIMM_MODELS)
    assert all(timm.get_pretrained_cfg(name).architecture == name for name in TIMM_MODELS)


@every_model
def test_usual_keywords(name):
    model = create(name, drop_rate=0.5, drop_path_rate=0.5, in_chans=1, global_pool="avg")
    x = images(name, 1)
    assert model(x).shape == (2, 4)
    assert torch.equal(model(x), model(x))
    features = model.forward_features(x)
    assert features.shape[:2] == (2, model.num_features)
    assert torch.equal(model.forward_head(features), model(x))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(pooled), model(x))
    drops = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert drops == sorted(drops)
    assert drops
    assert model.drop_rate == 0.5
    model.train()
    features = torch.rand_like(features)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))


@every_model
def test_dropout_and_drop_path_leave_evaluation_alone(name):
    torch.testing.assert_close(create(name, drop_rate=0.5, drop_path_rate=0.5)(x := images(name)), create(name)(x))


@every_model
def test_classifier_and_pooling_can_change(name):
    model, x = create(name), images(name)
    layers = spectral(model)
    headless = create(name, num_classes=0)
    headless.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(headless(x), model.forward_head(model.forward_features(x), pre_logits=True))
    for pool in ("max", None):
        model.reset_classifier(7, pool)
        assert model.eval()(x).shape == (2, 7) == (2, model.num_classes)
        assert spectral(model) == layers
    model.reset_classifier(0, "")
    assert model(x).shape[:2] == (2, model.get_classifier()(torch.zeros(1, model.head_hidden_size)).shape[1])
    assert model(x).dim() == 4
    assert spectral(model) == layers
    assert spectral(create(name, num_classes=0, global_pool="")) == layers
    assert create(name, global_pool="max")(x).shape == (2, 4)


def test_pooling_takes_what_the_layer_before_it_gives():
    model, seen = create("whtnet_resnet18_paper", global_pool="max"), []
    layer, pool = model.global_pool
    assert isinstance(layer, PreGAPFWHT2d)
    layer.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    x = images("whtnet_resnet18_paper")
    assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), seen[0].amax((2, 3)))
    assert pool.pool_type == "max"


@every_model
def test_features(name):
    model, x = create(name), images(name)
    extractor = create(name, features_only=True)
    maps, info = extractor(x), extractor.feature_info
    assert [m.shape[1] for m in maps] == info.channels()
    assert [SIDES[name] // m.shape[-1] for m in maps] == info.reduction()
    assert all(a.equal(b) for a, b in zip(maps, model.forward_intermediates(x, intermediates_only=True), strict=True))
    parts = create(name, features_only=True, out_indices=(1, 2))
    assert [a.equal(b) for a, b in zip(parts(x), maps[1:3], strict=True)] == [True, True]
    assert sum(p.numel() for p in parts.parameters()) < sum(p.numel() for p in extractor.parameters())
    assert not any(isinstance(m, PreGAPFWHT2d) for m in extractor.modules())  # nothing without a gradient is left


@pytest.mark.parametrize("wrapper", ["hook", "list", "dict"])
def test_other_ways_to_features(wrapper):
    x = images("whtnet_resnet20_paper")
    maps = create("whtnet_resnet20_paper", features_only=True, feature_cls=wrapper)(x)
    maps = list(maps.values()) if wrapper == "dict" else maps
    expected = create("whtnet_resnet20_paper", features_only=True)(x)
    assert all(a.equal(b) for a, b in zip(maps, expected, strict=True))


@every_model
def test_layer_decay_and_gradient_checkpointing(name):
    """Learning rates rise from the stem to the classifier; gradients are those of a network that keeps its maps."""
    model, x = create(name), images(name)
    scales = {}
    for group in create_optimizer_v2(model, "sgd", lr=0.1, layer_decay=0.5).param_groups:
        scales |= {id(parameter): group["lr_scale"] for parameter in group["params"]}
    ordered = [scales[id(parameter)] for parameter in model.parameters()]
    assert ordered[0] == min(ordered) < max(ordered) == ordered[-1] == 1

    def gradients():
        model.zero_grad()
        model(x).square().mean().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    kept, calls = gradients(), Counter()
    for module in model.modules():
        if isinstance(module, SpectralLayer):
            module.register_forward_hook(lambda module, *_: calls.update([module]))
    model.set_grad_checkpointing()
    for a, b in zip(kept, gradients(), strict=True):
        torch.testing.assert_close(a, b)
    assert max(calls.values()) == 2


def test_no_number_of_classes_below_zero():
    with pytest.raises(ValueError, match=r"num_classes must be 0 .* got -1"):
        CifarResNet(num_classes=-1)
    model = CifarResNet()
    with pytest.raises(ValueError, match=r"num_classes must be 0 .* got -1"):
        model.reset_classifier(-1)
    assert model.num_classes == model.fc.out_features == 10


def test_maps_that_there_are_not():
    model, x = CifarResNet(), torch.randn(1, 3, 32, 32)
    for indices in (5, [4], [-5], 0, []):
        with pytest.raises(ValueError, match="there are maps 0 to 3"):
            model.forward_intermediates(x, indices)
    last, (map2, map3) = model.eval().forward_intermediates(x, [2, -1])
    assert last.equal(map3)
    assert map2.shape == (1, 32, 16, 16)
    assert len(model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True)) == 1
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NLC")
    with pytest.raises(ValueError, match="num_classes must be 0"):
        model.reset_classifier(3, "")


@every_model
def test_what_timm_is_told_of_the_data(name):
    model = create(name, in_chans=1)
    config = resolve_model_data_config(model)
    assert config["input_size"] == (1, SIDES[name], SIDES[name])
    cfg = model.default_cfg
    assert cfg["architecture"] == name
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    cifar = name == "whtnet_resnet20_paper"
    assert config["mean"] == ((0.4914, 0.4822, 0.4465) if cifar else (0.485, 0.456, 0.406))
    assert timm.get_pretrained_cfg(name).input_size == ((3, 32, 32) if cifar else (3, 224, 224))


def test_checkpoints_and_pickles(tmp_path):
    name = "whtnet_mobilenet_v3_large_paper"
    model, x = create(name), images(name)
    nn.init.normal_(model.get_classifier().weight)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    for loaded in (
        create(name, checkpoint_path=str(tmp_path / "model.pth")),
        create(name, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "model.pth"), "num_classes": 4}),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
    ):
        assert torch.equal(loaded(x), model(x))


def test_weights_that_there_are_not():
    with pytest.raises(BackboneError, match=r"no pretrained weights 'mobilenet_v2_540k'.*published are"):
        create("whtnet_mobilenet_v2_540k", pretrained=True)
    with pytest.raises(BackboneError, match="no weights 'imagenet'"):
        timm.create_model("whtnet_mobilenet_v2_540k.imagenet")


@pytest.mark.parametrize("keywords", [{"img_size": (64, 32)}, {"img_size": 48, "output_stride": 16}])
def test_images_of_other_sizes(keywords):
    model = timm.create_model("whtnet_resnet18_paper", num_classes=3, **keywords).eval()
    size = keywords["img_size"]
    assert model(torch.randn(1, 3, *(size if isinstance(size, tuple) else (size, size)))).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "backbone", "side"), [("resnet20", "resnet20", 32), ("mobilenet_v2", "timm/mobilenetv2_100", 224)]
)
def test_they_are_the_backbone_with_the_policy(name, backbone, side):
    torch.manual_seed(0)
    model = timm.create_model(f"whtnet_{name}_paper", num_classes=10)
    torch.manual_seed(0)
    plain = build_backbone(backbone, num_classes=10)
    apply_policy_(plain, "paper", (3, side, side))
    assert str(model.state_dict().keys()) == str(plain.state_dict().keys())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
