"""What train.py does with a composed config. It stands here because launchers send it to other processes by name."""

import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whtnet import distributed
from whtnet.console import (
    EpochLines,
    ProgressView,
    console,
    exit_on_user_error,
    print_error,
    print_fits,
    print_record,
    print_report,
)
from whtnet.errors import JobFailedError, UserError, limits_told
from whtnet.experiment import Experiment
from whtnet.kernels import get_backend
from whtnet.policy import Report
from whtnet.preemption import PreemptedError
from whtnet.runs import dry_run, run
from whtnet.settings import ConfigError, check_names
from whtnet.tracking import make_sink


def only_the_first_speaks() -> None:
    """Of several processes, leave the output to the first, and to each machine one that says what Hydra objects to.

    From the start of :func:`train` every process has its ``sys.stderr``, for tracebacks.
    """
    if not distributed.is_main_process():
        sys.stdout = io.StringIO()
    if distributed.local_rank() > 0:
        sys.stderr = io.StringIO()


@exit_on_user_error
def train(c: dict[str, Any], job: str | None = None) -> float | None:
    """Run the composed config ``c``, and return the test error in percent, which a Hydra sweeper can minimise.

    Args:
        c: the config.
        job: title of the job of a sweep that this is.

    Raises:
        JobFailedError: in a sweep, where an error was told that ends this job alone.
    """
    if isinstance(sys.stderr, io.StringIO):
        sys.stderr = sys.__stderr__
    if job is None:
        return _train(c)
    console.print(job, style="bold", soft_wrap=True)
    try:
        return _train(c, on_report=_print_new_report)
    except PreemptedError:  # ends the sweep
        raise
    except UserError as error:
        print_error(error)
        raise JobFailedError(str(error)) from error


_SETTINGS = (
    *("backbone", "policy", "dataset", "trainer", "finetune", "logger"),
    *("seed", "device", "resume", "run_root", "group", "tags", "trust"),
)
_print_new_report = functools.cache(print_report)  # jobs of a sweep may have the same


@limits_told()
def _train(c: dict[str, Any], on_report: Callable[[Report], None] = print_report) -> float | None:
    _check_names(c)
    get_backend()  # a bad WHTNET_BACKEND is told before anything that takes long
    experiment = Experiment.from_config(c)
    sink = distributed.together(lambda: make_sink(**c["logger"]))
    if c["trainer"]["dry_run"]:
        metrics = dry_run(experiment, on_report=on_report, on_notice=console.print)
        console.print(f"One batch trained: loss {metrics['train_loss']:.4f}. Nothing was written.")
        return None
    with ProgressView() as view:
        record = run(
            experiment,
            sink=sink,
            root=Path(c["run_root"]),
            resume=c["resume"],
            group=c["group"],
            tags=c["tags"],
            on_folder=_print_folder,
            on_report=on_report,
            on_fits=print_fits,
            on_notice=console.print,
            on_epoch=EpochLines(experiment.trainer.epochs),
            on_progress=view.task(experiment.name),
        )
    print_record(record)
    return 100 - record["test_top1"]


def _check_names(c: dict[str, Any]) -> None:
    check_names(c, _SETTINGS)
    if not isinstance(c["group"], str | int | None):
        raise ConfigError(f"group={c['group']!r} is no word")


def _print_folder(folder: Path, finished: bool) -> None:
    earlier = " (finished earlier; resume=never trains again)" if finished else ""
    console.print(f"run folder: {folder}{earlier}")
