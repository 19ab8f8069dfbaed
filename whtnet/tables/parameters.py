"""The parameter table: counted on built models, beside the published numbers."""

from collections.abc import Callable, Mapping
from typing import Any

from whtnet.backbones import build_backbone
from whtnet.policy import PolicyError, apply_policy_, load_policy, shipped_policies
from whtnet.tables.render import Table
from whtnet.tables.spec import TableSpec

Step = Callable[[str], None]


def count_rows(
    spec: TableSpec, backbone_settings: Callable[[Mapping[str, Any]], dict[str, Any]], on_step: Step
) -> list:
    """Count the rows of a parameter table.

    Args:
        spec: the table.
        backbone_settings: keywords of ``build_backbone`` for a row.
        on_step: called with the name of each row when it is done.

    Returns:
        One dictionary a row: its specification, ``cost``, and ``ours``, the count that the publication states.
    """
    counted = []
    for row in spec.rows:
        model = build_backbone(**backbone_settings(row), num_classes=10)
        cost = apply_policy_(model, load_policy(row["policy"])).to_dict()["after"]
        key = {"with_bn": "parameters_with_bn_statistics", "trainable": "parameters"}[row["count"]]
        counted.append({**row, "cost": cost, "ours": cost[key]})
        on_step(row["id"])
    return counted


def count_families(
    spec: TableSpec, backbone_settings: Callable[[Mapping[str, Any]], dict[str, Any]], on_step: Step
) -> list:
    """Count every shipped policy on every family of the table; arguments as :func:`count_rows`.

    Returns:
        One dictionary a pair: ``backbone``, ``input_size``, ``policy``, and ``cost`` with the number of replaced
        ``sites``, or ``error``, the policy's own message where it has nothing to replace.
    """
    counted = []
    for family in spec.families:
        for policy in shipped_policies():
            model = build_backbone(**backbone_settings(family), num_classes=10)
            entry = {**family, "policy": policy}
            try:
                report = apply_policy_(model, load_policy(policy), tuple(family["input_size"]))
                entry |= {"cost": report.to_dict()["after"], "sites": len(report.replacements)}
            except PolicyError as error:
                entry["error"] = str(error)
            counted.append(entry)
            on_step(f"{family['backbone']} {policy}")
    return counted


def parameter_tables(spec: TableSpec, rows: list[dict[str, Any]], families: list[dict[str, Any]]) -> list[Table]:
    """The table of published counts, and one of all policies for each family."""
    body = []
    for row in rows:
        agrees = "yes" if row["ours"] == row["published"] else f"no ({row['ours'] - row['published']:+,})"
        kind = "with BN" if row["count"] == "with_bn" else "trainable"
        body.append(
            [row["model"], row["replaced"], kind, f"{row['published']:,}", f"{row['ours']:,}", agrees, row["source"]]
        )
    columns = ["model", "replaced", "count", "published", "ours", "equal", "source"]
    tables = [Table(spec.title, columns, body, spec.intro, text_columns=("replaced", "count", "source"))]
    for backbone in dict.fromkeys(entry["backbone"] for entry in families):
        tables.append(_family_table([entry for entry in families if entry["backbone"] == backbone]))
    return tables


def _family_table(entries: list[dict[str, Any]]) -> Table:
    base = next(entry for entry in entries if entry["policy"] == "none")["cost"]["parameters"]
    body = []
    skipped = []
    for entry in sorted(entries, key=lambda e: -e["cost"]["parameters"] if "cost" in e else 0):
        if "error" in entry:
            skipped.append(entry["policy"])
            continue
        cost = entry["cost"]
        body.append(
            [
                f"`{entry['policy']}`",
                str(entry["sites"]),
                f"{cost['parameters']:,}",
                f"{cost['parameters'] / base - 1:+.1%}",
                f"{cost['parameters_with_bn_statistics']:,}",
                f"{cost['macs'] / 1e6:,.1f}",
                f"{cost['wht_additions'] / 1e6:,.1f}",
            ]
        )
    size = "×".join(map(str, entries[0]["input_size"]))
    columns = ["policy", "sites", "parameters", "change", "with BN", "MACs (M)", "WHT additions (M)"]
    notes = [f"Nothing to replace for: {', '.join(f'`{name}`' for name in skipped)}."] if skipped else []
    return Table(f"{entries[0]['backbone']}, {size}, all shipped policies", columns, body, notes=notes)
