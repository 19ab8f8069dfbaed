"""The paper's networks as timm models: ``timm.create_model("whtnet_resnet20_paper", num_classes=10)``.

``import whtnet.backbones`` registers them. A network is bound to the size of its images, ``img_size``. With
``pretrained=True`` it has the weights that the project publishes in a checkout's ``results/weights``, and as
many classes; they were trained on images normalised as ``Classifier.load(NAME)`` says.
"""

from typing import Any

from timm.models import register_model
from torch import nn

from whtnet.backbones.registry import build_backbone
from whtnet.backbones.weights import load_weights_, published_file, published_settings
from whtnet.policy import apply_policy_

# Name in timm → backbone, policy, side of an image.
MODELS = {
    "whtnet_resnet20_paper": ("resnet20", "paper", 32),
    "whtnet_mobilenet_v2_paper": ("mobilenet_v2", "paper", 224),
    "whtnet_mobilenet_v2_947k": ("mobilenet_v2", "fwht2021/947k", 224),
    "whtnet_mobilenet_v2_540k": ("mobilenet_v2", "fwht2021/540k", 224),
    "whtnet_mobilenet_v3_large_paper": ("mobilenet_v3_large", "paper", 224),
    "whtnet_resnet18_paper": ("resnet18", "paper", 224),
    "whtnet_resnet34_paper": ("resnet34", "paper", 224),
    "whtnet_resnet50_paper": ("resnet50", "paper", 224),
}


def _register(name: str) -> None:
    backbone, policy, side = MODELS[name]

    def build(
        pretrained: bool = False,
        num_classes: int | None = None,
        img_size: int = side,
        pretrained_cfg: Any = None,  # what timm hands to every model
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
    ) -> nn.Module:
        file = published_file(name.removeprefix("whtnet_")) if pretrained else None
        if num_classes is None:
            num_classes = len(published_settings(file)["classes"]) if file else 1000
        model = build_backbone(backbone, num_classes=num_classes)
        apply_policy_(model, policy, (3, img_size, img_size))
        if file:
            load_weights_(model, str(file))
        model.num_classes = num_classes
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{backbone} with policy {policy}, for images of {side}×{side} unless ``img_size`` says otherwise."
    build.__module__ = __name__
    globals()[name] = register_model(build)


for _name in MODELS:
    _register(_name)
