"""Code of one's own package by its name, ``my_package.models:net``: imported only where the user says so.

Settings also come from files that others wrote, such as a saved model's; what they name must not run unasked. A name
counts as asked for once :func:`trust` has it, or its package, or :func:`trust_typed` found it on the command line.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from whtnet.errors import UserError

TRUSTED = "WHTNET_TRUST"
"""Environment variable with the trusted names, separated by commas, so that processes of a run inherit them."""

_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"


class ExtensionError(UserError):
    """Code of one's own that isn't trusted, can't be imported, or does not give what it must."""


def is_extension(name: object) -> bool:
    """Whether ``name`` is of the form ``my_package.models:net``."""
    return isinstance(name, str) and re.fullmatch(_NAME, name) is not None


def trust(names: Iterable[str]) -> None:
    """Let settings name code.

    Args:
        names: packages or modules (``my_package``, ``my_package.models``), all of which counts, or single functions
            and classes (``my_package.models:net``).
    """
    known = [*_trusted(), *names]
    os.environ[TRUSTED] = ",".join(dict.fromkeys(known))


def trust_typed(overrides: Iterable[str]) -> None:
    """Trust what the overrides of a command line name: ``backbone=my_package.models:net``, ``trust=[my_package]``."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") == "trust":
            names = re.findall(r"[\w.:]+", value)
            if odd := [name for name in names if not re.match("[A-Za-z_]", name)]:
                raise ExtensionError(f"trust={value}: {odd[0]} is no name of a package; write trust=[my_package]")
            trust(names)
        else:
            trust(re.findall(rf"(?<![\w.:]){_NAME}(?![\w.:])", value))


def load_extension(name: str) -> Callable[..., Any]:
    """The function or class called ``name``; its module is looked for in the working folder, too.

    Raises:
        ExtensionError: if nobody said that it may run, or it can't be imported.
    """
    if not any(name == known or name.startswith((f"{known}.", f"{known}:")) for known in _trusted()):
        package = re.split(r"[.:]", name)[0]
        raise ExtensionError(
            f"{name} is code that is only named by settings, so it is not run; if you trust the package {package}, say "
            f"so: trust=[{package}] for training and counting, --trust {package} for a trained model, "
            f"whtnet.extensions.trust(['{package}']) in Python"
        )
    module, _, attribute = name.partition(":")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ExtensionError(f"{name} can't be imported: {error}") from error
    if not callable(found):
        raise ExtensionError(f"{name} is no function or class")
    return found


def call_extension(name: str, *arguments: Any, **options: Any) -> Any:
    """What the function or class called ``name`` returns.

    Raises:
        ExtensionError: as :func:`load_extension`, or for arguments that it does not take.
    """
    function = load_extension(name)
    try:
        return function(*arguments, **options)
    except TypeError as error:
        raise ExtensionError(f"{name}: {error}") from error


def _trusted() -> list[str]:
    return [name for name in os.environ.get(TRUSTED, "").split(",") if name]
