"""The table of what the layers of trained networks do."""

import pytest
import torch

from whtnet.classifier import Classifier
from whtnet.data import load_dataset
from whtnet.tables import TableSpec, to_csv
from whtnet.tables.layers import layer_tables, measure_layers

ROW = {"id": "net", "label": "a network"}
DATA = {"name": "synthetic", "train_size": 64, "test_size": 48, "num_classes": 3, "size": 16}


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    rules = [{"match": "conv3x3", "where": {"part": "blocks", "nth": 2}, "replace": "FWHT2d"}]
    shape = {"classes": ["a", "b", "c"], "input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return Classifier({"name": "resnet20"}, {"name": "mine", "rules": rules}, dataset=DATA, **shape)


def test_each_layer_has_a_line(classifier):
    spec, steps = TableSpec("mine", "Layers", "layers", (ROW,)), []
    (measured,) = measure_layers(spec, lambda row: classifier, lambda *step: steps.append(step))
    assert steps == [(1.0, "net")]
    assert [layer["name"] for layer in measured["layers"]] == [
        f"layer{i}.{j}.conv2" for i in (1, 2, 3) for j in range(3)
    ]
    assert all(layer["gain"] > 0 and layer["backward_gain"] > 0 for layer in measured["layers"])
    assert 0 < sum(layer["gradient_norm"] ** 2 for layer in measured["layers"]) < 1
    table = layer_tables(spec, [measured])[0]
    assert table.title == f"Layers: a network, {measured['top1']:.2f} %"
    assert len(to_csv(table).splitlines()) == 10


def test_bypassing_a_layer_is_leaving_it_out(classifier):
    spec = TableSpec("mine", "Layers", "layers", (ROW,))
    (measured,) = measure_layers(spec, lambda row: classifier, lambda *step: None)
    test = load_dataset(**DATA).loaders(batch_size=64, device=torch.device("cpu"), seed=0).test
    network, layer = classifier.network.eval(), classifier.network.layer3[2]
    replaced, layer.conv2 = layer.conv2, torch.nn.Identity()
    with torch.no_grad():
        hits = [(network(images).argmax(1) == labels).float() for images, labels in test]
    layer.conv2 = replaced
    expected = 100 * torch.cat(hits).mean().item() - measured["top1"]
    assert measured["layers"][-1]["bypassed_change"] == pytest.approx(expected, abs=1e-4)
