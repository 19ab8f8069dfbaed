"""Build the report of all results: ``whtnet report``."""

import argparse

from whtnet.commands.compose import compose_config
from whtnet.console import console, exit_on_user_error
from whtnet.files import atomic_write
from whtnet.report import build_report
from whtnet.shipped import PLACE, ROOT
from whtnet.tables import Identities, Results


@exit_on_user_error
def main(arguments: argparse.Namespace) -> None:
    """Build the page and write it."""
    installed = arguments.results == ROOT / "results" and ROOT != PLACE  # not the place to write to
    folder = PLACE / "runs" / "results" if installed else arguments.results
    output = arguments.output or folder / "report.html"
    results = Results(ROOT / "experiments", arguments.results, Identities(compose_config))
    atomic_write(output, build_report(results.specs(), results, output.parent))
    console.print(f"Written: {output}", soft_wrap=True)
