"""Networks, data sets and layers of one's own package, outside the repository, as the guide shows them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from whtnet import apply_policy_
from whtnet.backbones import BackboneError, build_backbone
from whtnet.classifier import Classifier
from whtnet.data import DatasetError, load_dataset
from whtnet.experiment import Experiment
from whtnet.extensions import TRUSTED, ExtensionError, is_extension, load_extension, trust, trust_typed
from whtnet.policy import PolicyError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
RULE = {"match": "conv3x3", "where": {"name": "^2$"}, "replace": "my_package:ChannelScale"}


def block(language):
    return re.search(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The guide's package in a folder of its own, which is worked in; nothing is trusted."""
    (tmp_path / "my_package.py").write_text(f"open('was_imported', 'w').close()\n{block('python')}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(TRUSTED, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_package", None)


def test_nothing_is_run_that_is_only_named(package):
    config = {"backbone": {"name": "my_package:net"}, "policy": {"rules": []}, "classes": "ab"}
    with pytest.raises(ExtensionError, match=r"trust=\[my_package\].*--trust my_package"):
        Classifier(**config, input_size=(3, 16, 16), mean=[0.0] * 3, std=[1.0] * 3)
    with pytest.raises(ExtensionError, match="only named"):
        load_dataset("my_package:squares")
    with pytest.raises(ExtensionError, match="only named"):
        apply_policy_(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1)), {"rules": [RULE | {"where": {}}]})
    with pytest.raises(ExtensionError, match="only named"):
        load_extension("os:system")  # imported already, but not for this
    experiment = Experiment.from_config(
        {
            "backbone": config["backbone"],
            "policy": {"rules": [RULE]},
            "dataset": {"name": "my_package:squares"},
        }
    )
    assert experiment.identity
    assert experiment.folder(package).parent == package / "my_package-squares"
    assert not (package / "was_imported").exists()


def test_what_is_typed_is_trusted_and_no_more(package):
    trust_typed(["backbone=my_package:net", "device=cuda:1", "seed=3"])
    assert os.environ[TRUSTED] == "my_package:net"
    assert isinstance(build_backbone("my_package:net", num_classes=3, width=4)[0], torch.nn.Conv2d)
    with pytest.raises(ExtensionError, match="only named"):
        load_extension("my_package:squares")
    trust_typed(["trust=[my_package]"])
    assert load_extension("my_package:squares")
    with pytest.raises(ExtensionError, match="only named"):
        load_extension("my_package_of_another:net")


def test_a_policy_puts_a_layer_of_ones_own(package):
    trust(["my_package"])
    model = build_backbone("my_package:net", num_classes=2)
    report = apply_policy_(model, {"rules": [RULE | {"options": {"start": 0.5}}]}, (3, 16, 16))
    assert type(model[2]).__name__ == "ChannelScale"
    assert model[2].weight.unique().item() == 0.5
    assert [(site.name, site.layer) for site in report.replacements] == [("2", "my_package:ChannelScale")]


def test_mistakes_are_named(package):
    with (package / "my_package.py").open("a") as file:
        file.write("\n\ndef count_classes(num_classes):\n    return num_classes\n")
    trust(["my_package", "no_such_module"])
    with pytest.raises(ExtensionError, match=r"no_such_module:net can't be imported"):
        build_backbone("no_such_module:net")
    with pytest.raises(ExtensionError, match=r"my_package:nets can't be imported"):
        build_backbone("my_package:nets")
    with pytest.raises(ExtensionError, match=r"my_package:net.*depth"):
        build_backbone("my_package:net", depth=3)
    with pytest.raises(BackboneError, match=r"stem is for the package's"):
        build_backbone("my_package:net", stem="cifar")
    with pytest.raises(BackboneError, match=r"count_classes must return a torch\.nn\.Module, not int"):
        build_backbone("my_package:count_classes")
    with pytest.raises(DatasetError, match=r"must return a whtnet\.data\.Source"):
        load_dataset("my_package:net", num_classes=2)


def test_a_layer_of_another_shape_leaves_the_model_as_it_was(package):
    trust(["my_package"])
    model = build_backbone("my_package:net", num_classes=2)
    before = str(model)
    with pytest.raises(PolicyError, match=r"0: my_package:ChannelScale makes \(3, 16, 16\).*must be \(8, 16, 16\)"):
        apply_policy_(model, {"rules": [RULE | {"where": {"name": "^0$"}}]}, (3, 16, 16))
    assert str(model) == before


def test_data_of_ones_own_is_known_by_its_place_too(package):
    with (package / "my_package.py").open("a") as file:
        file.write("\n\ndef found(root=None):\n    return squares()\n")
    trust(["my_package"])

    def experiment(**dataset):
        choices = {"backbone": {"name": "resnet20"}, "policy": {"name": "mine", "rules": [RULE]}}
        return Experiment.from_config({**choices, "dataset": {"name": "my_package:found", **dataset}})

    first = experiment(root="a")
    assert len({first.identity, experiment(root="b").identity, experiment().identity}) == 3
    record = {"settings": first.settings, "inputs": first.inputs, "identity": first.identity}
    assert Experiment.from_record(record).identity == first.identity


@pytest.mark.parametrize("name", ["resnet20", "timm/regnetx_002", "cuda:1", "a:b:c", "a.b", ":net", "a:", 3])
def test_other_names_are_none_of_ones_own(name):
    assert not is_extension(name)


@pytest.mark.slow
def test_the_guides_commands_run_outside_the_repository(package):
    (package / "policy").mkdir()
    (package / "policy" / "scaled.yaml").write_text(block("yaml"))
    train = shlex.split(block("sh"))[2:]
    settings = ["trainer.epochs=1", "trainer.batch_size=16", "logger=none"]
    done = run("train.py", *train, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    (model,) = (package / "runs" / "my_package-squares").iterdir()
    refused = run("scripts/evaluate.py", str(model))
    assert refused.returncode == 1
    assert "only named by settings" in refused.stdout + refused.stderr
    assert run("scripts/evaluate.py", str(model), "--trust", "my_package").returncode == 0
    untrusted = run("train.py", *(word for word in train if not word.startswith("trust")), *settings, "seed=1")
    assert untrusted.returncode == 1
    assert "my_package:ChannelScale is code that is only named" in untrusted.stdout + untrusted.stderr


def run(script, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
