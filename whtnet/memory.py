"""Memory on the CPU between two results: who keeps it."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next tensors, in the whole process and from now on.

    By default glibc gives large blocks back to the system, and every new result is made of fresh pages that the system
    has to find and clear: for a result of 42 MB that takes longer than a Walsh-Hadamard layer. Training on the CPU
    calls this by itself. It helps all operators; the process then holds on to its peak memory.

    Returns:
        Whether it is in force: on Linux with glibc, unless ``MALLOC_`` variables in the environment say otherwise.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
