"""What the guide and the README say can be typed can be typed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from whtnet.commands.compose import compose_config

ROOT = Path(__file__).parents[1]
GUIDE = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *GUIDE]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)]*))?\)")


def blocks(page, language):
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


@pytest.fixture
def checkout(tmp_path):
    """A copy that commands may write to."""
    for name in ("configs", "experiments", "results", "scripts", "whtnet"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path)
    (tmp_path / "README.md").write_text("")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in GUIDE if blocks(page, "bash")], ids=lambda page: page.stem)
def test_commands_run(page, checkout):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(checkout),
    }
    script = "\n".join(blocks(page, "bash"))
    done = subprocess.run(
        ["bash", "-euc", script], cwd=checkout, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("page", [page for page in GUIDE if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_runs(page):
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), {})


def test_the_front_page_says_what_is_printed(capsys):
    (code,) = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_that_are_only_shown_name_what_exists(page):
    text = "\n".join(text for kind, text in FENCE.findall(page.read_text()) if kind in ("bash", "console", "text"))
    prose = "\n".join(re.findall(r"`([^`\n]+)`", page.read_text()))
    for script in re.findall(r"python (\S+\.py)", text + prose):
        assert (ROOT / script).is_file(), script
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"\bmake ([a-z-]+)", text + prose):
        assert target in targets, target
    for table in re.findall(r"TABLE=([a-z0-9_]+)", text + prose):
        assert (ROOT / "experiments" / f"{table}.yaml").is_file(), table
    for policy in re.findall(r"\bpolicy=([a-z0-9_/]+(?:,[a-z0-9_/]+)*)", text):
        for name in policy.split(","):
            known = (ROOT / "configs" / "policy" / f"{name}.yaml").is_file()
            assert known or f"configs/policy/{name}.yaml" in text, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text()):
        if not target.startswith("http"):
            there = page.parent / target if target else page
            assert there.exists(), target
            if anchor and there.suffix == ".md":
                titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], anchor


def test_settings_that_are_shown_compose():
    """``python train.py …`` in console blocks, where nothing in it stands for something of the reader's."""
    composed = 0
    for page in PAGES:
        text = "\n".join(blocks(page, "console")).replace("\\\n", " ")
        for line in re.findall(r"python train\.py ([^#&\n]*)", text):
            words = [word for word in line.split() if "=" in word and not word.startswith(("hydra", "-"))]
            if any("…" in word for word in words) or "-m" in line.split():
                continue
            compose_config(words)
            composed += 1
    assert composed >= 5


def test_figures_are_what_the_script_draws(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "scripts" / "draw_docs.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "figures").iterdir()}
    assert all((tmp_path / name).stat().st_size > 5000 for name in drawn)
