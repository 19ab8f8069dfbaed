"""Where what the package ships lies, and where commands write."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent
"""Of the configs, the tables' specifications and the published results: a checkout, or the installed package."""

PLACE = Path() if ROOT == PACKAGE else ROOT
"""Where runs and tables are written: the checkout, or, without one, the working folder."""
