"""Make a classifier of a checkpoint that HT-2023's authors released (phy710/ICML2023-HT).

python scripts/import_released.py resnet20-WHTConvx3.pth --model ht2023/resnet20-3path
"""

import argparse
from pathlib import Path

from whtnet.console import console, exit_on_user_error
from whtnet.released import MODELS, import_released


@exit_on_user_error
def main() -> None:
    """Parse the command line, import, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the authors' .pth file")
    parser.add_argument("--model", required=True, help=", ".join(MODELS))
    parser.add_argument("--out", type=Path, help="folder to write to (default: runs/released/NAME)")
    arguments = parser.parse_intermixed_args()
    classifier = import_released(arguments.file, arguments.model)
    folder = arguments.out or Path("runs", "released", arguments.model.replace("/", "-"))
    classifier.save_pretrained(folder)
    console.print(f"Written: {folder} ({classifier.report.after.parameters:,} parameters)", markup=False)


if __name__ == "__main__":
    main()
