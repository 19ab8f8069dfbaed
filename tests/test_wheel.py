"""The wheel, installed without a checkout: the command ``whtnet`` with the shipped configs, tables and results."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from whtnet.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PARTS = ("whtnet", "configs", "experiments", "results", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder that the wheel is unpacked into, and nothing of the repository beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", str(folder), str(source)], capture_output=True, text=True, timeout=300
    )
    if built.returncode:
        pytest.skip(f"the wheel needs hatchling, which pip downloads: {built.stderr[-300:]}")
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def whtnet(installed, *arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, str(installed / "bin" / "whtnet"), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_the_installed_command_works_in_an_empty_folder(installed, tmp_path):
    helped = whtnet(installed, "--help", cwd=tmp_path)
    assert all(f"  {name} " in helped.stdout for name in COMMANDS)
    unknown = whtnet(installed, "trian", cwd=tmp_path)
    assert unknown.returncode == 1
    assert unknown.stderr == "error: there is no command 'trian'; did you mean train?\n"
    counted = whtnet(installed, "count", "backbone=resnet20", "policy=paper", cwd=tmp_path)
    assert "133,082" in counted.stdout, counted.stderr
    assert not list(tmp_path.iterdir())
    tiny = ["dataset=synthetic", "dataset.size=8", "trainer.epochs=1", "trainer.batch_size=64", "logger=none"]
    trained = whtnet(installed, "train", "backbone=resnet20", *tiny, cwd=tmp_path)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    (run,) = (tmp_path / "runs" / "synthetic").iterdir()
    assert whtnet(installed, "evaluate", str(run), cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_tables_are_written_where_one_works_and_compared_with_the_shipped_ones(installed, tmp_path):
    done = whtnet(installed, "table", "digits", "--no-training", "--logger", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "results" / "digits.md").is_file()
    refused = whtnet(installed, "table", "digits", "--update", cwd=tmp_path)
    assert refused.returncode == 1
    assert "in a checkout only" in refused.stdout + refused.stderr
