"""What the fast backends share: inputs that they take, results of the right shape and memory format, gradients."""

from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from whtnet.kernels.reference import is_channels_last

Job = TypeVar("Job")
Gradients = tuple[Tensor, Tensor, Tensor]

MAX_BLOCK = 4096  # points of a transform: channels of a block, or h·w


def takes(x: Tensor, parameters: Iterable[Tensor | None], points: int, dtypes: Collection[torch.dtype]) -> bool:
    """Whether a kernel for ``dtypes`` takes this input, these parameters and transforms of so many points."""
    dtype = x.dtype
    if dtype not in dtypes or points > MAX_BLOCK:
        return False
    for p in parameters:
        if p is not None and (p.device != x.device or (p.dtype is torch.float64 and dtype is not torch.float64)):
            return False
    return True


def as_stored(x: Tensor) -> tuple[Tensor, torch.memory_format]:
    """The input in a memory format that kernels read, without a copy if it is in one, and that format."""
    if x.is_contiguous():
        return x, torch.contiguous_format
    return (x, torch.channels_last) if is_channels_last(x) else (x.contiguous(), torch.contiguous_format)


def empty_like_input(x: Tensor) -> Tensor:
    """A result of the shape of ``x``: channels_last for an input in channels_last, contiguous for any other."""
    return torch.empty_like(x, memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format)


def empty_gradient(x: Tensor, wanted: bool) -> Tensor:
    """The gradient of the input of a backward operator: as :func:`empty_like_input`, or empty if it is not wanted."""
    return empty_like_input(x) if wanted else x.new_empty(0)


def empty_pixels(x: Tensor, channels: int, stride: int) -> Tensor:
    """A result for ``x`` ``(N, C, *spatial)`` with other channels, subsampled; the memory format as above."""
    spatial = [(s + stride - 1) // stride for s in x.shape[2:]]
    if is_channels_last(x):
        return x.new_empty((x.shape[0], *spatial, channels)).permute(0, 3, 1, 2)
    return x.new_empty((x.shape[0], channels, *spatial))


def gradient_operator(
    job: Callable[..., Job],
    backward: Callable[[Job, Tensor, Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]],
) -> Callable[..., Gradients]:
    """A backend's operator for gradients: of the input (empty unless asked for), thresholds and weights.

    Args:
        job: what there is to do, for the input, its memory format, the thresholds and the operator's other arguments.
        backward: writes the input's gradient, its last argument; from the job, the result's gradient, the input,
            thresholds and weights, all as they are stored, to the gradients of thresholds and weights.
    """

    def operator(
        grad: Tensor, input_gradient: bool, x: Tensor, threshold: Tensor, weight: Tensor | None, *others: object
    ) -> Gradients:
        x, layout = as_stored(x)
        gx = empty_gradient(x, input_gradient)
        if grad.shape[2:] != x.shape[2:]:  # pixels that are left out
            gx.zero_()
        what, grad = job(x, layout, threshold, *others), grad.contiguous(memory_format=layout)
        threshold, weight = threshold.contiguous(), None if weight is None else weight.contiguous()
        return gx, *backward(what, grad, x, threshold, weight, gx)

    return operator
