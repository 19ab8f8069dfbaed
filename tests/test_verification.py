"""``make verify`` finds what does not hold."""

import pytest
import torch
from safetensors.torch import save_file
from shipped import ROOT, SHIPPED, compose_config
from test_tables import COUNTED, SPEC, record, results_of, write_spec

from whtnet import verification
from whtnet.experiment import Experiment
from whtnet.policy import shipped_policies
from whtnet.records import put_record, write_json
from whtnet.runs import run
from whtnet.tables import (
    command_for,
    count_rows,
    count_training_rows,
    draw_figures,
    pages,
    rendered,
    stored_tables,
    update_page,
    write_tables,
)
from whtnet.tracking import NullSink
from whtnet.verification import (
    check_counts,
    check_files,
    check_made,
    check_pages,
    check_records,
    check_rows,
    check_weights,
)

TINY = ["dataset=synthetic", "dataset.size=8", "dataset.train_size=32", "dataset.test_size=16", "device=cpu"]
TINY += ["backbone=resnet20", "policy=none", "trainer=short", "trainer.epochs=1", "trainer.precision=fp32"]


def failures(checks):
    return {check.name: check.reason for check in checks if check.outcome == "failed"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A record of a run, and the checkpoint's network."""
    folder = tmp_path_factory.mktemp("runs")
    experiment = Experiment.from_config(compose_config(TINY))
    done = run(experiment, sink=NullSink(), root=folder)
    layers = done.pop("layers")
    (checkpoint,) = folder.rglob("checkpoint.pt")
    state = torch.load(checkpoint, weights_only=True)["model"]
    weights = {name: value.contiguous() for name, value in state.items()}
    done["environment"]["dirty"] = False  # whatever the checkout of these tests is
    return {"table": "mine", "row": "a", "recipe": "short", **done}, layers, weights


def test_records_that_replay(trained, tmp_path):
    kept, layers, _ = trained
    put_record(tmp_path / "runs", kept, layers)
    assert [check.outcome for check in check_records(results_of(tmp_path))] == ["passed"]
    settings = {**kept["settings"], "seed": 5}
    path = put_record(tmp_path / "runs", {**kept, "row": "b", "settings": settings})
    (name,) = failures(check_records(results_of(tmp_path)))
    assert name == f"mine/{path.name}"
    put_record(tmp_path / "runs", {**kept, "environment": {**kept["environment"], "dirty": True}})
    found = failures(check_records(results_of(tmp_path)))
    assert len(found) == 2
    assert "made with local changes, which no commit has" in found.values()


@pytest.fixture(scope="module")
def published_counts(tmp_path_factory):
    """A table of published counts, one of them wrong, and what is counted for it."""
    text = "title: P\nkind: parameters\nrows:\n"
    for name, published in (("right", 273_066), ("wrong", 273_067)):
        text += f"  - {{id: {name}, backbone: resnet20, policy: none, count: trainable, published: {published}}}\n"
    spec = write_spec(tmp_path_factory.mktemp("specs"), text)
    return spec, count_rows(spec, resnet20, lambda step: None)


def resnet20(_row):
    return {"name": "resnet20"}


def test_counts_on_built_models(published_counts, tmp_path):
    spec, counted = published_counts
    write_json(tmp_path / "mine.json", {"rows": counted, "families": []})
    steps = []
    checks = list(check_counts([spec], results_of(tmp_path), compose_config, resnet20, steps.append))
    assert [check.outcome for check in checks] == ["passed", "failed"]
    assert checks[1].reason == "273,066 is not 273,067"
    assert steps == ["right", "wrong"]


def test_published_counts_that_were_changed_by_hand(published_counts, tmp_path):
    spec, (right, wrong) = published_counts
    write_json(tmp_path / "mine.json", {"rows": [{**right, "ours": 1}, wrong], "families": []})
    found = failures(check_counts([spec], results_of(tmp_path), compose_config, resnet20, lambda step: None))
    assert found["mine: right"] == "results/mine.json says other numbers"


def test_every_kind_of_table_that_the_project_has():
    assert failures(check_rows(SHIPPED.specs(), SHIPPED)) == {}


def test_the_readme_and_the_guide_show_what_results_hold():
    checks = list(check_pages(SHIPPED.specs(), SHIPPED, pages(ROOT)))
    assert "README.md: table verdicts" in [check.name for check in checks]
    assert failures(checks) == {}


@pytest.mark.parametrize(
    ("text", "stored", "lacks", "strays"),
    [
        (SPEC, {"rows": {"a": [], "old": [], "c": []}}, "b", "old"),
        ("title: R\nkind: released\nrows: [{id: a}, {id: b}]", {"rows": [{"id": "b"}, {"id": "old"}]}, "a", "old"),
        (
            "title: S\nkind: speed\nrows: []\nnetworks: [{label: a}, {label: b}]",
            {"networks": [{"label": "b"}, {"label": "old"}]},
            "a",
            "old",
        ),
        (
            "title: D\nkind: deployment\nrows: [{id: x, runtime: b}]\nlayers: [{layer: a}]",
            {"runtimes": {"b": {}}, "layers": {"old": {}}},
            "a",
            "old",
        ),
    ],
    ids=["training", "released", "speed", "deployment"],
)
def test_rows_that_were_renamed(tmp_path, text, stored, lacks, strays):
    spec = write_spec(tmp_path, text)
    assert list(check_rows([spec], results_of(tmp_path))) == []  # nothing was measured
    write_json(tmp_path / "mine.json", stored)
    reason = failures(check_rows([spec], results_of(tmp_path)))["rows of table mine"]
    assert f"lacks {lacks}, and has what is no row any more: {strays};" in reason
    assert "TABLE=mine ARGS=--update" in reason


def test_policies_that_were_not_counted(tmp_path):
    spec = write_spec(tmp_path, "title: C\nkind: coverage\nrows: [{id: resnet20}]")
    pairs = [{"backbone": "resnet20", "policy": name} for name in shipped_policies()]
    write_json(tmp_path / "mine.json", {"pairs": pairs})
    assert failures(check_rows([spec], results_of(tmp_path))) == {}
    write_json(tmp_path / "mine.json", {"pairs": pairs[1:]})
    assert (
        f"lacks {pairs[0]['policy']} on resnet20;"
        in failures(check_rows([spec], results_of(tmp_path)))["rows of table mine"]
    )


def test_costs_of_training_tables(tmp_path):
    text = SPEC.replace("overrides: []", "overrides: [policy=none]")
    spec = write_spec(tmp_path, text + COUNTED.replace("64, 64", "16, 16") + "overrides: [backbone=resnet20]\n")
    counts = count_training_rows(spec, compose_config, lambda step: None)
    counts["b"][1]["macs"] += 1
    results = results_of(tmp_path, counts=counts)
    assert list(failures(check_counts([spec], results, compose_config, None, lambda step: None))) == ["mine: b"]


def test_tables_without_results_are_skipped(tmp_path):
    spec, results = write_spec(tmp_path, SPEC), results_of(tmp_path)
    (check,) = check_made([spec], results)
    assert (check.name, check.outcome) == ("mine", "skipped")
    assert "make reproduce-table TABLE=mine ARGS=--update" in check.reason
    assert [check.outcome for check in check_made([spec], results_of(tmp_path, [record("a", 0, 90.0)]))] == ["passed"]


def test_verify_passes_over_a_table_that_was_not_made(tmp_path, monkeypatch, capsys):
    from whtnet.commands import verify

    monkeypatch.setattr(verify, "ROOT", tmp_path)
    (tmp_path / "experiments").mkdir()
    write_spec(tmp_path / "experiments", SPEC)
    with pytest.raises(SystemExit) as stop:
        verify.main(None)
    assert stop.value.code == 0, capsys.readouterr()


def test_files_that_were_changed_by_hand(tmp_path):
    spec = write_spec(tmp_path, SPEC)
    results = results_of(tmp_path / "results", [record("a", 0, 90.0)])
    tables = stored_tables(spec, results)
    write_tables(results.folder, "mine", tables, command_for(spec))
    draw_figures(spec, results, results.folder / "figures")
    assert failures(check_files([spec], results)) == {}
    assert set(rendered("mine", tables, "x")) == {"mine.md", "tables/mine-1.tex", "tables/mine-1.csv"}
    csv = results.folder / "tables" / "mine-1.csv"
    csv.write_text(csv.read_text().replace("90", "95"))
    (results.folder / "figures" / "mine_curves.svg").unlink()
    (results.folder / "tables" / "old-1.csv").touch()
    found = failures(check_files([spec], results))
    assert found["files of table mine"].startswith("tables/mine-1.csv, figures/mine_curves.svg: missing or changed")
    assert found["no other files"] == "of no table: tables/old-1.csv"


def test_a_readme_that_was_changed_by_hand(tmp_path):
    spec, results = write_spec(tmp_path, SPEC), results_of(tmp_path, [record("a", 0, 90.0)])
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table: mine -->\n<!-- end -->\n")
    update_page(readme, spec, stored_tables(spec, results))
    assert [check.outcome for check in check_pages([spec], results, [readme])] == ["passed"]
    readme.write_text(readme.read_text().replace("90.00", "95.00"))
    assert list(failures(check_pages([spec], results, [readme]))) == ["README.md: table mine"]


def test_weights_give_what_their_record_says(trained, tmp_path, monkeypatch):
    kept, _, weights = trained
    put_record(tmp_path / "runs", kept)
    (tmp_path / "weights").mkdir()
    save_file(weights, tmp_path / "weights" / "good.safetensors", metadata={"identity": kept["identity"]})
    assert [(c.name, c.outcome) for c in check_weights(results_of(tmp_path))] == [("good.safetensors", "passed")]
    put_record(tmp_path / "runs", {**kept, "test_top1": kept["test_top1"] + 6.25})
    assert "its record says" in failures(check_weights(results_of(tmp_path)))["good.safetensors"]
    save_file(weights, tmp_path / "weights" / "lost.safetensors", metadata={"identity": "0"})
    assert "no record" in failures(check_weights(results_of(tmp_path)))["lost.safetensors"]

    def absent(**_):
        raise verification.DatasetNotFoundError("not here")

    monkeypatch.setattr(verification, "load_dataset", absent)
    good, _ = check_weights(results_of(tmp_path))
    assert (good.outcome, good.reason) == ("skipped", "not here")
