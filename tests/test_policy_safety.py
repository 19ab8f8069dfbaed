"""`apply_policy_` is all or nothing, and what it can't change rightly it refuses, naming the site and the remedy."""

import copy
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, weight_norm

from whtnet import BWHT1d, FWHT2d, apply_policy_
from whtnet.backbones import build_backbone
from whtnet.policy import PolicyError, apply

SIZE = (3, 16, 16)
BOTH = {
    "name": "both",
    "rules": [
        {"match": "conv3x3", "where": {"name": "second"}, "replace": "FWHT2d"},
        {"match": "conv1x1", "where": {"name": "third"}, "replace": "BWHT1d"},
        {"match": "before_gap", "replace": "PreGAPFWHT2d"},
    ],
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 8, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.third(F.relu(self.second(self.norm(self.first(x)))))
        return self.fc(self.pool(x).flatten(1))


def state_of(model):
    """All that could be changed, and the random states."""
    modules = [(name, id(m), m.training, list(m._forward_hooks), list(m._modules)) for name, m in model.named_modules()]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    held = [(name, id(t), t.requires_grad, t._version, t.detach().clone()) for name, t in tensors]
    return modules, held, (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())


def assert_same(before, after):
    assert before[0] == after[0]
    assert [h[:4] for h in before[1]] == [h[:4] for h in after[1]]
    assert all(torch.equal(a[4], b[4]) for a, b in zip(before[1], after[1], strict=True))
    assert before[2] == after[2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
@pytest.mark.parametrize(
    ("step", "call"),
    [
        ("find_sites", 1),
        ("choose_sites", 1),
        ("check_sites", 1),
        ("build_layer", 1),
        ("build_layer", 3),
        ("meta_probe", 1),
        ("count_cost", 1),
        ("_put", 2),  # in the copy
        ("_put", 4),  # in the model
        ("_put", 6),
        ("count_parameters", 1),
        ("Report", 1),
    ],
)
def test_after_any_error_the_model_is_as_it_was(monkeypatch, step, call, error):
    model = Net()
    model.first.weight.requires_grad_(False)
    model.norm.eval()
    model.register_forward_hook(lambda *_: None)
    before, whole, calls = state_of(model), getattr(apply, step), []

    def failing(*arguments, **keywords):
        calls.append(step)
        random.random(), np.random.rand(), torch.rand(1)  # as layers draw their initial values
        result = whole(*arguments, **keywords)
        if len(calls) == call:
            raise error("injected")
        return result

    monkeypatch.setattr(apply, step, failing)
    with pytest.raises((error, PolicyError), match="injected"):
        apply_policy_(model, BOTH, SIZE)
    assert len(calls) >= call
    assert_same(before, state_of(model))
    monkeypatch.undo()
    assert len(apply_policy_(model, BOTH, SIZE).replacements) == 3  # the same model can be changed then


def test_random_numbers_are_drawn_by_the_layers_alone():
    torch.manual_seed(0)
    layer = FWHT2d(16)
    expected = layer.threshold, torch.rand(1)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    torch.manual_seed(0)
    apply_policy_(model, {"rules": [{"match": "conv3x3", "replace": "FWHT2d"}]}, SIZE)
    assert torch.equal(model[0].threshold, expected[0])
    assert torch.equal(torch.rand(1), expected[1])


# --- Kinds of models and convolutions ---


class Listed(Net):
    """Calls a convolution by a list of its own."""

    def __init__(self):
        super().__init__()
        self.order = [self.first, self.norm, self.second, self.third]

    def forward(self, x):
        for module in self.order:
            x = module(x)
        return self.fc(self.pool(x).flatten(1))


class Weighted(Net):
    """Uses a convolution's weight besides calling it."""

    def forward(self, x):
        x = self.second(F.conv2d(self.norm(self.first(x)), self.second.weight, padding=1))
        return self.fc(self.pool(self.third(x)).flatten(1))


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.other.weight = self.second.weight

    def forward(self, x):
        return super().forward(x) + self.other(torch.ones(1, 4, 8, 8, device=x.device)).mean()


class ConvAndNorm(nn.Conv2d):
    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, x):
        return self.norm(super().forward(x))


def with_second(conv):
    model = Net()
    model.second = conv
    return model


def scripted():
    return torch.jit.script(Net())


class FSDPModule(nn.Module):
    """As PyTorch mixes it into what it shards."""


class FSDPNet(FSDPModule, Net):
    pass


def wrapped(wrapper):
    return lambda: wrapper(Net())


def quantized():
    model = Net().eval()
    model.qconfig = torch.ao.quantization.default_qconfig
    model.second.qconfig = None
    return torch.ao.quantization.convert(torch.ao.quantization.prepare(model))


def prepared():
    model = Net().train()
    model.qconfig = torch.ao.quantization.default_qat_qconfig
    return torch.ao.quantization.prepare_qat(model)


def lazy():
    return with_second(nn.LazyConv2d(4, 3, padding=1))


def locked():
    model = Net()
    model.lock = threading.Lock()
    return model


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of what it will remove
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Listed, [r"second \(FWHT2d\), third \(BWHT1d\)", "does not call", "a list that holds it"]),
        (Weighted, [r"^second \(FWHT2d\): ", "does not run any more", "its weight"]),
        (Tied, ["second shares a parameter with other", "keep"]),
        (lambda: with_second(ConvAndNorm(4, 4, 3, padding=1)), ["second is a ConvAndNorm", "norm of its own", "keep"]),
        (scripted, ["RecursiveScriptModule", "before it is scripted"]),
        (wrapped(nn.DataParallel), ["DataParallel", r"to its \.module"]),
        (wrapped(torch.compile), ["OptimizedModule", r"_orig_mod"]),
        (FSDPNet, ["FSDPNet", "before fully_shard"]),
        (quantized, [r"first \(Conv2d\) is quantized", "before"]),
        (prepared, [r"first \(Conv2d\) is quantized", "before"]),
        (lazy, [r"second \(LazyConv2d\) has no parameters yet", "run the model once"]),
        (locked, ["Net", "can't be copied", "lock"]),
    ],
)
def test_what_can_not_be_changed_rightly_is_refused(make, words):
    model = make()
    modules = [(name, id(module)) for name, module in model.named_modules()]
    with pytest.raises(PolicyError) as raised:
        apply_policy_(model, BOTH, SIZE)
    for word in words:
        assert raised.match(word)
    assert "\n" not in str(raised.value)
    assert [(name, id(module)) for name, module in model.named_modules()] == modules


def pruned(conv):
    prune.l1_unstructured(conv, "weight", amount=0.5)
    return conv


class Subclass(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
        lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)),
        lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
        lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)),
        lambda: pruned(nn.Conv2d(4, 4, 3, padding=1)),
        lambda: Subclass(4, 4, 3),
        lambda: nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect"),
    ],
    ids=["old weight_norm", "old spectral_norm", "weight_norm", "spectral_norm", "pruned", "subclass", "reflect"],
)
def test_convolutions_of_every_kind_are_replaced_whole(make):
    model = with_second(make())
    trainable = sum(p.numel() for p in model.parameters())
    gone = sum(p.numel() for p in model.second.parameters())
    report = apply_policy_(model, BOTH, SIZE)
    assert isinstance(model.second, FWHT2d)
    site = report.replacements[0]
    assert (site.parameters_before, site.parameters_after, report.before.parameters) == (gone, 512, trainable)
    assert report.after.parameters == sum(p.numel() for p in model.parameters())
    model(torch.randn(2, *SIZE)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("wrap", [weight_norm, parametrizations.spectral_norm, pruned])
def test_what_is_kept_stays_reparametrised(wrap):
    model = Net()
    wrap(model.first)
    wrap(model.fc)
    names, x = {name for name, _ in model.first.named_parameters()}, torch.randn(2, *SIZE)
    apply_policy_(model, BOTH, SIZE)
    assert {name for name, _ in model.first.named_parameters()} == names != {"weight", "bias"}
    assert not model.eval()(x).isnan().any()
    assert model.first._forward_pre_hooks or hasattr(model.first, "parametrizations")


class Held(nn.Module):
    """Modules in containers of every kind, one of them twice."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)])
        self.heads = nn.ModuleDict({"wide": nn.Sequential(nn.Conv2d(4, 8, 1)), "again": self.stages[1]})

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return self.heads["wide"](self.heads["again"](x)).mean((2, 3))


def test_containers_and_a_convolution_used_twice():
    model = Held()
    rules = [
        {"match": "conv3x3", "where": {"name": r"stages\.1"}, "replace": "FWHT2d"},
        {"match": "conv1x1", "replace": "BWHT1d"},
    ]
    report = apply_policy_(model, {"rules": rules}, SIZE)
    assert [r.name for r in report.replacements] == ["stages.1", "heads.wide.0"]
    assert model.stages[1] is model.heads["again"]
    assert isinstance(model.heads["again"], FWHT2d)
    assert report.after.wht_additions == 2 * 2 * 4 * 256 * 8 + 256 * 2 * 8 * 3  # it runs twice
    assert report.before.macs == 256 * (3 * 4 * 9 + 2 * 4 * 4 * 9 + 4 * 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_every_precision(dtype):
    model = Net().to(dtype)
    apply_policy_(model, BOTH, SIZE)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.eval()(torch.randn(2, *SIZE, dtype=dtype)).dtype == dtype


def test_a_model_without_parameters_gets_layers_too():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    report = apply_policy_(model, "gap", SIZE)
    assert report.before.parameters == 0 < report.after.parameters
    assert model(torch.randn(2, *SIZE)).shape == (2, 3)


def test_a_model_without_data_gets_layers_without_data():
    with torch.device("meta"):
        model = Net()
    apply_policy_(model, BOTH, SIZE)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    model = model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert isinstance(model.third, BWHT1d)
    assert model(torch.randn(2, *SIZE)).isfinite().all()


def test_hooks_neither_run_nor_are_copied():
    model, lock, calls = Net(), threading.Lock(), []

    class Watcher:
        def __init__(self):
            self.lock = lock  # can't be copied

        def __call__(self, *_):
            calls.append(1)

    model.register_forward_hook(Watcher())
    model.second.register_forward_pre_hook(Watcher())
    apply_policy_(model, BOTH, SIZE)
    assert not calls
    model(torch.randn(2, *SIZE))
    assert len(calls) == 1  # the model's own; the other one went with its convolution


def test_a_model_compiled_in_place_runs_the_layers():
    model = Net().eval()
    model.compile(backend="eager")
    x = torch.randn(2, *SIZE)
    model(x)
    apply_policy_(model, BOTH, SIZE)
    plain = copy.deepcopy(model)
    plain._compiled_call_impl = None
    torch.testing.assert_close(model(x), plain(x))


def test_inference_mode_counts_the_same():
    counts = []
    for mode in (False, True):
        with torch.inference_mode(mode):
            counts.append(apply_policy_(build_backbone("mobilenet_v2"), "paper", (3, 32, 32)))
    assert str(counts[0]) == str(counts[1])


@pytest.mark.parametrize("size", [32, (32, 32), (3, 0, 32), ("3", "32", "32"), None])
def test_a_size_that_is_none_is_told_as_that(size):
    with pytest.raises(PolicyError, match=r"input_size is \(C, H, W\) of one image"):
        apply_policy_(Net(), BOTH, size)


def test_a_model_that_is_nothing_but_a_site_has_no_place_for_a_layer():
    with pytest.raises(PolicyError, match="the model is nothing but a conv1x1"):
        apply_policy_(nn.Conv2d(4, 4, 1), "conv1x1", (4, 8, 8))
