"""Mixup and CutMix: what is mixed, how the labels follow, that it depends on seed, epoch and step alone."""

import pytest
import torch
from test_engine import config, loaders, make_model, train
from torch.nn import functional as F

from whtnet.engine import TrainConfig
from whtnet.engine.loss import Loss
from whtnet.engine.mixing import Mixing
from whtnet.settings import ConfigError


def images(n=6):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_mixup_averages_pairs_by_the_shares_that_it_tells():
    mixed, shares = Mixing(TrainConfig(mixup=1.0), 6)(images(), 0, 0, 0)
    torch.testing.assert_close(mixed, torch.einsum("ij,jchw->ichw", shares, images()))
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    assert 0 < shares[0, 0] < 1
    assert shares[0, 5] == 1 - shares[0, 0]


def test_cutmix_pastes_a_rectangle_of_the_size_that_its_share_tells():
    for step in range(10):
        mixed, shares = Mixing(TrainConfig(cutmix=1.0), 6)(images(), 0, 0, step)
        pasted = (mixed != images()).all(1)
        assert torch.equal(mixed, torch.where(pasted[:, None], images().flip(0), images()))
        assert pasted[0].float().mean().item() == pytest.approx(shares[0, 5].item(), abs=1e-6)


def test_mixing_depends_on_seed_epoch_and_step_alone():
    mixing = Mixing(TrainConfig(mixup=0.4, cutmix=1.0), 6)
    state = torch.get_rng_state()
    first = mixing(images(), 3, 1, 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = mixing(images(), 3, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in ((4, 1, 2), (3, 2, 2), (3, 1, 3)):
        assert not torch.equal(mixing(images(), *other)[1], first[1])


def test_batches_of_both_kinds_come_where_both_are_asked_for():
    mixing = Mixing(TrainConfig(mixup=1.0, cutmix=1.0), 6)
    pasted = [bool(((out := mixing(images(), 0, 0, step)[0]) == images()).any()) for step in range(40)]
    assert 8 < sum(pasted) < 32
    assert out.shape == (6, 3, 8, 8)


def test_odd_batches_are_refused():
    with pytest.raises(ConfigError, match=r"7 images.*divisible by 2"):
        Mixing(TrainConfig(mixup=1.0), 7)


def test_the_loss_of_shares_is_the_mean_of_the_losses_by_share():
    logits, a, b = torch.randn(4, 10), torch.tensor([1, 2, 3, 4]), torch.tensor([4, 3, 2, 1])
    targets = 0.7 * F.one_hot(a, 10).float() + 0.3 * F.one_hot(b, 10).float()
    for smoothing in (0.0, 0.1):
        loss = Loss(smoothing, None, 0.0, 1.0)
        expected = 0.7 * loss(logits, a, None) + 0.3 * loss(logits, b, None)
        torch.testing.assert_close(loss(logits, targets, None), expected)


def test_training_sees_mixed_images_and_their_labels(monkeypatch):
    targets = []

    plain = Loss.__call__

    def noted(loss, logits, labels, wanted):
        targets.append(labels)
        return plain(loss, logits, labels, wanted)

    monkeypatch.setattr(Loss, "__call__", noted)
    seen = []
    model = make_model()
    model.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()) if m.training else None)
    train(model, config(epochs=1, mixup=1.0))
    batches = list(loaders().train)
    for step, ((batch, labels), mixed, target) in enumerate(zip(batches, seen, targets, strict=True)):
        expected, shares = Mixing(TrainConfig(mixup=1.0), 8)(batch.clone(), 3, 0, step)
        torch.testing.assert_close(mixed, expected)
        torch.testing.assert_close(target, shares @ F.one_hot(labels, 10).float())
