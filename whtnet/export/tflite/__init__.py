"""TFLite files, for LiteRT: written directly, because converters ask for other versions of PyTorch or NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whtnet.classifier import Classifier
from whtnet.export.checks import check, require
from whtnet.export.products import as_products
from whtnet.files import atomic_write

PACKAGES = "ai-edge-litert flatbuffers"


def export_tflite(model: Classifier, path: Path) -> float:
    """Write a TFLite file that takes ``(N, H, W, C)``; returns the largest difference from the model's logits.

    Raises:
        ExportError: if LiteRT is missing, the network has a module without a counterpart, or the difference is above
            1e-4.
    """
    require(PACKAGES)
    from whtnet.export.tflite.network import lower

    written = lower(as_products(model), model.input_size)
    interpreter = tflite_interpreter(written)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(run_tflite(interpreter, images.permute(0, 2, 3, 1).contiguous().numpy()))

    difference = check(model, run, "LiteRT")
    atomic_write(path, written)
    return difference


def tflite_interpreter(model: bytes | Path, threads: int | None = None) -> Any:
    """A LiteRT interpreter on the CPU, with XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    content = model if isinstance(model, bytes) else model.read_bytes()
    return Interpreter(model_content=content, num_threads=threads)


def run_tflite(interpreter: Any, images: np.ndarray) -> np.ndarray:
    """The output of an interpreter for an input of any batch, such as ``(N, H, W, C)`` float32 in 0..1."""
    taken, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    if tuple(interpreter.get_input_details()[0]["shape"]) != images.shape:
        interpreter.resize_tensor_input(taken, images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(taken, images)
    interpreter.invoke()
    return interpreter.get_tensor(given)
