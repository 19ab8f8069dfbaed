"""Training tables: records → mean ± standard deviation over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from whtnet.tables.render import NOT_AT_HAND, Table
from whtnet.tables.spec import TableSpec


def training_table(spec: TableSpec, records: Sequence[Mapping[str, Any]]) -> Table:
    """Build the table of ``spec`` from the records of its runs; rows without a record say so."""
    rows = []
    baseline: float | None = None
    for row in spec.rows:
        mine = [r for r in records if r["table"] == spec.name and r["row"] == row["id"]]
        parameters = mine[0]["cost"]["parameters"] if mine else None
        baseline = baseline if baseline is not None else parameters
        published = row.get("published") or {}
        rows.append(
            [
                row["label"],
                f"{parameters:,}" if mine else "not run",
                f"{parameters / baseline - 1:+.1%}" if mine and baseline else "",
                f"{mine[0]['cost']['macs'] / 1e6:,.1f}" if mine else "",
                mean_std([r["test_top1"] for r in mine]) if mine else "not run",
                f"{published['top1']:.2f}" if "top1" in published else NOT_AT_HAND,
                f"{published['parameters']:,}" if "parameters" in published else NOT_AT_HAND,
                published.get("source", ""),
                _recipe(mine),
                _duration(mine),
            ]
        )
    columns = [
        "row",
        "parameters",
        "change",
        "MACs (M)",
        "test top-1 (%)",
        "published top-1 (%)",
        "published parameters",
        "source",
        "recipe",
        "time a run",
    ]
    text = ("source", "recipe")
    used = [r for r in records if r["table"] == spec.name]
    return Table(spec.title, columns, rows, spec.intro, _provenance(used), text)


def mean_std(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation over n seeds, as ``91.20 ± 0.15 (n=3)``; one value alone has no deviation."""
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f} (n={len(values)})" if len(values) > 1 else f"{mean} (n=1)"


def _recipe(records: Sequence[Mapping[str, Any]]) -> str:
    recipes = {f"{r['settings']['trainer']['schedule']}, {r['epochs']} epochs, {r['precision']}" for r in records}
    return "; ".join(sorted(recipes))


def _duration(records: Sequence[Mapping[str, Any]]) -> str:
    return f"{statistics.median(r['duration_s'] for r in records) / 60:.1f} min" if records else ""


def _provenance(records: Sequence[Mapping[str, Any]]) -> list[str]:
    if not records:
        return []
    places = sorted({place(record["environment"]) for record in records})
    return [
        "Accuracy at the last epoch, mean ± standard deviation over n seeds.",
        *(f"Measured on {p}." for p in places),
    ]


def place(environment: Mapping[str, Any]) -> str:
    """Where something was measured, from :func:`whtnet.records.environment`, in a line."""
    commit = (environment["commit"] or "none")[:8] + (" with local changes" if environment["dirty"] else "")
    torch_version, threads = environment["versions"]["torch"], environment["threads"]
    return f"{environment['device_name']}, {threads} threads, torch {torch_version}, commit {commit}"
