"""The layers as functions of their input and parameters, in plain PyTorch: the definition, and the exportable path.

Everything is computed in at least float32 (the input may be bfloat16 or float16) and returned in the input's dtype.
Inputs in channels_last come back in channels_last, without a copy on the way.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from whtnet.thresholds import THRESHOLDS
from whtnet.transforms import fwht, fwht2


def bwht1d(
    x: Tensor,
    threshold: Tensor,
    out_channels: int,
    *,
    kind: str = "smooth",
    clamp: bool = False,
    keep_dc: bool = False,
    stride: int = 1,
) -> Tensor:
    """Block Walsh-Hadamard layer over channels: pad → block WHT → threshold → inverse → crop.

    With n blocks on the narrow side, block j of the wide side is paired with block j mod n (our reading): an expansion
    uses every input block several times, a projection sums the thresholded blocks that share an output block.

    Args:
        x: ``(N, C_in, *spatial)``.
        threshold: ``(blocks, B)`` with B a power of two and ``blocks = ceil(max(C_in, C_out) / B)``.
        out_channels: C_out.
        kind: ``"smooth"`` or ``"soft"``.
        clamp: use ``relu(threshold)``.
        keep_dc: pass coefficient 0 of each block through as it is.
        stride: subsample every spatial dimension first, as a strided 1×1 convolution does.

    Returns:
        ``(N, C_out, *ceil(spatial / stride))``, in the dtype and memory format of ``x``.
    """
    channels_last = _is_channels_last(x)
    if stride != 1:
        x = x[(..., *(slice(None, None, stride),) * (x.dim() - 2))]
    if channels_last:
        x = x.permute(0, 2, 3, 1)
    c = x.dim() - 1 if channels_last else 1
    block = threshold.shape[1]
    blocks_in, blocks_out = -(-x.shape[c] // block), -(-out_channels // block)

    # Blocks live on dimension c, the coefficients of a block on dimension c + 1.
    z = _pad(_widen(x), c, blocks_in * block).unflatten(c, (blocks_in, block))
    z = _tile(fwht(z, c + 1), c, blocks_out)
    t = threshold.reshape(*threshold.shape, *(1,) * (z.dim() - c - 2))
    y = THRESHOLDS[kind](z, torch.relu(t) if clamp else t)
    if keep_dc:
        y = torch.where(_is_first(block, x.device).view(t.shape[1:]), z, y)
    z = _fold(y, c, blocks_out)
    y = fwht(z, c + 1).flatten(c, c + 1).narrow(c, 0, out_channels).to(x.dtype).contiguous()
    return y.permute(0, 3, 1, 2) if channels_last else y


def fwht2d(
    x: Tensor,
    threshold: Tensor,
    weight: Tensor | None = None,
    *,
    kind: str = "smooth",
    clamp: bool = False,
    keep_dc: bool = False,
) -> Tensor:
    """Two-dimensional Walsh-Hadamard layer: pad → 2-D WHT of every map → weights → threshold → inverse → crop.

    Args:
        x: ``(..., C, H, W)``.
        threshold: T, ``(h, w)``: H and W rounded up to powers of two; shared by all channels.
        weight: V, ``(h, w)``, or None for all ones.
        kind: ``"smooth"`` or ``"soft"``.
        clamp: use ``relu(threshold)``.
        keep_dc: pass the weighted coefficient (0, 0) through unthresholded.

    Returns:
        Tensor of the shape, dtype and memory format of ``x``.
    """
    z = fwht_maps(x, threshold.shape)
    if weight is not None:
        z = z * weight
    return inverse_fwht_maps(apply_threshold(z, threshold, kind, clamp, keep_dc), x)


def fwht_maps(x: Tensor, size: tuple[int, int]) -> Tensor:
    """2-D WHT of the maps of ``x`` ``(..., H, W)``, zero-padded to ``size``, in float32 or more."""
    x = _pad(_pad(_widen(x), x.dim() - 2, size[0]), x.dim() - 1, size[1])
    if _is_channels_last(x):  # transform (N, H, W, C) in place of (N, C, H, W): the same memory, no copy
        return fwht2(x.permute(0, 2, 3, 1), (1, 2)).permute(0, 3, 1, 2)
    return fwht2(x)


def inverse_fwht_maps(z: Tensor, like: Tensor) -> Tensor:
    """Inverse of :func:`fwht_maps`: cropped to the maps of ``like``, in its dtype."""
    y = fwht_maps(z, z.shape[-2:])
    if y.shape != like.shape:
        memory_format = torch.channels_last if _is_channels_last(y) else torch.contiguous_format
        y = y[..., : like.shape[-2], : like.shape[-1]].contiguous(memory_format=memory_format)
    return y.to(like.dtype)


def apply_threshold(z: Tensor, t: Tensor, kind: str, clamp: bool, keep_dc: bool) -> Tensor:
    """Threshold the maps of coefficients ``z`` ``(..., h, w)`` with ``t`` ``(h, w)``; coefficient (0, 0) is the DC."""
    y = THRESHOLDS[kind](z, torch.relu(t) if clamp else t)
    return torch.where(_is_first(t.numel(), t.device).view(t.shape), z, y) if keep_dc else y


def channel_interleave(x: Tensor, block: int) -> Tensor:
    """Permute channels so that neighbours come from different blocks, as ShuffleNet does between grouped convolutions.

    Args:
        x: ``(N, C, *spatial)``.
        block: B; channel i belongs to block i // B. Afterwards the first channels of all blocks come first, then the
            second ones, and so on.
    """
    channels = x.shape[1]
    index = torch.arange(channels, device=x.device)
    order = torch.argsort(index % block * channels + index // block)
    if _is_channels_last(x):
        return x.permute(0, 2, 3, 1).index_select(3, order).permute(0, 3, 1, 2)
    return x.index_select(1, order)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


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


def _is_first(n: int, device: torch.device) -> Tensor:
    return torch.arange(n, device=device) == 0
