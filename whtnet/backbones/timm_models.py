"""The paper's networks as timm models: ``timm.create_model("whtnet_resnet20_paper", num_classes=10)``.

``import whtnet.backbones`` registers them. They take the keywords of timm's models, ``features_only=True`` too, and
``img_size``: a network is bound to the size of its images. With ``pretrained=True`` one has the weights that the
project publishes in a checkout's ``results/weights``, and as many classes; ``pretrained_cfg`` says the normalisation.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import ResNet
from torch import nn

from whtnet.backbones.cifar_resnet import CifarResNet
from whtnet.backbones.errors import BackboneError
from whtnet.backbones.registry import CIFAR_RESNETS
from whtnet.backbones.weights import find_published, published_file, published_settings
from whtnet.data.sources import TORCHVISION
from whtnet.policy import apply_policy_

# Name in timm → backbone (a CIFAR ResNet's name here, or timm's), policy, side of an image.
MODELS = {
    "whtnet_resnet20_paper": ("resnet20", "paper", 32),
    "whtnet_mobilenet_v2_paper": ("mobilenetv2_100", "paper", 224),
    "whtnet_mobilenet_v2_947k": ("mobilenetv2_100", "fwht2021/947k", 224),
    "whtnet_mobilenet_v2_540k": ("mobilenetv2_100", "fwht2021/540k", 224),
    "whtnet_mobilenet_v3_large_paper": ("mobilenetv3_large_100", "paper", 224),
    "whtnet_resnet18_paper": ("resnet18", "paper", 224),
    "whtnet_resnet34_paper": ("resnet34", "paper", 224),
    "whtnet_resnet50_paper": ("resnet50", "paper", 224),
}

_, _CLASSES, _MEAN, _STD = TORCHVISION["cifar10"]
_CIFAR_CFG = {
    "num_classes": _CLASSES,
    "mean": _MEAN,
    "std": _STD,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "first_conv": "conv1",
    "classifier": "fc",
}
_OTHER_SOURCES = ("url", "state_dict", "hf_hub_id")  # of weights, in a pretrained_cfg


# -- what a policy's layer before pooling needs -----------------------------------------------------------------------


class _LayerBeforePooling:
    """Mixin: timm's models make their pooling anew with their classifier; a layer before it stays."""

    global_pool: Any

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As timm's; pooling may change or go (``""``), and what a policy put before it remains."""
        before = self._take_layer()
        timms: Any = super()
        timms.reset_classifier(num_classes, self.global_pool.pool_type if global_pool is None else global_pool)
        if before is not None:
            self.global_pool = nn.Sequential(before, self.global_pool)

    def prune_intermediate_layers(self, *arguments: Any, prune_head: bool = True, **keywords: Any) -> list[int]:
        """As timm's; without the head there is no layer before pooling either."""
        if prune_head:
            self._take_layer()
        timms: Any = super()
        return timms.prune_intermediate_layers(*arguments, prune_head=prune_head, **keywords)

    def _take_layer(self) -> nn.Module | None:
        if not isinstance(self.global_pool, nn.Sequential):
            return None
        before, self.global_pool = self.global_pool
        return before


class EfficientNetWithPolicy(_LayerBeforePooling, EfficientNet):
    """timm's class of MobileNet-V2, after a policy."""


class MobileNetV3WithPolicy(_LayerBeforePooling, MobileNetV3):
    """timm's MobileNet-V3, after a policy."""


class ResNetWithPolicy(_LayerBeforePooling, ResNet):
    """timm's ResNet, after a policy."""


_WITH_POLICY: dict[type[nn.Module], type[nn.Module]] = {
    EfficientNet: EfficientNetWithPolicy,
    MobileNetV3: MobileNetV3WithPolicy,
    ResNet: ResNetWithPolicy,
}


# -- building and registering -----------------------------------------------------------------------------------------


def _cfg(name: str) -> dict[str, Any]:
    """What timm is told of a network: the data that its backbone is made for, and the published file."""
    backbone, _, side = MODELS[name]
    cfg: dict[str, Any] = dict(_CIFAR_CFG)
    if backbone not in CIFAR_RESNETS:
        library = vars(timm.get_pretrained_cfg(backbone))
        cfg = {key: library[key] for key in _CIFAR_CFG}
    file = find_published(name.removeprefix("whtnet_"))
    return cfg | {"input_size": (3, side, side), "fixed_input_size": True, "file": str(file) if file else None}


def _published_cfg(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with classes and normalisation of the file."""
    settings = published_settings(Path(cfg["file"]))
    described = {key: tuple(settings[key]) for key in ("input_size", "mean", "std")}
    return {**cfg, **described, "num_classes": len(settings["classes"])}


def _build(backbone: str, policy: str, img_size: int | Sequence[int], global_pool: str, **keywords: Any) -> nn.Module:
    """A model of timm's kind, all of whose layers the policy has seen: pooling is changed after it."""
    if backbone in CIFAR_RESNETS:
        model: Any = CifarResNet(CIFAR_RESNETS[backbone], **keywords)
    else:
        model = timm.create_model(backbone, **keywords)
    apply_policy_(model, policy, (keywords["in_chans"], *_pair(img_size)))
    model.__class__ = _WITH_POLICY.get(type(model), type(model))
    if global_pool != "avg":
        model.reset_classifier(model.num_classes, global_pool)
    return model


def _check_published(name: str, file: Path, img_size: int | Sequence[int]) -> None:
    """See whether a published file is of the network that is wanted."""
    settings = published_settings(file)
    size = tuple(settings["input_size"][1:])
    if size != _pair(img_size):
        raise BackboneError(
            f"{name} is published for images of {size[0]}×{size[1]}; with img_size={img_size} its layers have other "
            "sizes: leave img_size or pretrained out"
        )
    trained = settings["backbone"]
    if MODELS[name][0] not in CIFAR_RESNETS and not (
        trained.get("source") == "timm" or trained["name"].startswith("timm/")
    ):
        raise BackboneError(
            f"{file} was trained with torchvision's {trained['name']}, whose weights have other names than timm's; "
            f"load it with whtnet.classifier.Classifier.load({name.removeprefix('whtnet_')!r})"
        )


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _register(name: str) -> None:
    backbone, policy, side = MODELS[name]
    stages = range(4 if backbone in CIFAR_RESNETS else 5)

    def build(pretrained: bool = False, pretrained_cfg: Any = None, **keywords: Any) -> nn.Module:
        pretrained_cfg = pretrained_cfg or _cfg(name)
        if isinstance(pretrained_cfg, str):
            raise BackboneError(f"{name} has no weights {pretrained_cfg!r}: leave out what follows the point")
        given = {**pretrained_cfg, **(keywords.get("pretrained_cfg_overlay") or {})}
        ours = given.get("file") == _cfg(name)["file"]
        if pretrained and ours and not any(given.get(key) for key in _OTHER_SOURCES):
            file = published_file(name.removeprefix("whtnet_"))
            _check_published(name, file, keywords.get("img_size", side))
            pretrained_cfg = _published_cfg({**pretrained_cfg, "file": str(file)})
        model: Any = build_model_with_cfg(
            lambda **model: _build(
                backbone, policy, **{"img_size": side, "global_pool": "avg", "in_chans": 3, **model}
            ),
            name,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            feature_cfg={"feature_cls": "getter", "out_indices": tuple(stages)},
            **keywords,
        )
        # The weights are loaded: from here on this says what images the model takes.
        model.pretrained_cfg["input_size"] = (keywords.get("in_chans", 3), *_pair(keywords.get("img_size", side)))
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{backbone} with policy {policy}, for images of {side}×{side} unless ``img_size`` says otherwise."
    build.__module__ = __name__
    globals()[name] = register_model(build)


default_cfgs = generate_default_cfgs({name: _cfg(name) for name in MODELS})
for _name in MODELS:
    _register(_name)
