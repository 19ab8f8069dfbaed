"""What each layer of some trained networks does: measured on their checkpoints, and as tables."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from whtnet.classifier import Classifier
from whtnet.data import load_dataset
from whtnet.data.loaders import Loader
from whtnet.engine import Progress, evaluate
from whtnet.inspection import layer_effects
from whtnet.tables.spec import TableSpec
from whtnet.tables.table import Column, Table

_BATCH, _BATCHES = 500, 2  # of training images, for signals and gradients

_COLUMNS = (
    Column("name", "layer"),
    Column("kind"),
    Column("gain", "output / input", ".3f"),
    Column("backward_gain", "gradient in / out", ".3f"),
    Column("zero_share", "zero coefficients (%)", ".1f", 100),
    Column("gradient_norm", "share of the gradient (%)", ".2f", 100),
    Column("bypassed_change", "top-1 when bypassed (points)", "+.2f"),
)

_NOTES = (
    "Output / input and gradient in / out: root mean squares, over the layer alone. Share of the gradient: norm over "
    "the layer's own parameters against that over the whole network.",
    "When bypassed: the change of the accuracy on the test set when the trained network hands the layer's input on as "
    "it is. Empty where that has another shape.",
)


def measure_layers(
    spec: TableSpec, load: Callable[[Mapping[str, Any]], Classifier], on_step: Progress
) -> list[dict[str, Any]]:
    """Measure the trained networks of a table, in float32.

    Args:
        spec: the table; its rows are handed to ``load``.
        load: the trained network of a row.
        on_step: called with the fraction done and the id of each row when it is done.

    Returns:
        One dictionary a row: ``id``, ``top1`` on the test set in percent, and ``layers``, see
        :func:`whtnet.inspection.layer_effects`.
    """
    rows = []
    for done, row in enumerate(spec.rows, start=1):
        classifier = load(row)
        network = classifier.network.eval()
        loaders = load_dataset(**classifier.dataset).loaders(
            batch_size=_BATCH, eval_batch_size=_BATCH, device=torch.device("cpu"), seed=0, channels_last=True
        )
        network.to(memory_format=torch.channels_last)
        images, labels = zip(*(batch for batch, _ in zip(loaders.train, range(_BATCHES), strict=False)), strict=True)
        accuracy = functools.partial(_top1, network, loaders.test)
        layers = layer_effects(network, list(zip(images, labels, strict=True)), accuracy)
        rows.append({"id": row["id"], "top1": accuracy(), "layers": layers})
        on_step(done / len(spec.rows), row["id"])
    return rows


def _top1(network: nn.Module, batches: Loader) -> float:
    return evaluate(network, batches)["top1"]


def layer_tables(spec: TableSpec, rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A table for each trained network, from what :func:`measure_layers` returned."""
    labels = {row["id"]: row["label"] for row in spec.rows}
    return [
        Table(f"{spec.title}: {labels[row['id']]}, {row['top1']:.2f} %", _COLUMNS, row["layers"], spec.intro, _NOTES)
        for row in rows
    ]
