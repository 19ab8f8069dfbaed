"""One form for all ways to write a policy: two policies that put the same layers at the same sites have the same."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from whtnet.policy.builders import check_options, default_options, options_of
from whtnet.policy.rules import KEEP, Policy, PolicyError, Rule
from whtnet.settings import canonical, without_defaults


def canonical_policy(policy: Policy) -> list[dict[str, Any]]:
    """What a policy does: its rules with the options of their layers, those equal to the layer's default left out.

    Raises:
        PolicyError: for a layer or an option that there is not.
    """
    _check(policy)
    chosen = [(rule, without_defaults(_options(policy, rule), default_options(rule))) for rule in policy.rules]
    return [canonical(_as_data(rule, _where(rule), options)) for rule, options in chosen]


def explicit_policy(policy: Policy) -> dict[str, Any]:
    """The policy as plain data that keeps its meaning when a layer's default changes: every rule has every option.

    Raises:
        PolicyError: as :func:`canonical_policy`.
    """
    _check(policy)
    chosen = [(rule, {**default_options(rule), **_options(policy, rule)}) for rule in policy.rules]
    return {"name": policy.name, "rules": [_as_data(rule, dict(rule.where), options) for rule, options in chosen]}


def _check(policy: Policy) -> None:
    if policy.architectures:
        raise PolicyError(f"policy {policy.name!r} depends on the model: ask its for_model first")
    check_options(policy)


def _as_data(rule: Rule, where: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    data = {"match": rule.match, "where": where, "replace": rule.replace, "options": options}
    return {name: value for name, value in data.items() if value}


def _options(policy: Policy, rule: Rule) -> dict[str, Any]:
    return {} if rule.replace == KEEP else options_of(rule, policy)


def _where(rule: Rule) -> dict[str, Any]:
    where = dict(rule.where)
    if isinstance(blocks := where.get("blocks"), str):
        where["blocks"] = _blocks(blocks)
    for key in ("blocks", "stages"):
        if isinstance(where.get(key), Sequence) and not isinstance(where[key], str):
            where[key] = sorted(set(where[key]))
    return where


def _blocks(spec: str) -> str | list[int]:
    if match := re.fullmatch(r"(\d+)-(\d+)", spec):
        return list(range(int(match[1]), int(match[2]) + 1))
    which, _, amount = spec.partition(" ")
    share = Fraction(amount)
    return f"{which} {share.numerator}" + (f"/{share.denominator}" if "/" in amount else "")  # 1 is one block, 1/1 all
