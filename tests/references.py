"""Independent references: the definitions written out in float64, with dense matrices and explicit loops.

They follow the formulas of the papers, not the code under test, and share nothing with it. All are differentiable, so
that autograd through them gives reference gradients. Slow by design.
"""

import itertools
import math

import numpy as np
import scipy.linalg
import torch
from torch import Tensor


def hadamard(n: int) -> Tensor:
    """Sylvester's matrix, entries ±1, from scipy."""
    return torch.from_numpy(scipy.linalg.hadamard(n, dtype=np.float64))


def sign_changes(matrix: Tensor) -> list[int]:
    """Number of sign changes in every row."""
    return (matrix[:, 1:] * matrix[:, :-1] < 0).sum(1).tolist()


def walsh(n: int) -> Tensor:
    """Rows of the Hadamard matrix, sorted by their sign changes."""
    matrix = hadamard(n)
    changes = sign_changes(matrix)
    return matrix[sorted(range(n), key=changes.__getitem__)]


def power_of_two(n: int) -> int:
    """Smallest power of two >= n, by counting up."""
    power = 1
    while power < n:
        power *= 2
    return power


def threshold(x: Tensor, t: Tensor, kind: str = "smooth", clamp: bool = False) -> Tensor:
    """S(x; T), elementwise: zero up to T, and the factor tanh(x) or sign(x) times |x| - T beyond it."""
    if clamp:
        t = torch.where(t > 0, t, torch.zeros_like(t))
    factor = {"smooth": torch.tanh, "soft": torch.sign}[kind](x)
    excess = torch.where(x.abs() <= t, torch.zeros_like(x), x.abs() - t)
    return factor * excess


def bwht1d(
    x: Tensor,
    t: Tensor,
    out_channels: int,
    block: int,
    v: Tensor | None = None,
    *,
    kind: str = "smooth",
    clamp: bool = False,
    keep_dc: bool = False,
    norm: str = "ortho",
    stride: int = 1,
    interleave: bool = False,
) -> Tensor:
    """1-D block WHT layer on (N, C, *spatial): pixel by pixel, block by block; ``t`` and ``v`` are (blocks, block)."""
    n, channels, *spatial = x.shape
    kept = [range(0, s, stride) for s in spatial]
    H = hadamard(block) / (math.sqrt(block) if norm == "ortho" else 1)
    H_back = hadamard(block) / (math.sqrt(block) if norm == "ortho" else block)
    blocks_in, blocks_out = math.ceil(channels / block), math.ceil(out_channels / block)
    images = []
    for image in range(n):
        pixels = []
        for position in itertools.product(*kept):
            vector = torch.cat([x[(image, slice(None), *position)], x.new_zeros(blocks_in * block - channels)])
            spectra = [H @ vector[b * block : (b + 1) * block] for b in range(blocks_in)]
            sums = [x.new_zeros(block) for _ in range(blocks_out)]
            for j in range(max(blocks_in, blocks_out)):
                source, target = j % blocks_in, j % blocks_out
                z = spectra[source] if v is None else v[j] * spectra[source]
                y = threshold(z, t[j], kind, clamp)
                if keep_dc:
                    y = torch.cat([z[:1], y[1:]])
                sums[target] = sums[target] + y
            pixels.append(torch.cat([H_back @ s for s in sums])[:out_channels])
        images.append(torch.stack(pixels, 1))
    y = torch.stack(images).reshape(n, out_channels, *map(len, kept))
    if interleave:
        blocks = [list(range(b * block, min((b + 1) * block, out_channels))) for b in range(blocks_out)]
        y = y[:, [b[i] for i in range(block) for b in blocks if i < len(b)]]
    return y


def released_bwht1d(
    x: Tensor,
    t: Tensor,
    v: Tensor | None,
    out_channels: int,
    *,
    kind: str = "smooth",
    clamp: bool = False,
    keep_dc: bool = False,
    norm: str = "ortho",
    stride: int = 1,
) -> Tensor:
    """The BWHT authors' 1-D layer on (N, C, *spatial), every step a dense matrix; ``t`` and ``v`` are (block,)."""
    block, channels = len(t), x.shape[1]
    spatial = range(2, x.dim())
    x = x[(..., *(slice(None, None, stride),) * len(spatial))].movedim(1, -1)
    H = hadamard(block) / (math.sqrt(block) if norm == "ortho" else 1)
    H_back = hadamard(block) / (math.sqrt(block) if norm == "ortho" else block)
    if channels < out_channels:
        windows = out_channels // block
        starts = [math.floor(i * (channels - block) / max(1, windows - 1)) for i in range(windows)]
    else:
        starts = list(range(0, channels, block))
    parts = []
    for start in starts:
        z = x[..., start : start + block] @ H.T
        z = z if v is None else z * v
        y = threshold(z, t, kind, clamp)
        y = torch.cat([z[..., :1], y[..., 1:]], -1) if keep_dc else y
        parts.append(y @ H_back.T)
    y = torch.cat(parts, -1)
    group = max(1, channels // out_channels)
    means = [y[..., i * group : (i + 1) * group].mean(-1) for i in range(out_channels)]
    return torch.stack(means, 1)


def average_pool(x: Tensor, stride: int) -> Tensor:
    """Means over squares of the last two dimensions, those at the far edges over what there is of them."""
    rows, columns = (range(0, s, stride) for s in x.shape[-2:])
    lines = [[x[..., i : i + stride, j : j + stride].mean((-2, -1)) for j in columns] for i in rows]
    return torch.stack([torch.stack(line, -1) for line in lines], -2)


def fwht2d(
    x: Tensor,
    t: Tensor,
    v: Tensor | None,
    *,
    kind: str = "smooth",
    clamp: bool = False,
    keep_dc: bool = False,
    norm: str = "ortho",
) -> Tensor:
    """2-D WHT layer on (..., H, W), map by map; ``t`` and ``v`` have the padded size."""
    unscale = math.sqrt(t.numel()) if norm == "backward" else 1.0
    maps = []
    for single in x.reshape(-1, *x.shape[-2:]):
        z = spectrum(single) * unscale
        if v is not None:
            z = v * z
        y = threshold(z, t, kind, clamp)
        maps.append(inverse_spectrum(_with_dc(y, z) if keep_dc else y, single.shape) / unscale)
    return torch.stack(maps).reshape(x.shape)


def ht_perceptron(
    x: Tensor,
    t: Tensor,
    v: Tensor,
    kernels: list[Tensor],
    *,
    residual: bool,
    norm: str = "ortho",
    kind: str = "soft",
    clamp: bool = True,
    keep_dc: bool = False,
) -> Tensor:
    """HT-perceptron on (N, C, H, W); ``t`` and ``v`` are (P, h, w), ``kernels`` P matrices (C_out, C_in)."""
    unscale = math.sqrt(t[0].numel()) if norm == "backward" else 1.0  # H forwards and H/n back
    images = []
    for image in x:
        spectra = [spectrum(channel) * unscale for channel in image]
        outputs = []
        for o in range(len(kernels[0])):
            total = torch.zeros_like(spectra[0])
            for p, kernel in enumerate(kernels):
                z = sum(kernel[o, c] * (v[p] * spectra[c]) for c in range(len(spectra)))
                y = threshold(z, t[p], kind, clamp)
                total = total + (_with_dc(y, z) if keep_dc else y)
            outputs.append(inverse_spectrum(total, image.shape[-2:]) / unscale)
        images.append(torch.stack(outputs))
    y = torch.stack(images)
    return x + y if residual else y


def spectrum(single: Tensor) -> Tensor:
    """Orthonormal 2-D WHT of one map, zero-padded to powers of two: H_h X H_w / sqrt(h·w)."""
    h, w = map(power_of_two, single.shape)
    padded = torch.nn.functional.pad(single, (0, w - single.shape[1], 0, h - single.shape[0]))
    return hadamard(h) @ padded @ hadamard(w) / math.sqrt(h * w)


def inverse_spectrum(z: Tensor, size: tuple[int, int]) -> Tensor:
    """Inverse of `spectrum`, cropped."""
    h, w = z.shape
    return (hadamard(h) @ z @ hadamard(w) / math.sqrt(h * w))[: size[0], : size[1]]


def _with_dc(y: Tensor, z: Tensor) -> Tensor:
    mask = torch.zeros_like(z, dtype=torch.bool)
    mask[0, 0] = True
    return torch.where(mask, z, y)
