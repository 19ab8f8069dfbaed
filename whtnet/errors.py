"""The one base of all errors that a user can mend: command lines print their message, without a traceback.

Warnings, too: a library's point at the code that called it, a command's are lines.
"""

import contextlib
import difflib
import errno
import functools
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

_SHOWN = 12
_OF_THE_MACHINE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EIO}
_OF_THE_MACHINE |= {errno.ENOTDIR, errno.EEXIST}  # a file where a folder should be
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|[Ss]torage size calculation overflowed")


class UserError(Exception):
    """Something in the settings, the data or the machine is not as it must be; the message says what to do."""


class JobFailedError(Exception):
    """A job of a sweep ended with an error that its user was told; no :class:`UserError`, for the others go on."""


@contextlib.contextmanager
def limits_told() -> Iterator[None]:
    """Turn what the machine refuses (memory, rights, a name too long, a full disk) into an error that says so.

    Raises:
        UserError: in place of such an :class:`OSError`, naming the path, or of what PyTorch raises without memory.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.filename is None or error.errno not in _OF_THE_MACHINE:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; give another path, or mend that") from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        asked = re.search(r"allocate (\d[\d.]* \w+)", str(error))
        wanted = f" for {asked[1]} at once" if asked else ""
        raise UserError(f"not enough memory{wanted}; take smaller batches or images, or a smaller network") from error


_ON_THE_WAY = ("whtnet", "contextlib", "torch")  # which calls layers


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, with the place in the code that called this package, from however deep in it."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _ON_THE_WAY:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


@contextlib.contextmanager
def warnings_told(tell: Callable[[str], None]) -> Iterator[None]:
    """In here ``tell`` gets each warning's text, in a line and once, and nobody the place in the code it came from."""
    tell_once = functools.cache(tell)

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        tell_once(" ".join(str(message).split()))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def few(names: Sequence[str], write: Callable[[str], str] = str, *, most: int = 5, separator: str = ", ") -> str:
    """The first names of a list, and how many there are: ``a, b, c, d, e, … (12)``.

    Args:
        names: of the list.
        write: makes a text of a name.
        most: names that are shown.
        separator: between them.
    """
    rest = f"… ({len(names):,})"
    return separator.join([*map(write, names[:most]), *([rest] if len(names) > most else [])])


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """What to add to the message about a name that there is not.

    Args:
        word: the name.
        known: those that there are.
        prefix: to write in front of these.

    Returns:
        ``did you mean A or B?`` where some are near, else all if they are few, else the first of them and a count.
    """
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=3)
    near = [name for name in near if _ratio(word, name) > _ratio(word, near[0]) - 0.1]
    if near := near or [name for name in known if word and word in name][:3]:
        return f"did you mean {' or '.join(prefix + name for name in near)}?"
    return f"there are {few(known, lambda name: prefix + name, most=_SHOWN)}" if known else "there are none"


def _ratio(word: str, name: str) -> float:
    return difflib.SequenceMatcher(None, name, word).ratio()
