"""Say what is on images, with a trained model: ``whtnet predict``."""

import argparse
import json
from pathlib import Path

import torch

from whtnet.classifier import Classifier
from whtnet.console import console, exit_on_user_error
from whtnet.data.pixels import open_rgb
from whtnet.extensions import trust
from whtnet.tables import Cell, Column, Table, to_rich


@exit_on_user_error
def main(arguments: argparse.Namespace) -> None:
    """Predict and print."""
    trust(arguments.trust)
    model = Classifier.load(arguments.model)
    predictions = {str(path): predict(model, path, arguments.top) for path in arguments.images}
    if arguments.json:
        print(json.dumps(predictions, indent=2))
        return
    rows: list[dict[str, Cell]] = [
        {"image": path if rank == 0 else "", "class": name, "probability": probability}
        for path, found in predictions.items()
        for rank, (name, probability) in enumerate(found.items())
    ]
    columns = [Column("image"), Column("class"), Column("probability", form=".1%")]
    console.print(to_rich(Table("Predictions", columns, rows)))


@torch.no_grad()
def predict(model: Classifier, path: Path, top: int) -> dict[str, float]:
    """The ``top`` likeliest classes of an image and their probabilities, in order.

    Raises:
        DatasetError: if the file can't be decoded as an image.
    """
    values, indices = model(model.preprocess(open_rgb(path)))[0].softmax(0).topk(min(top, len(model.classes)))
    return {model.classes[i]: value for i, value in zip(indices.tolist(), values.tolist(), strict=True)}
