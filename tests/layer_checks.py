"""How a fast backend is held against the reference, for all of them."""

import itertools
import os

import torch

from whtnet.kernels import Options, reference

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
_BF16_ULP = 1 if os.environ.get("TRITON_INTERPRET") == "1" else 0.51  # Triton's interpreter does not round, it cuts off
OPTIONS = [
    {"kind": kind, "clamp": clamp, "keep_dc": dc}
    for kind, clamp, dc in itertools.product(("smooth", "soft"), (False, True), (False, True))
] + [{"kind": kind, "keep_dc": dc, "norm": "backward"} for kind, dc in (("smooth", False), ("soft", True))]


def check(fast, slow, x, parameters):
    """Values and gradients of ``fast`` in the dtype of ``x`` against ``slow`` in float64."""
    x = x.requires_grad_()
    y = fast(x, *parameters)
    double = [None if v is None else v.detach().to(F64).requires_grad_() for v in (x, *parameters)]
    expected = slow(*double)
    assert (y.shape, y.dtype) == (expected.shape, x.dtype)
    assert y.stride() == slow(x.detach(), *[None if p is None else p.detach() for p in parameters]).stride()
    g = torch.randn_like(y)
    inputs = [v for v in (x, *parameters) if v is not None]
    got = torch.autograd.grad(y, inputs, g)
    wanted = torch.autograd.grad(expected, [v for v in double if v is not None], g.to(F64))
    eps = torch.finfo(x.dtype).eps
    for a, b in zip((y, *got), (expected, *wanted), strict=True):
        assert (a.dtype, a.shape) == (x.dtype if a.shape == x.shape or a is y else a.dtype, b.shape)
        scale = b.detach().abs().max().item() if b.numel() else 0.0
        low = a.dtype in (BF16, F16)
        torch.testing.assert_close(
            a.detach().to(F64),
            b.detach(),
            rtol=(_BF16_ULP if a.dtype == BF16 else 0.51) * eps if low else 0,
            atol=(1e-5 if low else 60 * eps) * max(scale, 1),
        )


def reference_fwht2d(x, threshold, weight=None, **options):
    """``functional.fwht2d`` in plain PyTorch."""
    return reference.fwht2d(x, threshold, weight, Options(**options))


def reference_bwht1d(x, threshold, out_channels, weight=None, *, stride=1, **options):
    """``functional.bwht1d`` in plain PyTorch."""
    return reference.bwht1d(x, threshold, weight, out_channels, stride, Options(**options))


def weighted(layer, **flags):
    """``functional.bwht1d`` or its like as a function of input, thresholds and weights."""
    return lambda x, t, v: layer(x, t, weight=v, **flags)


def parameter(*shape, dtype, low=-0.2, high=0.8, device="cpu"):
    return torch.empty(shape, dtype=F64 if dtype == F64 else F32, device=device).uniform_(low, high).requires_grad_()
