"""Decoded images, kept as one file of arrays in a folder of this user alone, so that a start takes no decoding."""

import hashlib
import io
import os
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from whtnet.files import FileError, atomic_write, locked
from whtnet.private_folders import PlaceError, cache_home, check_private, make_private

Arrays = Mapping[str, np.ndarray]

_FORMAT = 1  # of the decoded images; a new one for other pixels from the same files


def keep_decoded(name: str, sources: Sequence[Path], decode: Callable[[], Arrays]) -> Arrays:
    """What ``decode`` gives, from the cache if it was there before and ``sources`` have not changed.

    Of several processes one decodes, and the others wait for it. Without a folder that can be written, and by nobody
    else, each decodes for itself.

    Args:
        name: of the data set; the beginning of the file's name.
        sources: what is decoded; recognised by path, size and time of change.
        decode: returns arrays of numbers or text by name.
    """
    try:
        folder = _folder()
    except PlaceError:
        return decode()
    family = f"{name}-{_digest(*map(str, sources))}"
    stamps = (f"{status.st_size} {status.st_mtime_ns}" for status in (path.stat() for path in sources))
    file = folder / f"{family}-{_digest(str(_FORMAT), *stamps)}.npz"
    try:
        with locked(folder / f"{family}.lock"):
            return _read(file) or _write(file, family, decode)
    except FileError:  # no lock: a full disk, for one
        return decode()


def _folder() -> Path:
    if (root := cache_home()) is None:
        raise PlaceError("this user has no home")
    folder = root / "whtnet" / "data"
    make_private(folder)
    return check_private(folder)


def _digest(*texts: str) -> str:
    return hashlib.sha256(os.fsencode("\0".join(texts))).hexdigest()[:12]


def _read(file: Path) -> Arrays | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):  # not there, or damaged
        return None


def _write(file: Path, family: str, decode: Callable[[], Arrays]) -> Arrays:
    begun = time.monotonic()
    arrays = decode()
    seconds = time.monotonic() - begun
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    try:
        for old in file.parent.glob(f"{family}-*.npz"):  # of sources that have changed since
            old.unlink()
        atomic_write(file, buffer.getbuffer(), 0o600)
    except OSError:
        return arrays
    print(f"decoded in {seconds:.1f} s, kept in {file} for the next start", file=sys.stderr)
    return arrays
