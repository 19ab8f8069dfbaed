"""What is measured: the layers of the paper's speed test, transforms of many sizes, whole networks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation

from whtnet.backbones import build_backbone
from whtnet.engine import TrainConfig, mixed_precision
from whtnet.fusion import fuse_for_inference
from whtnet.kernels import reference
from whtnet.layers import BWHT1d, FWHT2d
from whtnet.policy import apply_policy_, load_policy
from whtnet.policy.builders import BLOCK_SIZES

MEMORY_FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
MODES = ("forward", "training")  # training: forward and backward, gradients of the input and of all parameters


class Copy(nn.Module):
    """The floor: one read and one write of everything, into memory from where the others' results have theirs."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x.clone()


class ReferenceFWHT2d(FWHT2d):
    """The layer in plain PyTorch, whatever the backend."""

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`FWHT2d.forward`."""
        return reference.fwht2d(x, self.threshold, self.weight, self.options)


class ReferenceBWHT1d(BWHT1d):
    """The layer in plain PyTorch, whatever the backend."""

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`BWHT1d.forward`."""
        return reference.bwht1d(x, self.threshold, self.weight, self.out_channels, self.stride, self.options)


def _compiled(layer: nn.Module) -> nn.Module:
    layer.compile()
    return layer


@dataclass(frozen=True)
class Site:
    """Where a layer stands, and what it does there.

    Attributes:
        images: in a batch.
        channels: of the input.
        size: height and width of a map, in pixels.
        out_channels: of the result; None: as many.
    """

    images: int
    channels: int
    size: int
    out_channels: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the input."""
        return self.images, self.channels, self.size, self.size

    @property
    def out(self) -> int:
        """Channels of the result."""
        return self.out_channels or self.channels


def _conv1x1(site: Site) -> nn.Module:
    return nn.Conv2d(site.channels, site.out, 1, bias=False)


def _depthwise(site: Site) -> nn.Module:
    return nn.Conv2d(site.out, site.out, 3, padding=1, groups=site.out, bias=False)


def _bwht1d(site: Site, **options: Any) -> nn.Module:
    return BWHT1d(site.channels, site.out, block_size=BLOCK_SIZES["common"](site.channels, site.out), **options)


LAYERS: dict[str, Callable[[Site], nn.Module]] = {
    "conv3x3": lambda site: nn.Conv2d(site.channels, site.out, 3, padding=1, bias=False),
    # as the paper's speed test has it
    "conv3x3_relu": lambda site: nn.Sequential(nn.Conv2d(site.channels, site.out, 3, padding=1), nn.ReLU()),
    "depthwise3x3": _depthwise,
    "bsconv": lambda site: nn.Sequential(_conv1x1(site), _depthwise(site)),
    "squeeze_excite": lambda site: SqueezeExcitation(
        site.channels, max(8, site.channels // 4), scale_activation=nn.Hardsigmoid
    ),
    "fwht2d": lambda site: FWHT2d(site.size),
    "fwht2d_compiled": lambda site: _compiled(ReferenceFWHT2d(site.size)),
    "fwht2d_reference": lambda site: ReferenceFWHT2d(site.size),
    "conv1x1": _conv1x1,
    "bwht1d": _bwht1d,
    "bwht1d_separate": lambda site: _bwht1d(site, blocks="separate", weight=True),
    "bwht1d_one_block": lambda site: BWHT1d(site.channels, site.out),
    "bwht1d_compiled": lambda site: _compiled(ReferenceBWHT1d(site.channels, site.out)),
    "bwht1d_reference": lambda site: ReferenceBWHT1d(site.channels, site.out),
    "copy": lambda site: Copy(),
}
"""Builders by name. ``bwht1d``: as released, its blocks the largest power of two that divides both sides."""


def layer_call(
    site: Site, name: str, memory_format: str, mode: str, device: torch.device
) -> tuple[Tensor, Callable[[], Callable[[], Any]]]:
    """The input of a layer, and a function that builds the layer and returns the call to measure."""
    layout = MEMORY_FORMATS[memory_format]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # a GPU's convolutions are made for it
    x = torch.randn(site.shape, device=device, dtype=dtype).contiguous(memory_format=layout)

    def build() -> Callable[[], Any]:
        layer = LAYERS[name](site).to(device, dtype).to(memory_format=layout)
        if mode == "forward":
            return torch.inference_mode()(lambda: layer(x))
        gradient = torch.randn_like(layer(x))
        leaves = [x.requires_grad_(), *layer.parameters()]
        return lambda: torch.autograd.grad(layer(x), leaves, gradient)

    return x, build


@dataclass(frozen=True)
class NetworkSpec:
    """A network to measure.

    Attributes:
        backbone: keywords of :func:`whtnet.backbones.build_backbone`.
        policy: name of a shipped policy.
        input_size: of an image, (channels, height, width).
    """

    backbone: Mapping[str, Any]
    policy: str
    input_size: tuple[int, int, int] = (3, 32, 32)

    def build(self, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
        """The network for 10 classes, in the memory format that training chooses, and its cost."""
        model = build_backbone(**self.backbone, num_classes=10)
        cost = apply_policy_(model, load_policy(self.policy), self.input_size).to_dict()["after"]
        return model.to(device).to(memory_format=torch.channels_last), cost


def inference_call(model: nn.Module, input_size: tuple[int, ...], batch: int, device: torch.device) -> Callable:
    """A call that classifies a batch: batch norm folded into what is in front of it, as for deployment.

    In float32 on a CPU; on a GPU in the precision that training chooses there.
    """
    x = _images(input_size, batch, device)
    folded = fuse_for_inference(model.eval()).to(memory_format=torch.channels_last)
    dtype = None if device.type == "cpu" else TrainConfig().autocast_dtype(device)

    @torch.inference_mode()
    def call() -> Tensor:
        with mixed_precision(device, dtype):
            return folded(x)

    return call


def training_call(model: nn.Module, input_size: tuple[int, ...], batch: int, device: torch.device) -> Callable:
    """A call that makes one training step: forward, backward, SGD with momentum."""
    x, target = _images(input_size, batch, device), torch.randint(10, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    dtype = TrainConfig().autocast_dtype(device)

    def call() -> None:
        model.train()
        optimizer.zero_grad()
        with mixed_precision(device, dtype):
            loss = F.cross_entropy(model(x).float(), target)
        loss.backward()
        optimizer.step()

    return call


def _images(input_size: tuple[int, ...], batch: int, device: torch.device) -> Tensor:
    return torch.randn(batch, *input_size, device=device).contiguous(memory_format=torch.channels_last)
