"""What is imported when: help, completion and ``import whtnet`` must not wait for what they don't need."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import whtnet
from whtnet.backbones import SOURCES
from whtnet.commands import COMMANDS
from whtnet.searchpath import LIBRARIES

ROOT = Path(__file__).parents[1]
HEAVY = ("torch._dynamo", "torch._inductor", "sympy", "torchvision", "timm", "sklearn", "wandb", "matplotlib", "plotly")


def modules_after(code, *arguments, **environment):
    """Names of the modules that a fresh process has imported after the code, whatever that prints."""
    tell = "import atexit, sys; atexit.register(lambda: print(*sys.modules, sep='\\n', file=sys.stderr))\n"
    env = {"PATH": "", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", tell + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    return done.stderr.split(), done.stdout


def test_import_takes_nothing_with_it():
    modules, _ = modules_after("import whtnet")
    assert "torch" not in modules
    assert sum(name.startswith("whtnet") for name in modules) == 1


def test_the_names_of_the_package_load_pytorch_alone():
    modules, _ = modules_after("from whtnet import *")
    assert "torch" in modules
    assert [name for name in HEAVY if name in modules] == []


def test_modules_are_attributes_whatever_was_imported_before():
    code = "import whtnet; print(whtnet.functional.fwht2d.__name__, whtnet.evaluation.CALIBRATION_BINS)"
    _, printed = modules_after(code)
    assert printed.split() == ["fwht2d", "15"]
    assert {"functional", "classifier", "BWHT1d"} <= set(dir(whtnet))
    with pytest.raises(AttributeError, match="no attribute 'functionals'"):
        _ = whtnet.functionals


def test_training_loads_no_library_before_it_is_needed():
    modules, _ = modules_after("import whtnet.cli")
    later = ("sklearn", "matplotlib", "plotly", "onnx")
    assert [name for name in later if name in modules] == []


RUN = f"import runpy, sys; sys.argv[0] = {str(ROOT / 'train.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.parametrize(
    ("arguments", "environment", "shown"),
    [
        (["--help"], {}, "policy:"),
        (["-sc", "query=bash"], {"COMP_LINE": "python train.py dataset=dig"}, "dataset=digits"),
        (["--cfg", "job"], {}, "epochs:"),
    ],
    ids=["help", "completion", "config"],
)
def test_answers_without_pytorch(arguments, environment, shown):
    modules, out = modules_after(RUN, *arguments, **environment)
    assert shown in out
    assert "torch" not in modules


DOOR = "import sys; from whtnet.commands import main; main()"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_of_every_command_comes_without_pytorch(command):
    modules, out = modules_after(DOOR, *([command] if command else []), "--help")
    assert "usage" in out or "whtnet" in out
    assert "torch" not in modules
    assert sum(name.startswith("whtnet") for name in modules) < 13


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["trian"], "there is no command 'trian'; did you mean train?"),
        (["count", "--jsn"], "unrecognized arguments: --jsn; did you mean --json?"),
        (["evaluate"], "the following arguments are required: model; whtnet evaluate --help says more"),
        (["evaluate", "x", "--batch-size", "0"], "argument --batch-size: '0' is no whole number from 1; whtnet "),
        (["evaluate", "x", "--json", "."], "argument --json: '.' is a folder; give the name of a file; whtnet "),
        (["predict", "x", "y.png", "--top", "-1"], "argument --top: '-1' is no whole number from 1; whtnet predict "),
        (["export", "x", "--to", "onxn"], "argument --to: there is no format 'onxn'; did you mean onnx?; whtnet "),
        (["export", "x", "--seconds", "soon"], "argument --seconds: 'soon' is no number of seconds above 0; whtnet "),
        (["table", "--seeds", "0;1"], "argument --seeds: '0;1' is no list of whole numbers such as 0,1,2; whtnet "),
        (["report", "--results", "nowhere"], "argument --results: there is no folder 'nowhere'; whtnet report "),
        (["verify", "everything"], "unrecognized arguments: everything; whtnet verify --help says more"),
    ],
)
def test_words_that_no_command_takes_are_told_in_a_line_without_pytorch(words, answer):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", DOOR, *words],
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    imported = [line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode in (1, 2)
    assert (done.stdout, len(said)) == ("", 1)
    assert said[0].startswith(f"error: {answer}")
    assert "argparse" in imported or words == ["trian"]
    assert "torch" not in imported


def test_every_public_name_is_declared_and_found():
    (block,) = (node for node in ast.parse(Path(whtnet.__file__).read_text()).body if isinstance(node, ast.If))
    declared = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(declared) == sorted(whtnet.__all__)
    for name, module in declared.items():
        assert getattr(whtnet, name) is getattr(sys.modules[module], name)
    assert set(whtnet.__all__) <= set(dir(whtnet))
    with pytest.raises(AttributeError, match="keep_freed_memory"):
        whtnet.recycle_results(0)


def test_the_libraries_that_hydra_knows_are_those_of_the_backbones():
    assert set(LIBRARIES) == set(SOURCES)


@pytest.mark.parametrize("command", ["train", "table"])
def test_help_that_nobody_reads_on_ends_quietly(command):
    reader, writer = os.pipe()
    os.close(reader)
    env = {"PATH": "", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", DOOR, command, "--help"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, env=env)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_help_without_an_output_ends_well():
    words = [sys.executable, "-c", DOOR, "table", "--help"]
    shell = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *words]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, env={"PATH": "", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    assert done.stderr.startswith("usage:")  # where argparse writes then
    assert "Error" not in done.stderr
