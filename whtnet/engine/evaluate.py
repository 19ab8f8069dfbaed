"""Loss and accuracy of a model."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from whtnet import distributed
from whtnet.engine.precision import mixed_precision
from whtnet.modules import evaluation_mode


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Any, *, autocast: torch.dtype | None = None, max_batches: int | None = None
) -> dict[str, float]:
    """Mean cross-entropy ``loss`` and ``top1`` accuracy in percent of ``model`` over a loader, in all processes."""
    totals, seen = torch.zeros(2, dtype=torch.float64), 0  # the former on the device: no batch waits for another
    with evaluation_mode(model):
        for i, (images, labels) in enumerate(loader):
            if i == max_batches:
                break
            with mixed_precision(images.device, autocast):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
            correct = (logits.argmax(1) == labels).sum()
            totals = totals.to(images.device) + torch.stack([loss.double(), correct.double()])
            seen += len(labels)
    loss, correct, seen = distributed.all_reduce(torch.tensor([*totals.tolist(), seen], dtype=torch.float64)).tolist()
    return {"loss": loss / seen, "top1": 100 * correct / seen}
