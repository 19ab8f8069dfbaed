"""What is wrong with an override, in a line that says what may have been meant. Needs no PyTorch."""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

_KEY = re.compile(r"Could not override '([^'@]+)'")
_SHOWN = 12


def explain(error: Exception, configs: Path) -> str:
    """One line about an error of Hydra or OmegaConf.

    Args:
        error: what composing raised.
        configs: folder of the config files.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).partition("/")
        if group == "hydra":
            group, _, choice = str(error.missing_cfg_file).rpartition("/")
        choices = [*_choices(configs / group), *(error.options or ())]
        return f"no {group} {choice!r}; {_suggestion(choice, choices, f'see {configs.name}/{group}')}"
    if match := _KEY.match(str(error)):
        key = match[1]
        return f"no setting {key!r}; {_suggestion(key, _keys(configs), 'train.py --cfg job shows all')}"
    return " ".join(str(error).split())


def _suggestion(word: str, known: Iterable[str], otherwise: str) -> str:
    known = sorted(set(known))
    if near := difflib.get_close_matches(word, known, n=1):
        return f"did you mean {near[0]}?"
    return f"there are {', '.join(known)}" if len(known) <= _SHOWN else otherwise


def _choices(folder: Path) -> list[str]:
    return [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]


def _keys(configs: Path) -> Iterator[str]:
    for path in configs.rglob("*.yaml"):
        group = path.relative_to(configs).parts[:-1]
        yield from group[:1]
        yield from _flatten(OmegaConf.load(path), group[:1])


def _flatten(config: object, above: tuple[str, ...]) -> Iterator[str]:
    if isinstance(config, DictConfig):
        for name in config:
            yield ".".join((*above, str(name)))
            if not OmegaConf.is_missing(config, name) and not OmegaConf.is_interpolation(config, name):
                yield from _flatten(config[name], (*above, str(name)))
