"""The Walsh-Hadamard layers as modules: parameters, their initial values, checks; the arithmetic is in `functional`.

Every layer draws its thresholds from U(0, 0.1) unless told otherwise, and names its trainable transform-domain
parameters in ``spectral_parameters``, so that an optimiser can treat them apart (see
:func:`spectral_parameter_names`).
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from whtnet import functional, kernels
from whtnet.kernels.options import UNBOUNDED
from whtnet.thresholds import THRESHOLDS
from whtnet.transforms import is_power_of_two, next_power_of_two, released_order

INITIAL_THRESHOLD = 0.1  # upper end of the uniform distribution, from the authors' layer code
RAMP = "ramp"  # the released layers' initial thresholds
UNIFORM = "uniform"  # HT-2023's initial weights
BLOCKS = ("shared", "separate")


def fx_leaf(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``forward`` of a module that torch.fx keeps whole, as it does those of torch.nn."""

    @functools.wraps(forward)
    def forward_or_node(self: nn.Module, x: Tensor, *others: Any) -> Tensor:
        if isinstance(x, Proxy):
            path = x.tracer.path_of_module(self)
            if not path:
                raise ValueError(
                    f"torch.fx keeps a {type(self).__name__} whole, so it can't be what is traced; trace what contains "
                    "it, nn.Sequential(layer), say"
                )
            return x.tracer.create_proxy("call_module", path, (x, *others), {})
        return forward(self, x, *others)

    return forward_or_node


class SpectralLayer(nn.Module):
    """Base of the layers: what they share about thresholds."""

    spectral_parameters: ClassVar[tuple[str, ...]] = ("threshold", "weight")
    threshold: nn.Parameter

    def __init__(self, threshold: str, clamp: bool, keep_dc: bool, norm: str, initial_threshold: float | str) -> None:
        super().__init__()
        if initial_threshold != RAMP and (isinstance(initial_threshold, str) or not 0 <= initial_threshold < math.inf):
            raise ValueError(f"initial_threshold must be a number from 0 or {RAMP!r}, got {initial_threshold!r}")
        if threshold not in THRESHOLDS:
            raise ValueError(f"unknown threshold {threshold!r}; choose one of {', '.join(THRESHOLDS)}")
        if norm not in functional.NORMS:
            raise ValueError(f"unknown norm {norm!r}; choose one of {', '.join(functional.NORMS)}")
        self.options = functional.Options(threshold, clamp, keep_dc, norm)
        self.initial_threshold = initial_threshold

    def _own(self, name: str) -> Any:
        # As getattr(self, name), without the detour that nn.Module takes to a parameter that is one.
        parameter = self._parameters.get(name)
        return getattr(self, name) if parameter is None else parameter

    @property
    def threshold_kind(self) -> str:
        """``"smooth"`` or ``"soft"``."""
        return self.options.kind

    @property
    def clamp(self) -> bool:
        """Whether relu(T) stands for T."""
        return self.options.clamp

    @property
    def keep_dc(self) -> bool:
        """Whether coefficient 0 is not thresholded."""
        return self.options.keep_dc

    @property
    def norm(self) -> str:
        """Scale of the coefficients, ``"ortho"`` or ``"backward"``."""
        return self.options.norm

    def coefficients(self, x: Tensor) -> Tensor:
        """The thresholded coefficients from which ``forward(x)`` is transformed back, in float32 or more, any shape."""
        raise NotImplementedError

    def wht_additions(self, input_shape: tuple[int, ...]) -> int:
        """Additions and subtractions of the fast transforms, forward and inverse, for an input of this shape."""
        raise NotImplementedError

    @torch.no_grad()
    def _reset_threshold(self, dims: int) -> None:
        # A ramp rises along each of the last `dims` dimensions, in the authors' order.
        if not isinstance(self.initial_threshold, str):
            nn.init.uniform_(self.threshold, 0, self.initial_threshold)
            return
        points = math.prod(self.threshold.shape[-dims:])
        ramp = torch.zeros((1,) * dims, dtype=torch.long)
        for dim, n in enumerate(self.threshold.shape[-dims:], start=-dims):
            ramp = ramp + (released_order(n) * (points // n)).view(-1, *(1,) * (-dim - 1))
        self.threshold.copy_((ramp / (10 * points)).expand_as(self.threshold))

    def extra_repr(self) -> str:
        """Settings that differ from the defaults, after those of the subclass."""
        flags = [name for name in ("clamp", "keep_dc") if getattr(self, name)]
        parts = [f"threshold={self.threshold_kind}", *(f"{name}=True" for name in flags)]
        if self.norm != "ortho":
            parts.append(f"norm={self.norm}")
        if self.initial_threshold != INITIAL_THRESHOLD:
            parts.append(f"initial_threshold={self.initial_threshold}")
        return ", ".join(parts)


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

    @fx_leaf
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
        return pixels * (sum(blocks) * _additions(self.block_size) + sums)

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
        self.size, self.stride, self.residual = _pair(size), stride, residual
        padded = tuple(next_power_of_two(s) for s in self.size)
        self.threshold = nn.Parameter(torch.empty(padded, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(padded, device=device, dtype=dtype)) if weight else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the thresholds as ``initial_threshold`` says, the weights to 1."""
        self._reset_threshold(dims=2)
        if self.weight is not None:
            nn.init.ones_(self.weight)

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        """``(..., C, H, W)`` → ``(..., C, ceil(H / stride), ceil(W / stride))``."""
        _check_map(self, x)
        if self.stride > 1:  # low-precision means are taken in float32, so that a result is rounded once
            y = kernels.fwht2d(_wide(x), self.threshold, self.weight, self.options)
            return _average_pool(y, self.stride).to(x.dtype)
        y = kernels.fwht2d(x, self._own("threshold"), self._own("weight"), self.options)
        return y.add_(x) if self.residual else y  # in place: nobody else has it

    @property
    def can_finish(self) -> bool:
        """Whether :meth:`finished` is there: the operator's result is the layer's, or lacks the input alone."""
        return self.stride == 1

    def finished(self, x: Tensor, epilogue: kernels.Epilogue) -> Tensor:
        """:meth:`forward` of ``(N, C, H, W)`` and what follows it."""
        _check_map(self, x)
        epilogue = epilogue._replace(added=x) if self.residual else epilogue
        return kernels.fwht2d(x, self._own("threshold"), self._own("weight"), self.options, epilogue)

    def coefficients(self, x: Tensor) -> Tensor:
        """``(..., C, H, W)`` → ``(..., C, h, w)``, H and W rounded up to powers of two."""
        _check_map(self, x)
        return functional.fwht2d_coefficients(x, self.threshold, self.weight, self.options)

    def wht_additions(self, input_shape: tuple[int, ...]) -> int:
        """Additions of the transforms of all maps, forward and inverse."""
        return 2 * math.prod(input_shape[:-2]) * _additions(self.threshold.numel())

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
        self.size = _pair(size)
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

    @fx_leaf
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
        if _wide(x) is not x:  # paths are summed in float32, and rounded before anything follows
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
        _check_map(self, x)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"HTPerceptron2d takes (N, {self.in_channels}, H, W), got shape {tuple(x.shape)}")
        wide = _wide(x)  # coefficients and sums are at least float32
        threshold, weight = self._own("threshold"), self._own("weight")
        for p, conv in enumerate(self.path_convs()):
            mix = conv.weight if conv.weight.dtype is wide.dtype else conv.weight.to(wide.dtype)
            yield F.conv2d(wide, mix), threshold[p], weight[p]

    def wht_additions(self, input_shape: tuple[int, ...]) -> int:
        """Additions of the transforms of all maps in and out, once, and of the sums over paths, as in the formula."""
        points = math.prod(self.threshold.shape[1:])
        maps = self.in_channels + self.out_channels
        return input_shape[0] * (maps * _additions(points) + (self.paths - 1) * self.out_channels * points)

    def extra_repr(self) -> str:
        """Channels, size and settings, as torch.nn layers show theirs."""
        weight = f", initial_weight={self.initial_weight}" if self.initial_weight != UNIFORM else ""
        return (
            f"{self.in_channels}, {self.out_channels}, {self.size}, paths={self.paths}, residual={self.residual}, "
            f"{super().extra_repr()}{weight}"
        )


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


def spectral_parameter_names(model: nn.Module) -> set[str]:
    """Fully qualified names of the thresholds and transform-domain weights of all layers of this package in ``model``.

    Of a parametrized or pruned one, the names of the parameters that it is computed from (``….original``, ``…_orig``).
    An optimiser can exempt them from weight decay with it; timm's ``param_groups_weight_decay`` takes it as
    ``no_weight_decay_list``.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, SpectralLayer)
        for name, _ in module.named_parameters()
        if re.fullmatch(rf"(parametrizations\.)?({'|'.join(module.spectral_parameters)})([._].+)?", name)
    }


def check_sizes(**sizes: int) -> None:
    """Raise a ValueError that names the first of ``sizes`` below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def check_channel_layer(in_channels: int, out_channels: int, stride: int, channel_dim: int) -> None:
    """Raise a ValueError where a layer that acts on every pixel's channels can't have these arguments."""
    check_sizes(in_channels=in_channels, out_channels=out_channels, stride=stride)
    if channel_dim not in (1, -1):
        raise ValueError(f"channel_dim must be 1 or -1, got {channel_dim}")


def channels_first(layer: Any, x: Tensor) -> Tensor:
    """``(N, C_in, *spatial)`` of an input whose channels are where ``layer.channel_dim`` says.

    Raises:
        ValueError: for an input with other than ``layer.in_channels`` channels.
    """
    shape, channels, dim = x.shape, layer.in_channels, layer.channel_dim
    if len(shape) < 2 or shape[dim] != channels:
        expected = f"N, {channels}, *spatial" if dim == 1 else f"N, *spatial, {channels}"
        name = type(layer).__name__
        raise ValueError(f"{name} takes ({expected}) with in_channels={channels}, got a tensor of shape {tuple(shape)}")
    # A map with its channels last becomes one in channels_last: no copy.
    return x.movedim(-1, 1) if dim == -1 else x


def _average_pool(x: Tensor, stride: int) -> Tensor:
    maps = F.avg_pool2d(x if x.dim() in (3, 4) else x.flatten(0, -4), stride, ceil_mode=True)
    return maps if x.dim() in (3, 4) else maps.unflatten(0, x.shape[:-3])


def _check_divides(block: int, in_channels: int, out_channels: int) -> None:
    sides = [in_channels, out_channels] if out_channels > in_channels else [in_channels]
    common = math.gcd(*sides)
    if common % block:
        largest = common & -common
        raise ValueError(
            f"block_size={block} does not divide {' and '.join(map(str, sides))} channels; take a power of two up to "
            f"{largest}, or blocks='separate', or block_size=None, which pad"
        )


def _additions(n: int) -> int:
    return n * (n.bit_length() - 1)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"size must be one or two integers of at least 1, got {size!r}")
    return pair


def _wide(x: Tensor) -> Tensor:
    """``x``, in float32 if its dtype has a lower precision."""
    return x if x.dtype.itemsize >= 4 else x.float()


def _check_map(layer: FWHT2d | HTPerceptron2d, x: Tensor) -> None:
    if x.shape[-2:] != layer.size:
        h, w = layer.size
        raise ValueError(
            f"{type(layer).__name__} was built for {h}×{w} maps, got an input of shape {tuple(x.shape)}; "
            "build the model for the resolution it runs at"
        )
