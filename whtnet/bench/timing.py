"""How speed and memory are measured."""

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

_SLICE = 20e-3  # seconds that a contender is timed for before the next one's turn, so that its data are in the cache


@dataclass(frozen=True)
class Timing:
    """Seconds a call takes: median, 10th and 90th percentile of ``calls`` calls."""

    median: float
    low: float
    high: float
    calls: int


def compare(
    contenders: Mapping[str, Callable[[], object]], *, seconds: float = 1.0, device: torch.device | str = "cpu"
) -> dict[str, Timing]:
    """Time functions in turns, so that whatever disturbs the machine disturbs all of them.

    Args:
        contenders: by name; each is called without arguments.
        seconds: time for each of them, after two calls to warm up.
        device: a GPU is waited for around every call.

    Returns:
        A timing for every name.
    """
    device = torch.device(device)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
        call()
    end = time.perf_counter() + seconds * len(contenders)
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for name, call in contenders.items():
            _time_call(call, device)  # brings its data back into the cache
            slice_end = time.perf_counter() + _SLICE
            while True:
                times[name].append(_time_call(call, device))
                if time.perf_counter() > slice_end:
                    break
    return {name: _timing(values) for name, values in times.items()}


def _time_call(call: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timing(values: list[float]) -> Timing:
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return Timing(statistics.median(values), cuts[0], cuts[-1], len(values))


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
