import multiprocessing

import pytest
import torch

from whtnet.backbones import BackboneError
from whtnet.data import DatasetError, DatasetNotFoundError
from whtnet.engine import CheckpointError
from whtnet.experiment import Experiment
from whtnet.files import BusyError, exclusive_folder
from whtnet.policy import PolicyError, load_policy
from whtnet.records import RecordError, layers_beside, read_record, write_record
from whtnet.runs import dry_run, resolve_device, run
from whtnet.settings import ConfigError
from whtnet.tracking import NullSink

RULES = {"match": "conv3x3", "replace": "FWHT2d", "where": {"nth": 2}}
DATA = "synthetic: 4 classes (class 0, class 1, class 2, class 3), 64 training and 32 test images"


def experiment(**changes):
    settings = {
        "backbone": {"name": "resnet20", "form": "keras"},
        "policy": {"name": "mine", "rules": [RULES]},
        "dataset": {"name": "synthetic", "size": 8, "train_size": 64, "test_size": 32},
        "trainer": {"epochs": 3, "batch_size": 16, "precision": "fp32", "schedule": "onecycle"},
        "device": "cpu",
    }
    return Experiment.from_config({**settings, **changes})


class Listener(NullSink):
    def __init__(self):
        self.calls = []

    def start(self, run):
        self.calls.append(("start", run))

    def log(self, epoch, metrics):
        self.calls.append(("log", epoch))

    def finish(self, summary, *, status=0):
        self.calls.append(("finish", summary, status))


def test_a_run_leaves_a_record_that_says_everything(tmp_path):
    sink = Listener()
    reports = []
    record = run(experiment(), sink=sink, root=tmp_path, group="g", tags=("t",), on_report=reports.append)
    folder = experiment().folder(tmp_path)
    assert read_record(folder / "record.json") | {"layers": layers_beside(folder / "record.json")} == record
    assert record["test_top1"] == record["history"][-1]["test_top1"]
    assert len(record["history"]) == record["epochs"] == 3
    assert record["cost"]["parameters"] == reports[0].after.parameters
    assert record["settings"]["policy"]["rules"][0]["where"] == {"nth": 2}
    assert record["settings"]["policy"]["rules"][0]["options"]["initial_threshold"] == 0.1
    assert Experiment.from_record(record).identity == experiment().identity == record["identity"]
    assert [layer["kind"] for layer in record["layers"]] == ["FWHT2d"] * 9
    assert {"commit", "device_name", "versions", "threads"} <= set(record["environment"])
    kinds = [call[0] for call in sink.calls]
    assert kinds == ["start", "log", "log", "log", "finish"]
    info = sink.calls[0][1]
    assert (info.group, info.name) == ("g", "resnet20-mine-seed0")
    assert (info.steps, info.epochs_done) == (4, 0)
    assert {"resnet20", "mine", "synthetic", "t"} == set(info.tags)
    _, summary, status = sink.calls[-1]
    assert status == 0
    assert summary["test_top1"]["last"] == record["test_top1"]
    assert summary["parameters"] == record["cost"]["parameters"]
    assert "macs" in summary


def test_a_finished_run_is_not_trained_again_unless_asked(tmp_path):
    first = run(experiment(), sink=NullSink(), root=tmp_path)
    sink = Listener()
    assert run(experiment(), sink=sink, root=tmp_path) == first
    assert sink.calls == []
    again = run(experiment(), sink=sink, root=tmp_path, resume="never")
    assert len(sink.calls) == 5
    assert again["test_loss"] == first["test_loss"]
    assert len(list((tmp_path / "synthetic").iterdir())) == 2


def test_interrupted_and_resumed_gives_the_same_record(tmp_path):
    whole = run(experiment(), sink=NullSink(), root=tmp_path / "a")

    class Interrupt(Listener):
        def log(self, epoch, metrics):
            super().log(epoch, metrics)
            if epoch == 2:
                raise KeyboardInterrupt

    interrupted = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        run(experiment(), sink=interrupted, root=tmp_path / "b")
    assert interrupted.calls[-1][2] == 1  # finished as failed
    assert not (experiment().folder(tmp_path / "b") / "record.json").exists()
    sink, said, epochs = Listener(), [], []
    callbacks = {"on_notice": said.append, "on_epoch": lambda metrics: epochs.append(metrics["epoch"])}
    resumed = run(experiment(), sink=sink, root=tmp_path / "b", **callbacks)
    assert said == [DATA, "resumed at epoch 3 of 3"]
    assert epochs == [3]
    assert [call[1] for call in sink.calls if call[0] == "log"] == [3]
    assert sink.calls[0][1].epochs_done == 2
    assert resumed["test_loss"] == whole["test_loss"]
    assert [m["train_loss"] for m in resumed["history"]] == [m["train_loss"] for m in whole["history"]]


def test_a_batch_that_is_cut_down_to_the_training_set_is_told(tmp_path):
    said = []
    large = experiment(trainer={"epochs": 1, "batch_size": 100, "precision": "fp32"})
    run(large, sink=NullSink(), root=tmp_path, on_notice=said.append)
    assert said == [DATA, "warning: trainer.batch_size=100 is cut down to the 64 training images that there are"]


def _hold(folder, ready, done):
    with exclusive_folder(folder):
        ready.set()
        done.wait(30)


def test_two_processes_never_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(experiment().folder(tmp_path), ready, done))
    other.start()
    assert ready.wait(30)
    try:
        with pytest.raises(BusyError, match="in progress"):
            run(experiment(), sink=NullSink(), root=tmp_path)
    finally:
        done.set()
        other.join()


def test_a_folder_that_was_held_stays_if_it_was_there_or_used(tmp_path):
    for name in ("unused/run", "used/run", "used"):
        with exclusive_folder(tmp_path / name):
            (tmp_path / name / "empty").mkdir()
            if name == "used/run":
                (tmp_path / name / "file").write_text("")
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert found == ["used", "used/empty", "used/run", "used/run/empty", "used/run/file"]


def test_errors_come_before_anything_is_written(tmp_path):
    for bad, kind, word in [
        (experiment(device="tpu9"), ConfigError, "device"),
        (experiment(policy={"name": "x", "rules": [{**RULES, "match": "squeeze_excite"}]}), PolicyError, "squeeze"),
        (experiment(policy={"name": "x", "rules": [{**RULES, "options": {"wait": 1}}]}), PolicyError, "wait"),
        (experiment(backbone={"name": "resnet20", "forn": "keras"}), BackboneError, "forn"),
        (experiment(dataset={"name": "timm", "root": str(tmp_path / "nowhere")}), DatasetError, "nowhere"),
    ]:
        sink = Listener()
        with pytest.raises((kind, DatasetNotFoundError), match=word):
            run(bad, sink=sink, root=tmp_path)
        assert sink.calls == []
    with pytest.raises(ConfigError, match="never"):
        run(experiment(), sink=NullSink(), root=tmp_path, resume="maybe")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps", "meta", "cpux"])
def test_a_device_that_is_not_here_is_an_error_after_a_finished_run_too(tmp_path, device):
    record = tmp_path / "synthetic" / experiment().name / "record.json"
    write_record(record, {"settings": {}})
    run(experiment(), sink=NullSink(), root=tmp_path)
    with pytest.raises(ConfigError, match=f"device='{device}'.*device=auto"):
        run(experiment(device=device), sink=NullSink(), root=tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 99}'])
def test_a_damaged_record_is_named(tmp_path, content):
    record = experiment().folder(tmp_path) / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    with pytest.raises(RecordError, match=r"record\.json"):
        run(experiment(), sink=NullSink(), root=tmp_path)
    assert record.read_text() == content


@pytest.mark.parametrize(("resume", "words"), [("auto", "goes on from the last checkpoint"), ("never", "begins anew")])
def test_an_interrupt_says_how_to_go_on(tmp_path, resume, words):
    class Interrupt(NullSink):
        def log(self, epoch, metrics):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=words):
        run(experiment(), sink=Interrupt(), root=tmp_path, resume=resume)


def test_a_run_is_not_resumed_with_other_classes(tmp_path):
    folder = experiment().folder(tmp_path)

    class Interrupt(NullSink):
        def log(self, epoch, metrics):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(experiment(), sink=Interrupt(), root=tmp_path)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["classifier"]["classes"][1] = "another"
    torch.save(state, folder / "checkpoint.pt")
    with pytest.raises(ConfigError, match=r"checkpoint\.pt has other classes.*number 1 is 'another'.*'class 1'"):
        run(experiment(), sink=NullSink(), root=tmp_path)


def test_a_damaged_checkpoint_stops_with_a_remedy(tmp_path):
    folder = experiment().folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="resume=never"):
        run(experiment(), sink=NullSink(), root=tmp_path)
    assert (folder / "checkpoint.pt").read_bytes() == b"garbage"


def test_dry_run_writes_nothing_and_says_what_a_run_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reports, said = [], []
    trial = experiment(trainer={"dry_run": True, "batch_size": 100})
    metrics = dry_run(trial, on_report=reports.append, on_notice=said.append)
    assert [len(report.replacements) for report in reports] == [9]
    assert said == [DATA, "warning: trainer.batch_size=100 is cut down to the 64 training images that there are"]
    assert metrics["train_loss"] > 0
    with pytest.raises(ConfigError, match="which is no run"):
        run(trial, sink=NullSink(), root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_seed_draws_the_weights(tmp_path):
    losses = [run(experiment(seed=s), sink=NullSink(), root=tmp_path)["history"][0]["train_loss"] for s in (0, 1)]
    assert losses[0] != losses[1]


def test_auto_is_a_device_that_works():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert load_policy("none").rules == ()


def test_cuda_graphs_need_a_gpu(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.cuda_graph=true needs a GPU"):
        run(experiment(trainer={"cuda_graph": True}), sink=NullSink(), root=tmp_path)
