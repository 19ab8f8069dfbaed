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
from whtnet.kernels.reference import (
    NORMS,
    apply_threshold,
    bwht1d_coefficients,
    fwht2d_coefficients,
    fwht_maps,
    inverse_fwht_maps,
)

__all__ = [
    "NORMS",
    "apply_threshold",
    "bwht1d",
    "bwht1d_coefficients",
    "channel_interleave",
    "fwht2d",
    "fwht2d_coefficients",
    "fwht_maps",
    "inverse_fwht_maps",
]


def bwht1d(
    x: Tensor,
    threshold: Tensor,
    out_channels: int,
    *,
    kind: str = "smooth",
    clamp: bool = False,
    keep_dc: bool = False,
    norm: str = "ortho",
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
        norm: scale of the coefficients that meet the thresholds: ``"ortho"``, that of the input; ``"backward"``, as
            HT-2023's code has it: the matrix of ±1 forwards, and divided by the number of points back.
        stride: subsample every spatial dimension first, as a strided 1×1 convolution does.

    Returns:
        ``(N, C_out, *ceil(spatial / stride))``, in the dtype and memory format of ``x``.
    """
    layer = reference.bwht1d if kernels.backend_for(x, threshold) == "reference" else kernels.bwht1d
    return layer(x, threshold, out_channels, kind=kind, clamp=clamp, keep_dc=keep_dc, norm=norm, stride=stride)


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
    layer = reference.fwht2d if kernels.backend_for(x, threshold, weight) == "reference" else kernels.fwht2d
    return layer(x, threshold, weight, kind=kind, clamp=clamp, keep_dc=keep_dc, norm=norm)


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
