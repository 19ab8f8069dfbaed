import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from whtnet.inspection import MAX_VALUES, describe_layers, layer_effects, layer_metrics
from whtnet.layers import BWHT1d, FWHT2d, HTPerceptron2d
from whtnet.transforms import fwht, fwht2

LABELS = torch.tensor([0, 2])


def model_with(*layers):
    return nn.Sequential(*layers).train()


def test_every_layer_is_described_as_plain_data():
    model = model_with(
        FWHT2d(6), nn.ReLU(), BWHT1d(4, 12, block_size=8, blocks="separate"), HTPerceptron2d(12, 12, 6, paths=2)
    )
    described = describe_layers(model, torch.randn(3, 4, 6, 6))
    assert json.loads(json.dumps(described)) == described
    assert [(d["name"], d["kind"], d["clamp"]) for d in described] == [
        ("0", "FWHT2d", False),
        ("2", "BWHT1d", False),
        ("3", "HTPerceptron2d", True),
    ]
    for d, layer in zip(described, (model[0], model[2], model[3]), strict=True):
        torch.testing.assert_close(torch.tensor(d["threshold"]), layer.threshold.detach(), rtol=1e-3, atol=0)
    assert described[1]["weight"] is None
    assert len(described[2]["weight"]) == 2


def test_values_have_four_significant_digits():
    layer = FWHT2d(1)
    nn.init.constant_(layer.threshold, 0.0123456)
    (described,) = describe_layers(model_with(layer), torch.randn(1, 1, 1, 1))
    assert described["threshold"] == [[0.01235]]


def test_share_of_zeros_counts_coefficients_within_the_threshold():
    x = torch.randn(2, 8, 4, 4)
    plain, blocks = FWHT2d(4), BWHT1d(8, 8, block_size=4, blocks="separate")
    nn.init.constant_(plain.threshold, 0.7)
    nn.init.constant_(blocks.threshold, 0.4)
    (two_d,) = describe_layers(model_with(plain), x)
    assert two_d["zero_share"] == pytest.approx((fwht2(x).abs() <= 0.7).float().mean().item())
    (one_d,) = describe_layers(model_with(blocks), x)
    expected = (fwht(x.unflatten(1, (2, 4)), 2).abs() <= 0.4).float().mean().item()
    assert one_d["zero_share"] == pytest.approx(expected)
    assert 0 < expected < 1


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (BWHT1d(8, 20, block_size=4, blocks="separate", stride=2, interleave=True), (2, 8, 5, 5)),
        (BWHT1d(8, 3, channel_dim=-1, keep_dc=True), (2, 5, 5, 8)),
        (FWHT2d(6), (2, 8, 6, 6)),
        (HTPerceptron2d(8, 5, 6, paths=3, norm="backward"), (2, 8, 6, 6)),
    ],
)
def test_coefficients_vanish_with_large_thresholds_and_the_result_with_them(layer, shape):
    x = torch.randn(shape)
    assert layer.coefficients(x).count_nonzero() > 0
    nn.init.constant_(layer.threshold, 1e6)
    zero_share = (layer.coefficients(x) == 0).float().mean()
    assert (zero_share < 1) == layer.keep_dc
    assert (layer(x).abs().max() > 0) == layer.keep_dc


def test_large_parameters_are_left_out_and_unused_layers_too():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = BWHT1d(MAX_VALUES + 1, 4), FWHT2d(4)

        def forward(self, x):
            return self.used(x)

    (described,) = describe_layers(Partly(), torch.randn(1, MAX_VALUES + 1))
    assert described["name"] == "used"
    assert described["threshold"] is None


@pytest.mark.parametrize("look", [describe_layers, lambda model, x: layer_effects(model, [(x, LABELS)], lambda: 0.0)])
def test_the_model_stays_as_it_was(look):
    model = model_with(nn.BatchNorm2d(4), FWHT2d(4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    model[2].eval()  # as one that is frozen
    model[4].bias.grad = torch.ones(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    look(model, torch.randn(2, 4, 4, 4))
    assert [module.training for module in model] == [True, True, False, True, True]
    assert not model[1]._forward_hooks
    assert model[4].bias.grad.tolist() == [1, 1, 1]
    assert model[1].threshold.grad is None
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.slow
def test_a_compiled_model_is_described_as_well():
    model = model_with(FWHT2d(4))
    model.compile()
    x = torch.randn(2, 4, 4, 4)
    model(x)
    assert describe_layers(model, x)[0]["zero_share"] >= 0


def test_effects_of_a_layer_by_hand():
    torch.manual_seed(0)
    layer = FWHT2d(4, threshold="soft", initial_threshold=0.0)
    with torch.no_grad():
        layer.weight.fill_(2.0)  # doubles its input; no coefficient is zero
    model = nn.Sequential(nn.Conv2d(3, 2, 1), layer, BWHT1d(2, 4, block_size=2), nn.Flatten(), nn.Linear(64, 3)).train()
    images, labels = torch.randn(5, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    seen = []

    def accuracy():
        with torch.no_grad():
            seen.append(model(images))
        return 10.0 * len(seen)

    first, second = layer_effects(model, [(images, labels), (images, labels)], accuracy)
    assert (first["name"], first["kind"], second["kind"]) == ("1", "FWHT2d", "BWHT1d")
    assert first["gain"] == pytest.approx(2, rel=1e-5)
    assert first["backward_gain"] == pytest.approx(2, rel=1e-5)
    assert first["zero_share"] == 0
    assert first["bypassed_change"] == 10  # the second call of accuracy
    assert second["bypassed_change"] is None  # other channels
    with torch.no_grad():
        halved = nn.Sequential(model[0], *list(model)[2:])(images)
    torch.testing.assert_close(seen[1], halved)  # without the layer
    torch.testing.assert_close(seen[0], model(images).detach())
    assert not layer._forward_hooks
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    F.cross_entropy(model(images), labels).backward()
    total = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
    own = sum(p.grad.square().sum() for p in layer.parameters()).sqrt()
    assert first["gradient_norm"] == pytest.approx((own / total).item(), rel=1e-4)


def test_a_layer_that_is_called_by_keyword_is_bypassed_too():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.fc = FWHT2d(4), nn.Linear(16, 3)

        def forward(self, images):
            return self.fc(self.layer(x=images).flatten(1))

    model, images = ByKeyword(), torch.randn(2, 1, 4, 4)
    outputs = []
    layer_effects(model, [(images, torch.tensor([0, 1]))], lambda: outputs.append(model(images)) or float(len(outputs)))
    torch.testing.assert_close(outputs[1], model.fc(images.flatten(1)))


def test_numbers_for_curves_are_those_of_the_description():
    model = model_with(FWHT2d(128), BWHT1d(4, 4, block_size=4))
    images = torch.randn(2, 4, 128, 128)
    metrics, described = layer_metrics(model, images), describe_layers(model, images)
    assert model.training
    assert [metrics[d["name"]]["zero_share"] for d in described] == [d["zero_share"] for d in described]
    for name, layer in (("0", model[0]), ("1", model[1])):  # the former has too many values to be kept in a record
        of = layer.threshold
        expected = [of.min().item(), of.mean().item(), of.max().item()]
        assert [metrics[name][f"threshold_{key}"] for key in ("min", "mean", "max")] == pytest.approx(expected)


def test_effects_are_those_of_the_layer_whatever_follows_in_place_or_is_not_used():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.unused = nn.Conv2d(1, 1, 1), FWHT2d(8)
            self.layer, self.fc = FWHT2d(4, threshold="soft"), nn.Linear(16, 3)

        def forward(self, images):
            return self.fc(self.after(self.layer(x=self.first(images))).flatten(1))

    torch.manual_seed(0)
    net, batch = Net(), (torch.randn(2, 1, 4, 4), LABELS)
    net.after = lambda y: torch.relu(y)
    (copied,) = layer_effects(net, [batch], lambda: 0.0)
    net.after = lambda y: torch.relu_(y)
    (in_place,) = layer_effects(net, [batch], lambda: 0.0)
    assert copied["name"] == "layer"
    assert in_place == copied
    assert copied["backward_gain"] > 0
