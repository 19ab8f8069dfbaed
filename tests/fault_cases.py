"""Runs that are killed: ``python fault_cases.py FOLDER KILLS`` prints, as JSON, what became of them.

The process itself never computes, so that it can fork: a run starts within milliseconds.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from whtnet.engine import load_checkpoint
from whtnet.experiment import Experiment
from whtnet.runs import run
from whtnet.tracking import NullSink

EXPERIMENT = Experiment.from_config(
    {
        "backbone": {"name": "resnet20"},
        "policy": {"name": "mine", "rules": [{"match": "conv1x1", "replace": "BWHT1d"}]},
        "dataset": {"name": "synthetic", "size": 8, "train_size": 64, "test_size": 16, "num_classes": 10},
        "trainer": {"epochs": 6, "batch_size": 16, "precision": "fp32"},
        "device": "cpu",
    }
)


def start(root: Path) -> int:
    """A new process that runs the experiment; its process number."""
    if child := os.fork():
        return child
    status = 1
    with contextlib.suppress(BaseException):
        torch.set_num_threads(1)
        run(EXPERIMENT, sink=NullSink(), root=root)
        status = 0
    os._exit(status)


def exit_status(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def outcome(root: Path) -> dict:
    folder = EXPERIMENT.folder(root)
    state = load_checkpoint(folder / "checkpoint.pt", None, torch.device("cpu"))
    record = json.loads((folder / "record.json").read_text())
    return {
        "weights": {name: float(value.double().sum()) for name, value in state["model"].items()},
        "losses": [epoch["train_loss"] for epoch in record["history"]],
        "files": sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()),
    }


def main(root: Path, kills: int) -> dict:
    began = time.monotonic()
    assert exit_status(start(root / "whole")) == 0
    duration = time.monotonic() - began
    generator = random.Random(0)
    killed = 0
    while killed < kills:
        process = start(root / "killed")
        # A killed run has a checkpoint to go on from, so its rest is shorter and shorter: aim at the beginning.
        time.sleep(generator.uniform(0, duration) / (1 + killed / 4))
        os.kill(process, signal.SIGKILL)
        if exit_status(process) == -signal.SIGKILL:
            killed += 1
        else:  # it was faster: begin anew, with all that the kills left lying about
            folder = EXPERIMENT.folder(root / "killed")
            (folder / "record.json").unlink()
            (folder / "checkpoint.pt").unlink()
    final = exit_status(start(root / "killed"))
    return {"killed": killed, "final": final, "whole": outcome(root / "whole"), "parts": outcome(root / "killed")}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
