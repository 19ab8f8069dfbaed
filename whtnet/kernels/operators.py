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
from whtnet.kernels.dispatch import is_direct
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
    return torch.ops.whtnet.fwht2d(x, *_in_kernel_dtype(x, threshold, weight), *options)


def bwht1d(
    x: Tensor, threshold: Tensor, weight: Tensor | None, out_channels: int, stride: int, options: Options
) -> Tensor:
    """:func:`whtnet.functional.bwht1d` by the fast backend of the input's device."""
    return torch.ops.whtnet.bwht1d(x, *_in_kernel_dtype(x, threshold, weight), out_channels, stride, *options)


def _in_kernel_dtype(x: Tensor, *parameters: Tensor | None) -> list[Tensor | None]:
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    return [None if parameter is None else parameter.to(dtype) for parameter in parameters]


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
def _fwht2d_shape(x: Tensor, threshold: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
    return empty_like_input(x)


@torch.library.register_fake("whtnet::bwht1d")
def _bwht1d_shape(
    x: Tensor, threshold: Tensor, weight: Tensor | None, out_channels: int, stride: int, *options: Any
) -> Tensor:
    return empty_pixels(x, out_channels, stride)


@torch.library.register_fake("whtnet::fwht2d_backward")
@torch.library.register_fake("whtnet::bwht1d_backward")
def _gradient_shapes(
    grad: Tensor, input_gradient: bool, x: Tensor, threshold: Tensor, weight: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    gv = threshold.new_empty(0) if weight is None else torch.empty_like(weight)
    return empty_gradient(x, input_gradient), torch.empty_like(threshold), gv


# -- autograd ---------------------------------------------------------------------------------------------------------


class _LayerFunction(torch.autograd.Function):
    # Of both operators. The subclasses name the implementation that is called directly (the CPU's), the operator of the
    # gradient and the reference; all take the options as one argument.
    kernel: ClassVar[Callable[..., Tensor]]
    kernel_gradient: ClassVar[Callable[..., tuple[Tensor, Tensor, Tensor]]]
    operator_gradient: ClassVar[Callable[..., tuple[Tensor, Tensor, Tensor]]]
    reference: ClassVar[Callable[..., Tensor]]

    @staticmethod
    def forward(ctx: Any, layer: Any, x: Tensor, threshold: Tensor, weight: Tensor | None, *others: Any) -> Tensor:
        ctx.save_for_backward(x, threshold, weight)
        ctx.others, ctx.layer = others, layer
        return layer(x, threshold, weight, *others)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple:
        inputs = x, threshold, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1]
        if torch.is_grad_enabled():  # create_graph=True: the reference is differentiable any number of times
            gx, gt, gv = _reference_gradient(lambda *inputs: cls.reference(*inputs, *ctx.others), inputs, grad)
        else:
            direct = ctx.layer is cls.kernel and is_direct(x, threshold, weight, grad)
            gradient = cls.kernel_gradient if direct else cls.operator_gradient
            gx, gt, gv = gradient(grad, wanted, *inputs, *ctx.others)
        return None, gx if wanted else None, gt, None if weight is None else gv, *(None,) * len(ctx.others)


def _reference_gradient(function: Any, inputs: tuple, grad: Tensor) -> list[Tensor | None]:
    wanted = [i for i, value in enumerate(inputs) if value is not None and value.requires_grad]
    gradients = torch.autograd.grad(function(*inputs), [inputs[i] for i in wanted], grad, create_graph=True)
    results: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, gradients, strict=True):
        results[i] = gradient
    return results


def _unpacked(operator: Callable[..., Any]) -> Callable[..., Any]:
    return staticmethod(lambda *arguments: operator(*arguments[:-1], *arguments[-1]))


class _FWHT2dFunction(_LayerFunction):
    kernel = staticmethod(cpu.fwht2d)
    kernel_gradient = staticmethod(cpu.fwht2d_backward)
    operator_gradient = _unpacked(torch.ops.whtnet.fwht2d_backward)
    reference = staticmethod(reference.fwht2d)


class _BWHT1dFunction(_LayerFunction):
    kernel = staticmethod(cpu.bwht1d)
    kernel_gradient = staticmethod(cpu.bwht1d_backward)
    operator_gradient = _unpacked(torch.ops.whtnet.bwht1d_backward)
    reference = staticmethod(reference.bwht1d)


FUNCTIONS: dict[str, type[_LayerFunction]] = {"fwht2d": _FWHT2dFunction, "bwht1d": _BWHT1dFunction}

# As torch.library.register_autograd, at half the cost of a small layer's pass and back.
_autograd = torch.library.Library("whtnet", "FRAGMENT")


def _register_autograd(name: str, function: type[_LayerFunction]) -> None:
    operator = getattr(torch.ops.whtnet, name).default

    def below_autograd(*arguments: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments[:-1], *arguments[-1])

    def differentiable(*arguments: Any) -> Tensor:
        if torch.is_grad_enabled():
            return function.apply(below_autograd, *arguments)
        return below_autograd(*arguments)

    _autograd.impl(name, _packed(differentiable), "Autograd")


for _name, _function in FUNCTIONS.items():
    _register_autograd(_name, _function)
