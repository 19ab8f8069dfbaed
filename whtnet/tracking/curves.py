"""A run's curves as a file that every program opens: one line an epoch, one column a metric."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from whtnet.files import atomic_write


def write_curves(path: Path, history: Sequence[Mapping[str, object]]) -> None:
    """Write ``history``, metrics of every epoch; a metric that an epoch lacks is left empty.

    Raises:
        FileError: where the file cannot be written.
    """
    columns = dict.fromkeys(name for metrics in history for name in metrics)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    atomic_write(path, text.getvalue())


def put_epoch(path: Path, metrics: Mapping[str, float]) -> None:
    """Add an epoch to the file, in the place of what it had of this epoch and later ones.

    Raises:
        FileError: where the file cannot be written.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            earlier = [row for row in csv.DictReader(file) if int(row["epoch"]) < metrics["epoch"]]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):  # none yet, or no longer a file of ours
        earlier = []
    write_curves(path, [*earlier, metrics])
