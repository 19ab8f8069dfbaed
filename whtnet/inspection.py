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
from whtnet.modules import evaluation_mode, first_input

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
            "zero_share": shares[name],
        }
        for name, layer in _spectral(model).items()
        if name in shares
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
        if name in shares:
            metrics[name] = {"zero_share": shares[name]}
            if (threshold := getattr(layer, "threshold", None)) is not None:
                of = {"min": threshold.min(), "mean": threshold.mean(), "max": threshold.max()}
                metrics[name] |= {f"threshold_{key}": value.item() for key, value in of.items()}
    return metrics


def _spectral(model: nn.Module) -> dict[str, SpectralLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SpectralLayer)}


def _zero_shares(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Of each layer that a batch goes through, the share of the coefficients that are zero after thresholding."""
    zeros: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)

    def count(name: str, layer: SpectralLayer, x: Tensor, _: Tensor) -> None:
        coefficients = layer.coefficients(x)
        zeros[name] += coefficients.numel() - int(coefficients.count_nonzero())
        total[name] += coefficients.numel()

    with _observed(model, count), torch.compiler.set_stance("force_eager"):  # a compiled model would call no hooks
        model(images)
    return {name: zeros[name] / total[name] for name in total}


@contextmanager
def _observed(model: nn.Module, look: Callable[[str, SpectralLayer, Tensor, Tensor], None]) -> Iterator[None]:
    """``model`` in evaluation mode, with ``look`` called with each layer's name, itself, its input and its output."""

    def hook(name: str) -> Callable[..., None]:
        def seen(layer: SpectralLayer, args: tuple[Tensor, ...], keywords: dict[str, Tensor], output: Tensor) -> None:
            look(name, layer, first_input(args, keywords), output)

        return seen

    handles = [layer.register_forward_hook(hook(name), with_kwargs=True) for name, layer in _spectral(model).items()]
    with _hooked(handles), evaluation_mode(model):
        yield


def _values(parameter: Tensor | None) -> list[Any] | None:
    if parameter is None or parameter.numel() > MAX_VALUES:
        return None
    rounded = torch.tensor([float(f"{value:.4g}") for value in parameter.flatten().tolist()], dtype=torch.float64)
    return rounded.view(parameter.shape).tolist()


def layer_effects(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], accuracy: Callable[[], float]
) -> list[dict[str, Any]]:
    """What every Walsh-Hadamard layer of a trained ``model`` does to signals, gradients and the accuracy.

    Args:
        model: left as it was.
        batches: normalised images ``(N, C, H, W)`` and labels ``(N,)``, for everything but the accuracy.
        accuracy: of the model as it is when called, in percent; once without hooks, once for each layer of one shape.

    Returns:
        In the order of the modules, a dictionary a layer that is used (of several uses, the first counts): ``name``,
        ``kind``, ``gain`` (root mean square of its output over its input's), ``zero_share`` (of its thresholded
        coefficients, 0..1), ``backward_gain`` (root mean square of the gradient of its input over its output's; NaN
        where that input is the images), ``gradient_norm`` (of its own parameters, over that of the whole model), each
        in evaluation mode and the mean over the batches; and ``bypassed_change``, by how many points the accuracy
        changes when the layer hands on its input as it is (None where that has another shape).
    """
    found = [_signals(model, images, labels) for images, labels in batches]
    whole = accuracy()
    rows = []
    for name, layer in _spectral(model).items():
        if name not in found[0]:
            continue
        means = {key: sum(batch[name][key] for batch in found) / len(found) for key in found[0][name]}
        change = None
        if means.pop("same_shape"):
            bypass = layer.register_forward_hook(lambda _, *given: first_input(*given[:2]), with_kwargs=True)
            with _hooked([bypass]):
                change = accuracy() - whole
        rows.append({"name": name, "kind": type(layer).__name__, **means, "bypassed_change": change})
    return rows


def _signals(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """By the name of a layer, what :func:`layer_effects` says of one batch, and whether the layer keeps the shape."""
    signals: dict[str, dict[str, float]] = {}
    gradients: dict[tuple[str, str], Tensor] = {}

    def look(name: str, layer: SpectralLayer, x: Tensor, y: Tensor) -> None:
        if name in signals:
            return
        with torch.no_grad():  # at once: what follows may change the output in place
            coefficients = layer.coefficients(x)
            zero_share = 1 - int(coefficients.count_nonzero()) / coefficients.numel()
            signals[name] = {"gain": _ratio(y, x), "zero_share": zero_share, "same_shape": x.shape == y.shape}
        for side, signal in (("in", x), ("out", y)):
            if signal.requires_grad:
                signal.register_hook(lambda gradient, key=(name, side): gradients.update({key: gradient}))

    with _observed(model, look):
        loss = F.cross_entropy(model(images), labels)
    trained = [p for p in model.parameters() if p.requires_grad]
    of = dict(zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True))
    for name, layer in _spectral(model).items():
        if name in signals:
            into, out = (gradients.get((name, side)) for side in ("in", "out"))
            signals[name] |= {
                "backward_gain": math.nan if into is None or out is None else _ratio(into, out),
                "gradient_norm": _norm(of.get(p) for p in layer.parameters()) / _norm(of.values()),
            }
    return signals


def _ratio(above: Tensor, below: Tensor) -> float:
    return (above.detach().square().mean() / below.detach().square().mean()).sqrt().item()


def _norm(gradients: Iterable[Tensor | None]) -> float:
    return sum(g.square().sum().item() for g in gradients if g is not None) ** 0.5


@contextmanager
def _hooked(handles: list[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
