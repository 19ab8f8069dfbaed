"""What a dashboard can be given of a run.

Records never depend on a dashboard, and nothing that it does stops a training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from whtnet.errors import UserError, warn_caller

Rows = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Columns and rows of a table."""

BETTER = {"loss": min, "top1": max}
"""Which of two values is the better one, by the last word of a metric's name."""


class SinkError(UserError):
    """A sink that cannot be had as asked for."""


@dataclass(frozen=True)
class RunInfo:
    """What a sink shows of a run before its first epoch.

    Attributes:
        name: of the run.
        group: the table, or dataset/backbone: what a dashboard puts together.
        config: the whole configuration, as plain dicts and lists.
        run_dir: the run's own folder; a run that begins in it again is a resumed one.
        job_type: ``train``, or ``table`` for a table's own.
        tags: such as backbone, policy and dataset.
        notes: a free text.
        steps: of an epoch.
        epochs_done: how many epochs, with a fraction, an earlier part of the run has trained.
    """

    name: str
    group: str
    config: dict[str, Any]
    run_dir: Path
    job_type: str = "train"
    tags: Sequence[str] = ()
    notes: str | None = None
    steps: int = 1
    epochs_done: float = 0.0


@dataclass(frozen=True)
class Answers:
    """What a trained network says of the test set.

    Attributes:
        classes: names, in the order of the logits.
        logits: ``(N, classes)``.
        labels: ``(N,)`` int64.
        confusion: number of images of each class (row) taken for each class (column).
        images: ``(n, 3, H, W)`` in 0..1: the first n ≤ N images, as they were before normalisation.
    """

    classes: Sequence[str]
    logits: Tensor
    labels: Tensor
    confusion: Sequence[Sequence[int]]
    images: Tensor

    def samples(self) -> list[tuple[Tensor, str, str, float]]:
        """The images, each with its class, the class that it was taken for, and the probability of that one."""
        confidence, taken = self.logits[: len(self.images)].softmax(1).max(1)
        pairs = zip(self.images, self.labels.tolist(), taken.tolist(), confidence.tolist(), strict=False)
        return [(image, self.classes[label], self.classes[answer], p) for image, label, answer, p in pairs]


class Sink:
    """Where a training sends its curves; this one keeps nothing, and others override what they take.

    What costs time to compute comes as a function, which only a sink that shows it calls.
    """

    def start(self, run: RunInfo) -> None:
        """Begin a run."""

    def log_step(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """Take metrics from within an epoch: ``epoch`` is 2.5 in the middle of the third one."""

    def log_layers(self, epoch: int, describe: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        """Take numbers of each layer (:func:`whtnet.inspection.layer_metrics`), before the epoch's metrics."""

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Take one epoch's metrics; ``epoch`` counts on across a resume."""

    def show(self, tables: Mapping[str, Rows], images: Mapping[str, Path]) -> None:
        """Take tables, each as its columns and rows, and image files, by name."""

    def show_answers(self, collect: Callable[[], Answers]) -> None:
        """Take what the trained network says of the test set."""

    def keep_model(self, checkpoint: Path) -> None:
        """Take the trained network."""

    def finish(self, summary: dict[str, Any], *, status: int = 0) -> None:
        """End the run with the numbers that stand for it, and its exit status: 0, 75 if preempted, else failed."""


class NullSink(Sink):
    """Keeps nothing: the run's folder has its record and its curves."""


class Dashboard(Sink):
    """A sink outside the run's folder, whose failures end neither the training nor its record.

    Attributes:
        title: what warnings call it.
    """

    title = ""

    def __init__(self) -> None:
        self._run: Any = None  # what :meth:`start` got of the library, until it ends or fails
        self._steps = 1  # of an epoch

    def _attempt(self, act: Callable[[Any], None]) -> None:
        """Do something with the library's run, if there still is one."""
        if self._run is not None:
            try:
                act(self._run)
            except Exception as error:
                self._run = None
                warn_caller(f"{self.title} failed, this run goes on without it: {error!r}", RuntimeWarning)

    def _step(self, epoch: float) -> int:
        return round(epoch * self._steps)


def best_and_last(history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Of each loss and accuracy, the last value and the best one, which is called ``min`` or ``max``."""
    values: dict[str, list[float]] = {}
    for metrics in history:
        for name in metrics:
            values.setdefault(name, []).append(metrics[name])
    return {
        name: {better.__name__: better(seen), "last": seen[-1]}
        for name, seen in values.items()
        if (better := BETTER.get(name.rpartition("_")[2]))
    }
