"""Networks that others released, evaluated here, beside what their logs say."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from whtnet.data import load_dataset
from whtnet.engine import evaluate
from whtnet.released import import_released, logged_accuracies, released_model
from whtnet.tables.spec import TableSpec
from whtnet.tables.table import Column, Table

TOLERANCE = 0.02
"""Points of accuracy, two of 10,000 images: what float32 in another order of summation may change."""

_BATCH = 500


def measure_released(spec: TableSpec, folder: Path, on_step: Callable[[str], None]) -> list[dict[str, Any]]:
    """Import and evaluate the networks of a table.

    Args:
        spec: the table; each row names a ``model`` of :mod:`whtnet.released`.
        folder: of the released files.
        on_step: called with the name of each row when it is done.

    Returns:
        For every row its ``id``, ``parameters``, the ``best`` and ``last`` epoch of the log, and ``ours``, in percent.

    Raises:
        ReleasedError: for logs that are not there, or hold something else.
        BackboneError: likewise for weights.
        DatasetNotFoundError: if the data is not at hand.
    """
    rows = []
    for row in spec.rows:
        rows.append(_measure(row, folder))
        on_step(row["id"])
    return rows


def _measure(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    name = row["model"]
    log = logged_accuracies(folder, name)
    classifier = import_released(folder / f"{released_model(name).stem}.pth", name)
    data = load_dataset(**classifier.dataset)
    loaders = data.loaders(batch_size=_BATCH, device=torch.device("cpu"), seed=0)
    ours = evaluate(classifier.network, loaders.test)["top1"]
    parameters = classifier.report.after.parameters
    accuracies = {"best": max(log), "last": log[-1], "ours": ours}
    return {"id": row["id"], "parameters": parameters, **{key: round(value, 2) for key, value in accuracies.items()}}


def is_equal(ours: float, logged: float) -> bool:
    """Whether an accuracy is the one that a log says, that of the best epoch for what was released."""
    return abs(ours - logged) < TOLERANCE + 1e-9


def released_tables(spec: TableSpec, measured: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The table of what :func:`measure_released` returned."""
    labels = {row["id"]: row["label"] for row in spec.rows}
    columns = (
        Column("network"),
        Column("parameters", form=",d"),
        Column("last", "log, last epoch (%)", ".2f"),
        Column("best", "log, best epoch (%)", ".2f"),
        Column("ours", "test top-1 here (%)", ".2f"),
        Column("verdict", f"equal to the best (±{TOLERANCE})"),
    )
    verdicts = ["equal" if is_equal(row["ours"], row["best"]) else "differs" for row in measured]
    rows = [
        {"network": labels[row["id"]], **row, "verdict": verdict}
        for row, verdict in zip(measured, verdicts, strict=True)
    ]
    return [Table(spec.title, columns, rows, spec.intro)]
