"""Writing files so that a killed process leaves either the old content or the new, and processes don't collide."""

import contextlib
import hashlib
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from whtnet.errors import UserError, warn_caller

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl


class FileError(UserError, OSError):
    """A file that cannot be written or read."""


class BusyError(UserError, RuntimeError):
    """A folder that another process is at work in."""


def atomic_write(path: str | Path, data: bytes | memoryview | str, mode: int = 0o666) -> None:
    """Replace the content of ``path`` in one step, creating its folder where needed; text is written as UTF-8.

    What is no file but can be written to, such as ``/dev/stdout``, is written to and stays what it is.

    Args:
        path: of the file, or a link to it.
        data: its new content.
        mode: who may read and write it, less what the process's umask denies.

    Raises:
        FileError: naming the path, where the folder cannot be written or the disk is full; the previous content is then
            untouched.
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    if _takes_what_is_written(path):
        try:
            with path.open("wb") as stream:
                stream.write(content)
        except OSError as error:
            raise _cannot_write(path, error) from error
        return
    # Through a link, so that the link stays; beside the target, because a rename is atomic within a file system only.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def file_digest(path: Path) -> str:
    """Sixteen hexadecimal digits that tell the content of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        FileError: naming the file, if it is no YAML, or has a key twice, of which YAML would take the last.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an undecodable byte is a ValueError
        raise FileError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def check_writable(folder: Path) -> None:
    """Find out, before anything that takes long, whether files can be written to ``folder``; leaves nothing there.

    Rights alone don't tell: root has all of them in ``/proc``, and on a file system that can only be read.

    Raises:
        FileError: naming the folder, if it can't be made or written.
    """
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _takes_what_is_written(path: Path) -> bool:
    """Whether it is a device or a pipe."""
    try:
        kind = path.stat().st_mode
    except OSError:  # not there, or out of reach: writing it says more
        return False
    return stat.S_ISCHR(kind) or stat.S_ISFIFO(kind)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's lock; without one (Windows, some network file systems) writers must take turns by themselves."""
    if fcntl is None:
        yield
        return
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")  # creates it, and never truncates
        except OSError as error:
            raise _cannot_write(path, error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                warn_caller(f"{path}: no lock here ({error}); write from one process at a time")
            # A writer before us may have replaced the file while we waited: then ours is the lock of the old one.
            if _is_still(path, file):
                yield
                return


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Be the only process at work in ``folder``, which is created where needed; the lock ends with the process.

    What a killed process had written in part is removed; so is the folder, if nothing was written into it.

    Raises:
        BusyError: if another process is at work there.
        FileError: where the folder cannot be written.
    """
    lock = folder / ".lock"
    with removed_unless_used(folder), _locked_at_once(lock):
        for left in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def removed_unless_used(folder: Path) -> Iterator[None]:
    """Remove ``folder``, and those above it that are new too, if it is new and no file lies in it in the end."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # another process has just used it
            if new and not any(place.is_file() for place in folder.rglob("*")):
                for place in (*sorted(folder.rglob("*"), reverse=True), *new):
                    place.rmdir()


@contextmanager
def _locked_at_once(lock: Path) -> Iterator[None]:
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("a+")
        except OSError as error:
            raise _cannot_write(lock.parent, error) from error
        with file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise BusyError(
                        f"{lock.parent}: the same run is in progress in another process; wait for it, or pass "
                        "resume=never for a second one beside it"
                    ) from error
                except OSError as error:
                    warn_caller(f"{lock}: no lock here ({error}); train in one process at a time")
            if fcntl is None or _is_still(lock, file):  # else its holder has just removed it
                yield
                return


def _is_still(path: Path, file: IO[Any]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _cannot_write(path: Path, error: OSError) -> FileError:
    reason = error.strerror or str(error)
    return FileError(
        f"cannot write {path}: {reason}; give it a writable folder with free space, or choose another path"
    )
