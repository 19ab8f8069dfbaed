"""Plain data as settings: pydantic compares them with the annotations of what takes them."""

import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from whtnet.errors import UserError, did_you_mean


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


C = TypeVar("C", bound=_Dataclass)

_WORDS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a finite number",
    "string_type": "a word",
    "tuple_type": "a list",
    "dict_type": "keywords and values",
}

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
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{group} has settings, such as {known[0]}; it can't be {settings!r}")
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
    words = [other.rpartition(".")[2] for other in known]
    return f"there is no setting {name}; {did_you_mean(word, words, f'{group}.')}"


def check_names(config: Mapping[str, Any], names: Sequence[str]) -> None:
    """See whether a composed config has the settings that a command reads, and no others.

    Raises:
        ConfigError: naming the first that is missing or unknown.
    """
    if missing := [name for name in names if name not in config]:
        raise ConfigError(f"{missing[0]} was taken away on the command line, but nothing can be done without it")
    if unknown := [name for name in config if name not in names]:
        raise ConfigError(f"no setting {unknown[0]!r}; {did_you_mean(unknown[0], names)}")


def check_fields(config: Any, group: str) -> None:
    """Compare the fields of a dataclass with their annotations.

    Raises:
        ConfigError: naming ``group``, the field and what it takes.
    """
    _check(vars(config), get_type_hints(type(config), include_extras=True), group, ConfigError)


def check_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any], group: str, error: type[UserError] = ConfigError
) -> None:
    """Compare keyword arguments of a function with their annotations.

    Raises:
        UserError: an ``error``, naming ``group``, the argument and what it takes.
    """
    _check(arguments, get_type_hints(function, include_extras=True), group, error)


def _check(values: Mapping[str, Any], annotations: Mapping[str, Any], group: str, error: type[UserError]) -> None:
    for name in (name for name in values if name in annotations):
        if (beyond := _beyond(values[name])) is not None:
            raise error(f"{group}.{name}: no 32-bit float, or 64-bit whole number, holds {beyond!r}")
        try:
            _checker(annotations[name]).validate_python(values[name])
        except ValidationError as problem:
            raise error(f"{group}.{name} must be {_expected(problem)}, got {values[name]!r}") from None


_LEAST, _MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal numbers of float32


def _beyond(value: Any) -> int | float | None:
    """A number in plain data that has no place in 64 bits, or as a float in float32; None if there is none."""
    match value:
        case int():
            return None if -(2**63) <= value < 2**63 else value
        case float():
            return None if value == 0 or not math.isfinite(value) or _LEAST <= abs(value) <= _MOST else value
        case list() | tuple():
            return next((found for item in value if (found := _beyond(item)) is not None), None)
        case Mapping():
            return _beyond(list(value.values()))
    return None


@functools.lru_cache
def _checker(annotation: Any) -> TypeAdapter:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))


def _expected(problem: ValidationError) -> str:
    """What a value must be, in the words of the guide where there are some."""
    parts = []
    for detail in problem.errors(include_url=False):
        of_list = any(isinstance(step, int) for step in detail["loc"])
        words = _WORDS.get(detail["type"]) or detail["msg"].removeprefix("Input should be ")
        parts.append(f"a list, each {words}" if of_list else words)
    return " or ".join(dict.fromkeys(parts))


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
