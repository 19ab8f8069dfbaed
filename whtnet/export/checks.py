"""What all exports share: no file is left behind that does not do what the model does."""

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from whtnet.classifier import Classifier
from whtnet.errors import UserError

TOLERANCE = 1e-4  # of the logits, in units of the largest one, at least 1

_BATCHES = (1, 7)
M = TypeVar("M", bound=nn.Module)


class ExportError(UserError, RuntimeError):
    """A model that can't be exported, a library that is missing, or a file that does not do what the model does."""


def example_images(model: Classifier, count: int) -> Tensor:
    """Random images of the model's size, the same for the same ``count``."""
    return torch.rand(count, *model.input_size, generator=torch.Generator().manual_seed(count))


def plain_copy(model: M) -> M:
    """A copy of ``model`` as files hold it: in evaluation mode, in float32, on the CPU."""
    # What pruning computed is no leaf of autograd, and those alone can be copied.
    computed = {id(t): t.detach() for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor)}
    return copy.deepcopy(model, computed).eval().to("cpu", torch.float32)


@torch.no_grad()
def check(model: Classifier, exported: Callable[[Tensor], Tensor], what: str) -> float:
    """The largest difference between the logits of ``exported`` and of the model's :func:`plain_copy`.

    Batches of 1 and 7 images are compared.

    Raises:
        ExportError: if it is above 1e-4, or where logits are no finite numbers.
    """
    difference, plain = 0.0, plain_copy(model)
    for count in _BATCHES:
        images = example_images(model, count)
        expected = plain(images)
        if not expected.isfinite().all():
            raise ExportError("the model's logits are no finite numbers, with which nothing can be compared")
        error = (exported(images) - expected).abs().max().item() / max(1.0, expected.abs().max().item())
        if not error <= TOLERANCE:  # nor is NaN
            raise ExportError(f"{what} differs from the model by {error:.2g}, more than {TOLERANCE:g}")
        difference = max(difference, error)
    return difference


def missing(packages: str) -> list[str]:
    """Those of the packages, named as pip names them and with spaces between, that are not installed."""
    names = packages.replace("-", "_").split()
    return [name for name in names if importlib.util.find_spec(name) is None]


def require(packages: str) -> None:
    """Fail unless these packages, see :func:`missing`, are installed.

    Raises:
        ExportError: with the command that installs them.
    """
    if lacking := missing(packages):
        raise ExportError(f"{', '.join(lacking)} missing: pip install {packages}")


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
