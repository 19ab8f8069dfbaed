"""HT-2023's released networks: their files become classifiers of ours that answer as theirs."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from shipped import EXPERIMENTS
from torch.nn import functional as F

from whtnet import released
from whtnet.backbones import BackboneError, build_backbone
from whtnet.classifier import Classifier
from whtnet.data import DatasetNotFoundError, load_dataset
from whtnet.released import MODELS, ReleasedError, import_released, logged_accuracies, released_folder
from whtnet.tables import load_spec, measure_released
from whtnet.tables.released import is_equal, released_tables
from whtnet.transforms import hadamard_matrix
from whtnet.verification import check_released

ORACLES = Path(os.environ.get(released.FOLDER) or Path(__file__).parents[2] / "shared" / "oracles" / "ht2023")
THREE = "ht2023/resnet20-3path"


def batch_norm(prefix, channels):
    names = ("weight", "bias", "running_mean")
    values = {f"{prefix}.{name}": torch.randn(channels) * 0.3 for name in names}
    values |= {f"{prefix}.running_var": torch.rand(channels) + 0.5}
    return values | {f"{prefix}.num_batches_tracked": torch.tensor(7)}


def authors_weights(paths=3):
    """A state dict as their ResNet-20 has it, with random values; 0 paths for the plain network."""
    torch.manual_seed(0)
    weights = {"conv1.0.weight": torch.randn(16, 3, 3, 3) * 0.3, **batch_norm("conv1.1", 16)}
    channels = 16
    for stage, (width, side) in enumerate([(16, 32), (32, 16), (64, 8)], 1):
        for block in range(3):
            name = f"layer{stage}.{block}"
            weights[f"{name}.left.0.weight"] = torch.randn(width, channels, 3, 3) * 0.1
            weights |= batch_norm(f"{name}.left.1", width)
            if not paths:
                weights[f"{name}.left.3.weight"] = torch.randn(width, width, 3, 3) * 0.1
            for path in range(paths):
                weights[f"{name}.left.3.conv.{path}.weight"] = torch.randn(width, width, 1, 1) * 0.1
                weights[f"{name}.left.3.ST.{path}.T"] = torch.randn(side, side)
                weights[f"{name}.left.3.v.{path}"] = torch.rand(side, side)
            weights |= batch_norm(f"{name}.left.4", width)
            if channels != width:
                weights[f"{name}.shortcut.0.weight"] = torch.randn(width, channels, 1, 1) * 0.2
                weights |= batch_norm(f"{name}.shortcut.1", width)
            channels = width
    return weights | {"fc.weight": torch.randn(10, 64), "fc.bias": torch.randn(10)}


def authors_network(weights, x, paths, order):
    """Logits of normalised images, written as HT-2023 has it, by dense matrices."""

    def norm(x, name):
        values = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *values)

    def second(x, name):
        if not paths:
            return F.conv2d(x, weights[f"{name}.weight"], padding=1)
        h = hadamard_matrix(x.shape[-1], order)
        total = 0
        for path in range(paths):
            y = F.conv2d(h @ x @ h * weights[f"{name}.v.{path}"], weights[f"{name}.conv.{path}.weight"])
            total = total + y.sign() * (y.abs() - weights[f"{name}.ST.{path}.T"].relu()).relu()
        y = h @ total @ h / x.shape[-1] ** 2
        return x + y if paths == 1 else y

    x = norm(F.conv2d(x, weights["conv1.0.weight"], padding=1), "conv1.1").relu()
    for stage in (1, 2, 3):
        for block in range(3):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, weights[f"{name}.left.0.weight"], stride=stride, padding=1)
            y = norm(second(norm(y, f"{name}.left.1").relu(), f"{name}.left.3"), f"{name}.left.4")
            if stride == 2:
                x = norm(F.conv2d(x, weights[f"{name}.shortcut.0.weight"], stride=2), f"{name}.shortcut.1")
            x = (x + y).relu()
    return F.linear(x.mean((2, 3)), weights["fc.weight"], weights["fc.bias"])


@pytest.mark.parametrize(
    ("name", "paths"), list(zip(MODELS, (0, 1, 3, 3, 5), strict=True)), ids=lambda value: str(value)
)
def test_an_imported_network_answers_as_the_authors_layout_says(name, paths, tmp_path):
    weights = authors_weights(paths)
    torch.save(weights, tmp_path / "theirs.pth")
    classifier = import_released(tmp_path / "theirs.pth", name)
    x = torch.randn(2, 3, 32, 32)
    expected = authors_network(weights, x, paths, MODELS[name].order)
    with torch.no_grad():
        torch.testing.assert_close(classifier.network(x), expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


def test_the_command_writes_a_classifier(scripts, tmp_path, monkeypatch, capsys):
    torch.save(authors_weights(), tmp_path / "theirs.pth")
    argv = ["x", str(tmp_path / "theirs.pth"), "--model", THREE, "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", argv)
    scripts("import_released").main()
    assert "199,898 parameters" in capsys.readouterr().out
    classifier = Classifier.load(tmp_path / "out")
    assert classifier.classes[6] == "frog"
    torch.testing.assert_close(classifier.std.flatten(), torch.tensor([0.2023, 0.1994, 0.2010]))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(classifier.eval()(images), import_released(tmp_path / "theirs.pth", THREE)(images))


def without(name):
    return {key: value for key, value in authors_weights().items() if key != name}


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (lambda: authors_weights(1), "lacks layer1.0.conv2.convs.1.weight; lacks .*; … \\("),
        (lambda: authors_weights(5), "has layer1.0.conv2.convs.3.weight, which the network has not"),
        (lambda: without("fc.bias"), "it lacks fc.bias$"),
        (lambda: authors_weights() | {"extra": torch.ones(1)}, "it has extra, which the network has not$"),
        (
            lambda: authors_weights() | {"layer3.2.left.3.v.1": torch.ones(4, 4)},
            r"weight.1 of shape \(4, 4\), not \(8, 8\)",
        ),
        (lambda: [1, 2], "no state dict"),
    ],
)
def test_a_file_of_another_network_is_refused(weights, words, tmp_path):
    torch.save(weights(), tmp_path / "theirs.pth")
    with pytest.raises(BackboneError, match=rf"theirs\.pth.*{words}"):
        import_released(tmp_path / "theirs.pth", THREE)


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(ReleasedError, match=r"no released model 'x'.*ht2023/resnet20-5path"):
        import_released(tmp_path, "x")
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    for name in ("nothing.pth", "broken.pth"):
        with pytest.raises(BackboneError, match=f"{name} can't be read"):
            import_released(tmp_path / name, THREE)
    with pytest.raises(ReleasedError, match=r"resnet20-WHTConvx3\.test_acc\.npy can't be read"):
        logged_accuracies(tmp_path, THREE)
    monkeypatch.delenv(released.FOLDER, raising=False)
    with pytest.raises(ReleasedError, match=r"WHTNET_HT2023 is not set.*phy710/ICML2023-HT"):
        released_folder()
    monkeypatch.setenv(released.FOLDER, str(tmp_path / "gone"))
    with pytest.raises(ReleasedError, match="gone is no folder"):
        released_folder()


def tiny_table(monkeypatch, tmp_path, best):
    """A table of one network whose log says ``best``, on three images that it gets right."""
    torch.save(authors_weights(), tmp_path / "resnet20-WHTConvx3.pth")
    np.save(tmp_path / "resnet20-WHTConvx3.test_acc.npy", np.array([best, 0.5]))
    monkeypatch.setenv(released.FOLDER, str(tmp_path))
    monkeypatch.setattr("whtnet.tables.released.evaluate", lambda *_: {"top1": 91.25})
    monkeypatch.setattr(
        "whtnet.tables.released.load_dataset",
        lambda **_: load_dataset("synthetic", size=32, train_size=20, test_size=10),
    )
    path = EXPERIMENTS / "ht2023_released.yaml"
    (tmp_path / path.name).write_text(
        path.read_text().split("rows:")[0] + f"rows: [{{id: a, model: {THREE}, label: A}}]"
    )
    return load_spec(tmp_path, path.stem)


@pytest.mark.parametrize(("best", "verdict", "outcome"), [(0.9127, "equal", "passed"), (0.9128, "differs", "failed")])
def test_the_table_and_its_check(best, verdict, outcome, monkeypatch, tmp_path):
    spec = tiny_table(monkeypatch, tmp_path, best)
    (row,) = measured = measure_released(spec, tmp_path, lambda _: None)
    assert row == {"id": "a", "parameters": 199_898, "best": round(100 * best, 2), "last": 50.0, "ours": 91.25}
    (table,) = released_tables(spec, measured)
    assert table.texts == [["A", "199,898", "50.00", f"{100 * best:.2f}", "91.25", verdict]]
    (check,) = check_released([spec], lambda _: None)
    assert check.outcome == outcome
    monkeypatch.delenv(released.FOLDER)
    (check,) = check_released([spec], lambda _: None)
    assert (check.outcome, "WHTNET_HT2023" in check.reason) == ("skipped", True)


@pytest.mark.parametrize("name", MODELS)
def test_released_checkpoints_are_read(name):
    if not ORACLES.is_dir():
        pytest.skip(f"no released checkpoints in {ORACLES}")
    classifier = import_released(ORACLES / f"{MODELS[name].stem}.pth", name)
    plain = build_backbone("resnet20", form="no_bias")
    assert (classifier.report.after.parameters == sum(p.numel() for p in plain.parameters())) == (
        name == "ht2023/resnet20"
    )
    assert max(logged_accuracies(ORACLES, name)) > 91


@pytest.mark.slow
def test_released_networks_give_the_accuracies_of_their_logs():
    if not ORACLES.is_dir():
        pytest.skip(f"no released checkpoints in {ORACLES}")
    try:
        rows = measure_released(load_spec(EXPERIMENTS, "ht2023_released"), ORACLES, lambda _: None)
    except DatasetNotFoundError as error:
        pytest.skip(str(error))
    assert [row["ours"] for row in rows] == pytest.approx([91.66, 91.25, 91.29, 91.27, 91.57], abs=0.02)
    assert all(is_equal(row["ours"], row["best"]) for row in rows)
