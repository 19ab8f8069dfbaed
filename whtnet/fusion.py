"""Networks for inference: batch norms go into what stands before them.

Into a convolution's weights, or into the *epilogue* of a Walsh-Hadamard layer, with which the layer multiplies, shifts,
adds a residual and clamps its result while that is in the cache: batch norm, the addition of a block's shortcut and
ReLU cost no further pass over memory, and no further calls.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from whtnet.errors import UserError
from whtnet.kernels.options import UNBOUNDED, Epilogue
from whtnet.layers import BWHT1d, FWHT2d, HTPerceptron2d
from whtnet.layers.base import FxLeaf

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Layer = BWHT1d | FWHT2d | HTPerceptron2d
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RELU, _RELU6 = (0.0, UNBOUNDED[1]), (0.0, 6.0)
_BOUNDS: dict[Any, tuple[float, float]] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu", "relu_"), _RELU),
    **dict.fromkeys((nn.ReLU6, F.relu6), _RELU6),
}
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # what these do in inference


class FusionError(UserError, ValueError):
    """A network that can't be made ready for inference."""


class FinishedLayer(FxLeaf):
    """A Walsh-Hadamard layer and what follows it: batch norm, perhaps an addition, perhaps ReLU or ReLU6.

    Shape: the layer's; a residual has that of the result. The batch norm's statistics and parameters become the buffers
    ``scale`` and ``shift``, ``(C,)``.

    Args:
        layer: with ``can_finish``.
        norm: the batch norm after it, with running statistics.
        bounds: least and largest value of the result.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, layer: _Layer, norm: _BatchNorm, bounds: tuple[float, float] = UNBOUNDED) -> None:
        super().__init__()
        self.layer, self.bounds = layer, bounds
        scale, shift = scale_and_shift(norm)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``(N, C_in, H, W)`` → the layer's result, finished; 1-D layers take other numbers of dimensions too."""
        # Without the detour that nn.Module takes to what it holds.
        layer, buffers = cast(_Layer, self._modules["layer"]), cast("dict[str, Tensor]", self._buffers)
        scale, shift = buffers["scale"], buffers["shift"]
        if isinstance(layer, FWHT2d) and (x.dim() != 4 or x.shape[1] != scale.numel()):
            raise ValueError(f"FinishedLayer takes (N, {scale.numel()}, H, W), got shape {tuple(x.shape)}")
        return layer.finished(x, Epilogue(scale, shift, residual, *self.bounds))

    def extra_repr(self) -> str:
        """The bounds, where there are any."""
        return "" if self.bounds == UNBOUNDED else f"bounds={self.bounds}"


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm with running statistics multiplies with and adds in evaluation mode, ``(C,)`` each."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    with torch.no_grad():
        scale = (variance.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
    return scale.to(mean.dtype), shift.to(mean.dtype)


def fuse_for_inference(model: nn.Module) -> fx.GraphModule:
    """A copy of a network for inference, with its batch norms in what stands before them.

    A batch norm that follows a convolution goes into its weights. One that follows a :class:`~whtnet.BWHT1d`,
    :class:`~whtnet.FWHT2d` or :class:`~whtnet.HTPerceptron2d` becomes part of the layer, with the addition and the ReLU
    or ReLU6 after it: a :class:`FinishedLayer`. The C++ kernel does all of it at once under ``torch.no_grad()`` or
    ``torch.inference_mode()``; elsewhere (other backends, ``torch.compile``, ``torch.export``, with gradients) it is
    plain operators. Batch norms elsewhere stay, as after an ``FWHT2d`` with a stride and interleaved layers. Dropout
    and identities go. A module with forward hooks stays as it is.

    Args:
        model: in evaluation mode; torch.fx must be able to trace it.

    Returns:
        What ``model`` computes, up to rounding. It shares nothing with ``model`` and has a state dict of its own, which
        does not fit ``model``: keep that to train it further.

    Raises:
        FusionError: for a model in training mode, or one that can't be copied or that torch.fx can't trace.
    """
    if any(module.training for module in model.modules()):
        raise FusionError("batch norms have fixed statistics in evaluation mode alone; call model.eval() first")
    network = _traced(_without_norm_acts(_copied(model)))
    for node in list(network.graph.nodes):
        if type(_module(network, node)) in _NOTHING:
            node.replace_all_uses_with(node.all_input_nodes[0])
            network.graph.erase_node(node)
    for node in list(network.graph.nodes):
        if type(_module(network, node)) in _NORMS:
            _fold(network, node)
    network.delete_all_unused_submodules()
    network.graph.lint()
    network.recompile()
    return network.eval()


class _Tracer(fx.Tracer):
    """Keeps batch norms whole, whoever they are of."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _NORMS) or super().is_leaf_module(m, module_qualified_name)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise FusionError(
            f"{type(model).__name__} can't be copied ({error}); where torch.nn.utils.prune made a tensor, "
            "prune.remove(module, name) makes it a parameter again"
        ) from error


def _traced(model: nn.Module) -> fx.GraphModule:
    try:
        return fx.GraphModule(model, _Tracer().trace(model), type(model).__name__)
    except Exception as error:  # a network's own code runs, with values that it does not expect
        raise FusionError(
            f"torch.fx can't trace {type(model).__name__}, so its batch norms can't be found ({error}); "
            "torch.compile needs no trace of the whole"
        ) from error


def _without_norm_acts(model: nn.Module) -> nn.Module:
    # timm's batch norm with an activation inside, as modules one after the other.
    from timm.layers import BatchNormAct2d  # not with this module, whose names the package offers

    for name, module in list(model.named_modules()):
        if type(module) is BatchNormAct2d and not _has_hooks(module):
            norm = nn.BatchNorm2d(module.num_features, module.eps, module.momentum, module.affine).eval()
            norm.weight, norm.bias = module.weight, module.bias
            norm.running_mean, norm.running_var = module.running_mean, module.running_var
            norm.track_running_stats = module.track_running_stats
            model.set_submodule(name, nn.Sequential(norm, module.drop, module.act).eval())
    return model


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that ``node`` calls, if it alone says what comes out."""
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    return None if module is None or _has_hooks(module) else module


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold(network: fx.GraphModule, node: fx.Node) -> None:
    # The batch norm at `node` into what is before it, where that is possible.
    norm, source = cast(_BatchNorm, network.get_submodule(str(node.target))), node.all_input_nodes[0]
    if only_user(source) is not node or _is_reused(network, source):
        return
    before = _module(network, source)
    if before is None or norm.running_mean is None:
        return
    if type(before) in _CONVOLUTIONS:
        network.set_submodule(str(source.target), fuse_conv_bn_eval(cast(nn.Conv2d, before), norm))
        _replace(network, (node,), source)
    elif isinstance(before, _Layer) and before.can_finish and _fits(before, norm):
        _finish(network, source, node, before, norm)


def _fits(layer: _Layer, norm: _BatchNorm) -> bool:
    """Whether the norm's channels are those that the layer's kernel counts."""
    return isinstance(layer, BWHT1d) or isinstance(norm, nn.BatchNorm2d)


def _finish(network: fx.GraphModule, source: fx.Node, node: fx.Node, layer: _Layer, norm: _BatchNorm) -> None:
    chain, residual = [source, node], _residual(source, node)
    if residual is not None:
        chain.extend(node.users)
    bounds, follower = UNBOUNDED, only_user(chain[-1])
    if follower is not None and (key := _operation(network, follower)) in _BOUNDS:
        bounds = _BOUNDS[key]
        chain.append(follower)
    network.set_submodule(str(source.target), FinishedLayer(layer, norm, bounds).eval())
    inputs = source.args if residual is None else (*source.args, residual)
    with network.graph.inserting_before(source if residual is None else chain[2]):
        finished = network.graph.call_module(str(source.target), inputs)
    _replace(network, reversed(chain), finished)


def _residual(source: fx.Node, node: fx.Node) -> fx.Node | None:
    # What is added to the result of the batch norm at `node`, which follows the layer at `source`.
    follower = only_user(node)
    if follower is None or follower.op == "call_module" or follower.target not in _ADDITIONS:
        return None
    if follower.kwargs or len(set(follower.args)) != 2:
        return None
    first, second = follower.args
    other = second if first is node else first
    in_place = follower.target in (operator.iadd, "add_")
    # The layer moves to where the sum is: nothing else may touch its input meanwhile.
    alone = set(cast(fx.Node, source.args[0]).users) <= {source, follower}
    return other if isinstance(other, fx.Node) and alone and not (in_place and first is other) else None


def _operation(network: fx.GraphModule, node: fx.Node) -> Callable | type | str:
    return type(_module(network, node)) if node.op == "call_module" else node.target


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that takes the result of ``node``; None if there are several, or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_reused(network: fx.GraphModule, node: fx.Node) -> bool:
    return sum(other.op == "call_module" and other.target == node.target for other in network.graph.nodes) > 1


def _replace(network: fx.GraphModule, nodes: Any, by: fx.Node) -> None:
    last, *others = nodes
    last.replace_all_uses_with(by)
    for node in (last, *others):
        network.graph.erase_node(node)
