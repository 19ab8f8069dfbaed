"""Who is told of a layer that is called: modes, tracers and the like, as if the dispatcher were always asked."""

import contextlib
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from whtnet import BWHT1d, FWHT2d, functional, kernels
from whtnet.kernels import cpu, dispatch, operators, reference
from whtnet.kernels.dispatch import is_direct, records_graph, remembered
from whtnet.kernels.options import Options

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no compiler, no kernel")

LAYERS = {"2d": lambda: FWHT2d(4), "1d": lambda: BWHT1d(3, 5, stride=2)}


@pytest.fixture(autouse=True)
def _backend():
    before = kernels.get_backend()
    kernels.set_backend("auto")
    yield
    kernels.set_backend(before)


def tensors():
    return torch.randn(2, 3, 4, 4), torch.rand(4, 4), torch.randn(4, 4)


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        self.seen.append(str(function))
        return function(*arguments, **(keywords or {}))


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.seen.append(str(function))
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_plain_calls_are_direct(mode, monkeypatch):
    monkeypatch.setattr(operators, "fwht2d", None)
    monkeypatch.setattr(operators, "bwht1d", None)
    x, t, v = tensors()
    wanted = reference.fwht2d(x, t, v, Options())
    with mode():
        assert is_direct(x, t, v)
        assert is_direct(torch.empty(3), torch.nn.Parameter(t), None)
        torch.testing.assert_close(functional.fwht2d(x, t, v), wanted)
        with torch.autocast("cpu"):
            torch.testing.assert_close(functional.fwht2d(x, t, v), wanted)
        for make in LAYERS.values():
            y = make()(x)
            assert y.isfinite().all()
            assert y.is_inference() == (mode is torch.inference_mode)


@pytest.mark.parametrize("which", LAYERS)
def test_calls_in_inference_are_remembered(which, monkeypatch):
    layer, (x, *_) = LAYERS[which](), tensors()
    wanted = layer(x).detach()
    monkeypatch.setattr(dispatch, "_known", {})
    with torch.inference_mode():
        inputs = x, 2 * x - x  # an ordinary tensor, and one of inference
        for _ in range(2):
            for y in inputs:
                torch.testing.assert_close(layer(y), wanted)
            monkeypatch.setattr(kernels, "is_direct", None)  # not asked again
    with pytest.raises(TypeError, match="not callable"), torch.no_grad():
        layer(x)


@torch.no_grad()
def test_only_tensors_of_the_same_kind_are_known_again(monkeypatch):
    monkeypatch.setattr(dispatch, "_known", {})
    x, t, v = tensors()
    plain = functional.fwht2d(x, t, v)
    assert len(dispatch._known) == 1
    (key,) = dispatch._known
    assert remembered(key, (x, t, v)) is not None
    wide = torch.stack([v, v], dim=-1)[..., 0]  # with gaps
    negated = torch.imag(torch.complex(x, x).conj())
    for others in [
        (x.double(), t, v),
        (x.contiguous(memory_format=torch.channels_last), t, v),
        (x, t.double(), v),
        (x, t, wide),
        (x.to("meta"), t, v),
        (negated, t, v),
        (x, t, 2.0),
    ]:
        assert remembered(key, others) is None
    for mode in (Operators(), Functions(), FakeTensorMode(allow_non_fake_inputs=True)):
        with mode:
            assert remembered(key, (x, t, v)) is None
    with torch.enable_grad():
        assert remembered(key, (x, t.requires_grad_(), v)) is None
    t.requires_grad_(False)
    torch.testing.assert_close(functional.fwht2d(x, t, wide), plain)
    torch.testing.assert_close(functional.fwht2d(negated, t, v), functional.fwht2d(-x, t, v))
    layout = x.contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        for y in (layout, x):
            got = functional.fwht2d(y, t, v)
            assert got.stride() == y.stride()
            torch.testing.assert_close(got, plain)
    assert all(len(calls) <= dispatch._MOST_CALLS for calls in dispatch._known.values())


@torch.no_grad()
def test_what_is_remembered_does_not_grow(monkeypatch):
    monkeypatch.setattr(dispatch, "_known", {})
    monkeypatch.setattr(dispatch, "_MOST_KEYS", 3)
    _, t, v = tensors()
    for n in range(1, 9):
        x = torch.randn(n, 2, 4, 4)
        torch.testing.assert_close(functional.fwht2d(x, t, v), reference.fwht2d(x, t, v, Options()))
        assert len(dispatch._known) <= 3
    # One tensor in two places, which the guards do not take.
    torch.testing.assert_close(functional.fwht2d(x, t, t), reference.fwht2d(x, t, t, Options()))


@torch.no_grad()
def test_a_backend_that_is_chosen_meanwhile(monkeypatch):
    x, t, v = tensors()
    functional.fwht2d(x, t, v)
    monkeypatch.setattr(cpu, "run", None)
    monkeypatch.setattr(kernels, "_choice", "reference")
    torch.testing.assert_close(functional.fwht2d(x, t, v), reference.fwht2d(x, t, v, Options()))


@pytest.mark.parametrize("which", LAYERS)
def test_modes_see_the_operator(which):
    layer, (x, *_) = LAYERS[which](), tensors()
    wanted = layer(x)
    for mode in (Functions(), Operators()):
        with mode:
            torch.testing.assert_close(layer(x), wanted)
        assert any("whtnet" in name for name in mode.seen)
    with torch.no_grad(), Operators() as mode:
        torch.testing.assert_close(layer(x), wanted)
    assert any("whtnet" in name for name in mode.seen)
    with Operators() as mode:
        layer(x).sum().backward()
    assert sum("whtnet" in name and "backward" in name for name in mode.seen) == 1
    counter = FlopCounterMode(display=False)
    with counter:
        layer(x)
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("which", LAYERS)
def test_the_profiler_shows_the_operator(which):
    layer, (x, *_) = LAYERS[which](), tensors()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(x).sum().backward()
    names = {event.key for event in profile.key_averages()}
    name = {"2d": "whtnet::fwht2d", "1d": "whtnet::bwht1d"}[which]
    assert {name, f"{name}_backward"} <= names


@pytest.mark.parametrize("which", LAYERS)
def test_fake_tensors(which):
    layer, (x, *_) = LAYERS[which](), tensors()
    wanted = layer(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = layer(mode.from_tensor(x))
        assert type(y).__name__ == "FakeTensor"
        assert (y.shape, y.stride(), y.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)
    x = mode.from_tensor(x)
    assert not is_direct(x, layer.threshold, layer.weight)
    assert not is_direct(torch.empty(2, 3, 4, 4), mode.from_tensor(torch.rand(4, 4)), None)


def test_a_mode_that_is_active_at_import_is_not_taken_for_ordinary():
    code = """
import torch
from torch._subclasses import FakeTensorMode
x = torch.ones(2, 2)
with FakeTensorMode(allow_non_fake_inputs=True):
    from whtnet.kernels.dispatch import is_direct
    assert not is_direct(x, x, None)
assert is_direct(x, x, None)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensors_that_only_the_dispatcher_understands():
    x, t, v = tensors()
    negated = torch.imag(torch.complex(x, x).conj())
    assert negated.is_neg()
    torch.testing.assert_close(functional.fwht2d(negated, t, v), functional.fwht2d(-x, t, v))
    v_negated = torch.imag(torch.complex(v, v).conj())
    torch.testing.assert_close(functional.fwht2d(x, t, v_negated), functional.fwht2d(x, t, -v))
    zeros = torch._efficientzerotensor(x.shape)
    torch.testing.assert_close(functional.fwht2d(zeros, t, v), torch.zeros_like(x))
    zeros = torch._efficientzerotensor(t.shape)
    torch.testing.assert_close(functional.fwht2d(x, zeros, v), functional.fwht2d(x, torch.zeros_like(t), v))

    class Named(torch.Tensor):
        pass

    assert not is_direct(x.as_subclass(Named), t, v)
    assert type(functional.fwht2d(x.as_subclass(Named), t, v)) is Named
    assert not is_direct(x, t, v.to("meta"))


@pytest.mark.filterwarnings(
    "ignore:Converting a tensor:torch.jit.TracerWarning", "ignore:.*is deprecated:FutureWarning"
)
@pytest.mark.parametrize("which", LAYERS)
def test_transforms_of_functions_and_tracers(which):
    layer, (x, *_) = LAYERS[which](), tensors()
    wanted = layer(x)
    torch.testing.assert_close(torch.func.functionalize(layer)(x), wanted)
    parameters = dict(layer.named_parameters())
    stacked = {name: torch.stack([p, 2 * p]) for name, p in parameters.items()}
    double = {name: 2 * p for name, p in parameters.items()}
    results = torch.func.vmap(lambda p: torch.func.functional_call(layer, p, (x,)))(stacked)
    torch.testing.assert_close(results[0], wanted)
    torch.testing.assert_close(results[1], torch.func.functional_call(layer, double, (x,)))
    traced = torch.jit.trace(layer, (x,))
    torch.testing.assert_close(traced(2 * x), layer(2 * x))
    graph = torch.fx.experimental.proxy_tensor.make_fx(layer)(x)
    assert any("whtnet" in str(node.target) for node in graph.graph.nodes)
    torch.testing.assert_close(graph(2 * x), layer(2 * x))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent is not None


@pytest.mark.parametrize("which", LAYERS)
def test_the_graph_is_that_of_the_operator(which):
    layer, (x, *_) = LAYERS[which](), tensors()
    x.requires_grad_()
    inputs = [x, *layer.parameters()]

    def run():
        y = layer(x)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        return y, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    direct = run()
    with Functions():
        torch.testing.assert_close(run(), direct)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: (saved.append(v), v)[1], lambda v: v):
        layer(x)
    assert len(saved) == len(inputs)
    assert not layer(x.detach()).is_leaf
    layer.requires_grad_(False)
    assert not records_graph(x.detach(), layer.threshold, layer.weight)
    assert not layer(x.detach()).requires_grad
    assert layer(x).requires_grad
    with torch._C._AutoDispatchBelowAutograd():  # as in the implementation of another operator
        assert not records_graph(x, layer.threshold, layer.weight)
        assert layer(x).grad_fn is None


def test_parameters_of_a_low_precision_module():
    x, t, v = (value.bfloat16() for value in tensors())
    torch.testing.assert_close(functional.fwht2d(x, t, v), functional.fwht2d(x, t.float(), v.float()))


def test_parameters_that_something_else_computes():
    x, t, _ = tensors()
    for make, value in ((lambda: FWHT2d(4), t), (lambda: BWHT1d(3, 4), torch.rand(1, 4))):
        layer = make()
        torch.nn.utils.parametrize.register_parametrization(layer, "threshold", torch.nn.Softplus())
        with torch.no_grad():
            layer.parametrizations.threshold.original.copy_(value)
        plain = make()
        plain.load_state_dict({"threshold": torch.nn.functional.softplus(value)}, strict=False)
        torch.testing.assert_close(layer(x), plain(x))
