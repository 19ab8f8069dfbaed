"""Thresholds against the formulas, written out here once more."""

import math

import pytest
import torch

from whtnet.thresholds import THRESHOLDS, smooth_threshold, soft_threshold

F64 = torch.float64
# (x, T): zero, |x| = T on both sides, just beyond and below it, far out, T = 0, T < 0
POINTS = [
    (x, t)
    for t in (0.0, 0.05, 0.5, -0.3)
    for x in (0.0, 0.05, -0.05, 0.5, -0.5, 0.3, -0.3, 0.51, -0.49, 3.0, -20.0, 1e-8)
]


def formula(kind: str, x: float, t: float) -> tuple[float, float, float]:
    """S, dS/dx and dS/dT."""
    excess, m = max(abs(x) - t, 0.0), float(abs(x) > t)
    sign = math.copysign(1.0, x) if x else 0.0
    if kind == "soft":
        return sign * excess, sign * sign * m, -sign * m
    tanh = math.tanh(x)
    return tanh * excess, (1 - tanh**2) * excess + tanh * sign * m, -tanh * m


@pytest.mark.parametrize("kind", ["smooth", "soft"])
@pytest.mark.parametrize(("x", "t"), POINTS)
def test_value_and_gradients_follow_the_formula(kind, x, t):
    xs, ts = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (x, t))
    y = THRESHOLDS[kind](xs, ts)
    y.backward()
    torch.testing.assert_close((y.item(), xs.grad.item(), ts.grad.item()), formula(kind, x, t), rtol=1e-12, atol=1e-15)


def test_names():
    assert {"smooth": smooth_threshold, "soft": soft_threshold} == THRESHOLDS


@pytest.mark.parametrize("kind", ["smooth", "soft"])
def test_shrinks_is_odd_and_broadcasts(kind):
    x, t = torch.randn(4, 3, 8, dtype=F64), torch.rand(3, 1, dtype=F64)
    y = THRESHOLDS[kind](x, t)
    assert y.shape == x.shape
    assert (y.abs() <= x.abs()).all()
    assert (y[x.abs() <= t] == 0).all()
    assert (y[x.abs() > t] != 0).all()
    torch.testing.assert_close(THRESHOLDS[kind](-x, t), -y, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["smooth", "soft"])
def test_nan_and_inf_propagate_and_stay_in_place(kind):
    x = torch.tensor([1.0, math.nan, math.inf, -math.inf, 0.0])
    y = THRESHOLDS[kind](x, torch.tensor(0.1))
    assert y.isnan().tolist() == [False, True, False, False, False]
    assert y[2:4].tolist() == [math.inf, -math.inf]
    assert THRESHOLDS[kind](torch.ones(2), torch.tensor([math.nan, 0.0])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("kind", ["smooth", "soft"])
def test_gradcheck(kind):
    x = torch.randn(4, 8, dtype=F64, requires_grad=True)
    t = torch.rand(8, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(THRESHOLDS[kind], (x, t))
    assert torch.autograd.gradgradcheck(THRESHOLDS[kind], (x, t))
