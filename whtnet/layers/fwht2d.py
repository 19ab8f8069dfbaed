"""The layer over maps, in place of 3×3 convolutions and squeeze-and-excite blocks, and what is built around it."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whtnet import functional, kernels
from whtnet.kernels.reference import at_least_float32
from whtnet.layers.base import INITIAL_THRESHOLD, SpectralLayer, additions
from whtnet.layers.bwht1d import BWHT1d
from whtnet.layers.checks import check_map, check_sizes, height_and_width
from whtnet.transforms import next_power_of_two


class FWHT2d(SpectralLayer):
    """Two-dimensional Walsh-Hadamard layer, in place of a 3×3 convolution or a squeeze-and-excite block.

    pad H and W to powers of two (h, w) → 2-D WHT of every channel's map → multiply by V → threshold with T → inverse →
    crop → average pooling, if strided. V and T have shape (h, w) and are shared by all channels: ``2·h·w`` parameters
    with weights, ``h·w`` without.

    Shape: ``(..., C, H, W)`` → ``(..., C, ceil(H / stride), ceil(W / stride))``.

    Args:
        size: the feature map, H = W or (H, W), before padding. The layer is bound to it.
        stride: side of the squares over which the result is averaged, as in the authors' released layer. It crops after
            that; here the crop comes first, so that padding is not averaged in, and what is left of a map that
            ``stride`` does not divide is averaged too, so that the size is a strided convolution's (our reading).
        weight: have trainable weights V, initialised to 1.
        residual: add the input to the result. Default False: the layer takes the convolution's place.
        threshold: ``"smooth"`` (the paper's) or ``"soft"``.
        clamp: use relu(T) for T. Default False: the paper's formula as written.
        keep_dc: pass the weighted coefficient (0, 0) through unthresholded. Default False: it is thresholded too.
        norm: as for :class:`BWHT1d`; n = h·w.
        initial_threshold: as for :class:`BWHT1d`; ``"ramp"`` is (i/h + j/w) / 10 in the authors' order.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: for a size or stride below 1, a residual of a strided layer, an unknown threshold or norm; in
            ``forward``, for a map of another size.

    Source: BWHT (ACM TECS 2022), its authors' released layer.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        stride: int = 1,
        weight: bool = True,
        residual: bool = False,
        threshold: str = "smooth",
        clamp: bool = False,
        keep_dc: bool = False,
        norm: str = "ortho",
        initial_threshold: float | str = INITIAL_THRESHOLD,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(threshold, clamp, keep_dc, norm, initial_threshold)
        check_sizes(stride=stride)
        if residual and stride != 1:
            raise ValueError(f"a residual needs stride=1, got {stride}: the input is larger than the result")
        self.size, self.stride, self.residual = height_and_width(size), stride, residual
        padded = tuple(next_power_of_two(s) for s in self.size)
        self.threshold = nn.Parameter(torch.empty(padded, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(padded, device=device, dtype=dtype)) if weight else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the thresholds as ``initial_threshold`` says, the weights to 1."""
        self._reset_threshold(dims=2)
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C, H, W)`` → ``(..., C, ceil(H / stride), ceil(W / stride))``."""
        check_map(self, x)
        if self.stride > 1:  # low-precision means are taken in float32, so that a result is rounded once
            y = kernels.fwht2d(at_least_float32(x), self.threshold, self.weight, self.options)
            return _average_pool(y, self.stride).to(x.dtype)
        y = kernels.fwht2d(x, self._own("threshold"), self._own("weight"), self.options)
        return y.add_(x) if self.residual else y  # in place: nobody else has it

    @property
    def can_finish(self) -> bool:
        """Whether :meth:`finished` is there: the operator's result is the layer's, or lacks the input alone."""
        return self.stride == 1

    def finished(self, x: Tensor, epilogue: kernels.Epilogue) -> Tensor:
        """:meth:`forward` of ``(N, C, H, W)`` and what follows it."""
        check_map(self, x)
        epilogue = epilogue._replace(added=x) if self.residual else epilogue
        return kernels.fwht2d(x, self._own("threshold"), self._own("weight"), self.options, epilogue)

    def coefficients(self, x: Tensor) -> Tensor:
        """``(..., C, H, W)`` → ``(..., C, h, w)``, H and W rounded up to powers of two."""
        check_map(self, x)
        return functional.fwht2d_coefficients(x, self.threshold, self.weight, self.options)

    def wht_additions(self, input_shape: tuple[int, ...]) -> int:
        """Additions of the transforms of all maps, forward and inverse."""
        return 2 * math.prod(input_shape[:-2]) * additions(self.threshold.numel())

    def extra_repr(self) -> str:
        """Size and settings, as torch.nn layers show theirs."""
        stride = f", stride={self.stride}" if self.stride != 1 else ""
        residual = ", residual=True" if self.residual else ""
        return f"{self.size}, weight={self.weight is not None}{stride}{residual}, {super().extra_repr()}"


class SeparableFWHT2d(nn.Module):
    """Channels, then maps: a 1-D layer where the number of channels changes, then the 2-D layer, strided or not.

    In place of a 3×3 convolution that changes the number of channels or has a stride, as in the authors' released code;
    where it does neither this is :class:`FWHT2d`.

    Shape: ``(N, C_in, H, W)`` → ``(N, C_out, ceil(H / stride), ceil(W / stride))``. The parameters of both layers:
    ``channels``, a :class:`BWHT1d` or nothing, and ``maps``, an :class:`FWHT2d`.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        size: the feature map going in, H = W or (H, W). The layer is bound to it.
        stride: side of the squares over which the result is averaged.
        block_size: of the 1-D layer, see :class:`BWHT1d`.
        weight: have trainable weights V, initialised to 1, in both layers.
        residual: add the 2-D layer's input to its result where it is not strided.
        device: device of the parameters.
        dtype: dtype of the parameters.
        options: further keywords that both layers have.

    Raises:
        ValueError: as both layers.

    Source: BWHT (ACM TECS 2022), its authors' released layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int | tuple[int, int],
        *,
        stride: int = 1,
        block_size: int | None = None,
        weight: bool = True,
        residual: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        both = {"weight": weight, "device": device, "dtype": dtype, **options}
        changes = in_channels != out_channels
        self.channels = BWHT1d(in_channels, out_channels, block_size=block_size, **both) if changes else nn.Identity()
        self.maps = FWHT2d(size, stride=stride, residual=residual and stride == 1, **both)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, H, W)`` → ``(N, C_out, ceil(H / stride), ceil(W / stride))``."""
        return self.maps(self.channels(x))


class NormedFWHT2d(nn.Module):
    """Base of :class:`FWHT2d` with a batch norm of its own, with or without a residual around both.

    Shape: ``(N, C, H, W)`` → the same. ``2·h·w + 2·C`` parameters.

    Args:
        num_channels: C.
        size: the feature map, H = W or (H, W).
        residual: add the input to the result. Default False.
        device: device of the parameters.
        dtype: dtype of the parameters.
        options: further keywords of :class:`FWHT2d`.
    """

    def __init__(
        self,
        num_channels: int,
        size: int | tuple[int, int],
        *,
        residual: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.fwht = FWHT2d(size, device=device, dtype=dtype, **options)
        self.norm = nn.BatchNorm2d(num_channels, device=device, dtype=dtype)
        self.residual = residual

    def _branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` → the same shape."""
        y = self._branch(x)
        return x + y if self.residual else y

    def extra_repr(self) -> str:
        """Whether a residual surrounds the layer."""
        return f"residual={self.residual}"


class PreGAPFWHT2d(NormedFWHT2d):
    """What goes before global average pooling: the 2-D layer, then batch norm. Arguments and shape: the base's.

    Source: BWHT (ACM TECS 2022), without a residual; the batch norm follows the authors' later work.
    """

    def _branch(self, x: Tensor) -> Tensor:
        return self.norm(self.fwht(x))


class PreNormFWHT2d(NormedFWHT2d):
    """Batch norm, then the 2-D layer, so that thresholds meet maps of mean 0 and variance 1; beyond the paper.

    In place of a 3×3 convolution; arguments and shape: the base's.
    """

    def _branch(self, x: Tensor) -> Tensor:
        return self.fwht(self.norm(x))


def _average_pool(x: Tensor, stride: int) -> Tensor:
    maps = F.avg_pool2d(x if x.dim() in (3, 4) else x.flatten(0, -4), stride, ceil_mode=True)
    return maps if x.dim() in (3, 4) else maps.unflatten(0, x.shape[:-3])
