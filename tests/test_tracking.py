import csv
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from whtnet.errors import UserError
from whtnet.experiment import Experiment
from whtnet.preemption import EXIT_STATUS, PreemptedError
from whtnet.runs import run
from whtnet.tracking import (
    NullSink,
    RunInfo,
    TensorBoardSink,
    WandbSink,
    best_and_last,
    make_sink,
    put_epoch,
    wandb_sink,
)

ROOT = Path(__file__).parents[1]


# --- sinks ---


def info(run_dir, **fields):
    config = {"policy": {"name": "conv3x3"}, "lr": 0.1, "unset": None, "dir": Path("runs"), "nan": float("nan")}
    tags = ["resnet20", "conv3x3", "cifar10"]
    return RunInfo("resnet20-s0", "cifar10_resnet20", config, run_dir, tags=tags, **fields)


def test_the_null_sink_takes_everything():
    sink = make_sink("none")
    assert isinstance(sink, NullSink)
    sink.start(info(Path("unused")))
    sink.log(0, {"loss": 1.0})
    sink.show_answers(lambda: pytest.fail("computed for nobody"))
    sink.log_layers(1, lambda: pytest.fail("computed for nobody"))
    sink.finish({}, status=1)


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "none"])
def test_the_shipped_configurations_build_their_sinks(name):
    options = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "logger" / f"{name}.yaml"))
    kinds = {"wandb": WandbSink, "tensorboard": TensorBoardSink, "none": NullSink}
    assert type(make_sink(**options)) is kinds[name]


def test_unknown_names_are_named():
    with pytest.raises(UserError, match="'mlflow'; choose one of wandb, tensorboard, none"):
        make_sink("mlflow")
    with pytest.raises(UserError, match=r"no setting logger\.projct; did you mean logger\.project"):
        make_sink("wandb", projct="mine")
    with pytest.raises(UserError, match=r"logger\.artifact must be true or false, got 'yes'"):
        make_sink("wandb", artifact="yes")
    with pytest.raises(UserError, match="'dryrun'; choose one of auto"):
        make_sink("wandb", mode="dryrun")


@pytest.mark.parametrize("module", [None, types.ModuleType("wandb")], ids=["absent", "folder of runs"])
def test_without_wandb_the_remedy_is_named_and_none_works(monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, "wandb", module)
    make_sink("none").start(info(tmp_path))
    with pytest.raises(UserError, match=r"pip install wandb.*logger=none"):
        make_sink("wandb").start(info(tmp_path))


@pytest.fixture(scope="module", autouse=True)
def _no_account(tmp_path_factory):
    """Hide the account and the settings of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("NETRC", str(home / "netrc"))
        patch.setenv("WANDB_CONFIG_DIR", str(home))
        yield


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Folder, notice and records of a run that was interrupted after epoch 2 and resumed, without an API key."""
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("logged")
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(words)))
        wandb_sink._say_offline.cache_clear()
        for resumed, epochs in ((False, (0, 1, 2)), (True, (2, 3))):
            sink = make_sink("wandb")
            sink.start(info(Path("run"), notes="a note"))
            for epoch in epochs:
                sink.log(epoch, {"train/loss": 1 / (1 + epoch), "lr": 0.1})
            sink.finish({"test/top1": 90.5, "parameters": 270_000, "nothing": float("nan")}, status=int(not resumed))
    return folder, said, read_back(folder)


def read_back(folder):
    """Records of the offline runs, oldest first, by wandb's own reader."""
    parts = []
    for part in folder.glob("wandb/offline-run-*"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(part)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        parts.append([json.loads(line) for line in out.splitlines()])
    return sorted(parts, key=lambda records: pick(records, "run")[0]["start_time"])


def pick(records, kind):
    return [r[kind] for r in records if r["type"] == kind]


def summary_of(records):
    summary = {}
    for update in pick(records, "summary"):
        summary |= update["update"]
    return summary


def test_offline_is_said_once_with_commands_that_work(logged):
    folder, said, _ = logged
    (line,) = said
    assert line == (
        "wandb: no API key found, logging offline to ./wandb; browse with `wandb leet ./wandb`, "
        "upload with `wandb sync --yes ./wandb/offline-run-*`"
    )
    _, sync = re.findall("`(.*?)`", line)
    command = f"{sys.executable} -m {sync} --dry-run"
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True)
    assert "Would sync 2 run(s)" in done.stdout + done.stderr


def test_wandb_gets_config_group_tags_and_both_parts_under_one_id(logged):
    folder, _, parts = logged
    runs = [pick(records, "run")[0] for records in parts]
    for begun in runs:
        config = {key: value for key, value in begun["config"]["update"].items() if key != "_wandb"}
        assert config == {"policy": {"name": "conv3x3"}, "lr": 0.1, "unset": None, "dir": "runs", "nan": None}
        assert (begun["project"], begun["run_group"], begun["display_name"]) == (
            "whtnet",
            "cifar10_resnet20",
            "resnet20-s0",
        )
        assert sorted(begun["tags"]) == ["cifar10", "conv3x3", "resnet20"]
        assert begun["notes"] == "a note"
    assert {begun["run_id"] for begun in runs} == {(folder / "run" / "wandb_id").read_text()}


def test_wandb_gets_the_metrics_by_epoch_and_the_summary(logged):
    _, _, parts = logged
    assert [[(h["step"]["num"], h["item"]["epoch"]) for h in pick(records, "history")] for records in parts] == [
        [(0, 0), (1, 1), (2, 2)],
        [(2, 2), (3, 3)],
    ]
    assert [h["item"]["train/loss"] for h in pick(parts[0], "history")] == pytest.approx([1, 1 / 2, 1 / 3])
    globs = [metric for metric in pick(parts[0], "metric") if metric.get("glob_name") == "*"]
    assert [metric["step_metric"] for metric in globs] == ["epoch"]
    summary = summary_of(parts[1])
    assert summary["test/top1"] == 90.5
    assert summary["parameters"] == 270_000
    assert summary["nothing"] is None
    assert [pick(records, "exit")[0].get("exit_code", 0) for records in parts] == [1, 0]


def test_wandb_gets_neither_host_nor_paths_nor_packages(logged):
    folder, _, parts = logged
    for part in folder.glob("wandb/offline-run-*"):
        assert {file.name for file in (part / "files").rglob("*") if file.is_file()} <= {"output.log"}
    # The fields' text as wandb reads it back: the file's own bytes (numbers, checksums) spell a short name by chance.
    content = json.dumps(parts, ensure_ascii=False)
    for secret in (platform.node(), str(ROOT), str(folder), str(Path.home()), sys.executable):
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", content)


class Broken:
    """A run of wandb whose service has died."""

    offline, dir, id = True, "wandb/run/files", "abc"
    summary: dict = {}  # noqa: RUF012

    def define_metric(self, *_, **__):
        pass

    def log(self, *_, **__):
        raise ConnectionResetError("service died")

    finish = log


def test_a_failure_of_wandb_stops_neither_training_nor_its_end(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    sink = make_sink("wandb", mode="offline")
    sink.start(info(tmp_path))
    with pytest.warns(RuntimeWarning, match="goes on without it.*service died"):
        sink.log(0, {"loss": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        sink.log(1, {"loss": 1.0})
        sink.finish({})
    sink.start(info(tmp_path))
    with pytest.warns(RuntimeWarning, match="goes on without it"):
        sink.finish({})


def test_a_run_that_wandb_cannot_begin(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    modes = []

    def init(mode, **_):
        modes.append(mode)
        if mode == "online":
            raise OSError("no network")
        return Broken()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.warns(RuntimeWarning, match="cannot log online.*no network"):
        make_sink("wandb").start(info(tmp_path))
    assert modes == ["online", "offline"]
    with pytest.raises(UserError, match="no network; check `wandb login`"):
        make_sink("wandb", mode="online").start(info(tmp_path))
    assert modes == ["online", "offline", "online"]


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "0" * 40}, "online"),
        ({"WANDB_API_KEY": "short"}, "offline"),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "disabled"}, None),
    ],
)
def test_auto_follows_wandb_mode_and_then_the_key(tmp_path, monkeypatch, variables, mode):
    wandb = pytest.importorskip("wandb")
    from wandb.sdk.lib import wbauth

    modes = []
    monkeypatch.setattr(wandb, "init", lambda mode, **_: modes.append(mode) or Broken())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    make_sink("wandb").start(info(tmp_path))
    wbauth.unauthenticate_session()
    assert modes == ([mode] if mode else [])


def test_wandb_gets_tables_and_images(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4), (255, 0, 0)).save("curves.png")
    sink = make_sink("wandb")
    sink.start(info(Path("run")))
    sink.show(
        {"Accuracy": (["row", "top-1"], [["baseline", "91.0"], ["paper", "90.1"]])}, {"curves": Path("curves.png")}
    )
    sink.finish({})
    (run,) = tmp_path.glob("wandb/offline-run-*")
    (table,) = run.glob("files/media/table/*.json")
    saved = json.loads(table.read_text())
    assert saved["columns"] == ["row", "top-1"]
    assert saved["data"] == [["baseline", "91.0"], ["paper", "90.1"]]
    (image,) = run.glob("files/media/images/*.png")
    assert Image.open(image).getpixel((0, 0)) == (255, 0, 0)


def test_a_table_that_wandb_cannot_take_stops_nothing(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    sink = make_sink("wandb")
    sink.start(info(Path("run")))
    with pytest.warns(RuntimeWarning, match="goes on without it"):
        sink.show({}, {"curves": Path("missing.png")})
    sink.finish({})
    make_sink("none").show({}, {"curves": Path("missing.png")})


# --- whole runs ---


def experiment(**trainer):
    return Experiment.from_config(
        {
            "backbone": {"name": "resnet20"},
            "policy": {"name": "mine", "rules": [{"match": "conv3x3", "replace": "FWHT2d", "where": {"nth": 2}}]},
            "dataset": {"name": "synthetic", "size": 8, "train_size": 64, "test_size": 32},
            "trainer": {"epochs": 3, "batch_size": 16, "precision": "fp32", "lr": 0.02, **trainer},
            "device": "cpu",
        }
    )


def preempt_after(epoch):
    def on_epoch(metrics):
        if metrics["epoch"] == epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_epoch


def preempted_run(logger, place, **options):
    """Record and folder of a run in ``place`` that was preempted in its second epoch and resumed."""
    pytest.importorskip(logger)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        with pytest.raises(PreemptedError):
            run(experiment(), sink=make_sink(logger, **options), on_epoch=preempt_after(1))
        time.sleep(1.1)  # wandb names the folders of a run by the second
        record = run(experiment(), sink=make_sink(logger, **options))
    return record, place / experiment().folder(Path("runs"))


@pytest.fixture(scope="module")
def in_wandb(tmp_path_factory):
    """Records of both parts, record and folder of the run."""
    place = tmp_path_factory.mktemp("wandb")
    # wandb's process stays where the first test began it, so that it is told the folder.
    record, folder = preempted_run("wandb", place, dir=str(place))
    return read_back(place), record, folder


@pytest.fixture(scope="module")
def in_tensorboard(tmp_path_factory):
    """Record and folder of the run."""
    return preempted_run("tensorboard", tmp_path_factory.mktemp("tensorboard"))


def test_a_run_is_named_and_its_config_says_what_differs(in_wandb):
    parts, _, folder = in_wandb
    for begun in (pick(part, "run")[0] for part in parts):
        assert (begun["display_name"], begun["job_type"]) == ("resnet20-mine-seed0", "train")
        config = begun["config"]["update"]
        assert config["policy"] == {"name": "mine", "options": {}}
        assert config["run_folder"] == f"runs/synthetic/{folder.name}"
        assert config["trainer"]["lr"] == 0.02


def test_a_preempted_run_is_no_failed_one(in_wandb):
    parts, _, _ = in_wandb
    assert [len(pick(part, "preempting")) for part in parts] == [1, 0]
    assert [pick(part, "exit")[0].get("exit_code", 0) for part in parts] == [EXIT_STATUS, 0]


def test_epochs_and_steps_of_both_parts_line_up(in_wandb):
    parts, record, _ = in_wandb
    rows = [row for part in parts for row in pick(part, "history")]
    epochs = [row for row in rows if "train_loss" in row["item"]]
    assert [(row["step"]["num"], row["item"]["epoch"]) for row in epochs] == [(4, 1), (8, 2), (12, 3)]
    for name in ("train_loss", "test_top1", "gradient_norm"):
        assert [row["item"][name] for row in epochs] == pytest.approx([epoch[name] for epoch in record["history"]])
    steps = [row for row in rows if "steps/loss" in row["item"]]
    assert [row["item"]["epoch"] for row in steps] == [1, 2, 3]
    assert steps[0]["item"]["steps/loss"] == pytest.approx(record["history"][0]["train_loss"])


def test_layers_have_curves(in_wandb):
    parts, record, _ = in_wandb
    last = [row["item"] for row in pick(parts[1], "history") if "train_loss" in row["item"]][-1]
    for layer in record["layers"]:
        low, mean, high = (last[f"layers/{layer['name']}/threshold_{key}"] for key in ("min", "mean", "max"))
        values = [value for row in layer["threshold"] for value in row]
        assert low == pytest.approx(min(values), abs=2e-3)
        assert high == pytest.approx(max(values), abs=2e-3)
        assert low < mean < high
        assert last[f"layers/{layer['name']}/zero_share"] == pytest.approx(layer["zero_share"], abs=1e-3)


def test_the_summary_has_the_best_and_the_last_of_the_whole_run(in_wandb):
    parts, record, _ = in_wandb
    summary = summary_of(parts[1])
    for name, best in (("test_top1", max), ("train_loss", min), ("test_loss", min)):
        values = [epoch[name] for epoch in record["history"]]
        assert summary[name] == pytest.approx({best.__name__: best(values), "last": values[-1]})
    assert summary["parameters"] == record["cost"]["parameters"]
    defined = {metric["name"]: metric.get("summary") for metric in pick(parts[0], "metric") if "name" in metric}
    assert defined["test_top1"] == {"max": True, "last": True}
    assert defined["test_loss"] == {"min": True, "last": True}


def test_sites_predictions_and_confusion_are_tables(in_wandb):
    _, record, folder = in_wandb

    def table(name):
        (path,) = sorted(folder.parents[2].glob(f"wandb/*/files/media/table/{name}_*.json"))[-1:]
        return json.loads(path.read_text())

    sites = table("replaced sites")
    assert sites["columns"][:3] == ["name", "kind", "layer"]
    assert [row[0] for row in sites["data"]] == [layer["name"] for layer in record["layers"]]
    predictions = table("predictions")
    assert len(predictions["data"]) == 16
    assert {row[1] for row in predictions["data"]} <= {f"class {i}" for i in range(4)}
    confusion = table("confusion_matrix_table")
    assert sum(row[2] for row in confusion["data"]) == 32
    right = sum(row[2] for row in confusion["data"] if row[0] == row[1])
    assert 100 * right / 32 == pytest.approx(record["test_top1"])


def test_the_model_is_an_artifact(in_wandb, tmp_path, monkeypatch):
    parts, _, folder = in_wandb
    models = [artifact for part in parts for artifact in pick(part, "artifact") if artifact["type"] == "model"]
    ((file,),) = (model["manifest"]["contents"] for model in models)
    assert (file["path"], file["size"]) == ("checkpoint.pt", str((folder / "checkpoint.pt").stat().st_size))
    monkeypatch.chdir(tmp_path)
    run(experiment(epochs=1), sink=make_sink("wandb", dir=str(tmp_path), artifact=False))
    (part,) = read_back(tmp_path)
    assert "model" not in {artifact["type"] for artifact in pick(part, "artifact")}


def test_tensorboard_gets_one_line_of_curves(in_tensorboard):
    record, folder = in_tensorboard
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for metric in ("train_loss", "test_top1", "gradient_norm"):
        points = events.Scalars(f"epochs/{metric}")
        assert [point.step for point in points] == [4, 8, 12]
        assert [point.value for point in points] == pytest.approx([epoch[metric] for epoch in record["history"]])
    assert len(events.Scalars("steps/loss")) == 3
    assert len(events.Scalars(f"layers/{record['layers'][0]['name']}/zero_share")) == 3
    tags = events.Tags()
    assert {"replaced sites/text_summary", "confusion matrix/text_summary"} <= set(tags["tensors"])
    assert len(tags["images"]) == 16


def test_without_tensorboard_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install tensorboard.*logger=none"):
        make_sink("tensorboard").start(info(tmp_path))


def test_a_failure_of_tensorboard_stops_nothing(tmp_path):
    pytest.importorskip("tensorboard")
    sink = make_sink("tensorboard")
    sink.start(info(tmp_path))
    with pytest.warns(RuntimeWarning, match="TensorBoard failed, this run goes on without it"):
        sink.show({}, {"curves": Path("missing.png")})
    sink.log(1, {"loss": 1.0})
    sink.finish({})


# --- the file of curves ---


def read_curves(path):
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_every_run_leaves_its_curves(in_tensorboard):
    record, folder = in_tensorboard
    assert read_curves(folder / "metrics.csv") == record["history"]


def test_curves_grow_by_epochs_and_drop_what_is_trained_again(tmp_path):
    path = tmp_path / "metrics.csv"
    for epoch, loss in ((1, 3.0), (2, 2.0), (3, 1.0), (2, 1.5)):
        put_epoch(path, {"epoch": epoch, "train_loss": loss})
    put_epoch(path, {"epoch": 3, "train_loss": 0.5, "test_top1": 90.0})
    assert path.read_text() == "epoch,train_loss,test_top1\n1,3.0,\n2,1.5,\n3,0.5,90.0\n"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a,b\n1,2\n", b"epoch\nfirst\n", b"epoch,a\n1,2,3\n"])
def test_a_foreign_file_of_curves_is_replaced(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    put_epoch(path, {"epoch": 1, "train_loss": 2.0})
    assert read_curves(path) == [{"epoch": 1, "train_loss": 2.0}]


def test_the_best_is_the_lowest_loss_and_the_highest_accuracy():
    history = [{"epoch": 1, "test_loss": 1.0, "test_top1": 50.0}, {"epoch": 2, "test_loss": 2.0, "lr": 0.1}]
    assert best_and_last(history) == {
        "test_loss": {"min": 1.0, "last": 2.0},
        "test_top1": {"max": 50.0, "last": 50.0},
    }
