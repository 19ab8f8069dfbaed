"""Choose the sites of a network that a policy's rules take, each the first rule that matches it."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import nn

from whtnet.errors import few
from whtnet.policy.rules import KEEP, Policy, PolicyError, Rule, select_blocks
from whtnet.policy.sites import Site, SiteMap


def choose_sites(found: SiteMap, policy: Policy, architecture: str) -> list[tuple[Site, Rule]]:
    """The sites that get a layer, each with its rule, in the order of the forward pass.

    Args:
        found: the network's sites.
        policy: for this network, see :meth:`Policy.for_model`.
        architecture: what errors call the network.

    Raises:
        PolicyError: naming the rule that matches nothing, or only what earlier ones take.
    """
    taken: dict[str, Rule] = {}
    chosen = []
    for i, rule in enumerate(policy.rules, 1):
        origin = f"policy {policy.name!r}, rule {i} ({rule})"
        same_kind = [site for site in found.sites if site.kind == rule.match]
        matching = [site for site in same_kind if _satisfies(site, rule, found, origin)]
        if not matching:
            raise PolicyError(f"{origin} matches nothing in {architecture}: {_why_nothing(rule, same_kind, found)}")
        free = [site for site in matching if site.name not in taken]
        if not free:
            raise PolicyError(f"{origin} matches only sites that earlier rules take: {_names(matching)}")
        taken |= {site.name: rule for site in free}
        if rule.replace != KEEP:
            chosen += [(site, rule) for site in free]
    order = {site.name: i for i, site in enumerate(found.sites)}
    return sorted(chosen, key=lambda pair: order[pair[0].name])


def _satisfies(site: Site, rule: Rule, found: SiteMap, origin: str) -> bool:
    where = rule.where
    checks: dict[str, Callable[[Any], bool]] = {
        "name": lambda pattern: re.search(pattern, site.name) is not None,
        "part": lambda part: site.part == part,
        "blocks": lambda spec: site.block in select_blocks(spec, found.blocks, origin),
        "stages": lambda spec: site.stage in {n if n > 0 else found.stages + 1 + n for n in spec},
        "nth": lambda n: n in site.nth,
        "stride": lambda stride: _stride(site.module) == (stride, stride),
    }
    return all(checks[key](value) for key, value in where.items())


def _stride(module: nn.Module) -> tuple[int, int] | None:
    return (1, 1) if isinstance(module, nn.Linear) else getattr(module, "stride", None)


def _why_nothing(rule: Rule, same_kind: list[Site], found: SiteMap) -> str:
    before = f"; {found.replaced} were replaced before, by this policy or another" if found.replaced else ""
    if same_kind:
        shape = f"; it has {found.blocks} blocks in {found.stages} stages" if found.blocks else "; it has no blocks"
        conditions = f"satisfies the conditions ({_names(same_kind)}){shape}"
        return f"none of its {len(same_kind)} {rule.match} sites {conditions}{before}"
    kinds = Counter(site.kind for site in found.sites)
    return "it has " + (", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "no sites at all") + before


def _names(sites: list[Site]) -> str:
    return few([site.name for site in sites], most=6)
