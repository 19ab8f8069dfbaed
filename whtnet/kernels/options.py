"""What a layer does with its coefficients, as one value that every implementation takes."""

from typing import NamedTuple

SCHEMA = "str kind, bool clamp, bool keep_dc, str norm"  # the fields of Options, as arguments of an operator


class Options(NamedTuple):
    """The options of both layers, see :func:`whtnet.functional.bwht1d`."""

    kind: str = "smooth"
    clamp: bool = False
    keep_dc: bool = False
    norm: str = "ortho"
