"""Fit new layers to the activations of the layers that they replace, one by one, before training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whtnet.modules import evaluation_mode, first_input
from whtnet.policy.report import Report

MAX_STEPS = 30  # of L-BFGS, for each layer


@dataclass(frozen=True)
class SiteFit:
    """How well a layer does what the replaced one did.

    Attributes:
        name: of the site.
        before: mean squared difference of the outputs over the variance of the replaced one's, with fresh parameters.
        after: the same with fitted ones. 1 is what a constant output would reach.
    """

    name: str
    before: float
    after: float


def fit_layers_(model: nn.Module, original: nn.Module, report: Report, images: Sequence[Tensor]) -> list[SiteFit]:
    """Set the parameters of the layers that a policy put into ``model`` to what comes closest to ``original``.

    Every layer gets the inputs that the replaced one gets in ``original``, in evaluation mode, and L-BFGS minimises the
    mean squared difference of the outputs. A layer that this does not bring closer keeps its fresh parameters. Layers
    before global average pooling replace nothing and stay fresh; controls without parameters have nothing to fit.

    Args:
        model: after :func:`apply_policy_`.
        original: a copy of the model from before.
        report: of :func:`apply_policy_`.
        images: batches ``(N, C, H, W)``, normalised, on the models' device.
    """
    fits = []
    for site in report.replacements:
        layer = model.get_submodule(site.name)
        if site.kind != "before_gap" and any(True for _ in layer.parameters()):
            with evaluation_mode(original):
                pairs = list(_activations(original, site.name, images))
            before, after = _fit_(layer, pairs)
            fits.append(SiteFit(site.name, before, after))
    return fits


class _Seen(Exception):  # noqa: N818, it ends a forward pass that need not go on
    pass


@torch.no_grad()
def _activations(original: nn.Module, name: str, images: Iterable[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
    found: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], keywords: dict[str, Tensor], output: Tensor) -> None:
        # An activation that follows in place would change what was seen here.
        found.append((first_input(args, keywords).detach().clone(), output.detach().clone()))
        raise _Seen

    handle = original.get_submodule(name).register_forward_hook(note, with_kwargs=True)
    try:
        for batch in images:
            try:
                original(batch)
            except _Seen:
                yield found.pop()
    finally:
        handle.remove()


def _fit_(layer: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    parameters = list(layer.parameters())
    outputs = torch.cat([y.flatten() for _, y in pairs])
    scale = outputs.var().item() * outputs.numel() or 1.0
    optimizer = torch.optim.LBFGS(parameters, max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

    def difference() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), device=outputs.device)
        for x, y in pairs:
            error = (layer(x) - y).square().sum() / scale
            error.backward()
            total += error.detach()
        return total

    fresh = [p.detach().clone() for p in parameters]
    before = difference().item()
    optimizer.step(difference)
    after = difference().item()
    optimizer.zero_grad()
    if not after < before:
        with torch.no_grad():
            for p, value in zip(parameters, fresh, strict=True):
                p.copy_(value)
        after = before
    return before, after
