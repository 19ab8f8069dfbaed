"""Optimisers and schedules: against PyTorch's own and closed formulas."""

import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_engine import config, loaders, make_model, train
from torch import nn
from torch.nn import functional as F

from whtnet.engine import TrainConfig, epochs, fit
from whtnet.engine.optimisation import clip_gradients_, learning_rate, make_optimizer, make_schedule, parameter_groups
from whtnet.layers import spectral_parameter_names
from whtnet.searchpath import register_name_source

CPU = torch.device("cpu")


def rates(settings, steps_per_epoch):
    """Of every step."""
    optimizer = make_optimizer(nn.Linear(2, 2), settings)
    schedule = make_schedule(settings, optimizer, steps_per_epoch)
    values = []
    for step in range(settings.epochs * steps_per_epoch):
        schedule.step_update(step)
        values.append(learning_rate(optimizer))
    return values


# --- Schedules ---


def test_authors_milestones_are_epochs_82_122_163_of_200():
    by_epoch = rates(TrainConfig(), 10)[::10]
    assert [epoch for epoch in range(1, 200) if by_epoch[epoch] != by_epoch[epoch - 1]] == [82, 122, 163]
    assert by_epoch[0] == 0.1
    assert by_epoch[-1] == pytest.approx(1e-4)


@pytest.mark.parametrize("epochs", [1, 7, 200])
def test_multistep_is_the_closed_formula(epochs):
    c = TrainConfig(epochs=epochs, gamma=0.3)
    reached = [sum(epoch >= round(m * epochs) for m in c.milestones) for epoch in range(epochs)]
    assert rates(c, 3) == pytest.approx([0.1 * 0.3**n for n in reached for _ in range(3)], rel=1e-12)


@pytest.mark.parametrize("warmup", [0.0, 0.25, 0.3333])
@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (10, 8), (15, 390), (3, 5)])
def test_onecycle_is_the_closed_formula(epochs, steps, warmup):
    total, rise = epochs * steps, warmup * epochs * steps
    expected = [0.4 * (s + 1) / (rise + 1) if s < rise else 0.4 * (total - s) / (total - rise) for s in range(total)]
    got = rates(TrainConfig(epochs=epochs, lr=0.4, schedule="onecycle", warmup=warmup), steps)
    assert got == pytest.approx(expected, rel=1e-12)


def test_cosine_rises_linearly_and_falls_by_half_a_wave():
    got = rates(TrainConfig(epochs=10, lr=0.4, schedule="cosine", warmup=0.25), 8)
    expected = [0.4 * (s + 1) / 21 if s < 20 else 0.2 * (1 + math.cos(math.pi * (s - 20) / 60)) for s in range(80)]
    assert got == pytest.approx(expected, rel=1e-12)


def test_constant_is_constant():
    assert set(rates(TrainConfig(epochs=3, schedule="constant"), 4)) == {0.1}


def test_milestones_may_have_factors_of_their_own():
    got = rates(TrainConfig(epochs=10, milestones=(0.4, 0.8), gamma=(0.1, 0.5)), 1)
    assert got == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.005] * 2)


def recipe(name):
    """What ``configs/trainer/NAME.yaml`` says."""
    with initialize_config_dir(str(Path(__file__).parents[1] / "configs"), version_base="1.3"):
        register_name_source()
        return TrainConfig.from_dict(OmegaConf.to_container(compose("config", [f"trainer={name}"]).trainer))


def test_keras_recipe_drops_at_80_120_160_180_and_decays_kernels_only():
    c = recipe("keras")
    expected = [1e-3] * 80 + [1e-4] * 40 + [1e-5] * 40 + [1e-6] * 20 + [5e-7] * 20
    assert rates(c, 1) == pytest.approx(expected)
    model = make_model()
    kernels = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert decayed(model, c) == {f"{name}.weight" for name in kernels}
    optimizer = make_optimizer(model, c)
    assert type(optimizer) is torch.optim.Adam
    assert {group["eps"] for group in optimizer.param_groups} == {1e-7}


@pytest.mark.parametrize(("name", "epochs", "lr"), [("adam_short", 15, 0.003), ("finetune", 4, 0.001)])
def test_recipes_with_adamw(name, epochs, lr):
    c = recipe(name)
    assert type(make_optimizer(make_model(), c)) is torch.optim.AdamW
    assert (c.epochs, c.schedule, c.lr, c.decay_spectral) == (epochs, "onecycle", lr, False)


# --- Parameter groups ---


def decayed(model, c):
    """Names of the parameters with weight decay."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)] for group in parameter_groups(model, c) if group["weight_decay"] for p in group["params"]}


def test_weight_decay_reaches_what_the_recipe_says():
    model = make_model()
    parameters = dict(model.named_parameters())
    everything = {n for n in parameters if "bias" not in n}
    spectral = spectral_parameter_names(model)
    norms = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert spectral
    assert norms
    assert decayed(model, TrainConfig()) == everything
    assert decayed(model, TrainConfig(decay_spectral=False)) == everything - spectral
    assert decayed(model, TrainConfig(decay_norm=False)) == everything - norms
    grouped = [p for group in parameter_groups(model, TrainConfig()) for p in group["params"]]
    assert len(grouped) == len(parameters)
    slow = parameter_groups(model, TrainConfig(spectral_lr_scale=0.1))
    assert {id(p) for g in slow if g["lr_scale"] == 0.1 for p in g["params"]} == {id(parameters[n]) for n in spectral}


def test_spectral_parameters_may_have_their_own_learning_rate():
    steps = {}
    for factor in (1.0, 0.5):
        model = make_model()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        fit(model, loaders(), TrainConfig(precision="fp32", spectral_lr_scale=factor, dry_run=True), device=CPU, seed=0)
        steps[factor] = {n: p.detach() - before[n] for n, p in model.named_parameters()}
    spectral = spectral_parameter_names(model)
    assert spectral
    for name, step in steps[1.0].items():
        assert step.abs().max() > 0
        torch.testing.assert_close(steps[0.5][name], step / 2 if name in spectral else step, rtol=1e-3, atol=1e-6)


# --- Optimisers ---


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_default_optimiser_is_pytorchs_sgd_bit_for_bit(nesterov):
    c = config(schedule="multistep", milestones=(0.5,), gamma=0.1, nesterov=nesterov, epochs=2)
    ours, reference = make_model(), make_model().to(memory_format=torch.channels_last)
    train(ours, c)
    weights, biases = ([p for n, p in reference.named_parameters() if ("bias" in n) is bias] for bias in (False, True))
    groups = [{"params": weights, "weight_decay": c.weight_decay}, {"params": biases}]
    sgd = torch.optim.SGD(groups, lr=c.lr, momentum=c.momentum, nesterov=nesterov)
    data = loaders().train
    for epoch, lr in enumerate((0.05, 0.05 * 0.1)):
        data.set_epoch(epoch)
        for group in sgd.param_groups:
            group["lr"] = lr
        for images, labels in data:
            loss = F.cross_entropy(reference(images), labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    for (name, a), b in zip(ours.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("opt", "options", "kind"),
    [
        ("adam", {"eps": 1e-4}, "Adam"),
        ("csgdp", {}, "SGDP"),
        ("adamw", {}, "AdamW"),
        ("lamb", {}, "Lamb"),
        ("muon", {}, "Muon"),
        ("lion", {}, "Lion"),
        ("rmsprop", {"momentum": 0.5}, "RMSprop"),
    ],
)
def test_optimisers_of_timm_train(opt, options, kind):
    c = config(opt=opt, opt_options=options, lr=0.003, epochs=12, precision="fp32")
    optimizer = make_optimizer(make_model(), c)
    assert type(optimizer).__name__ == kind
    for name, value in options.items():
        assert {group[name] for group in optimizer.param_groups} == {value}
    history = train(make_model(), c).history
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_muon_leaves_thresholds_and_transform_domain_weights_to_adamw():
    model = make_model()
    c = config(opt="muon", lr=0.003)
    optimizer = make_optimizer(model, c)
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    by_adamw = {name for name, p in model.named_parameters() if "exp_avg_sq" in optimizer.state[p]}
    flat = {name for name, p in model.named_parameters() if p.dim() == 1}
    assert by_adamw == flat | spectral_parameter_names(model)


# --- Gradients ---


def test_gradients_are_scaled_down_to_the_limit_and_their_norm_is_told():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for p in model[0].parameters():  # the other one's have no gradients
        p.grad = torch.ones_like(p)
    assert clip_gradients_(model, 0.0).item() == pytest.approx(math.sqrt(12))
    assert clip_gradients_(model, 10.0).item() == pytest.approx(math.sqrt(12))
    assert model[0].bias.grad.eq(1).all()
    assert clip_gradients_(model, 2.0).item() == pytest.approx(math.sqrt(12))
    assert model[0].bias.grad.mean().item() == pytest.approx(2 / math.sqrt(12))


def test_the_norm_of_an_epochs_steps_is_their_mean():
    norms = []

    def note(model, limit):
        norm = clip_gradients_(model, limit)
        norms.append(norm.item())
        return norm

    c = config(epochs=2, clip_grad=0.7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "clip_gradients_", note)
        history = train(make_model(), c).history
    assert len(norms) == 6
    assert [m["gradient_norm"] for m in history] == pytest.approx([sum(norms[:3]) / 3, sum(norms[3:]) / 3])


def test_clipped_steps_are_smaller():
    plain, clipped = make_model(), make_model()
    start = plain.fc.weight.detach().clone()
    train(plain, config(epochs=1, momentum=0.0))
    train(clipped, config(epochs=1, momentum=0.0, clip_grad=0.01))
    assert (clipped.fc.weight - start).norm() < 0.1 * (plain.fc.weight - start).norm()
