"""Which rows a table's measurements are of, and which ones its specification asks for."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from whtnet.policy import shipped_policies
from whtnet.tables.devices import measurements
from whtnet.tables.spec import TableSpec


def specified(spec: TableSpec) -> set[str]:
    """Names of all that is to be counted or measured for a table."""
    match spec.kind:
        case "parameters":
            return _ids(spec.rows) | _pairs(family["backbone"] for family in spec.families)
        case "coverage":
            return _pairs(row["id"] for row in spec.rows)
        case "speed":
            return {network["label"] for network in spec.networks}
        case "deployment":
            return {row["runtime"] for row in spec.rows} | {layer["layer"] for layer in spec.layers}
        case _:
            return _ids(spec.rows)


def measured(spec: TableSpec, stored: Mapping[str, Any]) -> set[str]:
    """Names of all that was; ``stored`` is what the table's file in results/ holds."""
    match spec.kind:
        case "training":
            return set(stored["rows"])
        case "parameters":
            return _ids(stored["rows"]) | {_pair(entry["backbone"], entry["policy"]) for entry in stored["families"]}
        case "coverage":
            return {_pair(entry["backbone"], entry["policy"]) for entry in stored["pairs"]}
        case "speed":
            return {network["label"] for one in measurements(stored) for network in one["networks"]}
        case "deployment":
            return {name for one in measurements(stored) for name in (*one["runtimes"], *one["layers"])}
        case _:
            return _ids(stored["rows"])


def _ids(rows: Any) -> set[str]:
    return {row["id"] for row in rows}


def _pairs(backbones: Any) -> set[str]:
    return {_pair(backbone, policy) for backbone, policy in product(backbones, shipped_policies())}


def _pair(backbone: str, policy: str) -> str:
    return f"{policy} on {backbone}"
