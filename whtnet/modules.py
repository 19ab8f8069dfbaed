"""Modes of any network's modules while it is trained or looked at, and what they are called with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode; afterwards every module in its own mode again, frozen batch norms too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def train_(model: nn.Module) -> None:
    """Put ``model`` into training mode, but for its frozen parts.

    Those are the modules in evaluation mode that have parameters, none of which requires a gradient: all that lies in
    them stays in its mode.
    """
    frozen = [part for part in model.modules() if not part.training and _is_frozen(part)]
    modes = [(module, module.training) for part in frozen for module in part.modules()]
    model.train()
    for module, training in modes:
        module.training = training


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def first_input(args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """What a hook ``with_kwargs`` sees a module called with first, by position or by keyword; None without any."""
    return next(iter((*args, *keywords.values())), None)
