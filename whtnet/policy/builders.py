"""Build the layer that a rule puts at a site, after checking that it can stand there."""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whtnet.controls import CropOrTile
from whtnet.errors import did_you_mean
from whtnet.extensions import call_extension, is_extension
from whtnet.layers import (
    BWHT1d,
    FWHT2d,
    HTPerceptron2d,
    NormedFWHT2d,
    PreGAPFWHT2d,
    PreNormFWHT2d,
    SeparableFWHT2d,
)
from whtnet.policy.rules import KEEP, Policy, PolicyError, Rule
from whtnet.policy.sites import Site
from whtnet.settings import check_arguments

# Block sizes that depend on the site, by the word for them in a policy.
BLOCK_SIZES: dict[Any, Callable[[int, int], int]] = {
    "in_channels": lambda c_in, c_out: c_in,
    "common": lambda c_in, c_out: math.gcd(c_in, c_out) & -math.gcd(c_in, c_out),  # largest power of two in both
}


def _sized_block(site: Site, options: dict[str, Any]) -> dict[str, Any]:
    """The options with the block size of the site in the place of its word."""
    word = options.get("block_size")
    sized = BLOCK_SIZES[word](site.input_shape[0], site.output_shape[0]) if word in BLOCK_SIZES else word
    return options | {"block_size": sized}


def _conv(site: Site) -> nn.Conv2d:
    if not isinstance(site.module, nn.Conv2d):
        raise TypeError(f"{type(site.module).__name__} is no torch.nn.Conv2d")
    return site.module


def _map_size(site: Site) -> tuple[int, int]:
    height, width = site.input_shape[1:]
    return height, width


def _check_pointwise(site: Site) -> dict[str, Any]:
    """The keywords that a layer over channels takes from its site."""
    if isinstance(site.module, nn.Linear):
        return {"channel_dim": -1}
    conv = _conv(site)
    _require(conv.groups == 1, site, f"groups={conv.groups}; only a dense 1×1 convolution qualifies")
    _require(
        conv.padding in ((0, 0), "valid", "same", 0), site, f"padding={conv.padding}; a 1×1 convolution needs none"
    )
    return {"stride": _square_stride(site)}


def _square_stride(site: Site) -> int:
    stride = _conv(site).stride
    _require(stride[0] == stride[1], site, f"stride={stride}; it must be the same in both dimensions")
    return stride[0]


def _build_bwht1d(site: Site, options: dict[str, Any]) -> nn.Module:
    from_site = _check_pointwise(site)
    return BWHT1d(site.input_shape[0], site.output_shape[0], **from_site, **_sized_block(site, options))


def _check_one_size(site: Site) -> None:
    sizes = ", ".join("×".join(map(str, into[-2:])) for into, _ in sorted(site.maps))
    _require(len(site.maps) == 1, site, f"a map whose size varies ({sizes}); a 2-D layer is bound to one")


def _check_groups(site: Site) -> None:
    conv = _conv(site)
    _require(conv.groups in (1, conv.in_channels), site, f"groups={conv.groups}; only dense or depthwise ones qualify")


def _check_spatial(site: Site) -> None:
    _check_one_size(site)
    if isinstance(site.module, nn.Conv2d):
        stride = site.module.stride
        _require(
            stride == (1, 1),
            site,
            f"stride={stride}; only stride 1 qualifies, add where: {{stride: 1}}, or take SeparableFWHT2d",
        )
        _check_groups(site)
    same_map = site.input_shape[1:] == site.output_shape[1:]
    _require(
        same_map, site, f"maps of {site.input_shape[1:]} in and {site.output_shape[1:]} out; they must be the same"
    )


def _check_strided(site: Site) -> int:
    """The stride of a convolution that makes a map as a layer of the same stride does."""
    stride = _square_stride(site)
    _check_groups(site)
    for into, out in sorted(site.maps):
        expected = tuple(-(-side // stride) for side in into[1:])
        _require(
            out[1:] == expected, site, f"maps of {into[1:]} in and {out[1:]} out; with stride {stride}, {expected} fits"
        )
    return stride


def _check_channels(site: Site) -> None:
    c_in, c_out = site.input_shape[0], site.output_shape[0]
    _require(c_in == c_out, site, f"{c_in} channels in and {c_out} out; the layer keeps the number of channels")


def _build_fwht2d(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_spatial(site)
    _check_channels(site)
    return FWHT2d(_map_size(site), **options)


def _build_separable(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_one_size(site)
    stride = _check_strided(site)
    sized = _sized_block(site, options)
    return SeparableFWHT2d(site.input_shape[0], site.output_shape[0], _map_size(site), stride=stride, **sized)


def _build_pre_norm(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_spatial(site)
    _check_channels(site)
    return PreNormFWHT2d(site.input_shape[0], _map_size(site), **options)


def _build_ht_perceptron(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_spatial(site)
    conv = _conv(site)
    _require(conv.groups == 1, site, f"groups={conv.groups}; only a dense convolution qualifies")
    return HTPerceptron2d(conv.in_channels, conv.out_channels, _map_size(site), **options)


def _build_identity(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_spatial(site)
    _check_channels(site)
    return nn.Identity()


def _build_crop_or_tile(site: Site, options: dict[str, Any]) -> nn.Module:
    block_size = _sized_block(site, options)["block_size"]  # it has no parameters, so no device and dtype
    channels = functools.partial(CropOrTile, site.input_shape[0], site.output_shape[0], block_size=block_size)
    if site.kind == "conv1x1":
        return channels(**_check_pointwise(site))
    stride = _check_strided(site)
    return channels() if stride == 1 else nn.Sequential(channels(), nn.AvgPool2d(stride, ceil_mode=True))


def _build_depthwise(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_spatial(site)
    _check_channels(site)
    channels, bias = site.input_shape[0], site.module.bias is not None
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias, **options)


def _build_pre_gap(site: Site, options: dict[str, Any]) -> nn.Module:
    _check_spatial(site)
    return PreGAPFWHT2d(site.input_shape[0], _map_size(site), **options)


@dataclass(frozen=True)
class _Builder:
    kinds: tuple[str, ...]
    build: Callable[[Site, dict[str, Any]], nn.Module]
    classes: tuple[type[nn.Module], ...] = ()  # whose options it has: of a name in two, the first's

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """With their defaults."""
        # Keyword-only arguments are a layer's options; what comes from the site is positional or excluded here.
        parameters = (p for cls in reversed(self.classes) for p in inspect.signature(cls).parameters.values())
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        return {name: options[name] for name in options if name not in ("stride", "channel_dim", "device", "dtype")}

    def check(self, options: Mapping[str, Any], origin: str) -> None:
        """Compare options with the annotations of the layer."""
        size = options.get("block_size")
        if isinstance(size, str):
            if size not in BLOCK_SIZES:
                raise PolicyError(f"{origin}: no block_size {size!r}; {did_you_mean(size, BLOCK_SIZES)}")
            options = {name: value for name, value in options.items() if name != "block_size"}
        for cls in self.classes:
            check_arguments(cls.__init__, options, f"{origin}: options", PolicyError)


BUILDERS = {
    "BWHT1d": _Builder(("conv1x1",), _build_bwht1d, (BWHT1d,)),
    "FWHT2d": _Builder(("conv3x3", "depthwise3x3", "squeeze_excite"), _build_fwht2d, (FWHT2d,)),
    "SeparableFWHT2d": _Builder(("conv3x3", "depthwise3x3"), _build_separable, (SeparableFWHT2d, FWHT2d)),
    "HTPerceptron2d": _Builder(("conv3x3",), _build_ht_perceptron, (HTPerceptron2d,)),
    # The controls: what would happen without the layer?
    "Identity": _Builder(("conv3x3", "depthwise3x3", "squeeze_excite"), _build_identity),
    "DepthwiseConv2d": _Builder(("conv3x3",), _build_depthwise),
    "CropOrTile": _Builder(("conv1x1", "conv3x3"), _build_crop_or_tile, (CropOrTile,)),
    "PreGAPFWHT2d": _Builder(("before_gap",), _build_pre_gap, (NormedFWHT2d, FWHT2d)),
    "PreNormFWHT2d": _Builder(("conv3x3", "depthwise3x3"), _build_pre_norm, (NormedFWHT2d, FWHT2d)),
}


def check_options(policy: Policy) -> None:
    """Look up the layers of a policy's rules and their options.

    Raises:
        PolicyError: naming the rule whose layer can't stand there, lacks an option or can't have its value.
    """
    known: set[str] = set()
    for i, rule in enumerate(policy.rules, 1):
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
        builder.check(options_of(rule, policy), origin)
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


def build_layer(model: nn.Module, site: Site, rule: Rule, policy: Policy) -> nn.Module:
    """What ``rule`` of ``policy`` puts at ``site`` of ``model``, in the dtype and on the device of what is there.

    Raises:
        PolicyError: naming the site, if the layer can't stand there.
    """
    parameters = itertools.chain(site.module.parameters(), model.parameters())
    like = next(parameters, torch.empty(0))  # of a model without parameters: the default device and dtype
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
