"""What a network costs: parameters, batch-norm statistics, MACs, and the additions of its Walsh-Hadamard transforms."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from whtnet.layers import SpectralLayer

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Cost:
    """Cost of a network for one input image.

    Attributes:
        parameters: trainable parameters.
        bn_statistics: running means and variances of its batch norms. Keras counts them in a model's total, and so do
            FWHT-2021's 2.270M, 947K and 540K.
        macs: multiply-accumulate operations of convolutions and linear layers. Elementwise work (batch norm,
            activations, thresholds, the weights V) is not counted, as usual.
        wht_additions: additions and subtractions of the fast Walsh-Hadamard transforms, ``n·log2(n)`` for n points;
            they take no multiplications.
    """

    parameters: int
    bn_statistics: int
    macs: int
    wht_additions: int

    @property
    def parameters_with_bn_statistics(self) -> int:
        """Trainable parameters and batch-norm running statistics."""
        return self.parameters + self.bn_statistics


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters of ``module``; a shared one counts once."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_bn_statistics(module: nn.Module) -> int:
    """Number of running means and variances of the batch norms in ``module``."""
    norms = (m for m in module.modules() if isinstance(m, _BATCH_NORMS) and m.running_mean is not None)
    return sum(m.running_mean.numel() + m.running_var.numel() for m in norms)


def meta_probe(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[nn.Module, Tensor]:
    """A copy of ``model`` on the meta device, in evaluation mode and without hooks, and a batch of 2 images for it."""
    probe = copy.deepcopy(model).to("meta").eval()
    for module in probe.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    dtype = next((p.dtype for p in probe.parameters()), None)
    return probe, torch.empty(2, *input_size, device="meta", dtype=dtype)


def measure_cost(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """Count the cost of ``model`` by a forward pass on the meta device; the model itself is not touched.

    Args:
        model: any image model.
        input_size: one image, (C, H, W).
    """
    probe, images = meta_probe(model, input_size)
    additions = 0

    def add(layer: SpectralLayer, args: tuple[Tensor, ...]) -> None:
        nonlocal additions
        additions += layer.wht_additions(tuple(args[0].shape))

    for module in probe.modules():
        if isinstance(module, SpectralLayer):
            module.register_forward_pre_hook(add)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        probe(images[:1])
    counts, flops = counter.get_flop_counts(), counter.get_total_flops()
    # The reference computes transforms as matrix products. Those are additions in a fast algorithm, counted above;
    # convolutions inside a layer (HT-perceptron) remain multiplications.
    root = type(probe).__name__
    for name, module in probe.named_modules():
        if isinstance(module, SpectralLayer):
            inside = counts.get(f"{root}.{name}" if name else root, {})
            flops -= sum(n for op, n in inside.items() if "convolution" not in str(op))
    return Cost(count_parameters(model), count_bn_statistics(model), flops // 2, additions)
