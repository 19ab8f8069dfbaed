"""Put Walsh-Hadamard layers into a model as a policy says, all or nothing, and report what was done."""

import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whtnet.cost import count_parameters, measure_cost
from whtnet.extensions import call_extension, is_extension
from whtnet.layers import BWHT1d, FWHT2d, HTPerceptron2d, NormedFWHT2d, PreGAPFWHT2d, PreNormFWHT2d
from whtnet.policy.report import Replacement, Report
from whtnet.policy.rules import KEEP, Policy, PolicyError, Rule, load_policy, select_blocks
from whtnet.policy.sites import Site, SiteMap, find_sites


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
    rules = policy.rules
    check_options(policy, rules)
    found = find_sites(model, input_size)
    before = measure_cost(model, input_size)
    if not 0 <= share <= 1:
        raise PolicyError(f"share must be in [0, 1], got {share}")
    chosen = _choose(found, policy, rules, type(model).__name__)
    chosen = chosen[len(chosen) - math.ceil(len(chosen) * share) :]
    layers = [_build(model, site, rule, policy) for site, rule in chosen]
    replacements = []
    for (site, rule), layer in zip(chosen, layers, strict=True):
        replacements.append(_put(model, site, rule, layer))
    after = measure_cost(model, input_size) if chosen else before
    return Report(policy.name, type(model).__name__, tuple(input_size), tuple(replacements), before, after)


# --- Choosing sites ---


def _choose(found: SiteMap, policy: Policy, rules: tuple[Rule, ...], architecture: str) -> list[tuple[Site, Rule]]:
    taken: dict[str, Rule] = {}
    chosen = []
    for i, rule in enumerate(rules, 1):
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
    if same_kind:
        shape = f"; it has {found.blocks} blocks in {found.stages} stages" if found.blocks else "; it has no blocks"
        return f"none of its {len(same_kind)} {rule.match} sites satisfies the conditions ({_names(same_kind)}){shape}"
    kinds = Counter(site.kind for site in found.sites)
    return "it has " + (", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "no sites at all")


def _names(sites: list[Site]) -> str:
    names = [site.name for site in sites]
    return ", ".join(names[:6]) + (f", … {len(names) - 6} more" if len(names) > 6 else "")


# --- Building layers ---

# Block sizes that depend on the site, by the word for them in a policy.
BLOCK_SIZES: dict[Any, Callable[[int, int], int]] = {
    "in_channels": lambda c_in, c_out: c_in,
    "common": lambda c_in, c_out: math.gcd(c_in, c_out) & -math.gcd(c_in, c_out),  # largest power of two in both
}


def _build_bwht1d(site: Site, options: dict[str, Any]) -> nn.Module:
    conv = site.module
    c_in, c_out = site.input_shape[0], site.output_shape[0]
    if (word := options.get("block_size")) in BLOCK_SIZES:
        options = options | {"block_size": BLOCK_SIZES[word](c_in, c_out)}
    if isinstance(conv, nn.Linear):
        return BWHT1d(c_in, c_out, channel_dim=-1, **options)
    _require(conv.groups == 1, site, f"groups={conv.groups}; only a dense 1×1 convolution qualifies")
    _require(conv.stride[0] == conv.stride[1], site, f"stride={conv.stride}; it must be the same in both dimensions")
    _require(
        conv.padding in ((0, 0), "valid", "same", 0), site, f"padding={conv.padding}; a 1×1 convolution needs none"
    )
    return BWHT1d(c_in, c_out, stride=conv.stride[0], **options)


def _check_spatial(site: Site) -> None:
    if len(site.maps) > 1:
        sizes = ", ".join("×".join(map(str, into[-2:])) for into, _ in sorted(site.maps))
        _require(False, site, f"a map whose size varies ({sizes}); a 2-D layer is bound to one")
    if isinstance(site.module, nn.Conv2d):
        conv = site.module
        _require(
            conv.stride == (1, 1), site, f"stride={conv.stride}; only stride 1 qualifies, add where: {{stride: 1}}"
        )
        _require(
            conv.groups in (1, conv.in_channels), site, f"groups={conv.groups}; only dense or depthwise ones qualify"
        )
    same_map = site.input_shape[1:] == site.output_shape[1:]
    _require(
        same_map, site, f"maps of {site.input_shape[1:]} in and {site.output_shape[1:]} out; they must be the same"
    )


def _check_channels(site: Site) -> None:
    c_in, c_out = site.input_shape[0], site.output_shape[0]
    _require(c_in == c_out, site, f"{c_in} channels in and {c_out} out; the layer keeps the number of channels")


def _build_fwht2d(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_spatial(site)
    _check_channels(site)
    return FWHT2d(site.input_shape[1:], **options)


def _build_pre_norm(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_spatial(site)
    _check_channels(site)
    return PreNormFWHT2d(site.input_shape[0], site.input_shape[1:], **options)


def _build_ht_perceptron(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_spatial(site)
    conv = site.module
    _require(conv.groups == 1, site, f"groups={conv.groups}; only a dense convolution qualifies")
    return HTPerceptron2d(conv.in_channels, conv.out_channels, site.input_shape[1:], **options)


def _build_identity(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_spatial(site)
    _check_channels(site)
    return nn.Identity()


def _build_depthwise(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_spatial(site)
    _check_channels(site)
    channels, bias = site.input_shape[0], site.module.bias is not None
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias, **options)


def _build_pre_gap(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_spatial(site)
    return PreGAPFWHT2d(site.input_shape[0], site.input_shape[1:], **options)


@dataclass(frozen=True)
class _Builder:
    kinds: tuple[str, ...]
    build: Callable[[Site, dict[str, Any]], nn.Module]
    options: Mapping[str, Any]  # with their defaults


def _options_of(*classes: type[nn.Module]) -> dict[str, Any]:
    # Keyword-only arguments are a layer's options; what comes from the site is positional or excluded here.
    parameters = (p for cls in reversed(classes) for p in inspect.signature(cls).parameters.values())
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {name: options[name] for name in options if name not in ("stride", "channel_dim", "device", "dtype")}


BUILDERS = {
    "BWHT1d": _Builder(("conv1x1",), _build_bwht1d, _options_of(BWHT1d)),
    "FWHT2d": _Builder(("conv3x3", "depthwise3x3", "squeeze_excite"), _build_fwht2d, _options_of(FWHT2d)),
    "HTPerceptron2d": _Builder(("conv3x3",), _build_ht_perceptron, _options_of(HTPerceptron2d)),
    # The controls: what would happen without the layer?
    "Identity": _Builder(("conv3x3", "depthwise3x3", "squeeze_excite"), _build_identity, {}),
    "DepthwiseConv2d": _Builder(("conv3x3",), _build_depthwise, {}),
    "PreGAPFWHT2d": _Builder(("before_gap",), _build_pre_gap, _options_of(NormedFWHT2d, FWHT2d)),
    "PreNormFWHT2d": _Builder(("conv3x3", "depthwise3x3"), _build_pre_norm, _options_of(NormedFWHT2d, FWHT2d)),
}


def check_options(policy: Policy, rules: tuple[Rule, ...]) -> None:
    """Look up the layers of ``rules`` and their options.

    Raises:
        PolicyError: naming the rule whose layer can't stand there or lacks an option.
    """
    known: set[str] = set()
    for i, rule in enumerate(rules, 1):
        origin = f"policy {policy.name!r}, rule {i} ({rule})"
        if rule.replace == KEEP:
            continue
        if is_extension(rule.replace):  # its options are known to its code alone, which may not be trusted
            continue
        builder = BUILDERS.get(rule.replace)
        if builder is None or rule.match not in builder.kinds:
            suitable = [name for name, b in BUILDERS.items() if rule.match in b.kinds]
            raise PolicyError(
                f"{origin}: {rule.match} can be replaced by {', '.join([*suitable, KEEP])}, or my_package:Layer"
            )
        for option in rule.options:
            if option not in builder.options:
                raise PolicyError(
                    f"{origin}: {rule.replace} has no option {option!r}; it has {', '.join(sorted(builder.options))}"
                )
        known |= set(builder.options)
    for option in policy.options if known else ():
        if option not in known:
            raise PolicyError(
                f"policy {policy.name!r}: none of its layers has an option {option!r}; "
                f"they have {', '.join(sorted(known))}"
            )


def options_of(rule: Rule, policy: Policy) -> dict[str, Any]:
    """The keywords that a rule gives its layer: the policy's, as far as the layer has them, and its own."""
    known = default_options(rule)
    shared = {**rule.shared, **policy.options}
    return {**{name: value for name, value in shared.items() if name in known}, **rule.options}


def default_options(rule: Rule) -> dict[str, Any]:
    """The keywords of a rule's layer with their defaults; none are known of a layer of one's own."""
    return {} if rule.replace == KEEP or is_extension(rule.replace) else dict(BUILDERS[rule.replace].options)


def _build(model: nn.Module, site: Site, rule: Rule, policy: Policy) -> nn.Module:
    like = next(site.module.parameters(), None)
    like = next(model.parameters()) if like is None else like
    options = options_of(rule, policy)
    try:
        if is_extension(rule.replace):
            return _build_extension(site, rule.replace, options, like).train(site.module.training)
        layer = BUILDERS[rule.replace].build(site, {**options, "device": like.device, "dtype": like.dtype})
    except (TypeError, ValueError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"{site.name} ({rule}): {error}") from error
    return layer.train(site.module.training)


def _build_extension(site: Site, name: str, options: dict[str, Any], like: Tensor) -> nn.Module:
    _require(len(site.maps) == 1, site, "a map whose size varies; a layer of one's own is made for one")
    _require(not isinstance(site.module, nn.Linear), site, "its channels last; a layer of one's own has them first")
    output_shape = site.input_shape if site.kind == "before_gap" else site.output_shape
    layer = call_extension(name, site.input_shape, output_shape, **options)
    if not isinstance(layer, nn.Module):
        raise PolicyError(f"{name} must be a torch.nn.Module, not {type(layer).__name__}")
    layer.to(like.device, like.dtype)
    image = torch.zeros(1, *site.input_shape, device=like.device, dtype=like.dtype)
    try:
        with torch.no_grad():
            found = tuple(layer.eval()(image).shape[1:])
    except RuntimeError as error:
        raise PolicyError(f"{site.name}: {name} fails on an input of {site.input_shape}: {error}") from error
    if found != tuple(output_shape):
        raise PolicyError(f"{site.name}: {name} makes {found} of {site.input_shape}, but it must be {output_shape}")
    return layer


def _require(condition: bool, site: Site, problem: str) -> None:
    if not condition:
        raise PolicyError(
            f"{site.name} ({site.kind}) can't be replaced: it has {problem}; narrow the rule's where, "
            "or put a rule with `replace: keep` before it"
        )


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
