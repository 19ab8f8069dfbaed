import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from whtnet import BWHT1d, FWHT2d, HTPerceptron2d, apply_policy_
from whtnet.backbones import build_backbone
from whtnet.cost import count_cost, meta_probe


def count(*layers, size=(3, 32, 32)):
    return count_cost(*meta_probe(nn.Sequential(*layers), size))


def test_macs_of_layers_with_known_costs():
    assert count(nn.Conv2d(3, 16, 3, padding=1)).macs == 32 * 32 * 16 * 27
    assert count(nn.Conv2d(3, 6, 3, stride=2, groups=3)).macs == 15 * 15 * 6 * 9
    assert count(nn.Flatten(), nn.Linear(3072, 10)).macs == 30720


def test_resnet20_has_its_published_macs():
    # 40.55M multiply-adds in 3×3 convolutions and the classifier (He et al.'s network), plus the two 1×1 shortcuts.
    shortcuts = 16 * 16 * 16 * 32 + 8 * 8 * 32 * 64
    assert count_cost(*meta_probe(build_backbone("resnet20"), (3, 32, 32))).macs == 40_551_040 + shortcuts


def test_transforms_cost_additions_and_no_macs():
    cost = count(FWHT2d(32))
    assert (cost.macs, cost.wht_additions) == (0, 2 * 3 * 1024 * 10)
    cost = count(BWHT1d(3, 5, block_size=4, blocks="separate", stride=2))
    assert (cost.macs, cost.wht_additions) == (0, 256 * (1 + 2) * 4 * 2)
    cost = count(BWHT1d(3, 1, block_size=1, blocks="separate"))
    assert (cost.macs, cost.wht_additions) == (0, 1024 * 2)  # the sums of a projection
    cost = count(HTPerceptron2d(3, 4, 32, paths=2))
    assert cost.macs == 2 * 3 * 4 * 1024  # its 1×1 convolutions
    assert cost.wht_additions == (3 + 4) * 1024 * 10 + 4 * 1024


def test_a_layer_that_is_called_with_a_keyword_counts_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = FWHT2d(4)

        def forward(self, images):
            return self.layer(x=images)

    assert count_cost(*meta_probe(Net(), (3, 4, 4))) == count(FWHT2d(4), size=(3, 4, 4))


def test_statistics_and_trainable_parameters_only():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8, track_running_stats=False))
    model[0].weight.requires_grad_(False)
    cost = count_cost(*meta_probe(model, (3, 4, 4)))
    assert (cost.parameters, cost.bn_statistics, cost.parameters_with_bn_statistics) == (8 + 16 + 16, 16, 56)


def test_measuring_leaves_the_model_alone():
    model = build_backbone("resnet20").train()
    apply_policy_(model, "paper")
    calls = []
    model.register_forward_hook(lambda *args: calls.append(args))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count_cost(*meta_probe(model, (3, 32, 32)))
    assert model.training
    assert not calls
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("mobilenet_v3_large", 64),  # squeeze-and-excite, hard swish in place
        ("timm/efficientnet_b0", 64),
        ("timm/vit_tiny_patch16_224", 224),  # attention
        ("torchvision/swin_t", 64),
        ("timm/nf_regnet_b0", 64),  # weights that are standardised
        ("torchvision/densenet121", 32),
    ],
)
def test_macs_are_those_that_pytorch_counts(backbone, size):
    model = build_backbone(backbone)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).to("meta").eval()(torch.empty(1, 3, size, size, device="meta"))
    assert count_cost(*meta_probe(model, (3, size, size))).macs == counter.get_total_flops() // 2 > 0


@pytest.mark.parametrize(
    ("backbone", "policy"), [("resnet20", "paper"), ("resnet20", "ht2023/3path"), ("resnet18", "gap")]
)
def test_a_report_says_what_counting_the_model_again_says(backbone, policy):
    model, size = build_backbone(backbone), (3, 32, 32)
    before = count_cost(*meta_probe(model, size))
    report = apply_policy_(model, policy, size)
    assert report.before == before
    assert report.after == count_cost(*meta_probe(model, size))
