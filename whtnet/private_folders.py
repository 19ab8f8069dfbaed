"""Folders of a user alone, for what is kept from one start to the next: compiled kernels, decoded images.

A library runs with all rights of the process that loads it. It is therefore neither taken from nor put into a folder
that another user owns or can write, nor one below such a folder.
"""

import os
import stat
import sys
from pathlib import Path

if sys.platform != "win32":  # where no kernel is compiled
    import grp
    import pwd


class PlaceError(OSError):
    """A folder that can't be used; the message says why."""


def cache_folders() -> list[Path]:
    """Where kernels may be kept, best first; none need exist, or be usable.

    ``whtnet`` in ``$TORCH_EXTENSIONS_DIR``, else in :func:`cache_home`; then in ``$XDG_RUNTIME_DIR``, which systemd
    makes for each user and empties when the user logs out.
    """
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR")
    roots = (Path(extensions) if extensions else cache_home(), _named_by("XDG_RUNTIME_DIR"))
    return [root / "whtnet" for root in roots if root is not None]


def cache_home() -> Path | None:
    """``$XDG_CACHE_HOME``, else ``~/.cache``; None where there is no home."""
    try:
        folder = _named_by("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder if folder.is_absolute() else None


def _named_by(variable: str) -> Path | None:
    # A relative path is to be ignored, says the XDG base directory specification: it would be another one everywhere.
    folder = Path(os.environ.get(variable, ""))
    return folder if folder.is_absolute() else None


def make_private(folder: Path) -> None:
    """Create ``folder`` and what is missing above it, for this user alone.

    Raises:
        PlaceError: where that can't be done.
    """
    try:
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        for place in reversed(missing):
            place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise PlaceError(f"{folder} can't be written ({error.strerror})") from error


def check_private(path: Path) -> Path:
    """``path`` without links, where nobody else can change it or what lies above it.

    Raises:
        PlaceError: naming the folder or file that another user could change, or where ``path`` can't be reached.
    """
    real = Path(os.path.realpath(path))
    for place in (real, *real.parents):
        try:
            status = place.lstat()
        except OSError as error:
            raise PlaceError(f"{path} can't be reached ({error.strerror})") from error
        if status.st_uid not in (0, os.geteuid()):
            raise PlaceError(f"{place} belongs to another user")
        # In a folder with the sticky bit, such as /tmp, nobody can replace what belongs to others.
        sticky = place != real and status.st_mode & stat.S_ISVTX
        if not sticky and (status.st_mode & stat.S_IWOTH or _others_in_group_can_write(place, status)):
            raise PlaceError(f"{place} can be written by other users (chmod go-w {place})")
    return real


def _others_in_group_can_write(place: Path, status: os.stat_result) -> bool:
    # Many systems give each user a group of one, named alike, and its members the right to write.
    if not status.st_mode & stat.S_IWGRP:
        return False
    try:
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(status.st_gid)
    except KeyError:
        return True
    alone = group.gr_name == user and set(group.gr_mem) <= {user}
    return not alone or "system.posix_acl_access" in _attributes(place)


def _attributes(place: Path) -> list[str]:
    try:
        return os.listxattr(place)
    except (AttributeError, OSError):  # macOS; a file system without them
        return []
