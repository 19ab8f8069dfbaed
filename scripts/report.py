"""Build the report of all results: ``python scripts/report.py``."""

import argparse
from pathlib import Path

from _compose import ROOT, compose_config

from whtnet.console import console, exit_on_user_error
from whtnet.files import atomic_write
from whtnet.report import build_report
from whtnet.tables import Identities, Results


@exit_on_user_error
def main() -> None:
    """Parse the command line, build the page, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the measurements")
    parser.add_argument("--output", type=Path, help="the page; default: report.html in the folder of the measurements")
    arguments = parser.parse_intermixed_args()
    output = arguments.output or arguments.results / "report.html"
    results = Results(ROOT / "experiments", arguments.results, Identities(compose_config))
    atomic_write(output, build_report(results.specs(), results, output.parent))
    console.print(f"Written: {output}", soft_wrap=True)


if __name__ == "__main__":
    main()
