"""What is measured: the layers of the paper's speed test, transforms of many sizes, whole networks."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation

from whtnet.backbones import build_backbone
from whtnet.engine import TrainConfig, mixed_precision
from whtnet.kernels import reference
from whtnet.layers import BWHT1d, FWHT2d
from whtnet.policy import apply_policy_, load_policy

MEMORY_FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
MODES = ("forward", "training")  # training: forward and backward, gradients of the input and of all parameters


class Copy(nn.Module):
    """The floor: one read and one write of everything, into memory that is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.result: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if torch.is_grad_enabled():
            return x.clone()
        if self.result is None:
            self.result = torch.empty_like(x)
        return self.result.copy_(x)


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
class LayerTest:
    """Layers that do the same job on the same input.

    Attributes:
        shape: of the input.
        layers: builders by name; the first is the convolution that the others are compared with.
    """

    shape: tuple[int, ...]
    layers: Mapping[str, Callable[[], nn.Module]]


LAYER_TESTS = {
    "2d": LayerTest(
        (10, 1024, 8, 8),
        {
            "conv3x3": lambda: nn.Sequential(nn.Conv2d(1024, 1024, 3, padding=1), nn.ReLU()),
            "squeeze_excite": lambda: SqueezeExcitation(1024, 256, scale_activation=nn.Hardsigmoid),
            "fwht2d": lambda: FWHT2d(8),
            "fwht2d_compiled": lambda: _compiled(ReferenceFWHT2d(8)),
            "fwht2d_reference": lambda: ReferenceFWHT2d(8),
            "copy": Copy,
        },
    ),
    "1d": LayerTest(
        (10, 1024, 32, 32),
        {
            "conv1x1": lambda: nn.Conv2d(1024, 1024, 1),
            "bwht1d": lambda: BWHT1d(1024, 1024),
            "bwht1d_compiled": lambda: _compiled(ReferenceBWHT1d(1024, 1024)),
            "bwht1d_reference": lambda: ReferenceBWHT1d(1024, 1024),
            "copy": Copy,
        },
    ),
}


def layer_call(
    test: LayerTest, name: str, memory_format: str, mode: str, device: torch.device
) -> tuple[Tensor, Callable[[], Callable[[], Any]]]:
    """The input of a layer test, and a function that builds the layer and returns the call to measure."""
    layout = MEMORY_FORMATS[memory_format]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # a GPU's convolutions are made for it
    x = torch.randn(test.shape, device=device, dtype=dtype).contiguous(memory_format=layout)

    def build() -> Callable[[], Any]:
        layer = test.layers[name]().to(device=device, dtype=dtype, memory_format=layout)
        if mode == "forward":
            return torch.inference_mode()(lambda: layer(x))
        gradient = torch.randn_like(x)
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
        cost = apply_policy_(model, load_policy(self.policy), tuple(self.input_size)).to_dict()["after"]
        return model.to(device=device, memory_format=torch.channels_last), cost


def inference_call(model: nn.Module, input_size: tuple[int, ...], batch: int, device: torch.device) -> Callable:
    """A call that classifies a batch, in the precision that training chooses on ``device``."""
    x = _images(input_size, batch, device)

    @torch.inference_mode()
    def call() -> Tensor:
        model.eval()
        with _precision(device):
            return model(x)

    return call


def training_call(model: nn.Module, input_size: tuple[int, ...], batch: int, device: torch.device) -> Callable:
    """A call that makes one training step: forward, backward, SGD with momentum."""
    x, target = _images(input_size, batch, device), torch.randint(10, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def call() -> None:
        model.train()
        optimizer.zero_grad()
        with _precision(device):
            loss = F.cross_entropy(model(x).float(), target)
        loss.backward()
        optimizer.step()

    return call


def _images(input_size: tuple[int, ...], batch: int, device: torch.device) -> Tensor:
    return torch.randn(batch, *input_size, device=device).contiguous(memory_format=torch.channels_last)


def _precision(device: torch.device) -> AbstractContextManager[None]:
    return mixed_precision(device, TrainConfig().autocast_dtype(device))
