"""A trained classifier as files for other programs: ONNX, ONNX with 8-bit convolutions, torch.export, safetensors.

All of them take ``(N, C, H, W)`` float32 pixels in 0..1, for any N, and give ``(N, classes)`` logits. What is written
is compared with the model first; a program that disagrees is not left behind.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whtnet.classifier import Classifier
from whtnet.errors import UserError
from whtnet.files import atomic_write

TOLERANCE = 1e-4  # of the logits, in units of the largest one, at least 1

_BATCHES = (1, 7)


class ExportError(UserError, RuntimeError):
    """A model that can't be exported, a library that is missing, or a file that does not do what the model does."""


def export_onnx(model: Classifier, path: Path) -> float:
    """Write an ONNX file; returns the largest difference from the model's logits, in ONNX Runtime.

    Raises:
        ExportError: if ONNX or ONNX Runtime is missing, or the difference is above 1e-4.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    buffer = io.BytesIO()
    with _quietly():
        program = torch.onnx.export(
            model.eval(),
            (_images(model, 2),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
        program.save(buffer)
    session = onnx_session(buffer.getvalue())
    difference = _check(model, lambda x: torch.from_numpy(run_onnx(session, x.numpy())), "ONNX Runtime")
    atomic_write(path, buffer.getvalue())
    return difference


def export_torch(model: Classifier, path: Path) -> float:
    """Write a program of :mod:`torch.export`; returns the largest difference from the model's logits.

    Raises:
        ExportError: if the difference is above 1e-4.
    """
    batch = torch.export.Dim("batch")
    program = torch.export.export(model.eval(), (_images(model, 2),), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    difference = _check(model, torch.export.load(buffer).module(), "torch.export")
    atomic_write(path, buffer.getvalue())
    return difference


def export_safetensors(model: Classifier, folder: Path) -> float:
    """Write ``model.safetensors``, ``config.json`` and a model card; returns the difference from the model's logits.

    Raises:
        ExportError: if the difference is above 1e-4.
    """
    model.eval().save_pretrained(folder)
    return _check(model, Classifier.load(folder), "the saved model")


def quantize_onnx(source: Path, path: Path, images: Tensor) -> None:
    """Write a copy of an ONNX file whose convolutions compute with 8-bit integers; all else stays float32.

    The Walsh-Hadamard layers keep their precision: their thresholds cut off small coefficients.

    Args:
        source: a file of :func:`export_onnx`.
        path: the file to write.
        images: ``(N, C, H, W)`` in 0..1, whose activations set the scales; a few hundred of the training set.

    Raises:
        ExportError: if ONNX Runtime is missing.
    """
    _require("onnx", "onnxruntime")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images.split(32))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    prepared, quantized = (path.with_name(f".{path.name}.{step}") for step in ("prepared", "quantized"))
    try:
        with _quietly():
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(quantized),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        atomic_write(path, quantized.read_bytes())
    finally:
        for file in (prepared, quantized):
            file.unlink(missing_ok=True)


def onnx_session(model: bytes | Path, threads: int | None = None) -> Any:
    """An ONNX Runtime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_onnx(session: Any, images: np.ndarray) -> np.ndarray:
    """Logits of a session for ``(N, C, H, W)`` float32 in 0..1."""
    return session.run(None, {"images": images})[0]


def _images(model: Classifier, count: int) -> Tensor:
    return torch.rand(count, *model.input_size, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def _check(model: Classifier, exported: Callable[[Tensor], Tensor], what: str) -> float:
    difference = 0.0
    for count in _BATCHES:
        images = _images(model, count)
        expected = model(images)
        error = (exported(images) - expected).abs().max().item()
        difference = max(difference, error / max(1.0, expected.abs().max().item()))
    if not difference <= TOLERANCE:
        raise ExportError(f"{what} differs from the model by {difference:.2g}, more than {TOLERANCE:g}")
    return difference


def _require(*packages: str) -> None:
    import importlib.util

    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ExportError(f"{', '.join(missing)} missing: pip install onnx onnxscript onnxruntime")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' progress messages."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
