"""Trainable thresholding in the transform domain, elementwise (method: smooth of the paper, soft for the ablation)."""

from collections.abc import Callable

import torch
from torch import Tensor


def smooth_threshold(x: Tensor, t: Tensor) -> Tensor:
    """Smooth-thresholding ``tanh(x) · max(|x| − t, 0)``, the paper's non-linearity.

    Args:
        x: coefficients, any shape.
        t: thresholds, broadcastable to ``x``. Meant to be ≥ 0; a negative one amplifies instead of shrinking.

    Returns:
        Tensor of the broadcast shape.
    """
    return torch.tanh(x) * torch.relu(x.abs() - t)


def soft_threshold(x: Tensor, t: Tensor) -> Tensor:
    """Soft-thresholding ``sign(x) · max(|x| − t, 0)``; arguments and result as :func:`smooth_threshold`."""
    return torch.sign(x) * torch.relu(x.abs() - t)


THRESHOLDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"smooth": smooth_threshold, "soft": soft_threshold}
