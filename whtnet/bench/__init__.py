"""Speed and memory side by side: how (`timing`), of what (`contenders`), each task in a fresh process (`measure`)."""

from whtnet.bench.contenders import LAYER_TESTS, NetworkSpec
from whtnet.bench.measure import MEMORY, BenchError, measure
from whtnet.bench.timing import Timing, compare, peak_memory

__all__ = ["LAYER_TESTS", "MEMORY", "BenchError", "NetworkSpec", "Timing", "compare", "measure", "peak_memory"]
