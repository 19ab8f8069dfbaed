"""What a layer does with its coefficients, as one value that every implementation takes."""

import math
from typing import NamedTuple

from torch import Tensor

SCHEMA = "str kind, bool clamp, bool keep_dc, str norm"  # the fields of Options, as arguments of an operator


class Options(NamedTuple):
    """The options of both layers, see :func:`whtnet.functional.bwht1d`."""

    kind: str = "smooth"
    clamp: bool = False
    keep_dc: bool = False
    norm: str = "ortho"


UNBOUNDED = (-math.inf, math.inf)


class Epilogue(NamedTuple):
    """What may follow a layer's result y in inference: ``clamp((y + added) * scale + shift + residual, low, high)``.

    Attributes:
        scale: ``(C,)``, one for each channel of y.
        shift: ``(C,)``.
        residual: an addend of the shape of y, or None.
        low: lower bound, or minus infinity.
        high: upper bound, or infinity.
        added: an addend of the shape of y, before it is scaled, or None.
    """

    scale: Tensor
    shift: Tensor
    residual: Tensor | None
    low: float
    high: float
    added: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are there."""
        tensors: tuple[Tensor, ...] = self[:2]
        tensors = tensors if self.added is None else (*tensors, self.added)
        return tensors if self.residual is None else (*tensors, self.residual)
