"""Walsh-Hadamard layers for neural networks: transforms, layers, and policies that put them into any backbone."""

from whtnet.kernels import backend_for, set_backend
from whtnet.layers import BWHT1d, FWHT2d, HTPerceptron2d, PreGAPFWHT2d, PreNormFWHT2d, spectral_parameter_names
from whtnet.memory import keep_freed_memory
from whtnet.policy import Policy, apply_policy_, load_policy
from whtnet.transforms import fwht, fwht2, hadamard_matrix, ifwht, released_order

__version__ = "0.1.0"

__all__ = [
    "BWHT1d",
    "FWHT2d",
    "HTPerceptron2d",
    "Policy",
    "PreGAPFWHT2d",
    "PreNormFWHT2d",
    "apply_policy_",
    "backend_for",
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
