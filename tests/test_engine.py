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
    epochs,
    evaluate,
    fit,
    load_checkpoint,
    mixed_precision,
    save_checkpoint,
)
from whtnet.preemption import PreemptedError
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


# --- Settings ---


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"epochs": 0}, "epochs"),
        ({"patience": -1}, "patience"),
        ({"mixup": -0.2}, "mixup"),
        ({"lr": 0.0}, "lr"),
        ({"spectral_lr_scale": 0.0}, "spectral_lr_scale"),
        ({"spectral_lr": 0.1}, "called trainer.spectral_lr_scale now"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"precision": "fp8"}, "bf16"),
        ({"schedule": "linear"}, "onecycle"),
        ({"milestones": [82]}, "fractions"),
        ({"gamma": 0}, "gamma must be greater than 0"),
        ({"gamma": [0.1, 0.1]}, "2 factors for 3 milestones"),
        ({"clip_grad": -1.0}, "clip_grad"),
        ({"opt": "adamv"}, "did you mean adam or "),
        ({"opt": "adahessian"}, "second derivatives"),
        ({"opt": "adamw", "opt_options": {"beta": 0.9}}, "opt_options.*beta"),
        ({"opt": "adamw", "opt_options": {"betas": [2.0, 0.9]}}, "opt_options.*2.0"),
        ({"opt_options": {"lr": 0.9}}, r"which is trainer\.lr"),
        ({"opt_options": ["eps"]}, "keywords and values"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"epoch": 3}, r"no setting trainer\.epoch; did you mean trainer\.epochs\?"),
        ({"qqqqqqq": 3}, r"no setting trainer\.qqqqqqq; there are trainer\.batch_size, .*… \(\d+\)"),
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


def test_evaluate_leaves_every_module_in_its_mode():
    model = make_model().train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    evaluate(model, Batches(1))
    assert [module for module in model.modules() if not module.training] == [frozen]
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.zeros(1, 99, 8, 8), torch.zeros(1))])
    assert model.training


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema_decay": 0.9},
        {"precision": "bf16", "nesterov": True},
        {"opt": "adamw", "clip_grad": 1.0, "schedule": "cosine"},
        {"opt": "lamb", "schedule": "multistep"},
        {"opt": "muon", "schedule": "constant"},
        {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
    ],
    ids=lambda options: "-".join(options),
)
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


@pytest.mark.parametrize("with_file", [True, False])
def test_a_non_finite_loss_in_the_first_epoch_says_that_nothing_is_kept(tmp_path, with_file):
    path = tmp_path / "checkpoint.pt" if with_file else None
    with pytest.raises(NonFiniteLossError, match=r"epoch 1.*nothing was kept"):
        train(make_model(), config(), loaders(poison=(0, 1)), checkpoint=path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_stopped_keeps_no_state_that_is_not_finite(tmp_path):
    with pytest.raises(NonFiniteLossError):
        train(
            make_model(),
            config(),
            loaders(poison=(0, 0)),
            checkpoint=tmp_path / "checkpoint.pt",
            should_stop=lambda: True,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("norm", "compiled"),
    [
        (nn.BatchNorm2d(4), False),
        (nn.BatchNorm1d(4), False),
        (nn.GroupNorm(4, 4), False),
        (nn.InstanceNorm2d(4), False),
        pytest.param(nn.BatchNorm2d(4), True, marks=pytest.mark.slow),
    ],
)
def test_one_value_per_channel_is_an_error_that_names_the_batch_size(norm, compiled):
    class One(Batches):
        num_samples, batch_size = 3, 1

        def __iter__(self):
            return ((images[:1], labels[:1]) for images, labels in super().__iter__())

    data = SimpleNamespace(train=One(), test=Batches(7), holdout=None)
    flat = [nn.Flatten()] if isinstance(norm, nn.BatchNorm1d) else []
    model = nn.Sequential(nn.Conv2d(3, 4, 8), *flat, norm, nn.Flatten(), nn.Linear(4, 10))
    with pytest.raises(ConfigError, match=r"a batch of 1 leaves.*one value per channel.*raise trainer\.batch_size"):
        train(model, config(compile=compiled), data)


def test_a_resumed_run_says_where(tmp_path):
    said = []
    options = {"checkpoint": tmp_path / "checkpoint.pt", "on_notice": said.append}
    with pytest.raises(InterruptError):
        train(make_model(), config(), on_epoch=interrupt_after(2), **options)
    assert said == []
    train(make_model(), config(), **options)
    assert said == ["resumed at epoch 3 of 4"]
    train(make_model(), config(), **options)  # finished already
    assert len(said) == 1


def interrupt_after(epoch):
    def interrupt(metrics):
        if metrics["epoch"] == epoch:
            raise InterruptError

    return interrupt


def test_training_ends_when_patience_does(tmp_path):
    said = []
    data = loaders(holdout=True)
    accuracies = iter([20.0, 30.0, 30.0, 25.0, 29.0, 99.0])
    options = {"checkpoint": tmp_path / "checkpoint.pt", "on_notice": said.append}

    def measured(model, loader, **_):
        return {"loss": 1.0, "top1": next(accuracies) if loader is data.holdout else 10.0}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "evaluate", measured)
        settings = config(epochs=9, patience=3)
        with pytest.raises(InterruptError):
            train(make_model(), settings, data, on_epoch=interrupt_after(3), **options)
        result = train(make_model(), settings, data, **options)
        assert len(result.history) == 5
        assert result.best["epoch"] == 2
        assert said == ["resumed at epoch 4 of 9", "stopped after epoch 5: no better held-out accuracy since epoch 2"]
        again = train(make_model(), settings, data, **options)
    assert timeless(again.history) == timeless(result.history)


def test_patience_needs_a_held_out_part():
    with pytest.raises(ConfigError, match=r"dataset\.holdout"):
        train(make_model(), config(patience=2))


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


def test_losses_within_an_epoch_are_told_and_average_to_its_loss(monkeypatch):
    monkeypatch.setattr(epochs, "_LOSS_CHECK_STEPS", 2)
    told, networks = [], []
    model = make_model()
    result = train(
        model,
        config(epochs=2, schedule="onecycle"),
        on_step=told.append,
        on_network=lambda epoch, network: networks.append((epoch, network)),
    )
    assert [metrics["epoch"] for metrics in told] == pytest.approx([2 / 3, 1, 1 + 2 / 3, 2])
    for (first, last), epoch in zip((told[:2], told[2:]), result.history, strict=True):
        assert (2 * first["loss"] + last["loss"]) / 3 == pytest.approx(epoch["train_loss"])
        assert last["lr"] == epoch["lr"] != first["lr"]
    assert networks == [(1, model), (2, model)]


def test_losses_go_on_within_an_epoch_that_is_resumed(monkeypatch, tmp_path):
    monkeypatch.setattr(epochs, "_LOSS_CHECK_STEPS", 1)
    whole, parts, steps = [], [], []
    train(make_model(), config(epochs=1), on_step=whole.append)

    def stop():
        steps.append(None)
        return len(steps) == 2

    options = {"checkpoint": tmp_path / "checkpoint.pt", "on_step": parts.append}
    with pytest.raises(PreemptedError):
        train(make_model(), config(epochs=1), should_stop=stop, **options)
    train(make_model(), config(epochs=1), **options)
    assert parts == [pytest.approx(metrics) for metrics in whole]


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


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (3, (1, 2)), (5, 1)])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_only_strided_or_large_depthwise_convolutions_are_computed_in_float32_on_a_cpu(size, stride, groups):
    conv = nn.Conv2d(8, 8, size, stride, padding=size // 2, groups=groups)
    x = torch.randn(2, 8, 6, 6)

    def passes(precision):
        with precision:
            out = conv(x)
        return out, *torch.autograd.grad(out.bfloat16().float().square().sum(), conv.parameters())

    autocast, float32 = passes(torch.autocast("cpu", torch.bfloat16)), passes(mixed_precision(CPU, None))
    expected = float32 if groups == 8 and (size, stride) != (3, 1) else autocast
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


def test_frozen_parts_stay_as_they_are_and_all_else_is_trained():
    model = make_model(dropout=0.5).eval()  # as it comes from an evaluation
    frozen, norms = model.layer1, [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    frozen.requires_grad_(False)
    model.layer2[0].bn1.requires_grad_(False).train()  # its statistics go on
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = []
    train(model, config(epochs=2), on_network=lambda *_: modes.append([m for m in model.modules() if not m.training]))
    assert modes == [list(frozen.modules())] * 2
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    still = {f"layer2.0.bn1.{name}" for name in ("weight", "bias")}
    assert changed == {name for name in before if not name.startswith("layer1.")} - still
    assert [norm.num_batches_tracked.item() > 0 for norm in norms] == [norm not in frozen.modules() for norm in norms]


def test_a_model_in_evaluation_mode_is_trained_like_one_in_training_mode():
    histories = [train(model, config()).history for model in (make_model(dropout=0.5), make_model(dropout=0.5).eval())]
    assert timeless(histories[0]) == timeless(histories[1])


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
