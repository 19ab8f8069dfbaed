"""Machine code by PyTorch's AOTInductor: libtorch runs it, from Python or C++, without the model's code."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from whtnet.classifier import Classifier
from whtnet.export.checks import ExportError, check, example_images, quietly
from whtnet.export.products import as_products
from whtnet.files import atomic_write


def export_aoti(model: Classifier, path: Path) -> float:
    """Compile for this machine's CPU and write a package; returns the largest difference from the model's logits.

    Raises:
        ExportError: if there is no C++ compiler, or the difference is above 1e-4.
    """
    program = torch.export.export(
        as_products(model),
        (example_images(model, 2),),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    from torch import _inductor

    with tempfile.TemporaryDirectory() as folder, quietly():
        package = Path(folder, "model.pt2")
        try:
            _inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs={"freezing": True})
        except Exception as error:  # of the compiler's driver, whatever it raises
            raise ExportError(f"AOTInductor can't compile the model (it needs a C++ compiler): {error}") from error
        difference = check(model, load_aoti(package), "AOTInductor")
        atomic_write(path, package.read_bytes())
    return difference


def load_aoti(path: Path) -> Callable[[Tensor], Tensor]:
    """A package as a function of images."""
    from torch import _inductor

    return _inductor.aoti_load_package(str(path))
