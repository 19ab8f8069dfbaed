"""What observers of any network share: its mode while they look, and what its modules are called with."""

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


def first_input(args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """What a hook ``with_kwargs`` sees a module called with first, by position or by keyword; None without any."""
    return next(iter((*args, *keywords.values())), None)
