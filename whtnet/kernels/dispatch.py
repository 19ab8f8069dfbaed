"""When a call of a kernel needs PyTorch's dispatcher, and when that would do nothing but call the kernel.

The dispatcher tells everything that wants to know about an operator: ``torch.func``, tracers, fake tensors, modes such
as a counter of FLOPs, autograd. It knows from a set of keys for each tensor and one for the thread whom to ask. Asking
it costs a Python operator more than a small layer's arithmetic; so where its sets hold only what every call of a CPU
operator has, the kernel is called without it. In inference such a call is remembered, with guards that know its tensors
again faster than they are looked at one by one.
"""

import functools
import operator
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function_variadic

# Bound once: they are asked for every call.
_keys, _thread_keys = torch._C._dispatch_keys, torch._C._dispatch_tls_local_include_set
_is_compiling, _is_profiled = torch.compiler.is_compiling, torch.autograd._profiler_enabled


def _set(*keys: str) -> int:
    # Not read off a tensor: this module may be imported while a mode is active.
    sets = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in keys)
    return functools.reduce(operator.or_, sets).raw_repr()


# Of a CPU tensor, and of the thread; each outside and inside of inference mode.
_KEYS = {_set("CPU", "AutocastCPU", "AutogradCPU", "ADInplaceOrView"), _set("CPU", "AutocastCPU")}
_THREAD_KEYS = {_set("BackendSelect", "ADInplaceOrView"), _set("BackendSelect")}


def is_direct(*tensors: Tensor | None) -> bool:
    """Whether the dispatcher would lead an operator on these tensors right to autograd and the CPU's implementation."""
    if _is_watched(*tensors):
        return False
    # No other devices; no sparse, fake, functional or batched tensors, none that is negated in the view alone.
    for tensor in tensors:  # noqa: SIM110  a generator costs more
        if tensor is not None and _keys(tensor).raw_repr() not in _KEYS:
            return False
    return True


def _is_watched(*tensors: Tensor | None) -> bool:
    # Whether something that the keys of these tensors do not tell wants to know about an operator on them.
    return (
        _is_compiling()
        or has_torch_function_variadic(*tensors)  # subclasses, modes of Python functions
        or _thread_keys().raw_repr() not in _THREAD_KEYS  # other modes, torch.func, tracing
        or forward_ad._current_level >= 0
        or _is_profiled()  # the profiler shows operators
    )


_TensorGuards: Any = torch._C._dynamo.guards.TensorGuards
_known: dict[Hashable, list[tuple[Any, Any]]] = {}
_MOST_KEYS, _MOST_CALLS = 512, 4  # calls: of one key


def remember(key: Hashable, tensors: tuple[Tensor, ...], value: object) -> None:
    """Keep ``value`` for calls with ``key`` and tensors like these, for which :func:`is_direct` holds."""
    sizes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
    guards = _TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    if guards.check(*tensors):  # not so where one tensor stands in two places
        if len(_known) >= _MOST_KEYS:
            _known.clear()
        _known[key] = [(guards, value), *_known.get(key, ())][:_MOST_CALLS]


def remembered(key: Hashable, tensors: tuple[Tensor, ...]) -> Any:
    """What :func:`remember` was given for ``key`` and tensors like these, or None.

    They have the same types, dispatch keys, dtypes, devices, sizes and strides, and autograd records them now as then.
    """
    if not _is_watched(*tensors):
        for guards, value in _known.get(key, ()):
            if guards.check(*tensors):
                return value
    return None


def records_graph(x: Tensor, threshold: Tensor, weight: Tensor | None) -> bool:
    """Whether autograd records an operator on these tensors, for which :func:`is_direct` holds."""
    if not torch.is_grad_enabled():
        return False
    wanted = x.requires_grad or threshold.requires_grad or (weight is not None and weight.requires_grad)
    return wanted and not torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradFunctionality)
