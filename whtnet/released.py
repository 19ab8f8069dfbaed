"""The networks that the authors of HT-2023 released, as classifiers of ours.

Their checkpoints and logs lie in the public repository phy710/ICML2023-HT (MIT licence): ResNet-20 for CIFAR-10 in the
no-bias form, plain and with HT-perceptrons. Read for facts: their transform is H forwards and H/n back; the
coefficients of the WHTConv networks are in sequency order, those of HTConv in natural order.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from whtnet.backbones.state_dicts import check_state_dict, read_state_dict
from whtnet.classifier import Classifier
from whtnet.data.sources import TORCHVISION
from whtnet.errors import UserError
from whtnet.layers import HTPerceptron2d
from whtnet.policy import explicit_policy, load_policy
from whtnet.transforms import sequency_permutation

FOLDER = "WHTNET_HT2023"
"""Environment variable with the folder of the checkpoints and logs."""

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class ReleasedError(UserError, ValueError):
    """Released files that are not there, or don't hold what they should."""


class ReleasedFilesNotFoundError(ReleasedError):
    """Nobody said where the released files lie."""


@dataclass(frozen=True)
class ReleasedModel:
    """A released network.

    Attributes:
        stem: of its files, ``STEM.pth`` and ``STEM.test_acc.npy``.
        policy: ours that replaces what theirs replaces.
        order: of its coefficients.
    """

    stem: str
    policy: str
    order: str = "sequency"


MODELS = {
    "ht2023/resnet20": ReleasedModel("resnet20", "none"),
    "ht2023/resnet20-1path": ReleasedModel("resnet20-WHTConvx1", "ht2023/1path"),
    "ht2023/resnet20-3path": ReleasedModel("resnet20-WHTConvx3", "ht2023/3path"),
    "ht2023/resnet20-3path-ht": ReleasedModel("resnet20-HTConvx3", "ht2023/3path", "natural"),
    "ht2023/resnet20-5path": ReleasedModel("resnet20-WHTConvx5", "ht2023/5path"),
}


def released_model(name: str) -> ReleasedModel:
    """The model of a name.

    Raises:
        ReleasedError: if there is none, with the names that there are.
    """
    if name not in MODELS:
        raise ReleasedError(f"no released model {name!r}; choose one of {', '.join(MODELS)}")
    return MODELS[name]


def released_folder() -> Path:
    """Where the released files lie.

    Raises:
        ReleasedFilesNotFoundError: if the environment does not say, or says no folder.
    """
    given = os.environ.get(FOLDER)
    if not given or not Path(given).is_dir():
        found = f"{FOLDER}={given} is no folder" if given else f"{FOLDER} is not set"
        raise ReleasedFilesNotFoundError(
            f"{found}; it is the folder of HT-2023's checkpoints and logs, which come from the authors' "
            "public repository phy710/ICML2023-HT"
        )
    return Path(given)


def logged_accuracies(folder: Path, name: str) -> list[float]:
    """The authors' test top-1 in percent, of every epoch.

    Raises:
        ReleasedError: naming the file, if it is not there or is none.
    """
    path = folder / f"{released_model(name).stem}.test_acc.npy"
    try:
        log = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ReleasedError(f"{path} can't be read as a log of accuracies: {error}") from error
    return (100 * log.reshape(-1)).tolist()


def import_released(path: Path, name: str) -> Classifier:
    """A classifier, in evaluation mode, with the weights of a released checkpoint.

    Args:
        path: the ``.pth`` file.
        name: of the model, a key of :data:`MODELS`.

    Raises:
        ReleasedError: for a name that there is not.
        BackboneError: naming the file and what in it is missing, left over or of another shape.
    """
    model = released_model(name)
    policy = explicit_policy(load_policy(model.policy))
    backbone = {"name": "resnet20", "form": "no_bias"}
    facts = {"data set": "cifar10", "weights": f"{model.stem}.pth of HT-2023's authors (phy710/ICML2023-HT, MIT)"}
    _, _, mean, std = TORCHVISION["cifar10"]
    data = {"name": "cifar10", "mean": list(mean), "std": list(std)}
    classifier = Classifier(
        backbone=backbone,
        policy=policy,
        classes=_CLASSES,
        input_size=(3, 32, 32),
        mean=mean,
        std=std,
        dataset=data,
        training=facts,
    )
    classifier.network.load_state_dict(_translated(path, classifier.network, model.order), strict=False)
    return classifier.eval()


# Parts of their names, and what stands in ours instead.
_RENAMED = (
    (r"^conv1\.0\.", "conv1."),
    (r"^conv1\.1\.", "bn1."),
    (r"\.left\.0\.", ".conv1."),
    (r"\.left\.1\.", ".bn1."),
    (r"\.left\.3\.conv\.", ".conv2.convs."),
    (r"\.left\.3\.ST\.(\d+)\.T$", r".conv2.threshold.\1"),
    (r"\.left\.3\.v\.", ".conv2.weight."),
    (r"\.left\.3\.", ".conv2."),
    (r"\.left\.4\.", ".bn2."),
)


def _translated(path: Path, network: nn.Module, order: str) -> dict[str, Tensor]:
    """The state dict of ``network`` that a released checkpoint holds."""
    theirs = {_our_name(name): value for name, value in read_state_dict(path).items()}
    ours = network.state_dict()
    stacked = [
        f"{name}.{parameter}"
        for name, module in network.named_modules()
        if isinstance(module, HTPerceptron2d)
        for parameter in module.spectral_parameters  # of all paths here, one by one there
    ]
    wanted = {name: value for name, value in ours.items() if name not in stacked}
    wanted |= {f"{name}.{path}": value for name in stacked for path, value in enumerate(ours[name])}
    check_state_dict(f"{path} is another network (names are ours)", theirs, wanted)
    weights = {name: theirs[name] for name in ours if name in theirs}
    for name in stacked:
        paths = torch.stack([theirs[f"{name}.{path}"] for path in range(len(ours[name]))])
        weights[name] = _natural(paths) if order == "sequency" else paths
    return weights


def _our_name(name: str) -> str:
    for pattern, ours in _RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def _natural(spectra: Tensor) -> Tensor:
    """Maps of coefficients ``(P, h, w)`` from sequency into natural order."""
    for dim in (-2, -1):
        spectra = spectra.index_select(dim, sequency_permutation(spectra.shape[dim]).argsort())
    return spectra
