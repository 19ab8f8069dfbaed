"""The layers as few large matrix products and 1×1 convolutions, for runtimes that have no Walsh-Hadamard transform.

A transform is linear, so V, scale, padding, cropping, pooling and the means of a projection all fold into its matrix. A
map of up to 64 points takes one product with H_h ⊗ H_w; a larger one takes a product along each side. Matrices are
computed from the one of their size, which all layers share: a file holds it once, and a runtime folds the rest when it
loads the file.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whtnet.export.checks import plain_copy
from whtnet.fusion import FinishedLayer
from whtnet.kernels.reference import NORMS
from whtnet.layers import BWHT1d, FWHT2d, HTPerceptron2d, SpectralLayer
from whtnet.transforms import hadamard_matrix

LARGEST_PRODUCT = 64
"""Points that one product transforms. A 16×16 map takes ONNX Runtime longer in one product of 256 points than in two
of 16: its work grows with the square of the points, and is then more than the replaced convolution's."""


def as_products(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference, in float32 on the CPU, that computes the same with the modules below.

    A layer over channels with several blocks, with more than 64 channels in one, or with its channels last, stays as it
    is: plain PyTorch, in products of up to 32 channels. So does one that :func:`whtnet.fuse_for_inference` finished.
    """
    model = plain_copy(model).requires_grad_(False)
    hadamard = Hadamard()
    for name, layer in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        products = _products(layer, hadamard)
        if products is not None and not isinstance(model.get_submodule(parent), FinishedLayer):
            setattr(model.get_submodule(parent), child, products)
    return model


class Hadamard:
    """Orthonormal matrices, one tensor for each size."""

    def __init__(self) -> None:
        self._matrices: dict[int, nn.Parameter] = {}

    def __call__(self, n: int) -> nn.Parameter:
        """H_n / √n, as a parameter, because an export stores a shared one once."""
        if n not in self._matrices:
            self._matrices[n] = nn.Parameter(hadamard_matrix(n, dtype=torch.float32) / math.sqrt(n), False)
        return self._matrices[n]


def _products(layer: nn.Module, hadamard: Hadamard) -> nn.Module | None:
    match layer:
        case FWHT2d():
            return MapProducts(layer, hadamard)
        case HTPerceptron2d():
            return PerceptronProducts(layer, hadamard)
        case BWHT1d(channel_dim=1) if _has_one_block(layer) and layer.block_size <= LARGEST_PRODUCT:
            return ChannelProducts(layer, hadamard)
    return None


def _has_one_block(layer: BWHT1d) -> bool:
    return layer.in_channels == layer.block_size if layer.shared else len(layer.threshold) == 1


class Threshold(nn.Module):
    """A threshold in the fewest elementwise operations: five for smooth, three for soft with T ≥ 0.

    Args:
        layer: whose threshold it is.
        t: T, in a shape that broadcasts with the coefficients.
        first: where T is a DC coefficient's.
    """

    def __init__(self, layer: SpectralLayer, t: Tensor, first: Tensor) -> None:
        super().__init__()
        t = torch.relu(t) if layer.clamp else t.clone()
        if layer.keep_dc and layer.threshold_kind == "soft":
            t[first] = 0  # soft-thresholding with 0 changes nothing
        self.t = nn.Parameter(t, False)
        self.first = nn.Buffer(first) if layer.keep_dc and layer.threshold_kind == "smooth" else None
        self.clips = layer.threshold_kind == "soft" and bool((t >= 0).all())
        self.odd = torch.tanh if layer.threshold_kind == "smooth" else torch.sign

    def forward(self, z: Tensor) -> Tensor:
        """Coefficients, with which T broadcasts."""
        if self.clips:
            return z - torch.clamp(z, -self.t, self.t)
        y = self.odd(z) * torch.relu(z.abs() - self.t)
        return y if self.first is None else torch.where(self.first, z, y)


class MapTransform(nn.Module):
    """2-D transforms of maps, weighted, and back.

    Args:
        size: (H, W) of a map.
        padded: (h, w) of its coefficients.
        norm: scale of the coefficients.
        hadamard: the matrices.
    """

    def __init__(self, size: tuple[int, int], padded: tuple[int, int], norm: str, hadamard: Hadamard) -> None:
        super().__init__()
        self.size, self.padded = size, padded
        self.scale = NORMS[norm](math.prod(padded))
        self.one = math.prod(padded) <= LARGEST_PRODUCT
        self.shape = (math.prod(padded),) if self.one else padded
        sizes = self.shape if self.one else dict.fromkeys(padded)
        self.matrices = nn.ParameterDict({str(n): hadamard(n) for n in sizes})

    def forward(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """``(..., H, W)`` → ``(..., h·w)`` or ``(..., h, w)``, times ``weight`` of the last dimensions."""
        if self.one:
            return x.flatten(-2) @ self.analysis(weight)
        (H, W), (h, w) = self.size, self.padded
        z = self.matrices[str(h)][:, :H] @ (x @ self.matrices[str(w)][:W])
        return z if weight is None and self.scale == 1 else z * (self.scale if weight is None else weight * self.scale)

    def inverse(self, z: Tensor) -> Tensor:
        """Coefficients → ``(..., H, W)``."""
        if self.one:
            return (z @ self.synthesis()).unflatten(-1, self.size)
        (H, W), (h, w) = self.size, self.padded
        return self.matrices[str(h)][:H] @ (z @ (self.matrices[str(w)][:, :W] / self.scale))

    def analysis(self, weight: Tensor | None) -> Tensor:
        """The one matrix of a small map, ``(H·W, h·w)``, with the weights in it."""
        return self._cropped() * (self.scale if weight is None else weight * self.scale)

    def synthesis(self) -> Tensor:
        """The one matrix back, ``(h·w, H·W)``."""
        return self._cropped().T / self.scale

    def _cropped(self) -> Tensor:
        # H_h ⊗ H_w is H_hw in natural order; rows of padding, which are zero in the input, are left out.
        (H, W), points = self.size, math.prod(self.padded)
        matrix = self.matrices[str(points)]
        if self.size == self.padded:
            return matrix
        return matrix.view(*self.padded, points)[:H, :W].reshape(H * W, points)


class MapProducts(nn.Module):
    """:class:`whtnet.FWHT2d`."""

    def __init__(self, layer: FWHT2d, hadamard: Hadamard) -> None:
        super().__init__()
        h, w = layer.threshold.shape
        self.transform = MapTransform(layer.size, (h, w), layer.norm, hadamard)
        self.stride, self.residual = layer.stride, layer.residual
        t = layer.threshold.detach().float().reshape(self.transform.shape)
        self.threshold = Threshold(layer, t, _is_first(t, t.dim()))
        self.weight = None
        if layer.weight is not None:
            self.weight = nn.Parameter(layer.weight.detach().float().reshape(self.transform.shape), False)

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`whtnet.FWHT2d.forward`."""
        y = self.transform.inverse(self.threshold(self.transform(x, self.weight)))
        if self.stride > 1:
            y = F.avg_pool2d(y, self.stride, ceil_mode=True)
        return x + y if self.residual else y


class PerceptronProducts(nn.Module):
    """:class:`whtnet.HTPerceptron2d`, its 1×1 convolutions as one before the transform, with which they commute."""

    def __init__(self, layer: HTPerceptron2d, hadamard: Hadamard) -> None:
        super().__init__()
        _, h, w = layer.threshold.shape
        self.transform = MapTransform(layer.size, (h, w), layer.norm, hadamard)
        self.paths, self.residual = layer.paths, layer.residual
        shape = self.transform.shape if layer.paths == 1 else (layer.paths, 1, *self.transform.shape)
        t = layer.threshold.detach().float().reshape(shape)
        self.threshold = Threshold(layer, t, _is_first(t, len(self.transform.shape)))
        self.weight = nn.Parameter(layer.weight.detach().float().reshape(shape), False)
        self.kernel = nn.Parameter(torch.cat([conv.weight.detach() for conv in layer.path_convs()]).float(), False)

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`whtnet.HTPerceptron2d.forward`."""
        z = F.conv2d(x, self.kernel)
        z = z if self.paths == 1 else z.unflatten(1, (self.paths, -1))
        z = self.threshold(self.transform(z, self.weight))
        y = self.transform.inverse(z if self.paths == 1 else z.sum(1))
        return x + y if self.residual else y


class ChannelProducts(nn.Module):
    """:class:`whtnet.BWHT1d` of one block, as a 1×1 convolution that subsamples, and one that repeats or averages."""

    def __init__(self, layer: BWHT1d, hadamard: Hadamard) -> None:
        super().__init__()
        block = layer.block_size
        self.matrix = hadamard(block)
        self.scale, self.stride = NORMS[layer.norm](block), layer.stride
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.group = layer.in_channels // layer.out_channels if layer.shared else 0
        t = layer.threshold.detach().float().reshape(-1, 1, 1)
        self.threshold = Threshold(layer, t, _is_first(t, 3))
        weight = torch.ones_like(t) if layer.weight is None else layer.weight.detach().float()
        self.weight = nn.Parameter(weight.reshape(-1, 1) * self.scale, False)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, H, W)`` → ``(N, C_out, ceil(H / stride), ceil(W / stride))``."""
        analysis, synthesis = self.kernels()
        return F.conv2d(self.threshold(F.conv2d(x, analysis, stride=self.stride)), synthesis)

    def kernels(self) -> tuple[Tensor, Tensor]:
        """Of the convolutions, ``(B, C_in, 1, 1)`` and ``(C_out, B, 1, 1)``."""
        analysis = self.matrix[:, : self.in_channels] * self.weight
        return analysis[:, :, None, None], self._synthesis()[:, :, None, None]

    def _synthesis(self) -> Tensor:
        matrix = self.matrix / self.scale
        block = len(matrix)
        if self.out_channels > block:
            return matrix.repeat(self.out_channels // block, 1)
        if self.group > 1:  # means over adjacent channels; those after the last whole group go
            matrix = matrix[: block // self.group * self.group].unflatten(0, (-1, self.group)).mean(1)
        return matrix[: self.out_channels]


def _is_first(t: Tensor, dims: int) -> Tensor:
    """Where ``t`` holds the threshold of a DC coefficient: index 0 of its last ``dims`` dimensions."""
    first = torch.zeros(t.shape[t.dim() - dims :], dtype=torch.bool)
    first.view(-1)[0] = True
    return first.expand(t.shape)
