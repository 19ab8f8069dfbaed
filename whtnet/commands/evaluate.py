"""Evaluate a trained model: ``whtnet evaluate``."""

import argparse

from whtnet.classifier import Classifier
from whtnet.commands.data import load_data
from whtnet.console import console, exit_on_user_error
from whtnet.errors import UserError
from whtnet.evaluation import Evaluation, collect, measure_logits
from whtnet.extensions import trust
from whtnet.records import write_json
from whtnet.runs import resolve_device
from whtnet.tables import Cell, Column, Shown, Table, to_rich

_MATRIX_CLASSES = 20  # a larger matrix does not fit a terminal


@exit_on_user_error
def main(arguments: argparse.Namespace) -> None:
    """Evaluate and print."""
    device = resolve_device(arguments.device)
    trust(arguments.trust)
    model = Classifier.load(arguments.model).to(device)
    loader = getattr(load_data(model, arguments.overrides, arguments.batch_size, device), arguments.split)
    if loader is None:
        raise UserError("nothing was held out of the training set; train with dataset.holdout=0.1 to have such a part")
    evaluation = measure_logits(*collect(model.network, loader))
    for table in tables(evaluation, model.classes):
        console.print(to_rich(table))
    if arguments.json:
        write_json(arguments.json, {"classes": model.classes, **evaluation.to_dict()})
        console.print(f"Written: {arguments.json}")


def tables(evaluation: Evaluation, classes: list[str]) -> list[Table]:
    """The summary, the classes, and who is taken for whom."""
    summary: dict[str, Cell] = {
        "top-1 (%)": evaluation.top1,
        "top-5 (%)": evaluation.top5,
        "cross-entropy": Shown(evaluation.loss, ".4f"),
        "expected calibration error (%)": evaluation.calibration_error,
        "worst calibration bin (%)": evaluation.worst_bin,
    }
    counts = [sum(row) for row in evaluation.confusion]
    per_class: list[dict[str, Cell]] = [
        {"class": name, "images": count, "top-1 (%)": accuracy}
        for name, count, accuracy in zip(classes, counts, evaluation.per_class, strict=True)
    ]
    class_columns = [Column("class"), Column("images", form="d"), Column("top-1 (%)", form=".2f")]
    return [
        Table(
            f"{evaluation.images:,} images",
            [Column("measure"), Column("value", form=".2f")],
            [{"measure": name, "value": value} for name, value in summary.items()],
        ),
        Table("Classes", class_columns, per_class),
        _confusion(evaluation.confusion, classes),
    ]


def _confusion(counts: list[list[int]], classes: list[str]) -> Table:
    if len(classes) <= _MATRIX_CLASSES:
        # By number, because a class may have any name.
        columns = [Column("class"), *(Column(str(i), name, "d") for i, name in enumerate(classes))]
        rows: list[dict[str, Cell]] = [
            {"class": name, **{str(i): n for i, n in enumerate(row)}} for name, row in zip(classes, counts, strict=True)
        ]
        return Table("Confusion matrix (rows: the class, columns: taken for)", columns, rows)
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    worst: list[dict[str, Cell]] = [
        {"class": classes[i], "taken for": classes[j], "images": n}
        for n, i, j in sorted(pairs, reverse=True)[:_MATRIX_CLASSES]
    ]
    return Table("Most frequent confusions", [Column("class"), Column("taken for"), Column("images", form="d")], worst)
