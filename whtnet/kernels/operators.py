"""The layers as PyTorch operators: schema, shapes, autograd. Implementations are registered per device.

``whtnet::fwht2d`` and ``whtnet::bwht1d`` and a gradient operator of each, which recomputes what it needs from the
input: nothing but the input and the parameters is kept for the backward pass.
"""

import os
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from whtnet.kernels import cpu, gpu, reference
from whtnet.kernels.options import SCHEMA, Options
from whtnet.kernels.shapes import empty_gradient, empty_like_input, empty_pixels

_ARGUMENTS = {
    "fwht2d": f"Tensor x, Tensor threshold, Tensor? weight, {SCHEMA}",
    "bwht1d": f"Tensor x, Tensor threshold, Tensor? weight, SymInt out_channels, SymInt stride, {SCHEMA}",
}
for _name, _arguments in _ARGUMENTS.items():
    torch.library.define(f"whtnet::{_name}", f"({_arguments}) -> Tensor")
    torch.library.define(
        f"whtnet::{_name}_backward", f"(Tensor grad, bool input_gradient, {_arguments}) -> (Tensor, Tensor, Tensor)"
    )


def fwht2d(x: Tensor, threshold: Tensor, weight: Tensor | None, options: Options) -> Tensor:
    """:func:`whtnet.functional.fwht2d` by the fast backend of the input's device."""
    dtype = _parameter_dtype(x)
    weight = None if weight is None else weight.to(dtype)
    return torch.ops.whtnet.fwht2d(x, threshold.to(dtype), weight, *options)


def bwht1d(
    x: Tensor, threshold: Tensor, weight: Tensor | None, out_channels: int, stride: int, options: Options
) -> Tensor:
    """:func:`whtnet.functional.bwht1d` by the fast backend of the input's device."""
    if stride != 1 and x.dim() > 4:  # the kernels subsample maps; other grids of pixels are subsampled here
        x, stride = x[(..., *(slice(None, None, stride),) * (x.dim() - 2))], 1
    dtype = _parameter_dtype(x)
    weight = None if weight is None else weight.to(dtype)
    return torch.ops.whtnet.bwht1d(x, threshold.to(dtype), weight, out_channels, stride, *options)


def _parameter_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# -- implementations --------------------------------------------------------------------------------------------------

# device type: its fast backend and the module that implements it
DEVICE_BACKENDS = {"cpu": ("cpu", cpu), "cuda": ("gpu", gpu)}
if os.environ.get("TRITON_INTERPRET") == "1":  # Triton runs on the CPU then
    DEVICE_BACKENDS = {"cpu": ("gpu", gpu)}


def _packed(function: Callable[..., Any]) -> Callable[..., Any]:
    # An operator's arguments end with the fields of Options.
    count = len(Options._fields)
    return lambda *arguments: function(*arguments[:-count], Options(*arguments[-count:]))


for _device, (_, _module) in DEVICE_BACKENDS.items():
    for _name in ("fwht2d", "fwht2d_backward", "bwht1d", "bwht1d_backward"):
        torch.library.impl(f"whtnet::{_name}", _device, _packed(getattr(_module, _name)))


# -- shapes -----------------------------------------------------------------------------------------------------------


@torch.library.register_fake("whtnet::fwht2d")
def _(x: Tensor, threshold: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
    return empty_like_input(x)


@torch.library.register_fake("whtnet::bwht1d")
def _(x: Tensor, threshold: Tensor, weight: Tensor | None, out_channels: int, stride: int, *options: Any) -> Tensor:
    return empty_pixels(x, out_channels, stride)


@torch.library.register_fake("whtnet::fwht2d_backward")
@torch.library.register_fake("whtnet::bwht1d_backward")
def _(
    grad: Tensor, input_gradient: bool, x: Tensor, threshold: Tensor, weight: Tensor | None, *others: Any
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
    # Of both operators: the subclasses name the operator of the gradient and the reference.
    gradient: ClassVar[Any]
    reference: ClassVar[Callable[..., Tensor]]

    @staticmethod
    def forward(ctx: Any, operator: Any, x: Tensor, threshold: Tensor, weight: Tensor | None, *others: Any) -> Tensor:
        ctx.save_for_backward(x, threshold, weight)
        ctx.others = others
        return operator(x, threshold, weight, *others)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple:
        inputs, wanted = ctx.saved_tensors, ctx.needs_input_grad[1]
        if torch.is_grad_enabled():  # create_graph=True: the reference is differentiable any number of times
            gx, gt, gv = _reference_gradient(lambda *inputs: cls.reference(*inputs, *ctx.others), inputs, grad)
        else:
            gx, gt, gv = cls.gradient(grad, wanted, *inputs, *ctx.others)
        return None, gx if wanted else None, gt, None if inputs[2] is None else gv, *(None,) * len(ctx.others)


class _FWHT2d(_Layer):
    gradient = torch.ops.whtnet.fwht2d_backward
    reference = staticmethod(_packed(reference.fwht2d))


class _BWHT1d(_Layer):
    gradient = torch.ops.whtnet.bwht1d_backward
    reference = staticmethod(_packed(reference.bwht1d))


def _reference_gradient(function: Any, inputs: tuple, grad: Tensor) -> list[Tensor | None]:
    wanted = [i for i, value in enumerate(inputs) if value is not None and value.requires_grad]
    gradients = torch.autograd.grad(function(*inputs), [inputs[i] for i in wanted], grad, create_graph=True)
    results: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, gradients, strict=True):
        results[i] = gradient
    return results


_register_autograd("fwht2d", _FWHT2d)
_register_autograd("bwht1d", _BWHT1d)
