"""Fast implementations of the layers behind :mod:`whtnet.functional`, and the choice among them.

==============  =====================================================================================================
backend         what it is
==============  =====================================================================================================
``reference``   plain PyTorch, on every device and for every dtype (:mod:`~whtnet.kernels.reference`)
``cpu``         one fused C++ kernel, compiled on first use by the system's compiler (:mod:`~whtnet.kernels.cpu`);
                float32, bfloat16 and float64
``gpu``         the same in Triton, compiled on first use (:mod:`~whtnet.kernels.gpu`); float32, bfloat16 and float16
==============  =====================================================================================================

``auto``, the default, takes the fastest that is there for an input. Choose another with :func:`set_backend` or the
environment variable ``WHTNET_BACKEND``. Operators are registered with ``torch.library``
(:mod:`~whtnet.kernels.operators`), an implementation per device; a new backend adds a line to ``DEVICE_BACKENDS``
there. With ``TRITON_INTERPRET=1`` in the environment the backend ``gpu`` serves the CPU, slowly: a way to test it
without a GPU.
"""

import os

import torch
from torch import Tensor

from whtnet.errors import UserError
from whtnet.kernels import cpu, operators, reference
from whtnet.kernels.dispatch import is_direct, records_graph
from whtnet.kernels.operators import DEVICE_BACKENDS
from whtnet.kernels.options import Epilogue, Options
from whtnet.kernels.reference import finish

__all__ = [
    "BACKENDS",
    "BackendError",
    "Epilogue",
    "Options",
    "backend_for",
    "bwht1d",
    "finish",
    "fwht2d",
    "get_backend",
    "set_backend",
]

BACKENDS = ("auto", "reference", "cpu", "gpu")

_choice = os.environ.get("WHTNET_BACKEND") or "auto"  # checked on first use, where commands show errors as one line


class BackendError(UserError, ValueError):
    """A backend that does not exist."""


def set_backend(name: str) -> None:
    """Choose the implementation of the layers, for the whole process.

    Args:
        name: ``"auto"``: the fastest that is there for an input; ``"reference"``: plain PyTorch; ``"cpu"`` or
            ``"gpu"``: as ``"auto"`` on that device, but an error where the kernel cannot be had, and the reference on
            other devices.

    Raises:
        BackendError: for another name.
    """
    global _choice
    _check(name)
    _choice = name


def get_backend() -> str:
    """The choice made by :func:`set_backend` or ``WHTNET_BACKEND``.

    Raises:
        BackendError: if the environment names a backend that does not exist.
    """
    _check(_choice)
    return _choice


def _check(name: str) -> None:
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)} (WHTNET_BACKEND)")


def backend_for(x: Tensor, *parameters: Tensor | None, points: int | None = None) -> str:
    """Which backend computes a layer for the input ``x`` with ``parameters`` (thresholds, weights).

    The first call may compile the kernel. The reference serves whatever a fast backend does not: other devices and
    dtypes, ``torch.export``, tracing, ``torch.func`` transforms, forward-mode differentiation, tensor subclasses.

    Args:
        x: the input.
        parameters: of the layer.
        points: of one transform; all that the thresholds have if None.

    Returns:
        ``"reference"`` or the name of a fast backend.
    """
    if points is None:
        points = next((p.numel() for p in parameters if p is not None), 1)
    choice = get_backend()
    if choice == "reference" or x.device.type not in DEVICE_BACKENDS or not _is_plain(x):
        return "reference"
    name, module = DEVICE_BACKENDS[x.device.type]
    if choice not in ("auto", name) or not module.supports(x, parameters, points):
        return "reference"
    return name if choice == name or module.available() else "reference"


def _is_plain(x: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
        and not torch.jit.is_tracing()
    )


def fwht2d(
    x: Tensor, threshold: Tensor, weight: Tensor | None, options: Options, epilogue: Epilogue | None = None
) -> Tensor:
    """:func:`whtnet.functional.fwht2d` by the backend for these tensors, and what follows it, at once if it can be."""
    points = threshold.numel()
    if _is_direct(x, threshold, weight, points, epilogue):
        if records_graph(x, threshold, weight):
            return operators.FWHT2dFunction.apply(cpu.fwht2d, x, threshold, weight, options)
        return cpu.fwht2d(x, threshold, weight, options, epilogue)
    if epilogue is not None:
        return finish(fwht2d(x, threshold, weight, options), epilogue)
    if backend_for(x, threshold, weight, points=points) == "reference":
        return reference.fwht2d(x, threshold, weight, options)
    return operators.fwht2d(x, threshold, weight, options)


def bwht1d(
    x: Tensor,
    threshold: Tensor,
    weight: Tensor | None,
    out_channels: int,
    stride: int,
    options: Options,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """:func:`whtnet.functional.bwht1d` by the backend for these tensors, and what follows it, at once if it can be."""
    if stride != 1 and x.dim() > 4:  # the kernels subsample maps; other grids of pixels are subsampled here
        x, stride = reference.subsampled(x, stride), 1
    points = threshold.shape[-1]
    if _is_direct(x, threshold, weight, points, epilogue):
        if records_graph(x, threshold, weight):
            return operators.BWHT1dFunction.apply(cpu.bwht1d, x, threshold, weight, out_channels, stride, options)
        return cpu.bwht1d(x, threshold, weight, out_channels, stride, options, epilogue)
    if epilogue is not None:
        return finish(bwht1d(x, threshold, weight, out_channels, stride, options), epilogue)
    if backend_for(x, threshold, weight, points=points) == "reference":
        return reference.bwht1d(x, threshold, weight, out_channels, stride, options)
    return operators.bwht1d(x, threshold, weight, out_channels, stride, options)


# The choices with which a CPU's tensors go to the C++ kernel.
_DIRECT = ("auto", "cpu") if DEVICE_BACKENDS["cpu"][1] is cpu else ()


def _is_direct(x: Tensor, threshold: Tensor, weight: Tensor | None, points: int, epilogue: Epilogue | None) -> bool:
    # Whether the CPU's kernel is there, takes the tensors as they are, and can be called without the dispatcher.
    if _choice not in _DIRECT:
        return False
    if epilogue is None:
        direct = is_direct(x, threshold, weight)
    else:
        residual = epilogue.residual  # a number, perhaps
        tensors = residual is None or isinstance(residual, Tensor)
        direct = tensors and not torch.is_grad_enabled() and is_direct(x, threshold, weight, *epilogue[:3])
    return direct and cpu.takes_as_is(x, threshold, weight, points)
