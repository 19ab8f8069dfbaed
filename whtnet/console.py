"""What a person sees while runs go on: progress bars on a terminal, a line now and then in a log file."""

import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from whtnet import distributed
from whtnet.errors import UserError, limits_told, warnings_told
from whtnet.policy import Report, SiteFit
from whtnet.preemption import EXIT_STATUS, PreemptedError, hand_on
from whtnet.streams import guarded_streams

P = ParamSpec("P")
R = TypeVar("R")

# Names of files and classes are shown as they are, "[x]" in them too.
console = Console(highlight=False, markup=False)
error_console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 160  # a file has no width; this keeps rows on a line

_LOG_INTERVAL_S = 30.0


class ProgressView:
    """One overall bar and one for each task under way; a context manager.

    Where the output is no terminal, a line of status is printed every 30 seconds instead.

    Args:
        title: names the overall bar; None for no overall bar.
        total: number of tasks of the overall bar.
    """

    def __init__(self, title: str | None = None, total: int = 1) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
            redirect_stdout=False,
            disable=not console.is_terminal,
        )
        self._overall = self._bars.add_task(title, total=total, status="") if title else None
        self._total, self._done = total, 0
        self._under_way: dict[TaskID, TaskView] = {}
        self._begun = self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressView":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def task(self, description: str) -> "TaskView":
        """Add a bar for a task that goes from 0 to 1."""
        task = TaskView(self, description, self._bars.add_task(description, total=1.0, status=""))
        self._under_way[task.identifier] = task
        return task

    def steps(self, description: str, total: int) -> Callable[[str], None]:
        """Add a bar for a task of ``total`` steps; call what is returned with the name of each step that is done."""
        bar, done = self.task(description), itertools.count(1)
        return lambda step: bar(next(done) / total, step)

    def _update(self, task: "TaskView") -> None:
        self._bars.update(task.identifier, completed=task.fraction, status=task.status)
        if self._overall is not None:
            self._bars.update(self._overall, completed=self._completed())
        if not console.is_terminal and time.monotonic() - self._last_line > _LOG_INTERVAL_S:
            self._last_line = time.monotonic()
            tasks = "; ".join(map(str, self._under_way.values()))
            console.print(f"{self._position()}{tasks}")

    def _finish(self, task: "TaskView") -> None:
        self._bars.remove_task(task.identifier)
        del self._under_way[task.identifier]
        self._done += 1
        if self._overall is not None:
            self._bars.update(self._overall, completed=self._completed())

    def _completed(self) -> float:
        return self._done + sum(task.fraction for task in self._under_way.values())

    def _position(self) -> str:
        if self._overall is None:
            return ""
        completed = self._completed()
        seconds = (time.monotonic() - self._begun) * (self._total - completed) / completed if completed else 0.0
        return f"[{self._done} of {self._total} done, {max(1, round(seconds / 60))} min left] "


class TaskView:
    """The bar of one task; call it with the fraction done and a status, and :meth:`finish` it."""

    def __init__(self, view: ProgressView, description: str, identifier: TaskID) -> None:
        self._view, self.description, self.identifier = view, description, identifier
        self.fraction, self.status = 0.0, ""

    def __call__(self, fraction: float, status: str) -> None:
        """Show ``fraction`` (0 to 1) and ``status``."""
        self.fraction, self.status = fraction, status
        self._view._update(self)

    def __str__(self) -> str:
        """What it shows, as text."""
        return f"{self.description}: {self.fraction:.0%}" + (f", {self.status}" if self.status else "")

    def finish(self) -> None:
        """Take the bar away and count the task as done."""
        self._view._finish(self)


class EpochLines:
    """Prints a line for each epoch of a run; call it with the epoch's metrics (:class:`whtnet.engine.FitResult`).

    Args:
        epochs: of the run.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs, self._seen, self._begun = epochs, 0, 0.0

    def __call__(self, metrics: Mapping[str, float]) -> None:
        """Print the line; the time left is that of the epochs seen so far, evaluation included."""
        now = time.monotonic()
        if self._seen == 0:
            self._begun = now - metrics["seconds"]
        self._seen += 1
        left = (now - self._begun) / self._seen * (self._epochs - metrics["epoch"])
        console.print(epoch_line(metrics, self._epochs, left))


def epoch_line(metrics: Mapping[str, float], epochs: int, seconds_left: float) -> str:
    """What a person wants to know of an epoch.

    Args:
        metrics: of the epoch; one that was not evaluated has no accuracy on the test set.
        epochs: of the run.
        seconds_left: until the last one is done.
    """
    accuracies = {"train": "train_top1", "held out": "holdout_top1", "test": "test_top1"}
    parts = [
        f"epoch {metrics['epoch']:{len(str(epochs))}}/{epochs}",
        f"loss {metrics['train_loss']:.4f}",
        *(f"{name} {metrics[key]:5.2f} %" for name, key in accuracies.items() if key in metrics),
        f"lr {metrics['lr']:.3g}",
        f"{metrics['images_per_s']:,.0f} images/s",
    ]
    if metrics["epoch"] < epochs:
        parts.append(f"{_duration(seconds_left)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def print_report(report: Report) -> None:
    """Show what a policy replaced, what the model costs before and after, and what should not be overlooked."""
    if report.replacements:
        console.print(_rich(report.title, report.sites, right=(4,)))
    console.print(_rich(report.count, report.totals, right=(1, 2, 3)))
    for notice in report.notices:
        print_warning(notice)


def _rich(title: str, rows: Sequence[Sequence[str]], right: Sequence[int]) -> Table:
    headings, *rest = rows
    table = Table(title=title)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i in right else "left", overflow="fold" if i == 0 else "ellipsis")
    for row in rest:
        table.add_row(*row)
    return table


def print_fits(fits: Sequence[SiteFit]) -> None:
    """Show how close new layers came to those that they replace."""
    if fits:
        before, after = (statistics.fmean(getattr(fit, key) for fit in fits) for key in ("before", "after"))
        console.print(
            f"{len(fits)} layers fitted to what they replace: mean squared difference over variance "
            f"{before:.3f} → {after:.3f} on average"
        )


def print_record(record: Mapping[str, Any]) -> None:
    """Show the result of a run in two lines."""
    cost = record["cost"]
    console.print(
        f"test top-1 {record['test_top1']:.2f} % after {_epochs(record['epochs'])} ({record['run']})", style="bold"
    )
    if record["best"]:
        best = record["best"]
        console.print(f"best held-out top-1 {best['holdout_top1']:.2f} % in epoch {best['epoch']}")
    console.print(
        f"{cost['parameters']:,} parameters, {cost['macs'] / 1e6:,.1f}M MACs; "
        f"{record['images_per_s']:,.0f} images/s, {record['duration_s'] / 60:.1f} min"
    )


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Turn errors that the user can mend, and Ctrl-C, into their message and an exit status, without a traceback.

    A preempted run ends with status 75. What goes wrong in one of several processes is told by the first one if it
    knows, else by that one. Warnings are lines without the place in the code that they came from. What can't be written
    is the matter of :func:`whtnet.streams.guarded_streams`.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with guarded_streams(), warnings_told(print_warning), limits_told():
                return main(*args, **kwargs)
        except PreemptedError as error:
            if distributed.is_main_process():  # all processes know of it
                error_console.print(str(error), style="bold")
            hand_on(error.signals)
            sys.exit(EXIT_STATUS)
        except UserError as error:
            print_error(error)
            sys.exit(1)
        except KeyboardInterrupt as error:  # of a run, it says how to go on
            error_console.print("; ".join(["interrupted", *map(str, error.args)]), style="bold")
            sys.exit(130)

    return wrapper


def _epochs(number: int) -> str:
    return "1 epoch" if number == 1 else f"{number} epochs"


def print_warning(text: str) -> None:
    """Tell in a line what may not be as it was meant; one process on each machine does."""
    if distributed.local_rank() == 0:
        error_console.print(f"warning: {text}", style="yellow")


def print_error(error: UserError) -> None:
    """Tell an error, once where several processes know of it."""
    if distributed.is_main_process():
        error_console.print(f"error: {error}", style="bold red")
    elif not isinstance(error, distributed.PeerError):
        print(f"error in process {distributed.rank()}: {error}", file=sys.stderr)
