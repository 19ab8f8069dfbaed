"""The layer over channels, in place of 1×1 convolutions."""

import math

import torch
from torch import Tensor, nn

from whtnet import functional, kernels
from whtnet.layers.base import INITIAL_THRESHOLD, SpectralLayer, additions
from whtnet.layers.checks import channels_first, check_channel_layer
from whtnet.transforms import is_power_of_two, next_power_of_two

BLOCKS = ("shared", "separate")


class BWHT1d(SpectralLayer):
    r"""Block Walsh-Hadamard layer over channels, in place of a 1×1 convolution.

    Block WHT along channels → weights V → threshold with T → inverse block WHT. There is no bias. Three forms, written
    out in :func:`whtnet.functional.bwht1d`:

    - ``block_size=B`` (``blocks="shared"``): the BWHT authors' released layer. All blocks share T and V: 2·B
      parameters.
    - ``block_size=None``: FWHT-2021's layer, one block of the next power of two P of ``max(C_in, C_out)``, zero-padded
      and cropped, with P thresholds and no weights.
    - ``block_size=B, blocks="separate"``: an ablation, every block with thresholds of its own and no weights:
      ``B · ceil(max(C_in, C_out) / B)`` parameters (our reading of BWHT before its layer was found).

    Shape: ``(N, C_in, *spatial)`` → ``(N, C_out, *ceil(spatial / stride))``.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        stride: every spatial dimension is subsampled first, as a strided 1×1 convolution does.
        block_size: B, a power of two, or None for one block. Shared blocks need a B that divides C_in, and C_out where
            that is larger.
        blocks: ``"shared"`` or ``"separate"``; without a block size there is one block, and no difference.
        weight: have trainable weights V, initialised to 1. None (default): shared blocks have them, the others not.
        threshold: ``"smooth"``, ``tanh(x) · max(|x| − T, 0)``, as the paper, or ``"soft"``,
            ``sign(x) · max(|x| − T, 0)``.
        clamp: use relu(T) for T, as HT-2023 does. Default False: the paper's formula as written, in which a trained T
            may turn negative.
        keep_dc: pass coefficient 0 of each block through unthresholded, as FWHT-2021's code does (its threshold then
            exists, and is counted, but is unused). Default False: all coefficients are thresholded, as in the formula.
        norm: scale of the coefficients that meet the thresholds. ``"ortho"`` (default): the input's own, by H/√n both
            ways, as in the code of FWHT-2021 and BWHT. ``"backward"``: by H forwards and H/n back, as in HT-2023's
            code; coefficients are √n times as large, and tanh in the smooth threshold is close to their sign.
        initial_threshold: of the thresholds at first: the upper end of a uniform distribution (default 0.1, the
            authors' in FWHT-2021), or ``"ramp"``, i / (10·B) for i = 0, …, B − 1 in the authors' order, as in their
            released BWHT layer (see :func:`whtnet.released_order`): the DC coefficient begins at 0.
        channel_dim: 1, or −1 for an input ``(N, *spatial, C_in)``, as ConvNeXt's pointwise linear layers take it; the
            result then has its channels last as well.
        interleave: permute the output channels so that neighbours come from different blocks (as ShuffleNet does).
            Default False; beyond the paper: without it, channels in different blocks hardly mix inside a layer.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: for sizes below 1, a block size that is no power of two or does not divide the channels, an unknown
            form, threshold or norm, another dimension; in ``forward``, for an input with another number of channels.

    Source: BWHT (ACM TECS 2022), its authors' released layer; one block: FWHT-2021 (arXiv 2104.07085).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        block_size: int | None = None,
        blocks: str = "shared",
        weight: bool | None = None,
        threshold: str = "smooth",
        clamp: bool = False,
        keep_dc: bool = False,
        norm: str = "ortho",
        initial_threshold: float | str = INITIAL_THRESHOLD,
        interleave: bool = False,
        channel_dim: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(threshold, clamp, keep_dc, norm, initial_threshold)
        check_channel_layer(in_channels, out_channels, stride, channel_dim)
        if block_size is not None and not is_power_of_two(block_size):
            raise ValueError(f"block_size must be a power of two, or None for one block; got {block_size}")
        if blocks not in BLOCKS:
            raise ValueError(f"unknown blocks {blocks!r}; choose one of {', '.join(BLOCKS)}")
        wide = max(in_channels, out_channels)
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.block_size = block_size or next_power_of_two(wide)
        self.shared = block_size is not None and blocks == "shared"
        if self.shared:
            _check_divides(self.block_size, in_channels, out_channels)
            if interleave:
                raise ValueError("interleave=True is for blocks='separate': a projection of shared blocks takes means")
        self.interleave = interleave
        self.channel_dim = channel_dim
        shape = (self.block_size,) if self.shared else (-(-wide // self.block_size), self.block_size)
        self.threshold = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        weighted = self.shared if weight is None else weight
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if weighted else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the thresholds as ``initial_threshold`` says, the weights to 1."""
        self._reset_threshold(dims=1)
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, *spatial)`` → ``(N, C_out, *ceil(spatial / stride))``."""
        x = channels_first(self, x)
        threshold, weight = self._own("threshold"), self._own("weight")
        y = kernels.bwht1d(x, threshold, weight, self.out_channels, self.stride, self.options)
        if self.interleave:
            y = functional.channel_interleave(y, self.block_size)
        return y.movedim(1, -1) if self.channel_dim == -1 else y

    @property
    def can_finish(self) -> bool:
        """Whether :meth:`finished` is there: the operator's result is the layer's."""
        return not self.interleave and self.channel_dim == 1

    def finished(self, x: Tensor, epilogue: kernels.Epilogue) -> Tensor:
        """:meth:`forward` and what follows it."""
        x, t, v = channels_first(self, x), self._own("threshold"), self._own("weight")
        return kernels.bwht1d(x, t, v, self.out_channels, self.stride, self.options, epilogue)

    def coefficients(self, x: Tensor) -> Tensor:
        """See :func:`whtnet.functional.bwht1d_coefficients` for the shape."""
        x = channels_first(self, x)
        return functional.bwht1d_coefficients(
            x, self.threshold, self.out_channels, self.weight, self.stride, self.options
        )

    def wht_additions(self, input_shape: tuple[int, ...]) -> int:
        """Additions of the block transforms of every pixel's channels, and of the sums of a projection."""
        spatial = input_shape[2:] if self.channel_dim == 1 else input_shape[1:-1]
        pixels = input_shape[0] * math.prod(-(-s // self.stride) for s in spatial)
        blocks = [-(-c // self.block_size) for c in (self.in_channels, self.out_channels)]
        sums = max(0, blocks[0] - blocks[1]) * self.block_size
        if self.shared:  # as many transforms back as forth; all windows of one block are the same one
            overlapping = self.in_channels < self.out_channels and blocks[0] > 1
            blocks = [blocks[1] if overlapping else blocks[0]] * 2
            sums = max(0, self.in_channels - self.in_channels // (self.in_channels // self.out_channels or 1))
        return pixels * (sum(blocks) * additions(self.block_size) + sums)

    def extra_repr(self) -> str:
        """Channels and settings, as torch.nn layers show theirs."""
        parts = [f"{self.in_channels}, {self.out_channels}", f"block_size={self.block_size}"]
        if self.shared or len(self.threshold) > 1:
            parts.append(f"blocks={BLOCKS[not self.shared]}")
        if self.shared != (self.weight is not None):
            parts.append(f"weight={self.weight is not None}")
        if self.stride != 1:
            parts.append(f"stride={self.stride}")
        if self.interleave:
            parts.append("interleave=True")
        if self.channel_dim != 1:
            parts.append(f"channel_dim={self.channel_dim}")
        return ", ".join([*parts, super().extra_repr()])


def _check_divides(block: int, in_channels: int, out_channels: int) -> None:
    sides = [in_channels, out_channels] if out_channels > in_channels else [in_channels]
    common = math.gcd(*sides)
    if common % block:
        largest = common & -common
        raise ValueError(
            f"block_size={block} does not divide {' and '.join(map(str, sides))} channels; take a power of two up to "
            f"{largest}, or blocks='separate', or block_size=None, which pad"
        )
