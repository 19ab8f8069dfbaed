"""What all exports share: no file is left behind that does not do what the model does."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from whtnet.classifier import Classifier
from whtnet.errors import UserError
from whtnet.modules import evaluation_mode

TOLERANCE = 1e-4  # of the logits, in units of the largest one, at least 1

_BATCHES = (1, 7)


class ExportError(UserError, RuntimeError):
    """A model that can't be exported, a library that is missing, or a file that does not do what the model does."""


def example_images(model: Classifier, count: int) -> Tensor:
    """Random images of the model's size, the same for the same ``count``."""
    return torch.rand(count, *model.input_size, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def check(model: Classifier, exported: Callable[[Tensor], Tensor], what: str) -> float:
    """The largest difference between the logits of ``exported`` and of the model in evaluation mode.

    Batches of 1 and 7 images are compared.

    Raises:
        ExportError: if it is above 1e-4, or where logits are no finite numbers.
    """
    difference = 0.0
    for count in _BATCHES:
        images = example_images(model, count)
        with evaluation_mode(model):
            expected = model(images)
        if not expected.isfinite().all():
            raise ExportError("the model's logits are no finite numbers, with which nothing can be compared")
        error = (exported(images) - expected).abs().max().item() / max(1.0, expected.abs().max().item())
        if not error <= TOLERANCE:  # nor is NaN
            raise ExportError(f"{what} differs from the model by {error:.2g}, more than {TOLERANCE:g}")
        difference = max(difference, error)
    return difference


def require(packages: str) -> None:
    """Fail unless these packages, named as pip names them, are installed.

    Raises:
        ExportError: with the command that installs them.
    """
    names = packages.replace("-", "_").split()
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ExportError(f"{', '.join(missing)} missing: pip install {packages}")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the exporters' progress messages."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
