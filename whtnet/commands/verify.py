"""Check what the project publishes, without training: ``whtnet verify``."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable

from whtnet.commands.compose import backbone_settings, compose_config
from whtnet.console import ProgressView, console, exit_on_user_error
from whtnet.shipped import ROOT
from whtnet.tables import Identities, Results, pages
from whtnet.verification import (
    FAILED,
    PASSED,
    SKIPPED,
    Check,
    check_counts,
    check_files,
    check_made,
    check_pages,
    check_records,
    check_released,
    check_rows,
    check_weights,
    counts_again,
)


@exit_on_user_error
def main(_: argparse.Namespace) -> None:
    """Run all checks and say what failed."""
    results = Results(ROOT / "experiments", ROOT / "results", Identities(compose_config))
    specs = results.specs()
    found = _show("tables with results", check_made(specs, results))
    specs = [spec for spec in specs if results.holds(spec)]
    found += _show("records that replay", check_records(results))
    with ProgressView() as view:
        on_step = view.steps("counting", sum(len(spec.rows) for spec in specs if counts_again(spec)))
        counted = check_counts(specs, results, compose_config, backbone_settings, on_step)
        found += _show("counts on built models", counted)
    found += _show("rows of what was measured", check_rows(specs, results))
    found += _show("files in results/", check_files(specs, results))
    if shown := pages(ROOT):  # not where the package is installed
        found += _show("tables in README.md and docs/", check_pages(specs, results, shown))
    with ProgressView() as view:
        on_step = view.steps("released networks", sum(len(spec.rows) for spec in specs if spec.kind == "released"))
        evaluated = list(check_released(specs, on_step))
    found += _show("released networks", evaluated)
    found += _show("committed weights", check_weights(results))
    outcomes = Counter(check.outcome for check in found)
    console.print(f"{outcomes[PASSED]} passed, {outcomes[FAILED]} failed")
    sys.exit(min(outcomes[FAILED], 1))


def _show(title: str, checks: Iterable[Check]) -> list[Check]:
    found = list(checks)
    outcomes = Counter(check.outcome for check in found)
    counts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in (PASSED, FAILED, SKIPPED) if outcomes[outcome])
    console.print(f"{title}: {counts or 'none there'}")
    for check in found:
        if check.outcome != PASSED:
            console.print(f"  {check.outcome}: {check.name}: {check.reason}", markup=False, soft_wrap=True)
    return found
