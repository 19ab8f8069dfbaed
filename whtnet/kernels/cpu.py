"""The CPU backend: one fused kernel (``csrc/``) for both layers, forward and backward.

It reads and writes NCHW and channels_last as they are, in float32, bfloat16 (computed in float32) and float64. Sums of
gradients are the same for any number of threads; the threads are those of PyTorch's own OpenMP runtime.
"""

import ctypes
import functools
import math
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from whtnet.kernels.build import BuildError, load_library
from whtnet.kernels.reference import is_channels_last

MAX_BLOCK = 4096  # points of a transform: channels of a block, or h·w

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
_LANES, _POINTS = 0, 1  # layouts, see csrc/spectral.cpp


# -- availability -----------------------------------------------------------------------------------------------------


def supports(x: Tensor, parameters: Iterable[Tensor | None]) -> bool:
    """Whether the kernel takes this input and these parameters (thresholds first)."""
    if x.dtype not in _DTYPES:
        return False
    threshold, *others = parameters or (None,)
    for p in (threshold, *others):
        if p is not None and (p.device != x.device or (p.dtype == torch.float64 and x.dtype != torch.float64)):
            return False
    return threshold is None or _points(threshold, len(others)) <= MAX_BLOCK


def _points(threshold: Tensor, others: int) -> int:
    # (blocks, B) in 1-D; (h, w), which comes with weights or None, in 2-D
    return math.prod(threshold.shape) if others else threshold.shape[1]


@torch.compiler.assume_constant_result
def available(required: bool = False) -> bool:
    """Whether the kernel is there, compiling it on the first call; where it is not, says so once.

    Raises:
        RuntimeError: if it is ``required`` and not there.
    """
    kernel, error = _load()
    if kernel is None and required:
        raise BuildError(f"backend 'cpu' is not available: {error}")
    return kernel is not None


_lock = threading.Lock()
_loaded: tuple | None = None


def _load() -> tuple:
    # (function of the library, None) or (None, why not)
    global _loaded
    if _loaded is None:
        with _lock:
            if _loaded is None:
                try:
                    _loaded = _bind(load_library()), None
                except (BuildError, AttributeError, OSError) as error:
                    warnings.warn(
                        f"whtnet runs on plain PyTorch, without its fast CPU kernel: {error}. "
                        "whtnet.set_backend('reference') silences this.",
                        stacklevel=2,
                    )
                    _loaded = None, error
    return _loaded


def _bind(library: ctypes.CDLL) -> ctypes._CFuncPtr:
    function = library.whtnet_layer
    function.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int] + [ctypes.c_void_p] * 2
    function.restype = ctypes.c_int
    return function


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


def fwht2d(x: Tensor, threshold: Tensor, weight: Tensor | None, kind: str, clamp: bool, keep_dc: bool) -> Tensor:
    """``whtnet::fwht2d``; see :func:`whtnet.functional.fwht2d`."""
    x, layout = _as_stored(x)
    y = empty_like_input(x)
    job = _job_2d(x.dtype, x.shape, layout, tuple(threshold.shape), kind, clamp, keep_dc)
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
    input_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``whtnet::fwht2d_backward``: gradients of the input (empty unless asked for), thresholds and weights."""
    x, layout = _as_stored(x)
    gx = empty_like_input(x) if input_gradient else x.new_empty(0)
    gt = torch.zeros_like(threshold, memory_format=torch.contiguous_format)
    gv = gt.new_zeros(gt.shape if weight is not None else 0)
    job = _job_2d(x.dtype, x.shape, layout, tuple(threshold.shape), kind, clamp, keep_dc)
    _run(job, x, _like(grad, layout), threshold, weight, gx, gt, gv)
    return gx, gt, gv


def bwht1d(
    x: Tensor, threshold: Tensor, out_channels: int, kind: str, clamp: bool, keep_dc: bool, stride: int
) -> Tensor:
    """``whtnet::bwht1d``; see :func:`whtnet.functional.bwht1d`."""
    x, layout = _as_stored(x)
    y = empty_pixels(x, out_channels, stride)
    job = _job_1d(x.dtype, x.shape, layout, threshold.shape[1], out_channels, kind, clamp, keep_dc, stride)
    _run(job, x, None, threshold, None, y, None, None)
    return y


def bwht1d_backward(
    grad: Tensor,
    x: Tensor,
    threshold: Tensor,
    out_channels: int,
    kind: str,
    clamp: bool,
    keep_dc: bool,
    stride: int,
    input_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """``whtnet::bwht1d_backward``: gradients of the input (empty unless asked for) and of the thresholds."""
    x, layout = _as_stored(x)
    gx = empty_like_input(x) if input_gradient else x.new_empty(0)
    if stride != 1:
        gx.zero_()
    gt = torch.zeros_like(threshold, memory_format=torch.contiguous_format)
    job = _job_1d(x.dtype, x.shape, layout, threshold.shape[1], out_channels, kind, clamp, keep_dc, stride)
    _run(job, x, _like(grad, layout), threshold, None, gx, gt, None)
    return gx, gt


def empty_like_input(x: Tensor) -> Tensor:
    """A result of the shape of ``x``: channels_last for an input in channels_last, contiguous for any other."""
    return empty_pixels(x, x.shape[1], 1) if is_channels_last(x) else x.new_empty(x.shape)


def empty_pixels(x: Tensor, channels: int, stride: int) -> Tensor:
    """A result for ``x`` ``(N, C, *spatial)`` with other channels, subsampled; the memory format as above."""
    spatial = [(s + stride - 1) // stride for s in x.shape[2:]]
    if is_channels_last(x):
        return x.new_empty((x.shape[0], *spatial, channels)).permute(0, 3, 1, 2)
    return x.new_empty((x.shape[0], channels, *spatial))


def _as_stored(x: Tensor) -> tuple[Tensor, torch.memory_format]:
    if is_channels_last(x):
        return x, torch.channels_last
    return x.contiguous(), torch.contiguous_format


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
    kernel, error = _load()
    if kernel is None:
        raise BuildError(f"backend 'cpu' is not available: {error}")
    threshold = threshold.contiguous()
    weight = None if weight is None else weight.contiguous()
    status = kernel(
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
    return _pack(dtype, grid, kind, clamp, keep_dc, math.prod(padded), (1, 1), padded[1], side, side)


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
    return _pack(dtype, grid, kind, clamp, keep_dc, block, counts, max(counts) * block, *sides)


def _pack(
    dtype: torch.dtype,
    grid: tuple[int, ...],
    kind: str,
    clamp: bool,
    keep_dc: bool,
    block: int,
    blocks: tuple[int, int],
    width: int,
    side_in: tuple[int, ...],
    side_out: tuple[int, ...],
) -> ctypes.Array:
    layout, *lanes = grid
    smooth = {"smooth": 1, "soft": 0}[kind]
    options = (_DTYPES[dtype], layout, smooth, int(keep_dc), int(clamp))
    fields = (*options, block.bit_length() - 1, *blocks, width, *lanes, *side_in, *side_out)
    return (ctypes.c_int64 * len(fields))(*fields)
