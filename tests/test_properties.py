"""What holds for any shape, any policy and any setting, on examples that hypothesis chooses."""

import contextlib
import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_checks import reference_bwht1d, reference_fwht2d

from whtnet import BWHT1d, FWHT2d, Policy, apply_policy_, fwht
from whtnet.backbones import CifarResNet
from whtnet.engine import TrainConfig
from whtnet.engine.optimisation import learning_rate, make_optimizer, make_schedule
from whtnet.finetune import FineTuneConfig
from whtnet.functional import NORMS
from whtnet.policy import PolicyError
from whtnet.policy.rules import SITE_KINDS
from whtnet.settings import ConfigError
from whtnet.thresholds import THRESHOLDS

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
THRESHOLDING = st.fixed_dictionaries(
    {
        "threshold": st.sampled_from(sorted(THRESHOLDS)),
        "clamp": st.booleans(),
        "keep_dc": st.booleans(),
        "norm": st.sampled_from(sorted(NORMS)),
    }
)
SEEDS = st.integers(0, 2**31)


def options_of(layer):
    return {"kind": layer.threshold_kind, "clamp": layer.clamp, "keep_dc": layer.keep_dc, "norm": layer.norm}


@QUICK
@given(st.integers(0, 10), st.integers(1, 3), SEEDS)
def test_the_transform_is_orthogonal_and_its_own_inverse(log2, rows, seed):
    x = torch.randn(rows, 2**log2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(fwht(fwht(x)), x)
    torch.testing.assert_close(fwht(x).norm(dim=-1), x.norm(dim=-1))


@QUICK
@given(st.floats(-50, 50), st.floats(0, 10), st.sampled_from(sorted(THRESHOLDS)))
def test_thresholding_shrinks_and_is_odd(x, t, kind):
    x, t = torch.tensor(x, dtype=torch.float64), torch.tensor(t, dtype=torch.float64)
    y = THRESHOLDS[kind](x, t)
    assert y.abs() <= x.abs()
    assert (y == 0) == (x.abs() <= t) or kind == "smooth"
    torch.testing.assert_close(THRESHOLDS[kind](-x, t), -y)


@QUICK
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([None, 1, 2, 4, 8, 16, 32]),
    st.integers(1, 3),
    st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 5)),
    THRESHOLDING,
    SEEDS,
)
def test_a_1d_layer_of_any_shape_agrees_with_the_reference(c_in, c_out, block, stride, sizes, options, seed):
    torch.manual_seed(seed)
    n, h, w = sizes
    layer = BWHT1d(c_in, c_out, block_size=block, blocks="separate", stride=stride, **options).double()
    x = torch.randn(n, c_in, h, w, dtype=torch.float64)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        y = layer(x.contiguous(memory_format=memory_format))
        assert y.shape == (n, c_out, -(-h // stride), -(-w // stride))
        torch.testing.assert_close(y, reference_bwht1d(x, layer.threshold, c_out, stride=stride, **options_of(layer)))


@QUICK
@given(st.tuples(*[st.integers(1, 20)] * 2), st.integers(0, 3), st.integers(1, 4), st.booleans(), THRESHOLDING, SEEDS)
def test_a_2d_layer_of_any_shape_agrees_with_the_reference(size, n, c, weight, options, seed):
    torch.manual_seed(seed)
    layer = FWHT2d(size, weight=weight, **options).double()
    x = torch.randn(n, c, *size, dtype=torch.float64)
    y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y, reference_fwht2d(x, layer.threshold, layer.weight, **options_of(layer)))


# --- Whatever is in a configuration, the outcome is a value or an error that a user can read ---

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 500) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(sorted(TrainConfig.__dataclass_fields__)), JUNK, max_size=2))
def test_any_trainer_settings(data):
    with contextlib.suppress(ConfigError):
        config = TrainConfig.from_dict(data)
        optimizer = make_optimizer(torch.nn.Linear(2, 2), config)
        make_schedule(config, optimizer, 10).step_update(0)
        assert learning_rate(optimizer) > 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(sorted(FineTuneConfig.__dataclass_fields__)), JUNK, max_size=2))
def test_any_finetune_settings(data):
    with contextlib.suppress(ConfigError):
        assert FineTuneConfig.from_dict(data).stages >= 1


WHERE = st.dictionaries(
    st.sampled_from(["name", "part", "blocks", "stages", "nth", "stride", "colour"]),
    JUNK | st.sampled_from(["blocks", "last 1/3", "1-4", "head", [1], [-1], 1, -1]),
    max_size=2,
)
RULE = st.fixed_dictionaries(
    {"match": st.sampled_from([*SITE_KINDS, "pool"]), "replace": st.sampled_from(["FWHT2d", "BWHT1d", "keep", "Conv"])},
    optional={"where": WHERE, "options": st.dictionaries(st.sampled_from(["block_size", "weight", "x"]), JUNK)},
)
NETWORK = CifarResNet(8)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(JUNK | st.fixed_dictionaries({"rules": JUNK | st.lists(RULE, max_size=3)}, optional={"options": JUNK}))
def test_any_policy(data):
    model = copy.deepcopy(NETWORK)
    try:
        policy = Policy.from_dict(data)
        report = apply_policy_(model, policy, (3, 8, 8))
    except PolicyError:
        assert [n for n, _ in model.named_modules()] == [n for n, _ in NETWORK.named_modules()]
    else:
        assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
        assert len(report.replacements) >= 0
