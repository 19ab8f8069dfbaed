"""Curves to TensorBoard, in a folder of the run's own."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from whtnet.tracking.sink import Answers, Dashboard, Rows, RunInfo, SinkError


class TensorBoardSink(Dashboard):
    """Writes event files into the run's folder; ``tensorboard --logdir runs`` shows those of all runs there.

    The horizontal axis counts steps of training.
    """

    title = "TensorBoard"

    def start(self, run: RunInfo) -> None:
        """Begin a run, or go on with its curves; what an earlier part of it wrote beyond its checkpoint is hidden.

        Raises:
            SinkError: where TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SinkError("TensorBoard is not installed: `pip install tensorboard`, or choose logger=none") from error
        self._steps = run.steps
        purge = self._step(run.epochs_done) + 1 if run.epochs_done else None
        self._run = SummaryWriter(run.run_dir / "tensorboard", purge_step=purge)

    def log_step(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """Draw metrics from within an epoch."""
        self._draw(epoch, {f"steps/{name}": value for name, value in metrics.items()})

    def log_layers(self, epoch: int, describe: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        """Draw numbers of each layer."""
        for name, values in describe().items():
            self._draw(epoch, {f"layers/{name}/{key}": value for key, value in values.items()})

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Draw one epoch's metrics."""
        self._draw(epoch, {f"epochs/{name}": value for name, value in metrics.items() if name != "epoch"})
        self._attempt(lambda writer: writer.flush())

    def show(self, tables: Mapping[str, Rows], images: Mapping[str, Path]) -> None:
        """Show tables as text, and images."""

        def show(writer: Any) -> None:
            for name, (columns, rows) in tables.items():
                lines = [columns, ["---"] * len(columns), *rows]
                writer.add_text(name, "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))
            for name, path in images.items():
                writer.add_image(name, np.asarray(Image.open(path).convert("RGB")), dataformats="HWC")

        self._attempt(show)

    def show_answers(self, collect: Callable[[], Answers]) -> None:
        """Show how classes are confused, a row for each true one, and images with what they were taken for."""
        answers = collect()
        rows = [[name, *counts] for name, counts in zip(answers.classes, answers.confusion, strict=True)]
        self.show({"confusion matrix": (["true class", *answers.classes], rows)}, {})

        def show(writer: Any) -> None:
            for number, (image, label, answer, confidence) in enumerate(answers.samples()):
                writer.add_image(f"predictions/{number} {label}, taken for {answer} ({confidence:.0%})", image)

        self._attempt(show)

    def finish(self, summary: dict[str, Any], *, status: int = 0) -> None:
        """Close the files."""
        self._attempt(lambda writer: writer.close())
        self._run = None

    def _draw(self, epoch: float, values: Mapping[str, float]) -> None:
        def draw(writer: Any) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, self._step(epoch))

        self._attempt(draw)
