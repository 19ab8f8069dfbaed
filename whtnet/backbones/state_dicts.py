"""State dicts in files: read, and compared with what a network wants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from whtnet.backbones.errors import BackboneError
from whtnet.errors import few

_WRAPPERS = ("state_dict", "model")  # keys of checkpoints that hold more than a state dict
_SHOWN = 3


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The state dict of a ``.safetensors`` file or of one that torch.save wrote, alone or in a checkpoint.

    Raises:
        BackboneError: naming the file, if it can't be read or holds none.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BackboneError(f"{file} can't be read ({error.strerror or error}); give another file") from error
    except Exception as error:  # torch raises many kinds for a damaged or foreign file, and says much
        raise BackboneError(f"{file} can't be read as weights, it is damaged or none; give another file") from error
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not _is_state_dict(found):
        raise BackboneError(f"{file} holds no state dict, which names tensors")
    return {name.removeprefix("module."): value for name, value in found.items()}  # DistributedDataParallel's prefix


def _is_state_dict(found: Any) -> bool:
    return isinstance(found, Mapping) and bool(found) and all(isinstance(value, Tensor) for value in found.values())


def check_state_dict(what: str, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Compare names and shapes; counters of batch norms may be missing, as in files of old versions.

    Args:
        what: how a message begins, such as ``FILE does not fit the backbone``.
        weights: of a file.
        wanted: of the network.

    Raises:
        BackboneError: naming what is missing, left over or of another shape.
    """
    counters = [name for name in wanted if name.endswith("num_batches_tracked")]
    problems = [f"lacks {name}" for name in wanted if name not in weights and name not in counters]
    problems += [f"has {name}, which the network has not" for name in weights if name not in wanted]
    problems += [
        f"has {name} of shape {tuple(value.shape)}, not {tuple(wanted[name].shape)}"
        for name, value in weights.items()
        if name in wanted and wanted[name].shape != value.shape
    ]
    if problems:
        raise BackboneError(f"{what}: it {few(problems, most=_SHOWN, separator='; ')}")
