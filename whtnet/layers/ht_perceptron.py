"""The layer over maps that mixes channels too; beyond the paper (HT-2023)."""

import functools
import math
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whtnet import functional, kernels
from whtnet.kernels.options import UNBOUNDED
from whtnet.kernels.reference import at_least_float32
from whtnet.layers.base import INITIAL_THRESHOLD, SpectralLayer, additions
from whtnet.layers.checks import check_map, check_sizes, height_and_width
from whtnet.transforms import next_power_of_two

UNIFORM = "uniform"  # HT-2023's initial weights


class HTPerceptron2d(SpectralLayer):
    """Hadamard-transform perceptron with P paths, in place of a 3×3 convolution; beyond the paper (HT-2023).

    ``y = H⁻¹[ Σ_p soft(conv1x1_p(V_p ∘ Hx); T_p) ]``, plus x when P = 1: a spectral scaling, a 1×1 convolution without
    bias and a threshold per path. ``P · (2·h·w + C_in·C_out)`` parameters.

    Shape: ``(N, C_in, H, W)`` → ``(N, C_out, H, W)``.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        size: the feature map, H = W or (H, W), before padding. The layer is bound to it.
        paths: P.
        residual: add x to the result; None (default) does so when P = 1, as HT-2023, and C_in = C_out.
        threshold: ``"soft"`` (HT-2023's, the default) or ``"smooth"``.
        clamp: use relu(T) for T (HT-2023's, the default).
        keep_dc: pass the coefficients (0, 0) of the convolution's result through unthresholded.
        norm: as for :class:`BWHT1d`, but ``"backward"`` (HT-2023's) is the default.
        initial_threshold: as for :class:`FWHT2d`.
        initial_weight: of V at first: ``"uniform"``, drawn from U(0, 1) (HT-2023's, the default), or a number.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: for sizes, channels or paths below 1, an unknown threshold, norm or initial value, a residual with
            ``in_channels != out_channels``; in ``forward``, for another number of channels or size of the map.

    Source: HT-2023 (ICML 2023, arXiv 2305.17510).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int | tuple[int, int],
        *,
        paths: int = 1,
        residual: bool | None = None,
        threshold: str = "soft",
        clamp: bool = True,
        keep_dc: bool = False,
        norm: str = "backward",
        initial_threshold: float | str = INITIAL_THRESHOLD,
        initial_weight: float | str = UNIFORM,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(threshold, clamp, keep_dc, norm, initial_threshold)
        if initial_weight != UNIFORM and (isinstance(initial_weight, str) or not math.isfinite(initial_weight)):
            raise ValueError(f"initial_weight must be a number or {UNIFORM!r}, got {initial_weight!r}")
        self.initial_weight = initial_weight
        check_sizes(in_channels=in_channels, out_channels=out_channels, paths=paths)
        self.in_channels, self.out_channels, self.paths = in_channels, out_channels, paths
        self.residual = paths == 1 and in_channels == out_channels if residual is None else residual
        if self.residual and in_channels != out_channels:
            raise ValueError(f"a residual needs in_channels == out_channels, got {in_channels} and {out_channels}")
        self.size = height_and_width(size)
        padded = tuple(next_power_of_two(s) for s in self.size)
        self.threshold = nn.Parameter(torch.empty(paths, *padded, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(paths, *padded, device=device, dtype=dtype))
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, 1, bias=False, device=device, dtype=dtype) for _ in range(paths)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Thresholds and weights as their options say, 1×1 convolutions as torch.nn.Conv2d draws its own."""
        self._reset_threshold(dims=2)
        if isinstance(self.initial_weight, str):
            nn.init.uniform_(self.weight)
        else:
            nn.init.constant_(self.weight, self.initial_weight)
        for conv in self.path_convs():
            conv.reset_parameters()

    def path_convs(self) -> Iterable[nn.Conv2d]:
        """The 1×1 convolution of each path."""
        return cast("Iterable[nn.Conv2d]", self.convs)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, H, W)`` → ``(N, C_out, H, W)``."""
        paths = [kernels.fwht2d(z, t, v, self.options) for z, t, v in self._paths(x)]
        y = functools.reduce(torch.add, paths).to(x.dtype)
        return y.add_(x) if self.residual else y  # in place: nobody else has it

    @property
    def can_finish(self) -> bool:
        """Whether :meth:`finished` is there: always."""
        return True

    def finished(self, x: Tensor, epilogue: kernels.Epilogue) -> Tensor:
        """:meth:`forward` and what follows it: every path adds those before it, scaled; the last one is shifted too."""
        if at_least_float32(x) is not x:  # paths are summed in float32, and rounded before anything follows
            return kernels.finish(self.forward(x), epilogue)
        epilogue = epilogue._replace(added=x) if self.residual else epilogue
        *others, (z, t, v) = self._paths(x)
        for path in others:
            so_far = kernels.Epilogue(epilogue.scale, torch.zeros_like(epilogue.shift), epilogue.residual, *UNBOUNDED)
            epilogue = epilogue._replace(residual=kernels.fwht2d(*path, self.options, so_far))
        return kernels.fwht2d(z, t, v, self.options, epilogue)

    def coefficients(self, x: Tensor) -> Tensor:
        """``(N, C_in, H, W)`` → ``(P, N, C_out, h, w)``, H and W rounded up to powers of two."""
        return torch.stack([functional.fwht2d_coefficients(z, t, v, self.options) for z, t, v in self._paths(x)])

    def _paths(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        # The convolution mixes channels, the transform and V act on maps: in which order does not matter, nor for the
        # sum and the transform back. So a path is a 1×1 convolution and then the layer FWHT2d.
        check_map(self, x)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"HTPerceptron2d takes (N, {self.in_channels}, H, W), got shape {tuple(x.shape)}")
        wide = at_least_float32(x)  # coefficients and sums are at least float32
        threshold, weight = self._own("threshold"), self._own("weight")
        for p, conv in enumerate(self.path_convs()):
            mix = conv.weight if conv.weight.dtype is wide.dtype else conv.weight.to(wide.dtype)
            yield F.conv2d(wide, mix), threshold[p], weight[p]

    def wht_additions(self, input_shape: tuple[int, ...]) -> int:
        """Additions of the transforms of all maps in and out, once, and of the sums over paths, as in the formula."""
        points = math.prod(self.threshold.shape[1:])
        maps = self.in_channels + self.out_channels
        return input_shape[0] * (maps * additions(points) + (self.paths - 1) * self.out_channels * points)

    def extra_repr(self) -> str:
        """Channels, size and settings, as torch.nn layers show theirs."""
        weight = f", initial_weight={self.initial_weight}" if self.initial_weight != UNIFORM else ""
        return (
            f"{self.in_channels}, {self.out_channels}, {self.size}, paths={self.paths}, residual={self.residual}, "
            f"{super().extra_repr()}{weight}"
        )
