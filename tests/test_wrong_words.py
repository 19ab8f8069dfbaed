"""What is typed wrongly ends in one line that names it, before anything that takes long."""

import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from whtnet import cli, commands
from whtnet.classifier import Classifier
from whtnet.commands.compose import compose_config
from whtnet.data import DatasetError, DatasetNotFoundError, load_dataset
from whtnet.engine import CheckpointError, load_checkpoint
from whtnet.errors import UserError
from whtnet.settings import ConfigError
from whtnet.shipped import ROOT


@pytest.fixture
def type_in(monkeypatch, capsys, tmp_path):
    """Types a command in an empty folder; gives its exit status and the one line that it says."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["whtnet", *words])
        with pytest.raises(SystemExit) as stop:
            commands.main()
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1, err
        return stop.value.code, err

    return call


@pytest.fixture
def model(tmp_path):
    """Folder of a saved classifier."""
    data = {"name": "synthetic", "size": 8}
    settings = {"backbone": {"name": "resnet20"}, "policy": {"name": "none", "rules": []}, "dataset": data}
    pixels = {"input_size": (3, 8, 8), "mean": [0.5] * 3, "std": [0.25] * 3}
    Classifier(**settings, **pixels, classes=[f"class {n}" for n in range(4)]).save_pretrained(tmp_path / "model")
    return "model"


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", "{"), ("config.json", "[]"), ("config.json", "{}"), ("model.safetensors", "garbage")],
)
def test_a_saved_model_that_is_damaged(type_in, model, tmp_path, file, content):
    (tmp_path / model / file).write_text(content)
    status, line = type_in("evaluate", model)
    assert status == 1
    assert "error: model holds a damaged model, save it again: it can't be read (" in line


def images(folder):
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "0.png")


@pytest.mark.parametrize(
    "word", ["dataset", "dataset.root", "=3", "dig", "trainer.epochs=3", "dataset=", "dataset.x ="]
)
def test_only_settings_of_the_data_set_apply_to_a_model(type_in, model, word):
    assert type_in("evaluate", model, word)[0] == 1


def test_a_pattern_that_fits_several_runs(type_in, model):
    assert "'runs/b' is one model too many; give one" in type_in("evaluate", model, "runs/b")[1]


def test_words_that_an_export_would_pass_over(type_in):
    assert "give --to onnx" in type_in("export", "nowhere", "onnx")[1]
    assert "only --to int8 reads images" in type_in("export", "nowhere", "dataset.root=x")[1]
    assert "only --to int8 reads images" in type_in("export", "nowhere", "--to", "torch", "dataset.root=x")[1]
    assert "add onnx or int8 to --to" in type_in("export", "nowhere", "--to", "torch", "--time")[1]


def test_places_that_cannot_be_written_are_told_at_once(type_in, tmp_path):
    (tmp_path / "file").write_text("")
    for words in (["export", "m", "--output", "file"], ["evaluate", "m", "--json", "file/e.json"]):
        status, line = type_in(*words)
        assert status == 2
        assert "cannot write " in line
    assert "'.' is a folder; give the name of a file" in type_in("report", "--output", ".")[1]
    for words in (["export", "m", "--output", "a" * 300], ["report", "--output", "a" * 300], ["evaluate", "a" * 300]):
        assert "File name too long" in type_in(*words)[1]


def test_a_report_on_nothing_is_not_written(type_in, tmp_path):
    (tmp_path / "empty").mkdir()
    status, line = type_in("report", "--results", "empty")
    assert status == 1
    assert line.startswith("error: empty holds no table to report on; make the quick ones with `make reproduce-table`")
    assert not any((tmp_path / "empty").iterdir())


def test_no_other_file_is_written_over(type_in, model, tmp_path):
    (tmp_path / "record.json").write_text('{"format": 2}')
    for words in (["evaluate", model, "--json"], ["report", "--output"]):
        for file in ("record.json", "model/model.safetensors"):
            assert f"'{file}' is there and holds something else; name a new file" in type_in(*words, file)[1]
    assert (tmp_path / "record.json").read_text() == '{"format": 2}'


def test_an_export_without_its_data_writes_nothing(type_in, model, tmp_path):
    assert "unknown option dataset.nam" in type_in("export", model, "dataset.nam=x", "--to", "int8")[1]
    assert "unknown option dataset.nam" in type_in("export", model, "--to", "int8", "dataset.nam=x")[1]
    assert not (tmp_path / "exports").exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc here")
def test_rights_alone_do_not_make_a_place_writable(type_in):
    for words in (["export", "m", "--output", "/proc/x"], ["evaluate", "m", "--json", "/proc/x"]):
        assert "cannot write /proc" in type_in(*words)[1]


def test_images_that_are_not_there(type_in, tmp_path):
    assert "there is no file 'cat.png'" in type_in("predict", "model", "cat.png")[1]
    (tmp_path / "cats").mkdir()
    assert "'cats' is a folder; give images: cats/*" in type_in("predict", "model", "cats")[1]


def test_a_file_that_is_no_checkpoint(tmp_path):
    for name, content in (("image.png", b"\x89PNG"), ("empty.pt", b""), ("garbage.pt", b"garbage")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name} can't be read as a checkpoint, .*name the folder") as error:
            load_checkpoint(tmp_path / name, None, torch.device("cpu"))
        assert "\n" not in str(error.value)


def test_options_of_a_table_that_would_be_passed_over(type_in):
    assert "made by the recipe short; leave out --recipe" in type_in("table", "digits", "--recipe", "authors")[1]
    assert "no logger 'foo'" in type_in("table", "digits", "--no-training", "--logger", "foo")[1]
    assert "did you mean digits?" in type_in("table", "digit")[1]


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("policy=null", "policy=null is no choice; there are conv1x1, "),
        ("dataset=2024", "dataset=2024 is no choice; there are cifar10, "),
        ("trainer=true", "trainer=true is no choice; "),
        ("dataset.root=x", "dataset.root is no setting of the dataset that is chosen; cifar10, .*timm have it"),
        (
            "backbone.pretrained=true",
            "backbone.pretrained is no setting of the backbone that is chosen; mobilenet_v2, ",
        ),
    ],
)
def test_overrides_that_do_not_fit(override, answer):
    with pytest.raises(UserError, match=answer):
        compose_config([override])


def test_a_config_that_there_is_not():
    with pytest.raises(UserError, match="no config 'conf'; did you mean config"):
        compose_config([], "conf")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--multrun", "did you mean --multirun?"),
        ("--cfg=foo", "invalid choice: 'foo'"),
        ("-x", "unrecognized"),
        ("--resolve", "--resolve is for --cfg"),
        ("--run --multirun", "--run, --multirun, "),
        ("--config-name=count_params", "count_params is no config of a run; leave out --config-name"),
        ("--config-path=/", "--config-path takes the place of the project's configs, and / has no config.yaml"),
        ("-m --config-name trainer/short.yaml seed=0,1", "trainer/short is no config of a run"),
    ],
)
def test_options_of_hydra(type_in, tmp_path, words, answer):
    status, line = type_in("train", *words.split())
    assert status == 2
    assert line.startswith("error: ")
    assert answer in line
    assert not any(tmp_path.iterdir())


def test_a_config_path_from_here(type_in, tmp_path):
    configs = ROOT / "configs"
    status, line = type_in("train", f"--config-path={os.path.relpath(configs, tmp_path)}")
    assert status == 2
    assert f"--config-path must be absolute: --config-path={configs}" in line


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("~trainer", "trainer was taken away"),
        ("++sead=3", "no setting 'sead'; did you mean seed?"),
        ("group=[1]", "is no word"),
    ],
)
def test_settings_that_no_run_has_or_can_do_without(override, answer):
    with pytest.raises(ConfigError, match=answer):
        cli._check_names(compose_config([override]))


@pytest.mark.parametrize("size", [0, [0, 16], [16], [1, 2, 16, 16]])
def test_sizes_of_images_that_cannot_be(tmp_path, size):
    for split in ("train", "val"):
        images(tmp_path / split / "a")
    with pytest.raises(DatasetError, match="is no size of images"):
        load_dataset("timm", root=str(tmp_path), input_size=size)


def test_a_folder_with_train_and_test(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            images(tmp_path / split / name)
    assert load_dataset("timm", root=str(tmp_path), input_size=8).sizes == {"train": 2, "test": 2}
    images(tmp_path / "val" / "a")
    with pytest.warns(UserWarning, match="val has no images of 'b'"):
        assert load_dataset("timm", root=str(tmp_path), input_size=8).sizes == {"train": 2, "test": 1}


def test_roots_that_hold_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name, reason in (("file", "it is a file"), ("folder", "the folder is empty"), ("none", "no such folder")):
        with pytest.raises(DatasetNotFoundError, match=reason):
            load_dataset("timm", root=str(tmp_path / name), input_size=8)
    (tmp_path / "folder" / "train.tar.gz").write_text("")
    with pytest.raises(DatasetNotFoundError, match=r"train\.tar\.gz is compressed: unpack it"):
        load_dataset("timm", root=str(tmp_path / "folder"), input_size=8)
