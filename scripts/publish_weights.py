"""Put the network of a finished run among those that the project publishes, in results/weights, with its record.

python scripts/publish_weights.py runs/cifar10/resnet20-paper-seed0-0123abcd --name resnet20_paper
"""

import argparse
import json
from pathlib import Path
from typing import Any

from whtnet.backbones.weights import PUBLISHED
from whtnet.classifier import Classifier
from whtnet.console import console, exit_on_user_error
from whtnet.errors import UserError
from whtnet.records import read_records, record_file
from whtnet.runs import RECORD

LARGEST = 15e6  # bytes of all published networks


@exit_on_user_error
def main() -> None:
    """Parse the command line, check that the run has a record, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run whose record lies in results/runs")
    parser.add_argument("--name", required=True, help="such as resnet20_paper: timm's whtnet_resnet20_paper takes it")
    parser.add_argument("--results", type=Path, default=PUBLISHED.parent, help="folder (default: results)")
    arguments = parser.parse_intermixed_args()
    record = _record(arguments.run, arguments.results / "runs")
    facts = {"recipe": f"`{record['recipe']}`", "seed": record["seed"], "record": f"`runs/{record_file(record)}`"}
    file = arguments.results / "weights" / f"{arguments.name}.safetensors"
    Classifier.load(arguments.run).publish(file, record["identity"], facts)
    total = sum(path.stat().st_size for path in file.parent.glob("*.safetensors"))
    console.print(
        f"Written: {file} ({file.stat().st_size / 1e6:.1f} MB, {total / 1e6:.1f} MB with the others)", markup=False
    )
    if total > LARGEST:
        console.print(f"More than {LARGEST / 1e6:.0f} MB are too much for a repository: leave some out")


def _record(run: Path, records: Path) -> dict[str, Any]:
    try:
        identity = json.loads((run / RECORD).read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{run} is no folder of a finished run: its {RECORD} can't be read ({error})") from error
    for record in read_records(records):
        if record["identity"] == identity:
            return record
    raise UserError(f"{records} has no record of {run}; a table's --update puts it there")


if __name__ == "__main__":
    main()
