"""Runs of a table: one after another in this process, or several at once in processes of their own."""

import contextlib
import io
import multiprocessing
import os
import queue
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from whtnet.engine import Progress
from whtnet.errors import UserError, warnings_told
from whtnet.experiment import Experiment
from whtnet.preemption import PreemptedError, listening
from whtnet.runs import how_to_go_on, run
from whtnet.tracking import make_sink

_MESSAGE_INTERVAL_S = 0.5
_POLL_S = 0.2


class JobError(UserError, RuntimeError):
    """Runs that failed, each with its reason; the others were finished."""


@dataclass(frozen=True)
class Job:
    """A run that another process can be given.

    Attributes:
        title: for the progress view and errors.
        experiment: the settings.
        logger: keywords of :func:`whtnet.tracking.make_sink`.
        options: further keywords of :func:`whtnet.runs.run`.
    """

    title: str
    experiment: Experiment
    logger: Mapping[str, Any]
    options: Mapping[str, Any]

    def run(self, on_progress: Progress) -> dict[str, Any]:
        """The run's record."""
        return run(self.experiment, sink=make_sink(**self.logger), on_progress=on_progress, **self.options)


def default_at_once(device: torch.device, jobs: int) -> int:
    """How many of ``jobs`` runs to train at once on ``device``: one on the CPU, one for each but one core on a GPU.

    A small network leaves a GPU idle most of the time: it waits for a core to tell it what to do.
    """
    return max(1, min(jobs, (os.cpu_count() or 1) - 1)) if device.type == "cuda" else 1


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    *,
    on_start: Callable[[Job], Progress],
    on_record: Callable[[Job, dict[str, Any]], None],
    on_print: Callable[[str], None] = print,
) -> None:
    """Run all jobs, ``at_once`` of them at a time.

    One at a time runs in this process, several run in processes of their own, which share its threads. A signal that
    preempts a run, and Ctrl-C, stop all of them after the step under way; a run that fails leaves the others alone. A
    run whose start is one of the others waits for that.

    Args:
        jobs: what to run, each behind its start.
        at_once: how many, from 1.
        on_start: called when a job starts; what it returns is told the job's progress.
        on_record: called with each job's record.
        on_print: called with each line that the runs print; the same line of several processes is handed on once.

    Raises:
        JobError: after the last one ended, if any failed.
        PreemptedError: on one of the signals.
    """
    if at_once < 1:
        raise UserError(f"can't run {at_once} jobs at once; give a number from 1")
    if at_once == 1:
        failures = _run_here(jobs, on_start, on_record)
    else:
        failures = _Pool(jobs, at_once, on_start, on_record, on_print).run()
    if failures:
        raise JobError("\n".join(failures))


def _run_here(
    jobs: Sequence[Job], on_start: Callable[[Job], Progress], on_record: Callable[[Job, dict[str, Any]], None]
) -> list[str]:
    failures = []
    for job in jobs:
        try:
            record = job.run(on_start(job))
        except PreemptedError:
            raise
        except UserError as error:
            failures.append(f"{job.title}: {error}")
        else:
            on_record(job, record)
    return failures


class _Pool:
    def __init__(
        self,
        jobs: Sequence[Job],
        at_once: int,
        on_start: Callable[[Job], Progress],
        on_record: Callable[[Job, dict[str, Any]], None],
        on_print: Callable[[str], None],
    ) -> None:
        self.jobs, self.at_once = jobs, at_once
        self.on_start, self.on_record, self.on_print = on_start, on_record, on_print
        self.context = multiprocessing.get_context("spawn")  # a forked process can't use CUDA, nor OpenMP's threads
        self.messages = self.context.Queue()
        self.running: dict[int, BaseProcess] = {}
        self.progress: dict[int, Progress] = {}
        self.failures: list[str] = []
        self.printed: set[str] = set()

    def run(self) -> list[str]:
        waiting = deque(range(len(self.jobs)))
        resume = self.jobs[0].options.get("resume") if self.jobs else None
        with listening() as stop_requested, _patient_threads():
            try:
                while waiting or self.running:
                    if stop_requested():
                        raise PreemptedError(f"stopped on request; {how_to_go_on(resume)}")
                    while len(self.running) < self.at_once and (index := self._ready(waiting)) is not None:
                        waiting.remove(index)
                        self._start(index)
                    self._take_message()
            except KeyboardInterrupt as error:
                error.args = (how_to_go_on(resume),)
                raise
            finally:
                self._stop()
        return self.failures

    def _ready(self, waiting: Iterable[int]) -> int | None:
        """The first of those that wait whose start is none of the unfinished."""
        unfinished = {self.jobs[index].experiment.identity for index in (*waiting, *self.running)}
        starts = ((index, self.jobs[index].experiment.start) for index in waiting)
        return next((index for index, start in starts if start is None or start.identity not in unfinished), None)

    def _start(self, index: int) -> None:
        threads = max(1, torch.get_num_threads() // self.at_once)
        process = self.context.Process(target=_work, args=(index, self.jobs[index], threads, self.messages))
        self.progress[index] = self.on_start(self.jobs[index])
        process.start()
        self.running[index] = process

    def _take_message(self) -> None:
        try:
            index, kind, value = self.messages.get(timeout=_POLL_S)
        except queue.Empty:
            for index in [i for i, process in self.running.items() if not process.is_alive()]:
                if self.messages.empty():  # its last words came through before it ended
                    self._end(index, f"its process ended with status {self.running[index].exitcode}")
            return
        match kind:
            case "progress":
                self.progress[index](*value)
            case "printed" if value not in self.printed:
                self.printed.add(value)
                self.on_print(value)
            case "record":
                self._end(index)
                self.on_record(self.jobs[index], value)
            case "failed":
                self._end(index, value)

    def _end(self, index: int, failure: str | None = None) -> None:
        self.running.pop(index).join()
        if failure is not None:
            self.failures.append(f"{self.jobs[index].title}: {failure}")

    def _stop(self) -> None:
        for process in self.running.values():
            process.terminate()  # the run keeps its state
        while any(process.is_alive() for process in self.running.values()):
            with contextlib.suppress(queue.Empty):  # a process ends when its messages are taken
                self.messages.get(timeout=_POLL_S)


def _work(index: int, job: Job, threads: int, messages: Any) -> None:
    """What a process does."""
    torch.set_num_threads(threads)
    told = time.monotonic()

    def tell(fraction: float, status: str) -> None:
        nonlocal told
        if fraction == 1 or time.monotonic() - told > _MESSAGE_INTERVAL_S:
            told = time.monotonic()
            messages.put((index, "progress", (fraction, status)))
            parent = multiprocessing.parent_process()
            if parent is not None and not parent.is_alive():
                raise SystemExit  # nobody will take the record; the checkpoint is kept

    def hand_on(line: str) -> None:
        messages.put((index, "printed", line))

    with contextlib.redirect_stdout(_Lines(hand_on)), warnings_told(lambda text: hand_on(f"warning: {text}")):
        try:
            messages.put((index, "record", job.run(tell)))
        except UserError as error:
            messages.put((index, "failed", str(error)))
        except KeyboardInterrupt:
            messages.put((index, "failed", "interrupted"))
        except Exception:
            messages.put((index, "failed", traceback.format_exc()))


class _Lines(io.TextIOBase):
    """A file that hands on whole lines."""

    def __init__(self, hand_on: Callable[[str], None]) -> None:
        self._hand_on, self._rest = hand_on, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._hand_on(line)
        return len(text)


@contextlib.contextmanager
def _patient_threads() -> Iterator[None]:
    """Processes started in here have OpenMP threads that sleep while they wait, not take the cores from the others."""
    name = "OMP_WAIT_POLICY"
    before = os.environ.get(name)
    os.environ.setdefault(name, "passive")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
