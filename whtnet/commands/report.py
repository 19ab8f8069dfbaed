"""Build the report of all results: ``whtnet report``."""

import argparse
from pathlib import Path

from whtnet.commands.compose import PLACE, ROOT, compose_config
from whtnet.console import console, exit_on_user_error
from whtnet.files import atomic_write
from whtnet.report import build_report
from whtnet.tables import Identities, Results


@exit_on_user_error
def main() -> None:
    """Parse the command line, build the page, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the measurements")
    parser.add_argument("--output", type=Path, help="the page; default: report.html beside the measurements")
    arguments = parser.parse_intermixed_args()
    installed = arguments.results == ROOT / "results" and ROOT != PLACE  # not the place to write to
    folder = PLACE / "runs" / "results" if installed else arguments.results
    output = arguments.output or folder / "report.html"
    results = Results(ROOT / "experiments", arguments.results, Identities(compose_config))
    atomic_write(output, build_report(results.specs(), results, output.parent))
    console.print(f"Written: {output}", soft_wrap=True)
