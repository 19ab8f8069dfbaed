"""Put Walsh-Hadamard layers into a model as a policy says, all or nothing, and report what was done."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from whtnet.cost import count_parameters, measure_cost
from whtnet.policy.builders import build_layer, check_options
from whtnet.policy.choosing import choose_sites
from whtnet.policy.report import Replacement, Report
from whtnet.policy.rules import Policy, PolicyError, Rule, load_policy
from whtnet.policy.sites import Site, find_sites


def apply_policy_(
    model: nn.Module,
    policy: Policy | str | Path | Mapping[str, Any],
    input_size: tuple[int, int, int] = (3, 32, 32),
    share: float = 1.0,
) -> Report:
    """Replace sites of ``model`` by Walsh-Hadamard layers, in place.

    All sites are found, checked and their layers built before the first one is put in: after an error the model is as
    it was. New layers take the device and dtype of what they replace.

    Args:
        model: any torchvision or timm image classifier.
        policy: a policy, its name or path (see :func:`load_policy`), or its data.
        input_size: one image, (C, H, W). The model is bound to this resolution wherever a 2-D layer goes.
        share: replace no more than this share of the sites that the policy chooses, the last ones of the forward pass.

    Returns:
        The report of what was replaced.

    Raises:
        PolicyError: if a rule matches nothing, asks for a site that its layer can't replace (stride, groups, channels,
            a map whose size varies), or has unknown options. The message names the site and the remedy.
    """
    if isinstance(policy, Mapping):
        policy = Policy.from_dict(policy)
    elif not isinstance(policy, Policy):
        policy = load_policy(policy)
    policy = policy.for_model(model)
    check_options(policy)
    found = find_sites(model, input_size)
    before = measure_cost(model, input_size)
    if not 0 <= share <= 1:
        raise PolicyError(f"share must be in [0, 1], got {share}")
    chosen = choose_sites(found, policy, type(model).__name__)
    chosen = chosen[len(chosen) - math.ceil(len(chosen) * share) :]
    layers = [build_layer(model, site, rule, policy) for site, rule in chosen]
    replacements = []
    for (site, rule), layer in zip(chosen, layers, strict=True):
        replacements.append(_put(model, site, rule, layer))
    after = measure_cost(model, input_size) if chosen else before
    return Report(policy.name, type(model).__name__, tuple(input_size), tuple(replacements), before, after)


def _put(model: nn.Module, site: Site, rule: Rule, layer: nn.Module) -> Replacement:
    before = 0 if site.kind == "before_gap" else count_parameters(site.module)
    if site.append:
        site.module.append(layer)
    else:
        module = nn.Sequential(layer, site.module) if site.kind == "before_gap" else layer
        for name in site.aliases:
            model.set_submodule(name, module, strict=True)
    return Replacement(
        site.name, site.kind, rule.replace, site.input_shape, site.output_shape, before, count_parameters(layer)
    )
