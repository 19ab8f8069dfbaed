"""What is wrong with an override, in a line that says what may have been meant. Needs no PyTorch."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from whtnet.errors import UserError, did_you_mean

_KEY = re.compile(r"Could not override '([^'@]+)'")
_UNREADABLE = re.compile(r"Error parsing override '(.*?)'\n([^\n]*)", re.DOTALL)


def check_words(words: Iterable[str], configs: Path) -> None:
    """Find settings without a name, and choices that are no word, of which Hydra says nothing that helps.

    Args:
        words: of a command line.
        configs: folder of the config files.

    Raises:
        UserError: naming the first such word.
    """
    groups = {path.name for path in configs.iterdir() if path.is_dir()}
    for word in words:
        name, _, value = word.partition("=")
        if "=" in word and not name.strip("+~"):
            raise UserError(f"{word!r} names no setting; write NAME=VALUE, without spaces around the sign")
        if name in groups and re.fullmatch(r"null|true|false|-?[\d.]+|\{.*", value, re.IGNORECASE | re.DOTALL):
            raise UserError(f"{name}={value} is no choice; {did_you_mean(value, _choices(configs / name))}")


def explain(error: Exception, configs: Path) -> str:
    """One line about an error of Hydra or OmegaConf.

    Args:
        error: what composing raised.
        configs: folder of the config files.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, slash, choice = str(error.missing_cfg_file).partition("/")
        if not slash:
            return f"no config {group!r}; {did_you_mean(group, [path.stem for path in configs.glob('*.yaml')])}"
        if group == "hydra":
            group, _, choice = str(error.missing_cfg_file).rpartition("/")
        choices = [*_choices(configs / group), *(error.options or ())]
        return f"no {group} {choice!r}; {did_you_mean(choice, choices)}"
    if match := _KEY.match(str(error)):
        key = match[1]
        if owners := _owners(key, configs):
            group = key.partition(".")[0]
            return f"{key} is no setting of the {group} that is chosen; {', '.join(owners)} have it"
        return f"no setting {key!r}; {did_you_mean(key, _keys(configs))}"
    if match := _UNREADABLE.match(str(error)):
        override, reason = match.groups()
        return f"can't read {override!r} ({reason}); write NAME=VALUE, and what has spaces or signs as 'NAME=\"VALUE\"'"
    return " ".join(str(error).split())


def plain(config: DictConfig) -> dict[str, Any]:
    """A config as plain data, resolved."""
    return cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))


def _owners(key: str, configs: Path) -> list[str]:
    """The choices of its group that have a setting."""
    group = key.partition(".")[0]
    files = sorted((configs / group).rglob("*.yaml")) if (configs / group).is_dir() else []
    return [path.stem for path in files if key in _flatten(OmegaConf.load(path), (group,))]


def _choices(folder: Path) -> list[str]:
    return [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]


def _keys(configs: Path) -> Iterator[str]:
    for path in configs.rglob("*.yaml"):
        group = path.relative_to(configs).parts[:-1]
        yield from group[:1]
        yield from _flatten(OmegaConf.load(path), group[:1])


def _flatten(config: object, above: tuple[str, ...]) -> Iterator[str]:
    if isinstance(config, DictConfig):
        for name in map(str, config):
            yield ".".join((*above, name))
            if not OmegaConf.is_missing(config, name) and not OmegaConf.is_interpolation(config, name):
                yield from _flatten(config[name], (*above, name))
