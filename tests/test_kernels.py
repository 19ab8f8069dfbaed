"""Every fast backend against the reference in float64, over layouts, dtypes and shapes."""

import itertools
import math
import os
import platform
import subprocess
import sys
import warnings
from functools import partial

import pytest
import references
import torch
from layer_checks import (
    BF16,
    F32,
    F64,
    FORMATS,
    OPTIONS,
    check,
    parameter,
    reference_bwht1d,
    reference_fwht2d,
    weighted,
)

import whtnet
from whtnet import BWHT1d, FWHT2d, functional, kernels
from whtnet.kernels import Epilogue, Options, cpu, reference, shapes
from whtnet.kernels.lazy import KernelError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    HAVE_KERNEL = kernels.backend_for(torch.ones(1)) == "cpu" or (
        kernels.get_backend() == "reference" and cpu.available()
    )
needs_kernel = pytest.mark.skipif(not HAVE_KERNEL, reason="no compiler, no kernel")


@pytest.fixture(autouse=True)
def _backend():
    before, threads = kernels.get_backend(), torch.get_num_threads()
    kernels.set_backend("auto")
    yield
    kernels.set_backend(before)
    torch.set_num_threads(threads)


# -- two dimensions ---------------------------------------------------------------------------------------------------

MAPS = [
    (1, 1),
    (2, 2),
    (4, 4),
    (8, 8),
    (16, 16),
    (32, 32),
    (64, 64),
    (3, 5),
    (7, 7),
    (14, 14),
    (5, 33),
    (4, 64),
    (64, 2),
    (1, 8),
    (16, 1),
    (28, 30),
]


@needs_kernel
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("size", MAPS, ids=str)
def test_fwht2d_equals_the_reference(size, layout, dtype):
    padded = [references.power_of_two(s) for s in size]
    for channels, has_weight in [(16, True), (3, True), (37, False)]:
        x = torch.randn(3, channels, *size).to(dtype).contiguous(memory_format=FORMATS[layout])
        t, v = parameter(*padded, dtype=dtype), parameter(*padded, dtype=dtype, low=-2, high=2) if has_weight else None
        assert kernels.backend_for(x, t, v) == "cpu"
        check(functional.fwht2d, reference_fwht2d, x, (t, v))


@needs_kernel
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fwht2d_options(options, layout):
    for size, dtype in itertools.product([(4, 2), (8, 8), (6, 12), (32, 64)], (F32, F64)):
        padded = [references.power_of_two(s) for s in size]
        x = torch.randn(2, 19, *size).to(dtype).contiguous(memory_format=FORMATS[layout])
        p = parameter(*padded, dtype=dtype), parameter(*padded, dtype=dtype, low=-2, high=2)
        check(partial(functional.fwht2d, **options), partial(reference_fwht2d, **options), x, p)


@needs_kernel
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fwht2d_equals_the_dense_definition(options):
    for size in [(3, 8), (16, 16)]:
        padded = [references.power_of_two(s) for s in size]
        x, t, v = torch.randn(2, 9, *size, dtype=F64), parameter(*padded, dtype=F64), parameter(*padded, dtype=F64)
        check(partial(functional.fwht2d, **options), partial(references.fwht2d, **options), x, (t, v))


@needs_kernel
def test_float32_error_is_below_2e_6():
    for shape in [(2, 1024, 8, 8), (2, 16, 32, 32)]:
        x, t, v = torch.randn(shape), torch.rand(shape[2:]) * 0.1, torch.ones(shape[2:])
        error = functional.fwht2d(x, t, v) - reference_fwht2d(x.double(), t.double(), v.double())
        assert error.abs().max() < 2e-6
    x, t = torch.randn(2, 1024, 8, 8), torch.rand(1, 1024) * 0.1
    for memory_format in FORMATS.values():
        error = functional.bwht1d(x.contiguous(memory_format=memory_format), t, 1024)
        assert (error - reference_bwht1d(x.double(), t.double(), 1024)).abs().max() < 2e-6


@needs_kernel
def test_gradients_of_large_coefficients():
    # tanh is flat there: what is left of its slope by rounding must not count.
    for scale in (30, 1000):
        p = parameter(8, 8, dtype=F32), parameter(8, 8, dtype=F32, low=-2, high=2)
        check(functional.fwht2d, reference_fwht2d, scale * torch.randn(3, 16, 8, 8), p)
        check(
            partial(functional.bwht1d, out_channels=16),
            partial(reference_bwht1d, out_channels=16),
            scale * torch.randn(3, 16, 8, 8),
            (parameter(1, 16, dtype=F32),),
        )


# -- what follows -----------------------------------------------------------------------------------------------------

BOUNDS = [(-math.inf, math.inf), (0.0, math.inf), (0.0, 0.5)]


ADDENDS = [(False, False), (True, False), (False, True), (True, True)]  # before the scale, after it


def check_finished(fast, x, channels, *, addends, bounds):
    """``fast`` of an epilogue, or of None, against the same in two steps, and never in two steps itself."""
    plain = fast(None)
    dtype = F64 if x.dtype is F64 else F32
    added, residual = (torch.randn_like(plain) if there else None for there in addends)
    factors = torch.randn(2, channels, dtype=dtype)
    epilogue = Epilogue(*factors, residual, *bounds, added)
    wanted = reference.finish(plain, epilogue)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "finish", None)
        patch.setattr(cpu, "finish", None)
        got = fast(epilogue)
    assert (got.dtype, got.stride()) == (wanted.dtype, wanted.stride())
    low = x.dtype is BF16  # whose sums are rounded once, and twice in two steps
    torch.testing.assert_close(got, wanted, rtol=0.01 if low else 1e-5, atol=0.02 if low else 1e-5)


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_epilogue_options_of_fwht2d(layout, dtype):
    sizes, channels = [(1, 1), (2, 2), (4, 4), (3, 5), (8, 8), (32, 32)], (1, 3, 16, 37)
    for (size, c), threads in itertools.product(itertools.product(sizes, channels), (1, 2)):
        torch.set_num_threads(threads)
        padded = [references.power_of_two(s) for s in size]
        x = torch.randn(5, c, *size).to(dtype).contiguous(memory_format=FORMATS[layout])
        t, v = (parameter(*padded, dtype=dtype).detach() for _ in range(2))
        layer = partial(kernels.fwht2d, x, t, v, Options())
        for addends, bounds in itertools.product(ADDENDS, BOUNDS):
            check_finished(layer, x, c, addends=addends, bounds=bounds)


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_epilogue_options_of_bwht1d(layout, dtype):
    forms = [(2, 2, (1, 2)), (5, 12, (1, 16)), (40, 20, (2, 32)), (33, 70, (3, 32)), (96, 24, (1, 128))]
    shared = [(12, 12, (4,)), (20, 48, (4,)), (36, 12, (4,)), (20, 6, (4,)), (96, 576, (32,))]
    for (c_in, c_out, shape), stride in itertools.product(forms + shared, (1, 2)):
        x = torch.randn(3, c_in, 7, 5).to(dtype).contiguous(memory_format=FORMATS[layout])
        t = parameter(*shape, dtype=dtype).detach()
        layer = partial(kernels.bwht1d, x, t, None, c_out, stride, Options())
        for addends, bounds in itertools.product(ADDENDS, BOUNDS):
            check_finished(layer, x, c_out, addends=addends, bounds=bounds)


@needs_kernel
@torch.no_grad()
def test_nan_and_what_is_not_finite_pass_the_epilogue_as_in_plain_torch():
    x = torch.randn(2, 4, 2, 2)
    x[0, 1, 0, 0], x[1, 3, 1, 1] = math.nan, math.inf
    epilogue = Epilogue(torch.ones(4), torch.zeros(4), None, 0.0, 6.0)
    for threshold in (torch.zeros(2, 2), torch.full((2, 2), math.inf)):
        got = kernels.fwht2d(x, threshold, None, Options("soft"), epilogue)
        wanted = reference.finish(kernels.fwht2d(x, threshold, None, Options("soft")), epilogue)
        torch.testing.assert_close(got, wanted, equal_nan=True)


@needs_kernel
@torch.no_grad()
def test_results_larger_than_caches_are_finished():
    x, e = torch.randn(1, 128, 256, 256), Epilogue(torch.rand(128), torch.rand(128), None, 0.0, 6.0)
    x = x.contiguous(memory_format=torch.channels_last)
    t = torch.rand(1, 128)
    wanted = reference.finish(kernels.bwht1d(x, t, None, 128, 1, Options()), e)
    torch.testing.assert_close(kernels.bwht1d(x, t, None, 128, 1, Options(), e), wanted)


@needs_kernel
@torch.no_grad()
def test_epilogues_that_the_kernel_does_not_take():
    x, t = torch.randn(2, 6, 4, 4), torch.rand(4, 4)
    scale, shift = torch.rand(6), torch.rand(6)
    y = kernels.fwht2d(x, t, None, Options())
    for residual in (torch.randn(6, 1, 1), torch.randn(2, 6, 4, 4, dtype=F64), torch.randn(3, 1, 1, 4, 4), 2.0):
        wanted = y * scale[:, None, None] + shift[:, None, None] + residual
        got = kernels.fwht2d(x, t, None, Options(), Epilogue(scale, shift, residual, -math.inf, math.inf))
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted)
    for added in (torch.randn(6, 4, 4), torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last)):
        wanted = (y + added) * scale[:, None, None] + shift[:, None, None]
        got = kernels.fwht2d(x, t, None, Options(), Epilogue(scale, shift, None, -math.inf, math.inf, added))
        torch.testing.assert_close(got, wanted)
    apart = torch.rand(12)[::2]
    got = kernels.fwht2d(x, t, None, Options(), Epilogue(apart, shift, None, -math.inf, math.inf))
    torch.testing.assert_close(got, y * apart[:, None, None] + shift[:, None, None])
    got = kernels.fwht2d(x, t, None, Options(), Epilogue(scale.double(), shift.double(), None, 0.0, 1.0))
    torch.testing.assert_close(got, (y * scale[:, None, None] + shift[:, None, None]).clamp(0, 1))


# -- one dimension ----------------------------------------------------------------------------------------------------

CHANNELS = [  # (in, out, block)
    (2, 2, 2), (5, 12, 16), (12, 5, 16), (16, 16, 16), (16, 32, 32), (64, 64, 64), (96, 24, 128), (33, 256, 256),
    (300, 512, 512), (1024, 1024, 1024), (960, 160, 1024), (320, 1280, 2048), (4096, 4000, 4096),
    (3, 5, 1), (9, 9, 4), (11, 31, 4), (31, 11, 4), (40, 20, 32), (33, 70, 32), (64, 256, 64), (200, 64, 64),
    (96, 96, 32),
]  # fmt: skip


@needs_kernel
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("c_in", "c_out", "block"), CHANNELS)
def test_bwht1d_equals_the_reference(c_in, c_out, block, layout, dtype):
    t = parameter(-(-max(c_in, c_out) // block), block, dtype=dtype)
    for stride, spatial in [(1, (5, 7)), (2, (5, 3)), (1, (1, 1))]:
        x = torch.randn(3, c_in, *spatial).to(dtype).contiguous(memory_format=FORMATS[layout])
        assert kernels.backend_for(x, t) == "cpu"
        flags = {"out_channels": c_out, "stride": stride}
        check(partial(functional.bwht1d, **flags), partial(reference_bwht1d, **flags), x, (t,))


# Blocks that share their parameters: one window, overlapping ones; means that fit blocks, straddle them, are cropped.
SHARED = [
    (16, 32, 16), (8, 12, 4), (24, 144, 8), (160, 960, 32), (12, 16, 2),
    (64, 64, 16), (16, 5, 4), (16, 12, 4), (144, 24, 8), (960, 160, 32), (2048, 512, 1024),
]  # fmt: skip


@needs_kernel
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("c_in", "c_out", "block"), SHARED)
def test_shared_blocks_equal_the_reference(c_in, c_out, block, layout, dtype):
    t, v = parameter(block, dtype=dtype), parameter(block, dtype=dtype)
    for stride, spatial in [(1, (5, 7)), (2, (5, 3)), (1, (1, 1))]:
        x = torch.randn(3, c_in, *spatial).to(dtype).contiguous(memory_format=FORMATS[layout])
        assert kernels.backend_for(x, t) == "cpu"
        flags = {"out_channels": c_out, "stride": stride}
        check(partial(functional.bwht1d, **flags), partial(reference_bwht1d, **flags), x, (t,))
        check(weighted(functional.bwht1d, **flags), weighted(reference_bwht1d, **flags), x, (t, v))


@needs_kernel
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_of_shared_blocks(options, layout):
    for (c_in, c_out, block), dtype in itertools.product([(24, 48, 8), (48, 12, 16), (96, 192, 64)], (F32, F64)):
        t, v = parameter(block, dtype=dtype), parameter(block, dtype=dtype)
        x = torch.randn(2, c_in, 4, 5).to(dtype).contiguous(memory_format=FORMATS[layout])
        flags = {"out_channels": c_out, **options}
        check(weighted(functional.bwht1d, **flags), weighted(reference_bwht1d, **flags), x, (t, v))


@needs_kernel
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bwht1d_options(options, layout):
    for (c_in, c_out, block), stride, dtype in itertools.product(
        [(64, 64, 64), (11, 31, 4), (31, 11, 4), (17, 40, 64)], (1, 3), (F32, F64)
    ):
        t = parameter(-(-max(c_in, c_out) // block), block, dtype=dtype)
        x = torch.randn(2, c_in, 4, 5).to(dtype).contiguous(memory_format=FORMATS[layout])
        flags = {"out_channels": c_out, "stride": stride, **options}
        check(partial(functional.bwht1d, **flags), partial(reference_bwht1d, **flags), x, (t,))
        v = parameter(*t.shape, dtype=dtype)
        check(weighted(functional.bwht1d, **flags), weighted(reference_bwht1d, **flags), x, (t, v))


@needs_kernel
@pytest.mark.parametrize("spatial", [(), (6,), (3, 2, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_bwht1d_takes_any_number_of_spatial_dimensions(spatial, stride):
    t = parameter(1, 32, dtype=F64)
    flags = {"out_channels": 29, "stride": stride}
    x = torch.randn(3, 17, *spatial, dtype=F64)
    check(partial(functional.bwht1d, **flags), partial(reference_bwht1d, **flags), x, (t,))


# -- as operators -----------------------------------------------------------------------------------------------------


def cases(dtype=F32):
    make = lambda *shape: torch.randn(shape, dtype=dtype).requires_grad_()  # noqa: E731
    for memory_format in FORMATS.values():
        x = torch.randn(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
        yield torch.ops.whtnet.fwht2d.default, (x, make(4, 8), make(4, 8), "smooth", False, True, "ortho")
        yield torch.ops.whtnet.fwht2d.default, (x, make(4, 8), None, "soft", True, False, "backward")
        yield torch.ops.whtnet.bwht1d.default, (x, make(2, 4), make(2, 4), 7, 2, "smooth", True, True, "backward")
        yield torch.ops.whtnet.bwht1d.default, (x, make(1, 8), None, 6, 1, "soft", False, False, "ortho")
        x = torch.randn(2, 4, 3, 2, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
        yield torch.ops.whtnet.bwht1d.default, (x, make(2), make(2), 6, 2, "smooth", False, True, "ortho")
        yield torch.ops.whtnet.bwht1d.default, (x, make(2), None, 2, 1, "smooth", True, False, "backward")


@needs_kernel
def test_opcheck():
    for operator, arguments in cases():
        torch.library.opcheck(operator, arguments)


@needs_kernel
def test_opcheck_of_the_gradients():
    x, g = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    for v, wanted in itertools.product((None, torch.randn(4, 8)), (True, False)):
        arguments = (g, wanted, x, torch.randn(4, 8), v, *Options())
        torch.library.opcheck(torch.ops.whtnet.fwht2d_backward.default, arguments)
    for t, v in ((torch.randn(2, 4), None), (torch.randn(2, 4), torch.randn(2, 4)), (torch.randn(1), torch.randn(1))):
        arguments = (torch.randn(2, 7, 2, 3), True, x, t, v, 7, 2, *Options())
        torch.library.opcheck(torch.ops.whtnet.bwht1d_backward.default, arguments)


@needs_kernel
def test_gradcheck_and_second_derivatives():
    for operator, arguments in cases(F64):
        inputs = [a for a in arguments if isinstance(a, torch.Tensor)]
        rest = arguments[len(inputs) :]
        call = lambda *i, f=operator, rest=rest: f(*i, *rest)  # noqa: E731
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


@needs_kernel
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("wanted", [w for w in itertools.product((True, False), repeat=3) if any(w)], ids=str)
def test_any_combination_of_gradients(wanted, layout):
    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=FORMATS[layout])
    results = []
    for backend in ("reference", "cpu"):
        kernels.set_backend(backend)
        torch.manual_seed(1)
        inputs = [x.clone(), torch.rand(8, 8), torch.randn(8, 8)]
        for value, w in zip(inputs, wanted, strict=True):
            value.requires_grad_(w)
        functional.fwht2d(*inputs).square().sum().backward()
        results.append([i.grad for i in inputs])
    for a, b, w in zip(*results, wanted, strict=True):
        assert ((a is None), (b is None)) == (not w, not w)
        if w:
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


@needs_kernel
@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
@pytest.mark.parametrize("layout", FORMATS)
def test_compiles_without_a_graph_break(layout, backend):
    torch.compiler.reset()
    model = torch.nn.Sequential(BWHT1d(3, 5, block_size=4, blocks="separate", stride=2), FWHT2d((4, 3)), BWHT1d(5, 3))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = torch.randn(2, 3, 8, 6).contiguous(memory_format=FORMATS[layout])

    def run(f):
        y = f(x)
        return y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))

    torch.testing.assert_close(run(compiled), run(model))


@needs_kernel
def test_what_a_fast_backend_does_not_serve_goes_to_the_reference():
    x, t = torch.randn(2, 3, 4, 4), torch.rand(4, 4)
    assert kernels.backend_for(x, t, None) == "cpu"
    assert kernels.backend_for(x.half(), t, None) == "reference"
    assert kernels.backend_for(x, t.double(), None) == "reference"
    assert kernels.backend_for(x.to("meta"), t.to("meta"), None) == "reference"
    assert kernels.backend_for(torch.ones(1, 1, 128, 64), torch.ones(128, 64), None) == "reference"
    layer = FWHT2d(4)
    single = torch.func.vmap(layer)(x)
    torch.testing.assert_close(single, layer(x))
    seen = []
    torch.func.grad(lambda x: (seen.append(kernels.backend_for(x)), layer(x).sum())[1])(x)
    assert seen == ["reference"]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent is not None
    program = torch.export.export(layer, (x,))
    assert not any("whtnet" in str(node.target) for node in program.graph.nodes)


# -- memory and threads -----------------------------------------------------------------------------------------------


@needs_kernel
def test_odd_memory():
    for layer, shape in [(FWHT2d(8), (3, 16, 8, 8)), (BWHT1d(16, 24, block_size=8, blocks="separate"), (3, 16, 8, 8))]:
        x = torch.randn(shape)
        wanted = layer(x)
        others = [x.flip(2).flip(2), x.transpose(2, 3).contiguous().transpose(2, 3)]
        others += [torch.randn(3, 16, 8, 16)[..., ::2].copy_(x), torch.randn(3, 17, 8, 8)[:, 1:].copy_(x)]
        others += [torch.empty(x.numel() + 1)[1:].view(shape).copy_(x)]  # not aligned to any vector
        for other in others:
            torch.testing.assert_close(layer(other), wanted, rtol=1e-5, atol=1e-6)
        x = x.requires_grad_()
        (a,) = torch.autograd.grad(layer(x).sum(), x)  # its gradient is one number, expanded
        (b,) = torch.autograd.grad((layer(x) * 1.0).sum(), x)
        torch.testing.assert_close(a, b)


@needs_kernel
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_nothing_beyond_the_result_is_written(layout, dtype, monkeypatch):
    # Results with many lanes and points to spare in the last vector, computed in the middle of a larger buffer.
    x = torch.randn(2, 13, 7, 5).to(dtype).contiguous(memory_format=FORMATS[layout])
    buffer = torch.full((x.numel() + 256,), 7.0, dtype=dtype)
    y = torch.as_strided(buffer, x.shape, x.stride(), 128)
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    job = cpu._job_2d(x, memory, torch.rand(8, 8), Options())
    monkeypatch.setattr(cpu, "_empty", lambda *_: y)
    with torch.no_grad():
        for epilogue in (None, Epilogue(torch.rand(13), torch.rand(13), x, 0.0, 6.0)):
            cpu._forward(job, x, torch.rand(8, 8), None, epilogue)
    assert (buffer[:128] == 7).all()
    assert (buffer[128 + x.numel() :] == 7).all()


@needs_kernel
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_nothing_is_written_beyond_means_of_blocks_and_gradients_of_windows(layout, dtype, monkeypatch):
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    wide, narrow = (torch.randn(2, c, 7, 5).to(dtype).contiguous(memory_format=memory) for c in (36, 12))
    buffer = torch.full((narrow.numel() + 256,), 7.0, dtype=dtype)
    inside = torch.as_strided(buffer, narrow.shape, narrow.stride(), 128)
    monkeypatch.setattr(cpu, "_empty", lambda *_: inside)
    with torch.no_grad():
        for epilogue in (None, Epilogue(torch.rand(12), torch.rand(12), narrow, 0.0, 6.0)):
            cpu.bwht1d(wide, torch.rand(4), None, 12, 1, Options(), epilogue)
    monkeypatch.setattr(shapes, "empty_gradient", lambda *_: inside)
    cpu.bwht1d_backward(wide, True, narrow, torch.rand(4), None, 36, 1, Options())
    assert (buffer[:128] == 7).all()
    assert (buffer[128 + narrow.numel() :] == 7).all()
    assert not (inside == 7).any()


@needs_kernel
@pytest.mark.parametrize("layout", FORMATS)
def test_results_do_not_depend_on_the_number_of_threads(layout):
    x = torch.randn(33, 20, 16, 16).contiguous(memory_format=FORMATS[layout])
    separate, shared = {"block_size": 16, "blocks": "separate"}, {"block_size": 4}
    for layer in (FWHT2d(16), BWHT1d(20, 48, **separate), BWHT1d(20, 48, **shared), BWHT1d(20, 6, **shared)):
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            results.append((y, *torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])))
        torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
        torch.testing.assert_close(results[2], results[0], rtol=0, atol=0)


@needs_kernel
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_values_that_are_not_finite(dtype, value, layout):
    x = torch.randn(5, 21, 8, 8).to(dtype).contiguous(memory_format=FORMATS[layout])
    x[3, 17, 2, 5] = value
    for layer in (FWHT2d(8), BWHT1d(21, 21, block_size=8, blocks="separate"), BWHT1d(21, 40)):
        results = []
        for backend in ("reference", "cpu"):
            kernels.set_backend(backend)
            leaf = x.clone().requires_grad_()
            y = layer.to(F64 if dtype == F64 else F32)(leaf)
            grads = torch.autograd.grad(y.float().sum(), [leaf, *layer.parameters()])
            results.append([v.isfinite() for v in (y, *grads)])
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


@needs_kernel
def test_thresholds_that_are_not_finite():
    x, t = torch.randn(2, 16, 4, 4), torch.rand(4, 4)
    t[1, 2] = float("nan")
    for clamp in (False, True):
        y = functional.fwht2d(x, t, clamp=clamp)
        assert torch.equal(y.isfinite(), reference_fwht2d(x, t, clamp=clamp).isfinite())


# -- the choice of a backend ------------------------------------------------------------------------------------------


def test_set_backend():
    x = torch.randn(2, 3, 4, 4)
    kernels.set_backend("reference")
    assert whtnet.backend_for(x) == kernels.get_backend() == "reference"
    with pytest.raises(ValueError, match=r"'fpga'.*auto, reference, cpu, gpu"):
        whtnet.set_backend("fpga")
    if HAVE_KERNEL:
        kernels.set_backend("cpu")
        assert whtnet.backend_for(x) == "cpu"


@needs_kernel
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of another processor")
@pytest.mark.parametrize("flags", ["-march=haswell", "-march=x86-64", "-O0 -march=haswell -DVECTOR_BYTES=64"])
def test_on_processors_with_other_vectors(flags, tmp_path):
    environment = {**os.environ, "CXXFLAGS": flags, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    wanted = "options or finite or written"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@needs_kernel
def test_a_library_with_another_job_is_refused(monkeypatch):
    monkeypatch.setattr(cpu, "_JOB_FIELDS", ("dtype", "another"))
    with pytest.raises(KernelError, match="takes another job: dtype layout"):
        cpu._load()
