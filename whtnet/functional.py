"""The layers as functions of their input and parameters.

Each is one operator with several implementations, see :mod:`whtnet.kernels`: plain PyTorch
(:mod:`whtnet.kernels.reference`) is the definition and the exportable path; a fused kernel takes over where there is
one for the input. Everything is computed in at least float32 (the input may be bfloat16 or float16) and returned in its
dtype. Inputs in channels_last come back in channels_last, without a copy on the way.
"""

import torch
from torch import Tensor

from whtnet import kernels
from whtnet.kernels import reference
from whtnet.kernels.options import Options
from whtnet.kernels.reference import (
    NORMS,
    fwht2d_coefficients,
)

__all__ = [
    "NORMS",
    "Options",
    "bwht1d",
    "bwht1d_coefficients",
    "channel_interleave",
    "fwht2d",
    "fwht2d_coefficients",
]


def bwht1d(
    x: Tensor,
    threshold: Tensor,
    out_channels: int,
    weight: Tensor | None = None,
    *,
    kind: str = "smooth",
    clamp: bool = False,
    keep_dc: bool = False,
    norm: str = "ortho",
    stride: int = 1,
) -> Tensor:
    """Block Walsh-Hadamard layer over channels: block WHT → weights → threshold → inverse.

    The shape of the thresholds says which form it is.

    - ``(B,)``: all blocks share them, as in the authors' released layer. An expansion takes C_out / B windows of B
      channels, spread evenly over the input so that they overlap; a projection takes C_in / B blocks one after the
      other, and the mean over every C_in // C_out adjacent channels of what comes back, cropped to C_out.
    - ``(blocks, B)`` with ``blocks = ceil(max(C_in, C_out) / B)``: each block has its own; both sides are padded to
      whole blocks, and cropped. With n blocks on the narrow side, block j of the wide side is paired with block j mod n
      (our reading): an expansion uses every input block several times, a projection sums the thresholded blocks that
      share an output block. One block, ``(1, B)``, is FWHT-2021's layer.

    Args:
        x: ``(N, C_in, *spatial)``.
        threshold: T, ``(B,)`` or ``(blocks, B)``, B a power of two.
        out_channels: C_out.
        weight: V, of the shape of T, or None for all ones.
        kind: ``"smooth"`` or ``"soft"``.
        clamp: use ``relu(threshold)``.
        keep_dc: pass coefficient 0 of each block through as it is.
        norm: scale of the coefficients that meet the thresholds: ``"ortho"``, that of the input; ``"backward"``, as
            HT-2023's code has it: the matrix of ±1 forwards, and divided by the number of points back.
        stride: subsample every spatial dimension first, as a strided 1×1 convolution does.

    Returns:
        ``(N, C_out, *ceil(spatial / stride))``, in the dtype and memory format of ``x``.
    """
    return kernels.bwht1d(x, threshold, weight, out_channels, stride, Options(kind, clamp, keep_dc, norm))


def bwht1d_coefficients(
    x: Tensor,
    threshold: Tensor,
    out_channels: int,
    weight: Tensor | None,
    stride: int,
    options: Options,
) -> Tensor:
    """The thresholded coefficients of :func:`bwht1d`, in float32 or more.

    Returns:
        ``(N, blocks, B, *spatial)``; for an input in channels_last ``(N, H, W, blocks, B)``. Blocks that all hold the
        same channels, as in an expansion of B channels, are there once.
    """
    return reference.bwht1d_coefficients(x, threshold, weight, out_channels, stride, options)


def fwht2d(
    x: Tensor,
    threshold: Tensor,
    weight: Tensor | None = None,
    *,
    kind: str = "smooth",
    clamp: bool = False,
    keep_dc: bool = False,
    norm: str = "ortho",
) -> Tensor:
    """Two-dimensional Walsh-Hadamard layer: pad → 2-D WHT of every map → weights → threshold → inverse → crop.

    Args:
        x: ``(..., C, H, W)``.
        threshold: T, ``(h, w)``: H and W rounded up to powers of two; shared by all channels.
        weight: V, ``(h, w)``, or None for all ones.
        kind: ``"smooth"`` or ``"soft"``.
        clamp: use ``relu(threshold)``.
        keep_dc: pass the weighted coefficient (0, 0) through unthresholded.
        norm: as for :func:`bwht1d`; a map has h·w points.

    Returns:
        Tensor of the shape, dtype and memory format of ``x``.
    """
    return kernels.fwht2d(x, threshold, weight, Options(kind, clamp, keep_dc, norm))


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
    if reference.is_channels_last(x):
        return x.permute(0, 2, 3, 1).index_select(3, order).permute(0, 3, 1, 2)
    return x.index_select(1, order)
