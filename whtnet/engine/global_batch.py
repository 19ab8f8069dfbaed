"""Layers that look at a whole batch, where each process holds only a share of it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from whtnet import distributed

_DROPOUTS = {
    function: inspect.signature(function)
    for function in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
}


class GlobalBatch(TorchFunctionMode):
    """A context in which batch norm and dropout treat the shares of all processes as the one batch that they are.

    Batch norm takes the statistics of all shares (forward, backward and running ones); dropout of every kind and
    stochastic depth draw one mask for the whole batch, of which each process applies its rows. So a step is the same as
    with one process, up to rounding (on a GPU, where the order of random numbers depends on the shape, up to other
    masks). What is the same for all images, as stochastic depth in ``batch`` mode, is so in all processes.
    It works on the functions, so that modules of any library keep their class and their state_dict.
    (``torch.nn.SyncBatchNorm`` has no implementation for the CPU, and takes the place of the module.)

    Other random numbers (dropout inside fused attention, patches that are left out, noise of one's own) are those of
    each process. In a share of one image, a mask for the whole batch is taken for that image's.

    Args:
        batch_size: images in the batch, over all processes. All of them must have the same random state.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size, self.rows = batch_size, distributed.share(batch_size)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Take over batch norm, dropouts and what masks are drawn by; leave all others alone."""
        if function in _DROPOUTS:
            return self._dropout(function, *args, **(kwargs or {}))
        ours: dict[Callable[..., Any], Callable[..., Any]] = {
            F.batch_norm: _batch_norm,
            Tensor.bernoulli_: self._bernoulli_,
        }
        return ours.get(function, function)(*args, **(kwargs or {}))

    def _dropout(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        call = _DROPOUTS[function].bind(*args, **kwargs)
        call.apply_defaults()
        input, p, training, _ = call.args
        place = self._place(input)
        if not (training and p) or place is None:
            return function(*args, **kwargs)
        rows, shape = place
        whole = input.new_zeros(shape)
        if input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last):
            whole = whole.contiguous(memory_format=torch.channels_last)  # masks are drawn in the order of the memory
        whole[rows] = input
        return function(whole, p, training)[rows]

    def _bernoulli_(self, noise: Tensor, p: float = 0.5, **options: Any) -> Tensor:
        if (place := self._place(noise)) is None:
            return noise.bernoulli_(p, **options)
        rows, shape = place
        return noise.copy_(noise.new_empty(shape).bernoulli_(p, **options)[rows])

    def _place(self, share: Tensor) -> tuple[slice, tuple[int, ...]] | None:
        """The rows of ``share`` in the whole, and the whole's shape; None where images have no rows of their own.

        An image may have several, as windows of its own.
        """
        if not share.dim():
            return None
        each, rest = divmod(len(share), self.rows.stop - self.rows.start)
        rows = slice(self.rows.start * each, self.rows.stop * each)
        return None if rest else (rows, (self.batch_size * each, *share.shape[1:]))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    mean, var, count = _statistics(input.detach())
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    return _Normalise.apply(input, weight, bias, mean, var, count, eps)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance of each channel, ``(C,)``, over all processes; number of values, ``(1,)``."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
    shares = distributed.all_gather(torch.cat([mean, var, mean.new_tensor([x.numel() // x.shape[1]])]))
    means, variances, counts = shares.split([len(mean), len(mean), 1], dim=1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    return mean, (counts * (variances + (means - mean) ** 2)).sum(0) / total, total


class _Normalise(torch.autograd.Function):
    """``(x − mean) / sqrt(var + eps) · weight + bias``, whose gradient knows that mean and var come from all shares."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        # As if mean and var were constants, which leaves out their part in the gradient of x: an affine function of x.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, (True, True, True)
        )
        of_weight, of_bias = distributed.all_reduce(torch.stack([grad_weight, grad_bias])) / count
        inverse = (var + ctx.eps).rsqrt()
        slope = -weight * inverse**2 * of_weight
        offset = -weight * inverse * of_bias - slope * mean
        shape = (1, -1, *[1] * (x.dim() - 2))
        grad_x = (grad_x + slope.view(shape) * x + offset.view(shape)).to(x.dtype)
        return grad_x, grad_weight, grad_bias, None, None, None, None
