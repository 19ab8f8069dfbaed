"""The layers of :mod:`whtnet.export.products` as TFLite operators.

Maps lie in NHWC, so a transform of a map is one product from the left, with all channels side by side.
"""

import functools
import itertools

import torch
from torch import Tensor

from whtnet.export.checks import ExportError
from whtnet.export.products import ChannelProducts, MapProducts, MapTransform, PerceptronProducts, Threshold
from whtnet.export.tflite.graph import SAME, VALID, Graph


def convolution(
    g: Graph,
    x: int,
    kernel: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: int,
    groups: int,
) -> int:
    """A convolution of an NHWC map with a ``(C_out, C_in / groups, k, k)`` kernel; ``padding`` is SAME or VALID."""
    n, height, width, _ = g.shape(x)
    k, window = kernel.shape[0], kernel.shape[2:]
    sizes = [
        -(-size // s) if padding != VALID else (size - w) // s + 1
        for size, w, s in zip((height, width), window, stride, strict=True)
    ]
    bias = torch.zeros(k) if bias is None else bias
    weight = kernel.permute((0, 2, 3, 1) if groups == 1 else (1, 2, 3, 0))
    inputs, shape = [x, g.constant(weight.numpy()), g.constant(bias.numpy())], (n, *sizes, k)
    options = {"padding": padding, "strideH": stride[0], "strideW": stride[1]}
    if groups == 1:
        return g.add("CONV_2D", inputs, shape, "Conv2DOptions", **options)
    options["depthMultiplier"] = k // groups
    return g.add("DEPTHWISE_CONV_2D", inputs, shape, "DepthwiseConv2DOptions", **options)


def pointwise(g: Graph, x: int, kernel: Tensor, stride: int = 1) -> int:
    """A 1×1 convolution without bias."""
    return convolution(g, x, kernel, None, (stride, stride), VALID, 1)


def elementwise(g: Graph, name: str, *inputs: int) -> int:
    """Of the first input's shape, with which the others broadcast."""
    options = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions", "DIV": "DivOptions", "ABS": "AbsOptions"}
    return g.add(name, inputs, g.shape(inputs[0]), options.get(name))


def threshold(g: Graph, z: int, layer: Threshold, t: Tensor, first: Tensor | None) -> int:
    """The coefficients after :class:`whtnet.export.products.Threshold` with T in the shape ``t``."""
    if layer.clips:
        low = elementwise(g, "MAXIMUM", z, g.constant(-t.numpy()))
        return elementwise(g, "SUB", z, elementwise(g, "MINIMUM", low, g.constant(t.numpy())))
    over = elementwise(g, "RELU", elementwise(g, "SUB", elementwise(g, "ABS", z), g.constant(t.numpy())))
    y = elementwise(g, "MUL", elementwise(g, "TANH" if layer.odd is torch.tanh else "SIGN", z), over)
    if first is None:
        return y
    kept = elementwise(g, "MUL", z, g.constant(first.float().numpy()))
    return elementwise(g, "ADD", elementwise(g, "MUL", y, g.constant((~first).float().numpy())), kept)


def maps(g: Graph, x: int, layer: MapProducts) -> int:
    """``(N, H, W, C)`` → the same, or less where the layer is strided."""
    t, first = layer.threshold.t, layer.threshold.first
    z = _transform(g, x, layer.transform, layer.weight)
    z = threshold(g, z, layer.threshold, t[..., None], None if first is None else first[..., None])
    y = _inverse(g, z, layer.transform)
    if layer.stride > 1:
        y = _average_pool(g, y, layer.stride)
    return elementwise(g, "ADD", x, y) if layer.residual else y


def perceptron(g: Graph, x: int, layer: PerceptronProducts) -> int:
    """``(N, H, W, C_in)`` → ``(N, H, W, C_out)``."""
    shape, first = layer.transform.shape, layer.threshold.first
    passed = None if first is None else first.view(-1, *shape)[0][..., None]

    def path(kernel: Tensor, v: Tensor, t: Tensor) -> int:
        z = _transform(g, pointwise(g, x, kernel), layer.transform, v)
        return threshold(g, z, layer.threshold, t[..., None], passed)

    kernels = layer.kernel.chunk(layer.paths)
    paths = zip(kernels, layer.weight.view(-1, *shape), layer.threshold.t.view(-1, *shape), strict=True)
    total = functools.reduce(functools.partial(elementwise, g, "ADD"), itertools.starmap(path, paths))
    y = _inverse(g, total, layer.transform)
    return elementwise(g, "ADD", x, y) if layer.residual else y


def channels(g: Graph, x: int, layer: ChannelProducts) -> int:
    """``(N, H, W, C_in)`` → ``(N, ceil(H / stride), ceil(W / stride), C_out)``."""
    analysis, synthesis = layer.kernels()
    t, first = layer.threshold.t, layer.threshold.first
    z = pointwise(g, x, analysis, layer.stride)
    z = threshold(g, z, layer.threshold, t.flatten(), None if first is None else first.flatten())
    return pointwise(g, z, synthesis)


def _transform(g: Graph, x: int, transform: MapTransform, weight: Tensor | None) -> int:
    (height, width), (h, w), c = transform.size, transform.padded, g.shape(x)[3]
    if transform.one:
        return _product(g, transform.analysis(weight).T, g.reshape(x, (1, height * width, c)))
    rows = _product(g, transform.matrices[str(h)][:, :height], g.reshape(x, (1, height, width * c)))
    z = _product(g, transform.matrices[str(w)][:, :width], g.reshape(rows, (h, width, c)))
    z = g.reshape(z, (1, h, w, c))
    if weight is None and transform.scale == 1:
        return z
    factor = torch.ones(h, w) * (transform.scale if weight is None else weight * transform.scale)
    return elementwise(g, "MUL", z, g.constant(factor[..., None].numpy()))


def _inverse(g: Graph, z: int, transform: MapTransform) -> int:
    (height, width), (h, w), c = transform.size, transform.padded, g.shape(z)[-1]
    if transform.one:
        return g.reshape(_product(g, transform.synthesis().T, z), (1, height, width, c))
    back = transform.matrices[str(w)][:width] / transform.scale
    rows = _product(g, transform.matrices[str(h)][:height], g.reshape(z, (1, h, w * c)))
    y = _product(g, back, g.reshape(rows, (height, w, c)))
    return g.reshape(y, (1, height, width, c))


def _product(g: Graph, matrix: Tensor, x: int) -> int:
    """``matrix`` times each ``(rows, columns)`` of ``x``."""
    batch, _, columns = g.shape(x)
    left = g.constant(matrix[None].numpy())
    return g.add("BATCH_MATMUL", [left, x], (batch, len(matrix), columns), "BatchMatMulOptions")


def _average_pool(g: Graph, x: int, stride: int) -> int:
    n, height, width, c = g.shape(x)
    options = {"padding": SAME, "strideH": stride, "strideW": stride, "filterHeight": stride, "filterWidth": stride}
    if height % stride or width % stride:
        raise ExportError(f"TFLite can't pool a {height}×{width} map over squares of {stride}, which don't divide it")
    return g.add("AVERAGE_POOL_2D", [x], (n, height // stride, width // stride, c), "Pool2DOptions", **options)
