"""Memory on the CPU between two results: how much of it is kept for the next one."""

import ctypes
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from whtnet.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_MIB = 1 << 20
_DEFAULT_LIMIT = 1024 * _MIB
_SMALLEST = _MIB // 4  # of smaller blocks the C library keeps enough by itself


class MemoryLimitError(UserError, ValueError):
    """A limit that is no number of bytes."""


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next tensors, in the whole process and from now on.

    By default glibc gives large blocks back to the system, and every new result is made of fresh pages that the system
    has to find and clear: for a result of 42 MB that takes longer than a Walsh-Hadamard layer. Training on the CPU
    calls this by itself. It helps all operators; without it the layers of this package keep their own results' memory
    (:func:`recycle_results`). The process then holds on to its peak memory.

    Returns:
        Whether it is in force: on Linux with glibc, unless ``MALLOC_`` variables in the environment say otherwise.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    kept = bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
    if kept:
        recycle_results(0)  # the C library does it, and shares the memory with the other operators
    return kept


def recycle_results(limit: int) -> None:
    """Keep the memory of freed results of the layers on the CPU for their next results of the same size.

    In force from the start, with a limit of 1 GiB or of ``WHTNET_RECYCLE`` MiB from the environment.

    Args:
        limit: bytes to keep at most; 0 gives everything back, and makes every large result of fresh memory.

    Raises:
        MemoryLimitError: if it is negative or no whole number.
    """
    if not isinstance(limit, int) or limit < 0:
        raise MemoryLimitError(f"limit={limit!r} is no number of bytes; give a whole number from 0")
    _freed.set_limit(limit)


def recycled(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An uninitialised tensor on the CPU, as ``like.new_empty(shape)``, in the memory of a freed one where possible.

    When nothing refers to its storage any more, neither the tensor nor a view of it, the memory is for the next one.
    """
    size = math.prod(shape) * like.element_size()
    if size < _SMALLEST or size > _freed.limit:
        return like.new_empty(shape)
    block = _freed.take(size)
    if block is None:
        block = like.new_empty(size, dtype=torch.uint8)
    # PyTorch holds on to the window as long as there is a storage on it.
    window = (ctypes.c_char * size).from_address(block.data_ptr())
    weakref.finalize(window, _freed.put, block).atexit = False
    return torch.frombuffer(window, dtype=like.dtype).view(tuple(shape))


class _FreedBlocks:
    """Memory that no result uses: up to ``limit`` bytes, the oldest given back first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._blocks: deque[Tensor] = deque()
        self._size = 0
        self._lock = threading.RLock()  # a finaliser may call `put` in the middle of anything, in any thread

    def put(self, block: Tensor) -> None:
        with self._lock:
            self._blocks.append(block)
            self._size += block.nbytes
            self._shrink()

    def take(self, size: int) -> Tensor | None:
        with self._lock:
            for i in reversed(range(len(self._blocks))):  # the latest may still be in the cache
                if self._blocks[i].nbytes == size:
                    block = self._blocks[i]
                    del self._blocks[i]
                    self._size -= size
                    return block
        return None

    def set_limit(self, limit: int) -> None:
        with self._lock:
            self.limit = limit
            self._shrink()

    def _shrink(self) -> None:
        while self._size > self.limit:
            self._size -= self._blocks.popleft().nbytes


def _limit_from_environment() -> int:
    text = os.environ.get("WHTNET_RECYCLE", "")
    if text and not text.isdecimal():
        raise MemoryLimitError(f"WHTNET_RECYCLE={text!r} is no number of MiB; give a whole number from 0")
    return int(text) * _MIB if text else _DEFAULT_LIMIT


_freed = _FreedBlocks(_limit_from_environment())
