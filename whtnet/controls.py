"""Controls: what stands in a layer's place without its transform, to show what the transform is worth."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from whtnet.kernels.reference import subsampled
from whtnet.layers.base import FxLeaf
from whtnet.layers.checks import channels_first, check_channel_layer, check_sizes


class CropOrTile(FxLeaf):
    """What is left of :class:`whtnet.layers.BWHT1d` without transform, weights and thresholds: no parameters.

    - ``block_size=None``, as one block: channels are padded with zeros, or cropped.
    - ``block_size=B``, as shared blocks: an expansion puts C_out / B windows of B adjacent channels side by side,
      spread evenly over the input (B = C_in tiles it); a projection takes the mean over every C_in // C_out adjacent
      channels, and crops.

    Shape: ``(N, C_in, *spatial)`` → ``(N, C_out, *ceil(spatial / stride))``.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        stride: every spatial dimension is subsampled first, as a strided 1×1 convolution does.
        block_size: B, or None for one block.
        channel_dim: 1, or −1 for an input ``(N, *spatial, C_in)``.

    Raises:
        ValueError: for sizes below 1, another dimension, a block that does not divide both sides of an expansion; in
            ``forward``, for an input with another number of channels.

    Source: a control of our own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        block_size: int | None = None,
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        check_channel_layer(in_channels, out_channels, stride, channel_dim)
        if block_size is not None:
            check_sizes(block_size=block_size)
        if block_size is not None and in_channels < out_channels and math.gcd(in_channels, out_channels) % block_size:
            raise ValueError(f"block_size={block_size} does not divide {in_channels} and {out_channels} channels")
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.block_size, self.channel_dim = block_size, channel_dim

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, *spatial)`` → ``(N, C_out, *ceil(spatial / stride))``."""
        x = channels_first(self, x)
        y = self._resized(subsampled(x, self.stride))
        return y.movedim(1, self.channel_dim)

    def _resized(self, x: Tensor) -> Tensor:
        missing = self.out_channels - self.in_channels
        if missing <= 0:
            group = 1 if self.block_size is None else self.in_channels // self.out_channels
            kept = x[:, : group * self.out_channels]
            return kept if group == 1 else _means(kept, group)
        if self.block_size is None:
            return F.pad(x, (*(0, 0) * (x.dim() - 2), 0, missing))
        return torch.cat([x.narrow(1, start, self.block_size) for start in self._starts(self.block_size)], 1)

    def _starts(self, block: int) -> list[int]:
        """Of the windows, as the released layer places them."""
        windows = self.out_channels // block
        return [i * (self.in_channels - block) // max(1, windows - 1) for i in range(windows)]

    def extra_repr(self) -> str:
        """Channels and settings, as torch.nn layers show theirs."""
        channel_dim = ", channel_dim=-1" if self.channel_dim == -1 else ""
        return (
            f"{self.in_channels}, {self.out_channels}, block_size={self.block_size}, stride={self.stride}{channel_dim}"
        )


def _means(x: Tensor, group: int) -> Tensor:
    """Of every ``group`` adjacent channels; channels_last, or its first channels, stays in channels_last."""
    if x.dim() == 4 and x.stride(1) == 1:
        return x.permute(0, 2, 3, 1).unflatten(-1, (-1, group)).mean(-1).permute(0, 3, 1, 2)
    return x.unflatten(1, (-1, group)).mean(2)
