"""Checkpoints: plain containers and tensors only, written atomically, loaded with ``weights_only=True``."""

import io
from pathlib import Path
from typing import Any

import torch

from whtnet.errors import UserError
from whtnet.files import atomic_write

FORMAT = 3
CHECKPOINT = "checkpoint.pt"  # in the folder of a run


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that can't be read, or is another run's."""


def save_checkpoint(path: Path, state: dict[str, Any], fingerprint: str) -> None:
    """Write ``state`` (plain containers and tensors) so that a crash leaves either the old file or the new one.

    Args:
        path: the file.
        state: what to keep.
        fingerprint: identifies the settings; loading under other settings is refused.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "fingerprint": fingerprint, **state}, buffer)
    atomic_write(path, buffer.getvalue())


def load_checkpoint(path: Path, fingerprint: str | None, device: torch.device) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, tensors on ``device``; ``fingerprint`` None takes any settings.

    Raises:
        CheckpointError: if the file is damaged, no checkpoint of this package, or of a run with other settings.
    """
    remedy = "move it away to start afresh, or pass resume=never"
    if fingerprint is None:
        remedy = "name the folder of a run, or the checkpoint.pt in it"
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror or error}); {remedy}") from error
    except Exception as error:  # torch raises many kinds for a damaged or foreign file, and says much
        raise CheckpointError(f"{path} can't be read as a checkpoint, it is damaged or none; {remedy}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this version of whtnet; {remedy}")
    if fingerprint is not None and state["fingerprint"] != fingerprint:
        raise CheckpointError(f"{path} belongs to a run with other settings; {remedy}")
    return state
