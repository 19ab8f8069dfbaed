"""Several runs at once, each in a process of its own."""

import dataclasses
import multiprocessing
import os
import queue
import signal
import threading
import time
import warnings

import pytest
import torch

from whtnet import jobs
from whtnet.errors import UserError
from whtnet.experiment import Experiment
from whtnet.jobs import Job, JobError, default_at_once, run_jobs
from whtnet.preemption import PreemptedError

DATASET = {"name": "synthetic", "num_classes": 4, "train_size": 96, "test_size": 32}
TRAINER = {"epochs": 2, "batch_size": 32, "precision": "fp32"}


def job(folder, seed, device="cpu", **trainer):
    experiment = Experiment.from_config(
        {
            "backbone": {"name": "resnet20"},
            "policy": {"name": "none", "rules": []},
            "dataset": DATASET,
            "trainer": TRAINER | trainer,
            "seed": seed,
            "device": device,
        }
    )
    return Job(f"seed {seed}", experiment, {"name": "none"}, {"root": folder})


@pytest.fixture
def listener():
    """Collects what the runs tell."""

    class Listener:
        def __init__(self):
            self.records, self.progress, self.printed = {}, {}, []

        def run(self, todo, at_once):
            run_jobs(
                todo,
                at_once,
                on_start=lambda job: lambda fraction, _: self.progress.setdefault(job.title, []).append(fraction),
                on_record=lambda job, record: self.records.update({job.title: record}),
                on_print=self.printed.append,
            )
            return self.records

    return Listener()


def test_warnings_of_a_job_are_lines_of_its_output():
    class Warns:
        def run(self, tell):
            warnings.warn("first\n  and second", stacklevel=1)
            return {"top1": 90.0}

    messages = queue.Queue()
    jobs._work(3, Warns(), torch.get_num_threads(), messages)
    assert list(messages.queue) == [(3, "printed", "warning: first and second"), (3, "record", {"top1": 90.0})]


@pytest.mark.slow
def test_as_alone_so_at_once(tmp_path, listener):
    waiting = os.environ.get("OMP_WAIT_POLICY")
    todo = [job(tmp_path / "a", seed) for seed in (0, 1, 2)]
    at_once = dict(listener.run(todo, 2))
    assert all(fractions[-1] == 1 for fractions in listener.progress.values())
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    alone = listener.run([job(tmp_path / "b", seed) for seed in (0, 1, 2)], 1)
    torch.set_num_threads(threads)
    assert sorted(at_once) == sorted(alone) == ["seed 0", "seed 1", "seed 2"]
    for title in alone:
        assert at_once[title]["test_loss"] == alone[title]["test_loss"]
        assert at_once[title]["environment"]["threads"] == max(1, threads // 2)
    assert os.environ.get("OMP_WAIT_POLICY") == waiting


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_run_that_fails_leaves_the_others_alone(tmp_path, listener, at_once):
    todo = [job(tmp_path, 0, lr=1e30), job(tmp_path, 1), job(tmp_path, 2, "gpu")]
    with pytest.raises(JobError) as error:
        listener.run(todo, at_once)
    assert list(listener.records) == ["seed 1"]
    assert sorted(line[:7] for line in str(error.value).splitlines()) == ["seed 0:", "seed 2:"]
    assert "the loss became" in str(error.value)
    assert "device='gpu' can't be used here" in str(error.value)


def tuned(folder, seed, start, **trainer):
    """A job that begins with what another one trains."""
    one = job(folder, seed, **trainer)
    return Job("tuned", dataclasses.replace(one.experiment, start=start.experiment), one.logger, one.options)


@pytest.mark.slow
def test_a_run_waits_for_its_start(tmp_path, listener):
    start = job(tmp_path, 0)
    records = listener.run([start, tuned(tmp_path, 0, start, epochs=1), job(tmp_path, 1, epochs=1)], 3)
    assert [title for title in records if title != "seed 1"] == ["seed 0", "tuned"]
    assert records["tuned"]["inputs"]["start"] == records["seed 0"]["identity"]
    assert records["tuned"]["history"][0]["train_loss"] < records["seed 0"]["history"][0]["train_loss"]


@pytest.mark.slow
def test_a_run_whose_start_fails_says_so(tmp_path, listener):
    start = job(tmp_path, 0, lr=1e30)
    with pytest.raises(JobError) as error:
        listener.run([start, tuned(tmp_path, 0, start), job(tmp_path, 1)], 2)
    assert list(listener.records) == ["seed 1"]
    first, second = sorted(str(error.value).splitlines())
    assert first.startswith("seed 0: the loss became")
    assert second.startswith(
        f"tuned: {start.experiment.folder(tmp_path)} holds no finished run, and this run begins with"
    )


@pytest.mark.slow
def test_a_process_that_is_killed_is_reported(tmp_path, listener):
    def kill():
        while not list(tmp_path.rglob("checkpoint.pt")):
            time.sleep(0.1)
        for child in multiprocessing.active_children():
            child.kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(JobError, match="ended with status -9"):
        listener.run([job(tmp_path, seed, epochs=10_000) for seed in (0, 1)], 2)


@pytest.mark.slow
def test_a_signal_stops_all_and_they_go_on(tmp_path, listener):
    todo = [job(tmp_path, seed, epochs=30) for seed in (0, 1)]
    threading.Thread(target=_signal_when, args=(tmp_path, 2), daemon=True).start()
    with pytest.raises(PreemptedError):
        listener.run(todo, 2)
    assert not listener.records
    assert not multiprocessing.active_children()
    checkpoints = list(tmp_path.rglob("checkpoint.pt"))
    assert len(checkpoints) == 2
    assert all(torch.load(path, weights_only=True)["epoch"] < 30 for path in checkpoints)
    assert len(listener.run(todo, 2)) == 2
    assert all(len(record["history"]) == 30 for record in listener.records.values())


def _signal_when(folder, count):
    while len(list(folder.rglob("checkpoint.pt"))) < count:
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)


def test_one_at_a_time_needs_no_process(tmp_path, listener, monkeypatch):
    monkeypatch.setattr(jobs, "_Pool", None)
    assert list(listener.run([job(tmp_path, 0)], 1)) == ["seed 0"]
    with pytest.raises(UserError, match="from 1"):
        listener.run([], 0)


def test_lines_are_handed_on_whole():
    lines = []
    file = jobs._Lines(lines.append)
    print("one\ntw", end="", file=file)
    print("o", file=file)
    assert lines == ["one", "two"]


def test_how_many_at_once():
    assert default_at_once(torch.device("cpu"), 9) == 1
    assert default_at_once(torch.device("cuda"), 1) == 1
    assert 1 <= default_at_once(torch.device("cuda"), 99) <= max(1, os.cpu_count() - 1)
