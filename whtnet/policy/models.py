"""What may be done to a model: whether it can be changed, whether a site is what it seems, and taking changes back."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from whtnet.policy.rules import PolicyError
from whtnet.policy.sites import Site
from whtnet.seeding import random_states

# Wrappers by class name, in any of which a layer put in would not be seen; and what to do instead.
_WRAPPERS = {
    "DataParallel": "apply the policy to its .module, before it is wrapped",
    "DistributedDataParallel": "apply the policy to its .module, before it is wrapped",
    "FullyShardedDataParallel": "apply the policy to its .module, before it is wrapped",
    "FSDPModule": "apply the policy before fully_shard",
    "OptimizedModule": "apply the policy to its ._orig_mod, before torch.compile",
    "ScriptModule": "apply the policy to the Python module, before it is scripted or traced",
}


def check_model(model: nn.Module) -> None:
    """See whether layers can be put into ``model``.

    Raises:
        PolicyError: for a wrapped, compiled, scripted or quantized model, and for one whose lazy layers have no
            parameters yet; names the module and the remedy.
    """
    for name, module in model.named_modules():
        where = f"{name} ({type(module).__name__})" if name else type(module).__name__
        for base in type(module).__mro__:
            if base.__name__ in _WRAPPERS:
                raise PolicyError(f"{where} can't be changed from inside: {_WRAPPERS[base.__name__]}")
        if ".quantized." in type(module).__module__ or ".qat." in type(module).__module__:
            raise PolicyError(f"{where} is quantized: apply the policy before the model is prepared or converted")
        if any(is_lazy(p) for p in module._parameters.values()):
            raise PolicyError(f"{where} has no parameters yet: run the model once on an image, then apply the policy")


def check_sites(model: nn.Module, sites: Sequence[Site]) -> None:
    """See whether the modules at ``sites`` do what their kind does, and nothing else.

    Raises:
        PolicyError: naming the site, where replacing it would lose or change more than a convolution.
    """
    owners = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            owners[id(parameter)].append((name, module))
    for site in sites:
        if not site.name:
            raise PolicyError(f"the model is nothing but a {site.kind}: put it into torch.nn.Sequential")
        if isinstance(site.module, nn.Conv2d | nn.Linear):
            _check_site(site, owners)


def _check_site(site: Site, owners: Mapping[int, list[tuple[str, nn.Module]]]) -> None:
    inside = [name for name, _ in site.module.named_children() if name != "parametrizations"]
    if inside:
        raise PolicyError(
            f"{site.name} is a {type(site.module).__name__}, a convolution with {', '.join(inside)} of its own, which "
            "would go with it; put a rule with `replace: keep` before, or call them outside of it"
        )
    own = set(site.module.modules())
    for parameter in site.module.parameters():
        for name, module in owners[id(parameter)]:
            if module not in own:
                raise PolicyError(
                    f"{site.name} shares a parameter with {name}, which a layer in its place would not; put a rule "
                    "with `replace: keep` before, or give each a parameter of its own"
                )


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Put the modules of ``model`` and the random states back if what is inside does not end well."""
    children = [(module, dict(module._modules)) for module in model.modules()]
    restore = random_states()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    except BaseException:
        for module, before in children:
            module._modules.clear()
            module._modules.update(before)
        restore()
        if devices:
            torch.cuda.set_rng_state_all(devices)
        raise
