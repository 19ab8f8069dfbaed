"""The Triton kernels against the reference: on a GPU, or in Triton's interpreter (see test_kernels_gpu.py)."""

import itertools
from functools import partial

import pytest
import references
import torch
from layer_checks import (
    BF16,
    F16,
    F32,
    FORMATS,
    OPTIONS,
    check,
    parameter,
    reference_bwht1d,
    reference_fwht2d,
    weighted,
)

from whtnet import BWHT1d, FWHT2d, functional, kernels
from whtnet.kernels import gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = list(itertools.product(FORMATS, [F32, BF16]))
CHOICES = list(itertools.product(OPTIONS, FORMATS))
if DEVICE == "cpu":  # the interpreter is slow
    KINDS = KINDS[1:3]  # each layout and each dtype once
    CHOICES = CHOICES[::3]  # each layout thrice, any two options in all their values


@pytest.fixture(autouse=True)
def _backend(monkeypatch):
    torch.manual_seed(1)
    if DEVICE == "cpu":  # a program costs the interpreter much, its size little
        monkeypatch.setattr(gpu, "_TILE", 65536)
    before = kernels.get_backend()
    kernels.set_backend("gpu")
    yield
    kernels.set_backend(before)


def normal(*shape, dtype=F32, layout="nchw"):
    return torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=FORMATS[layout])


@pytest.mark.parametrize(("layout", "dtype"), KINDS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (64, 64), (14, 14), (5, 33), (16, 1)], ids=str)
def test_fwht2d(size, layout, dtype):
    padded = [references.power_of_two(s) for s in size]
    for channels, has_weight in [(16, True), (37, False)]:
        x = normal(3, channels, *size, dtype=dtype, layout=layout)
        t = parameter(*padded, dtype=dtype, device=DEVICE)
        v = parameter(*padded, dtype=dtype, low=-2, high=2, device=DEVICE) if has_weight else None
        assert kernels.backend_for(x, t, v) == "gpu"
        check(functional.fwht2d, reference_fwht2d, x, (t, v))


@pytest.mark.parametrize(("options", "layout"), CHOICES, ids=str)
def test_options(options, layout):
    for size in [(4, 2), (6, 12)]:
        padded = [references.power_of_two(s) for s in size]
        p = [parameter(*padded, dtype=F32, low=low, device=DEVICE) for low in (-0.2, -2)]
        x = normal(2, 19, *size, layout=layout)
        check(partial(functional.fwht2d, **options), partial(reference_fwht2d, **options), x, p)
    for c_in, c_out, block in [(11, 31, 4), (31, 11, 4), (17, 40, 64)]:
        t = parameter(-(-max(c_in, c_out) // block), block, dtype=F32, device=DEVICE)
        flags = {"out_channels": c_out, "stride": 2, **options}
        check(
            partial(functional.bwht1d, **flags),
            partial(reference_bwht1d, **flags),
            normal(2, c_in, 4, 5, layout=layout),
            (t,),
        )
        check(
            weighted(functional.bwht1d, **flags),
            weighted(reference_bwht1d, **flags),
            normal(2, c_in, 4, 5, layout=layout),
            (t, parameter(*t.shape, dtype=F32, device=DEVICE)),
        )
    for c_in, c_out, block in [(12, 20, 4), (28, 8, 4)]:
        p = [parameter(block, dtype=F32, device=DEVICE) for _ in range(2)]
        flags = {"out_channels": c_out, **options}
        x = normal(2, c_in, 4, 5, layout=layout)
        check(weighted(functional.bwht1d, **flags), weighted(reference_bwht1d, **flags), x, p)


CHANNELS = [  # (in, out, block)
    (2, 2, 2), (12, 5, 16), (33, 256, 256), (1024, 1024, 1024), (4096, 4000, 4096),
    (3, 5, 1), (9, 9, 4), (31, 11, 4), (33, 70, 32), (96, 96, 32),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "dtype"), KINDS, ids=str)
@pytest.mark.parametrize(("c_in", "c_out", "block"), CHANNELS)
def test_bwht1d(c_in, c_out, block, layout, dtype):
    t = parameter(-(-max(c_in, c_out) // block), block, dtype=dtype, device=DEVICE)
    for stride, spatial in [(1, (3, 7)), (2, (5, 3)), (1, (1, 1))]:
        flags = {"out_channels": c_out, "stride": stride}
        x = normal(3, c_in, *spatial, dtype=dtype, layout=layout)
        check(partial(functional.bwht1d, **flags), partial(reference_bwht1d, **flags), x, (t,))


# Blocks that share their parameters: one window, overlapping ones; means that fit blocks, straddle them, are cropped.
SHARED = [(8, 24, 8), (12, 20, 4), (16, 5, 8), (28, 8, 4), (12, 8, 4)]


@pytest.mark.parametrize(("layout", "dtype"), KINDS, ids=str)
@pytest.mark.parametrize(("c_in", "c_out", "block"), SHARED)
def test_bwht1d_of_shared_blocks(c_in, c_out, block, layout, dtype):
    t, v = (parameter(block, dtype=dtype, device=DEVICE) for _ in range(2))
    for stride, spatial in [(1, (3, 7)), (2, (5, 3))]:
        flags = {"out_channels": c_out, "stride": stride}
        x = normal(3, c_in, *spatial, dtype=dtype, layout=layout)
        assert kernels.backend_for(x, t, v) == "gpu"
        check(weighted(functional.bwht1d, **flags), weighted(reference_bwht1d, **flags), x, (t, v))
    check(partial(functional.bwht1d, **flags), partial(reference_bwht1d, **flags), x, (t,))


@pytest.mark.parametrize("layout", FORMATS)
def test_shared_blocks_come_out_the_same_every_time(layout):
    for c_in, c_out in [(12, 20), (28, 8)]:
        layer = BWHT1d(c_in, c_out, block_size=4).to(DEVICE)
        x = normal(2 if DEVICE == "cpu" else 500, c_in, 3, 5, layout=layout)
        results = []
        for _ in range(2):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append((y, *torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])))
        torch.testing.assert_close(*results, rtol=0, atol=0)


def test_float16():
    p = [parameter(8, 8, dtype=F16, device=DEVICE) for _ in range(2)]
    check(functional.fwht2d, reference_fwht2d, normal(3, 16, 8, 7, dtype=F16), p)
    flags = {"out_channels": 33}
    x = normal(3, 12, 5, 5, dtype=F16, layout="channels_last")
    t = parameter(3, 16, dtype=F16, device=DEVICE)
    check(partial(functional.bwht1d, **flags), partial(reference_bwht1d, **flags), x, (t,))


@pytest.mark.parametrize("spatial", [(), (6,), (3, 2, 5)])
def test_any_number_of_spatial_dimensions(spatial):
    t = parameter(1, 32, dtype=F32, device=DEVICE)
    for stride in (1, 2):
        flags = {"out_channels": 29, "stride": stride}
        x = normal(3, 17, *spatial)
        check(partial(functional.bwht1d, **flags), partial(reference_bwht1d, **flags), x, (t,))


def test_sums_of_many_tiles(monkeypatch):
    monkeypatch.setattr(gpu, "_TILE", 1024)
    monkeypatch.setattr(gpu, "_PROGRAMS", 3)  # so that a program adds several tiles up, the last one fewer
    x, t = normal(7, 40, 8, 8), parameter(8, 8, dtype=F32, device=DEVICE)
    check(functional.fwht2d, reference_fwht2d, x, (t, parameter(8, 8, dtype=F32, device=DEVICE)))
    t = parameter(2, 64, dtype=F32, device=DEVICE)
    flags = {"out_channels": 128}
    check(
        partial(functional.bwht1d, **flags),
        partial(reference_bwht1d, **flags),
        normal(5, 100, 5, 5, layout="channels_last"),
        (t,),
    )


def test_opcheck():
    x = normal(2, 3, 4, 5).requires_grad_()
    t, v, s = (torch.rand(shape, device=DEVICE).requires_grad_() for shape in ((4, 8), (4, 8), (2, 4)))
    torch.library.opcheck(torch.ops.whtnet.fwht2d.default, (x, t, v, "smooth", False, True, "backward"))
    torch.library.opcheck(
        torch.ops.whtnet.bwht1d.default, (x, s, torch.rand_like(s), 7, 2, "soft", True, False, "ortho")
    )
    s = torch.rand(2, device=DEVICE, requires_grad=True)
    torch.library.opcheck(
        torch.ops.whtnet.bwht1d.default, (x, s, torch.rand_like(s), 6, 2, "soft", True, False, "ortho")
    )


def test_compiles_without_a_graph_break():
    model = torch.nn.Sequential(
        BWHT1d(3, 5, block_size=4, blocks="separate", stride=2), FWHT2d((4, 3)), BWHT1d(5, 3)
    ).to(DEVICE)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = normal(2, 3, 8, 6)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(value, layout):
    x = normal(5, 21, 8, 8, layout=layout)
    x[3, 17, 2, 5] = value
    for layer in (FWHT2d(8), BWHT1d(21, 21, block_size=8, blocks="separate"), BWHT1d(21, 40)):
        layer = layer.to(DEVICE)
        results = []
        for backend in ("reference", "gpu"):
            kernels.set_backend(backend)
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append([v.isfinite() for v in (y, *torch.autograd.grad(y.sum(), [leaf, *layer.parameters()]))])
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


def test_odd_memory_and_empty_batches():
    separate, shared = (BWHT1d(16, 24, block_size=8, blocks=blocks) for blocks in ("separate", "shared"))
    for layer, shape in [(FWHT2d(8), (3, 16, 8, 8)), (separate, (3, 16, 8, 8)), (shared, (3, 16, 8, 8))]:
        layer = layer.to(DEVICE)
        x = normal(*shape)
        wanted = layer(x)
        others = [x.transpose(2, 3).contiguous().transpose(2, 3), normal(3, 17, 8, 8)[:, 1:].copy_(x)]
        others += [torch.empty(x.numel() + 1, device=DEVICE)[1:].view(shape).copy_(x)]  # not aligned
        for other in others:
            torch.testing.assert_close(layer(other), wanted)
        (a,) = torch.autograd.grad(layer(x.requires_grad_()).sum(), x)  # its gradient is one number, expanded
        (b,) = torch.autograd.grad((layer(x) * 1.0).sum(), x)
        torch.testing.assert_close(a, b)
        empty = normal(0, *shape[1:]).requires_grad_()
        assert layer(empty).shape[0] == 0
        assert torch.autograd.grad(layer(empty).sum(), layer.threshold)[0].abs().sum() == 0


def test_gradients_that_are_not_wanted():
    for wanted in itertools.product((True, False), repeat=3):
        inputs = [normal(2, 16, 8, 8), torch.rand(8, 8, device=DEVICE), torch.rand(8, 8, device=DEVICE)]
        for value, w in zip(inputs, wanted, strict=True):
            value.requires_grad_(w)
        if any(wanted):
            functional.fwht2d(*inputs).sum().backward()
        assert [i.grad is not None for i in inputs] == list(wanted)


def test_accuracy():
    x, t, v = normal(4, 64, 8, 8), torch.rand(8, 8, device=DEVICE) * 0.1, torch.ones(8, 8, device=DEVICE)
    wanted = reference_fwht2d(x.double(), t.double(), v.double())
    assert (functional.fwht2d(x, t, v) - wanted).abs().max() < 2e-6
    x, t = normal(2, 1024, 4, 4), torch.rand(1, 1024, device=DEVICE) * 0.1
    assert (functional.bwht1d(x, t, 1024) - reference_bwht1d(x.double(), t.double(), 1024)).abs().max() < 2e-6


def test_what_the_kernels_do_not_serve():
    kernels.set_backend("auto")
    x, t = normal(2, 3, 4, 4), torch.rand(4, 4, device=DEVICE)
    assert kernels.backend_for(x, t, None) == "gpu"
    assert kernels.backend_for(x.double(), t.double(), None) == "reference"
    assert kernels.backend_for(x.to("meta"), t.to("meta"), None) == "reference"
