"""Networks that the project publishes: from a run into results/weights, and back by every door."""

import pytest
import timm
import torch
from shipped import SHIPPED, compose_config

from whtnet.backbones import BackboneError, weights
from whtnet.classifier import Classifier
from whtnet.errors import UserError
from whtnet.experiment import Experiment
from whtnet.records import put_record
from whtnet.runs import run
from whtnet.tracking import NullSink

TINY = ["dataset=synthetic", "dataset.size=32", "dataset.train_size=32", "dataset.test_size=16", "device=cpu"]
TINY += ["backbone=resnet20", "policy=paper", "trainer=short", "trainer.epochs=1", "trainer.precision=fp32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    record = run(Experiment.from_config(compose_config(TINY)), sink=NullSink(), root=folder)
    (file,) = folder.rglob("checkpoint.pt")
    return file.parent, record


@pytest.fixture
def publish(trained, scripts, tmp_path, monkeypatch):
    folder, record = trained
    monkeypatch.setattr(weights, "PUBLISHED", tmp_path / "weights")

    def call(*, recorded=True, source=folder):
        if recorded:
            plain = {key: value for key, value in record.items() if key != "layers"}
            put_record(tmp_path / "runs", {"table": "mine", "row": "a", "recipe": "short", **plain})
        argv = ["x", str(source), "--name", "resnet20_paper", "--results", str(tmp_path)]
        monkeypatch.setattr("sys.argv", argv)
        scripts("publish_weights").main.__wrapped__()

    return call


def test_a_published_network_is_the_trained_one(publish, trained, tmp_path):
    publish()
    x = torch.rand(2, 3, 32, 32)
    trained_one = Classifier.load(trained[0])
    for source in ("resnet20_paper", tmp_path / "weights" / "resnet20_paper.safetensors"):
        loaded = Classifier.load(source)
        assert loaded.classes == trained_one.classes
        assert torch.equal(loaded(x), trained_one(x))
    model = timm.create_model("whtnet_resnet20_paper", pretrained=True).eval()
    assert torch.equal(model(x), trained_one.network(x))
    card = (tmp_path / "weights" / "resnet20_paper.md").read_text()
    assert 'Classifier.load("resnet20_paper")' in card
    assert f"{sum(p.numel() for p in model.parameters()):,}" in card
    assert "| recipe | `short` |" in card
    assert f"| record | `runs/mine/a-seed0-{trained[1]['identity'][:8]}.json` |" in card
    assert "11 convolutions" in card


def test_other_classes_and_channels_start_fresh(publish, trained):
    publish()
    theirs = Classifier.load(trained[0]).network.conv1.weight
    model = timm.create_model("whtnet_resnet20_paper", pretrained=True, num_classes=7)
    assert model.fc.out_features == 7
    assert torch.equal(model.conv1.weight, theirs)
    grey = timm.create_model("whtnet_resnet20_paper", pretrained=True, in_chans=1, num_classes=0)
    torch.testing.assert_close(grey.conv1.weight, theirs.sum(1, keepdim=True))
    features = timm.create_model("whtnet_resnet20_paper", pretrained=True, features_only=True)
    assert torch.equal(features.model.conv1.weight, theirs)


def test_timm_knows_the_normalisation(publish, trained):
    publish()
    trained_one = Classifier.load(trained[0])
    config = timm.data.resolve_model_data_config(timm.create_model("whtnet_resnet20_paper", pretrained=True))
    assert config["input_size"] == trained_one.input_size
    torch.testing.assert_close(torch.tensor(config["mean"]), trained_one.mean.flatten())


def test_published_networks_of_another_kind_are_refused(publish, tmp_path):
    publish()
    with pytest.raises(BackboneError, match=r"published for images of 32×32; with img_size=16"):
        timm.create_model("whtnet_resnet20_paper", pretrained=True, img_size=16)
    (tmp_path / "weights" / "resnet20_paper.safetensors").rename(tmp_path / "weights" / "resnet18_paper.safetensors")
    with pytest.raises(BackboneError, match=r"Classifier\.load\('resnet18_paper'\)"):
        timm.create_model("whtnet_resnet18_paper", pretrained=True, img_size=32)


def test_what_can_not_be_published_is_said(publish, tmp_path):
    with pytest.raises(UserError, match="has no record of"):
        publish(recorded=False)
    with pytest.raises(UserError, match="no folder of a finished run"):
        publish(source=tmp_path)
    with pytest.raises(BackboneError, match=r"no pretrained weights 'resnet20_paper'.*published are none"):
        timm.create_model("whtnet_resnet20_paper", pretrained=True)


def test_the_weights_of_the_project_fit_a_repository():
    assert sum(path.stat().st_size for path in (SHIPPED.folder / "weights").glob("*.safetensors")) <= 15e6
