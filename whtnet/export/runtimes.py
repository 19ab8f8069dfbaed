"""The programs that run exported networks, each with how a file is made for it and loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whtnet.classifier import Classifier
from whtnet.export.checks import missing
from whtnet.export.compiled import export_aoti, load_aoti
from whtnet.export.onnx_file import PACKAGES as ONNX_PACKAGES
from whtnet.export.onnx_file import export_onnx, onnx_session, profile_onnx, run_onnx
from whtnet.export.tflite import PACKAGES as TFLITE_PACKAGES
from whtnet.export.tflite import export_tflite, run_tflite, tflite_interpreter

Call = Callable[[Tensor], object]


@dataclass(frozen=True)
class Runtime:
    """A program that runs files of one format.

    Attributes:
        file: name of the file.
        packages: what pip installs for it.
        export: writes a file, returns the largest difference from the model's logits.
        load: a file, to be run by so many threads, as a function of ``(N, C, H, W)`` images.
        profile: seconds that a file, run by so many threads, spends on such images by kind of operator; None where the
            program does not tell.
    """

    file: str
    packages: str
    export: Callable[[Classifier, Path], float]
    load: Callable[[Path, int], Call]
    profile: Callable[[Path, int, Tensor], dict[str, float]] | None = None

    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return missing(self.packages)


def _load_onnx(path: Path, threads: int) -> Call:
    session = onnx_session(path, threads)
    return lambda images: run_onnx(session, images.numpy())


def _profile_onnx(path: Path, threads: int, images: Tensor) -> dict[str, float]:
    return profile_onnx(path, threads, images.numpy())


def _load_tflite(path: Path, threads: int) -> Call:
    interpreter = tflite_interpreter(path, threads)
    return lambda images: run_tflite(interpreter, images.permute(0, 2, 3, 1).numpy())


def _load_aoti(path: Path, threads: int) -> Call:
    torch.set_num_threads(threads)
    return load_aoti(path)


RUNTIMES = {
    "onnx": Runtime("model.onnx", ONNX_PACKAGES, export_onnx, _load_onnx, _profile_onnx),
    "tflite": Runtime("model.tflite", TFLITE_PACKAGES, export_tflite, _load_tflite),
    "aoti": Runtime("model_aoti.pt2", "torch", export_aoti, _load_aoti),
}
