"""What the Walsh-Hadamard layers of a trained model hold and do, as plain data for a record."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from whtnet.layers import SpectralLayer

MAX_VALUES = 4096  # a parameter with more values is left out


@torch.no_grad()
def describe_layers(model: nn.Module, images: Tensor) -> list[dict[str, Any]]:
    """Describe every Walsh-Hadamard layer of ``model`` after one batch, computed in evaluation mode without autocast.

    Args:
        model: left as it was.
        images: ``(N, C, H, W)``, normalised, on the model's device.

    Returns:
        In the order of the modules, a dictionary a layer that was used: ``name`` in the model, ``kind`` (its class),
        ``clamp`` (whether the thresholds act as ``relu(threshold)``), ``threshold`` and ``weight`` as nested lists in
        natural (Hadamard) order, rounded to 4 significant digits (None without one, or with more than
        :data:`MAX_VALUES` values), and ``zero_share``, the share (0..1) of the coefficients that are zero after
        thresholding, over all images, channels and positions.
    """
    zeros: dict[nn.Module, int] = defaultdict(int)
    total: dict[nn.Module, int] = defaultdict(int)

    def count(layer: SpectralLayer, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        coefficients = layer.coefficients(*inputs)
        zeros[layer] += coefficients.numel() - int(coefficients.count_nonzero())
        total[layer] += coefficients.numel()

    layers = {name: module for name, module in model.named_modules() if isinstance(module, SpectralLayer)}
    hooks = [layer.register_forward_hook(count) for layer in layers.values()]
    was_training = model.training
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled model would not call the hooks
            model.eval()(images)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return [
        {
            "name": name,
            "kind": type(layer).__name__,
            "clamp": layer.clamp,
            **{key: _values(getattr(layer, key, None)) for key in ("threshold", "weight")},
            "zero_share": zeros[layer] / total[layer],
        }
        for name, layer in layers.items()
        if layer in total
    ]


def _values(parameter: Tensor | None) -> list[Any] | None:
    if parameter is None or parameter.numel() > MAX_VALUES:
        return None
    rounded = torch.tensor([float(f"{value:.4g}") for value in parameter.flatten().tolist()], dtype=torch.float64)
    return rounded.view(parameter.shape).tolist()
