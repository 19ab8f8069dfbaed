"""Several processes that train one model, started by ``torchrun``: who is who, and what they tell each other.

A single process is the ordinary case; nothing here communicates then. The group is joined at the first word, and left
when the process ends.
"""

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from whtnet.errors import UserError

T = TypeVar("T")
_CPU = torch.device("cpu")


class PeerError(UserError, RuntimeError):
    """Another process of the run ended early; what went wrong stands in that one's own message."""


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine, from 0: that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return rank() == 0


def share(total: int) -> slice:
    """The part of a batch of ``total`` images that is this process's; the parts differ by one image at most."""
    size, larger = divmod(total, world_size())
    start = rank() * size + min(rank(), larger)
    return slice(start, start + size + (rank() < larger))


def all_reduce(values: Tensor) -> Tensor:
    """``values`` added up over the processes."""
    if world_size() == 1:
        return values
    values = values.detach().clone()
    with conversation():
        dist.all_reduce(values)
    return values


def all_gather(values: Tensor) -> Tensor:
    """``values``, ``(…)``, of every process: ``(processes, …)``."""
    parts = [torch.empty_like(values) for _ in range(world_size())]
    with conversation():
        dist.all_gather(parts, values)
    return torch.stack(parts)


def anywhere(flag: bool) -> bool:
    """Whether ``flag`` is set in any process; no GPU is waited for."""
    return bool(all_reduce(torch.tensor(float(flag))))


def from_main_process(work: Callable[[], T]) -> T:
    """Do ``work`` in the first process alone and give its result to all.

    Raises:
        PeerError: in the others, where the first meets a UserError.
    """
    if world_size() == 1:
        return work()
    result, error = _attempt(work) if is_main_process() else (None, None)
    message: list[Any] = [(result, error is None)]
    with conversation():
        dist.broadcast_object_list(message, device=_CPU)
    result, succeeded = message[0]
    if not succeeded:
        raise error or PeerError("the first process ended; its message says why")
    return result


def together(work: Callable[[], T]) -> T:
    """Do ``work`` in every process, and go on only if all succeed.

    Raises:
        UserError: in the first process, that of the first one to meet one.
        PeerError: in the others.
    """
    if world_size() == 1:
        return work()
    result, error = _attempt(work)
    errors: list[Any] = [None] * world_size()
    with conversation():
        dist.all_gather_object(errors, None if error is None else f"process {rank()}: {error}")
    failed = [text for text in errors if text]
    if not failed:
        return result
    if not is_main_process():
        raise PeerError("a process ended; the first one says why")
    raise error or UserError(failed[0])


def _attempt(work: Callable[[], T]) -> tuple[Any, UserError | None]:
    try:
        return work(), None
    except UserError as error:
        return None, error


@contextlib.contextmanager
def conversation() -> Iterator[None]:
    """Join the group where there is one and this process isn't in it yet; say so where a partner is gone.

    Raises:
        PeerError: if another process ended.
    """
    try:
        if world_size() > 1 and not dist.is_initialized():
            dist.init_process_group()
            atexit.register(dist.destroy_process_group)
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise PeerError(
                f"another process of this run ended, so that process {rank()} can't go on; its own message, above or "
                "below, says why. The same command goes on from the last checkpoint"
            ) from error
        raise
