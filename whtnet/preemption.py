"""A scheduler's request to make room: finish the step, keep the state, leave, be started again."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from whtnet.errors import UserError

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed later
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
"""SIGTERM comes from schedulers and ``kill``, SIGUSR1 from ``sbatch --signal=USR1@60``, SIGUSR2 from submitit."""


class PreemptedError(UserError, RuntimeError):
    """The run was asked to stop, and did; the same command goes on from where it stands.

    Attributes:
        signals: numbers of those that asked, in order; none where they came to another process of the run.
    """

    signals: Sequence[int] = ()


def hand_on(numbers: Sequence[int]) -> None:
    """Call who handled these signals before: submitit, which puts the job back into the queue and ends the process."""
    for number in numbers:
        if callable(handler := signal.getsignal(number)):
            handler(number, None)


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Note the signals instead of dying of them; yields a function that says whether one came.

    Signals can be noted in the main thread only; in another one they keep their effect.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, note) for number in SIGNALS} if in_main_thread else {}
    try:
        yield lambda: bool(received)
    except PreemptedError as error:
        error.signals = received
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
