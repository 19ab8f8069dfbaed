"""Backbones by name."""

from whtnet.backbones.cifar_resnet import CifarResNet
from whtnet.backbones.registry import CIFAR_RESNETS, LIBRARY_MODELS, BackboneError, build_backbone

__all__ = ["CIFAR_RESNETS", "LIBRARY_MODELS", "BackboneError", "CifarResNet", "build_backbone"]
