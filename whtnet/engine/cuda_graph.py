"""Training passes as CUDA graphs: a small network's kernels take less time than telling the GPU to run them."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def recorded(model: nn.Module, images: Tensor, autocast: torch.dtype | None) -> Iterator[None]:
    """Within it, the model in training mode replays one recorded forward and one backward pass.

    Args:
        model: on a GPU, in training mode; its parameters and buffers must stay where they are in memory.
        images: ``(N, C, H, W)``, a batch as all that follow: of their shape, type and memory format.
        autocast: dtype of the passes, or None.
    """
    before = [buffer.clone() for buffer in model.buffers()]
    precision = contextlib.nullcontext() if autocast is None else torch.autocast("cuda", autocast, cache_enabled=False)
    with precision:
        torch.cuda.make_graphed_callables(model, (images,))
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)  # recording takes some passes, which batch norm counts
    try:
        yield
    finally:
        del model.forward  # of the instance, in the place of which the class's own is seen again
