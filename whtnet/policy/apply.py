"""Put Walsh-Hadamard layers into a model as a policy says, all or nothing, and report what was done."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from whtnet.cost import Cost, count_cost, count_parameters, meta_copy, meta_probe
from whtnet.errors import few
from whtnet.policy.builders import build_layer, check_options
from whtnet.policy.choosing import choose_sites
from whtnet.policy.models import check_model, check_sites, unchanged_on_error
from whtnet.policy.report import Replacement, Report
from whtnet.policy.rules import Policy, PolicyError, Rule, load_policy
from whtnet.policy.sites import Site, find_sites, mark_replaced

_Change = tuple[Site, Rule, nn.Module]


def apply_policy_(
    model: nn.Module,
    policy: Policy | str | Path | Mapping[str, Any],
    input_size: tuple[int, int, int] = (3, 32, 32),
    share: float = 1.0,
) -> Report:
    """Replace sites of ``model`` by Walsh-Hadamard layers, in place.

    After any error, an interruption too, the model and the random states are as they were. New layers take the device
    and dtype of what they replace. The model itself never runs: copies without data do, before and with the layers. A
    policy that is applied after another, or again, finds what those before it left; see ``nth`` of :class:`Rule`.

    Args:
        model: any torchvision or timm image classifier.
        policy: a policy, its name or path (see :func:`load_policy`), or its data.
        input_size: one image, (C, H, W). The model is bound to this resolution wherever a 2-D layer goes.
        share: replace this share (0 to 1) of the sites that the policy chooses, rounded up to a whole number: the last
            ones of the forward pass.

    Returns:
        The report of what was replaced.

    Raises:
        PolicyError: if a rule matches nothing, asks for a site that its layer can't replace (stride, groups, channels,
            a map whose size varies, what only seems a convolution), or has unknown options; if the model is compiled,
            scripted or wrapped, or does not run with the layers. The message names the site and the remedy.
    """
    if isinstance(policy, Mapping):
        policy = Policy.from_dict(policy)
    elif not isinstance(policy, Policy):
        policy = load_policy(policy)
    check_model(model)
    policy = policy.for_model(model)
    check_options(policy)
    if not 0 <= share <= 1:
        raise PolicyError(f"share must be in [0, 1], got {share}")
    with unchanged_on_error(model):
        found = find_sites(model, input_size)
        chosen = choose_sites(found, policy, type(model).__name__)
        chosen = chosen[len(chosen) - math.ceil(round(len(chosen) * share, 9)) :]  # 0.28 of 25 sites are 7
        check_sites(model, [site for site, _ in chosen])
        changes = [(site, rule, build_layer(model, site, rule, policy)) for site, rule in chosen]
        after = _rehearse(model, input_size, changes) if changes else found.cost
        replacements = tuple(_replacement(*change) for change in changes)
        for site, _, layer in changes:
            mark_replaced(layer, site)
            _put(model, site, layer)
        return Report(
            policy=policy.name,
            architecture=type(model).__name__,
            input_size=tuple(input_size),
            replacements=replacements,
            before=found.cost,
            after=after,
        )


def _rehearse(model: nn.Module, input_size: tuple[int, int, int], changes: Sequence[_Change]) -> Cost:
    """Put the layers into a copy and run it.

    Returns:
        What the changed model will cost.

    Raises:
        PolicyError: naming the site, if the copy does not run, or does not call what was put there.
    """
    try:
        cost, idle = _try(model, input_size, changes)
    except Exception as error:
        culprits = [change for change in changes if len(changes) > 1 and _fails(model, input_size, change)] or changes
        reason = str(error).partition("\n")[0]
        raise PolicyError(f"{_described(culprits)}: the model does not run any more ({reason}); {_REMEDY}") from error
    if idle:
        raise PolicyError(f"{_described(idle)}: the model does not call what is put there; {_REMEDY}")
    return cost


_REMEDY = (
    "something in it uses the replaced module otherwise than by calling it by its name, its weight, say, or a list "
    "that holds it: call it by its name, or put a rule with `replace: keep` before"
)


def _try(model: nn.Module, input_size: tuple[int, int, int], changes: Sequence[_Change]) -> tuple[Cost, list[_Change]]:
    probe, image = meta_probe(model, input_size)
    ran: set[nn.Module] = set()
    layers = [meta_copy(layer) for _, _, layer in changes]
    for (site, _, _), layer in zip(changes, layers, strict=True):
        layer.register_forward_pre_hook(lambda layer, _: ran.add(layer))
        _put(probe, site, layer)
    cost = count_cost(probe, image)
    return cost, [change for change, layer in zip(changes, layers, strict=True) if layer not in ran]


def _fails(model: nn.Module, input_size: tuple[int, int, int], change: _Change) -> bool:
    try:
        _try(model, input_size, [change])
    except Exception:  # whatever the model says
        return True
    return False


def _described(changes: Sequence[_Change]) -> str:
    return few([f"{site.name} ({rule.replace})" for site, rule, _ in changes], most=3)


def _put(model: nn.Module, site: Site, layer: nn.Module) -> None:
    module = model.get_submodule(site.name)
    if site.append:
        numbers = (str(n) for n in itertools.count(len(module._modules)))  # as nn.Sequential.append counts
        module.add_module(next(name for name in numbers if name not in module._modules), layer)
        return
    new = nn.Sequential(layer, module) if site.kind == "before_gap" else layer
    new.training = module.training
    for name in site.aliases:
        model.set_submodule(name, new, strict=True)


def _replacement(site: Site, rule: Rule, layer: nn.Module) -> Replacement:
    before = 0 if site.kind == "before_gap" else count_parameters(site.module)
    return Replacement(
        name=site.name,
        kind=site.kind,
        layer=rule.replace,
        input_shape=site.input_shape,
        output_shape=site.output_shape,
        parameters_before=before,
        parameters_after=count_parameters(layer),
    )
