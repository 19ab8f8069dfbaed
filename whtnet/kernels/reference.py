"""The layers in plain PyTorch: the definition, the exportable path, and the oracle of every fast backend.

Everything is computed in at least float32 (the input may be bfloat16 or float16) and returned in the input's dtype.
Inputs in channels_last come back in channels_last, without a copy on the way. :mod:`whtnet.functional` documents the
arguments.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from whtnet.kernels.options import UNBOUNDED, Epilogue, Options
from whtnet.thresholds import THRESHOLDS
from whtnet.transforms import fwht, fwht2

# How many times the orthonormal transform of n points a forward transform is; the one back is as many times less.
NORMS: dict[str, Callable[[int], float]] = {"ortho": lambda n: 1.0, "backward": math.sqrt}


def bwht1d(
    x: Tensor, threshold: Tensor, weight: Tensor | None, out_channels: int, stride: int, options: Options
) -> Tensor:
    """:func:`whtnet.functional.bwht1d` in plain PyTorch."""
    layer = _shared_bwht1d if threshold.dim() == 1 else _separate_bwht1d
    return layer(x, threshold, weight, out_channels, stride, options)


def _shared_bwht1d(
    x: Tensor, threshold: Tensor, weight: Tensor | None, out_channels: int, stride: int, options: Options
) -> Tensor:
    # For thresholds (B,), made of the form for (blocks, B).
    block, expands = len(threshold), x.shape[1] < out_channels
    if expands and x.shape[1] > block:
        x, stride = _windows(x, block, out_channels, stride), 1
    group = max(1, x.shape[1] // out_channels)
    # Means of low-precision numbers are taken in float32, so that a result is rounded once.
    wide = at_least_float32(x) if group > 1 else x
    y = _separate_bwht1d(wide, *_for_every_block(x, threshold, weight), stride, options)
    if expands:
        return y if y.shape[1] == out_channels else torch.cat([y] * (out_channels // block), 1)
    if group > 1:
        y = _group_means(y, group).to(x.dtype)
    return y if y.shape[1] == out_channels else y.narrow(1, 0, out_channels).clone()


def _group_means(x: Tensor, size: int) -> Tensor:
    # Of adjacent channels; what is left after the last whole group goes. Keeps the memory format.
    channels_last = is_channels_last(x)
    x, dim = (x.permute(0, 2, 3, 1), 3) if channels_last else (x, 1)
    groups = x.shape[dim] // size
    x = x.narrow(dim, 0, groups * size).unflatten(dim, (groups, size)).mean(dim + 1)
    return x.permute(0, 3, 1, 2) if channels_last else x


def _for_every_block(x: Tensor, threshold: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
    shape = x.shape[1] // len(threshold), len(threshold)
    return threshold.expand(shape), None if weight is None else weight.expand(shape), x.shape[1]


def _windows(x: Tensor, block: int, out_channels: int, stride: int) -> Tensor:
    # Subsampled, an expansion's windows of `block` adjacent channels side by side: where they all are the same one, it
    # alone. Keeps the memory format.
    channels, channels_last = x.shape[1], is_channels_last(x)
    x = subsampled(x, stride)
    if channels >= out_channels or channels == block:
        return x
    x, dim = (x.permute(0, 2, 3, 1), 3) if channels_last else (x, 1)
    last = out_channels // block - 1
    x = torch.cat([x.narrow(dim, i * (channels - block) // last, block) for i in range(last + 1)], dim)
    return x.permute(0, 3, 1, 2) if channels_last else x


def subsampled(x: Tensor, stride: int) -> Tensor:
    """Every ``stride``-th pixel of ``x`` ``(N, C, *spatial)`` in every spatial dimension."""
    every: tuple[Any, ...] = (..., *(slice(None, None, stride),) * (x.dim() - 2))
    return x if stride == 1 else x[every]


def _separate_bwht1d(
    x: Tensor, threshold: Tensor, weight: Tensor | None, out_channels: int, stride: int, options: Options
) -> Tensor:
    # For thresholds (blocks, B).
    channels_last = is_channels_last(x)
    c = x.dim() - 1 if channels_last else 1
    y = bwht1d_coefficients(x, threshold, weight, out_channels, stride, options)
    z = _fold(y, c, -(-out_channels // threshold.shape[1]))
    y = (
        _scaled(fwht(z, c + 1), 1 / NORMS[options.norm](threshold.shape[1]))
        .flatten(c, c + 1)
        .narrow(c, 0, out_channels)
        .to(x.dtype)
        .contiguous()
    )
    return y.permute(0, 3, 1, 2) if channels_last else y


def bwht1d_coefficients(
    x: Tensor, threshold: Tensor, weight: Tensor | None, out_channels: int, stride: int, options: Options
) -> Tensor:
    """The thresholded coefficients of :func:`bwht1d`, in float32 or more.

    Returns:
        ``(N, blocks, B, *spatial)``; for an input in channels_last ``(N, H, W, blocks, B)``. Blocks that all hold the
        same channels, as in an expansion of B channels by shared thresholds, are there once.
    """
    if threshold.dim() == 1:
        x, stride = _windows(x, len(threshold), out_channels, stride), 1
        threshold, weight, out_channels = _for_every_block(x, threshold, weight)
    channels_last = is_channels_last(x)
    x = subsampled(x, stride)
    if channels_last:
        x = x.permute(0, 2, 3, 1)
    c = x.dim() - 1 if channels_last else 1
    block = threshold.shape[1]
    blocks_in, blocks_out = -(-x.shape[c] // block), -(-out_channels // block)

    # Blocks live on dimension c, the coefficients of a block on dimension c + 1.
    z = _pad(at_least_float32(x), c, blocks_in * block).unflatten(c, (blocks_in, block))
    z = _tile(_scaled(fwht(z, c + 1), NORMS[options.norm](block)), c, blocks_out)
    shape = (*threshold.shape, *(1,) * (z.dim() - c - 2))
    z = z if weight is None else z * weight.reshape(shape)
    t = threshold.reshape(shape)
    return _thresholded(z, t, t.shape[1:], options)


def fwht2d(x: Tensor, threshold: Tensor, weight: Tensor | None, options: Options) -> Tensor:
    """:func:`whtnet.functional.fwht2d` in plain PyTorch."""
    return inverse_fwht_maps(fwht2d_coefficients(x, threshold, weight, options), x, options.norm)


def fwht2d_coefficients(x: Tensor, threshold: Tensor, weight: Tensor | None, options: Options) -> Tensor:
    """The weighted and thresholded coefficients of :func:`fwht2d`, ``(..., C, h, w)`` in float32 or more."""
    z = fwht_maps(x, threshold.shape, options.norm)
    return apply_threshold(z if weight is None else z * weight, threshold, options)


def fwht_maps(x: Tensor, size: Sequence[int], norm: str) -> Tensor:
    """2-D WHT of the maps of ``x`` ``(..., H, W)``, zero-padded to ``size``, in float32 or more."""
    x = _pad(_pad(at_least_float32(x), x.dim() - 2, size[0]), x.dim() - 1, size[1])
    return _scaled(_fwht_maps(x), NORMS[norm](math.prod(size)))


def inverse_fwht_maps(z: Tensor, like: Tensor, norm: str) -> Tensor:
    """Inverse of :func:`fwht_maps`: cropped to the maps of ``like``, in its dtype."""
    y = _scaled(_fwht_maps(z), 1 / NORMS[norm](math.prod(z.shape[-2:])))
    if y.shape != like.shape:
        channels_last = is_channels_last(y)
        y = y[..., : like.shape[-2], : like.shape[-1]]
        y = y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if channels_last else y.contiguous()
    return y.to(like.dtype)


def apply_threshold(z: Tensor, t: Tensor, options: Options) -> Tensor:
    """Threshold the maps of coefficients ``z`` ``(..., h, w)`` with ``t`` ``(h, w)``; coefficient (0, 0) is the DC."""
    return _thresholded(z, t, t.shape, options)


def finish(y: Tensor, epilogue: Epilogue) -> Tensor:
    """What follows a layer's result ``(N, C, *spatial)``, in its dtype."""
    y = y if epilogue.added is None else y + epilogue.added
    shape = (-1, *(1,) * (y.dim() - 2))
    z = (y * epilogue.scale.view(shape) + epilogue.shift.view(shape)).to(y.dtype)
    z = z if epilogue.residual is None else z + epilogue.residual
    return z if (epilogue.low, epilogue.high) == UNBOUNDED else z.clamp(epilogue.low, epilogue.high)


def at_least_float32(x: Tensor) -> Tensor:
    """``x``, in float32 if its dtype has a lower precision."""
    return x if x.dtype.itemsize >= 4 else x.float()


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` is in channels_last, and not contiguous as well."""
    if x.is_contiguous() or x.dim() != 4:
        return False
    try:
        return x.is_contiguous(memory_format=torch.channels_last)
    except RuntimeError:  # vmap can't tell
        return x.permute(0, 2, 3, 1).is_contiguous()


def _thresholded(z: Tensor, t: Tensor, block: torch.Size, options: Options) -> Tensor:
    # block: the dimensions of one transform's coefficients, and those after them
    y = THRESHOLDS[options.kind](z, torch.relu(t) if options.clamp else t)
    return torch.where(_is_first(block, t.device), z, y) if options.keep_dc else y


def _fwht_maps(x: Tensor) -> Tensor:
    if is_channels_last(x):  # transform (N, H, W, C) in place of (N, C, H, W): the same memory, no copy
        return fwht2(x.permute(0, 2, 3, 1), (1, 2)).permute(0, 3, 1, 2)
    return fwht2(x)


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def _pad(x: Tensor, dim: int, size: int) -> Tensor:
    missing = size - x.shape[dim]
    return F.pad(x, (*(0, 0) * (x.dim() - 1 - dim), 0, missing)) if missing else x


def _tile(x: Tensor, dim: int, count: int) -> Tensor:
    # Blocks 0, 1, …, n-1, 0, 1, … until there are `count` of them: an expansion. Already wide enough: unchanged.
    have = x.shape[dim]
    if have >= count:
        return x
    return torch.cat([x] * -(-count // have), dim).narrow(dim, 0, count)


def _fold(x: Tensor, dim: int, count: int) -> Tensor:
    # Sum of the blocks j, j + count, j + 2·count, …: a projection. Already narrow enough: unchanged.
    have = x.shape[dim]
    if have <= count:
        return x
    return _pad(x, dim, -(-have // count) * count).unflatten(dim, (-1, count)).sum(dim)


def _is_first(shape: torch.Size, device: torch.device) -> Tensor:
    return (torch.arange(math.prod(shape), device=device) == 0).view(shape)
