"""Files of PyTorch itself: torch.export, and weights with what builds the network."""

import io
from pathlib import Path

import torch

from whtnet.classifier import Classifier
from whtnet.export.checks import check, example_images, plain_copy
from whtnet.files import atomic_write


def export_torch(model: Classifier, path: Path) -> float:
    """Write a program of :mod:`torch.export`; returns the largest difference from the model's logits.

    Raises:
        ExportError: if the difference is above 1e-4.
    """
    batch = torch.export.Dim("batch")
    program = torch.export.export(plain_copy(model), (example_images(model, 2),), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    difference = check(model, torch.export.load(buffer).module(), "torch.export")
    atomic_write(path, buffer.getvalue())
    return difference


def export_safetensors(model: Classifier, folder: Path) -> float:
    """Write ``model.safetensors``, ``config.json`` and a model card; returns the difference from the model's logits.

    Raises:
        ExportError: if the difference is above 1e-4.
    """
    model.save_pretrained(folder)
    return check(model, Classifier.load(folder), "the saved model")
