"""The parameter table: counted on built models, beside the published numbers."""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from whtnet.backbones import build_backbone
from whtnet.policy import PolicyError, apply_policy_, load_policy, shipped_policies
from whtnet.tables.render import Table
from whtnet.tables.spec import TableSpec

Step = Callable[[str], None]

_COVERAGE_SIZE = (3, 224, 224)


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
        for entry in _count_policies(backbone_settings(family), tuple(family["input_size"])):
            counted.append({**family, **entry})
            on_step(f"{family['backbone']} {entry['policy']}")
    return counted


def count_coverage(
    spec: TableSpec, backbone_settings: Callable[[Mapping[str, Any]], dict[str, Any]], on_step: Step
) -> list:
    """Count every shipped policy on the backbone of every row, which is its ``id``; as :func:`count_families`."""
    counted = []
    for row in spec.rows:
        family = {"backbone": row["id"], "input_size": list(_COVERAGE_SIZE)}
        for entry in _count_policies(backbone_settings(family), _COVERAGE_SIZE):
            counted.append({**family, **entry})
            on_step(f"{row['id']} {entry['policy']}")
    return counted


def _count_policies(backbone: dict[str, Any], input_size: tuple[int, int, int]) -> Iterator[dict[str, Any]]:
    original = build_backbone(**backbone, num_classes=10).to("meta")  # nothing is computed
    for policy in shipped_policies():
        model = copy.deepcopy(original)
        try:
            report = apply_policy_(model, load_policy(policy), input_size)
        except PolicyError as error:
            yield {"policy": policy, "error": str(error)}
        else:
            yield {"policy": policy, "cost": report.to_dict()["after"], "sites": len(report.replacements)}


def coverage_tables(spec: TableSpec, counted: list[dict[str, Any]]) -> list[Table]:
    """The change of the parameters by policy and backbone, and the reasons of the policies that refuse."""
    pairs = {(entry["policy"], entry["backbone"]): entry for entry in counted}
    backbones = list(dict.fromkeys(entry["backbone"] for entry in counted))
    policies = list(dict.fromkeys(entry["policy"] for entry in counted))
    body = []
    for policy in policies:
        cells = []
        for backbone in backbones:
            base = pairs["none", backbone]["cost"]["parameters"]
            entry = pairs[policy, backbone]
            cells.append(f"{entry['cost']['parameters'] / base - 1:+.1%}" if "cost" in entry else "–")
        body.append([f"`{policy}`", *cells])
    refusals: dict[tuple[str, str], list[str]] = {}
    for backbone, policy in itertools.product(backbones, policies):
        if error := pairs[policy, backbone].get("error"):
            reason = error.split(" matches nothing in ")[-1].split(": ", 1)[-1] if "matches" in error else error
            reason = reason.replace(f"policy '{policy}'", "the policy")
            refusals.setdefault((backbone, reason), []).append(f"`{policy}`")
    reasons = Table(
        "Why a policy refuses",
        ["backbone", "policies", "reason"],
        [[backbone, ", ".join(names), reason] for (backbone, reason), names in refusals.items()],
        text_columns=("policies", "reason"),
    )
    columns = ["policy", *(name.split("/")[-1] for name in backbones)]
    return [Table(spec.title, columns, body, spec.intro), reasons]


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
