"""What the layers share: thresholds and their initial values, how torch.fx sees a layer, its spectral parameters."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from whtnet import functional
from whtnet.thresholds import THRESHOLDS
from whtnet.transforms import released_order

INITIAL_THRESHOLD = 0.1  # upper end of the uniform distribution, from the authors' layer code
RAMP = "ramp"  # the released layers' initial thresholds


class FxLeaf(nn.Module):
    """Base of modules that torch.fx keeps whole, hooks and all, as it does those of torch.nn."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in vars(cls):
            cls.forward = _forward_or_node(cls.forward)  # type: ignore[method-assign]

    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        # A node has no hooks around it: they stay on the module that it calls.
        if isinstance(args[0] if args else kwargs.get("x"), Proxy):
            return self.forward(*args, **kwargs)
        return super()._call_impl(*args, **kwargs)


def _forward_or_node(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
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


class SpectralLayer(FxLeaf):
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


def spectral_parameter_names(model: nn.Module) -> set[str]:
    """Fully qualified names of the thresholds and transform-domain weights of all layers of this package in ``model``.

    Of a parametrized or pruned one, the names of the parameters that it is computed from (``….original``, ``…_orig``).
    A shared one has the one name that it has in ``model.named_parameters()``. An optimiser can exempt them from weight
    decay with it; timm's ``param_groups_weight_decay`` takes it as ``no_weight_decay_list``.
    """
    spectral = {
        id(parameter)
        for layer in model.modules()
        if isinstance(layer, SpectralLayer)
        for name, parameter in layer.named_parameters()
        if re.fullmatch(rf"(parametrizations\.)?({'|'.join(layer.spectral_parameters)})([._].+)?", name)
    }
    return {name for name, parameter in model.named_parameters() if id(parameter) in spectral}


def additions(n: int) -> int:
    """Additions and subtractions of a fast transform of n values."""
    return n * (n.bit_length() - 1)
