"""Records of runs, as strict JSON: every run of a table is a file of its own below ``results/runs``."""

import json
import math
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import whtnet
from whtnet import distributed
from whtnet.errors import UserError
from whtnet.files import atomic_write

FORMAT = 2
LABELS = ("table", "row", "recipe", "seed", "identity")
"""What a record in a table's folder says besides."""

_BESIDE = ".layers.json"


class RecordError(UserError, ValueError):
    """A record that lacks something, is damaged or can't be replayed."""


def plain(value: Any) -> Any:
    """Reduce to strict JSON: paths become strings, scalars of torch or numpy become numbers, NaN and infinities None.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if callable(getattr(value, "item", None)):
        return plain(value.item())
    raise TypeError(f"cannot record {value!r} of type {type(value).__name__}; give numbers, strings, lists or dicts")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented strict JSON, in one step (see :func:`plain` for what it may hold)."""
    atomic_write(path, json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_record(path: Path, record: Mapping[str, Any], layers: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write a record, its history one epoch a line, and what its layers hold in a file beside it.

    Args:
        path: of the record, ``NAME.json``; the layers go to ``NAME.layers.json``, written first.
        record: see :func:`plain` for what it may hold.
        layers: of :func:`whtnet.inspection.describe_layers`; without any no file is left beside the record.

    Raises:
        FileError: where a file cannot be written.
    """
    beside = _layers_file(path)
    if layers:
        rows = ",\n".join(
            json.dumps(_rounded(plain(layer)), allow_nan=False, separators=(",", ":")) for layer in layers
        )
        atomic_write(beside, f"[\n{rows}\n]\n")
    atomic_write(path, _text(plain({"format": FORMAT, **record})))
    if not layers:
        beside.unlink(missing_ok=True)


def read_record(path: Path) -> dict[str, Any]:
    """Read what :func:`write_record` wrote, but for the layers.

    Raises:
        RecordError: naming the file, if it is damaged or of another format.
    """
    record = read_json(path)
    if (found := record.get("format", 1)) != FORMAT:
        raise RecordError(
            f"{path} is a record of format {found}, and this version of whtnet reads format {FORMAT}; "
            f"{'scripts/migrate_records.py rewrites it' if found == 1 else 'take the version that wrote it'}"
        )
    return record


def read_records(folder: str | Path) -> list[dict[str, Any]]:
    """Read the records of all tables below ``folder``, ordered by file name; no folder, no records.

    Raises:
        RecordError: naming the file that is damaged, lacks what a table needs, or has another format.
    """
    return [_read_labelled(path) for path in sorted(Path(folder).glob("*/*.json")) if not is_layers_file(path)]


def put_record(folder: str | Path, record: Mapping[str, Any], layers: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Keep a record in a file of its own below ``folder``, named by table, row, seed and identity.

    A record of the same name is replaced, in one step, so that processes may write at once; :func:`write_record` says
    how.

    Returns:
        The file.

    Raises:
        RecordError: for a record that lacks one of :data:`LABELS`.
        FileError: where a file cannot be written.
    """
    path = Path(folder) / record_file(record)
    write_record(path, record, layers)
    return path


def read_layers(folder: str | Path, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the layers of a record of :func:`read_records` hold; none where nothing was kept.

    Raises:
        RecordError: naming the file, if it is damaged.
    """
    return layers_beside(Path(folder) / record_file(record))


def layers_beside(path: Path) -> list[dict[str, Any]]:
    """Likewise, of the record in the file ``path``."""
    beside = _layers_file(path)
    return read_json(beside, list) if beside.exists() else []


def remove_record(path: Path) -> None:
    """Delete the record in the file ``path``, and its layers."""
    for file in (path, _layers_file(path)):
        file.unlink(missing_ok=True)


def is_file_name(text: str) -> bool:
    """Whether a table or a row of this name can have files."""
    return re.fullmatch(r"[\w-][\w.-]*", text) is not None


def record_file(record: Mapping[str, Any]) -> str:
    """Where :func:`put_record` keeps a record, relative to its folder.

    Raises:
        RecordError: for a record that lacks one of :data:`LABELS`, or a table or row that can't name a file.
    """
    if missing := [name for name in LABELS if name not in record]:
        raise RecordError(f"a table's record needs {', '.join(LABELS)}; missing: {', '.join(missing)}")
    for name in ("table", "row"):
        if not is_file_name(str(record[name])):
            raise RecordError(f"{name} {record[name]!r} can't name a file; take letters, digits, '_', '-' and '.'")
    return f"{record['table']}/{record['row']}-seed{record['seed']}-{record['identity'][:8]}.json"


def _read_labelled(path: Path) -> dict[str, Any]:
    record = read_record(path)
    try:
        record_file(record)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error
    return record


def read_json(path: Path, kind: type = dict) -> Any:
    """Read what :func:`write_json` wrote.

    Raises:
        RecordError: naming the file, if it is damaged, or holds no ``kind``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"not {'an object' if kind is dict else 'a list'}")
    except (OSError, ValueError, RecursionError) as error:  # an undecodable byte is a ValueError too
        raise RecordError(f"{path} can't be read as a record ({error}); repair or delete it") from error
    return content


def _text(record: dict[str, Any]) -> str:
    """Indented for reviews, but for the history: one line an epoch."""
    rest = {name: value for name, value in record.items() if name != "history"}
    text = json.dumps(rest, indent=2, allow_nan=False, ensure_ascii=False)
    if "history" in record:
        epochs = ",\n".join(f"    {json.dumps(epoch, allow_nan=False)}" for epoch in record["history"])
        text = f'{text.removesuffix("}").rstrip()},\n  "history": [\n{epochs}\n  ]\n}}'
    return text + "\n"


def _rounded(value: Any) -> Any:
    """Three significant digits: enough for a picture, which is what layers are kept for."""
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _layers_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}{_BESIDE}")


def is_layers_file(path: Path) -> bool:
    """Whether a file holds what the layers of a record hold, not a record."""
    return path.name.endswith(_BESIDE)


def environment(device: torch.device | str) -> dict[str, Any]:
    """What a record needs beside its config to be repeated; no host, user or path in it.

    Returns:
        ``commit`` and ``dirty`` of the checkout (None outside one, as in an installed wheel; results/, README.md and
        docs/, which runs write, do not make it dirty), ``versions`` of the packages, ``platform``, ``device`` (cpu,
        cuda, …), ``device_name``, ``processes`` that train the model, and ``threads`` of each (of PyTorch on the CPU).
    """
    device = torch.device(device)
    commit, dirty = _checkout()
    versions = {"whtnet": whtnet.__version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": versions | {package: _version(package) for package in ("torchvision", "timm")},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
    }


_MADE = ("results", "README.md", "docs")  # what --update writes: tables of records, and pages that show them


def local_changes(folder: Path) -> list[str]:
    """Files of a checkout that differ from its commit, untracked ones too, as paths from its top folder.

    Not those that runs write: results/, README.md and docs/. None outside a checkout, or without git.
    """
    try:
        changed = _git(folder, "status", "--porcelain", "--", ":/", *(f":(top,exclude){made}" for made in _MADE))
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line[3:] for line in changed.splitlines()]


def _checkout() -> tuple[str | None, bool | None]:
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)  # else: a wheel inside somebody else's checkout
        return _git(here.parent, "rev-parse", "HEAD").strip(), bool(local_changes(here.parent))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    name = next(names, platform.processor() or platform.machine())
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"  # some names leave open how fast it is
