"""Rewrite old records for today's version: ``python scripts/migrate_records.py runs.jsonl --into results/runs``.

Format 1 left open what a layer's or a trainer's default was; here it is written out, as it was then. Records of single
runs (``record.json``) need ``--table``, ``--row`` and ``--recipe``. Records of format 2 say everything themselves;
after the change of a default they get the identity that their settings have now.
"""

import argparse
import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from whtnet.backbones import build_backbone
from whtnet.console import console, exit_on_user_error
from whtnet.experiment import Experiment
from whtnet.records import RecordError, is_layers_file, layers_beside, plain, put_record, remove_record

Record = Mapping[str, Any]

_COMMON = {"threshold": "smooth", "clamp": False, "keep_dc": False, "norm": "ortho", "initial_threshold": 0.1}
_FWHT2D = {"weight": True, "residual": False, **_COMMON}
LAYERS_THEN = {
    "BWHT1d": {"block_size": None, "interleave": False, **_COMMON},
    "FWHT2d": _FWHT2D,
    "PreGAPFWHT2d": _FWHT2D,
    "PreNormFWHT2d": _FWHT2D,
    "Identity": {},
    "DepthwiseConv2d": {},
    "HTPerceptron2d": {
        **{"paths": 1, "residual": None, **_COMMON, "threshold": "soft", "clamp": True},
        "initial_weight": 1,  # no option then
    },
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
    arguments = parser.parse_intermixed_args()
    labels = {name: value for name in ("table", "row", "recipe") if (value := getattr(arguments, name))}
    found = [(old, file) for path in arguments.files for file in _files(path) for old in _read(file)]
    clean = [(old, file) for old, file in found if not old["environment"]["dirty"]]
    renamed: dict[str, str] = {}
    for old, file in _starts_first(clean):
        record, layers = migrate(labels | old, file, renamed)
        renamed[old.get("identity", "")] = record["identity"]
        path = put_record(arguments.into, record, layers)
        if arguments.into in file.parents and not file.samefile(path):
            remove_record(file)
    left_out = len(found) - len(clean)
    console.print(f"{len(clean)} records written to {arguments.into}, {left_out} of uncommitted code left out")


def migrate(old: Record, file: Path, renamed: Mapping[str, str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A record of ``file`` as today's version writes it, and its layers' statistics.

    Args:
        old: the record.
        file: where it lies.
        renamed: today's identities of records that it may have begun with, by the identities that they had.

    Raises:
        RecordError: naming the file, for a record of another format.
    """
    old = copy.deepcopy(dict(old))
    match old.pop("format", 1):
        case 1:
            layers = old.pop("layers", [])
            experiment = Experiment.from_config(_settings(old))
        case 2:
            layers = layers_beside(file)
            settings = old["settings"]
            if "families" in settings["policy"]:  # an earlier format 2
                rules = _rules(settings["policy"], settings["backbone"])
                settings = settings | {"policy": {"name": settings["policy"]["name"], "rules": rules}}
            inputs = dict(old["inputs"])
            if "start" in inputs:
                inputs["start"] = renamed.get(inputs["start"], inputs["start"])
            experiment = replace(Experiment.from_config(settings), known_inputs=inputs)
        case found:
            raise RecordError(f"{file} has a record of format {found}; take the version that wrote it")
    labels = {name: old.pop(name) for name in ("table", "row", "recipe") if name in old}
    made = {"settings": plain(experiment.settings), "inputs": experiment.inputs, "run": experiment.name}
    first = {"format": 2, "identity": experiment.identity, **labels}
    return first | {name: value for name, value in old.items() if name not in first} | made, layers


def _starts_first(records: Sequence[tuple[Record, Path]]) -> list[tuple[Record, Path]]:
    """The records, each behind that of the run that it began with."""
    starts = {old["identity"]: old.get("inputs", {}).get("start") for old, _ in records if "identity" in old}

    def depth(identity: str | None) -> int:
        return 1 + depth(starts[identity]) if identity in starts else 0

    return sorted(records, key=lambda record: depth(record[0].get("identity")))


def _settings(old: Record) -> dict[str, Any]:
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
    if (then := LAYERS_THEN.get(rule["replace"])) is None:
        raise RecordError(f"format 1 had no layer {rule['replace']!r}; it had {', '.join(LAYERS_THEN)}")
    options = {**then, **{k: v for k, v in shared.items() if k in then}, **(rule.get("options") or {})}
    return {**rule, "options": options}


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(path.rglob("record.json")) or sorted(f for f in path.rglob("*.json") if not is_layers_file(f))


def _read(file: Path) -> Iterator[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
        records = [json.loads(line) for line in (text.splitlines() if file.suffix == ".jsonl" else [text])]
    except (OSError, ValueError) as error:
        raise RecordError(f"{file} can't be read as records ({error})") from error
    if not all(isinstance(record, dict) and "environment" in record for record in records):
        raise RecordError(f"{file} holds no record of a run; give files of records, or folders of runs")
    yield from records


if __name__ == "__main__":
    main()
