"""New layers fitted to what they replace; replacement in part."""

import copy

import pytest
import torch
from torch import nn

from whtnet import apply_policy_
from whtnet.backbones import CifarResNet
from whtnet.functional import bwht1d
from whtnet.policy import PolicyError, fit_layers_

RULES = {
    "rules": [
        {"match": "conv3x3", "where": {"part": "blocks", "nth": 2}, "replace": "FWHT2d"},
        {"match": "conv1x1", "replace": "BWHT1d"},
    ]
}


def images(count=2):
    return [torch.randn(8, 3, 16, 16) for _ in range(count)]


def test_a_layer_that_can_do_the_same_learns_to():
    torch.manual_seed(0)

    class Imitable(nn.Conv2d):
        """A 1×1 convolution that does what a Walsh-Hadamard layer can do."""

        def __init__(self):
            super().__init__(8, 8, 1)
            self.threshold = nn.Parameter(torch.empty(1, 8).uniform_(0.3, 1.0))

        def forward(self, x):
            return bwht1d(x, self.threshold, 8)

    original = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Imitable())
    model = copy.deepcopy(original)
    report = apply_policy_(model, {"rules": RULES["rules"][1:]}, (3, 16, 16))
    original[0].eval()
    (fit,) = fit_layers_(model, original, report, images())
    assert [module.training for module in original] == [False, True]
    assert fit.name == "1"
    assert fit.after < 1e-4 < fit.before
    x = images(1)[0]
    torch.testing.assert_close(model(x), original(x), atol=0.02, rtol=0)


def test_every_layer_of_a_network_comes_closer():
    torch.manual_seed(0)
    original = CifarResNet(20)
    untouched = copy.deepcopy(original.state_dict())
    model = copy.deepcopy(original)
    report = apply_policy_(model, RULES, (3, 16, 16))
    kept = {
        n: p.clone() for n, p in model.named_parameters() if not any(n.startswith(r.name) for r in report.replacements)
    }
    fits = fit_layers_(model, original, report, images())
    assert [f.name for f in fits] == [r.name for r in report.replacements]
    assert all(f.after <= f.before for f in fits)
    assert sum(f.after < 0.99 * f.before for f in fits) > len(fits) / 2
    assert all(torch.equal(v, untouched[n]) for n, v in original.state_dict().items())
    assert all(torch.equal(dict(model.named_parameters())[n], v) for n, v in kept.items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in original.modules())


def test_a_layer_before_pooling_stays_fresh():
    original = CifarResNet(20)
    model = copy.deepcopy(original)
    report = apply_policy_(model, "gap", (3, 16, 16))
    assert len(report.replacements) == 1
    assert fit_layers_(model, original, report, images(1)) == []


@pytest.mark.parametrize(("share", "count"), [(0, 0), (1 / 3, 4), (2 / 3, 8), (0.01, 1), (1, 11)])
def test_the_last_sites_come_first(share, count):
    whole = apply_policy_(CifarResNet(20), RULES, (3, 16, 16)).replacements
    part = apply_policy_(CifarResNet(20), RULES, (3, 16, 16), share).replacements
    assert [r.name for r in part] == [r.name for r in whole][len(whole) - count :]


def test_a_share_that_floats_miss_by_a_bit_is_no_site_more():
    convolutions = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(25)))
    assert 25 * 0.28 > 7
    assert len(apply_policy_(convolutions, "conv1x1", (4, 2, 2), share=0.28).replacements) == 7


def test_a_share_that_cannot_be():
    with pytest.raises(PolicyError, match=r"share must be in \[0, 1\], got 2"):
        apply_policy_(CifarResNet(20), RULES, (3, 16, 16), 2)
