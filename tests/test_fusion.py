"""Batch norms in what stands before them: the same results, in fewer calls."""

import copy
import io
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from whtnet import BWHT1d, FWHT2d, HTPerceptron2d, apply_policy_, fuse_for_inference
from whtnet.backbones import build_backbone
from whtnet.fusion import FinishedLayer, FusionError
from whtnet.kernels import cpu

SIDE = 32
NETWORKS = [  # backbone, policy, finished layers, those with a residual, batch norms that stay
    ({"name": "resnet20"}, "paper", 9, 9, 0),
    ({"name": "resnet20", "form": "no_bias"}, "ht2023/1path", 9, 9, 0),
    ({"name": "resnet20", "form": "no_bias"}, "ht2023/3path", 9, 9, 0),
    ({"name": "mobilenet_v2", "stem": "cifar"}, "paper", 12, 3, 0),
    ({"name": "mobilenet_v2", "stem": "cifar", "source": "timm"}, "paper", 12, 3, 0),
    ({"name": "mobilenet_v3_large", "stem": "cifar"}, "paper", 11, 3, 0),
    ({"name": "resnet18", "stem": "cifar", "source": "timm"}, "paper", 9, 8, 0),
]


def trained(model, side=SIDE):
    """``model`` with statistics and parameters as if it were trained."""
    model.train()
    with torch.no_grad():
        model(torch.randn(8, 3, side, side))
    for norm in norms(model):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.2)
    return model.eval()


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def finished(model):
    return [m for m in model.modules() if isinstance(m, FinishedLayer)]


def fused_equally(model, x):
    """The fused model, which was compared with ``model``."""
    fused = fuse_for_inference(model.eval())
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            wanted = model(x)
            torch.testing.assert_close(fused(x), wanted, atol=1e-5 * max(1, wanted.abs().max().item()), rtol=0)
    return fused


def resnet20():
    model = build_backbone("resnet20")
    apply_policy_(model, "paper")
    return trained(model)


@pytest.mark.parametrize(("backbone", "policy", "layers", "residuals", "stay"), NETWORKS, ids=str)
def test_networks_compute_the_same(backbone, policy, layers, residuals, stay):
    torch.manual_seed(0)
    model = build_backbone(**backbone)
    apply_policy_(model, policy, (3, SIDE, SIDE))
    trained(model)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    fused = fused_equally(model, x)
    assert (len(finished(fused)), len(norms(fused))) == (layers, stay)
    calls = [node for node in fused.graph.nodes if isinstance(fused_module(fused, node), FinishedLayer)]
    assert sum(len(node.args) == 2 for node in calls) == residuals
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def fused_module(network, node):
    return network.get_submodule(node.target) if node.op == "call_module" else None


@pytest.mark.skipif(not cpu.available(), reason="no compiler, no kernel")
def test_the_kernel_does_what_follows(monkeypatch):
    model, x = resnet20(), torch.randn(2, 3, SIDE, SIDE)
    fused = fuse_for_inference(model)
    for name in ("whtnet.kernels.reference.finish", "whtnet.kernels.cpu.finish"):
        monkeypatch.setattr(name, None)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), atol=1e-4, rtol=1e-5)


def test_other_precisions():
    model, x = resnet20(), torch.randn(2, 3, SIDE, SIDE)
    fused = fuse_for_inference(model)
    with torch.inference_mode():
        wanted = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(fused(x).float(), wanted, atol=0.05 * wanted.abs().max().item(), rtol=0)
        double = fuse_for_inference(copy.deepcopy(model).double())
        torch.testing.assert_close(double(x.double()), model.double()(x.double()), atol=1e-9, rtol=1e-9)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own
def test_compiled_exported_copied_and_kept():
    model, x = resnet20(), torch.randn(2, 3, SIDE, SIDE)
    fused = fuse_for_inference(model)
    with torch.no_grad():
        wanted = fused(x)
        stream = io.BytesIO()
        torch.save(fused, stream)
        stream.seek(0)
        exported = torch.export.export(fused, (x,)).module()
        others = exported, copy.deepcopy(fused), torch.load(stream, weights_only=False), torch.compile(fused)
        for other in others:
            torch.testing.assert_close(other(x), wanted, atol=1e-4, rtol=1e-5)
        another = fuse_for_inference(resnet20())
        another.load_state_dict(fused.state_dict())
        assert torch.equal(another(x), wanted)
        again = fuse_for_inference(fused)
        assert torch.equal(again(x), wanted)
    assert set(fused.state_dict()) != set(model.state_dict())


class Net(nn.Module):
    """A layer, a batch norm, and what a test says of both."""

    def __init__(self, layer, use, channels=4):
        super().__init__()
        self.layer, self.norm, self.use, self.relu = layer, nn.BatchNorm2d(channels), use, nn.ReLU()
        self.drop = nn.Dropout(0.5)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x):
        return self.use(self, x)


def added(net, x):
    return net.norm(net.layer(x)) + x


def added_in_place(net, x):
    y = net.norm(net.layer(x))
    y += x
    return net.relu(y)


def added_into_the_input(net, x):
    x = x * 1
    x += net.norm(net.layer(x))
    return x * 2


def input_changed_meanwhile(net, x):
    x = x * 1
    y = net.norm(net.layer(x))
    return y + x.relu_()


def input_changed_before_relu(net, x):
    x = x * 1
    y = net.norm(net.layer(x))
    z = x.relu_()
    return net.relu(y) + z


def dropped(net, x):
    return net.drop(net.relu(net.drop(net.norm(net.layer(x)))))


def broadcast(net, x):
    return net.norm(net.layer(x)) + x.mean((2, 3), keepdim=True)


def larger(net, x):
    return net.norm(net.layer(x)) + torch.stack([x, x])


def with_a_number(net, x):
    return net.norm(net.layer(x)) + x.shape[0]


def with_itself(net, x):
    y = net.norm(net.layer(x))
    return y + y


def scaled_sum(net, x):
    return torch.add(net.norm(net.layer(x)), x, alpha=2)


USES = {
    use: number_of_inputs  # of the finished layer
    for use, number_of_inputs in [
        *((added, 2), (added_in_place, 2), (added_into_the_input, 2), (input_changed_meanwhile, 1)),
        *(
            (input_changed_before_relu, 1),
            (dropped, 1),
            (broadcast, 1),
            (larger, 1),
            (with_a_number, 1),
            (with_itself, 1),
            (scaled_sum, 1),
        ),
    ]
}


LAYERS = [
    partial(FWHT2d, 4),
    partial(FWHT2d, 4, residual=True),
    partial(HTPerceptron2d, 4, 4, 4),
    partial(HTPerceptron2d, 4, 4, 4, paths=3, residual=True),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer()))
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_what_follows(use, layer):
    torch.manual_seed(0)
    model, x = Net(layer(), use), torch.randn(3, 4, 4, 4)
    fused = fused_equally(model, x)
    (call,) = (node for node in fused.graph.nodes if isinstance(fused_module(fused, node), FinishedLayer))
    assert len(call.args) == USES[use]
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.Dropout)) for m in fused.modules())


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer()))
def test_layers_in_low_precision(layer):
    torch.manual_seed(0)
    model, x = Net(layer(), added).bfloat16().eval(), torch.randn(3, 4, 4, 4).bfloat16()
    fused = fuse_for_inference(model)
    with torch.inference_mode():
        wanted = model(x)
        torch.testing.assert_close(fused(x), wanted, atol=0.05 * wanted.abs().max().item(), rtol=0)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer()))
def test_residuals_of_other_shapes_reach_the_layer(layer):
    # Where nothing else takes the layer's input, what is added is not looked at before it is there.
    class Two(nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.layer, self.norm, self.shift = layer(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
            self.other = nn.Parameter(torch.randn(shape))

        def forward(self, x):
            return self.norm(self.layer(self.shift(x))) + self.other

    for shape in [(4, 4, 4), (1, 4, 1, 1), (2, 3, 4, 4, 4), (3, 4, 4, 4)]:
        fused = fused_equally(Two(shape), torch.randn(3, 4, 4, 4))
        assert len(finished(fused)) == 1


@pytest.mark.parametrize(
    "layer",
    [
        FWHT2d(4, stride=2),
        BWHT1d(4, 4, block_size=2, blocks="separate", interleave=True),
        nn.Sequential(FWHT2d(4), nn.ReLU()),
    ],
    ids=str,
)
def test_batch_norms_that_stay(layer):
    fused = fused_equally(Net(layer, lambda net, x: net.norm(net.layer(x))), torch.randn(3, 4, 4, 4))
    assert len(norms(fused)) == 1


def test_layers_that_are_used_twice_stay():
    for layer in (FWHT2d(4), nn.Conv2d(4, 4, 1)):
        for use in (
            lambda net, x: net.norm(net.layer(net.norm(net.layer(x)))),
            lambda net, x: [y := net.layer(x), net.norm(y) * y][1],
        ):
            assert len(norms(fused_equally(Net(layer, use), torch.randn(3, 4, 4, 4)))) == 1


def test_batch_norms_without_parameters():
    model = Net(FWHT2d(4), added)
    model.norm = nn.BatchNorm2d(4, affine=False)
    nn.init.normal_(model.norm.running_mean)
    assert not norms(fused_equally(model, torch.randn(3, 4, 4, 4)))
    model.norm = nn.BatchNorm2d(4, track_running_stats=False)
    assert norms(fused_equally(model, torch.randn(3, 4, 4, 4)))


def test_other_numbers_of_dimensions():
    for norm, shape in (
        (nn.BatchNorm1d(8), (5, 4)),
        (nn.BatchNorm1d(8), (5, 4, 3)),
        (nn.BatchNorm3d(8), (5, 4, 3, 2, 2)),
    ):
        model = Net(BWHT1d(4, 8, stride=2), dropped)
        model.norm = norm
        nn.init.normal_(norm.running_mean)
        assert not norms(fused_equally(model, torch.randn(shape)))


def test_errors():
    model = resnet20()
    with pytest.raises(FusionError, match=r"call model\.eval\(\)"):
        fuse_for_inference(model.train())
    untraceable = Net(FWHT2d(4), lambda net, x: x if x.sum() > 0 else net.norm(x)).eval()
    with pytest.raises(FusionError, match="can't trace Net"):
        fuse_for_inference(untraceable)
    fused = fuse_for_inference(Net(FWHT2d(4), added).eval())
    with pytest.raises(ValueError, match=r"takes \(N, 4, H, W\), got shape \(3, 5, 4, 4\)"):
        fused(torch.randn(3, 5, 4, 4))
    with pytest.raises(ValueError, match="built for 4×4 maps"):
        fused(torch.randn(3, 4, 8, 8))


def small_network():
    """Convolution → norm → ReLU → layer → norm → ReLU, as if trained."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), FWHT2d(8), nn.BatchNorm2d(3), nn.ReLU()]
    return trained(nn.Sequential(*parts), side=8)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("hooked", range(6))
def test_hooks_run_once_where_they_are(hooked, before):
    model, x = small_network(), torch.randn(2, 3, 8, 8)
    if before:
        model[hooked].register_forward_pre_hook(lambda _, inputs: (2 * inputs[0] + 0.3,))
    else:
        model[hooked].register_forward_hook(lambda _, __, output: 2 * output + 0.3)
    fused_equally(model, x)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("pruned", [0, 3])
def test_pruned_modules(pruned):
    model, name = small_network(), "weight"
    prune.random_unstructured(model[pruned], name, 0.5)
    x = torch.randn(2, 3, 8, 8)
    model(x)  # with gradients
    with pytest.raises(FusionError, match=r"can't be copied.*prune\.remove\(module, name\) makes it a parameter"):
        fuse_for_inference(model)
    with torch.no_grad():
        wanted = model(x)
        torch.testing.assert_close(fuse_for_inference(model)(x), wanted, atol=1e-5, rtol=0)
        prune.remove(model[pruned], name)
        fused = fuse_for_inference(model)
        torch.testing.assert_close(fused(x), wanted, atol=1e-5, rtol=0)
    assert not norms(fused)


def test_hooks_of_a_layer_that_is_called_by_keyword_run_once():
    model = Net(FWHT2d(4), lambda net, x: net.norm(net.layer(x=x))).eval()
    model.layer.register_forward_hook(lambda _, __, output: 2 * output + 0.3)
    x = torch.randn(3, 4, 4, 4)
    fused_equally(model, x)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


def changed_between(net, x):
    residual = 2 * x
    total = net.norm(net.layer(x)) + residual
    residual.zero_()
    return net.relu(total)


@pytest.mark.parametrize(
    "use",
    [
        lambda net, x: net.relu(input=net.norm(input=net.layer(x=x))),
        lambda net, x: net.add(net.norm(net.layer(x)), x),  # a module of this name, no sum
        changed_between,
    ],
)
def test_other_ways_to_write_a_network(use):
    model = Net(FWHT2d(4), use)
    model.add = nn.Bilinear(4, 4, 4)
    fused_equally(model, torch.randn(3, 4, 4, 4))


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d(4), (2, 4, 8)), (nn.BatchNorm3d(3), (2, 3, 4, 8, 8))])
def test_norms_of_other_channels_than_the_layers(norm, shape):
    model, x = nn.Sequential(FWHT2d((shape[1], 8) if len(shape) == 3 else 8), norm), torch.randn(shape)
    model(x)
    fused_equally(model, x)


def test_a_layer_before_pooling_leaves_the_mode_alone():
    model = build_backbone("resnet20").eval()
    apply_policy_(model, "gap")
    assert not any(module.training for module in model.modules())
