"""Build a backbone by name: the CIFAR ResNets from here, any other from torchvision or timm."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torchvision
from torch import Tensor, nn

from whtnet.backbones.cifar_resnet import FORMS, CifarResNet
from whtnet.backbones.errors import BackboneError
from whtnet.backbones.weights import load_weights_
from whtnet.cost import meta_probe
from whtnet.errors import did_you_mean
from whtnet.extensions import call_extension, is_extension
from whtnet.settings import check_arguments, defaults_of, unknown_setting

SOURCES = ("torchvision", "timm")
STEMS = ("imagenet", "cifar")

_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d)
_PROBE_SIDE = 128  # pixels

CIFAR_RESNETS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}

# The paper's backbones by a name of their own: here and in torchvision → in timm.
LIBRARY_MODELS = {
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
}


def build_backbone(
    name: str,
    *,
    num_classes: int = 10,
    form: str = "keras",
    source: str = "torchvision",
    stem: str = "imagenet",
    pretrained: bool = False,
    weights: str | None = None,
    **options: object,
) -> nn.Module:
    """Build a classifier.

    Args:
        name: ``resnet20/32/44/56/110`` (for 32×32 images); ``mobilenet_v2``, ``mobilenet_v3_large`` or
            ``resnet18/34/50``; ``torchvision/NAME`` or ``timm/NAME`` for any classifier of theirs;
            ``my_package.models:net`` for a function or class of one's own, see :mod:`whtnet.extensions`.
        num_classes: outputs.
        form: of a CIFAR ResNet: ``keras`` or ``no_bias``, see :class:`CifarResNet`.
        source: of the models with a name of their own: ``torchvision`` or ``timm``.
        stem: of the library's models: ``imagenet``, as published, or ``cifar`` for 32×32 images: the first two halvings
            of the map go, so that 32×32 images end as 4×4 maps. ResNets get a 3×3 stem without max pooling; others run
            without the strides and poolings that halve the map the first two times.
        pretrained: start from the library's ImageNet weights. What does not fit (the classifier, a ResNet's ``cifar``
            stem) starts fresh.
        weights: start from a file of weights instead, see :mod:`whtnet.backbones.weights`; a classifier of another
            number of classes, or a ResNet's ``cifar`` stem, starts fresh.
        options: keywords of a function of one's own; other backbones take none.

    Returns:
        The model, in training mode.

    Raises:
        BackboneError: for an unknown name, keyword or choice, or where the weights can't be loaded.
    """
    if options and not is_extension(name):
        known = ["name", *defaults_of(build_backbone)]
        known.remove("num_classes")  # the data set's
        raise BackboneError(unknown_setting(f"backbone.{min(options)}", [f"backbone.{name}" for name in known]))
    given = {"name": name, "form": form, "source": source, "stem": stem, "pretrained": pretrained, "weights": weights}
    check_arguments(build_backbone, given, "backbone", BackboneError)
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or not 1 <= num_classes < 2**31:
        raise BackboneError(f"num_classes={num_classes!r} is no number of classes; give a whole number from 1")
    if pretrained and weights:
        raise BackboneError(f"backbone.pretrained=true and backbone.weights={weights} exclude each other; give one")
    if is_extension(name):
        settings = {"form": form, "source": source, "stem": stem, "pretrained": pretrained}
        return _with_weights(_from_extension(name, num_classes, settings, options), weights)
    if name in CIFAR_RESNETS:
        if pretrained:
            raise BackboneError(f"{name} has no pretrained weights: nobody publishes them with torchvision or timm")
        _check_choice(name, "form", form, FORMS)
        return _with_weights(CifarResNet(CIFAR_RESNETS[name], num_classes, form), weights)
    library, _, model_name = name.partition("/")
    if not model_name:
        if name not in LIBRARY_MODELS:
            near = did_you_mean(name, [*CIFAR_RESNETS, *LIBRARY_MODELS])
            raise BackboneError(
                f"unknown backbone {name!r}; {near} (or torchvision/NAME, timm/NAME, my_package.models:net of your own)"
            )
        library, model_name = source, LIBRARY_MODELS[name] if source == "timm" else name
    _check_choice(name, "source", library, SOURCES)
    _check_choice(name, "stem", stem, STEMS)
    model = _with_weights(_from_library(model_name, library, num_classes, pretrained), weights)
    if stem == "cifar":
        _use_cifar_stem_(model, name)
    return model


def _from_extension(
    name: str, num_classes: int, settings: Mapping[str, object], options: Mapping[str, object]
) -> nn.Module:
    for key, value in settings.items():
        if value != defaults_of(build_backbone)[key]:
            raise BackboneError(f"backbone.{key} is for the package's backbones; {name} has options of its own only")
    model = call_extension(name, num_classes=num_classes, **options)
    if not isinstance(model, nn.Module):
        raise BackboneError(f"{name} must return a torch.nn.Module, not {type(model).__name__}")
    return model


def _with_weights(model: nn.Module, weights: str | None) -> nn.Module:
    if weights is not None:
        load_weights_(model, weights)
    return model


def _check_choice(backbone: str, key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise BackboneError(f"unknown {key} {value!r} for {backbone}; choose one of {', '.join(allowed)}")


def _from_library(name: str, library: str, num_classes: int, pretrained: bool) -> nn.Module:
    known = timm.list_models() if library == "timm" else torchvision.models.list_models(module=torchvision.models)
    if name.partition(".")[0] not in known:  # timm's names may end in the weights' tag
        raise BackboneError(f"{library} has no classifier {name!r}; {did_you_mean(name, known)}")
    build = _from_timm if library == "timm" else _from_torchvision
    try:
        return build(name, num_classes, pretrained)
    except Exception as error:  # the libraries raise whatever their download layer does
        if not pretrained:
            raise
        raise BackboneError(
            f"could not load the pretrained weights of {name} from {library}: {error}. They need a network the first "
            "time, or a filled cache (TORCH_HOME for torchvision, HF_HOME for timm), or give a file as "
            "backbone.weights; pretrained=false starts fresh"
        ) from error


def _from_timm(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes)


def _from_torchvision(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    auxiliary = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **auxiliary)
    if pretrained:
        weights = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=True, check_hash=True)
        load_matching_(model, weights)
    return model


def without_weights(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of :func:`build_backbone` for the same network with fresh weights, where none shall be read."""
    return {name: value for name, value in settings.items() if name not in ("pretrained", "weights")}


def load_matching_(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights that ``model`` has by name and shape; its others stay as they are."""
    own = model.state_dict()
    model.load_state_dict({n: w for n, w in weights.items() if n in own and own[n].shape == w.shape}, strict=False)


def _use_cifar_stem_(model: nn.Module, name: str) -> None:
    old = getattr(model, "conv1", None)
    if isinstance(old, nn.Conv2d) and isinstance(getattr(model, "maxpool", None), nn.MaxPool2d):
        model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=old.bias is not None)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
        return
    probe, image = meta_probe(model, (3, _PROBE_SIDE, _PROBE_SIDE))
    halvings = _halvings(probe, image) if _runs(probe, image) else {}
    if set(halvings.values()) == {_PROBE_SIDE, _PROBE_SIDE // 2}:
        for changed in (probe, model):
            for module_name in halvings:
                _remove_stride_(changed.get_submodule(module_name))
        if _runs(probe, image):
            return
    raise BackboneError(f"no stem=cifar for {name}: it does not begin with two halvings of the map; use stem=imagenet")


def _halvings(probe: nn.Module, image: Tensor) -> dict[str, int]:
    """The names of the modules that halve a map of the images' size, or of half of it, and which of these sizes."""
    found: dict[str, int] = {}

    def note(name: str, x: Tensor) -> None:
        if x.shape[-1] in (_PROBE_SIDE, _PROBE_SIDE // 2):
            found[name] = x.shape[-1]

    for name, module in probe.named_modules():
        # Of an even convolution without its stride, half a pixel would be lost.
        odd = isinstance(module, nn.Conv2d) and all(size % 2 for size in module.kernel_size)
        if (odd or isinstance(module, _POOLINGS)) and module.stride in (2, (2, 2)):
            module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
    probe(image)
    return found


def _remove_stride_(module: Any) -> None:
    module.stride = (1, 1)
    if isinstance(module, _POOLINGS):
        module.kernel_size, module.padding = 1, 0


def _runs(probe: nn.Module, image: Tensor) -> bool:
    try:
        probe(image)
    except (RuntimeError, AssertionError, ValueError):  # what a model says to images that don't suit it
        return False
    return True
