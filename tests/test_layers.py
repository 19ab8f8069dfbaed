"""Layers against references written from the formulas, and as citizens of PyTorch."""

import copy
import io
import math
import pickle
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import references
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize, prune
from torchvision.models.feature_extraction import create_feature_extractor

from whtnet import functional
from whtnet.layers import (
    BWHT1d,
    FWHT2d,
    HTPerceptron2d,
    NormedFWHT2d,
    PreGAPFWHT2d,
    PreNormFWHT2d,
    SeparableFWHT2d,
    SpectralLayer,
    spectral_parameter_names,
)
from whtnet.transforms import released_order

F64 = torch.float64
DTYPES = [F64, torch.float32, torch.bfloat16, torch.float16]
RECORDED = Path(__file__).parents[2] / "shared" / "oracles" / "bwht_released_layer.npz"  # not part of the project
RELEASED = sorted({name.split("/")[0] for name in np.load(RECORDED).files}) if RECORDED.exists() else []
exactly = {"rtol": 1e-10, "atol": 1e-11}


def parameters(layer):
    return dict(layer.named_parameters())


def reference(layer, x, p=None):
    """What the layer has to compute with the parameters ``p``, in float64."""
    p = {name: value.to(F64) for name, value in (p or parameters(layer)).items()}
    x = x.to(F64)
    if isinstance(layer, NormedFWHT2d):

        def fwht(z):
            return reference(layer.fwht, z, {n.removeprefix("fwht."): v for n, v in p.items() if n.startswith("fwht.")})

        def norm(z):
            mean, var = (s.to(F64)[:, None, None] for s in (layer.norm.running_mean, layer.norm.running_var))
            z = (z - mean) / (var + layer.norm.eps).sqrt()
            return z * p["norm.weight"][:, None, None] + p["norm.bias"][:, None, None]

        z = norm(fwht(x)) if isinstance(layer, PreGAPFWHT2d) else fwht(norm(x))
        return x + z if layer.residual else z
    if isinstance(layer, SeparableFWHT2d):
        return reference(layer.maps, reference(layer.channels, x))
    flags = {"kind": layer.threshold_kind, "clamp": layer.clamp, "keep_dc": layer.keep_dc, "norm": layer.norm}
    if isinstance(layer, BWHT1d):
        flags |= {"stride": layer.stride}
        if layer.shared:
            return references.released_bwht1d(x, p["threshold"], p.get("weight"), layer.out_channels, **flags)
        flags |= {"interleave": layer.interleave}
        return references.bwht1d(x, p["threshold"], layer.out_channels, layer.block_size, p.get("weight"), **flags)
    if isinstance(layer, FWHT2d):
        y = references.fwht2d(x, p["threshold"], p.get("weight"), **flags)
        y = references.average_pool(y, layer.stride)
        return x + y if layer.residual else y
    kernels = [p[f"convs.{i}.weight"][:, :, 0, 0] for i in range(layer.paths)]
    flags |= {"residual": layer.residual}
    return references.ht_perceptron(x, p["threshold"], p["weight"], kernels, **flags)


def randomise(layer):
    """Parameters as training may leave them: thresholds of both signs, weights and statistics of no special value."""
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if "threshold" in name:
                tensor.uniform_(-0.3, 0.9)
            elif "running_var" in name:
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.normal_()
    return layer.eval()


def check_against_reference(layer, shape):
    """Values, and gradients of the input and of every parameter."""
    randomise(layer)
    x = torch.randn(shape, dtype=F64, requires_grad=True)
    y, expected = layer(x), reference(layer, x)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, **exactly)
    wrt = [x, *layer.parameters()]
    g = torch.randn_like(y)
    for got, wanted in zip(torch.autograd.grad(y, wrt, g), torch.autograd.grad(expected, wrt, g), strict=True):
        torch.testing.assert_close(got, wanted, **exactly)


def check_gradients(layer, shape):
    randomise(layer)
    x = torch.randn(shape, dtype=F64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)
    call = lambda x, *p: functional_call(layer, dict(zip(names, p, strict=True)), (x,))  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, *values))


# -- one dimension ----------------------------------------------------------------------------------------------------

# (in, out, block): one block; expansions, projections, with numbers of blocks that divide each other or do not
CHANNELS = [
    (1, 1, None),
    (5, 12, None),
    (12, 5, None),
    (9, 9, 4),
    (3, 5, 1),
    (7, 2, 1),
    (5, 15, 2),
    (11, 31, 4),  # 3 blocks to 8
    (31, 11, 4),  # 8 blocks to 3
    (6, 17, 4),  # 2 to 5
    (3, 16, 4),  # 1 to 4
    (40, 20, 32),  # 2 to 1
    (33, 70, 32),  # 2 to 3
]
OPTIONS_1D = [
    {},
    {"threshold": "soft"},
    {"clamp": True},
    {"keep_dc": True},
    {"norm": "backward"},
    {"interleave": True},
    {"stride": 2},
    {"threshold": "soft", "clamp": True, "keep_dc": True, "interleave": True, "stride": 3},
]


@pytest.mark.parametrize("options", OPTIONS_1D, ids=str)
@pytest.mark.parametrize(("c_in", "c_out", "block"), CHANNELS)
def test_bwht1d_follows_the_reference(c_in, c_out, block, options):
    layer = BWHT1d(c_in, c_out, block_size=block, blocks="separate", dtype=F64, **options)
    check_against_reference(layer, (2, c_in, 3, 2))


@pytest.mark.parametrize("options", [{}, {"interleave": True, "keep_dc": True}, {"stride": 2}], ids=str)
@pytest.mark.parametrize("spatial", [(), (5,), (2, 3, 2)])
def test_bwht1d_takes_any_number_of_spatial_dimensions(spatial, options):
    for c_in, c_out in [(5, 12), (12, 5)]:
        check_against_reference(
            BWHT1d(c_in, c_out, block_size=4, blocks="separate", dtype=F64, **options), (2, c_in, *spatial)
        )


def test_bwht1d_flattens_nothing_but_the_spatial_dimensions():
    layer, x = BWHT1d(6, 9, block_size=4, blocks="separate"), torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(layer(x).flatten(2), layer(x.flatten(2)))
    torch.testing.assert_close(layer(x)[:, :, 1, 2], layer(x[:, :, 1, 2]))


@pytest.mark.parametrize(("c_in", "c_out", "block"), CHANNELS)
def test_every_output_depends_on_some_input_and_every_input_matters(c_in, c_out, block):
    # With the thresholds as they are drawn. Equal ones would keep an output at zero where its block's input is padding:
    # that the coefficients of a block are shrunk unequally is all that reaches it.
    layer = BWHT1d(c_in, c_out, block_size=block, blocks="separate", dtype=F64)
    jacobian = torch.autograd.functional.jacobian(layer, torch.randn(8, c_in, dtype=F64)).abs()  # (8, out, 8, in)
    assert (jacobian.amax((0, 2, 3)) > 1e-6).all()
    assert (jacobian.amax((0, 1, 2)) > 1e-6).all()


def test_bwht1d_pairs_block_j_of_the_wide_side_with_block_j_mod_n():
    def connected(c_in, c_out):
        layer = BWHT1d(c_in, c_out, block_size=4, blocks="separate", dtype=F64)
        jacobian = torch.autograd.functional.jacobian(layer, torch.randn(1, c_in, dtype=F64))[0, :, 0]
        blocks = jacobian.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).abs().amax((1, 3)) > 1e-6
        return [row.nonzero().flatten().tolist() for row in blocks]

    assert connected(12, 32) == [[0], [1], [2], [0], [1], [2], [0], [1]]
    assert connected(32, 12) == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_interleave_takes_the_blocks_in_turn():
    x = torch.arange(10.0)[None, :, None, None].expand(1, 10, 2, 2)
    assert functional.channel_interleave(x, 4)[0, :, 0, 0].tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 3, 7]
    assert functional.channel_interleave(x, 16)[0, :, 1, 1].tolist() == list(range(10))
    plain, mixed = (
        BWHT1d(6, 10, block_size=4, blocks="separate"),
        BWHT1d(6, 10, block_size=4, blocks="separate", interleave=True),
    )
    mixed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 6, 3, 3)
    assert torch.equal(mixed(x), functional.channel_interleave(plain(x), 4))


# (in, out, block) of shared blocks: one window, overlapping ones, none; projections whose groups divide or do not
SHARED = [
    (4, 4, 4), (4, 12, 4), (6, 10, 2), (12, 20, 4), (12, 32, 4), (3, 5, 1),
    (16, 16, 4), (16, 4, 4), (24, 6, 8), (24, 10, 8), (20, 3, 4),
]  # fmt: skip


@pytest.mark.parametrize("options", [o for o in OPTIONS_1D if "interleave" not in o] + [{"weight": False}], ids=str)
@pytest.mark.parametrize(("c_in", "c_out", "block"), SHARED)
def test_shared_blocks_follow_the_released_layer(c_in, c_out, block, options):
    check_against_reference(BWHT1d(c_in, c_out, block_size=block, dtype=F64, **options), (2, c_in, 3, 2))


@pytest.mark.parametrize("spatial", [(), (5,), (2, 3, 2)])
def test_shared_blocks_take_any_number_of_spatial_dimensions(spatial):
    for c_in, c_out in [(8, 12), (16, 5)]:
        check_against_reference(BWHT1d(c_in, c_out, block_size=4, stride=2, dtype=F64), (2, c_in, *spatial))


@pytest.mark.parametrize(("c_in", "c_out", "block"), [(11, 31, 4), (31, 11, 4), (9, 9, 4), (5, 12, None)])
def test_weights_of_separate_blocks(c_in, c_out, block):
    layer = BWHT1d(c_in, c_out, block_size=block, blocks="separate", weight=True, dtype=F64)
    assert layer.weight.shape == layer.threshold.shape
    check_against_reference(layer, (2, c_in, 3, 2))


def test_shared_blocks_have_two_parameters_a_coefficient_whatever_the_channels():
    for c_in, c_out in [(16, 32), (96, 576), (576, 96), (64, 64)]:
        layer = BWHT1d(c_in, c_out, block_size=16)
        assert {name: tuple(p.shape) for name, p in parameters(layer).items()} == {"threshold": (16,), "weight": (16,)}


@pytest.mark.parametrize("released", RELEASED or [None])
def test_the_authors_released_layers(released):
    """Inputs, parameters and outputs recorded by running the authors' layers, NHWC, parameters in their order."""
    if released is None:
        pytest.skip(f"the recorded outputs are not at hand ({RECORDED})")
    with np.load(RECORDED) as file:
        x, t, v, y, t0, v0 = (torch.from_numpy(file[f"{released}/{key}"]) for key in ("x", "T", "V", "y", "T0", "V0"))
    numbers = [int(word) for word in re.findall(r"(?<=_)\d+", released)]
    stride = int((re.findall(r"_s(\d+)", released) or [1])[0])
    if released.startswith("1d"):
        layer = BWHT1d(*numbers, block_size=len(t), stride=stride, initial_threshold="ramp")
        order = lambda p: p[released_order(len(p))]  # noqa: E731
    else:
        layer = FWHT2d(*numbers, stride=stride, initial_threshold="ramp")
        order = lambda p: p[released_order(len(p))][:, released_order(p.shape[1])]  # noqa: E731
    assert torch.equal(layer.threshold, order(t0))
    assert torch.equal(layer.weight, order(v0))
    with torch.no_grad():
        layer.threshold.copy_(order(t))
        layer.weight.copy_(order(v))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        got = layer(x.permute(0, 3, 1, 2).contiguous(memory_format=memory_format))
        torch.testing.assert_close(got.permute(0, 2, 3, 1), y, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("c_in", "c_out", "block", "count"),
    [
        (960, 160, None, 1024),  # MobileNet-V2: the convolutions of its last bottlenecks,
        (160, 960, None, 1024),
        (320, 1280, None, 2048),  # and its last one
        (16, 32, None, 32),  # ResNet-20: the shortcuts
        (32, 64, None, 64),
        (1, 1, None, 1),
        (64, 64, None, 64),
        (65, 3, None, 128),
        (960, 160, 32, 960),
        (320, 1280, 1024, 2048),
        (33, 70, 32, 96),
        (31, 11, 4, 32),
        (7, 3, 1, 7),
    ],
)
def test_bwht1d_parameter_count(c_in, c_out, block, count):
    layer = BWHT1d(c_in, c_out, block_size=block, blocks="separate", device="meta")
    assert sum(p.numel() for p in layer.parameters()) == count
    size = block or 2 ** math.ceil(math.log2(max(c_in, c_out)))
    assert count == size * math.ceil(max(c_in, c_out) / size)


# -- two dimensions ---------------------------------------------------------------------------------------------------

SIZES = [1, 2, 3, 7, 8, (5, 12), (1, 4), 32]
THRESHOLDING_2D = [{}, {"threshold": "soft", "clamp": True}, {"clamp": True}, {"keep_dc": True}]
OPTIONS_2D = [*THRESHOLDING_2D, {"norm": "backward"}]


@pytest.mark.parametrize("options", OPTIONS_2D, ids=str)
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_fwht2d_follows_the_reference(size, weight, options):
    layer = FWHT2d(size, weight=weight, dtype=F64, **options)
    check_against_reference(layer, (2, 3, *layer.size))


@pytest.mark.parametrize("shape", [(3, 5, 6), (5, 6), (2, 2, 3, 5, 6)])
def test_fwht2d_takes_any_leading_dimensions(shape):
    check_against_reference(FWHT2d((5, 6), dtype=F64), shape)


@pytest.mark.parametrize(
    ("size", "padded"), [(1, 1), (2, 4), (3, 16), (7, 64), (8, 64), ((5, 12), 128), (32, 1024), (56, 4096)]
)
def test_fwht2d_parameter_count(size, padded):
    for weight in (True, False):
        layer = FWHT2d(size, weight=weight, device="meta")
        assert sum(p.numel() for p in layer.parameters()) == padded * (1 + weight)


def test_fwht2d_maps_do_not_mix_and_share_their_parameters():
    layer, x = randomise(FWHT2d((5, 6))), torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(layer(x.flip(0, 1)), layer(x).flip(0, 1))


@pytest.mark.parametrize(("size", "shape"), [(8, (2, 3, 7, 8)), ((5, 12), (2, 3, 12, 5)), (8, (2, 3, 16, 16))])
def test_a_map_of_another_size_raises_and_both_sizes_are_named(size, shape):
    h, w = FWHT2d(size).size
    message = rf"{h}×{w}.*{shape[2]}, {shape[3]}"
    for layer in (FWHT2d(size), HTPerceptron2d(3, 3, size), PreGAPFWHT2d(3, size), PreNormFWHT2d(3, size)):
        with pytest.raises(ValueError, match=message):
            layer(torch.ones(shape))


# -- HT-perceptron and the layer before pooling -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [*THRESHOLDING_2D, {"clamp": False, "threshold": "smooth"}], ids=str)
@pytest.mark.parametrize("norm", ["ortho", "backward"])
@pytest.mark.parametrize(
    ("c_in", "c_out", "size", "paths"), [(3, 3, 4, 1), (3, 3, (3, 5), 3), (2, 5, (3, 2), 1), (4, 2, 1, 2)]
)
def test_ht_perceptron_follows_the_reference(c_in, c_out, size, paths, norm, options):
    layer = HTPerceptron2d(c_in, c_out, size, paths=paths, norm=norm, dtype=F64, **options)
    assert layer.residual == (paths == 1 and c_in == c_out)
    check_against_reference(layer, (2, c_in, *layer.size))


@pytest.mark.parametrize(("paths", "residual"), [(1, False), (3, True)])
def test_ht_perceptron_with_an_explicit_residual(paths, residual):
    layer = HTPerceptron2d(3, 3, 4, paths=paths, residual=residual, dtype=F64)
    assert layer.residual is residual
    check_against_reference(layer, (2, 3, 4, 4))


def test_the_norms_of_ht_perceptron_differ_by_the_scale_of_the_thresholds():
    ortho = randomise(HTPerceptron2d(3, 4, (3, 8), norm="ortho", dtype=F64))
    backward = HTPerceptron2d(3, 4, (3, 8), norm="backward", dtype=F64)
    state = ortho.state_dict()
    backward.load_state_dict(state | {"threshold": state["threshold"] * math.sqrt(4 * 8)})
    x = torch.randn(2, 3, 3, 8, dtype=F64)
    torch.testing.assert_close(backward(x), ortho(x), **exactly)


@pytest.mark.parametrize(("c_in", "c_out", "size", "paths"), [(16, 16, 32, 1), (3, 5, (5, 12), 3), (64, 64, 8, 5)])
def test_ht_perceptron_parameter_count(c_in, c_out, size, paths):
    layer = HTPerceptron2d(c_in, c_out, size, paths=paths, device="meta")
    hw = math.prod(references.power_of_two(s) for s in layer.size)
    assert sum(p.numel() for p in layer.parameters()) == paths * (2 * hw + c_in * c_out)


@pytest.mark.parametrize("options", [{}, {"weight": False, "threshold": "soft"}], ids=str)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kind", [PreGAPFWHT2d, PreNormFWHT2d])
def test_normed_layers_follow_the_reference(kind, residual, options):
    layer = kind(3, (4, 5), residual=residual, dtype=F64, **options)
    assert sum(p.numel() for p in layer.parameters()) == 4 * 8 * (2 if layer.fwht.weight is not None else 1) + 2 * 3
    check_against_reference(layer, (2, 3, 4, 5))


def test_pre_gap_normalises_by_the_batch_while_training():
    y = PreGAPFWHT2d(3, 7).train()(torch.randn(16, 3, 7, 7))
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-2, rtol=0)


# -- all layers -------------------------------------------------------------------------------------------------------

# name: how to build it, one input, its spectral parameters
LAYERS = {
    "expansion": (lambda **kw: BWHT1d(6, 10, block_size=4, blocks="separate", **kw), (2, 6, 5, 3), {"threshold"}),
    "projection": (
        lambda **kw: BWHT1d(10, 3, block_size=4, blocks="separate", stride=2, **kw),
        (2, 10, 5, 3),
        {"threshold"},
    ),
    "interleaved": (
        lambda **kw: BWHT1d(8, 6, block_size=4, blocks="separate", interleave=True, **kw),
        (2, 8, 4, 3),
        {"threshold"},
    ),
    "shared-windows": (lambda **kw: BWHT1d(8, 12, block_size=4, **kw), (2, 8, 5, 3), {"threshold", "weight"}),
    "shared-copies": (lambda **kw: BWHT1d(4, 8, block_size=4, stride=2, **kw), (2, 4, 5, 3), {"threshold", "weight"}),
    "shared-means": (lambda **kw: BWHT1d(16, 5, block_size=4, **kw), (2, 16, 4, 3), {"threshold", "weight"}),
    "one-block": (lambda **kw: BWHT1d(16, 16, keep_dc=True, **kw), (2, 16, 4, 2), {"threshold"}),
    "fwht2d": (lambda **kw: FWHT2d((4, 8), keep_dc=True, **kw), (2, 3, 4, 8), {"threshold", "weight"}),
    "fwht2d-strided": (lambda **kw: FWHT2d((5, 3), stride=2, **kw), (2, 3, 5, 3), {"threshold", "weight"}),
    "fwht2d-padded": (lambda **kw: FWHT2d((5, 3), weight=False, **kw), (2, 3, 5, 3), {"threshold"}),
    "ht": (lambda **kw: HTPerceptron2d(3, 3, (3, 4), **kw), (2, 3, 3, 4), {"threshold", "weight"}),
    "ht-3": (
        lambda **kw: HTPerceptron2d(3, 2, (3, 4), paths=3, norm="backward", **kw),
        (2, 3, 3, 4),
        {"threshold", "weight"},
    ),
    "pre-gap": (
        lambda **kw: PreGAPFWHT2d(3, (4, 3), residual=True, **kw),
        (2, 3, 4, 3),
        {"fwht.threshold", "fwht.weight"},
    ),
    "pre-norm": (lambda **kw: PreNormFWHT2d(3, (4, 3), **kw), (2, 3, 4, 3), {"fwht.threshold", "fwht.weight"}),
    "separable": (
        lambda **kw: SeparableFWHT2d(4, 8, (4, 3), stride=2, block_size=2, **kw),
        (2, 4, 4, 3),
        {"channels.threshold", "channels.weight", "maps.threshold", "maps.weight"},
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def build(name, **keywords):
    make, shape, _ = LAYERS[name]
    return randomise(make(**keywords)), shape


@every_layer
def test_torch_fx_keeps_a_layer_whole(name):
    layer, shape = build(name)
    model, x = nn.Sequential(nn.Sequential(nn.Identity(), layer), nn.ReLU()).eval(), torch.randn(shape)
    traced = torch.fx.symbolic_trace(model)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    inside = {"pre-gap": ".fwht", "pre-norm": ".norm", "separable": ".channels"}
    assert targets[:2] == ["0.0", f"0.1{inside.get(name, '')}"]
    assert torch.equal(traced(x), model(x))
    assert torch.equal(create_feature_extractor(model, {"1": "y"})(x)["y"], model(x))


@every_layer
def test_gradcheck(name):
    layer, shape = build(name, dtype=F64)
    check_gradients(layer, (1, *shape[1:]))


@every_layer
def test_channels_last_gives_the_same_and_is_kept(name):
    layer, shape = build(name)
    plain = torch.randn(shape)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = plain.contiguous(memory_format=memory_format).requires_grad_()
        y = layer(x)
        assert y.is_contiguous(memory_format=memory_format)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@every_layer
def test_non_contiguous_input(name):
    layer, shape = build(name)
    x = torch.randn(shape)
    wanted = layer(x)
    strided = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2].copy_(x)
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (strided, transposed, x.flip(1).flip(1)):
        torch.testing.assert_close(layer(other), wanted, rtol=1e-4, atol=1e-5)
    same = x[:1, :1].expand(shape)
    torch.testing.assert_close(layer(same), layer(same.clone()), rtol=1e-4, atol=1e-5)


@every_layer
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_ensembles_and_gradients_per_image_by_torch_func(name, memory_format):
    layers = [build(name, dtype=F64)[0] for _ in range(3)]
    x = torch.randn(LAYERS[name][1], dtype=F64).contiguous(memory_format=memory_format)
    ensemble = torch.func.vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))
    torch.testing.assert_close(
        ensemble(*torch.func.stack_module_state(layers)), torch.stack([layer(x) for layer in layers]), **exactly
    )

    def loss(p, image):
        return functional_call(layers[0], p, (image[None],)).square().sum()

    p = parameters(layers[0])
    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(p, x)
    for i, image in enumerate(x):
        wanted = dict(zip(p, torch.autograd.grad(loss(p, image), list(p.values())), strict=True))
        torch.testing.assert_close({k: v[i] for k, v in gradients.items()}, wanted, **exactly)


@every_layer
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torch_jit_trace_serves_other_batches(name):
    layer, shape = build(name)
    traced = torch.jit.trace(layer, torch.randn(shape))
    for images in (1, 5):
        x = torch.randn(images, *shape[1:])
        torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-5)


@every_layer
def test_empty_batch(name):
    layer, shape = build(name)
    x = torch.empty(0, *shape[1:], requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (0, *layer(torch.empty(shape)).shape[1:])
    assert x.grad.shape == x.shape


@every_layer
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(name, dtype):
    layer, shape = build(name, dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    x = torch.randn(shape).to(dtype)
    y, expected = layer(x), reference(layer, x)
    assert y.dtype == dtype
    # Computed in float32 or more and rounded once at the end. The batch norm and a residual round once more each.
    eps = torch.finfo(dtype).eps
    rounding = (2 if dtype in (torch.bfloat16, torch.float16) else 40) * eps
    torch.testing.assert_close(y.to(F64), expected, rtol=0, atol=rounding * expected.abs().max().item())
    if dtype in (torch.bfloat16, torch.float16) and isinstance(layer, BWHT1d | FWHT2d):
        torch.testing.assert_close(y.to(F64), expected, rtol=0.51 * eps, atol=1e-5)
    torch.autograd.grad(y.float().square().sum(), list(layer.parameters()))


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_to_float32_parameters(name, dtype):
    layer, shape = build(name)
    x = torch.randn(shape).to(dtype)
    y, expected = layer(x), reference(layer, x)
    assert y.dtype == dtype
    atol = 2 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(y.to(F64), expected, rtol=0, atol=atol)


def test_float16_coefficients_beyond_its_range():
    big = 5000.0  # the DC coefficient of 1024 such points is 160000, and float16 ends at 65504
    for layer, x in [
        (BWHT1d(1024, 1024), torch.full((1, 1024), big)),
        (FWHT2d(32), torch.full((1, 1, 32, 32), big)),
        (HTPerceptron2d(1, 1, 32, residual=False, initial_weight=1), torch.full((1, 1, 32, 32), big)),
    ]:
        if isinstance(layer, HTPerceptron2d):
            nn.init.ones_(layer.convs[0].weight)
        torch.testing.assert_close(layer.half()(x.half()).float(), x, rtol=1e-3, atol=0)


@every_layer
def test_to_converts(name):
    layer, shape = build(name)
    double = copy.deepcopy(layer).to(F64)
    x = torch.randn(shape)
    y = double(x.to(F64))
    assert y.dtype == F64
    torch.testing.assert_close(y, reference(layer, x), **exactly)
    half = layer.to(torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half(x.bfloat16()).dtype == torch.bfloat16


@every_layer
def test_deepcopy_state_dict_and_pickle(name):
    layer, shape = build(name)
    x = torch.randn(shape)
    wanted = layer(x)
    loaded = LAYERS[name][0]().eval()
    assert not torch.equal(loaded(x), wanted)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    copies = [copy.deepcopy(layer), loaded, pickle.loads(pickle.dumps(layer))]
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(1)
    for other in copies:
        assert torch.equal(other(x), wanted)
        assert list(other.state_dict()) == list(layer.state_dict())
        assert repr(other) == repr(layer)
    assert not torch.equal(layer(x), wanted)


@every_layer
def test_meta_device_and_materialisation(name):
    layer = LAYERS[name][0](device="meta", dtype=F64).eval()
    shape = LAYERS[name][1]
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", F64)}
    y = layer(torch.empty(shape, device="meta", dtype=F64))
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(math.nan)
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    real = layer(torch.randn(shape, dtype=F64))
    assert real.isfinite().all()
    assert real.shape == y.shape
    check_initial_values(layer)


@every_layer
def test_initial_values(name):
    check_initial_values(LAYERS[name][0]())


def check_initial_values(layer):
    for module in layer.modules():
        if isinstance(module, SpectralLayer):
            t = module.threshold
            assert t.requires_grad
            assert t.min() >= 0
            assert t.max() <= 0.1
            assert t.std() > 0.01
            if isinstance(module, HTPerceptron2d):
                assert module.weight.min() >= 0
                assert module.weight.max() <= 1
                assert module.weight.std() > 0.1
            elif getattr(module, "weight", None) is not None:
                assert (module.weight == 1).all()
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.abs().max() <= 1 / math.sqrt(module.in_channels)
            assert module.weight.std() > 0.05


def test_initial_thresholds_are_uniform_and_drawn_from_the_seed():
    layer = BWHT1d(4096, 4096)
    t = layer.threshold.detach().flatten().sort().values
    assert (t - torch.linspace(0, 0.1, 4096)).abs().max() < 0.005
    torch.manual_seed(5)
    first = BWHT1d(8, 8).threshold
    torch.manual_seed(5)
    second = BWHT1d(8, 8)
    assert torch.equal(first, second.threshold)
    second.reset_parameters()
    assert not torch.equal(first, second.threshold)


def test_ht_perceptron_begins_as_its_authors_do():
    layer = HTPerceptron2d(3, 3, 64)
    weights = layer.weight.detach().flatten().sort().values
    torch.testing.assert_close(weights, torch.linspace(0, 1, 4096), atol=0.05, rtol=0)
    assert layer.norm == "backward"
    assert torch.equal(HTPerceptron2d(3, 3, 4, initial_weight=1).weight, torch.ones(1, 4, 4))


def test_ht_perceptron_resets_its_convolutions_too():
    layer = HTPerceptron2d(3, 3, 4, paths=2)
    for p in layer.parameters():
        nn.init.constant_(p, math.nan)
    layer.reset_parameters()
    assert all(p.isfinite().all() for p in layer.parameters())


@every_layer
def test_autocast(name):
    layer, shape = build(name)
    x = torch.randn(shape)

    def run(enabled):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(leaf)
        assert y.dtype == torch.float32
        return y, *torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])

    if isinstance(layer, HTPerceptron2d):  # its convolution goes to bfloat16
        results = run(False), run(True)
        assert not torch.equal(results[0][0], results[1][0])
        (wanted, *gradients), (got, *got_gradients) = results
        assert (got - wanted).norm() < 0.01 * wanted.norm()
        for wanted, got in zip(gradients, got_gradients, strict=True):  # a coefficient may cross its threshold
            assert (got - wanted).norm() < 0.5 * wanted.norm()
    else:
        torch.testing.assert_close(run(True), run(False), rtol=0, atol=0)


@every_layer
def test_exports_with_a_dynamic_batch(name):
    layer, shape = build(name)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(layer, (torch.randn(3, *shape[1:]),), dynamic_shapes=shapes).module()
    for batch in (3, 1, 8):
        x = torch.randn(batch, *shape[1:])
        torch.testing.assert_close(program(x), layer(x))


@every_layer
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_compiles_to_a_full_graph(name, memory_format):
    torch.compiler.reset()
    layer, shape = build(name)
    x = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def run(function):
        y = function(x)
        assert y.is_contiguous(memory_format=memory_format)
        return y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])

    torch.testing.assert_close(run(compiled), run(layer), rtol=1e-4, atol=1e-4)


@every_layer
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_stays_where_the_reference_has_it(name, value):
    layer, shape = build(name)
    x = torch.randn(shape)
    x[1, 2, 2, 0] = value
    finite = layer(x).isfinite()
    assert torch.equal(finite, reference(layer, x).isfinite())
    assert finite[0].all()
    assert not finite[1].all()


@every_layer
def test_spectral_parameter_names(name):
    make, _, names = LAYERS[name]
    assert spectral_parameter_names(make()) == names
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(3), nn.ModuleDict({"inner": make()}))
    nested = {f"2.inner.{n}" for n in names}
    assert spectral_parameter_names(model) == nested
    assert spectral_parameter_names(copy.deepcopy(model)) == nested
    assert nested < set(parameters(model))


def test_no_spectral_parameters_in_other_models():
    assert spectral_parameter_names(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))) == set()


def test_spectral_parameter_names_are_those_of_parameters_when_they_are_computed_from_others():
    model = nn.Sequential(FWHT2d(4), HTPerceptron2d(2, 2, 4))
    parametrize.register_parametrization(model[0], "threshold", nn.Softplus())
    prune.random_unstructured(model[1], "weight", 0.5)
    names = {"0.parametrizations.threshold.original", "0.weight", "1.threshold", "1.weight_orig"}
    assert spectral_parameter_names(model) == names
    assert names | {"1.convs.0.weight"} == {name for name, _ in model.named_parameters()}


def test_a_shared_spectral_parameter_is_named_once():
    model = nn.Sequential(FWHT2d(4), FWHT2d(4))
    model[1].threshold = model[0].threshold
    assert spectral_parameter_names(model) == {"0.threshold", "0.weight", "1.weight"}


@pytest.mark.parametrize(
    ("layer", "settings"),
    [
        (BWHT1d(5, 12), "5, 12 block_size=16 threshold=smooth"),
        (
            BWHT1d(5, 12, block_size=4, blocks="separate", stride=2, threshold="soft"),
            "5, 12 block_size=4 stride=2 threshold=soft",
        ),
        (
            BWHT1d(4, 12, block_size=4, initial_threshold="ramp"),
            "4, 12 block_size=4 blocks=shared initial_threshold=ramp",
        ),
        (BWHT1d(4, 12, block_size=4, weight=False), "blocks=shared weight=False"),
        (BWHT1d(5, 12, weight=True), "block_size=16 weight=True"),
        (FWHT2d(7, stride=2), "(7, 7) weight=True stride=2"),
        (BWHT1d(5, 12, clamp=True, keep_dc=True, interleave=True), "clamp=True keep_dc=True interleave=True"),
        (FWHT2d((5, 12), clamp=True), "(5, 12) weight=True threshold=smooth clamp=True"),
        (FWHT2d(7, weight=False, threshold="soft", keep_dc=True), "(7, 7) weight=False threshold=soft keep_dc=True"),
        (HTPerceptron2d(3, 4, 7, paths=2), "3, 4 (7, 7) paths=2 residual=False threshold=soft clamp=True"),
        (HTPerceptron2d(3, 3, 7), "paths=1 residual=True clamp=True norm=backward"),
        (HTPerceptron2d(3, 3, 7, initial_weight=1), "initial_weight=1"),
        (BWHT1d(5, 12, norm="backward"), "norm=backward"),
        (PreGAPFWHT2d(3, 7, residual=True), "residual=True (7, 7)"),
        (PreNormFWHT2d(3, 7), "residual=False (7, 7)"),
        (FWHT2d(7, residual=True, initial_threshold=0.5), "(7, 7) weight=True residual=True initial_threshold=0.5"),
    ],
    ids=repr,
)
def test_repr_shows_the_settings(layer, settings):
    for setting in settings.replace(", ", ",").split():
        assert setting in repr(layer).replace(", ", ",")


def test_fwht2d_with_a_residual():
    layer, x = FWHT2d((3, 5), residual=True, dtype=F64), torch.randn(2, 3, 3, 5, dtype=F64)
    torch.testing.assert_close(layer(x), reference(layer, x))
    layer.residual = False
    torch.testing.assert_close(layer(x), reference(layer, x))


@pytest.mark.parametrize("make", [partial(BWHT1d, 64, 64), partial(FWHT2d, 16), partial(HTPerceptron2d, 3, 3, 16)])
def test_initial_thresholds(make):
    assert 0.09 < make().threshold.max() <= 0.1
    assert 0.45 < make(initial_threshold=0.5).threshold.max() <= 0.5
    assert torch.equal(make(initial_threshold=0.0).threshold, torch.zeros_like(make().threshold))


def test_a_ramp_rises_in_the_authors_order():
    theirs = BWHT1d(8, 16, block_size=8, initial_threshold="ramp").threshold
    assert torch.equal(theirs[released_order(8).argsort()], torch.arange(8) / 80)
    assert not torch.equal(theirs, torch.arange(8) / 80)
    assert torch.equal(BWHT1d(5, 8, initial_threshold="ramp").threshold, theirs[None])  # one block
    separate = BWHT1d(16, 16, block_size=8, blocks="separate", initial_threshold="ramp").threshold
    assert torch.equal(separate, theirs.expand(2, 8))
    two = FWHT2d((4, 8), initial_threshold="ramp").threshold
    assert two[0, 0] == 0
    torch.testing.assert_close(two, (released_order(4)[:, None] / 4 + released_order(8) / 8) / 10)
    paths = HTPerceptron2d(3, 3, (4, 8), paths=2, initial_threshold="ramp").threshold
    assert torch.equal(paths, two.expand(2, 4, 8))


def test_strided_layers_average_what_a_strided_convolution_would_see():
    layer = FWHT2d((5, 7), stride=2, dtype=F64)
    check_against_reference(layer, (2, 3, 5, 7))
    assert layer(torch.ones(3, 5, 7, dtype=F64)).shape == (3, 3, 4)
    assert layer(torch.ones(2, 2, 3, 5, 7, dtype=F64)).shape == (2, 2, 3, 3, 4)


def test_repr_leaves_defaults_out():
    assert repr(BWHT1d(5, 12)) == "BWHT1d(5, 12, block_size=16, threshold=smooth)"


@pytest.mark.parametrize(
    ("layer", "shape", "additions"),
    [
        (BWHT1d(16, 16), (1, 16), 2 * 16 * 4),
        (BWHT1d(3, 16), (2, 3, 4, 4), 2 * 16 * 2 * 64),
        (BWHT1d(16, 16, stride=2), (2, 16, 5, 4), 2 * 3 * 2 * 128),
        (BWHT1d(11, 31, block_size=4, blocks="separate"), (1, 11), (3 + 8) * 4 * 2),
        (
            BWHT1d(31, 11, block_size=4, blocks="separate"),
            (1, 31),
            (3 + 8) * 4 * 2 + 5 * 4,
        ),  # and 8 blocks summed into 3
        (BWHT1d(8, 24, block_size=8), (1, 8), 2 * 8 * 3),  # one window, its result three times
        (BWHT1d(16, 24, block_size=8), (1, 16), 2 * 3 * 8 * 3),  # three windows
        (BWHT1d(32, 8, block_size=8), (1, 32), 2 * 4 * 8 * 3 + 24),  # four blocks, and means of four channels
        (FWHT2d(8), (2, 3, 8, 8), 2 * 6 * 64 * 6),
        (FWHT2d((5, 12)), (1, 1, 5, 12), 2 * 128 * 7),
        (HTPerceptron2d(3, 5, 8, paths=3), (2, 3, 8, 8), 2 * (8 * 64 * 6 + 2 * 5 * 64)),
    ],
    ids=repr,
)
def test_additions(layer, shape, additions):
    assert layer.wht_additions(shape) == additions


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BWHT1d(0, 4), "in_channels.*0"),
        (lambda: BWHT1d(4, 0), "out_channels.*0"),
        (lambda: BWHT1d(4, 4, stride=0), "stride.*0"),
        (lambda: BWHT1d(4, 4, block_size=0, blocks="separate"), "block_size.*0"),
        (lambda: BWHT1d(4, 4, block_size=3, blocks="separate"), "block_size.*3"),
        (lambda: BWHT1d(4, 4, block_size=-2, blocks="separate"), "block_size.*-2"),
        (lambda: BWHT1d(4, 4, threshold="hard"), "'hard'.*smooth, soft"),
        (lambda: FWHT2d(4, threshold="hard"), "'hard'.*smooth, soft"),
        (lambda: FWHT2d(4, initial_threshold=-0.1), "initial_threshold.*-0.1"),
        (lambda: BWHT1d(4, 4, initial_threshold=float("inf")), "initial_threshold.*inf"),
        (lambda: BWHT1d(4, 4, initial_threshold="rampe"), "initial_threshold.*'ramp'.*rampe"),
        (lambda: BWHT1d(4, 4, block_size=4, blocks="common"), "'common'.*shared, separate"),
        (lambda: BWHT1d(24, 144, block_size=16), "16 does not divide 24 and 144 channels.*up to 8"),
        (lambda: BWHT1d(24, 16, block_size=16), "16 does not divide 24 channels.*up to 8"),
        (lambda: BWHT1d(8, 8, block_size=4, interleave=True), "interleave.*separate"),
        (lambda: FWHT2d(4, stride=0), "stride.*0"),
        (lambda: FWHT2d(4, stride=2, residual=True), "residual.*stride=1"),
        (lambda: FWHT2d(0), "size.*0"),
        (lambda: FWHT2d((3, -1)), r"size.*\(3, -1\)"),
        (lambda: FWHT2d((3,)), "size"),
        (lambda: FWHT2d((3, 3, 3)), "size"),
        (lambda: HTPerceptron2d(0, 4, 4), "in_channels.*0"),
        (lambda: HTPerceptron2d(4, 0, 4), "out_channels.*0"),
        (lambda: HTPerceptron2d(4, 4, 4, paths=0), "paths.*0"),
        (lambda: HTPerceptron2d(4, 4, 0), "size.*0"),
        (lambda: HTPerceptron2d(4, 4, 4, threshold="hard"), "'hard'.*smooth, soft"),
        (lambda: HTPerceptron2d(4, 4, 4, norm="forward"), "'forward'.*ortho, backward"),
        (lambda: HTPerceptron2d(4, 4, 4, initial_weight="ones"), "initial_weight.*'uniform'.*'ones'"),
        (lambda: HTPerceptron2d(4, 4, 4, initial_weight=math.nan), "initial_weight.*nan"),
        (lambda: FWHT2d(4, norm="forward"), "'forward'.*ortho, backward"),
        (lambda: HTPerceptron2d(4, 5, 4, residual=True), "4 and 5"),
        (lambda: PreGAPFWHT2d(4, 0), "size.*0"),
        (lambda: PreGAPFWHT2d(4, 4, threshold="hard"), "'hard'.*smooth, soft"),
        (lambda: BWHT1d(4, 8)(torch.ones(2, 5, 3, 3)), r"in_channels=4.*\(2, 5, 3, 3\)"),
        (lambda: BWHT1d(4, 8)(torch.ones(4)), r"in_channels=4.*\(4,\)"),
        (lambda: HTPerceptron2d(4, 4, 4)(torch.ones(2, 5, 4, 4)), r"4, H, W.*\(2, 5, 4, 4\)"),
        (lambda: HTPerceptron2d(4, 4, 4)(torch.ones(4, 4, 4)), r"4, H, W.*\(4, 4, 4\)"),
        (lambda: FWHT2d(4)(torch.ones(2, 3, 5, 4)), r"4×4.*5, 4"),
        (lambda: FWHT2d(4)(torch.ones(4)), r"4×4.*\(4,\)"),
    ],
)
def test_what_cannot_be_raises(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [lambda o: BWHT1d(4, 4, **o), lambda o: FWHT2d(4, **o)])
def test_options_are_keywords(make):
    with pytest.raises(TypeError, match="unexpected keyword"):
        make({"treshold": "soft"})
