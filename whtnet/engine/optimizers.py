"""Whether timm has an optimiser. Settings import this late, because timm takes its time."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from whtnet.errors import did_you_mean
from whtnet.settings import ConfigError


def check_optimizer(opt: str, options: Mapping[str, Any]) -> None:
    """Make the optimiser, for a parameter that nobody needs.

    Raises:
        ConfigError: if timm has none of that name, it needs a package that isn't here, it doesn't take the options, or
            it needs second derivatives, which the training loop doesn't compute.
    """
    names = [name for name in list_optimizers() if isinstance(name, str)]
    if opt not in names:
        raise ConfigError(f"trainer.opt={opt!r} is no optimiser of timm.optim; {did_you_mean(opt, names)}")
    if get_optimizer_info(opt).second_order:
        raise ConfigError(f"trainer.opt={opt} needs second derivatives, which are not computed here; choose another")
    try:
        create_optimizer_v2([nn.Parameter(torch.zeros(2, 2))], opt=opt, lr=0.1, **options)
    except Exception as error:  # of any kind: they come from the optimisers of several libraries
        given = f" with trainer.opt_options={dict(options)}" if options else ""
        raise ConfigError(f"trainer.opt={opt}{given} can't be: {error or repr(error)}") from error
