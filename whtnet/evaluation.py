"""What a trained classifier gets right: accuracy, by class and confused with which, and how calibrated it is."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """Measures on a labelled set; accuracies in percent.

    Attributes:
        images: number of images.
        loss: mean cross-entropy, in nats.
        top1: share of images whose class comes first.
        top5: share of images whose class is among the first five.
        per_class: top-1 of every class; NaN for a class without images.
        confusion: number of images of each class (row) taken for each class (column).
        calibration_error: expected calibration error, the mean distance of confidence and accuracy over
            15 bins of confidence, in percent.
        worst_bin: the largest distance, in percent.
    """

    images: int
    loss: float
    top1: float
    top5: float
    per_class: list[float]
    confusion: list[list[int]]
    calibration_error: float
    worst_bin: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@torch.no_grad()
def collect(predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits, ``(N, classes)``, and labels, ``(N,)``, over all batches, on the CPU.

    Args:
        predict: from images to logits, such as a model in evaluation mode.
        batches: images and labels.
    """
    pairs = [(predict(images).float().cpu(), labels.cpu()) for images, labels in batches]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return logits, labels


def measure_logits(logits: Tensor, labels: Tensor) -> Evaluation:
    """Evaluate logits, ``(N, classes)``, against labels, ``(N,)`` int64."""
    classes = logits.shape[1]
    probabilities = logits.softmax(1)
    confusion = multiclass_confusion_matrix(logits.argmax(1), labels, classes)

    def accuracy(k: int) -> float:
        return 100 * multiclass_accuracy(logits, labels, classes, average="micro", top_k=min(k, classes)).item()

    def calibration(norm: Literal["l1", "max"]) -> float:
        error = multiclass_calibration_error(probabilities, labels, classes, n_bins=CALIBRATION_BINS, norm=norm)
        return 100 * error.item()

    return Evaluation(
        images=len(labels),
        loss=F.cross_entropy(logits, labels).item(),
        top1=accuracy(1),
        top5=accuracy(5),
        per_class=(100 * confusion.diag() / confusion.sum(1)).tolist(),
        confusion=confusion.tolist(),
        calibration_error=calibration("l1"),
        worst_bin=calibration("max"),
    )
