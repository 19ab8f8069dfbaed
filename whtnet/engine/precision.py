"""Mixed precision: what is computed in bfloat16, and what is not."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def mixed_precision(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """A context in which forward passes on ``device`` autocast to ``dtype``; with None, they are left alone.

    On a CPU, depthwise convolutions with a stride, or larger than 3×3, are computed in float32 all the same, their
    results given in ``dtype``: in bfloat16 their backward passes are 5 to 50 times slower, half of a MobileNet's
    training step.
    """
    if dtype is None:
        yield
        return
    exceptions = _Float32Depthwise(dtype) if device.type == "cpu" else contextlib.nullcontext()
    with torch.autocast(device.type, dtype), exceptions:
        yield


class _Float32Depthwise(TorchFunctionMode):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Take over one function; leave all others alone."""
        return (self._conv2d if function is F.conv2d else function)(*args, **(kwargs or {}))

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        strided = max(stride if isinstance(stride, Sequence) else [stride]) > 1
        large = max(weight.shape[-2:]) > 3
        if not ((strided or large) and groups == input.shape[-3] > 1):
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        with torch.autocast("cpu", enabled=False):
            input, weight, bias = input.float(), weight.float(), None if bias is None else bias.float()
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups).to(self.dtype)
