import pytest
import torch
import torchvision
from torch import nn

from whtnet.backbones import LIBRARY_MODELS, BackboneError, CifarResNet, build_backbone

# He et al. 2016, table 6: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M (identity shortcuts; ours have convolutions).
MILLIONS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}


@pytest.mark.parametrize("depth", MILLIONS)
@pytest.mark.parametrize("form", ["keras", "no_bias"])
def test_cifar_resnets(depth, form):
    model = build_backbone(f"resnet{depth}", form=form, num_classes=7)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == depth - 1
    assert sum(m.kernel_size == (1, 1) for m in convolutions) == 2
    assert all((m.bias is not None) == (form == "keras") for m in convolutions)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[depth], rel=0.025)
    if depth <= 32:
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_stages_halve_the_map():
    model = CifarResNet(20)
    shapes = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape[1:])))
    model(torch.randn(1, 3, 32, 32))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


@pytest.mark.parametrize("source", ["torchvision", "timm"])
@pytest.mark.parametrize("name", LIBRARY_MODELS)
def test_cifar_stem_takes_away_two_halvings(name, source):
    with torch.device("meta"):
        last_maps = []
        for stem in ("imagenet", "cifar"):
            model = build_backbone(name, source=source, stem=stem)
            maps = []
            for m in model.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.register_forward_hook(lambda m, args, out, maps=maps: maps.append(out.shape[-1]))
            assert model(torch.empty(2, 3, 64, 64)).shape == (2, 10)
            last_maps.append(min(maps))
    assert last_maps == [2, 8]


def test_counts_agree_with_torchvision():
    for name in LIBRARY_MODELS:
        theirs = torchvision.models.get_model(name, num_classes=10)
        assert sum(p.numel() for p in build_backbone(name).parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet21"}, "resnet20, resnet32"),
        ({"name": "mobilenet_v2", "source": "keras"}, "torchvision, timm"),
        ({"name": "resnet18", "stem": "cifr"}, "imagenet, cifar"),
        ({"name": "resnet20", "pretrained": True}, "no pretrained weights"),
    ],
)
def test_errors_list_the_choices(arguments, words):
    with pytest.raises(BackboneError, match=words):
        build_backbone(**arguments)
    with pytest.raises(ValueError, match="6n"):
        CifarResNet(21)
    with pytest.raises(ValueError, match="keras"):
        CifarResNet(20, form="torch")


def test_pretrained_goes_through_the_library(monkeypatch):
    asked = []
    original = torchvision.models.get_model

    def get_model(name, weights=None, **options):
        asked.append((name, weights))
        return original(name, weights=None, **options)  # no network in tests

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    model = build_backbone("mobilenet_v2", pretrained=True, num_classes=10)
    assert asked == [("mobilenet_v2", "DEFAULT")]
    assert model.classifier[1].out_features == 10

    def fail(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", fail)
    with pytest.raises(BackboneError, match=r"no route.*TORCH_HOME.*pretrained=false"):
        build_backbone("mobilenet_v2", pretrained=True)
