"""The tables of counts, made on built models: beside published numbers, and of every policy on many backbones."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from whtnet.backbones import build_backbone
from whtnet.policy import PolicyError, apply_policy_, load_policy, shipped_policies
from whtnet.tables.spec import TableSpec
from whtnet.tables.table import Cell, Column, Table

Step = Callable[[str], None]

_COVERAGE_SIZE = (3, 224, 224)


def count_rows(
    spec: TableSpec, backbone_settings: Callable[[Mapping[str, Any]], dict[str, Any]], on_step: Step
) -> list[dict[str, Any]]:
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
) -> list[dict[str, Any]]:
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
) -> list[dict[str, Any]]:
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

    def change(policy: str, backbone: str) -> Cell:
        entry, base = pairs[policy, backbone], pairs["none", backbone]["cost"]
        return relative_change(entry["cost"], base) if "cost" in entry else "–"

    rows: list[dict[str, Cell]] = [
        {"policy": f"`{policy}`", **{name: change(policy, name) for name in backbones}} for policy in policies
    ]
    columns = [Column("policy"), *(Column(name, name.split("/")[-1], "+.1%") for name in backbones)]
    refused = [pairs[pair[::-1]] for pair in itertools.product(backbones, policies) if "error" in pairs[pair[::-1]]]
    return [Table(spec.title, columns, rows, spec.intro), _reasons(refused)]


def _reasons(refused: list[dict[str, Any]]) -> Table:
    policies: dict[tuple[str, str], list[str]] = {}
    for entry in refused:
        policies.setdefault((entry["backbone"], _reason(entry)), []).append(f"`{entry['policy']}`")
    rows = [
        {"backbone": backbone, "policies": ", ".join(names), "reason": reason}
        for (backbone, reason), names in policies.items()
    ]
    return Table("Why a policy refuses", [Column("backbone"), Column("policies"), Column("reason")], rows)


def _reason(entry: Mapping[str, Any]) -> str:
    error = entry["error"]
    reason = error.split(" matches nothing in ")[-1].split(": ", 1)[-1] if "matches" in error else error
    return reason.replace(f"policy '{entry['policy']}'", "the policy")


def parameter_tables(spec: TableSpec, rows: list[dict[str, Any]], families: list[dict[str, Any]]) -> list[Table]:
    """The table of published counts, and one of all policies for each family."""
    tables = [Table(spec.title, _PUBLISHED_COLUMNS, [_published_row(row) for row in rows], spec.intro)]
    for backbone in dict.fromkeys(entry["backbone"] for entry in families):
        tables.append(_family_table([entry for entry in families if entry["backbone"] == backbone]))
    return tables


_PUBLISHED_COLUMNS = (
    Column("model"),
    Column("replaced"),
    Column("count"),
    Column("published", form=","),
    Column("ours", form=","),
    Column("equal"),
    Column("source"),
)


def _published_row(row: Mapping[str, Any]) -> dict[str, Cell]:
    equal = "yes" if row["ours"] == row["published"] else f"no ({row['ours'] - row['published']:+,})"
    count = "with BN" if row["count"] == "with_bn" else "trainable"
    return {**{c.name: row.get(c.name) for c in _PUBLISHED_COLUMNS}, "count": count, "equal": equal}


_FAMILY_COLUMNS = (
    Column("policy"),
    Column("sites", form=","),
    Column("parameters", form=","),
    Column("change", form="+.1%"),
    Column("parameters_with_bn_statistics", "with BN", ","),
    Column("macs", "MACs (M)", ",.1f", 1e-6),
    Column("wht_additions", "WHT additions (M)", ",.1f", 1e-6),
)


def _family_table(entries: list[dict[str, Any]]) -> Table:
    base = next(entry for entry in entries if entry["policy"] == "none")["cost"]
    counted = sorted((e for e in entries if "cost" in e), key=lambda e: -e["cost"]["parameters"])
    rows = [
        {
            **entry["cost"],
            "policy": f"`{entry['policy']}`",
            "sites": entry["sites"],
            "change": relative_change(entry["cost"], base),
        }
        for entry in counted
    ]
    size = "×".join(map(str, entries[0]["input_size"]))
    refused = ", ".join(f"`{entry['policy']}`" for entry in entries if "error" in entry)
    notes = [f"Nothing to replace for: {refused}."] if refused else []
    return Table(f"{entries[0]['backbone']}, {size}, all shipped policies", _FAMILY_COLUMNS, rows, notes=notes)


def relative_change(cost: Mapping[str, int], base: Mapping[str, int]) -> float:
    """By what fraction the parameters are more than the base's."""
    return cost["parameters"] / base["parameters"] - 1


def named_counts(spec: TableSpec, measured: Mapping[str, Any]) -> dict[str, int]:
    """Every number that was counted for a table, by what was counted; ``measured`` is what its file holds."""
    match spec.kind:
        case "training":
            costs = {
                f"{row}, {size['label']}": cost
                for row, sizes in measured.get("rows", {}).items()
                for size, cost in zip(spec.counted, sizes, strict=False)
            }
        case "parameters":
            costs = {row["id"]: {"as published": row["ours"]} for row in measured.get("rows", ())}
            costs |= _pair_costs(measured.get("families", ()))
        case "coverage":
            costs = _pair_costs(measured.get("pairs", ()))
        case "released":
            costs = {row["id"]: {"parameters": row["parameters"]} for row in measured.get("rows", ())}
        case _:
            costs = {}
    return {f"{what}: {name}": count for what, cost in costs.items() for name, count in cost.items()}


def _pair_costs(pairs: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, int]]:
    return {f"{pair['backbone']}, {pair['policy']}": pair["cost"] for pair in pairs if "cost" in pair}
