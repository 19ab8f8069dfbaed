"""A trained model outside training: loaded, evaluated, asked, exported."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from whtnet import commands
from whtnet.classifier import Classifier
from whtnet.engine import CheckpointError, load_checkpoint, save_checkpoint
from whtnet.evaluation import measure_logits
from whtnet.experiment import Experiment
from whtnet.runs import run
from whtnet.tracking import make_sink

ROOT = Path(__file__).parents[1]
DATASET = {"name": "synthetic", "num_classes": 4, "size": 16, "train_size": 96, "test_size": 64}
TRAINER = {"epochs": 2, "batch_size": 16, "precision": "fp32"}


def policy_data(name):
    return yaml.safe_load((ROOT / "configs" / "policy" / f"{name}.yaml").read_text())


def train(root, policy="paper", **trainer):
    settings = {"backbone": {"name": "resnet20"}, "policy": policy_data(policy), "dataset": DATASET}
    experiment = Experiment.from_config({**settings, "trainer": {**TRAINER, **trainer}, "device": "cpu"})
    return run(experiment, sink=make_sink("none"), root=root), experiment.folder(root)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def script(monkeypatch, capsys):
    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        commands.main(name)
        return capsys.readouterr().out

    return call


def images(count=3, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


# --- Loading ---


def test_a_run_gives_its_classifier(trained):
    record, folder = trained
    model = Classifier.load(folder)
    assert not model.training
    assert model.classes == ["class 0", "class 1", "class 2", "class 3"]
    assert model.input_size == (3, 16, 16)
    assert model.training_facts["test top-1 (%)"] == pytest.approx(record["test_top1"], abs=0.01)
    assert sum(p.numel() for p in model.parameters()) == record["cost"]["parameters"]
    torch.testing.assert_close(Classifier.load(folder / "checkpoint.pt")(images()), model(images()))


def test_the_averaged_weights_are_the_ones_that_count(tmp_path):
    _, folder = train(tmp_path, ema_decay=0.9)
    state = load_checkpoint(folder / "checkpoint.pt", None, torch.device("cpu"))
    weights = Classifier.load(folder).network.state_dict()
    assert torch.equal(weights["fc.weight"], state["ema"]["module.fc.weight"])
    assert not torch.equal(weights["fc.weight"], state["model"]["fc.weight"])


def test_a_saved_model_comes_back(trained, tmp_path):
    model = Classifier.load(trained[1])
    model.save_pretrained(tmp_path / "saved")
    assert {p.name for p in (tmp_path / "saved").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"{sum(p.numel() for p in model.parameters()):,}" in card
    assert "CifarResNet" in card
    assert "{{" not in card
    for back in (Classifier.load(tmp_path / "saved"), Classifier.from_pretrained(str(tmp_path / "saved"))):
        assert back.classes == model.classes
        assert back.dataset == model.dataset
        torch.testing.assert_close(back(images()), model(images()), rtol=0, atol=0)


def test_arrays_and_ranges_are_saved_too(tmp_path):
    mean, std = np.array([0.5, 0.25, 0.125], np.float32), torch.tensor([0.5, 0.25, 1.0])
    model = Classifier({"name": "resnet20"}, policy_data("none"), range(4), np.array([3, 16, 16]), mean, std).eval()
    model.save_pretrained(tmp_path)
    back = Classifier.load(tmp_path)
    assert back.classes == list("0123")
    torch.testing.assert_close(back(images()), model(images()), rtol=0, atol=0)


def test_a_saved_model_that_lacks_weights_is_damaged(trained, tmp_path):
    model = Classifier.load(trained[1])
    torch.nn.utils.parametrize.register_parametrization(model.network.conv1, "weight", torch.nn.Identity())
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"damaged.*network\.conv1\.weight"):
        Classifier.load(tmp_path)
    with pytest.raises(RuntimeError, match=r"network\.conv1\.weight"):
        Classifier.from_pretrained(str(tmp_path))


def test_the_hub_gets_the_same_files(trained, monkeypatch):
    uploaded = {}

    class Hub:
        def __init__(self, **options):
            pass

        def create_repo(self, repo_id, **options):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **options):
            uploaded[repo_id] = {p.name for p in Path(folder_path).iterdir()}

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    Classifier.load(trained[1]).push_to_hub("someone/small")
    assert uploaded == {"someone/small": {"README.md", "config.json", "model.safetensors"}}


def test_what_is_no_model_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="neither a run's checkpoint"):
        Classifier.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"no/such is no trained model.*as a name on the hub it can't be read"):
        Classifier.load("no/such")
    (tmp_path / "checkpoint.pt").write_bytes((trained[1] / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"can't be read as a checkpoint"):
        Classifier.load(tmp_path)
    state = load_checkpoint(trained[1] / "checkpoint.pt", None, torch.device("cpu"))
    del state["format"], state["fingerprint"]
    state["classifier"] = {**state["classifier"], "policy": policy_data("none")}
    save_checkpoint(tmp_path / "checkpoint.pt", state, "f")
    with pytest.raises(CheckpointError, match="weights of another network"):
        Classifier.load(tmp_path)


@pytest.mark.parametrize(
    "source", ["nowhere", "runs/nowhere", "no/such/folder", "./a", "../a", "/a/b", "~/a", "a/", ""]
)
def test_a_wrong_path_asks_no_hub(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(Classifier, "from_pretrained", lambda name: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match=r"no such folder or file|neither a run's"):
        Classifier.load(source)


# --- Evaluation ---


def test_measures_of_known_logits():
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    predicted = torch.tensor([0, 1, 1, 2, 2, 0])
    logits = torch.full((6, 7), -100.0)  # seven classes, of which four never occur
    logits[torch.arange(6), predicted] = 100.0  # sure of everything
    e = measure_logits(logits, labels)
    assert e.images == 6
    assert e.top1 == pytest.approx(100 * 4 / 6)
    assert e.per_class[:3] == pytest.approx([50.0, 100.0, 100 * 2 / 3])
    assert np.isnan(e.per_class[3])
    assert e.confusion[0][:3] == [1, 1, 0]
    assert e.confusion[2][:3] == [1, 0, 2]
    assert e.calibration_error == pytest.approx(100 * 2 / 6)  # confidence 100 %, accuracy 4/6
    assert e.loss == pytest.approx(200 * 2 / 6)


def test_the_five_likeliest_count():
    logits = torch.arange(7.0).flip(0).repeat(7, 1)
    e = measure_logits(logits, torch.arange(7))
    assert e.top5 == pytest.approx(100 * 5 / 7)
    assert measure_logits(logits[:2, :3], torch.tensor([0, 2])).top5 == 100  # fewer classes than five


def test_evaluate_prints_what_training_recorded(trained, tmp_path, script):
    record, folder = trained
    out = script("evaluate", folder, "--json", tmp_path / "e.json")
    saved = json.loads((tmp_path / "e.json").read_text())
    assert saved["top1"] == pytest.approx(record["test_top1"])
    assert saved["loss"] == pytest.approx(record["test_loss"], rel=1e-4)
    assert sum(map(sum, saved["confusion"])) == DATASET["test_size"] == saved["images"]
    for words in ("Confusion matrix", "expected calibration error", f"{record['test_top1']:.2f}"):
        assert words in out


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset.num_classes=3", "other classes than the model: it lacks class 3"),
        ("dataset.name=digits", "the model does not know 0, 1, 2, 3, 4, … (10)"),
        ("dataset=cifar10", "for another one give dataset.name=cifar10"),
        ("dataset.size=8", "(3, 16, 16)"),
        ("dataset.holdout=0.5", "would hold out images that the model was trained on; in training it was 0"),
        ("--split=holdout", "nothing was held out of the training set"),
        ("seed=1", "seed"),
    ],
)
def test_evaluate_refuses_other_data(trained, script, capsys, override, words):
    with pytest.raises(SystemExit):
        script("evaluate", trained[1], override)
    assert words in " ".join(capsys.readouterr().err.split())


# --- Prediction ---


def test_predict_names_the_classes(trained, tmp_path, script, capsys):
    image = Image.fromarray((images(1, 40)[0].permute(1, 2, 0).numpy() * 255).astype("uint8"))
    image.save(tmp_path / "a.png")
    found = json.loads(script("predict", trained[1], tmp_path / "a.png", "--json", "--top", "4"))
    probabilities = found[str(tmp_path / "a.png")]
    model = Classifier.load(trained[1])
    expected = model(model.preprocess(image))[0].softmax(0)
    assert sum(probabilities.values()) == pytest.approx(1)
    assert [*probabilities.values()] == sorted(probabilities.values(), reverse=True)
    assert probabilities["class 2"] == pytest.approx(expected[2].item(), rel=1e-4)
    assert "a.png" in script("predict", trained[1], tmp_path / "a.png")
    sideways = Image.Exif()
    sideways[0x0112] = 6  # to be turned clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "c.png", exif=sideways)
    turned = json.loads(script("predict", trained[1], tmp_path / "c.png", "--json", "--top", "4"))
    assert turned[str(tmp_path / "c.png")] == pytest.approx(probabilities)
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(SystemExit):
        script("predict", trained[1], tmp_path / "b.png")
    assert "b.png can't be decoded as an image" in " ".join(capsys.readouterr().err.split())


# --- Export ---


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["paper", "paper/resnet"])
def test_exports_do_what_the_model_does(tmp_path, policy):
    pytest.importorskip("onnxruntime")
    from whtnet.export import TOLERANCE, export_onnx, export_safetensors, export_torch, onnx_session, run_onnx

    backbone = {"name": "resnet20" if policy == "paper" else "torchvision/resnet18"}
    torch.manual_seed(0)
    settings = {"backbone": backbone, "policy": policy_data(policy), "classes": list("abc")}
    model = Classifier(**settings, input_size=(3, 32, 32), mean=[0.5] * 3, std=[0.2] * 3).eval()
    for export, name in ((export_onnx, "m.onnx"), (export_torch, "m.pt2"), (export_safetensors, "m")):
        assert export(model, tmp_path / name) < TOLERANCE
    x = images(5, 32)
    out = run_onnx(onnx_session(tmp_path / "m.onnx"), x.numpy())
    np.testing.assert_allclose(out, model(x).detach().numpy(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.export.load(tmp_path / "m.pt2").module()(x), model(x), atol=1e-4, rtol=1e-4)


def test_an_export_that_disagrees_is_not_left_behind(trained, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from whtnet import export
    from whtnet.export import onnx_file

    monkeypatch.setattr(onnx_file, "run_onnx", lambda session, x: np.zeros((len(x), 4), np.float32))
    with pytest.raises(export.ExportError, match="differs"):
        export.export_onnx(Classifier.load(trained[1]), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(export.ExportError, match=r"pip install onnx onnxscript onnxruntime"):
        export.export_onnx(Classifier.load(trained[1]), tmp_path / "m.onnx")


def test_exports_of_two_models_have_two_places(trained, tmp_path, script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for name in ("checkpoint.pt", "best.pt"):
        shutil.copy(trained[1] / "checkpoint.pt", tmp_path / "runs" / "a" / name)
    for model in ("runs/a", "runs/a/checkpoint.pt", "runs/a/best.pt", trained[1]):
        for _ in range(2):  # the second time as the first
            script("export", model, "--to", "safetensors")
    elsewhere = trained[1].resolve().relative_to("/").as_posix()
    places = {file.parents[1].relative_to(tmp_path / "exports") for file in tmp_path.rglob("exports/**/config.json")}
    assert {place.as_posix() for place in places} == {"runs/a", "runs/a/best.pt", elsewhere}


@pytest.mark.slow
def test_export_command_quantises_and_times(trained, tmp_path, script):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    arguments = ["--to", "onnx", "int8", "--output", tmp_path / "out", "--time", "--seconds", "0.1"]
    out = script("export", trained[1], *arguments)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"model.onnx", "model_int8.onnx"}
    for words in ("ONNX without the policy", "int8 convolutions", "test top-1"):
        assert words in out
    graph = onnx.load(tmp_path / "out" / "model_int8.onnx").graph
    producers = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    quantised = [node for node in convolutions if producers.get(node.input[1]) == "DequantizeLinear"]
    assert len(quantised) == 10  # the stem and the first of each block
    assert all(node.name.startswith("float32_") for node in convolutions if node not in quantised)
    original = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert {n.op_type for n in graph.node} - {n.op_type for n in original.node} == {
        "QuantizeLinear",
        "DequantizeLinear",
    }
