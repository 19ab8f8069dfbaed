"""The Walsh-Hadamard layers as modules: parameters, their initial values, checks; the arithmetic is in `functional`.

Every layer draws its thresholds from U(0, 0.1) unless told otherwise, and names its trainable transform-domain
parameters in ``spectral_parameters``, so that an optimiser can treat them apart (see
:func:`spectral_parameter_names`).
"""

from whtnet.layers.base import SpectralLayer, spectral_parameter_names
from whtnet.layers.bwht1d import BWHT1d
from whtnet.layers.fwht2d import FWHT2d, NormedFWHT2d, PreGAPFWHT2d, PreNormFWHT2d, SeparableFWHT2d
from whtnet.layers.ht_perceptron import HTPerceptron2d

__all__ = [
    "BWHT1d",
    "FWHT2d",
    "HTPerceptron2d",
    "NormedFWHT2d",
    "PreGAPFWHT2d",
    "PreNormFWHT2d",
    "SeparableFWHT2d",
    "SpectralLayer",
    "spectral_parameter_names",
]
