"""The data of a trained classifier, for the command lines that measure on it."""

from collections.abc import Sequence

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from whtnet.classifier import Classifier
from whtnet.data import DatasetError, Loaders, load_dataset
from whtnet.errors import UserError


def load_data(model: Classifier, overrides: Sequence[str], batch_size: int, device: torch.device) -> Loaders:
    """Batches of the set that ``model`` was trained on, normalised as it was trained.

    Args:
        model: the classifier.
        overrides: such as ``dataset.root=FOLDER`` or ``dataset.name=cifar10``.
        batch_size: images a step.
        device: of the batches.

    Raises:
        UserError: if the data can't be had, or has other classes or another size.
    """
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except OmegaConfBaseException as error:
        raise UserError(f"{' '.join(overrides)}: {error}") from error
    if unknown := sorted(set(given) - {"dataset"}):
        raise UserError(f"unknown setting {unknown[0]}; only dataset.NAME=VALUE applies to a trained model")
    normalisation = {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
    settings = {**model.dataset, **given.get("dataset", {}), **normalisation}
    if "name" not in settings:
        raise DatasetError("the model does not say what it was trained on; pass dataset.name=…")
    dataset = load_dataset(**settings)
    if dataset.classes != model.classes:
        raise DatasetError(
            f"{dataset.name} has the classes {_few(dataset.classes)}, but the model knows {_few(model.classes)}"
        )
    if dataset.input_size != model.input_size:
        raise DatasetError(f"{dataset.name} has images of {dataset.input_size}, but the model takes {model.input_size}")
    return dataset.loaders(batch_size=batch_size, device=device, seed=0)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")
