"""Say what is on images, with a trained model.

whtnet predict MODEL IMAGE [IMAGE …]
"""

import argparse
import json
from pathlib import Path

import torch

from whtnet.classifier import Classifier
from whtnet.console import console, exit_on_user_error
from whtnet.data.pixels import open_rgb
from whtnet.extensions import trust
from whtnet.tables import Column, Table, to_rich


@exit_on_user_error
def main() -> None:
    """Parse the command line, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a run, checkpoint file, folder of a saved model, or OWNER/NAME")
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE", help="of yours, that the model names"
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--top", type=int, default=3, help="classes to name for each image (default 3)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_intermixed_args()
    trust(arguments.trust)
    model = Classifier.load(arguments.model)
    predictions = {str(path): predict(model, path, arguments.top) for path in arguments.images}
    if arguments.json:
        print(json.dumps(predictions, indent=2))
        return
    rows = [
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
    values, indices = model(model.preprocess(open_rgb(path)))[0].softmax(0).topk(min(max(top, 1), len(model.classes)))
    return {model.classes[i]: value for i, value in zip(indices.tolist(), values.tolist(), strict=True)}
