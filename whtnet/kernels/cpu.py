"""The CPU backend: one fused kernel (``csrc/``) for both layers, forward and backward.

It reads and writes NCHW and channels_last as they are, in float32, bfloat16 (computed in float32) and float64. Sums of
gradients are the same for any number of threads; the threads are those of PyTorch's own OpenMP runtime.
"""

import ctypes
import functools
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from whtnet.kernels.build import load_library
from whtnet.kernels.lazy import LazyKernel
from whtnet.kernels.shapes import as_stored, empty_gradient, empty_like_input, empty_pixels, takes

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
_LANES, _POINTS = 0, 1  # layouts, see csrc/spectral.cpp


# -- availability -----------------------------------------------------------------------------------------------------


def supports(x: Tensor, parameters: Iterable[Tensor | None]) -> bool:
    """Whether the kernel takes this input and these parameters (thresholds first)."""
    return takes(x, parameters, _DTYPES)


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the kernel is there, compiling it on the first call; where it is not, says so once."""
    return _kernel.available()


def _load() -> ctypes._CFuncPtr:
    function = load_library().whtnet_layer
    function.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int] + [ctypes.c_void_p] * 2
    function.restype = ctypes.c_int
    return function


_kernel = LazyKernel("cpu", _load)


@functools.cache
def _openmp() -> tuple[int | None, int | None]:
    # Fork and thread number of the OpenMP runtime that PyTorch links: a second runtime in the process would fight it
    # for the cores. Looked up through libtorch, so that it is that one; elsewhere the kernel makes its own threads.
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path))
        functions = library.GOMP_parallel, library.omp_get_thread_num
    except (OSError, AttributeError):
        return None, None
    return tuple(ctypes.cast(f, ctypes.c_void_p).value for f in functions)


# -- operators --------------------------------------------------------------------------------------------------------


def fwht2d(
    x: Tensor, threshold: Tensor, weight: Tensor | None, kind: str, clamp: bool, keep_dc: bool, norm: str
) -> Tensor:
    """``whtnet::fwht2d``; see :func:`whtnet.functional.fwht2d`."""
    x, layout = as_stored(x)
    y = empty_like_input(x)
    job = _job_2d(x.dtype, x.shape, layout, tuple(threshold.shape), kind, clamp, keep_dc, norm)
    _run(job, x, None, threshold, weight, y, None, None)
    return y


def fwht2d_backward(
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
    """``whtnet::fwht2d_backward``: gradients of the input (empty unless asked for), thresholds and weights."""
    x, layout = as_stored(x)
    gx = empty_gradient(x, input_gradient)
    gt = torch.zeros_like(threshold, memory_format=torch.contiguous_format)
    gv = gt.new_zeros(gt.shape if weight is not None else 0)
    job = _job_2d(x.dtype, x.shape, layout, tuple(threshold.shape), kind, clamp, keep_dc, norm)
    _run(job, x, _like(grad, layout), threshold, weight, gx, gt, gv)
    return gx, gt, gv


def bwht1d(
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
    """``whtnet::bwht1d``; see :func:`whtnet.functional.bwht1d`."""
    x, layout = as_stored(x)
    y = empty_pixels(x, out_channels, stride)
    job = _job_1d(x.dtype, x.shape, layout, threshold.shape[1], out_channels, kind, clamp, keep_dc, norm, stride)
    _run(job, x, None, threshold, weight, y, None, None)
    return y


def bwht1d_backward(
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
    """``whtnet::bwht1d_backward``: gradients of the input (empty unless asked for), thresholds and weights."""
    x, layout = as_stored(x)
    gx = empty_gradient(x, input_gradient)
    if stride != 1:
        gx.zero_()
    gt = torch.zeros_like(threshold, memory_format=torch.contiguous_format)
    gv = gt.new_zeros(gt.shape if weight is not None else 0)
    job = _job_1d(x.dtype, x.shape, layout, threshold.shape[1], out_channels, kind, clamp, keep_dc, norm, stride)
    _run(job, x, _like(grad, layout), threshold, weight, gx, gt, gv)
    return gx, gt, gv


def _like(grad: Tensor, layout: torch.memory_format) -> Tensor:
    return grad.contiguous(memory_format=layout)


def _run(
    job: ctypes.Array,
    x: Tensor,
    grad: Tensor | None,
    threshold: Tensor,
    weight: Tensor | None,
    out: Tensor,
    grad_threshold: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    if x.numel() == 0:
        return
    threshold = threshold.contiguous()
    weight = None if weight is None else weight.contiguous()
    status = _kernel.get()(
        ctypes.addressof(job),
        x.data_ptr(),
        None if grad is None else grad.data_ptr(),
        threshold.data_ptr(),
        None if weight is None else weight.data_ptr(),
        out.data_ptr() or None,
        None if grad_threshold is None else grad_threshold.data_ptr(),
        None if grad_weight is None else grad_weight.data_ptr() or None,
        torch.get_num_threads(),
        *_openmp(),
    )
    if status != 0:
        raise MemoryError("the kernel has no memory for its scratch space")


# -- the job: where everything lies (the fields of `Job` in csrc/layer.h) ---------------------------------------------


@functools.lru_cache(maxsize=512)
def _job_2d(
    dtype: torch.dtype,
    shape: torch.Size,
    layout: torch.memory_format,
    padded: tuple[int, int],
    kind: str,
    clamp: bool,
    keep_dc: bool,
    norm: str,
) -> ctypes.Array:
    *leading, height, width = shape
    maps = math.prod(leading)
    if layout == torch.channels_last:
        n, c = leading
        side = (height * width * c, 0, 0, 1, c, width * c, height, width)
        grid = (_LANES, n, c, 1, c)
    else:
        side = (0, height * width, 0, 0, 1, width, height, width)
        grid = (_POINTS, 1, maps, 1, 1)
    return _pack(dtype, grid, kind, clamp, keep_dc, norm, math.prod(padded), (1, 1), padded[1], side, side)


@functools.lru_cache(maxsize=512)
def _job_1d(
    dtype: torch.dtype,
    shape: torch.Size,
    layout: torch.memory_format,
    block: int,
    out_channels: int,
    kind: str,
    clamp: bool,
    keep_dc: bool,
    norm: str,
    stride: int,
) -> ctypes.Array:
    n, channels, *spatial = shape
    if stride == 1 or len(spatial) < 2:
        spatial = [1, math.prod(spatial)]
    height, width = spatial
    h, w = -(-height // stride), -(-width // stride)
    counts = -(-channels // block), -(-out_channels // block)

    def side(c: int, height: int, width: int, step: int) -> tuple[int, ...]:
        pixels = height * width
        if by_points:
            return (0, pixels * c, step * width * c, step * c, 1, 0, 1, c)
        return (c * pixels, 0, step * width, step, pixels, 0, 1, c)

    by_points = layout == torch.channels_last or height * width == 1
    grid = (_POINTS, 1, n * h * w, h, w) if by_points else (_LANES, n, h * w, h, w)
    sides = side(channels, height, width, stride), side(out_channels, h, w, 1)
    return _pack(dtype, grid, kind, clamp, keep_dc, norm, block, counts, max(counts) * block, *sides)


def _pack(
    dtype: torch.dtype,
    grid: tuple[int, ...],
    kind: str,
    clamp: bool,
    keep_dc: bool,
    norm: str,
    block: int,
    blocks: tuple[int, int],
    width: int,
    side_in: tuple[int, ...],
    side_out: tuple[int, ...],
) -> ctypes.Array:
    layout, *lanes = grid
    smooth = {"smooth": 1, "soft": 0}[kind]
    options = (_DTYPES[dtype], layout, smooth, int(keep_dc), int(clamp), int(norm == "ortho"))
    fields = (*options, block.bit_length() - 1, *blocks, width, *lanes, *side_in, *side_out)
    return (ctypes.c_int64 * len(fields))(*fields)
