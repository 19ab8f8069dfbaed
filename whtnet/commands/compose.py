"""Compose a Hydra config from overrides, as plain data: the commands' edge to Hydra."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from whtnet.errors import UserError
from whtnet.overrides import as_text, check_words, explain, plain
from whtnet.searchpath import register_name_source
from whtnet.shipped import ROOT


def compose_config(overrides: Sequence[str], config_name: str = "config") -> dict[str, Any]:
    """The config that these overrides make, resolved.

    Raises:
        UserError: if an override does not fit the config.
    """
    register_name_source()
    check_words(overrides, ROOT / "configs")
    return _compose(config_name, overrides)


def compose_alone(overrides: Sequence[str]) -> dict[str, Any]:
    """What these overrides say without a config, read in the same way.

    Raises:
        UserError: if an override can't be read.
    """
    return _compose(None, [f"++{word}" for word in overrides])


def _compose(config_name: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return plain(compose(config_name, as_text(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, ROOT / "configs", config_name or "config")) from error


def backbone_settings(row: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ``build_backbone`` for a row of a table of counts: its ``backbone``, and ``overrides`` of that."""
    return compose_config([f"backbone={row['backbone']}", *row.get("overrides", ())], "count_params")["backbone"]
