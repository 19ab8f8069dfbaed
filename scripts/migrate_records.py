"""Rewrite records of format 1 as format 2: ``python scripts/migrate_records.py runs.jsonl --into results/runs``.

Format 1 left open what a layer's or a trainer's default was; here it is written out, as it was then. Records of single
runs (``record.json``) need ``--table``, ``--row`` and ``--recipe``.
"""

import argparse
import copy
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whtnet.backbones import build_backbone
from whtnet.console import console, exit_on_user_error
from whtnet.experiment import Experiment
from whtnet.records import RecordError, plain, put_record

_COMMON = {"threshold": "smooth", "clamp": False, "keep_dc": False, "norm": "ortho", "initial_threshold": 0.1}
_FWHT2D = {"weight": True, "residual": False, **_COMMON}
LAYERS_THEN = {
    "BWHT1d": {"block_size": None, "interleave": False, **_COMMON},
    "FWHT2d": _FWHT2D,
    "PreGAPFWHT2d": _FWHT2D,
    "PreNormFWHT2d": _FWHT2D,
    "HTPerceptron2d": {"paths": 1, "residual": None, **_COMMON, "threshold": "soft", "clamp": True},
}
"""The options that layers had in format 1, with their defaults then."""


@exit_on_user_error
def main() -> None:
    """Parse the command line and rewrite the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="files of records, or folders of runs")
    parser.add_argument("--into", type=Path, default=Path("results/runs"), help="folder of the rewritten records")
    for label in ("table", "row", "recipe"):
        parser.add_argument(f"--{label}", help=f"the {label} of records that name none")
    arguments = parser.parse_args()
    labels = {name: value for name in ("table", "row", "recipe") if (value := getattr(arguments, name))}
    written, dirty = 0, 0
    for file in (file for path in arguments.files for file in _files(path)):
        for old in _read(file):
            if old["environment"]["dirty"]:
                dirty += 1
                continue
            record, layers = migrate(labels | old, file)
            put_record(arguments.into, record, layers)
            written += 1
    console.print(f"{written} records written to {arguments.into}, {dirty} of uncommitted code left out")


def migrate(old: Mapping[str, Any], origin: Path | str = "a record") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A record of format 1 as one of format 2, and its layers' statistics.

    Raises:
        RecordError: naming ``origin``, for a record of another format.
    """
    if old.get("format", 1) != 1:
        raise RecordError(f"{origin}: a record of format {old['format']}; only format 1 is rewritten")
    old = dict(copy.deepcopy(old))
    layers = old.pop("layers", [])
    experiment = Experiment.from_config(_settings(old))
    first = {name: old.pop(name) for name in ("table", "row", "recipe") if name in old}
    new = {
        "identity": experiment.identity,
        "run": experiment.name,
        "settings": plain(experiment.settings),
        "inputs": experiment.inputs,
    }
    history = old.pop("history")
    return {"format": 2, "identity": "", **first, **old, **new, "history": history}, layers


def _settings(old: Mapping[str, Any]) -> dict[str, Any]:
    settings = old["settings"]
    trainer = settings["trainer"]
    if trainer["channels_last"] is None:  # where it helps: a GPU, or bfloat16
        trainer["channels_last"] = old["environment"]["device"] == "cuda" or old["precision"] == "bfloat16"
    if "spectral_lr" in trainer:
        trainer["spectral_lr_scale"] = trainer.pop("spectral_lr")
    return settings | {"policy": _policy(settings["policy"], settings["backbone"])}


def _policy(policy: Mapping[str, Any], backbone: Mapping[str, Any]) -> dict[str, Any]:
    shared = policy.get("options") or {}
    rules = [_rule(rule, shared) for rule in _rules(policy, backbone)]
    return {"name": policy["name"], "rules": rules}


def _rules(policy: Mapping[str, Any], backbone: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of the backbone's family, where the policy has families."""
    if "families" not in policy:
        return policy["rules"]
    model = build_backbone(**{**backbone, "pretrained": False})
    names = [type(model).__name__, (getattr(model, "default_cfg", None) or {}).get("architecture") or ""]
    return next(f["rules"] for f in policy["families"] if any(re.search(f["architecture"], name) for name in names))


def _rule(rule: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The rule with all its layer's options, as they were then."""
    if rule["replace"] == "keep":
        return dict(rule)
    then = LAYERS_THEN[rule["replace"]]
    options = {**then, **{k: v for k, v in shared.items() if k in then}, **(rule.get("options") or {})}
    return {**rule, "options": options}


def _files(path: Path) -> Iterator[Path]:
    yield from sorted(path.rglob("record.json")) if path.is_dir() else [path]


def _read(file: Path) -> Iterator[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines() if file.suffix == ".jsonl" else [text]
        yield from (json.loads(line) for line in lines)
    except (OSError, ValueError) as error:
        raise RecordError(f"{file} can't be read as records ({error})") from error


if __name__ == "__main__":
    main()
