"""Evaluate a trained model: top-1, top-5, per class, confusion matrix, calibration.

python scripts/evaluate.py MODEL [dataset.root=FOLDER …]    MODEL: folder of a run, checkpoint, saved model, hub name
"""

import argparse
from pathlib import Path

from _data import load_data

from whtnet.classifier import Classifier
from whtnet.console import console, exit_on_user_error
from whtnet.errors import UserError
from whtnet.evaluation import Evaluation, collect, measure_logits
from whtnet.experiment import resolve_device
from whtnet.records import write_json
from whtnet.tables import Table

_MATRIX_CLASSES = 20  # a larger matrix does not fit a terminal


@exit_on_user_error
def main() -> None:
    """Parse the command line, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a run, checkpoint file, folder of a saved model, or OWNER/NAME")
    parser.add_argument("overrides", nargs="*", help="dataset.root=… or other settings of the data set")
    parser.add_argument("--split", choices=("test", "holdout"), default="test")
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    model = Classifier.load(arguments.model).to(device)
    loader = getattr(load_data(model, arguments.overrides, arguments.batch_size, device), arguments.split)
    if loader is None:
        raise UserError("the data set has no held-out part; pass dataset.holdout=0.1, as it was in training")
    evaluation = measure_logits(*collect(model.network, loader))
    for table in tables(evaluation, model.classes):
        console.print(table.rich())
    if arguments.json:
        write_json(arguments.json, {"classes": model.classes, **evaluation.to_dict()})
        console.print(f"Written: {arguments.json}")


def tables(evaluation: Evaluation, classes: list[str]) -> list[Table]:
    """The summary, the classes, and who is taken for whom."""
    summary = [
        ["top-1 (%)", f"{evaluation.top1:.2f}"],
        ["top-5 (%)", f"{evaluation.top5:.2f}"],
        ["cross-entropy", f"{evaluation.loss:.4f}"],
        ["expected calibration error (%)", f"{evaluation.calibration_error:.2f}"],
        ["worst calibration bin (%)", f"{evaluation.worst_bin:.2f}"],
    ]
    counts = [sum(row) for row in evaluation.confusion]
    per_class = [
        [name, str(count), f"{accuracy:.2f}"]
        for name, count, accuracy in zip(classes, counts, evaluation.per_class, strict=True)
    ]
    return [
        Table(f"{evaluation.images:,} images", ["measure", "value"], summary),
        Table("Classes", ["class", "images", "top-1 (%)"], per_class),
        _confusion(evaluation.confusion, classes),
    ]


def _confusion(counts: list[list[int]], classes: list[str]) -> Table:
    if len(classes) <= _MATRIX_CLASSES:
        rows = [[name, *map(str, row)] for name, row in zip(classes, counts, strict=True)]
        return Table("Confusion matrix (rows: the class, columns: taken for)", ["class", *classes], rows)
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    worst = [[classes[i], classes[j], str(n)] for n, i, j in sorted(pairs, reverse=True)[:_MATRIX_CLASSES]]
    return Table("Most frequent confusions", ["class", "taken for", "images"], worst, text_columns=("taken for",))


if __name__ == "__main__":
    main()
