"""Arguments and inputs that the layers check alike."""

from typing import Any

from torch import Tensor


def check_sizes(**sizes: int) -> None:
    """Raise a ValueError that names the first of ``sizes`` below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def check_channel_layer(in_channels: int, out_channels: int, stride: int, channel_dim: int) -> None:
    """Raise a ValueError where a layer that acts on every pixel's channels can't have these arguments."""
    check_sizes(in_channels=in_channels, out_channels=out_channels, stride=stride)
    if channel_dim not in (1, -1):
        raise ValueError(f"channel_dim must be 1 or -1, got {channel_dim}")


def channels_first(layer: Any, x: Tensor) -> Tensor:
    """``(N, C_in, *spatial)`` of an input whose channels are where ``layer.channel_dim`` says.

    Raises:
        ValueError: for an input with other than ``layer.in_channels`` channels.
    """
    shape, channels, dim = x.shape, layer.in_channels, layer.channel_dim
    if len(shape) < 2 or shape[dim] != channels:
        expected = f"N, {channels}, *spatial" if dim == 1 else f"N, *spatial, {channels}"
        name = type(layer).__name__
        raise ValueError(f"{name} takes ({expected}) with in_channels={channels}, got a tensor of shape {tuple(shape)}")
    # A map with its channels last becomes one in channels_last: no copy.
    return x.movedim(-1, 1) if dim == -1 else x


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a square's side or a pair; a ValueError for anything else."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"size must be one or two integers of at least 1, got {size!r}")
    return pair


def check_map(layer: Any, x: Tensor) -> None:
    """Raise a ValueError for a map of another size than ``layer.size``."""
    if x.shape[-2:] != layer.size:
        h, w = layer.size
        raise ValueError(
            f"{type(layer).__name__} was built for {h}×{w} maps, got an input of shape {tuple(x.shape)}; "
            "build the model for the resolution it runs at"
        )
