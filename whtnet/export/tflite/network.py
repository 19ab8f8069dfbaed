"""A network as TFLite operators, module by module."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from whtnet.export.checks import ExportError
from whtnet.export.products import ChannelProducts, MapProducts, PerceptronProducts
from whtnet.export.tflite import layers
from whtnet.export.tflite.graph import RELU, RELU6, SAME, VALID, Graph
from whtnet.fusion import only_user, scale_and_shift

_LAYERS: dict[type[nn.Module], Callable[[Graph, int, Any], int]] = {
    MapProducts: layers.maps,
    PerceptronProducts: layers.perceptron,
    ChannelProducts: layers.channels,
}
_ACTIVATIONS: dict[Any, int] = {nn.ReLU: RELU, nn.ReLU6: RELU6, F.relu: RELU, F.relu6: RELU6, torch.relu: RELU}
_ARITHMETIC: dict[Any, str] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add), "ADD"),
    **dict.fromkeys((operator.sub, torch.sub), "SUB"),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), "MUL"),
    **dict.fromkeys((operator.truediv, torch.div), "DIV"),
}


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _LAYERS or super().is_leaf_module(m, module_qualified_name)


def lower(model: nn.Module, input_size: tuple[int, int, int]) -> bytes:
    """A TFLite file of a classifier of ``(C, H, W)`` images, whose layers are products; it takes ``(N, H, W, C)``.

    Raises:
        ExportError: naming what has no counterpart.
    """
    try:
        traced = torch.fx.GraphModule(model, _Tracer().trace(model))
    except (torch.fx.proxy.TraceError, TypeError) as error:
        raise ExportError(f"TFLite: the network can't be traced: {error}") from error
    channels, height, width = input_size
    lowering = _Lowering(traced, Graph((1, height, width, channels)))
    with torch.no_grad():
        for node in traced.graph.nodes:
            lowering.take(node)
    return lowering.graph.serialized(lowering.output)


class _Lowering:
    """Takes the nodes of a trace in order.

    A batch norm after a convolution goes into that, a ReLU into what comes before it, where nothing else needs that.
    """

    def __init__(self, traced: torch.fx.GraphModule, graph: Graph) -> None:
        self.graph, self.output = graph, graph.input
        self._modules = dict(traced.named_modules())
        self._traced = traced
        self._values: dict[torch.fx.Node, Any] = {}  # an index in the graph, or a tensor that is constant

    def take(self, node: torch.fx.Node) -> None:
        """Append what a node stands for."""
        match node.op:
            case "placeholder":
                self._values[node] = self.graph.input
            case "get_attr":
                value: Any = self._traced
                for name in str(node.target).split("."):
                    value = getattr(value, name)
                self._values[node] = value
            case "call_module":
                self._values[node] = self._module(node, self._modules[str(node.target)])
            case "call_function" | "call_method":
                self._values[node] = self._function(node)
            case "output":
                self.output = self._values[_operand(node)]

    def _module(self, node: torch.fx.Node, module: nn.Module) -> int:
        g, x = self.graph, self._values[_operand(node)]
        if (layer := _LAYERS.get(type(module))) is not None:
            return layer(g, x, module)
        if type(module) in _ACTIVATIONS:
            return self._activate(node, _ACTIVATIONS[type(module)])
        match module:
            case nn.Identity() | nn.Dropout():
                return x
            case nn.Conv2d():
                return self._convolution(node, module)
            case nn.Flatten(start_dim=1, end_dim=-1):
                return self._flatten(node)
            case nn.BatchNorm2d():
                return self._norm(node, x, module)
            case nn.Linear():
                bias = torch.zeros(module.out_features) if module.bias is None else module.bias
                inputs = [x, g.constant(module.weight.numpy()), g.constant(bias.numpy())]
                return g.add("FULLY_CONNECTED", inputs, (1, module.out_features), "FullyConnectedOptions")
            case nn.AdaptiveAvgPool2d(output_size=1 | (1, 1)):
                axes = g.constant([1, 2])
                return g.add("MEAN", [x, axes], (1, 1, 1, g.shape(x)[3]), "ReducerOptions", keepDims=True)
            case nn.Hardswish():
                return layers.elementwise(g, "HARD_SWISH", x)
            case nn.Hardsigmoid():  # relu6(x + 3) / 6
                shifted = layers.elementwise(g, "RELU6", layers.elementwise(g, "ADD", x, g.constant([3.0])))
                return layers.elementwise(g, "MUL", shifted, g.constant([1 / 6]))
        raise ExportError(f"TFLite: {node.target}, a {type(module).__name__}, has no counterpart here")

    def _function(self, node: torch.fx.Node) -> int:
        if node.target in _ARITHMETIC:
            return layers.elementwise(self.graph, _ARITHMETIC[node.target], *self._largest_first(node))
        if node.target in _ACTIVATIONS:
            return self._activate(node, _ACTIVATIONS[node.target])
        if node.target in (torch.flatten, "flatten"):
            return self._flatten(node)
        name = getattr(node.target, "__name__", node.target)
        raise ExportError(f"TFLite: the function {name} has no counterpart here")

    def _flatten(self, node: torch.fx.Node) -> int:
        x = self._values[_operand(node)]
        n, height, width, c = self.graph.shape(x)
        if height * width > 1:
            raise ExportError(f"TFLite: {node.target} would flatten a {height}×{width} map in another order")
        return self.graph.reshape(x, (n, c))

    def _largest_first(self, node: torch.fx.Node) -> list[int]:
        inputs = [self._index(self._values[a] if isinstance(a, torch.fx.Node) else a) for a in node.args]
        if _ARITHMETIC[node.target] in ("ADD", "MUL"):
            inputs.sort(key=lambda i: -len(self.graph.shape(i)) * 10**9 - _size(self.graph.shape(i)))
        return inputs

    def _index(self, value: Any) -> int:
        if isinstance(value, Tensor):  # of an image's channels, (1, C, 1, 1)
            value = self.graph.constant((value.permute(0, 2, 3, 1) if value.dim() == 4 else value).numpy())
        return value if isinstance(value, int) else self.graph.constant([value])

    def _activate(self, node: torch.fx.Node, activation: int) -> int:
        x = self._values[_operand(node)]
        holders = [other for other, value in self._values.items() if isinstance(value, int) and value == x]
        if holders == [_operand(node)] and only_user(holders[0]) and self.graph.fuse(x, activation):
            return x
        return layers.elementwise(self.graph, "RELU" if activation == RELU else "RELU6", x)

    def _convolution(self, node: torch.fx.Node, module: nn.Conv2d) -> int:
        g, x = self.graph, self._values[_operand(node)]
        kernel, bias = module.weight, module.bias
        norm = only_user(node)
        if norm is not None and isinstance(norm := self._modules.get(str(norm.target)), nn.BatchNorm2d):
            scale, shift = _affine(norm)
            kernel = kernel * scale.view(-1, 1, 1, 1)
            bias = shift if bias is None else bias * scale + shift
        if module.groups not in (1, module.in_channels) or module.dilation != (1, 1) or isinstance(module.padding, str):
            raise ExportError(f"TFLite: {node.target} has groups, dilation or padding without a counterpart here")
        pads, padding = module.padding, VALID
        if any(pads):
            same = all(
                s == 1 and 2 * p == k - 1 for s, p, k in zip(module.stride, pads, module.kernel_size, strict=True)
            )
            padding, x = (SAME, x) if same else (VALID, self._pad(x, pads))
        return layers.convolution(g, x, kernel, bias, module.stride, padding, module.groups)

    def _pad(self, x: int, pads: tuple[int, ...]) -> int:
        n, height, width, c = self.graph.shape(x)
        shape = n, height + 2 * pads[0], width + 2 * pads[1], c
        sizes = self.graph.constant([[0, 0], [pads[0]] * 2, [pads[1]] * 2, [0, 0]])
        return self.graph.add("PAD", [x, sizes], shape, "PadOptions")

    def _norm(self, node: torch.fx.Node, x: int, module: nn.BatchNorm2d) -> int:
        before = _operand(node)
        if isinstance(self._modules.get(str(before.target)), nn.Conv2d) and only_user(before) is node:
            return self._values.pop(before)
        scale, shift = _affine(module)
        scaled = layers.elementwise(self.graph, "MUL", x, self.graph.constant(scale.numpy()))
        return layers.elementwise(self.graph, "ADD", scaled, self.graph.constant(shift.numpy()))


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    if norm.running_mean is None or norm.running_var is None:
        raise ExportError("TFLite: a batch norm without running statistics has no counterpart here")
    return scale_and_shift(norm)


def _operand(node: torch.fx.Node) -> torch.fx.Node:
    """What a node takes first."""
    return node.all_input_nodes[0]


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
