"""Speed and memory side by side: how (`timing`), of what (`contenders`), each task in a fresh process (`measure`)."""

from whtnet.bench.contenders import LAYERS, MODES, NetworkSpec, Site
from whtnet.bench.measure import MEMORY, BenchError, measure
from whtnet.bench.timing import Quartiles, Timing, compare, peak_memory

__all__ = [
    "LAYERS",
    "MEMORY",
    "MODES",
    "BenchError",
    "NetworkSpec",
    "Quartiles",
    "Site",
    "Timing",
    "compare",
    "measure",
    "peak_memory",
]
