import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from whtnet import apply_policy_
from whtnet.backbones import CifarResNet
from whtnet.data import Loader
from whtnet.engine import (
    CheckpointError,
    NonFiniteLossError,
    TrainConfig,
    evaluate,
    fit,
    load_checkpoint,
    mixed_precision,
    parameter_groups,
    save_checkpoint,
)
from whtnet.layers import spectral_parameter_names
from whtnet.settings import ConfigError

CPU = torch.device("cpu")


class Batches:
    """Three batches of 8 images that depend on (seed, epoch), as a loader's must."""

    num_samples, batch_size = 24, 8

    def __init__(self, seed=0, poison=None):
        self.seed, self.poison, self.epoch, self.first = seed, poison, 0, 0

    def set_epoch(self, epoch, first_batch=0):
        self.epoch, self.first = epoch, first_batch

    def __len__(self):
        return 3

    def __iter__(self):
        generator = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        for i in range(3):
            labels = torch.randint(0, 10, (8,), generator=generator)
            images = torch.randn(8, 3, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1) / 5
            if (self.epoch, i) == self.poison:
                images[0, 0, 0, 0] = math.nan
            if i >= self.first:
                yield images, labels

    first_images = Loader.first_images


def loaders(holdout=False, **options):
    return SimpleNamespace(train=Batches(**options), test=Batches(7), holdout=Batches(8) if holdout else None)


def make_model(policy="paper", size=8, dropout=0.0):
    torch.manual_seed(0)
    model = CifarResNet(8)
    apply_policy_(model, policy, (3, size, size))
    if dropout:
        model.fc = nn.Sequential(nn.Dropout(dropout), model.fc)
    return model


def config(**settings):
    return TrainConfig(**{"epochs": 4, "lr": 0.05, "schedule": "onecycle", "precision": "fp32", **settings})


def train(model, settings, data=None, **options):
    return fit(model, data or loaders(), settings, device=CPU, seed=3, **options)


# --- Schedule and optimiser ---


def test_authors_milestones_are_epochs_82_122_163_of_200():
    default = TrainConfig()
    rates = [default.lr_at(epoch * 10, 10) for epoch in range(200)]
    changes = [epoch for epoch in range(1, 200) if rates[epoch] != rates[epoch - 1]]
    assert changes == [82, 122, 163]
    assert rates[0] == 0.1
    assert rates[-1] == pytest.approx(1e-4)


def test_one_cycle_rises_to_the_peak_and_falls_to_zero():
    c = TrainConfig(epochs=10, lr=0.4, schedule="onecycle", warmup=0.25)
    rates = [c.lr_at(step, 8) for step in range(80)]
    assert max(rates) == pytest.approx(0.4)
    assert rates.index(max(rates)) == 20
    assert 0 < rates[0] < 0.03
    assert 0 < rates[-1] < 0.01


def test_weight_decay_reaches_what_the_recipe_says():
    model = make_model()
    names = {id(p): n for n, p in model.named_parameters()}

    def decayed(c):
        return {names[id(p)] for group in parameter_groups(model, c) if group["weight_decay"] for p in group["params"]}

    everything = {n for n in names.values() if "bias" not in n}
    spectral = {n for n in names.values() if n.endswith(("threshold", "conv2.weight"))}
    assert len(spectral) == 3 * 2 + 2
    assert decayed(TrainConfig()) == everything
    assert decayed(TrainConfig(decay_spectral=False)) == everything - spectral
    total = [p for group in parameter_groups(model, TrainConfig()) for p in group["params"]]
    assert len(total) == len(names)
    slow = parameter_groups(model, TrainConfig(spectral_lr=0.1))
    assert {names[id(p)] for group in slow if group["lr_factor"] == 0.1 for p in group["params"]} == spectral


def test_spectral_parameters_may_have_their_own_learning_rate():
    steps = {}
    for factor in (1.0, 0.5):
        model = make_model()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        fit(model, loaders(), TrainConfig(precision="fp32", spectral_lr=factor, dry_run=True), device=CPU, seed=0)
        steps[factor] = {n: p.detach() - before[n] for n, p in model.named_parameters()}
    spectral = spectral_parameter_names(model)
    assert spectral
    for name, step in steps[1.0].items():
        assert step.abs().max() > 0
        torch.testing.assert_close(steps[0.5][name], step / 2 if name in spectral else step, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": 0.0}, "lr"),
        ({"spectral_lr": 0.0}, "spectral_lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"precision": "fp8"}, "bf16"),
        ({"schedule": "cosine"}, "onecycle"),
        ({"milestones": [82]}, "fractions"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"epocs": 3}, "epocs"),
        ({"compile": True, "cuda_graph": True}, "exclude each other"),
    ],
)
def test_bad_settings_are_named(settings, word):
    with pytest.raises(ConfigError, match=word):
        TrainConfig.from_dict(settings)


# --- Training ---


def test_training_lowers_the_loss_and_reports_every_epoch():
    result = train(make_model(), config(epochs=12))
    assert [m["epoch"] for m in result.history] == list(range(1, 13))
    assert result.history[-1]["train_loss"] < 0.85 * result.history[0]["train_loss"]
    assert {"lr", "train_top1", "test_loss", "test_top1", "images_per_s", "seconds"} <= set(result.history[0])
    assert result.best is None


def test_evaluate_is_a_mean_over_images():
    model = make_model().eval()
    got = evaluate(model, Batches())
    with torch.no_grad():
        images, labels = (torch.cat(parts) for parts in zip(*Batches(), strict=True))
        logits = model(images)
    assert got["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert got["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())


def test_same_seed_same_bits_other_seed_other_bits():
    a, b, c = (make_model(dropout=0.2) for _ in range(3))
    train(a, config())
    train(b, config())
    fit(c, loaders(), config(), device=CPU, seed=4)
    same = [torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)]
    assert all(same)
    assert not all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), c.state_dict().values(), strict=True))


class InterruptError(Exception):
    pass


def timeless(history):
    return [{k: v for k, v in metrics.items() if k not in ("seconds", "images_per_s")} for metrics in history]


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}, {"precision": "bf16", "nesterov": True}])
@pytest.mark.parametrize("at", [(1, 0), (2, 2)], ids=["first batch", "last batch"])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, options, at):
    settings = config(**options)
    whole = make_model(dropout=0.2)
    expected = train(whole, settings, loaders(holdout=True))

    def interrupt(fraction, status):
        if fraction == pytest.approx((at[0] + (at[1] + 1) / 3) / 4):
            raise InterruptError

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(InterruptError):
        train(
            make_model(dropout=0.2),
            settings,
            loaders(holdout=True),
            checkpoint=path,
            on_progress=interrupt,
            fingerprint="f",
        )
    torch.manual_seed(123)  # a resumed process is in another random state
    resumed = make_model(dropout=0.2)
    for p in resumed.parameters():
        nn.init.zeros_(p)
    epochs = []
    result = train(
        resumed,
        settings,
        loaders(holdout=True),
        checkpoint=path,
        fingerprint="f",
        on_epoch=lambda m: epochs.append(m["epoch"]),
    )
    assert epochs == list(range(at[0] + 1, 5))
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert timeless(result.history) == timeless(expected.history)
    assert result.best["epoch"] == expected.best["epoch"]


def test_a_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(NonFiniteLossError, match=r"epoch 3.*lower trainer\.lr"):
        train(make_model(), config(), loaders(poison=(2, 1)), checkpoint=path, fingerprint="f")
    state = load_checkpoint(path, "f", CPU)
    assert state["epoch"] == 2
    assert all(v.isfinite().all() for v in state["model"].values())


def test_best_epoch_is_picked_on_the_held_out_part_and_its_weights_kept(tmp_path):
    model = make_model()
    result = train(model, config(), loaders(holdout=True), checkpoint=tmp_path / "checkpoint.pt", fingerprint="f")
    accuracies = [m["holdout_top1"] for m in result.history]
    assert result.best["holdout_top1"] == max(accuracies)
    assert result.best["epoch"] == accuracies.index(max(accuracies)) + 1
    best = load_checkpoint(tmp_path / "best.pt", "f", CPU)
    model.load_state_dict(best["model"])
    assert evaluate(model, Batches(8))["top1"] == pytest.approx(result.best["holdout_top1"])


def test_ema_is_what_is_evaluated_and_returned():
    plain, averaged = make_model(), make_model()
    train(plain, config())
    result = train(averaged, config(ema_decay=0.95))
    assert not torch.equal(plain.fc.weight, averaged.fc.weight)
    assert evaluate(averaged.eval(), Batches(7))["top1"] == pytest.approx(result.history[-1]["test_top1"])


def test_label_smoothing_changes_the_loss():
    plain = train(make_model(), config(epochs=1)).history[0]["train_loss"]
    smooth = train(make_model(), config(epochs=1, label_smoothing=0.2)).history[0]["train_loss"]
    assert abs(plain - smooth) > 1e-3


def test_evaluation_can_be_rarer_but_never_misses_the_last_epoch():
    result = train(make_model(), config(epochs=5, eval_every=2))
    assert ["test_top1" in m for m in result.history] == [False, True, False, True, True]


def test_dry_run_is_one_batch_and_writes_nothing(tmp_path):
    steps = []
    result = train(
        make_model(),
        config(dry_run=True),
        checkpoint=tmp_path / "checkpoint.pt",
        on_progress=lambda f, s: steps.append(f),
    )
    assert len(steps) == len(result.history) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("channels_last", [True, False])
def test_precision_and_layout_choices_are_obeyed(channels_last):
    seen = []
    model = make_model()
    model.conv1.register_forward_hook(lambda m, args, out: seen.append((out.dtype, m.weight.stride())))
    train(model, config(epochs=1, precision="bf16", channels_last=channels_last))
    assert seen[0][0] == torch.bfloat16
    assert (seen[0][1][1] == 1) is channels_last  # channels are the fastest dimension
    assert config().autocast_dtype(CPU) is None
    assert config().channels_last


@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_only_strided_depthwise_convolutions_are_computed_in_float32_on_a_cpu(stride, groups):
    conv = nn.Conv2d(8, 8, 3, stride, padding=1, groups=groups)
    x = torch.randn(2, 8, 6, 6)

    def passes(precision):
        with precision:
            out = conv(x)
        return out, *torch.autograd.grad(out.bfloat16().float().square().sum(), conv.parameters())

    autocast, float32 = passes(torch.autocast("cpu", torch.bfloat16)), passes(mixed_precision(CPU, None))
    expected = float32 if groups == 8 and stride != 1 else autocast
    mixed = passes(mixed_precision(CPU, torch.bfloat16))
    assert mixed[0].dtype == torch.bfloat16
    assert [t.bfloat16().equal(e.bfloat16()) for t, e in zip(mixed, expected, strict=True)] == [True] * 3
    assert not autocast[1].bfloat16().equal(float32[1].bfloat16())


# --- Checkpoint files ---


def test_foreign_damaged_and_other_runs_checkpoints_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1}, "mine")
    assert load_checkpoint(path, "mine", CPU)["epoch"] == 1
    with pytest.raises(CheckpointError, match="other settings"):
        load_checkpoint(path, "yours", CPU)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="can't be read"):
        load_checkpoint(path, "mine", CPU)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of this version"):
        load_checkpoint(path, "mine", CPU)


def test_a_checkpoint_is_plain_data(tmp_path):
    path = tmp_path / "checkpoint.pt"
    model = make_model()
    train(model, config(epochs=1, ema_decay=0.5), checkpoint=path, fingerprint="f")
    state = torch.load(path, weights_only=True)
    assert {"model", "optimizer", "ema", "epoch", "history", "seconds"} <= set(state)
    assert set(state["model"]) == set(model.state_dict())


@pytest.mark.slow
def test_compiled_models_train_and_keep_clean_keys(tmp_path):
    pytest.importorskip("torch._inductor")
    model = make_model()
    keys = set(model.state_dict())
    plain = train(copy.deepcopy(model), config(epochs=1)).history[0]
    compiled = train(model, config(epochs=1, compile=True)).history[0]
    assert set(model.state_dict()) == keys
    assert compiled["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-3)


# --- CUDA graphs ---


def test_recorded_passes_train_the_same_and_leave_nothing_behind(monkeypatch):
    passes = []

    def make_graphed_callables(model, images):  # does to the model what the real one does
        for _ in range(4):
            torch.autograd.grad(model(*images).sum(), list(model.parameters()))
        eager = model.forward

        def forward(x):
            passes.append((model.training, x.shape))
            return eager(x)

        model.forward = forward

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    model, other = make_model(), make_model()
    eager, recorded = train(model, config()), train(other, config(cuda_graph=True))
    assert timeless(recorded.history) == timeless(eager.history)
    assert sum(training for training, _ in passes) == 4 * 3
    assert "forward" not in vars(other)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_passes_on_a_gpu(precision):
    class Moved(Batches):
        def __iter__(self):
            return ((images.cuda(), labels.cuda()) for images, labels in super().__iter__())

    data = SimpleNamespace(train=Moved(), test=Moved(7), holdout=None)
    settings = {"precision": precision, "channels_last": False}
    histories = [
        fit(make_model(), data, config(cuda_graph=graph, **settings), device=torch.device("cuda"), seed=3).history
        for graph in (False, True)
    ]
    for eager, recorded in zip(*histories, strict=True):
        assert recorded["train_loss"] == pytest.approx(eager["train_loss"], rel=1e-2)
