"""The GPU backend: launching the Triton kernels of ``gpu_kernel.py``, which are compiled on first use.

They read and write NCHW and channels_last as they are, in float32, bfloat16 and float16, all computed in float32. Sums
of gradients come out the same in every run.
"""

import functools
import importlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from types import ModuleType

import torch
from torch import Tensor

from whtnet.kernels.lazy import KernelError, LazyKernel, dynamo_constant
from whtnet.kernels.options import Options
from whtnet.kernels.shapes import as_stored, empty_like_input, empty_pixels, gradient_operator, takes

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Numbers of a tile. One warp holds a small one in its registers, where up to 1024 points no number goes through shared
# memory; the backward pass needs room for x, its gradient and two sums.
_TILE, _LARGEST_TILE = 1024, 16384
_NEIGHBOURS = 16  # items of a tile at least where items are neighbours in memory: accesses of 32 bytes and more
_PROGRAMS = 2048  # of the backward pass: enough to fill a large GPU, few enough that their sums are little traffic
_STEPS = 64  # tiles that such a program adds up at most


# -- availability -----------------------------------------------------------------------------------------------------


def supports(x: Tensor, parameters: Iterable[Tensor | None], points: int) -> bool:
    """Whether the kernels take this input, these parameters and transforms of so many points."""
    # Offsets in an image have 32 bits.
    return takes(x, parameters, points, _DTYPES) and math.prod(x.shape[1:]) < 1 << 30


@dynamo_constant
def available() -> bool:
    """Whether the kernels run here, compiling one on the first call; where they do not, says so once."""
    return _kernels.available()


def _load() -> ModuleType:
    try:
        return importlib.import_module("whtnet.kernels.gpu_kernel")
    except Exception as error:  # Triton's import fails in many ways: not there, no driver, the wrong version
        raise KernelError(f"Triton cannot be used: {type(error).__name__}: {error}") from error


_kernels = LazyKernel("gpu", _load)


# -- operators --------------------------------------------------------------------------------------------------------


def fwht2d(x: Tensor, threshold: Tensor, weight: Tensor | None, options: Options) -> Tensor:
    """``whtnet::fwht2d``; see :func:`whtnet.functional.fwht2d`."""
    x, layout = as_stored(x)
    y = empty_like_input(x)
    _forward(_job_2d(x.shape, layout, threshold.shape, options), x, threshold, weight, y)
    return y


def bwht1d(
    x: Tensor, threshold: Tensor, weight: Tensor | None, out_channels: int, stride: int, options: Options
) -> Tensor:
    """``whtnet::bwht1d``; see :func:`whtnet.functional.bwht1d`."""
    x, layout = as_stored(x)
    y = empty_pixels(x, out_channels, stride)
    job = _job_1d(x.shape, layout, threshold.shape, out_channels, stride, options)
    _forward(job, x, threshold, weight, y)
    return y


# -- the job: where everything lies (see `_locate` and `_points` in gpu_kernel.py) ------------------------------------


@dataclass(frozen=True)
class _Side:
    # How one activation lies in memory, in elements. Items are numbered (outer, inner, item).
    outer: int  # from one outer number to the next
    inner_count: int
    inner: int
    item: int
    point: int  # from one point of a row to the next
    row: int  # from one row of points to the next
    rows: int  # that exist
    columns: int
    ahead: int = 1  # block b begins at point b · P · ahead // of
    of: int = 1
    means: int = 1  # so many successive points are the same number in memory, their mean

    def arguments(self) -> tuple[int, ...]:
        return tuple(vars(self).values())


@dataclass(frozen=True)
class _Job:
    points: int  # P
    width: int  # padded points of a row
    groups: int  # (outer, inner) numbers
    items: int  # of a group
    blocks_in: int
    blocks_out: int
    shared: bool  # one set of parameters for all blocks
    side_in: _Side
    side_out: _Side
    side_y: _Side  # where the kernels write: as above, or block by block for `fold`
    side_gx: _Side
    options: Options

    @property
    def tile_items(self) -> int:
        # Points that are neighbours in memory make whole cache lines by themselves, items only if there are enough.
        least = _NEIGHBOURS if self.side_in.item < self.side_in.point else 1
        wanted = max(_TILE // self.points, min(least, _LARGEST_TILE // self.points))
        return min(wanted, 1 << (self.items - 1).bit_length())

    @property
    def blocks(self) -> int:
        return max(self.blocks_in, self.blocks_out)

    @property
    def narrow(self) -> int:
        return min(self.blocks_in, self.blocks_out)

    @property
    def tiles_per_group(self) -> int:
        return -(-self.items // self.tile_items)

    @property
    def tiles(self) -> int:
        return self.groups * self.tiles_per_group

    @property
    def paired(self) -> bool:
        return self.blocks_in == self.blocks_out

    def forward_arguments(self) -> dict:
        return self._layer_arguments() | {"side_y": self.side_y.arguments()}

    def backward_arguments(self) -> dict:
        sides = {"side_gy": self.side_out.arguments(), "side_gx": self.side_gx.arguments()}
        return self._layer_arguments() | sides | {"PAIRED": self.paired}

    def fold_arguments(self, side_wide: _Side, side: _Side) -> dict:
        return self._tile_arguments() | {
            "side_wide": side_wide.arguments(),
            "side": side.arguments(),
            "parts": -(-side.columns // (side.means * self.points)),
            "terms": self.blocks if side.means == 1 else side.means,
            "WINDOWS": side.means == 1,
        }

    def _layer_arguments(self) -> dict:
        ortho = self.options.norm == "ortho"
        return self._tile_arguments() | {
            "side_in": self.side_in.arguments(),
            "blocks": self.blocks,
            "narrow": self.narrow,
            "forth": self.points**-0.5 if ortho else 1.0,
            "back": (self.points**-0.5 if ortho else 1 / self.points) / self.side_out.means,
            "LOG2_P": self.points.bit_length() - 1,
            "WIDTH": self.width,
            "STEP": 0 if self.shared else self.points,
            "SMOOTH": self.options.kind == "smooth",
            "KEEP_DC": self.options.keep_dc,
            "CLAMP": self.options.clamp,
            "EXPAND": self.blocks_in < self.blocks_out,
        }

    def _tile_arguments(self) -> dict:
        return {
            "tiles": self.tiles,
            "tiles_per_group": self.tiles_per_group,
            "items": self.items,
            "P": self.points,
            "ITEMS": self.tile_items,
            "num_warps": min(16, max(1, self.tile_items * self.points // _TILE)),
        }


@functools.lru_cache(maxsize=512)
def _job_2d(shape: torch.Size, layout: torch.memory_format, padded: tuple[int, ...], options: Options) -> _Job:
    *leading, height, width = shape
    points = math.prod(padded)
    if layout == torch.channels_last:
        groups, items = leading
        steps = {"outer": height * width * items, "item": 1, "point": items}
    else:
        groups, items = 1, math.prod(leading)
        steps = {"outer": 0, "item": height * width, "point": 1}
    steps |= {"inner_count": 1, "inner": 0}
    if (height, width) == padded:  # one long row: what is contiguous is seen to be
        side, row = _Side(**steps, row=0, rows=1, columns=points), points
    else:
        side, row = _Side(**steps, row=width * steps["point"], rows=height, columns=width), padded[1]
    return _Job(
        points=points,
        width=row,
        groups=groups,
        items=items,
        blocks_in=1,
        blocks_out=1,
        shared=False,
        side_in=side,
        side_out=side,
        side_y=side,
        side_gx=side,
        options=options,
    )


@functools.lru_cache(maxsize=512)
def _job_1d(
    shape: torch.Size,
    layout: torch.memory_format,
    parameters: torch.Size,
    out_channels: int,
    stride: int,
    options: Options,
) -> _Job:
    n, channels, *spatial = shape
    if stride == 1 or len(spatial) < 2:
        spatial = [1, math.prod(spatial)]
    height, width = spatial
    h, w = -(-height // stride), -(-width // stride)
    by_points = layout == torch.channels_last or height * width == 1
    one_group = by_points and stride == 1  # of all images, since their pixels lie one after the other

    def side(c: int, height: int, width: int, step: int = 1) -> _Side:
        pixel, point = (c, 1) if by_points else (1, height * width)
        groups = (0, 1, 0) if one_group else (height * width * c, h, step * width * pixel)
        return _Side(*groups, step * pixel, point, row=0, rows=1, columns=c)

    block, shared = parameters[-1], len(parameters) == 1
    counts = -(-channels // block), -(-out_channels // block)
    side_in, side_out = side(channels, height, width, stride), side(out_channels, h, w)
    side_y, side_gx = side_out, side_in
    if shared and channels != block:  # as many windows as blocks, or the other way round
        counts = (max(counts),) * 2
    wide = side(counts[0] * block, h, w)
    if shared and block < channels < out_channels:
        step = Fraction(channels - block, (counts[0] - 1) * block)
        side_in, side_gx = replace(side_in, ahead=step.numerator, of=step.denominator), wide
    elif shared and (means := channels // out_channels) > 1:
        side_out, side_y = replace(side_out, columns=out_channels * means, means=means), wide
    groups, items = (1, n * h * w) if one_group else (n * h, w)
    return _Job(
        points=block,
        width=block,
        groups=groups,
        items=items,
        blocks_in=counts[0],
        blocks_out=counts[1],
        shared=shared,
        side_in=side_in,
        side_out=side_out,
        side_y=side_y,
        side_gx=side_gx,
        options=options,
    )


# -- launches ---------------------------------------------------------------------------------------------------------


def _forward(job: _Job, x: Tensor, threshold: Tensor, weight: Tensor | None, y: Tensor) -> None:
    if x.numel() == 0:
        return
    threshold, weight = threshold.contiguous(), None if weight is None else weight.contiguous()
    v = threshold if weight is None else weight
    with _on(x), _folded(job, y, job.side_y, job.side_out) as target:
        _kernels.get().forward[(job.tiles * job.narrow,)](
            x, target, threshold, v, HAS_V=weight is not None, **job.forward_arguments()
        )


def _backward(
    job: _Job, grad: Tensor, x: Tensor, threshold: Tensor, weight: Tensor | None, gx: Tensor
) -> tuple[Tensor, Tensor]:
    gt = torch.zeros_like(threshold)
    gv = gt.new_zeros(gt.shape if weight is not None else 0)
    if x.numel() == 0:
        return gt, gv
    v = threshold if weight is None else weight
    steps = min(_STEPS, max(1, job.tiles * job.narrow // _PROGRAMS)) if job.paired else 1
    parts = -(-job.tiles // steps)
    sums_t = x.new_empty((parts, job.blocks * job.points), dtype=torch.float32)
    sums_v = x.new_empty((parts, job.blocks * job.points if weight is not None else 0), dtype=torch.float32)
    with _on(x), _folded(job, gx, job.side_gx, job.side_in) as target:
        _kernels.get().backward[(parts * job.narrow,)](
            x,
            grad,
            target,
            threshold,
            v,
            sums_t,
            sums_v,
            steps=steps,
            HAS_V=weight is not None,
            HAS_GX=gx.numel() > 0,
            **job.backward_arguments(),
        )
    gt.copy_(sums_t.view(-1, *gt.shape).sum(0, dtype=torch.float64))
    if weight is not None:
        gv.copy_(sums_v.view(-1, *gv.shape).sum(0, dtype=torch.float64))
    return torch.where(threshold <= 0, 0.0, gt) if job.options.clamp else gt, gv


@contextmanager
def _folded(job: _Job, y: Tensor, written: _Side, side: _Side) -> Iterator[Tensor]:
    # What a kernel writes to: `y`, or blocks side by side, of which `y` is made afterwards.
    if written is side or y.numel() == 0:
        yield y
        return
    wide = y.new_empty(job.groups * job.items * job.blocks * job.points, dtype=torch.float32)
    yield wide
    arguments = job.fold_arguments(written, side)
    _kernels.get().fold[(job.tiles * arguments["parts"],)](wide, y, **arguments)


def _on(x: Tensor) -> nullcontext | torch.cuda.device:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


fwht2d_backward = gradient_operator(
    lambda x, layout, threshold, *others: _job_2d(x.shape, layout, threshold.shape, *others), _backward
)
bwht1d_backward = gradient_operator(
    lambda x, layout, threshold, *others: _job_1d(x.shape, layout, threshold.shape, *others), _backward
)
