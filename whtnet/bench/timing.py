"""How speed and memory are measured."""

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

Key = TypeVar("Key")

_SLICE = 20e-3  # seconds that a contender is timed for before the next one's turn, so that its data are in the cache


class Quartiles(NamedTuple):
    """Median, and first and third quartile."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """Seconds a call takes: median and quartiles of ``calls`` calls, and the median of each turn."""

    median: float
    low: float
    high: float
    calls: int
    turns: tuple[float, ...]

    def to_dict(self) -> dict[str, float]:
        """All but the turns, which are many."""
        return {name: value for name, value in vars(self).items() if name != "turns"}

    def times_as_fast(self, other: "Timing") -> Quartiles:
        """The other's time over this one's, by turns: what disturbed a turn disturbed both."""
        return quartiles([theirs / mine for mine, theirs in zip(self.turns, other.turns, strict=True)])


def quartiles(values: Sequence[float]) -> Quartiles:
    """Of one value at least."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [values[0]]
    return Quartiles(median, low, high)


def compare(
    contenders: Mapping[Key, Callable[[], object]],
    *,
    seconds: float = 1.0,
    calls: int = 30,
    device: torch.device | str = "cpu",
) -> dict[Key, Timing]:
    """Time functions in turns, so that whatever disturbs the machine disturbs all of them.

    Args:
        contenders: by name; each is called without arguments.
        seconds: time for each of them, after two calls to warm up.
        calls: how often each is timed at least.
        device: a GPU is waited for around every call.

    Returns:
        A timing for every name.
    """
    device = torch.device(device)
    turns: dict[Key, list[list[float]]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
        call()
    end = time.perf_counter() + seconds * len(contenders)
    while time.perf_counter() < end or any(sum(map(len, made)) < calls for made in turns.values()):
        for name, call in contenders.items():
            turns[name].append(_turn(call, device))
    return {name: _timing(made) for name, made in turns.items()}


def _turn(call: Callable[[], object], device: torch.device) -> list[float]:
    first = _time_call(call, device)
    if first > _SLICE:  # too large for the caches to matter
        return [first]
    end = time.perf_counter() + _SLICE
    times: list[float] = []
    while not times or time.perf_counter() < end:  # the first call has brought its data back into the cache
        times.append(_time_call(call, device))
    return times


def _time_call(call: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timing(turns: list[list[float]]) -> Timing:
    values = [value for turn in turns for value in turn]
    return Timing(*quartiles(values), len(values), tuple(statistics.median(turn) for turn in turns))


def peak_memory(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes that ``call()`` needs at its peak beyond what is in use before it.

    On a GPU it is what PyTorch allocates. On the CPU it is the resident memory of the process: call it once in a fresh
    process, where no freed memory is left to hide behind.
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = _resident("VmRSS") if _reset_peak() else _highest()
    call()
    return (_resident("VmHWM") if _reset_possible() else _highest()) - before


def _reset_possible() -> bool:
    return Path("/proc/self/clear_refs").exists()


def _reset_peak() -> bool:
    if _reset_possible():
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
    return _reset_possible()


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
