import json
import os
import platform
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from whtnet import tracking
from whtnet.errors import UserError
from whtnet.tracking import NullSink, RunInfo, WandbSink, make_sink

ROOT = Path(__file__).parents[1]


def record(row, seed=0, **fields):
    return {"table": "t", "row": row, "seed": seed, **fields}


# --- sinks ---


def info(run_dir, **fields):
    config = {"policy": {"name": "conv3x3"}, "lr": 0.1, "unset": None, "dir": Path("runs"), "nan": float("nan")}
    return RunInfo("resnet20-s0", "cifar10_resnet20", config, run_dir, ["resnet20", "conv3x3", "cifar10"], **fields)


def test_the_null_sink_takes_everything():
    sink = make_sink("none")
    assert isinstance(sink, NullSink)
    sink.start(info(Path("unused")))
    sink.log(0, {"loss": 1.0})
    sink.finish({}, failed=True)


@pytest.mark.parametrize("name", ["wandb", "none"])
def test_the_shipped_configurations_build_their_sinks(name):
    options = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "logger" / f"{name}.yaml"))
    assert type(make_sink(**options)) is {"wandb": WandbSink, "none": NullSink}[name]


def test_unknown_names_are_named():
    with pytest.raises(UserError, match="'tensorboard'; choose one of wandb, none"):
        make_sink("tensorboard")
    with pytest.raises(UserError, match="'dryrun'; choose one of auto"):
        make_sink("wandb", mode="dryrun")


@pytest.mark.parametrize("module", [None, types.ModuleType("wandb")], ids=["absent", "folder of runs"])
def test_without_wandb_the_remedy_is_named_and_none_works(monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, "wandb", module)
    make_sink("none").start(info(tmp_path))
    with pytest.raises(UserError, match=r"pip install whtnet\[wandb\].*logger=none"):
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
        tracking._say_offline.cache_clear()
        for resumed, epochs in ((False, (0, 1, 2)), (True, (2, 3))):
            sink = make_sink("wandb")
            sink.start(info(Path("run"), notes="a note"))
            for epoch in epochs:
                sink.log(epoch, {"train/loss": 1 / (1 + epoch), "lr": 0.1})
            sink.finish({"test/top1": 90.5, "parameters": 270_000, "nothing": float("nan")}, failed=not resumed)
        parts = []
        for part in sorted(folder.glob("wandb/offline-run-*"), key=lambda part: part.stat().st_ctime_ns):
            command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(part)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            parts.append([json.loads(line) for line in out.splitlines()])
    parts.sort(key=lambda records: next(r for r in records if r["type"] == "run")["run"]["start_time"])
    return folder, said, parts


def pick(records, kind):
    return [r[kind] for r in records if r["type"] == kind]


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
    for run in runs:
        config = {key: value for key, value in run["config"]["update"].items() if key != "_wandb"}
        assert config == {"policy": {"name": "conv3x3"}, "lr": 0.1, "unset": None, "dir": "runs", "nan": None}
        assert (run["project"], run["run_group"], run["display_name"]) == ("whtnet", "cifar10_resnet20", "resnet20-s0")
        assert sorted(run["tags"]) == ["cifar10", "conv3x3", "resnet20"]
        assert run["notes"] == "a note"
    assert {run["run_id"] for run in runs} == {(folder / "run" / "wandb_id").read_text()}


def test_wandb_gets_the_metrics_by_epoch_and_the_summary(logged):
    _, _, parts = logged
    assert [[(h["step"]["num"], h["item"]["epoch"]) for h in pick(records, "history")] for records in parts] == [
        [(0, 0), (1, 1), (2, 2)],
        [(2, 2), (3, 3)],
    ]
    assert [h["item"]["train/loss"] for h in pick(parts[0], "history")] == pytest.approx([1, 1 / 2, 1 / 3])
    assert {"glob_name": "*", "step_metric": "epoch"}.items() <= pick(parts[0], "metric")[-1].items()
    summary = {}
    for update in pick(parts[1], "summary"):
        summary |= update["update"]
    assert summary["test/top1"] == 90.5
    assert summary["parameters"] == 270_000
    assert summary["nothing"] is None
    assert [pick(records, "exit")[0].get("exit_code", 0) for records in parts] == [1, 0]


def test_wandb_gets_neither_host_nor_paths_nor_packages(logged):
    folder, _, _ = logged
    for part in folder.glob("wandb/offline-run-*"):
        assert [file for file in (part / "files").rglob("*") if file.is_file()] == []
        (data,) = part.glob("*.wandb")
        content = data.read_bytes()
        for secret in (platform.node(), str(ROOT), str(folder), str(Path.home()), sys.executable):
            assert secret.encode() not in content


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
