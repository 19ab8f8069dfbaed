"""The loss of a training step."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whtnet.errors import UserError


class NonFiniteLossError(UserError, RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Loss:
    """Cross-entropy, and what a teacher's answers add to it; attributes as the arguments of :func:`fit`."""

    label_smoothing: float
    teacher: nn.Module | None
    distill: float
    temperature: float

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor | None:
        """``(N, classes)``, or None without a teacher."""
        return None if self.teacher is None else self.teacher(images)

    def __call__(self, logits: Tensor, labels: Tensor, wanted: Tensor | None) -> Tensor:
        """Mean over the batch.

        Args:
            logits: ``(N, classes)``.
            labels: ``(N,)``, or the share of each class, ``(N, classes)``.
            wanted: the teacher's logits, or None.
        """
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if wanted is None:
            return loss
        ours, theirs = (F.log_softmax(x.float() / self.temperature, 1) for x in (logits, wanted))
        # Gradients of the softened answers shrink with the temperature squared.
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.distill) * loss + self.distill * divergence
