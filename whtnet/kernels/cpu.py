"""The CPU backend: one fused kernel (``csrc/``) for both layers, forward and backward.

It reads and writes NCHW and channels_last as they are, in float32, bfloat16 (computed in float32) and float64. Sums of
gradients are the same for any number of threads; the threads are those of PyTorch's own OpenMP runtime.
"""

import ctypes
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whtnet.kernels.build import load_library
from whtnet.kernels.lazy import KernelError, LazyKernel, dynamo_constant
from whtnet.kernels.options import Epilogue, Options
from whtnet.kernels.reference import finish
from whtnet.kernels.shapes import MAX_BLOCK, as_stored, gradient_operator, takes

# Of `Job` and `Side` in csrc/layer.h; the library's names are compared with these when it is loaded.
_JOB_FIELDS = (
    *("dtype", "layout", "smooth", "keep_dc", "clamp", "ortho", "log2_block", "blocks_in", "blocks_out"),
    *("shared", "span", "means", "width", "images", "lanes", "lanes_i", "lanes_j", "channels"),
)
_SIDE_FIELDS = ("image", "n", "i", "j", "point", "row", "H", "W")

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
_PARAMETER_DTYPES = {torch.float32: torch.float32, torch.bfloat16: torch.float32, torch.float64: torch.float64}
_LANES, _POINTS = 0, 1  # layouts, see csrc/layer.h


# -- availability -----------------------------------------------------------------------------------------------------


def supports(x: Tensor, parameters: Iterable[Tensor | None], points: int) -> bool:
    """Whether the kernel takes this input, these parameters and transforms of so many points."""
    return takes(x, parameters, points, _DTYPES)


def takes_as_is(x: Tensor, threshold: Tensor, weight: Tensor | None, points: int) -> bool:
    """Whether the kernel is loaded and takes these tensors of the CPU without a conversion."""
    wanted = _PARAMETER_DTYPES.get(x.dtype)
    return (
        threshold.dtype is wanted
        and (weight is None or weight.dtype is wanted)
        and points <= MAX_BLOCK
        and _kernel.kernel is not None
    )


@dynamo_constant
def available() -> bool:
    """Whether the kernel is there, compiling it on the first call; where it is not, says so once."""
    return _kernel.available()


@dataclass(frozen=True)
class _Functions:
    # Of csrc/spectral.cpp.
    forward: Callable[..., int]
    forward_and: Callable[..., int]
    backward: Callable[..., int]


def _load() -> _Functions:
    library = load_library()
    library.whtnet_job_fields.restype = ctypes.c_char_p
    if (theirs := library.whtnet_job_fields().decode().split()) != [*_JOB_FIELDS, "|", *_SIDE_FIELDS]:
        raise KernelError(f"the compiled kernel takes another job: {' '.join(theirs)}; remove it, it is compiled again")
    library.whtnet_use_openmp.argtypes = [ctypes.c_void_p] * 2
    library.whtnet_use_openmp(*_openmp())
    library.whtnet_forward.argtypes = layer = [ctypes.c_void_p] * 5 + [ctypes.c_int]
    library.whtnet_forward_and.argtypes = layer + [ctypes.c_void_p] * 4 + [ctypes.c_double] * 2
    library.whtnet_backward.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int]
    return _Functions(library.whtnet_forward, library.whtnet_forward_and, library.whtnet_backward)


_kernel = LazyKernel("cpu", _load)


def _openmp() -> tuple[int | None, int | None]:
    # Fork and thread number of the OpenMP runtime that PyTorch links: a second runtime in the process would fight it
    # for the cores. Looked up through libtorch, so that it is that one; elsewhere the kernel makes its own threads.
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path))
        fork, number = library.GOMP_parallel, library.omp_get_thread_num
    except (OSError, AttributeError):
        return None, None
    return ctypes.cast(fork, ctypes.c_void_p).value, ctypes.cast(number, ctypes.c_void_p).value


# Without the dispatcher, as the code that PyTorch's compiler generates allocates: at half the cost.
_guards: Any = torch._C._dynamo.guards  # whose stubs lack the function
_empty = _guards._empty_strided_cpu
_threads = torch.get_num_threads


# -- operators --------------------------------------------------------------------------------------------------------


def fwht2d(
    x: Tensor, threshold: Tensor, weight: Tensor | None, options: Options, epilogue: Epilogue | None = None
) -> Tensor:
    """``whtnet::fwht2d``, see :func:`whtnet.functional.fwht2d`, and what follows it."""
    x, layout = as_stored(x)
    return _forward(_job_2d(x, layout, threshold, options), x, threshold, weight, epilogue)


def bwht1d(
    x: Tensor,
    threshold: Tensor,
    weight: Tensor | None,
    out_channels: int,
    stride: int,
    options: Options,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """``whtnet::bwht1d``, see :func:`whtnet.functional.bwht1d`, and what follows it."""
    x, layout = as_stored(x)
    return _forward(_job_1d(x, layout, threshold, out_channels, stride, options), x, threshold, weight, epilogue)


def _forward(
    job: "_Job", x: Tensor, threshold: Tensor, weight: Tensor | None, epilogue: Epilogue | None = None
) -> Tensor:
    threshold, weight = threshold.contiguous(), None if weight is None else weight.contiguous()
    if epilogue is None:
        return run(job, x, threshold, weight, None)
    if not _takes_epilogue(job, x, epilogue):
        return finish(run(job, x, threshold, weight, None), epilogue)
    added, residual = (None if a is None else _in_format(job, a) for a in (epilogue.added, epilogue.residual))
    return run(job, x, threshold, weight, epilogue._replace(added=added, residual=residual))


def run(job: "_Job", x: Tensor, threshold: Tensor, weight: Tensor | None, epilogue: Epilogue | None) -> Tensor:
    """The kernel, for tensors that lie as it reads them."""
    y = _empty(*job.result, x.dtype)
    if address := x.data_ptr():  # else there is nothing in it
        arguments = job.address, address, threshold.data_ptr(), _address(weight), y.data_ptr(), _threads()
        if epilogue is None:
            _check(_kernel.get().forward(*arguments))
        else:
            scale, shift, residual, low, high, added = epilogue
            addends = _address(added), _address(residual)
            _check(_kernel.get().forward_and(*arguments, scale.data_ptr(), shift.data_ptr(), *addends, low, high))
    return y


def job_as_is(
    name: str,
    x: Tensor,
    threshold: Tensor,
    weight: Tensor | None,
    others: tuple[Any, ...],
    epilogue: Epilogue | None,
) -> "_Job | None":
    """What :func:`run` is to do for the operator ``name``, or None if a tensor does not lie as the kernel reads it."""
    stored, layout = as_stored(x)
    job = _JOBS[name](stored, layout, threshold, *others)
    whole = stored is x and threshold.is_contiguous() and (weight is None or weight.is_contiguous())
    if whole and epilogue is not None:
        addends = (epilogue.added, epilogue.residual)
        whole = _takes_epilogue(job, x, epilogue) and all(a is None or _in_format(job, a) is a for a in addends)
    return job if whole else None


def _takes_epilogue(job: "_Job", x: Tensor, epilogue: Epilogue) -> bool:
    scale, shift = epilogue.scale, epilogue.shift
    shape, wanted = job.result[0], _PARAMETER_DTYPES[x.dtype]
    return (
        scale.dtype is wanted
        and shift.dtype is wanted
        and scale.numel() == shift.numel() == shape[1]  # len() is a function in Python
        and scale.is_contiguous()
        and shift.is_contiguous()
        and all(a is None or (a.dtype is x.dtype and a.shape == shape) for a in (epilogue.added, epilogue.residual))
    )


def _in_format(job: "_Job", addend: Tensor) -> Tensor:
    return addend.contiguous(memory_format=job.memory_format)


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _backward(
    job: "_Job", grad: Tensor, x: Tensor, threshold: Tensor, weight: Tensor | None, gx: Tensor
) -> tuple[Tensor, Tensor]:
    gt = torch.empty_like(threshold)
    gv = threshold.new_empty(0) if weight is None else torch.empty_like(weight)
    if address := x.data_ptr():
        status = _kernel.get().backward(
            job.address,
            address,
            grad.data_ptr(),
            threshold.data_ptr(),
            _address(weight),
            gx.data_ptr() or None,
            gt.data_ptr(),
            gv.data_ptr() or None,
            _threads(),
        )
        _check(status)
    else:  # nothing to sum
        gt.zero_(), gv.zero_()
    return gt, gv


def _check(status: int) -> None:
    if status != 0:
        raise MemoryError("the kernel has no memory for its scratch space")


# -- the job: where everything lies -----------------------------------------------------------------------------------


class _Side(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in _SIDE_FIELDS)


class _Job(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_int64) for name in _JOB_FIELDS), ("side_in", _Side), ("side_out", _Side))

    def __init__(self, shape: tuple[int, ...], memory_format: torch.memory_format, **fields: Any) -> None:
        super().__init__(**fields)
        self.memory_format = memory_format
        self.result = tuple(shape), _strides(shape, memory_format)
        self.address = ctypes.addressof(self)


def _job_2d(x: Tensor, layout: torch.memory_format, threshold: Tensor, options: Options) -> _Job:
    return _job_of_maps(x.dtype, x.shape, layout, threshold.shape, options)


def _job_1d(
    x: Tensor, layout: torch.memory_format, threshold: Tensor, out_channels: int, stride: int, options: Options
) -> _Job:
    return _job_of_pixels(x.dtype, x.shape, layout, threshold.shape, out_channels, stride, options)


_JOBS: dict[str, Callable[..., _Job]] = {"fwht2d": _job_2d, "bwht1d": _job_1d}


@functools.lru_cache(maxsize=512)
def _job_of_maps(
    dtype: torch.dtype,
    shape: torch.Size,
    layout: torch.memory_format,
    padded: tuple[int, int],
    options: Options,
) -> _Job:
    *leading, height, width = shape
    maps = math.prod(leading)
    if layout == torch.channels_last:
        n, c = leading
        side = _Side(image=height * width * c, j=1, point=c, row=width * c, H=height, W=width)
        grid = {"layout": _LANES, "images": n, "lanes": c, "lanes_i": 1, "lanes_j": c}
    else:
        side = _Side(n=height * width, point=1, row=width, H=height, W=width)
        grid = {"layout": _POINTS, "images": 1, "lanes": maps, "lanes_i": 1, "lanes_j": 1}
    blocks = {"log2_block": _log2(math.prod(padded)), "blocks_in": 1, "blocks_out": 1, "means": 1, "width": padded[1]}
    blocks["channels"] = leading[-1] if leading else 1
    return _Job(shape, layout, **_flags(dtype, options), **grid, **blocks, side_in=side, side_out=side)


@functools.lru_cache(maxsize=512)
def _job_of_pixels(
    dtype: torch.dtype,
    shape: torch.Size,
    layout: torch.memory_format,
    parameters: torch.Size,
    out_channels: int,
    stride: int,
    options: Options,
) -> _Job:
    n, channels, *spatial = shape
    result = n, out_channels, *(-(-s // stride) for s in spatial)
    if stride == 1 or len(spatial) < 2:
        spatial = [1, math.prod(spatial)]
    height, width = spatial
    h, w = -(-height // stride), -(-width // stride)

    def side(c: int, height: int, width: int, step: int) -> _Side:
        pixels = height * width
        if by_points:
            return _Side(n=pixels * c, i=step * width * c, j=step * c, point=1, H=1, W=c)
        return _Side(image=c * pixels, i=step * width, j=step, point=pixels, H=1, W=c)

    by_points = layout == torch.channels_last or height * width == 1
    images, lanes = (1, n * h * w) if by_points else (n, h * w)
    grid = {"layout": _POINTS if by_points else _LANES, "images": images, "lanes": lanes, "lanes_i": h, "lanes_j": w}
    return _Job(
        result,
        layout,
        **_flags(dtype, options),
        **grid,
        **_blocks(parameters, channels, out_channels),
        side_in=side(channels, height, width, stride),
        side_out=side(out_channels, h, w, 1),
    )


def _blocks(parameters: torch.Size, channels: int, out_channels: int) -> dict[str, int]:
    block, wide = parameters[-1], max(channels, out_channels)
    counts = -(-channels // block), -(-out_channels // block)
    shared = len(parameters) == 1
    if shared and channels != block:  # as many windows as blocks, or the other way round
        counts = max(counts), max(counts)
    return {
        "log2_block": _log2(block),
        "blocks_in": counts[0],
        "blocks_out": counts[1],
        "shared": shared,
        "span": channels - block if shared and channels < out_channels else 0,
        "means": max(1, channels // out_channels) if shared else 1,
        "width": -(-wide // block) * block,
    }


def _flags(dtype: torch.dtype, options: Options) -> dict[str, int]:
    smooth, ortho = options.kind == "smooth", options.norm == "ortho"
    return {
        "dtype": _DTYPES[dtype],
        "smooth": smooth,
        "keep_dc": options.keep_dc,
        "clamp": options.clamp,
        "ortho": ortho,
    }


def _strides(shape: tuple[int, ...], layout: torch.memory_format) -> tuple[int, ...]:
    order = (0, 2, 3, 1) if layout == torch.channels_last else range(len(shape))
    strides, step = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


def _log2(n: int) -> int:
    return n.bit_length() - 1


# -- gradients ---------------------------------------------------------------------------------------------------------

fwht2d_backward = gradient_operator(_job_2d, _backward)
bwht1d_backward = gradient_operator(_job_1d, _backward)
