"""What the Walsh-Hadamard layers of a trained model hold and do, as plain data for records and tables."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

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
    shares = _zero_shares(model, images)
    return [
        {
            "name": name,
            "kind": type(layer).__name__,
            "clamp": layer.clamp,
            **{key: _values(getattr(layer, key, None)) for key in ("threshold", "weight")},
            "zero_share": shares[layer],
        }
        for name, layer in _spectral(model).items()
        if layer in shares
    ]


@torch.no_grad()
def layer_metrics(model: nn.Module, images: Tensor) -> dict[str, dict[str, float]]:
    """Numbers for the curves of every Walsh-Hadamard layer, after one batch as in :func:`describe_layers`.

    Args:
        model: left as it was.
        images: ``(N, C, H, W)``, normalised, on the model's device.

    Returns:
        By the name of a layer that was used: ``zero_share`` (0..1), and where it has thresholds ``threshold_min``,
        ``threshold_mean`` and ``threshold_max`` of the parameter, negative values too where a clamp makes them 0.
    """
    shares = _zero_shares(model, images)
    metrics = {}
    for name, layer in _spectral(model).items():
        if layer in shares:
            metrics[name] = {"zero_share": shares[layer]}
            if (threshold := getattr(layer, "threshold", None)) is not None:
                of = {"min": threshold.min(), "mean": threshold.mean(), "max": threshold.max()}
                metrics[name] |= {f"threshold_{key}": value.item() for key, value in of.items()}
    return metrics


def _spectral(model: nn.Module) -> dict[str, SpectralLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SpectralLayer)}


def _zero_shares(model: nn.Module, images: Tensor) -> dict[nn.Module, float]:
    """Of each layer that a batch goes through, the share of the coefficients that are zero after thresholding."""
    zeros: dict[nn.Module, int] = defaultdict(int)
    total: dict[nn.Module, int] = defaultdict(int)

    def count(layer: SpectralLayer, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        coefficients = layer.coefficients(*inputs)
        zeros[layer] += coefficients.numel() - int(coefficients.count_nonzero())
        total[layer] += coefficients.numel()

    was_training = model.training
    try:
        # A compiled model would not call the hooks.
        with (
            _hooked([layer.register_forward_hook(count) for layer in _spectral(model).values()]),
            torch.compiler.set_stance("force_eager"),
        ):
            model.eval()(images)
    finally:
        model.train(was_training)
    return {layer: zeros[layer] / total[layer] for layer in total}


def _values(parameter: Tensor | None) -> list[Any] | None:
    if parameter is None or parameter.numel() > MAX_VALUES:
        return None
    rounded = torch.tensor([float(f"{value:.4g}") for value in parameter.flatten().tolist()], dtype=torch.float64)
    return rounded.view(parameter.shape).tolist()


def layer_effects(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], accuracy: Callable[[], float]) -> list:
    """What every Walsh-Hadamard layer of a trained ``model`` does to signals, gradients and the accuracy.

    Args:
        model: left as it was.
        batches: normalised images ``(N, C, H, W)`` and labels ``(N,)``, for everything but the accuracy.
        accuracy: of the model as it is when called, in percent; once without hooks, once for each layer of one shape.

    Returns:
        In the order of the modules, a dictionary a layer: ``name``, ``kind``, ``gain`` (root mean square of its output
        over its input's), ``zero_share`` (of its thresholded coefficients, 0..1), ``backward_gain`` (root mean square
        of the gradient of its input over its output's; NaN where that input is the images), ``gradient_norm`` (of its
        own parameters, over that of the whole model), each in evaluation mode and the mean over the batches; and
        ``bypassed_change``, by how many points the accuracy changes when the layer hands on its input as it is (None
        where that has another shape).
    """
    layers = _spectral(model)
    found = [_signals(model, layers, images, labels) for images, labels in batches]
    whole = accuracy()
    rows = []
    for name, layer in layers.items():
        means = {key: sum(batch[name][key] for batch in found) / len(found) for key in found[0][name]}
        change = None
        if means.pop("same_shape"):
            with _hooked([layer.register_forward_hook(lambda _, inputs, output: inputs[0])]):
                change = accuracy() - whole
        rows.append({"name": name, "kind": type(layer).__name__, **means, "bypassed_change": change})
    return rows


def _signals(model: nn.Module, layers: dict[str, SpectralLayer], images: Tensor, labels: Tensor) -> dict[str, Any]:
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            for signal in (inputs[0], output):
                if signal.requires_grad:
                    signal.retain_grad()
            kept[name] = inputs[0], output

        return hook

    was_training = model.training
    with _hooked([layer.register_forward_hook(keep(name)) for name, layer in layers.items()]):
        loss = F.cross_entropy(model.eval()(images), labels)
    loss.backward()
    whole = _gradient_norm(model.parameters())
    signals = {}
    for name, (x, y) in kept.items():
        with torch.no_grad():
            coefficients = layers[name].coefficients(x)
        signals[name] = {
            "gain": _ratio(y, x),
            "zero_share": 1 - int(coefficients.count_nonzero()) / coefficients.numel(),
            "backward_gain": math.nan if x.grad is None or y.grad is None else _ratio(x.grad, y.grad),
            "gradient_norm": _gradient_norm(layers[name].parameters()) / whole,
            "same_shape": x.shape == y.shape,
        }
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return signals


def _ratio(above: Tensor, below: Tensor) -> float:
    return (above.detach().square().mean() / below.detach().square().mean()).sqrt().item()


def _gradient_norm(parameters: Iterable[Tensor]) -> float:
    return sum(p.grad.square().sum().item() for p in parameters if p.grad is not None) ** 0.5


@contextmanager
def _hooked(handles: list[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
