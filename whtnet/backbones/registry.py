"""Build a backbone by name: the CIFAR ResNets from here, the others from torchvision or timm."""

import timm
import torchvision
from torch import nn

from whtnet.backbones.cifar_resnet import CifarResNet
from whtnet.errors import UserError

SOURCES = ("torchvision", "timm")
STEMS = ("imagenet", "cifar")

CIFAR_RESNETS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}

# Name here and in torchvision → name in timm.
LIBRARY_MODELS = {
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
}


class BackboneError(UserError, ValueError):
    """A backbone that does not exist, or can't be built as asked."""


def build_backbone(
    name: str,
    *,
    num_classes: int = 10,
    form: str = "keras",
    source: str = "torchvision",
    stem: str = "imagenet",
    pretrained: bool = False,
) -> nn.Module:
    """Build a classifier.

    Args:
        name: ``resnet20/32/44/56/110`` (for 32×32 images), ``mobilenet_v2``, ``mobilenet_v3_large`` or
            ``resnet18/34/50``.
        num_classes: outputs.
        form: of a CIFAR ResNet: ``keras`` or ``no_bias``, see :class:`CifarResNet`.
        source: of the other models: ``torchvision`` or ``timm``.
        stem: of the other models: ``imagenet``, as published, or ``cifar`` for 32×32 images: the first two halvings of
            the map go, so that 32×32 images end as 4×4 maps. ResNets get a 3×3 stem without max pooling, MobileNets
            run their first two strided convolutions at stride 1.
        pretrained: start from the library's ImageNet weights. What does not fit (the classifier, a ResNet's ``cifar``
            stem) starts fresh.

    Returns:
        The model, in training mode.

    Raises:
        BackboneError: for an unknown name or choice, or where the weights can't be loaded.
    """
    if name in CIFAR_RESNETS:
        if pretrained:
            raise BackboneError(f"{name} has no pretrained weights: nobody publishes them with torchvision or timm")
        return CifarResNet(CIFAR_RESNETS[name], num_classes, form)
    if name not in LIBRARY_MODELS:
        raise BackboneError(f"unknown backbone {name!r}; choose one of {', '.join([*CIFAR_RESNETS, *LIBRARY_MODELS])}")
    for key, value, allowed in (("source", source, SOURCES), ("stem", stem, STEMS)):
        if value not in allowed:
            raise BackboneError(f"unknown {key} {value!r} for {name}; choose one of {', '.join(allowed)}")
    model = _from_library(name, source, num_classes, pretrained)
    if stem == "cifar":
        _use_cifar_stem_(model)
    return model


def _from_library(name: str, source: str, num_classes: int, pretrained: bool) -> nn.Module:
    try:
        if source == "timm":
            return timm.create_model(LIBRARY_MODELS[name], pretrained=pretrained, num_classes=num_classes)
        if not pretrained:
            return torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        model = torchvision.models.get_model(name, weights="DEFAULT")
    except Exception as error:  # the libraries raise whatever their download layer does
        if not pretrained:
            raise
        raise BackboneError(
            f"could not load the pretrained weights of {name} from {source}: {error}. They need a network the first "
            "time, or a filled cache (TORCH_HOME for torchvision, HF_HOME for timm); pretrained=false starts fresh"
        ) from error
    _replace_classifier_(model, num_classes)
    return model


def _replace_classifier_(model: nn.Module, num_classes: int) -> None:
    name, last = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    if last.out_features != num_classes:
        model.set_submodule(name, nn.Linear(last.in_features, num_classes), strict=True)


def _use_cifar_stem_(model: nn.Module) -> None:
    if isinstance(getattr(model, "maxpool", None), nn.MaxPool2d):
        old = model.conv1
        model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=old.bias is not None)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
        return
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for conv in strided[:2]:
        conv.stride = (1, 1)
