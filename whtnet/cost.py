"""What a network costs: parameters, batch-norm statistics, MACs, and the additions of its Walsh-Hadamard transforms."""

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from whtnet.layers import SpectralLayer
from whtnet.modules import first_input

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Cost:
    """Cost of a network for one input image.

    Attributes:
        parameters: trainable parameters.
        bn_statistics: running means and variances of its batch norms. Keras counts them in a model's total, and so do
            FWHT-2021's 2.270M, 947K and 540K.
        macs: multiply-accumulate operations of convolutions, linear layers and attention. Elementwise work (batch
            norm, activations, thresholds, the weights V) is not counted, as usual.
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
    norms = (m for m in module.modules() if isinstance(m, _BATCH_NORMS))
    return sum(s.numel() for m in norms for s in (m.running_mean, m.running_var) if s is not None)


# What PyTorch decomposes in Python on the meta device though its result has its input's shape: most of a pass's time.
_SAME_SHAPE = {getattr(torch.ops.aten, name) for name in ("hardswish", "hardsigmoid", "hardtanh", "silu", "gelu")}
_SAME_TENSOR = {getattr(torch.ops.aten, name) for name in ("hardswish_", "hardsigmoid_", "hardtanh_", "silu_", "gelu_")}


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy on the meta device, in evaluation mode and without hooks; no data is copied.

    A weight that a hook computes (pruned, or normalised in the old way) is there as it was computed last.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        held = vars(part)
        memo |= {id(hooks): OrderedDict() for name, hooks in held.items() if name.endswith("_hooks")}
        tensors = (*held.values(), *part._parameters.values(), *part._buffers.values())
        memo |= {id(t): _on_meta(t) for t in tensors if type(t) in (Tensor, nn.Parameter)}
    return copy.deepcopy(module, memo).to("meta").eval()


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, tensor.requires_grad) if type(tensor) is nn.Parameter else empty


def meta_probe(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[nn.Module, Tensor]:
    """A :func:`meta_copy` of ``model``, and an image for it."""
    with torch.inference_mode(False):  # what composite operators do with tensors of inference mode can't be counted
        probe = meta_copy(model)
        dtype = next((p.dtype for p in probe.parameters() if p.is_floating_point()), None)
        return probe, torch.empty(1, *input_size, device="meta", dtype=dtype)


class CostCounter(TorchDispatchMode):
    """Counts what runs while it is entered, for one image on the meta device.

    Args:
        probe: what will run; a copy, whose layers of this package get hooks.
    """

    def __init__(self, probe: nn.Module) -> None:
        super().__init__()
        self._probe = probe
        self._depth = 0  # of layers of this package that are running
        self._flops = self._additions = 0
        for module in probe.modules():
            if isinstance(module, SpectralLayer):
                module.register_forward_pre_hook(self._enter, with_kwargs=True)
                module.register_forward_hook(self._leave)

    @property
    def cost(self) -> Cost:
        """What was counted."""
        statistics = count_bn_statistics(self._probe)
        return Cost(count_parameters(self._probe), statistics, self._flops // 2, self._additions)

    def _enter(self, layer: SpectralLayer, args: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
        self._additions += layer.wht_additions(tuple(first_input(args, keywords).shape))
        self._depth += 1

    def _leave(self, *_: Any) -> None:
        self._depth -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        packet = func.overloadpacket
        if packet in _SAME_SHAPE:
            return torch.empty_like(args[0])
        if packet in _SAME_TENSOR:
            return args[0]
        if packet is torch.ops.aten._native_batch_norm_legit_no_training:
            return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        out = func(*args, **(kwargs or {}))
        # The reference computes transforms as matrix products. Those are additions in a fast algorithm, counted by the
        # layer; convolutions inside a layer (HT-perceptron) remain multiplications.
        if packet in flop_registry and not (self._depth and packet is not torch.ops.aten.convolution):
            self._flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        return out


def count_cost(probe: nn.Module, image: Tensor) -> Cost:
    """Count the cost of a :func:`meta_probe`."""
    counter = CostCounter(probe)
    with torch.inference_mode(False), torch.no_grad(), counter:
        probe(image)
    return counter.cost
