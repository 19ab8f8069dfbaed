"""The layers as PyTorch operators: schema, shapes, autograd. Implementations are registered per device.

``whtnet::fwht2d`` and ``whtnet::bwht1d`` and a gradient operator of each, which recomputes what it needs from the
input: nothing but the input and the parameters is kept for the backward pass.
"""

import os
from typing import Any

import torch
from torch import Tensor

from whtnet.kernels import cpu, gpu, reference
from whtnet.kernels.shapes import empty_gradient, empty_like_input, empty_pixels

_OPTIONS = "str kind, bool clamp, bool keep_dc, str norm"
_OPTION_NAMES = ("kind", "clamp", "keep_dc", "norm")
torch.library.define("whtnet::fwht2d", f"(Tensor x, Tensor threshold, Tensor? weight, {_OPTIONS}) -> Tensor")
torch.library.define(
    "whtnet::fwht2d_backward",
    f"(Tensor grad, Tensor x, Tensor threshold, Tensor? weight, {_OPTIONS}, bool input_gradient) "
    "-> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "whtnet::bwht1d",
    f"(Tensor x, Tensor threshold, Tensor? weight, SymInt out_channels, {_OPTIONS}, SymInt stride) -> Tensor",
)
torch.library.define(
    "whtnet::bwht1d_backward",
    f"(Tensor grad, Tensor x, Tensor threshold, Tensor? weight, SymInt out_channels, {_OPTIONS}, SymInt stride, "
    "bool input_gradient) -> (Tensor, Tensor, Tensor)",
)


def fwht2d(
    x: Tensor, threshold: Tensor, weight: Tensor | None, *, kind: str, clamp: bool, keep_dc: bool, norm: str
) -> Tensor:
    """:func:`whtnet.functional.fwht2d` by the fast backend of the input's device."""
    dtype = _parameter_dtype(x)
    weight = None if weight is None else weight.to(dtype)
    return torch.ops.whtnet.fwht2d(x, threshold.to(dtype), weight, kind, clamp, keep_dc, norm)


def bwht1d(
    x: Tensor,
    threshold: Tensor,
    out_channels: int,
    weight: Tensor | None,
    *,
    kind: str,
    clamp: bool,
    keep_dc: bool,
    norm: str,
    stride: int,
) -> Tensor:
    """:func:`whtnet.functional.bwht1d` by the fast backend of the input's device."""
    if stride != 1 and x.dim() > 4:  # the kernels subsample maps; other grids of pixels are subsampled here
        x, stride = x[(..., *(slice(None, None, stride),) * (x.dim() - 2))], 1
    dtype = _parameter_dtype(x)
    weight = None if weight is None else weight.to(dtype)
    return torch.ops.whtnet.bwht1d(x, threshold.to(dtype), weight, out_channels, kind, clamp, keep_dc, norm, stride)


def _parameter_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# -- implementations --------------------------------------------------------------------------------------------------

# device type: its fast backend and the module that implements it
DEVICE_BACKENDS = {"cpu": ("cpu", cpu), "cuda": ("gpu", gpu)}
if os.environ.get("TRITON_INTERPRET") == "1":  # Triton runs on the CPU then
    DEVICE_BACKENDS = {"cpu": ("gpu", gpu)}

for _device, (_, _module) in DEVICE_BACKENDS.items():
    for _name in ("fwht2d", "fwht2d_backward", "bwht1d", "bwht1d_backward"):
        torch.library.impl(f"whtnet::{_name}", _device, getattr(_module, _name))


# -- shapes -----------------------------------------------------------------------------------------------------------


@torch.library.register_fake("whtnet::fwht2d")
def _(x: Tensor, threshold: Tensor, weight: Tensor | None, kind: str, clamp: bool, keep_dc: bool, norm: str) -> Tensor:
    return empty_like_input(x)


@torch.library.register_fake("whtnet::fwht2d_backward")
def _(
    grad: Tensor,
    x: Tensor,
    threshold: Tensor,
    weight: Tensor | None,
    kind: str,
    clamp: bool,
    keep_dc: bool,
    norm: str,
    input_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_gradients(x, threshold, weight, input_gradient)


@torch.library.register_fake("whtnet::bwht1d")
def _(
    x: Tensor,
    threshold: Tensor,
    weight: Tensor | None,
    out_channels: int,
    kind: str,
    clamp: bool,
    keep_dc: bool,
    norm: str,
    stride: int,
) -> Tensor:
    return empty_pixels(x, out_channels, stride)


@torch.library.register_fake("whtnet::bwht1d_backward")
def _(
    grad: Tensor,
    x: Tensor,
    threshold: Tensor,
    weight: Tensor | None,
    out_channels: int,
    kind: str,
    clamp: bool,
    keep_dc: bool,
    norm: str,
    stride: int,
    input_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_gradients(x, threshold, weight, input_gradient)


def _fake_gradients(
    x: Tensor, threshold: Tensor, weight: Tensor | None, input_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    gv = threshold.new_empty(0) if weight is None else torch.empty_like(weight)
    return empty_gradient(x, input_gradient), torch.empty_like(threshold), gv


# -- autograd ---------------------------------------------------------------------------------------------------------

# As torch.library.register_autograd, at half the cost of a small layer's pass and back.
_autograd = torch.library.Library("whtnet", "FRAGMENT")


def _register_autograd(name: str, function: type[torch.autograd.Function]) -> None:
    operator = getattr(torch.ops.whtnet, name).default

    def below_autograd(*arguments: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    def differentiable(*arguments: Any) -> Tensor:
        if torch.is_grad_enabled():
            return function.apply(below_autograd, *arguments)
        return below_autograd(*arguments)

    _autograd.impl(name, differentiable, "Autograd")


class _Layer(torch.autograd.Function):
    # Of both operators: the subclasses say how the gradient is computed.
    @staticmethod
    def forward(ctx: Any, operator: Any, x: Tensor, threshold: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
        ctx.save_for_backward(x, threshold, weight)
        ctx.options = options
        return operator(x, threshold, weight, *options)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple:
        inputs, wanted = ctx.saved_tensors, ctx.needs_input_grad[1]
        if torch.is_grad_enabled():  # create_graph=True: the reference is differentiable any number of times
            gx, gt, gv = _reference_gradient(lambda x, t, v: cls.reference(x, t, v, *ctx.options), inputs, grad)
        else:
            gx, gt, gv = cls.gradient(grad, *inputs, *ctx.options, wanted)
        return None, gx if wanted else None, gt, None if inputs[2] is None else gv, *(None,) * len(ctx.options)

    @staticmethod
    def reference(x: Tensor, threshold: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def gradient(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError


class _FWHT2d(_Layer):
    @staticmethod
    def reference(x: Tensor, threshold: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
        return reference.fwht2d(x, threshold, weight, **dict(zip(_OPTION_NAMES, options, strict=True)))

    @staticmethod
    def gradient(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.whtnet.fwht2d_backward(*arguments)


class _BWHT1d(_Layer):
    @staticmethod
    def reference(x: Tensor, threshold: Tensor, weight: Tensor | None, out_channels: int, *options: Any) -> Tensor:
        named = dict(zip((*_OPTION_NAMES, "stride"), options, strict=True))
        return reference.bwht1d(x, threshold, out_channels, weight, **named)

    @staticmethod
    def gradient(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.whtnet.bwht1d_backward(*arguments)


def _reference_gradient(function: Any, inputs: tuple, grad: Tensor) -> list[Tensor | None]:
    wanted = [i for i, value in enumerate(inputs) if value is not None and value.requires_grad]
    gradients = torch.autograd.grad(function(*inputs), [inputs[i] for i in wanted], grad, create_graph=True)
    results: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, gradients, strict=True):
        results[i] = gradient
    return results


_register_autograd("fwht2d", _FWHT2d)
_register_autograd("bwht1d", _BWHT1d)
