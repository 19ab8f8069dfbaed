"""Transforms against scipy's dense Hadamard matrices, and in the places where PyTorch code has to work."""

import math

import pytest
import references
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from whtnet import transforms
from whtnet.transforms import fwht, fwht2, hadamard_matrix, ifwht, released_order, sequency_permutation

F64 = torch.float64
SIZES = [2**k for k in range(13)]
HALF_TYPES = [torch.bfloat16, torch.float16]
ORDERS = ["natural", "sequency"]
exactly = {"rtol": 0, "atol": 1e-12}


@pytest.fixture
def fresh_cache(monkeypatch):
    """No matrix made by another test: the context of this test is the first to ask for one."""
    monkeypatch.setattr(transforms, "_factor_cache", {}, raising=False)


def dense(x, dim=-1, order="natural"):
    matrix = {"natural": references.hadamard, "sequency": references.walsh}[order](x.shape[dim])
    return (x.to(F64).movedim(dim, -1) @ (matrix / math.sqrt(x.shape[dim])).T).movedim(-1, dim)


@pytest.mark.parametrize("n", SIZES)
def test_equals_the_dense_matrix_in_every_dimension(n):
    matrix = references.hadamard(n) / math.sqrt(n)
    for dim, shape in [(-1, (3, n)), (0, (n,)), (0, (n, 5)), (1, (2, n, 3)), (-2, (2, 2, n, 3)), (2, (1, 2, n, 1, 2))]:
        x = torch.randn(shape, dtype=F64)
        expected = torch.tensordot(matrix, x, ([1], [dim])).movedim(0, dim)
        torch.testing.assert_close(fwht(x, dim), expected, **exactly)


def test_equals_linear_with_the_scaled_matrix():
    x = torch.randn(5, 64, dtype=F64)
    expected = torch.nn.functional.linear(x, hadamard_matrix(64, dtype=F64) / math.sqrt(64))
    torch.testing.assert_close(fwht(x), expected, **exactly)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1, 2, 16, 64])
def test_non_contiguous_and_expanded_input(n, order):
    base = torch.randn(4, n, 6, dtype=F64)
    for x, dim in [
        (base.transpose(1, 2), -1),
        (base.permute(2, 1, 0), 1),
        (base[:, :, ::2], 1),
        (torch.randn(3, 2 * n, dtype=F64)[:, ::2], 1),
        (base.flip(0)[1:], 1),
        (torch.randn(n, 1, dtype=F64).expand(n, 7), 0),
        (torch.randn(3, 1, dtype=F64).expand(3, n), 1),
    ]:
        before = x.clone()
        torch.testing.assert_close(fwht(x, dim, order), dense(x, dim, order), **exactly)
        assert torch.equal(x, before), "the input was changed"


@pytest.mark.parametrize("n", [1, 8, 64])
def test_result_is_a_new_tensor(n):
    x = torch.randn(3, n)
    before = x.clone()
    fwht(x).zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(0, 8), (0, 1), (2, 0, 64), (0, 128, 3)])
def test_empty_batch(shape):
    x = torch.randn(shape, requires_grad=True)
    y = fwht(x, 1 if len(shape) == 3 and shape[1] else -1)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", SIZES)
def test_is_its_own_inverse(n, order):
    x = torch.randn(3, n, 2, dtype=F64)
    y = fwht(x, 1, order)
    torch.testing.assert_close(fwht(y, 1, order), x, **exactly)
    torch.testing.assert_close(ifwht(y, 1, order), x, **exactly)
    torch.testing.assert_close(y.norm(), x.norm())


@pytest.mark.parametrize("n", [1, 2, 4, 8, 32, 128, 1024])
def test_sequency_order(n):
    matrix = hadamard_matrix(n, "sequency", dtype=F64)
    assert references.sign_changes(matrix) == list(range(n))
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix, hadamard_matrix(n, dtype=F64)[sequency_permutation(n)])
    assert sequency_permutation(n)[0] == 0
    x = torch.randn(2, n, dtype=F64)
    walsh = fwht(x, order="sequency")
    torch.testing.assert_close(walsh, dense(x, order="sequency"), **exactly)
    torch.testing.assert_close(walsh, fwht(x)[:, sequency_permutation(n)], **exactly)
    torch.testing.assert_close(walsh[:, 0], x.sum(1) / math.sqrt(n), **exactly)


@pytest.mark.parametrize("n", SIZES[:11])
def test_hadamard_matrix(n):
    matrix = hadamard_matrix(n, dtype=F64)
    assert torch.equal(matrix, references.hadamard(n))
    assert hadamard_matrix(n, dtype=torch.int8, device="cpu").dtype == torch.int8
    assert hadamard_matrix(n).dtype == torch.get_default_dtype()
    assert hadamard_matrix(n, "sequency", device="meta").shape == (n, n)


def test_powers_of_two():
    for n in range(1, 200):
        assert transforms.next_power_of_two(n) == references.power_of_two(n)
    assert [n for n in range(-4, 70) if transforms.is_power_of_two(n)] == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("n", SIZES)
def test_float32_error(n):
    x = torch.randn(64, n)
    assert (fwht(x) - dense(x)).abs().max() < 2e-6


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("n", SIZES)
def test_half_precision_error_is_that_of_rounding(n, dtype):
    x = torch.randn(64, n).to(dtype)
    exact = dense(x)
    unavoidable = (exact.to(dtype) - exact).norm()  # rounding the exact result once
    y = fwht(x)
    assert y.dtype == dtype
    assert (y - exact).norm() <= 2.5 * unavoidable
    assert (y - exact).abs().max() <= 1.5 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [F64, torch.float32, *HALF_TYPES])
def test_dtype_and_precision_are_kept_under_autocast(dtype, order):
    x = torch.randn(3, 64, dtype=dtype, requires_grad=True)
    outside = fwht(x, -1, order)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fwht(x, -1, order)
        assert torch.is_autocast_enabled("cpu")
    assert inside.dtype == outside.dtype == dtype
    assert torch.equal(inside, outside)
    g = torch.randn(3, 64, dtype=dtype)
    assert torch.equal(*(torch.autograd.grad(y, x, g)[0] for y in (inside, outside)))


@pytest.mark.parametrize("n", [0, 3, 6, 12, 1000])
def test_sizes_that_are_no_power_of_two(n):
    for call in (lambda: fwht(torch.ones(2, n)), lambda: ifwht(torch.ones(2, n)), lambda: fwht2(torch.ones(n, 4))):
        with pytest.raises(ValueError, match=rf"power-of-two.*{n}"):
            call()
    for function in (hadamard_matrix, sequency_permutation):
        with pytest.raises(ValueError, match="power-of-two"):
            function(n)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_types_that_are_not_floating_point(dtype):
    with pytest.raises(TypeError, match=str(dtype)):
        fwht(torch.ones(4, dtype=dtype))


@pytest.mark.parametrize("order", ["dyadic", "", "Natural"])
def test_unknown_order(order):
    for call in (lambda: fwht(torch.ones(4), order=order), lambda: hadamard_matrix(4, order)):
        with pytest.raises(ValueError, match="natural, sequency"):
            call()


@pytest.mark.parametrize(("shape", "dim"), [((4,), 1), ((4, 4), -3), ((), -1)])
def test_dimension_out_of_range(shape, dim):
    with pytest.raises(IndexError):
        fwht(torch.ones(shape), dim)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("shape", "dim"), [((3, 8), -1), ((64, 2), 0), ((2, 4, 3), 1), ((2, 1), 1)])
def test_gradcheck(shape, dim, order):
    x = torch.randn(shape, dtype=F64, requires_grad=True)
    assert gradcheck(lambda x: fwht(x, dim, order), x)
    assert gradgradcheck(lambda x: fwht(x, dim, order), x)
    assert gradgradcheck(lambda x: fwht(x, dim, order) ** 3, x)


@pytest.mark.parametrize("dims", [(-2, -1), (1, 2), (2, 1), (0, 3)])
@pytest.mark.parametrize("order", ORDERS)
def test_fwht2(dims, order):
    x = torch.randn(4, 8, 2, 64, dtype=F64)
    y = fwht2(x, dims, order)
    torch.testing.assert_close(y, dense(dense(x, dims[0], order), dims[1], order), **exactly)
    torch.testing.assert_close(fwht2(y, dims, order), x, **exactly)


class Transform(torch.nn.Module):
    def __init__(self, dim, order):
        super().__init__()
        self.dim, self.order = dim, order

    def forward(self, x):
        return fwht(x, self.dim, self.order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1, 8, 64])
def test_compiles_to_a_full_graph(n, order):
    torch.compiler.reset()
    x, g = torch.randn(3, n, 2, requires_grad=True), torch.randn(3, n, 2)
    y = torch.compile(Transform(1, order), fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, fwht(x, 1, order))
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], fwht(g, 1, order))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1, 64])
def test_exports_with_dynamic_sizes_around_the_dimension(n, order):
    shapes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}  # an error where one is specialised
    program = torch.export.export(Transform(1, order), (torch.randn(3, n, 5),), dynamic_shapes=(shapes,))
    for batch, after in [(3, 5), (1, 1), (4, 2)]:
        x = torch.randn(batch, n, after)
        torch.testing.assert_close(program.module()(x), fwht(x, 1, order))


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu")])
def test_training_after_a_first_use_without_gradients(first):
    x = torch.randn(3, 64, requires_grad=True)
    with first():
        y = fwht(x)
    torch.testing.assert_close(fwht(x), y.clone())
    (fwht(x) ** 2).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


@pytest.mark.usefixtures("fresh_cache")
def test_fake_tensors_first_then_real_ones():
    with FakeTensorMode():
        y = fwht(torch.randn(3, 64))
        assert isinstance(y, FakeTensor)
        assert y.shape == (3, 64)
    x = torch.randn(3, 64)
    y = fwht(x)
    assert type(y) is torch.Tensor
    torch.testing.assert_close(y, dense(x).float())
    with FakeTensorMode():  # and a fake one after the cache was filled
        assert isinstance(fwht(torch.randn(3, 64)), FakeTensor)


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("order", ORDERS)
def test_meta_device(order):
    y = fwht(torch.empty(3, 64, 2, device="meta", dtype=torch.bfloat16), 1, order)
    assert (y.device.type, y.shape, y.dtype) == ("meta", (3, 64, 2), torch.bfloat16)


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("order", ORDERS)
def test_torch_func_transforms(order):
    x = torch.randn(5, 64, dtype=F64)
    torch.testing.assert_close(torch.func.vmap(lambda v: fwht(v, -1, order))(x), fwht(x, -1, order))
    torch.testing.assert_close(torch.func.vmap(lambda v: fwht(v, 0, order), 1, 1)(x.T), fwht(x.T, 0, order))
    gradient = torch.func.vmap(torch.func.grad(lambda v: (fwht(v, -1, order) ** 2).sum()))(x)
    torch.testing.assert_close(gradient, 2 * x)
    matrix = {"natural": references.hadamard, "sequency": references.walsh}[order](8) / math.sqrt(8)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(jacobian(lambda v: fwht(v, -1, order))(x[0, :8]), matrix)


@pytest.mark.usefixtures("fresh_cache")
def test_no_tensor_of_a_torch_func_transform_outlives_it():
    torch.func.grad(lambda v: fwht(v).sum())(torch.randn(64))
    cached = list(getattr(transforms, "_factor_cache", {}).values())
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(matrix) for matrix in cached)


@pytest.mark.parametrize("n", [8, 64])
def test_nan_stays_in_its_own_row(n):
    x = torch.randn(4, n, 3)
    x[1, 2, 2] = math.nan
    expected = torch.zeros(4, n, 3, dtype=torch.bool)
    expected[1, :, 2] = True
    assert torch.equal(fwht(x, 1).isnan(), expected)


def test_the_authors_order_is_sequency_order_up_to_four():
    for n in (1, 2, 4, 64):
        theirs = hadamard_matrix(n)[released_order(n).argsort()]
        assert torch.equal(theirs, theirs.T)
        assert torch.equal(theirs, hadamard_matrix(n, "sequency")) == (n <= 4)
    assert references.sign_changes(hadamard_matrix(8)[released_order(8).argsort()]) == [0, 1, 2, 3, 5, 4, 7, 6]
    with pytest.raises(ValueError, match="power-of-two size, got 6"):
        released_order(6)
