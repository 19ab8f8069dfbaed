"""Standard output and error of a command: it ends where nobody reads on, and goes on where they can't be written."""

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_NOBODY_READS = 128 + 13  # what shells show for SIGPIPE


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """In here nothing but a reader that has gone ends a command because of what it prints.

    Where nobody reads on, as behind ``| head``, it ends with the status of the signal SIGPIPE. Where standard output
    can't be written, as on a full disk, it does its work, says so in a line on standard error, and ends with status 1.
    What a terminal's encoding lacks is replaced.
    """
    before = sys.stdout, sys.stderr
    refused: list[OSError] = []
    sys.stdout, sys.stderr = streams = [_guarded(stream, refused) for stream in before]
    try:
        try:
            yield
        finally:
            for stream in streams:
                if stream is not None:  # as behind >&-
                    stream.flush()
    except SystemExit as end:
        if end.code == _NOBODY_READS:
            for file in (1, 2):  # what is still in buffers is flushed when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), file)
        if end.code or not refused:
            raise
    finally:
        for name, ours, theirs in zip(("stdout", "stderr"), streams, before, strict=True):
            if getattr(sys, name) is ours:  # else somebody has put another one in its place
                setattr(sys, name, theirs)
    if refused:
        sys.exit(1)


def _guarded(stream: TextIO, refused: list[OSError]) -> TextIO:
    """The stream, written through :class:`_Guard`; one that is no file as it is."""
    if type(stream) is not io.TextIOWrapper:
        return stream
    file = getattr(stream.buffer, "raw", stream.buffer)  # without a buffer under PYTHONUNBUFFERED
    if type(file) is not io.FileIO:
        return stream
    stream.flush()
    guard = _Guard(file.fileno(), refused)
    return io.TextIOWrapper(
        guard if stream.buffer is file else io.BufferedWriter(guard),
        stream.encoding,
        stream.errors if stream.errors == "backslashreplace" else "replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Guard(io.FileIO):
    """The file below a standard stream."""

    def __init__(self, file: int, refused: list[OSError]) -> None:
        super().__init__(file, "wb", closefd=False)
        self._refused = refused

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # another program has made the pipe non-blocking
                select.select((), (self,), ())
            return written
        except BrokenPipeError as error:
            raise SystemExit(_NOBODY_READS) from error  # no OSError, which libraries would handle
        except OSError as error:
            if self.fileno() == 1 and not self._refused:
                self._refused.append(error)
                print(f"error: standard output can't be written: {error.strerror}", file=sys.stderr)
            return len(data)
