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
there, and its name to :data:`BACKENDS`. With ``TRITON_INTERPRET=1`` in the environment the backend ``gpu`` serves the
CPU, slowly: a way to test it without a GPU.
"""

import os
from typing import Any

import torch
from torch import Tensor

from whtnet.errors import UserError
from whtnet.kernels import cpu, operators, reference
from whtnet.kernels.dispatch import is_direct, records_graph, remember, remembered
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
    return _layer("fwht2d", x, threshold, weight, (options,), threshold.numel(), epilogue)


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
    return _layer("bwht1d", x, threshold, weight, (out_channels, stride, options), threshold.shape[-1], epilogue)


def _layer(
    name: str,
    x: Tensor,
    threshold: Tensor,
    weight: Tensor | None,
    others: tuple[Any, ...],
    points: int,
    epilogue: Epilogue | None,
) -> Tensor:
    tensors: tuple[Tensor, ...] = (x, threshold) if weight is None else (x, threshold, weight)
    if epilogue is not None:
        tensors += epilogue.tensors()
    direct, inference = _choice in _DIRECT, not torch.is_grad_enabled()
    key = (name, x.shape, others, len(tensors)) if inference else None
    if direct and inference and (job := remembered(key, tensors)) is not None:
        return cpu.run(job, x, threshold, weight, epilogue)
    if epilogue is not None:  # an addend may be a number
        direct = direct and inference and all(isinstance(t, Tensor) for t in tensors)
    if direct and is_direct(*tensors) and cpu.takes_as_is(x, threshold, weight, points):
        kernel = getattr(cpu, name)
        if records_graph(x, threshold, weight):
            return operators.FUNCTIONS[name].apply(kernel, x, threshold, weight, *others)
        if inference and (job := cpu.job_as_is(name, x, threshold, weight, others, epilogue)) is not None:
            remember(key, tensors, job)
        return kernel(x, threshold, weight, *others, epilogue)
    if epilogue is not None:
        return finish(_layer(name, x, threshold, weight, others, points, None), epilogue)
    if backend_for(x, threshold, weight, points=points) == "reference":
        return getattr(reference, name)(x, threshold, weight, *others)
    return getattr(operators, name)(x, threshold, weight, *others)


# The choices with which a CPU's tensors go to the C++ kernel.
_DIRECT = ("auto", "cpu") if DEVICE_BACKENDS["cpu"][1] is cpu else ()
