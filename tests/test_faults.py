"""Whatever happens to a run: a clear message, an exit status that tells, and nothing lost that was there before."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # every run is a process of its own

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"OMP_NUM_THREADS": "1"}
DATA = ["dataset=synthetic", "dataset.size=8", "dataset.train_size=64", "dataset.test_size=16"]
RUN = [
    sys.executable,
    str(ROOT / "train.py"),
    "trainer.batch_size=16",
    "trainer.precision=fp32",
    "trainer.epochs=2",
    "device=cpu",
]


def start(cwd, *overrides, data=DATA, **options):
    return subprocess.Popen(
        [*RUN, *data, "logger=none", *overrides],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def end(process):
    """Exit status and output in one line."""
    output, _ = process.communicate(timeout=300)
    assert "Traceback" not in output, output
    return process.returncode, " ".join(output.split())


def train(cwd, *overrides, **options):
    return end(start(cwd, *overrides, **options))


def records(folder):
    return {path: path.read_text() for path in sorted(folder.rglob("record.json"))}


def test_killed_twenty_times_ends_as_if_it_had_not_been(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("fault_cases.py")), str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["killed"] == 20
    assert result["final"] == 0
    assert result["parts"] == result["whole"]
    assert len([name for name in result["parts"]["files"] if name.endswith("record.json")]) == 1


def test_two_runs_of_the_same_second_leave_one_record_and_say_so(tmp_path):
    processes = [start(tmp_path, "trainer.epochs=6") for _ in range(2)]
    ended = sorted(end(process) for process in processes)
    assert len(records(tmp_path)) == 1
    assert ended[0][0] == 0
    status, output = ended[1]
    assert (status == 1 and "in progress in another process" in output) or (status == 0 and "test top-1" in output)


def test_a_full_disk_keeps_what_was_there(tmp_path):
    assert train(tmp_path, "seed=1")[0] == 0
    before = records(tmp_path)

    def fill():  # no file may grow beyond 100 kB, which a checkpoint does
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    status, output = train(tmp_path, preexec_fn=fill)
    assert status == 1
    assert "cannot write" in output
    assert "free space" in output
    assert records(tmp_path) == before
    assert not list(tmp_path.rglob("*.tmp"))
    assert train(tmp_path)[0] == 0  # with space again
    assert len(records(tmp_path)) == 2


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    status, output = train(tmp_path)
    assert status == 1
    assert "cannot write" in output
    assert (tmp_path / "runs").read_text() == "a file where the folder should be"


def test_a_checkpoint_of_another_policy(tmp_path):
    assert train(tmp_path, "policy=conv3x3")[0] == 0
    (other,) = records(tmp_path)
    assert train(tmp_path, "policy=none")[0] == 0
    mine = next(path for path in records(tmp_path) if path != other).parent
    (mine / "record.json").unlink()
    content = (other.parent / "checkpoint.pt").read_bytes()
    (mine / "checkpoint.pt").write_bytes(content)
    status, output = train(tmp_path, "policy=none")
    assert status == 1
    assert "checkpoint.pt belongs to a run with other settings" in output
    assert "resume=never" in output
    assert (mine / "checkpoint.pt").read_bytes() == content
    assert list(records(tmp_path)) == [other]


def test_a_loss_that_is_no_number(tmp_path):
    status, output = train(tmp_path, "trainer.lr=1e30", "trainer.epochs=3")
    assert status == 1
    assert "the loss became" in output
    assert "Try a lower trainer.lr" in output
    assert not records(tmp_path)


def test_ctrl_c(tmp_path):
    # A shell starts what it puts into the background with SIGINT ignored, and that is inherited.
    heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start(tmp_path, "trainer.epochs=5000", "trainer.eval_every=5000", **heeds)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("checkpoint.pt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    status, output = end(process)
    assert status == 130
    assert "goes on from the last checkpoint" in output
    assert not records(tmp_path)


def test_an_image_that_cannot_be_decoded(tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(folder / f"{i}.png")
    (tmp_path / "data" / "train" / "dog" / "2.png").write_bytes(b"\x89PNG, and then nothing")
    status, output = train(tmp_path, data=["dataset=timm", "dataset.root=data", "dataset.input_size=8"])
    assert status == 1
    assert "2.png can't be decoded" in output
    assert not records(tmp_path)
