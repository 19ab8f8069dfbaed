"""Mistakes in overrides: a line that says what was meant, and nothing left behind."""

import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from whtnet import commands
from whtnet.commands.compose import compose_alone, compose_config
from whtnet.errors import UserError

ROOT = Path(__file__).parents[1]
SMALL = ["dataset=synthetic", "dataset.size=8", "dataset.train_size=32", "dataset.test_size=16", "trainer.epochs=1"]
SMALL += ["trainer.batch_size=16", "logger=none", "device=cpu"]


def run(script, *arguments, cwd):
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("trainer.epoch=3", "no setting 'trainer.epoch'; did you mean trainer.epochs?"),
        ("trainer=shrt", "no trainer 'shrt'; did you mean short?"),
        ("polcy=none", "no setting 'polcy'; did you mean policy?"),
        ("logger=zzzzzz", "no logger 'zzzzzz'; there are none, tensorboard, wandb"),
        ("backbone=resnet_20", "no backbone 'resnet_20'; did you mean resnet20?"),
        ("hydra/launcher=basik", "no hydra/launcher 'basik'; did you mean basic?"),
        ("=3", "'=3' names no setting; write NAME=VALUE, without spaces around the sign"),
        ("backbone", "can't read 'backbone'; write NAME=VALUE"),
        ("seed=1,2", "seed=1,2 is several values: train.py -m trains with each; where it is one, write 'seed=\"1,2\"'"),
        ("run_root=1.5", "run_root=1.5 is no path; write ./ before a name that looks like that"),
        ("run_root=", "run_root= is empty; name a folder or file, or leave it out"),
    ],
)
def test_typing_mistakes_are_told_in_a_line(tmp_path, override, answer):
    done = run("train.py", override, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {answer}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("override", ["policy=[", "seed=${nowhere}", "trainer.epochs.x=1", "a==b=c"])
def test_other_mistakes_too(tmp_path, override):
    done = run("train.py", override, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_old_name_of_a_policy_is_told_in_a_line(tmp_path):
    words = ["policy=conv1x1_third,conv1x1_half", *SMALL, "trainer.dry_run=true"]
    done = run("train.py", "-m", *words, cwd=tmp_path)
    assert done.stderr.splitlines() == [
        "warning: policy 'conv1x1_third' is policy=conv1x1 policy.fraction=1/3 now",
        "warning: policy 'conv1x1_half' is policy=conv1x1 policy.fraction=1/2 now",
    ]
    assert done.stdout.count("One batch trained") == 2


# What Hydra's grammar has no reading for, in paths that people have.
ODD_NAMES = [
    "Jürgen", "ü 1", "a=b", "a[1]", "a{b}", "a(b)", "copy (2)", "it's", 'a"b', "a\\", 'a\\"b', "#1", "a#b", "100%",
    "$x", "[open", "'open", "2024", "012x", "a:b", "~1", "!", "a;b", "日本",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_paths_may_have_any_letters(name):
    config = compose_config(["dataset=timm", f"dataset.root={name}", f"run_root={name}", f"finetune.start=x/{name}"])
    assert (config["dataset"]["root"], config["run_root"], config["finetune"]["start"]) == (name, name, f"x/{name}")
    assert compose_alone([f"dataset.root={name}"]) == {"dataset": {"root": name}}


@pytest.mark.parametrize("name", ["a,b", "a, b"])
def test_a_comma_is_told_with_what_to_write(name):
    for compose in (compose_config, compose_alone):
        with pytest.raises(UserError, match="is several values") as told:
            compose([f"run_root={name}"])
        (word,) = shlex.split(str(told.value).partition("write ")[2])
        assert compose([word])["run_root"] == name


def test_a_home_is_that_of_a_shell(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert compose_config(["run_root=~/x, y/runs"])["run_root"] == "/home/me/x, y/runs"


def test_dollar_signs_that_stand_for_a_setting():
    with pytest.raises(UserError, match=r"key 'x' not found .* write \\\$\{ in single quotes"):
        compose_config(["run_root=${x}"])
    assert compose_config([r"run_root=\${x}"])["run_root"] == "${x}"


def test_a_folder_with_an_odd_name_is_trained_on(tmp_path):
    for split, name in itertools.product(("train", "val"), "ab"):
        folder = tmp_path / "ü [1]=2" / split / name
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "1.png")
    words = ["trainer.epochs=1", "logger=none", "device=cpu", "policy=none", "trainer.batch_size=2", "run_root=2024"]
    done = run("train.py", "dataset=timm", "dataset.root=ü [1]=2", "dataset.input_size=8", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.parents[2].name for path in tmp_path.rglob("record.json")] == ["2024"]


def test_a_path_that_is_none_ends_its_job_alone(tmp_path):
    done = run("train.py", "-m", *SMALL, "trainer.dry_run=true", "policy=none", "finetune.start=1.5,null", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: finetune.start=1.5 is no path")
    assert done.stdout.count("│ done") == 1
    assert "Traceback" not in done.stderr


def test_a_mistake_in_a_sweep_ends_it_before_it_begins(tmp_path):
    done = run("train.py", "-m", "trainer=short,shrt", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "error: no trainer 'shrt'; did you mean short?\n")
    assert list(tmp_path.iterdir()) == []


def test_jobs_of_a_sweep_go_on_after_one_that_fails(tmp_path):
    done = run("train.py", "-m", *SMALL, "policy=none", "seed=-1,2", cwd=tmp_path)
    assert done.returncode == 1
    assert [path.parent.name.split("-seed")[1][0] for path in tmp_path.rglob("record.json")] == ["2"]
    assert "error: seed=-1" in done.stderr
    assert done.stderr.rstrip().endswith("error: 1 of 2 jobs failed")
    assert "Traceback" not in done.stderr
    headers = [line for line in done.stdout.splitlines() if line.startswith("job ")]
    assert ["seed=-1" in headers[0], "seed=2" in headers[1]] == [True, True]
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    rows = {cells[1]: cells[2] for cells in table if cells[0] in ("0", "1")}
    assert rows["seed=-1"].startswith("error: seed=-1")
    assert rows["seed=2"].startswith("test top-1 ")


def test_a_sweep_without_jobs_is_none(tmp_path):
    done = run("train.py", "-m", *SMALL, "seed=range(3,1)", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the sweep has no jobs: a range or a list of it is empty\n"
    assert list(tmp_path.iterdir()) == []


def test_a_policy_may_be_a_file_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("rules: [{match: conv1x1, replace: BWHT1d}]")
    for name in ("mine", "mine.yaml", "./mine.yaml", f"{tmp_path}/mine.yaml"):
        policy = compose_config([f"policy={name}", "+policy.options.threshold=soft"])["policy"]
        assert (policy["name"], len(policy["rules"]), policy["options"]) == ("mine", 1, {"threshold": "soft"})
    Path("mine.yaml").write_text("rules: [")
    with pytest.raises(UserError, match=r"mine\.yaml: not valid YAML"):
        compose_config(["policy=mine"])


def test_a_sweep_without_failures_ends_well_and_reports_once(tmp_path):
    done = run("train.py", "-m", *SMALL, "trainer.dry_run=true", "policy=none,conv3x3", "seed=1,2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("│ done") == 4
    assert done.stdout.count(" sites replaced") == 2  # a policy's report, not a job's
    assert done.stdout.count("synthetic: 4 classes") == 4
    assert list(tmp_path.iterdir()) == []  # a dry run writes nothing


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        (["input_size=32"], "input_size=32 is no size of an image; give channels, height and width: [3,32,32]"),
        (["input_size=[32,32]"], "input_size=[32, 32] is no size of an image; "),
        (["input_size=[3,0,32]"], "input_size=[3, 0, 32] is no size of an image; "),
        (["num_classes=0"], "num_classes=0 is no number of classes; give a whole number from 1"),
        (["backbone=timm/resnet5o"], "timm has no classifier 'resnet5o'; did you mean resnet50"),
        (["policy=zzzzz"], "no policy 'zzzzz'; there are conv1x1, "),
        (["num_classes=true"], "num_classes=True is no number of classes; "),
        (["+backbone.pretraind=true"], "there is no setting backbone.pretraind; did you mean backbone.pretrained?"),
        (["trainer.epochs=3"], "no setting 'trainer.epochs'; there are backbone, "),
        (["~policy"], "policy was taken away on the command line"),
        (["trust=3"], "trust=3: 3 is no name of a package; "),
    ],
)
def test_what_cannot_be_counted_is_told_in_a_line(capsys, monkeypatch, overrides, answer):
    monkeypatch.setattr(sys, "argv", ["whtnet", "count", *overrides])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {answer}")
    assert len(err) < 400


@pytest.mark.parametrize(
    ("variable", "value", "answer"),
    [
        ("WANDB_MODE", "foo", "error: WANDB_MODE='foo' is no mode of wandb; set one of online, offline, "),
        ("WANDB_BASE_URL", "foo", "error: wandb refuses its settings: "),
        ("WHTNET_BACKEND", "foo", "error: unknown backend 'foo'; choose one of auto, reference, cpu, gpu"),
    ],
)
def test_environment_variables_that_cannot_be_are_told_in_a_line(tmp_path, variable, value, answer):
    pytest.importorskip("wandb")
    words = [*SMALL, "logger=wandb", "policy=none"]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {variable: value}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(answer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("scripts/evaluate.py", ["no-such/", "--split", "test", "dataset.root=x"]),
        ("scripts/evaluate.py", ["--split", "test", "no-such/", "dataset.root=x"]),
        ("scripts/count_params.py", ["--json", "policy=nothing"]),
        ("scripts/count_params.py", ["backbone=resnet20", "--json", "policy=nothing"]),
    ],
)
def test_overrides_may_follow_options(tmp_path, script, arguments):
    done = run(script, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no-such" in done.stderr or "no policy 'nothing'" in done.stderr
    assert "unrecognized" not in done.stderr
