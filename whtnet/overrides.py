"""What is wrong with an override, in a line that says what may have been meant. Needs no PyTorch."""

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from whtnet.errors import UserError, did_you_mean

_KEY = re.compile(r"Could not override '([^'@]+)'")
_SEVERAL = re.compile(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'(?:\n| requires)", re.DOTALL)
_PATHS = ("run_root", "dataset.root", "dataset.train_split", "dataset.test_split", "backbone.weights", "finetune.start")


def as_text(words: Iterable[str]) -> list[str]:
    """Words in which values that Hydra's grammar can't read are quoted, so that they count as text.

    Paths may thus have any letters and signs. ``~`` at the beginning of such a value is the home, as in a shell.

    Args:
        words: of a command line, options among them.
    """
    parser = OverridesParser.create()
    return [word if word.startswith("-") or _is_readable(parser, word) else _quoted(word) for word in words]


def _is_readable(parser: OverridesParser, word: str) -> bool:
    try:
        parser.parse_override(word)
    except HydraException:
        return False
    return True


def _quoted(word: str) -> str:
    name, sign, value = word.partition("=")
    if not sign:
        return word
    # In a quoted value, backslashes stand for themselves, except before a quote.
    value = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + match[2].replace('"', r"\""), os.path.expanduser(value))
    return f'{name}="{value}"'


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


def explain(error: Exception, configs: Path, config_name: str = "config") -> str:
    """One line about an error of Hydra or OmegaConf.

    Args:
        error: what composing raised.
        configs: folder of the config files.
        config_name: the one that was to be composed.
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
        group = key.partition(".")[0]
        groups = _groups(configs, config_name)
        if owners := _owners(key, configs) if group in groups else []:
            return f"{key} is no setting of the {group} that is chosen; {', '.join(owners)} have it"
        return f"no setting {key!r}; {did_you_mean(key, _keys(configs, config_name, groups))}"
    if match := _SEVERAL.match(str(error)):
        word = match[1].removeprefix("++")
        one = shlex.quote(_quoted(word))
        return f"{word} is several values: train.py -m trains with each; where it is one, write {one}"
    if isinstance(error, OverrideParseException):
        return f"can't read {error.override!r}; write NAME=VALUE"
    if isinstance(error, InterpolationResolutionError):
        return rf"{' '.join(str(error).split())}; where a dollar sign is meant, write \${{ in single quotes"
    return " ".join(str(error).split())


def plain(config: DictConfig) -> dict[str, Any]:
    """A config as plain data, resolved; what a path may be is text in it, as the folder 2024.

    Raises:
        UserError: for a setting that must be a path, and is none.
    """
    data = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
    for path in _PATHS:
        group, _, name = path.rpartition(".")
        settings = data.get(group) if group else data
        if isinstance(settings, dict) and settings.get(name) is not None:
            settings[name] = _path(path, settings[name])
    return data


def _path(name: str, value: object) -> str:
    if value == "":
        raise UserError(f"{name}= is empty; name a folder or file, or leave it out")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{name}={value!r} is no path; write ./ before a name that looks like that")
    return str(value)


def _owners(key: str, configs: Path) -> list[str]:
    """The choices of its group that have a setting."""
    group = key.partition(".")[0]
    folder = configs / group
    files = sorted(_choices(folder)) if folder.is_dir() else []
    return [name for name in files if key in _flatten(OmegaConf.load(folder / f"{name}.yaml"), (group,))]


def _choices(folder: Path) -> list[str]:
    return [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]


def _groups(configs: Path, config_name: str) -> list[str]:
    """Those that a config chooses from."""
    defaults = cast("DictConfig", OmegaConf.load(configs / f"{config_name}.yaml")).get("defaults", [])
    return [group for entry in defaults if isinstance(entry, DictConfig) for group in map(str, entry)]


def _keys(configs: Path, config_name: str, groups: Iterable[str]) -> Iterator[str]:
    own = cast("DictConfig", OmegaConf.load(configs / f"{config_name}.yaml"))
    kept = [str(key) for key in own if key not in ("defaults", "hydra")]
    yield from _flatten(OmegaConf.masked_copy(own, kept), ())
    for group in groups:
        yield group
        for path in (configs / group).rglob("*.yaml"):
            yield from _flatten(OmegaConf.load(path), (group,))


def _flatten(config: object, above: tuple[str, ...]) -> Iterator[str]:
    if isinstance(config, DictConfig):
        for name in map(str, config):
            yield ".".join((*above, name))
            if not OmegaConf.is_missing(config, name) and not OmegaConf.is_interpolation(config, name):
                yield from _flatten(config[name], (*above, name))
