"""A kernel that is loaded on first use: nothing is compiled, and no compiler imported, before."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from whtnet.errors import warn_caller

T = TypeVar("T")


class KernelError(RuntimeError):
    """A fast backend is not to be had here; the message says why."""


def dynamo_constant(function: Callable[[], bool]) -> Callable[[], bool]:
    """As torch.compiler.assume_constant_result does, which would import the compiler now."""
    function.__dict__["_dynamo_marked_constant"] = True
    return function


class LazyKernel(Generic[T]):
    """What ``load`` returns, loaded once; where it raises KernelError, a warning says so once.

    Args:
        backend: name of the backend that needs it.
        load: makes the kernel.

    Attributes:
        kernel: what was loaded, or None.
    """

    def __init__(self, backend: str, load: Callable[[], T]) -> None:
        self._backend = backend
        self._load = load
        self._lock = threading.Lock()
        self.kernel: T | None = None
        self._error: KernelError | None = None
        self._warned = False

    def get(self) -> T:
        """The kernel.

        Raises:
            KernelError: if it cannot be loaded.
        """
        if self.kernel is not None:
            return self.kernel
        self._load_once()
        if self.kernel is None:
            raise KernelError(f"backend {self._backend!r} is not available: {self._error}") from self._error
        return self.kernel

    def available(self) -> bool:
        """Whether the kernel is there; where it is not, the first call warns."""
        if self.kernel is not None:
            return True
        self._load_once()
        if self._error is not None and not self._warned:
            self._warned = True
            warn_caller(
                f"whtnet runs on plain PyTorch, without its backend {self._backend!r}: {self._error}. "
                "whtnet.set_backend('reference') silences this."
            )
        return self.kernel is not None

    def _load_once(self) -> None:
        with self._lock:
            if self.kernel is None and self._error is None:
                try:
                    self.kernel = self._load()
                except KernelError as error:
                    self._error = error
