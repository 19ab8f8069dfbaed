"""What the fast backends share: which inputs they take; results of the right shape and memory format."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from whtnet.kernels.reference import is_channels_last

MAX_BLOCK = 4096  # points of a transform: channels of a block, or h·w


def takes(x: Tensor, parameters: Iterable[Tensor | None], points: int, dtypes: Collection[torch.dtype]) -> bool:
    """Whether a kernel for ``dtypes`` takes this input, these parameters and transforms of so many points."""
    dtype = x.dtype
    if dtype not in dtypes or points > MAX_BLOCK:
        return False
    for p in parameters:
        if p is not None and (p.device != x.device or (p.dtype is torch.float64 and dtype is not torch.float64)):
            return False
    return True


def as_stored(x: Tensor) -> tuple[Tensor, torch.memory_format]:
    """The input in a memory format that kernels read, without a copy if it is in one, and that format."""
    if x.is_contiguous():
        return x, torch.contiguous_format
    return (x, torch.channels_last) if is_channels_last(x) else (x.contiguous(), torch.contiguous_format)


def empty_like_input(x: Tensor) -> Tensor:
    """A result of the shape of ``x``: channels_last for an input in channels_last, contiguous for any other."""
    return torch.empty_like(x, memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format)


def empty_gradient(x: Tensor, wanted: bool) -> Tensor:
    """The gradient of the input of a backward operator: as :func:`empty_like_input`, or empty if it is not wanted."""
    return empty_like_input(x) if wanted else x.new_empty(0)


def empty_pixels(x: Tensor, channels: int, stride: int) -> Tensor:
    """A result for ``x`` ``(N, C, *spatial)`` with other channels, subsampled; the memory format as above."""
    spatial = [(s + stride - 1) // stride for s in x.shape[2:]]
    if is_channels_last(x):
        return x.new_empty((x.shape[0], *spatial, channels)).permute(0, 3, 1, 2)
    return x.new_empty((x.shape[0], channels, *spatial))
