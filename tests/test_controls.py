"""Controls: what is left of a layer without its transform."""

import pytest
import torch
from torch import nn

from whtnet import BWHT1d
from whtnet.controls import CropOrTile

SIZES = [
    (8, 8, 8),
    (16, 32, 16),
    (24, 144, 8),
    (144, 24, 8),
    (96, 576, 32),
    (576, 160, 32),
    (12, 20, None),
    (20, 12, None),
]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("c_in", "c_out", "block"), SIZES)
def test_it_is_the_layer_whose_transform_does_nothing(c_in, c_out, block, stride):
    options = {"stride": stride, "block_size": block}
    layer = BWHT1d(c_in, c_out, **options, weight=False, threshold="soft", initial_threshold=0)
    control = CropOrTile(c_in, c_out, **options)
    x = torch.randn(2, c_in, 5, 6)
    assert not list(control.parameters())
    torch.testing.assert_close(control(x), layer(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("c_in", "c_out", "block"), [(8, 24, 8), (24, 8, 8), (25, 8, 8), (8, 24, None)])
def test_the_memory_format_stays(c_in, c_out, block):
    control, x = CropOrTile(c_in, c_out, block_size=block), torch.randn(2, c_in, 5, 6)
    last = control(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert control(x).is_contiguous()
    torch.testing.assert_close(last, control(x))


def test_tiles_and_means_by_hand():
    x = torch.arange(4.0).view(1, 4, 1)
    assert CropOrTile(4, 8, block_size=4)(x).flatten().tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert CropOrTile(4, 6, block_size=2)(x).flatten().tolist() == [0, 1, 1, 2, 2, 3]  # windows from 0, 1, 2
    assert CropOrTile(4, 2, block_size=2)(x).flatten().tolist() == [0.5, 2.5]
    assert CropOrTile(4, 3, block_size=1)(x).flatten().tolist() == [0, 1, 2]
    assert CropOrTile(4, 2)(x).flatten().tolist() == [0, 1]
    assert CropOrTile(4, 6)(x).flatten().tolist() == [0, 1, 2, 3, 0, 0]


def test_channels_may_be_last_and_gradients_flow():
    x = torch.randn(2, 6, 5, 12, dtype=torch.float64, requires_grad=True)
    first, last = CropOrTile(12, 20, block_size=4), CropOrTile(12, 20, block_size=4, channel_dim=-1)
    torch.testing.assert_close(last(x), first(x.movedim(-1, 1)).movedim(1, -1))
    assert torch.autograd.gradcheck(last, x)
    assert "12, 20, block_size=4, stride=1, channel_dim=-1" in repr(last)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CropOrTile(12, 20, block_size=8), "block_size=8 does not divide 12 and 20 channels"),
        (lambda: CropOrTile(0, 20), "in_channels must be at least 1, got 0"),
        (lambda: CropOrTile(4, 4, stride=0), "stride must be at least 1"),
        (lambda: CropOrTile(4, 4, channel_dim=2), "channel_dim must be 1 or -1"),
        (lambda: CropOrTile(4, 8)(torch.zeros(1, 5, 2, 2)), r"CropOrTile takes \(N, 4, \*spatial\)"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_it_exports_and_torch_fx_keeps_it_whole():
    model = nn.Sequential(CropOrTile(12, 20, block_size=4, stride=2), CropOrTile(20, 5, block_size=4)).eval()
    x = torch.randn(2, 12, 4, 4)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    torch.testing.assert_close(traced(x), model(x))
