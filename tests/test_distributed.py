"""Several processes that train one model, on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from distributed_cases import history
from timm.layers import DropPath
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from whtnet import distributed
from whtnet.cli import only_the_first_speaks, train
from whtnet.commands.compose import compose_config
from whtnet.data import DatasetError, load_dataset
from whtnet.distributed import PeerError
from whtnet.engine.global_batch import GlobalBatch
from whtnet.errors import UserError
from whtnet.experiment import Experiment
from whtnet.runs import resolve_device, run
from whtnet.settings import ConfigError
from whtnet.tracking import NullSink

TESTS = Path(__file__).parent
ROOT = TESTS.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
RUN = [
    str(ROOT / "train.py"),
    "logger=none",
    "device=cpu",
    "dataset=synthetic",
    "dataset.size=8",
    "dataset.train_size=480",
    "dataset.test_size=31",
    "trainer.epochs=3",
    "trainer.batch_size=15",
    "trainer.precision=fp32",
    "trainer.lr=0.0002",  # small steps, in which rounding hardly grows
]


def start(*command, cwd):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_until(found, process):
    """The first true value of ``found()``, which must come before the process ends."""
    while not (value := found()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return value


def checkpoint(folder):
    (path,) = folder.glob("runs/synthetic/*/checkpoint.pt")
    return torch.load(path, weights_only=True)


def losses(epochs):
    return [[m["train_loss"], m["test_loss"]] for m in epochs]


# --- In one process ---


@pytest.fixture
def member(monkeypatch):
    """Make this process one of several; nothing communicates."""

    def become(rank, count):
        for name, value in {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, str(value))

    return become


@pytest.mark.parametrize(("total", "count"), [(15, 2), (16, 4), (3, 4), (7, 3)])
def test_shares_are_a_partition(member, total, count):
    images = []
    for rank in range(count):
        member(rank, count)
        share = list(range(total))[distributed.share(total)]
        assert len(share) in (total // count, -(-total // count))
        images += share
    assert images == list(range(total))


def test_the_shares_of_all_processes_are_the_batches_of_one(member):
    data = load_dataset("synthetic", size=8, train_size=96, test_size=31)

    def batches(split, **position):
        options = {"batch_size": 15, "eval_batch_size": 15, "device": torch.device("cpu"), "seed": 1}
        loader = getattr(data.loaders(**options), split)
        loader.set_epoch(2, **position)
        return list(loader)

    for split, position in (("train", {}), ("train", {"first_batch": 4}), ("test", {})):
        whole = batches(split, **position)
        shares = []
        for rank in range(2):
            member(rank, 2)
            shares.append(batches(split, **position))
        member(0, 1)
        for i, (images, labels) in enumerate(whole):
            parts = [share[i] for share in shares if i < len(share)]
            assert torch.equal(torch.cat([x for x, _ in parts]), images)
            assert torch.equal(torch.cat([y for _, y in parts]), labels)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Dropout(0.4), (15, 6)),
        (nn.Dropout(0.4), (15, 3, 4, 4)),
        (nn.Dropout(0.4), (15 * 4, 3, 5)),  # four windows an image
        (nn.Dropout(0.0), (15 * 4, 3, 5)),
        (nn.Dropout1d(0.4), (15, 6, 3)),
        (nn.Dropout2d(0.4), (15, 6, 3, 3)),
        (nn.Dropout3d(0.4), (15, 6, 2, 2, 2)),
        (nn.AlphaDropout(0.4), (15, 6)),
        (nn.FeatureAlphaDropout(0.4), (15, 6, 3, 3)),
        (StochasticDepth(0.4, "row"), (15, 3, 4, 4)),
        (StochasticDepth(0.4, "batch"), (15, 3, 4, 4)),
        (DropPath(0.4), (15, 3, 4)),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_masks_of_all_processes_are_those_of_one(member, module, shape, memory_format):
    x = torch.randn(shape).to(memory_format=memory_format if len(shape) == 4 else torch.preserve_format)
    for seed in range(4):
        torch.manual_seed(seed)
        whole = module(x)
        after = torch.rand(1)
        for rank in range(2):
            member(rank, 2)
            rows = distributed.share(15)
            mine = x.unflatten(0, (15, -1))[rows].flatten(0, 1).requires_grad_()
            torch.manual_seed(seed)
            with GlobalBatch(15):
                y = module(mine)
            assert torch.equal(y, whole.unflatten(0, (15, -1))[rows].flatten(0, 1))
            assert torch.equal(torch.rand(1), after)
            y.sum().backward()
            assert mine.grad.count_nonzero() > 0 or not y.any()


def test_what_images_share_has_one_mask(member):
    seen = []
    for rank in range(2):
        member(rank, 2)
        torch.manual_seed(0)
        with GlobalBatch(15):
            seen.append(F.dropout(torch.ones(1, 5, 6)) * torch.ones(()).bernoulli_(0.9))
        with GlobalBatch(15):
            assert torch.equal(nn.Dropout2d(0.4).eval()(torch.ones(8, 2, 2, 2)), torch.ones(8, 2, 2, 2))
    assert seen[0].shape == (1, 5, 6)
    assert torch.equal(*seen)


def test_more_processes_than_images_or_than_one_named_gpu_can_serve(member):
    member(0, 16)
    with pytest.raises(DatasetError, match=r"16 processes.*trainer\.batch_size"):
        load_dataset("synthetic").loaders(batch_size=15, eval_batch_size=15, device=torch.device("cpu"), seed=1)
    with pytest.raises(ConfigError, match="device=auto"):
        resolve_device("cuda:1")


@pytest.mark.parametrize(
    ("rank", "error", "out", "err"),
    [
        (0, UserError("no data"), "", "error: no data\n"),
        (0, PeerError("gone"), "", "error: gone\n"),
        (1, PeerError("gone"), "", ""),  # the other one says why
        (1, UserError("no data"), "", "error in process 1: no data\n"),
    ],
)
def test_what_goes_wrong_is_told_once(member, monkeypatch, capsys, rank, error, out, err):
    member(rank, 2)

    def fail(*arguments):
        print("output")
        raise error

    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))  # to have it back afterwards
        monkeypatch.setattr(sys, f"__{stream}__", getattr(sys, stream))
    only_the_first_speaks()
    print("Hydra's complaint", file=sys.stderr)
    monkeypatch.setattr("whtnet.cli.Experiment.from_config", fail)
    with pytest.raises(SystemExit) as ended:
        train(compose_config([]))
    assert ended.value.code == 1
    if rank == 0:
        out, err = "output\n" + out, "Hydra's complaint\n" + err
    assert capsys.readouterr() == (out, err)


# --- In two ---


def test_two_processes_train_as_one(tmp_path):
    status, _, errors = finish(start(*TORCHRUN, TESTS / "distributed_cases.py", tmp_path / "results", cwd=tmp_path))
    assert status == 0, errors
    two = json.loads((tmp_path / "results").read_text())
    one = history()
    torch.testing.assert_close(losses(two["history"]), losses(one), rtol=1e-5, atol=0)
    norms = [[metrics["gradient_norm"] for metrics in epochs] for epochs in (two["history"], one)]
    torch.testing.assert_close(*norms, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses(two["bf16"])[0][:1], losses(history(precision="bf16"))[0][:1], rtol=1e-2, atol=0)
    assert max(two["batch_norm"]) < 1e-12
    # What this test would see if each process normalised and dropped out by itself:
    assert max(abs(a["train_loss"] / b["train_loss"] - 1) for a, b in zip(two["local"], one, strict=True)) > 1e-2


@pytest.mark.slow
def test_a_run_survives_the_loss_of_a_process_and_preemption_and_another_number_of_processes(tmp_path):
    experiment = Experiment.from_config(compose_config(RUN[1:]))
    broken = tmp_path / "broken"
    broken.mkdir()

    process = start(*TORCHRUN, *RUN, cwd=broken)
    wait_until(lambda: list(broken.glob("runs/synthetic/*/checkpoint.pt")), process)
    os.kill(second_process(process.pid), signal.SIGKILL)
    status, out, errors = finish(process)
    assert status != 0
    assert out.count("run folder:") == out.count("sites replaced") == 1  # the first process alone speaks
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : -9" in errors
    assert out.count("another process of this run ended") <= 1  # torchrun may end it before it can say so
    assert 'Traceback (most recent call last):\n  File "' + RUN[0] not in errors
    epoch = checkpoint(broken)["epoch"]

    process = start(*TORCHRUN, *RUN, cwd=broken)
    wait_until(lambda: checkpoint(broken)["epoch"] > epoch, process)
    process.terminate()
    status, out, errors = finish(process)
    assert status != 0
    assert errors.count("the same command goes on from there") == 1
    assert 0 < checkpoint(broken)["part"]["steps"] <= 32

    whole, resumed = (run(experiment, sink=NullSink(), root=folder) for folder in (tmp_path, broken / "runs"))
    torch.testing.assert_close(losses(resumed["history"]), losses(whole["history"]), rtol=2e-3, atol=0)
    assert sorted(p.name for p in broken.rglob("*") if p.is_file()) == [
        "checkpoint.pt",
        "metrics.csv",
        "record.json",
        "record.layers.json",
    ]


def second_process(torchrun):
    """Number of the process with rank 1."""
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        if b"RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError("torchrun has no second process")
