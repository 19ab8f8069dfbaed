"""Where what the package ships lies, and where commands write."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
"""Of the configs, the tables' specifications and the published results: a checkout, or the installed package."""

PLACE = Path() if ROOT == _PACKAGE else ROOT
"""Where runs and tables are written: the checkout, or, without one, the working folder."""
