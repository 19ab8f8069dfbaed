"""ResNets for 32×32 images (He et al. 2016, section 4.2): 3 stages of n basic blocks, depth 6n + 2."""

import torch
from torch import Tensor, nn

FORMS = ("keras", "no_bias")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, and a shortcut: identity, or a 1×1 convolution where the shape changes.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        stride: of the first convolution and of the shortcut.
        form: ``keras`` or ``no_bias``, see :class:`CifarResNet`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, form: str) -> None:
        super().__init__()
        bias = form == "keras"
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=bias)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=bias)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias))
            if form == "no_bias":
                self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, H, W)`` → ``(N, C_out, ceil(H / stride), ceil(W / stride))``."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-20/32/44/56/110 for 32×32 images, with 16, 32 and 64 channels.

    Args:
        depth: 6n + 2 layers.
        num_classes: outputs.
        form: ``keras``: convolutions have biases and the two 1×1 shortcuts no batch norm (273,066 parameters at depth
            20, the form of the BWHT paper's 133,082); ``no_bias``: no convolution has a bias, shortcuts have batch norm
            (272,474, the form of HT-2023).

    Raises:
        ValueError: for a depth that is not 6n + 2, or an unknown form.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, form: str = "keras") -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56, 110), got {depth}")
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=form == "keras")
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(n, 16, 16, 1, form)
        self.layer2 = _stage(n, 16, 32, 2, form)
        self.layer3 = _stage(n, 32, 64, 2, form)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W)`` → class scores ``(N, num_classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(n: int, in_channels: int, out_channels: int, stride: int, form: str) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, form)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, form) for _ in range(n - 1)))
