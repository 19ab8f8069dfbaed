"""Signals that ask a run to stop, and sweeps whose runs get them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from whtnet.classifier import Classifier
from whtnet.experiment import Experiment
from whtnet.preemption import EXIT_STATUS, SIGNALS, PreemptedError, hand_on, listening
from whtnet.runs import run
from whtnet.tracking import NullSink

ROOT = Path(__file__).parents[1]
TRAIN = [
    sys.executable,
    str(ROOT / "train.py"),
    "logger=none",
    "device=cpu",
    "dataset=synthetic",
    "dataset.size=8",
    "dataset.train_size=480",
    "dataset.test_size=16",
    "trainer.epochs=3",
    "trainer.batch_size=15",
    "trainer.precision=fp32",
]


def start(*overrides, cwd):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (cwd / "output").open("a") as file:
        return subprocess.Popen(
            [*TRAIN[:2], *overrides, *TRAIN[2:]], cwd=cwd, env=environment, stdout=file, stderr=file
        )


def wait_for(folder, pattern, process):
    """The file that appears while the process runs."""
    while not (found := list(folder.glob(pattern))):
        assert process.poll() is None, (folder / "output").read_text()
        time.sleep(0.02)
    return found[0]


def results(folder):
    """Weights and metrics, but for times, by seed."""
    times = {"seconds", "images_per_s"}
    found = {}
    for file in folder.glob("runs/synthetic/*/record.json"):
        record = json.loads(file.read_text())
        state = torch.load(file.with_name("checkpoint.pt"), weights_only=True)
        found[record["seed"]] = state["model"], [{k: m[k] for k in m.keys() - times} for m in record["history"]]
    return found


def assert_same_bits(a, b):
    assert a[1] == b[1]
    for name, weights in a[0].items():
        assert torch.equal(weights, b[0][name]), name


EXPERIMENT = Experiment.from_config(
    {
        "backbone": {"name": "resnet20", "form": "keras"},
        "policy": {"name": "mine", "rules": [{"match": "conv3x3", "replace": "FWHT2d", "where": {"nth": 2}}]},
        "dataset": {"name": "synthetic", "size": 8, "train_size": 64, "test_size": 32},
        "trainer": {"epochs": 3, "batch_size": 16, "precision": "fp32", "ema_decay": 0.9},
        "device": "cpu",
    }
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Results of the run that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    run(EXPERIMENT, sink=NullSink(), root=folder / "runs")
    return results(folder)[0]


@pytest.mark.parametrize(
    ("number", "step"), [*((number, 3) for number in SIGNALS), (signal.SIGTERM, 1), (signal.SIGTERM, 4)]
)
def test_a_signal_stops_after_the_step_and_the_next_call_goes_on_bit_for_bit(tmp_path, whole, number, step):
    before = [signal.getsignal(n) for n in SIGNALS]
    steps = []

    def interrupt(fraction, status):
        steps.append(fraction)
        if len(steps) == 4 + step:
            os.kill(os.getpid(), number)

    with pytest.raises(PreemptedError, match=f"epoch 2, after step {step} of 4; the same command") as caught:
        run(EXPERIMENT, sink=NullSink(), root=tmp_path / "runs", on_progress=interrupt)
    assert len(steps) == 4 + step
    assert caught.value.signals == [number]
    assert [signal.getsignal(n) for n in SIGNALS] == before
    torch.manual_seed(99)
    run(EXPERIMENT, sink=NullSink(), root=tmp_path / "runs")
    assert_same_bits(results(tmp_path)[0], whole)


def test_a_model_that_is_left_within_an_epoch_can_be_loaded_and_claims_no_accuracy(tmp_path):
    for epochs in (0, 1):
        with pytest.raises(PreemptedError):
            run(
                EXPERIMENT,
                sink=NullSink(),
                root=tmp_path,
                on_progress=lambda fraction, status, at=epochs: (
                    fraction > at / 3 and os.kill(os.getpid(), signal.SIGTERM)
                ),
            )
        assert Classifier.load(EXPERIMENT.folder(tmp_path)).training_facts == {
            "data set": "synthetic",
            "epochs": epochs,
        }


def test_whoever_handled_a_signal_before_gets_it_afterwards():
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        error = PreemptedError()
        with contextlib.suppress(PreemptedError), listening() as asked:
            assert not asked()
            for number in (signal.SIGUSR2, signal.SIGUSR1):  # nobody handles the second one: it would kill
                os.kill(os.getpid(), number)
            assert asked()
            raise error
        assert heard == []
        hand_on(error.signals)
        assert heard == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.slow
def test_processes_and_jobs_stop_and_go_on_and_runs_of_a_sweep_do_not_collide(tmp_path):
    """A run is stopped alone, goes on as a job of submitit, is preempted there; beside it joblib does all at once."""
    pytest.importorskip("submitit")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    stopped.mkdir()
    whole.mkdir()

    process = start("seed=1", cwd=stopped)
    checkpoint = wait_for(stopped, "runs/synthetic/*/checkpoint.pt", process)
    process.terminate()
    assert process.wait(60) == EXIT_STATUS == 75, (stopped / "output").read_text()
    assert (stopped / "output").read_text().count("the same command goes on from there") == 1
    first = torch.load(checkpoint, weights_only=True)
    assert first["part"]["steps"] > 0

    process = start("-m", "hydra/launcher=submitit_local", "seed=1", cwd=stopped)
    while torch.load(checkpoint, weights_only=True)["epoch"] == first["epoch"]:
        assert process.poll() is None, (stopped / "output").read_text()
        time.sleep(0.02)
    (log,) = stopped.glob("runs/multirun/.submitit/*/*_log.out")
    os.kill(job(log), signal.SIGUSR2)
    assert process.wait(300) == 0, (stopped / "output").read_text()
    assert "the same command goes on from there" in log.with_suffix(".err").read_text()
    assert "Requeued job" in log.read_text()

    process = start("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", cwd=whole)
    assert process.wait(300) == 0, (whole / "output").read_text()
    expected = results(whole)
    assert set(expected) == {0, 1}
    assert expected[0][1] != expected[1][1]
    assert_same_bits(results(stopped)[1], expected[1])


def job(log):
    """Number of the process that writes submitit's log."""
    (identifier,) = (
        line.split("job_id=")[1].split(",")[0] for line in log.read_text().splitlines() if "job_id=" in line
    )
    (child,) = Path(f"/proc/{identifier}/task/{identifier}/children").read_text().split()
    return int(child)
