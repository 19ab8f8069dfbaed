"""Files of PyTorch itself: torch.export, and weights with what builds the network."""

import io
import tempfile
from pathlib import Path

import torch

from whtnet.classifier import Classifier
from whtnet.engine import CheckpointError
from whtnet.export.checks import ExportError, check, example_images, plain_copy
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
        ExportError: if the difference is above 1e-4, or the network is no longer what its settings build.
    """
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        try:
            back = Classifier.load(saved)
        except CheckpointError as error:
            raise ExportError(
                f"the network is no longer what its settings build, so it can't be saved with them: {error.__cause__}"
            ) from error
        difference = check(model, back, "the saved model")
        for file in Path(saved).iterdir():
            atomic_write(folder / file.name, file.read_bytes())
    return difference
