"""Layers at sites: strided and channel-changing 3×3 convolutions, and controls in their place."""

import copy

import pytest
import references
import torch
from torch import nn

from whtnet import BWHT1d, FWHT2d, SeparableFWHT2d, apply_policy_, load_policy, spectral_parameter_names
from whtnet.backbones import build_backbone
from whtnet.controls import CropOrTile
from whtnet.policy import Policy, PolicyError, canonical_policy, explicit_policy, find_sites, fit_layers_


def one_rule(match, replace, where=None, **options):
    return {"name": "test", "rules": [{"match": match, "replace": replace, "where": where or {}, "options": options}]}


ALL_3X3 = [f"layer{stage}.{block}.conv{nth}" for stage in (1, 2, 3) for block in range(3) for nth in (1, 2)]


def test_every_3x3_convolution_of_resnet20_but_the_stem():
    model = build_backbone("resnet20")
    report = apply_policy_(model, "conv3x3_all")
    assert [site.name for site in report.replacements] == ALL_3X3
    # 2·h·w for each map going in; 2·B for the two layers that change the channels, B = C_in = 16 and 32.
    maps = 7 * 2 * 32 * 32 + 6 * 2 * 16 * 16 + 5 * 2 * 8 * 8
    dense = 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64
    biases = 6 * 16 + 6 * 32 + 6 * 64
    assert report.after.parameters == 273_066 - 9 * dense - biases + maps + 2 * 16 + 2 * 32 == 23_274
    strided = model.layer2[0].conv1
    assert (strided.channels.block_size, strided.maps.size, strided.maps.stride) == (16, (32, 32), 2)
    assert isinstance(model.layer2[0].conv2.channels, nn.Identity)
    x = torch.randn(2, 3, 32, 32)
    loss = model(x).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_resnet18_too():
    model = build_backbone("resnet18", stem="cifar")
    assert len(apply_policy_(model, "conv3x3_all", (3, 32, 32)).replacements) == 16
    assert model.layer3[0].conv1.maps.size == (16, 16)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("size", "stride", "block"), [(8, 2, 8), ((6, 7), 2, 4), (8, 1, 8), (9, 3, None)])
def test_channels_then_maps_then_means(size, stride, block):
    layer = SeparableFWHT2d(8, 24, size, stride=stride, block_size=block, weight=True).double()
    height, width = layer.maps.size
    x = torch.randn(2, 8, height, width, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-0.1, 0.5)
    t, v = layer.channels.threshold, layer.channels.weight
    channels = (
        references.bwht1d if block is None else lambda x, t, c_out, _, v: references.released_bwht1d(x, t, v, c_out)
    )
    mixed = channels(x, t, 24, layer.channels.block_size, v)
    full = references.fwht2d(mixed, layer.maps.threshold, layer.maps.weight)
    expected = references.average_pool(full, stride)
    torch.testing.assert_close(layer(x), expected)
    assert torch.autograd.gradcheck(layer, x.requires_grad_())


def test_without_a_change_it_is_the_2d_layer():
    layer, plain = SeparableFWHT2d(8, 8, 4, residual=True), FWHT2d(4, residual=True)
    plain.load_state_dict(layer.maps.state_dict())
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(layer(x), plain(x), atol=0, rtol=0)
    assert spectral_parameter_names(layer) == {"maps.threshold", "maps.weight"}
    assert not SeparableFWHT2d(8, 8, 4, stride=2, residual=True).maps.residual
    bare = SeparableFWHT2d(8, 16, 4, block_size=8, weight=False)
    assert (bare.channels.weight, bare.maps.weight) == (None, None)


class Odd(nn.Module):
    """Convolutions that differ from a layer in one thing each."""

    def __init__(self):
        super().__init__()
        self.oblong = nn.Conv2d(3, 8, 3, stride=(2, 1), padding=1)
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4)
        self.unpadded = nn.Conv2d(16, 8, 3, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.again = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, x):
        x = self.unpadded(self.grouped(self.oblong(x)))
        return self.again(self.again(self.depthwise(x))).mean((2, 3))


@pytest.mark.parametrize(
    ("name", "replace", "words"),
    [
        ("oblong", "SeparableFWHT2d", r"oblong .* stride=\(2, 1\)"),
        ("grouped", "SeparableFWHT2d", "grouped .* groups=4"),
        ("unpadded", "SeparableFWHT2d", r"unpadded .* maps of \(8, 16\) in and \(3, 7\) out; with stride 2, \(4, 8\)"),
        ("again", "SeparableFWHT2d", "again .* size varies .*bound to one"),
        ("oblong", "CropOrTile", r"oblong .* stride=\(2, 1\)"),
        ("unpadded", "CropOrTile", "unpadded .* maps of"),
        ("again", "FWHT2d", "again .* size varies"),
    ],
)
def test_errors_name_the_site_and_change_nothing(name, replace, words):
    model = Odd()
    with pytest.raises(PolicyError, match=words):
        apply_policy_(model, one_rule("conv3x3", replace, {"name": f"^{name}$"}))
    assert all(type(module) is nn.Conv2d for module in model.children())


@pytest.mark.parametrize(
    ("replace", "option", "value", "words"),
    [
        ("FWHT2d", "clamp", "no", "must be true or false, got 'no'"),
        ("FWHT2d", "weight", 0, "must be true or false, got 0"),
        ("SeparableFWHT2d", "residual", "false", "must be true or false, got 'false'"),
        ("SeparableFWHT2d", "block_size", 4.0, "must be a whole number, got 4.0"),
        ("PreNormFWHT2d", "residual", "no", "must be true or false, got 'no'"),
        ("HTPerceptron2d", "paths", True, "must be a whole number, got True"),
        ("HTPerceptron2d", "initial_threshold", True, "must be a finite number or a word, got True"),
    ],
)
def test_values_of_another_type_than_the_layers_option_are_told(replace, option, value, words):
    policy = one_rule("conv3x3", replace)
    for data in (policy | {"options": {option: value}}, {"rules": [policy["rules"][0] | {"options": {option: value}}]}):
        with pytest.raises(PolicyError, match=rf"rule 1 \(conv3x3 → {replace}\): options.{option} {words}"):
            apply_policy_(Odd(), data)


def test_a_misspelt_block_size():
    policy = one_rule("conv3x3", "SeparableFWHT2d") | {"options": {"block_size": "comon"}}
    with pytest.raises(PolicyError, match="no block_size 'comon'; did you mean common"):
        apply_policy_(Odd(), policy)


def test_a_stride_that_the_2d_layer_refuses_has_a_remedy():
    with pytest.raises(PolicyError, match=r"stride=\(2, 2\).*or take SeparableFWHT2d"):
        apply_policy_(build_backbone("resnet20"), one_rule("conv3x3", "FWHT2d", {"part": "blocks"}))


def test_a_strided_depthwise_convolution_is_a_site():
    model = Odd()
    apply_policy_(model, one_rule("depthwise3x3", "SeparableFWHT2d"))
    assert isinstance(model.depthwise.channels, nn.Identity)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 8)


def test_a_module_that_is_called_by_keyword_is_a_site():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)

        def forward(self, x):
            return self.conv(input=x).mean((2, 3))

    (site,) = find_sites(ByKeyword(), (3, 8, 8)).sites
    assert (site.kind, site.input_shape, site.output_shape) == ("conv3x3", (3, 8, 8), (6, 4, 4))


def test_the_control_of_1x1_convolutions_keeps_their_shapes():
    model, layers = build_backbone("mobilenet_v2", stem="cifar"), build_backbone("mobilenet_v2", stem="cifar")
    report = apply_policy_(model, "crop_or_tile", (3, 32, 32))
    other = apply_policy_(layers, "conv1x1", (3, 32, 32))
    assert [site.name for site in report.replacements] == [site.name for site in other.replacements]
    saved = sum(module.threshold.numel() * 2 for module in layers.modules() if isinstance(module, BWHT1d))
    assert report.after.parameters == other.after.parameters - saved
    assert sum(isinstance(module, CropOrTile) for module in model.modules()) == 34
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_control_of_3x3_convolutions_is_the_layer_whose_transforms_do_nothing():
    torch.manual_seed(0)
    model = build_backbone("resnet20").eval()
    layers = copy.deepcopy(model)
    nothing = {"weight": False, "threshold": "soft", "initial_threshold": 0}
    apply_policy_(layers, {"include": ["conv3x3_all"], "options": nothing})
    apply_policy_(model, "crop_or_tile3x3")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), layers(x), atol=1e-4, rtol=1e-4)


def test_fitting_skips_what_has_no_parameters():
    original = build_backbone("resnet20")
    model = copy.deepcopy(original)
    policy = {"name": "mixed", "rules": [*one_rule("conv1x1", "BWHT1d")["rules"], *_rules("identity")]}
    report = apply_policy_(model, policy)
    fits = fit_layers_(model, original, report, [torch.randn(4, 3, 32, 32)])
    assert [fit.name for fit in fits] == ["layer2.0.shortcut.0", "layer3.0.shortcut.0"]


def test_fitting_sees_what_a_module_is_called_with_by_keyword():
    class SqueezeExcite(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()

    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.se = SqueezeExcite()

        def forward(self, x):
            return self.se(x=x).mean((2, 3))

    original = ByKeyword()
    model = copy.deepcopy(original)
    report = apply_policy_(model, one_rule("squeeze_excite", "FWHT2d"), (3, 8, 8))
    (fit,) = fit_layers_(model, original, report, [torch.randn(4, 3, 8, 8)])
    assert fit.after < fit.before


def _rules(name):
    return explicit_policy(load_policy(name))["rules"]


def test_canonical_forms():
    where = {"part": "blocks"}
    assert canonical_policy(load_policy("conv3x3_all")) == [
        {
            "match": "conv3x3",
            "where": where,
            "replace": "SeparableFWHT2d",
            "options": {"block_size": "common", "initial_threshold": "ramp"},
        }
    ]
    assert canonical_policy(load_policy("crop_or_tile")) == [
        {"match": "conv1x1", "replace": "CropOrTile", "options": {"block_size": "common"}}
    ]
    # All blocks are not the last one.
    assert [
        canonical_policy(Policy.from_dict(one_rule("conv3x3", "FWHT2d", {"blocks": f"last {n}"})))[0]["where"]["blocks"]
        for n in ("1", "1/1", "2/6")
    ] == ["last 1", "last 1/1", "last 1/3"]
    # Explicit data replays as the same policy.
    for name in ("conv3x3_all", "crop_or_tile", "crop_or_tile3x3"):
        policy = load_policy(name)
        again = type(policy).from_dict(explicit_policy(policy))
        assert canonical_policy(again) == canonical_policy(policy)
