"""ResNets for 32×32 images (He et al. 2016, section 4.2): 3 stages of n basic blocks, depth 6n + 2."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, SelectAdaptivePool2d
from timm.models import checkpoint_seq
from torch import Tensor, nn
from torch.nn import functional as F

FORMS = ("keras", "no_bias")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, and a shortcut: identity, or a 1×1 convolution where the shape changes.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        stride: of the first convolution and of the shortcut.
        form: ``keras`` or ``no_bias``, see :class:`CifarResNet`.
        drop_path: probability that an image skips the convolutions in training.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, form: str, drop_path: float = 0.0) -> None:
        super().__init__()
        bias = form == "keras"
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=bias)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=bias)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias))
            if form == "no_bias":
                self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, H, W)`` → ``(N, C_out, ceil(H / stride), ceil(W / stride))``."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.drop_path(self.bn2(self.conv2(y))) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-20/32/44/56/110 for 32×32 images, with 16, 32 and 64 channels; methods are those of timm's models.

    Args:
        depth: 6n + 2 layers.
        num_classes: outputs; 0 for the pooled features.
        form: ``keras``: convolutions have biases and the two 1×1 shortcuts no batch norm (273,066 parameters at depth
            20, the form of the BWHT paper's 133,082); ``no_bias``: no convolution has a bias, shortcuts have batch norm
            (272,474, the form of HT-2023).
        in_chans: channels of an image.
        drop_rate: of the dropout before the classifier.
        drop_path_rate: probability that an image skips the last block in training; it rises linearly from 0 at the
            first.

    Attributes:
        num_classes: as above.
        in_chans: as above.
        drop_rate: as above.
        num_features: channels of what ``forward_features`` gives.
        grad_checkpointing: whether the backward pass computes the blocks' insides again instead of keeping them.
        feature_info: what ``forward_intermediates`` gives: channels and reduction of each stage.

    Raises:
        ValueError: for a depth that is not 6n + 2, an unknown form, or a negative number of classes.
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        form: str = "keras",
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56, 110), got {depth}")
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
        _check_classes(num_classes)
        n = (depth - 2) // 6
        drops = [drop_path_rate * i / (3 * n - 1) for i in range(3 * n)]
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = 64
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": channels, "reduction": reduction, "module": module}
            for channels, reduction, module in (
                (16, 1, "relu"),
                (16, 1, "layer1"),
                (32, 2, "layer2"),
                (64, 4, "layer3"),
            )
        ]
        self.conv1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=form == "keras")
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, 1, form, drops[:n])
        self.layer2 = _stage(16, 32, 2, form, drops[n : 2 * n])
        self.layer3 = _stage(32, 64, 2, form, drops[2 * n :])
        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.pooled = True
        self.fc = nn.Linear(64, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_chans, H, W)`` → class scores ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """``(N, in_chans, H, W)`` → the last map, ``(N, 64, H / 4, W / 4)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = self._run(stage, x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map → class scores, or with ``pre_logits`` what the classifier takes."""
        x = self.avgpool(x)
        if self.pooled:
            x = torch.flatten(x, 1)
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training, block by block.

        The forward pass of each block is computed a second time, so running statistics of its batch norms move twice
        a step, as in timm's models.
        """
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions for parameters that belong together, from the input on: for timm's ``layer_decay``.

        Args:
            coarse: by stage instead of by block.
        """
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make the last layer anew.

        Args:
            num_classes: outputs; 0 for none.
            global_pool: of timm's ``SelectAdaptivePool2d``, or ``""`` for none; None to leave it. What a policy put
                before it stays.

        Raises:
            ValueError: for a classifier of what is not pooled, or a negative number of classes.
        """
        _check_classes(num_classes)
        if global_pool == "" and num_classes:
            raise ValueError(f"without pooling there is no classifier: num_classes must be 0, got {num_classes}")
        like = self.conv1.weight
        if global_pool is not None:
            pool = SelectAdaptivePool2d(pool_type=global_pool).train(self.training)
            self.pooled = global_pool != ""
            self.avgpool = nn.Sequential(self.avgpool[0], pool) if isinstance(self.avgpool, nn.Sequential) else pool
            self.head_hidden_size = self.num_features * pool.feat_mult()
        self.num_classes = num_classes
        classifier = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self.fc = classifier.to(like.device, like.dtype).train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of the stem and the three stages, and the last one.

        Args:
            x: ``(N, in_chans, H, W)``.
            indices: which of the four; the last n for a number, all for None.
            norm: no effect, maps are normalised.
            stop_early: leave out the stages after the last that is asked for.
            output_fmt: NCHW only.
            intermediates_only: give the maps alone.

        Raises:
            ValueError: for another format, or maps that there are not.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"maps are NCHW, got output_fmt={output_fmt!r}")
        wanted = self._wanted(indices)
        x = self.relu(self.bn1(self.conv1(x)))
        maps = [x]
        stages = (self.layer1, self.layer2, self.layer3)
        for stage in stages[: max(wanted)] if stop_early else stages:
            x = self._run(stage, x)
            maps.append(x)
        maps = [maps[i] for i in wanted]
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Take off what comes after the maps that are asked for; see ``forward_intermediates``."""
        wanted = self._wanted(indices)
        for number in range(max(wanted) + 1, len(self.feature_info)):
            setattr(self, f"layer{number}", nn.Sequential())
        self.num_features = self.head_hidden_size = self.feature_info[max(wanted)]["num_chs"]
        if prune_head:
            self.avgpool = nn.Identity()
            self.reset_classifier(0, "")
        return wanted

    def _run(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        return checkpoint_seq(stage, x) if self.grad_checkpointing and torch.is_grad_enabled() else stage(x)

    def _wanted(self, indices: int | Sequence[int] | None) -> list[int]:
        there = list(range(len(self.feature_info)))
        if indices is None:
            return there
        chosen = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
        if not chosen or not all(-len(there) <= i < len(there) for i in chosen):
            raise ValueError(f"there are maps {there[0]} to {there[-1]}, got indices={indices}")
        return [there[i] for i in chosen]


def _stage(in_channels: int, out_channels: int, stride: int, form: str, drops: Sequence[float]) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, form, drops[0])
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, form, drop) for drop in drops[1:]))


def _check_classes(num_classes: int) -> None:
    if num_classes < 0:
        raise ValueError(f"num_classes must be 0 (pooled features) or more, got {num_classes}")
