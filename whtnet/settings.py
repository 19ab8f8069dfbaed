"""Plain data as settings: compared with the annotations of what takes them."""

import dataclasses
import difflib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from whtnet.errors import UserError

C = TypeVar("C")

_WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a word", type(None): "null"}


RENAMED = {"trainer.spectral_lr": "trainer.spectral_lr_scale"}
"""Settings of earlier versions, and what they are called now."""


class ConfigError(UserError, ValueError):
    """A setting that can't be."""


def read_settings(cls: type[C], settings: Mapping[str, Any], group: str) -> C:
    """Make a dataclass of plain data.

    Raises:
        ConfigError: for a setting that it lacks, naming it and the one that was probably meant.
    """
    known = [f"{group}.{field.name}" for field in dataclasses.fields(cls)]
    for name in settings:
        if f"{group}.{name}" not in known:
            raise ConfigError(unknown_setting(f"{group}.{name}", known))
    return cls(**settings)


def unknown_setting(name: str, known: Sequence[str]) -> str:
    """What to say of a setting that there is not.

    Args:
        name: of it, ``GROUP.NAME``.
        known: the settings that there are in its group, likewise.
    """
    if name in RENAMED:
        return f"{name} is called {RENAMED[name]} now"
    group, _, word = name.rpartition(".")
    if near := difflib.get_close_matches(word, [other.rpartition(".")[2] for other in known], n=2):
        return f"there is no setting {name}; did you mean {' or '.join(f'{group}.{one}' for one in near)}?"
    return f"there is no setting {name}; there are {', '.join(known)}"


def check_fields(config: Any, group: str) -> None:
    """Compare the fields of a dataclass with their annotations.

    Raises:
        ConfigError: naming ``group``, the field and what it takes.
    """
    _check(vars(config), get_type_hints(type(config)), group, ConfigError)


def check_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any], group: str, error: type[UserError] = ConfigError
) -> None:
    """Compare keyword arguments of a function with their annotations, as far as these are of words and numbers.

    Raises:
        UserError: an ``error``, naming ``group``, the argument and what it takes.
    """
    _check(arguments, get_type_hints(function), group, error)


def _check(values: Mapping[str, Any], annotations: Mapping[str, Any], group: str, error: type[UserError]) -> None:
    for name, value in values.items():
        annotation = annotations.get(name)
        several = get_origin(annotation) is tuple
        kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not Ellipsis]
        if not all(kind in _WORDS for kind in kinds):
            continue
        parts = value if several and isinstance(value, tuple) else () if several else (value,)
        if several != isinstance(value, tuple) or not all(any(_is(one, kind) for kind in kinds) for one in parts):
            words = " or ".join(_WORDS[kind] for kind in kinds)
            raise error(f"{group}.{name} must be {'a list, each ' * several}{words}, got {value!r}")


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def canonical(value: Any) -> Any:
    """One form for all that means the same as settings: 1.0 is 1, a tuple a list, no keys are null, others in order.

    Raises:
        ConfigError: for what is no plain data.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return int(value) if value.is_integer() else value
        case Mapping():
            return {key: canonical(value[key]) for key in sorted(value)} or None
        case list() | tuple():
            return [canonical(item) for item in value]
    raise ConfigError(f"{value!r} is no setting; give numbers, words, lists or mappings")


def same(a: Any, b: Any) -> bool:
    """Whether two settings mean the same; true is not 1."""
    return json.dumps(canonical(a)) == json.dumps(canonical(b))


def without_defaults(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from their default, in canonical form."""
    return canonical({k: v for k, v in settings.items() if k not in defaults or not same(v, defaults[k])})


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a function's arguments, of those that have one."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
