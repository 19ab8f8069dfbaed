"""Going on from a trained network: start, fitted layers, stages, distillation."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from whtnet.backbones import build_backbone
from whtnet.classifier import Classifier
from whtnet.engine import TrainConfig, load_checkpoint
from whtnet.engine.loss import Loss
from whtnet.experiment import Experiment
from whtnet.finetune import FineTuneConfig, load_start_, stages_of
from whtnet.policy import load_policy
from whtnet.runs import run
from whtnet.settings import ConfigError
from whtnet.tracking import NullSink

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "backbone": {"name": "resnet20"},
    "dataset": {"name": "synthetic", "num_classes": 4, "size": 16, "train_size": 64, "test_size": 32},
    "device": "cpu",
}
TRAINER = {"epochs": 3, "batch_size": 16, "precision": "fp32", "lr": 0.02}


def experiment(policy="conv3x3", trainer=None, changes=None, **finetune):
    data = yaml.safe_load((ROOT / "configs" / "policy" / f"{policy}.yaml").read_text())
    return Experiment.from_config(
        {**SETTINGS, **(changes or {}), "policy": data, "trainer": {**TRAINER, **(trainer or {})}, "finetune": finetune}
    )


def train(root, *arguments, **options):
    e = experiment(*arguments, **options)
    fits = []
    return run(e, sink=NullSink(), root=root, on_fits=fits.extend), e.folder(root), fits


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"), "none")[1]


def test_training_begins_with_the_weights_of_the_start(baseline, tmp_path):
    start = Classifier.load(baseline).network.state_dict()
    _, folder, _ = train(tmp_path, trainer={"epochs": 1, "lr": 1e-12, "momentum": 0.0}, start=str(baseline))
    weights = Classifier.load(folder).network.state_dict()
    kept = [name for name in weights if name in start and name.endswith(("conv1.weight", "fc.weight"))]
    assert len(kept) == 11
    assert all(torch.allclose(weights[name], start[name], atol=1e-6) for name in kept)


def test_training_begins_with_fitted_layers(baseline, tmp_path):
    still = {"epochs": 1, "lr": 1e-12, "momentum": 0.0}
    _, folder, fits = train(tmp_path, trainer=still, start=str(baseline), init="fit", init_images=32)
    model = Classifier.load(folder)
    assert [f.name for f in fits] == [site.name for site in model.report.replacements]
    assert sum(f.after for f in fits) < 0.9 * sum(f.before for f in fits)
    for name in (f.name for f in fits if f.after < f.before):
        assert (model.network.get_submodule(name).weight - 1).abs().max() > 0.01  # fresh ones are 1


def test_stages_replace_from_the_last_third_forwards(baseline, tmp_path):
    record, folder, _ = train(tmp_path, trainer={"epochs": 7}, start=str(baseline), stages=3)
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2, 3, 4, 5, 6, 7]
    assert record["epochs"] == 7
    stages = [Classifier.load(folder / "stage-1"), Classifier.load(folder / "stage-2"), Classifier.load(folder)]
    whole = [site.name for site in stages[-1].report.replacements]
    assert [[site.name for site in stage.report.replacements] for stage in stages] == [whole[6:], whole[3:], whole]
    assert record["cost"]["parameters"] == sum(p.numel() for p in stages[-1].parameters())
    epochs = [
        load_checkpoint(f / "checkpoint.pt", None, torch.device("cpu"))["epoch"] for f in (folder / "stage-1", folder)
    ]
    assert epochs == [2, 3]


def test_what_is_told_counts_the_epochs_of_all_stages(baseline, tmp_path):
    e, told = experiment(trainer={"epochs": 5}, start=str(baseline), stages=2), []
    options = {"sink": NullSink(), "root": tmp_path, "on_notice": told.append}
    for last in (3, 4):

        def stop(metrics, last=last):
            if metrics["epoch"] == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(e, on_epoch=stop, **options)
    run(e, on_progress=lambda _, status: told.append(status.partition(", test")[0]), **options)
    assert "stage 2 of 2: resumed at epoch 4 of 5" in told
    assert told[-1] == "stage 2 of 2, epoch 5/5"


def test_a_stage_goes_on_from_the_one_before(baseline, tmp_path):
    """With a rate that changes nothing, the layers of the first stage are in the last network."""
    still = {"epochs": 2, "lr": 1e-12, "momentum": 0.0}
    _, folder, _ = train(tmp_path, trainer=still, start=str(baseline), stages=2, init="fit", init_images=16)
    first, last = (Classifier.load(f).network.state_dict() for f in (folder / "stage-1", folder))
    name = Classifier.load(folder / "stage-1").report.replacements[0].name
    torch.testing.assert_close(last[f"{name}.threshold"], first[f"{name}.threshold"])


def test_interrupted_between_and_within_stages(baseline, tmp_path):
    settings = {"trainer": {"epochs": 4}, "start": str(baseline), "stages": 2, "init": "fit", "init_images": 16}
    whole, _, _ = train(tmp_path / "whole", **settings)
    for last_epoch in (1, 2, 3):

        class Stop(NullSink):
            def log(self, epoch, metrics, last_epoch=last_epoch):
                if epoch == last_epoch:
                    raise KeyboardInterrupt

        e = experiment(**settings)
        root = tmp_path / str(last_epoch)
        with pytest.raises(KeyboardInterrupt):
            run(e, sink=Stop(), root=root)
        resumed = run(e, sink=NullSink(), root=root)
        assert [m["train_loss"] for m in resumed["history"]] == [m["train_loss"] for m in whole["history"]]


def test_the_loss_of_distillation():
    logits, wanted, labels = torch.randn(6, 4), torch.randn(6, 4), torch.randint(4, (6,))
    plain = F.cross_entropy(logits, labels)
    assert Loss(0.0, None, 0.5, 2.0)(logits, labels, None) == plain
    p, q = (wanted / 2).softmax(1), (logits / 2).softmax(1)
    divergence = 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(Loss(0.0, None, 0.3, 2.0)(logits, labels, wanted), 0.7 * plain + 0.3 * divergence)
    torch.testing.assert_close(Loss(0.0, None, 1.0, 2.0)(wanted, labels, wanted), torch.zeros(()))


def test_a_student_comes_to_answer_as_its_teacher(baseline, tmp_path):
    teacher = Classifier.load(baseline).network
    images = torch.randn(64, 3, 16, 16)
    distance = {}
    for distill in (0.0, 1.0):
        settings = {"trainer": {"epochs": 4}, "start": str(baseline), "distill": distill}
        _, folder, _ = train(tmp_path, **settings)
        with torch.no_grad():
            ours, theirs = (n(images).log_softmax(1) for n in (Classifier.load(folder).network, teacher))
        distance[distill] = F.kl_div(ours, theirs, reduction="batchmean", log_target=True).item()
    assert distance[1.0] < distance[0.0]


@pytest.mark.parametrize(
    ("finetune", "words"),
    [
        ({"init": "fot"}, "finetune.init must be 'fresh' or 'fit', got 'fot'"),
        ({"stages": 0}, "finetune.stages must be greater than 0, got 0"),
        ({"stages": 1.5}, "finetune.stages must be a whole number, got 1.5"),
        ({"stages": 4}, "as many epochs"),
        ({"stages": 3, "policy": "gap"}, "policy 'gap' replaces 1 sites; give fewer stages"),
        ({"distill": 0.5}, "finetune.start"),
        ({"distill": 1.5}, "finetune.distill must be less than or equal to 1, got 1.5"),
        ({"temperature": 0}, "finetune.temperature must be greater than 0, got 0"),
        ({"stagse": 2}, "stagse"),
    ],
)
def test_settings_that_cannot_be(tmp_path, finetune, words):
    with pytest.raises(ConfigError, match=words):
        train(tmp_path, **finetune)
    assert not list(tmp_path.rglob("record.json"))


def test_a_start_that_does_not_fit(baseline, tmp_path):
    other = experiment(changes={"backbone": {"name": "resnet32"}}, start=str(baseline))
    with pytest.raises(ConfigError, match="do not fit this network"):
        run(other, sink=NullSink(), root=tmp_path)
    for count, words in ((3, "has 4 classes, and the data set has 3"), (5, "the data set has 5")):
        data = {**SETTINGS["dataset"], "num_classes": count}
        with pytest.raises(ConfigError, match=words):
            run(experiment(changes={"dataset": data}, start=str(baseline)), sink=NullSink(), root=tmp_path)


def test_a_start_with_other_class_names(baseline):
    network = build_backbone("resnet20", num_classes=4)
    start, policy = FineTuneConfig(start=str(baseline)), load_policy("conv3x3")
    assert load_start_(network, start, policy, (3, 16, 16), [f"class {i}" for i in range(4)]) is network
    with pytest.raises(ConfigError, match="other classes than the data set: number 2 is 'class 2' there and 'tulip'"):
        load_start_(network, start, policy, (3, 16, 16), ["class 0", "class 1", "tulip", "class 3"])


@pytest.fixture(scope="module")
def replaced(tmp_path_factory):
    """Folder of a finished run with the policy."""
    return train(tmp_path_factory.mktemp("runs"), trainer={"epochs": 2})[1]


def test_a_start_with_the_same_policy_is_taken_over_whole(replaced, tmp_path):
    start = Classifier.load(replaced).network.state_dict()
    still = {"epochs": 1, "lr": 1e-12, "momentum": 0.0}
    _, folder, _ = train(tmp_path, trainer=still, start=str(replaced))
    weights = Classifier.load(folder).network.state_dict()
    assert weights.keys() == start.keys()
    learned = [name for name in weights if "running" not in name and "num_batches" not in name]
    assert any(name.endswith("conv2.threshold") for name in learned)
    for name in learned:
        torch.testing.assert_close(weights[name], start[name], atol=1e-6, rtol=0)


def test_a_finished_run_is_given_more_epochs(replaced, tmp_path):
    record, folder, _ = train(tmp_path, trainer={"epochs": 2}, start=str(replaced))
    before = torch.load(replaced / "checkpoint.pt", weights_only=True)["history"]
    assert folder.name != replaced.name
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2]
    assert record["history"][0]["train_loss"] < before[0]["train_loss"]


@pytest.mark.parametrize(
    ("policy", "settings", "words"),
    [
        ("none", {}, "replaced by the policy 'conv3x3', not as 'none' does it; take policy=conv3x3"),
        ("paper/resnet", {}, "replaced by the policy 'conv3x3', not as 'paper/resnet'"),
        ("conv3x3", {"stages": 2}, "has all its layers replaced; leave out finetune.stages and finetune.init"),
        ("conv3x3", {"init": "fit"}, "has all its layers replaced; leave out finetune.stages and finetune.init"),
        ("conv3x3", {"changes": {"backbone": {"name": "resnet32"}}}, "do not fit this network"),
        (
            "conv3x3",
            {"changes": {"dataset": SETTINGS["dataset"] | {"size": 32}}},
            "for images of 16×16, .* images of 32×32",
        ),
    ],
)
def test_a_start_with_layers_that_do_not_go_on(replaced, tmp_path, policy, settings, words):
    with pytest.raises(ConfigError, match=words):
        train(tmp_path, policy, start=str(replaced), **settings)
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_a_start_of_an_earlier_stage_is_refused(baseline, tmp_path):
    _, folder, _ = train(tmp_path, trainer={"epochs": 2}, start=str(baseline), stages=2)
    with pytest.raises(ConfigError, match="only a part of its layers replaced; name the folder of the whole run"):
        train(tmp_path, start=str(folder / "stage-1"))


def test_a_start_is_known_by_its_weights(baseline, tmp_path):
    shutil.copytree(baseline, tmp_path / "copy")
    assert experiment(start=str(tmp_path / "copy")).identity == experiment(start=str(baseline)).identity
    with (tmp_path / "copy" / "checkpoint.pt").open("ab") as file:
        file.write(b"more")
    assert experiment(start=str(tmp_path / "copy")).identity != experiment(start=str(baseline)).identity


def test_epochs_are_shared_out_over_the_stages(tmp_path):
    (alone,) = stages_of(TrainConfig(epochs=7), FineTuneConfig(), tmp_path)
    assert alone.checkpoint == tmp_path / "checkpoint.pt"
    handed_on = {"on_notice": len, "on_step": sum, "on_network": max, "on_epoch": print, "on_progress": input}
    assert alone.callbacks(*handed_on.values(), 7) == handed_on
    stages = stages_of(TrainConfig(epochs=7), FineTuneConfig(stages=3), None)
    assert [(s.number, s.first, s.epochs, s.checkpoint) for s in stages] == [
        (1, 0, 2, None),
        (2, 2, 2, None),
        (3, 4, 3, None),
    ]
    told = []
    calls = stages[1].callbacks(
        told.append,
        lambda metrics: told.append(metrics["epoch"]),
        lambda epoch, network: told.append((epoch, network)),
        lambda metrics: told.append(metrics["epoch"]),
        lambda *progress: told.append(progress),
        7,
    )
    calls["on_notice"]("resumed")
    calls["on_step"]({"epoch": 0.5})
    calls["on_network"](1, "network")
    calls["on_epoch"]({"epoch": 1})
    calls["on_progress"](0.5, "words")
    assert told == ["stage 2 of 3: resumed", 2.5, (3, "network"), 3, (3 / 7, "stage 2 of 3, words")]
