"""Records of runs, as strict JSON: a run of a table is one line of ``results/runs.jsonl``."""

import json
import math
import platform
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import whtnet
from whtnet import distributed
from whtnet.errors import UserError
from whtnet.files import atomic_write, locked


class RecordError(UserError, ValueError):
    """A record without its key, or a file of records that is damaged."""


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


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line; no file, no records.

    A last line without its end, left by a killed writer, is skipped with a warning.

    Raises:
        RecordError: naming file and line, where any other line is not a JSON object.
    """
    path = Path(path)
    records = []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)  # an undecodable byte is a ValueError too
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                warnings.warn(f"{path}: skipped the incomplete last line ({number})", RuntimeWarning, stacklevel=2)
                break
            raise RecordError(f"{path}, line {number}: not a JSON record ({error}); repair or delete it") from error
        records.append(record)
    return records


def put_record(
    path: str | Path, record: Mapping[str, Any], key: Sequence[str] = ("table", "row", "recipe", "seed")
) -> None:
    """Put ``record`` into a file of one JSON object per line: in place of those that agree in ``key``, else at the end.

    The file is replaced in one step, under a lock against other processes; a torn last line goes with that.

    Args:
        path: created where missing.
        record: see :func:`plain` for what it may hold.
        key: the fields that identify a record.

    Raises:
        RecordError: for a record without the key's fields, or a corrupt file (see :func:`read_records`).
        FileError: where the file cannot be written.
    """
    record = plain(record)
    if missing := [name for name in key if name not in record]:
        raise RecordError(f"a record for {path} needs the fields {', '.join(key)}; missing: {', '.join(missing)}")

    def identity(other: dict[str, Any]) -> list[Any]:
        return [other.get(name) for name in key]

    with locked(Path(path)):
        records = read_records(path)
        twins = [index for index, other in enumerate(records) if identity(other) == identity(record)]
        position = twins[0] if twins else len(records)
        others = [other for index, other in enumerate(records) if index not in twins]
        lines = [
            json.dumps(plain(other), allow_nan=False, ensure_ascii=False)
            for other in [*others[:position], record, *others[position:]]
        ]
        atomic_write(path, "\n".join(lines) + "\n")


def environment(device: torch.device | str) -> dict[str, Any]:
    """What a record needs beside its config to be repeated; no host, user or path in it.

    Returns:
        ``commit`` and ``dirty`` of the checkout (None outside one, as in an installed wheel; results/ and README.md,
        which runs write, do not make it dirty), ``versions`` of the packages, ``platform``, ``device`` (cpu, cuda, …),
        ``device_name``, ``processes`` that train the model, and ``threads`` of each (of PyTorch on the CPU).
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
        "processes": distributed.count(),
        "threads": torch.get_num_threads(),
    }


def _checkout() -> tuple[str | None, bool | None]:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else: a wheel inside somebody else's checkout
        dirty = git("status", "--porcelain", "--", ":/", ":(top,exclude)results", ":(top,exclude)README.md")
        return git("rev-parse", "HEAD"), bool(dirty)
    except (OSError, subprocess.CalledProcessError):
        return None, None


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
