"""Backbones by name."""

from whtnet.backbones.cifar_resnet import CifarResNet
from whtnet.backbones.errors import BackboneError
from whtnet.backbones.registry import (
    CIFAR_RESNETS,
    LIBRARY_MODELS,
    SOURCES,
    build_backbone,
    load_matching_,
    without_weights,
)
from whtnet.backbones.timm_models import MODELS as TIMM_MODELS
from whtnet.backbones.weights import weights_identity

__all__ = [
    "CIFAR_RESNETS",
    "LIBRARY_MODELS",
    "SOURCES",
    "TIMM_MODELS",
    "BackboneError",
    "CifarResNet",
    "build_backbone",
    "load_matching_",
    "weights_identity",
    "without_weights",
]
