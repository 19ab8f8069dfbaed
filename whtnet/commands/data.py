"""The data of a trained classifier, for the command lines that measure on it."""

import re
from collections.abc import Sequence

import torch

from whtnet.classifier import Classifier
from whtnet.commands.compose import compose_alone
from whtnet.data import DatasetError, Loaders, load_dataset
from whtnet.errors import UserError, few


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
    for word in overrides:
        if not re.fullmatch(r"dataset(\.\w+)+=.+", word, re.DOTALL):
            raise UserError(_no_setting(word))
    given = compose_alone(overrides)
    normalisation = {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
    chosen = given.get("dataset", {})
    known = model.dataset if chosen.get("name", model.dataset.get("name")) == model.dataset.get("name") else {}
    held_out = known.get("holdout", 0.0)
    if known and "root" not in chosen and chosen.get("holdout", held_out) != held_out:
        raise UserError(
            f"dataset.holdout={chosen['holdout']} would hold out images that the model was trained on; in training it "
            f"was {held_out:g}"
        )
    settings = {**known, **chosen, **normalisation}
    if "name" not in settings:
        raise DatasetError("the model does not say what it was trained on; pass dataset.name=…")
    dataset = load_dataset(**settings)
    _compare(dataset.classes, model.classes, dataset.title)
    if dataset.input_size != model.input_size:
        raise DatasetError(
            f"{dataset.title} has images of {dataset.input_size}, but the model takes {model.input_size}"
        )
    return dataset.loaders(batch_size=batch_size, device=device, seed=0)


def _no_setting(word: str) -> str:
    if word.startswith("dataset="):
        return f"{word} is no setting of a data set; for another one give dataset.name={word.removeprefix('dataset=')}"
    if "=" not in word and "/" in word:  # a pattern such as runs/digits/*-seed0-* that fits several runs
        return f"{word!r} is one model too many; give one"
    return f"{word!r} does not apply to a trained model; only settings of the data set do: dataset.NAME=VALUE"


def _compare(found: Sequence[str], known: Sequence[str], title: str) -> None:
    """Raise a DatasetError unless the classes of the data are the model's, in its order."""
    if list(found) == list(known):
        return
    if sorted(found) == sorted(known):
        first = next(i for i, pair in enumerate(zip(found, known, strict=True)) if len(set(pair)) > 1)
        raise DatasetError(
            f"{title} has the model's classes in another order: the first to differ, number {first}, is "
            f"{found[first]!r} there and {known[first]!r} to the model; rename folders, or train anew"
        )
    more, fewer = ([name for name in a if name not in set(b)] for a, b in ((found, known), (known, found)))
    raise DatasetError(
        f"{title} has other classes than the model: it lacks {few(fewer) or 'none'}, and the model does not know "
        f"{few(more) or 'none'}"
    )
