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
        ({"name": "mobilenet_v2", "source": "keras"}, "torchvision, timm"),
        ({"name": "keras/resnet50"}, "torchvision, timm"),
        ({"name": "timm/resnet5o"}, "did you mean.*resnet50"),
        ({"name": "torchvision/fcn_resnet50"}, "no classifier"),
        ({"name": "resnet18", "stem": "cifr"}, "imagenet, cifar"),
        ({"name": "resnet20", "pretrained": True}, "no pretrained weights"),
        ({"name": "resnet20", "form": "kears"}, "keras, no_bias"),
        ({"name": "resnet18", "pretrained": "no"}, "pretrained must be true or false, got 'no'"),
        ({"name": 20}, "name must be a word, got 20"),
        ({"name": "resnet21"}, "unknown backbone 'resnet21'; did you mean .*resnet20"),
        ({"name": "resnet20", "num_classes": 0}, "num_classes=0 is no number of classes"),
        ({"name": "resnet20", "num_classes": "ten"}, "num_classes='ten' is no number of classes"),
        (
            {"name": "resnet20", "depth": 20},
            "no setting backbone.depth; there are backbone.form, backbone.name",
        ),
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

    class Weights:
        class DEFAULT:
            @staticmethod
            def get_state_dict(**options):
                asked.append(options)
                return torchvision.models.get_model("mobilenet_v2").state_dict()  # no network in tests

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: Weights)
    model = build_backbone("mobilenet_v2", pretrained=True, num_classes=10)
    assert asked == [{"progress": True, "check_hash": True}]
    assert model.classifier[1].out_features == 10

    def fail(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model_weights", fail)
    with pytest.raises(BackboneError, match=r"no route.*TORCH_HOME.*pretrained=false"):
        build_backbone("mobilenet_v2", pretrained=True)


@pytest.mark.parametrize("name", ["timm/regnetx_002", "torchvision/squeezenet1_1", "torchvision/vgg11_bn"])
def test_any_classifier_of_the_libraries(name):
    with torch.device("meta"):
        model = build_backbone(name, num_classes=7)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    "name",
    [
        "torchvision/vgg11_bn",
        "torchvision/densenet121",
        "timm/efficientnet_lite0",
        "timm/resnet26d",
        "timm/regnetx_002",  # its second halving is in a residual block, and in the block's shortcut
        "torchvision/mobilenet_v2",
    ],
)
def test_stems_for_small_images(name):
    sides = []
    for stem in ("imagenet", "cifar"):
        with torch.device("meta"):
            model = build_backbone(name, stem=stem)
        last = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
        last.register_forward_hook(lambda m, args, out: sides.append(out.shape[-1]))
        model(torch.empty(2, 3, 64, 64, device="meta"))
    assert sides[1] == 4 * sides[0]


@pytest.mark.parametrize("name", ["timm/convnext_atto", "timm/vit_tiny_patch16_224"])
def test_a_model_without_such_a_stem_says_so(name):
    with torch.device("meta"), pytest.raises(BackboneError, match="stem=imagenet"):
        build_backbone(name, stem="cifar")
