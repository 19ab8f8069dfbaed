"""Walsh-Hadamard layers for neural networks: transforms, layers, and policies that put them into any backbone.

Names and modules (``whtnet.functional``, say) are imported when they are first used, so that a command line that shows
its help need not wait for PyTorch.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whtnet.fusion import fuse_for_inference
    from whtnet.kernels import backend_for, set_backend
    from whtnet.layers import (
        BWHT1d,
        FWHT2d,
        HTPerceptron2d,
        PreGAPFWHT2d,
        PreNormFWHT2d,
        SeparableFWHT2d,
        spectral_parameter_names,
    )
    from whtnet.memory import keep_freed_memory
    from whtnet.policy import Policy, apply_policy_, load_policy
    from whtnet.transforms import fwht, fwht2, hadamard_matrix, ifwht, released_order

__version__ = "0.2.0"

__all__ = [
    "BWHT1d",
    "FWHT2d",
    "HTPerceptron2d",
    "Policy",
    "PreGAPFWHT2d",
    "PreNormFWHT2d",
    "SeparableFWHT2d",
    "apply_policy_",
    "backend_for",
    "fuse_for_inference",
    "fwht",
    "fwht2",
    "hadamard_matrix",
    "ifwht",
    "keep_freed_memory",
    "load_policy",
    "released_order",
    "set_backend",
    "spectral_parameter_names",
]

_HOMES = ("fusion", "kernels", "layers", "memory", "policy", "transforms")  # where these names are
_GONE = {"recycle_results": "keep_freed_memory() lets the C library keep the memory of freed results"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in map(importlib.import_module, (f"{__name__}.{module}" for module in _HOMES)):
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    if name in _modules():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; {_GONE.get(name, f'see dir({__name__})')}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", *_modules()])


def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]
