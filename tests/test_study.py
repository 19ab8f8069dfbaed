"""What each choice is worth follows from the records, pair by pair."""

import functools

import pytest
from shipped import EXPERIMENTS, compose_config
from test_tables import record

from whtnet.experiment import Experiment
from whtnet.records import put_record
from whtnet.tables import Identities, Results, TableError, load_spec, run_overrides, stored_tables, to_markdown
from whtnet.tables.study import read_choices, study_tables

TRAINED = """
title: Trained
kind: training
overrides: [backbone=resnet20, dataset=synthetic, dataset.size=8, dataset.train_size=8, dataset.test_size=8]
counted: [{label: small, input_size: [3, 8, 8]}]
rows:
  - {id: baseline, label: baseline, overrides: [policy=none]}
  - {id: identity, label: left out, overrides: [policy=identity], control: true}
  - {id: paper, label: paper, overrides: [policy=paper]}
  - {id: soft, label: soft, overrides: [policy=paper, policy.options.threshold=soft]}
  - {id: plain, label: no decay, overrides: [policy=paper, trainer.decay_spectral=false]}
  - {id: both, label: both, overrides: [policy=paper, policy.options.threshold=soft, trainer.decay_spectral=false]}
  - {id: only3x3, label: shortcuts kept, overrides: [policy=conv3x3, +policy.options.initial_threshold=ramp]}
"""
STUDY = """
title: Study
kind: study
of: trained
recipe: short
rows:
  - {id: threshold, label: soft, setting: policy.options.threshold, values: [smooth, soft]}
  - {id: decay, label: no decay, setting: trainer.decay_spectral, values: [true, false]}
  - {id: shortcuts, label: shortcuts too, setting: layer.conv1x1, values: [null, BWHT1d]}
  - {id: layer, label: the layer, setting: layer.conv3x3, values: [Identity, FWHT2d]}
  - {id: adam, label: Adam, setting: recipe, values: [short, adam_short]}
  - {id: residual, label: a residual, setting: policy.options.residual, values: [false, true]}
  - {id: precision, label: bfloat16, setting: recipe, values: [short, short trainer.precision=bf16]}
"""


@functools.cache
def experiment(row, recipe, folder):
    spec = load_spec(folder, "trained")
    asked = next(one for one in spec.rows if one["id"] == row)
    return Experiment.from_config(compose_config(run_overrides(spec, asked, recipe)))


@pytest.fixture
def tables(tmp_path):
    """The tables of the study on runs (row, recipe) → accuracies, each a seed's."""
    (tmp_path / "trained.yaml").write_text(TRAINED)
    (tmp_path / "study.yaml").write_text(STUDY)

    def made(runs):
        for (row, recipe), accuracies in runs.items():
            for seed, top1 in enumerate(accuracies):
                one = experiment(row, recipe, tmp_path).with_seed(seed)
                known = {"identity": one.identity, "settings": one.settings, "inputs": one.inputs}
                known |= {"row": row, "run": one.name}
                put_record(tmp_path / "runs", record("a", seed, top1, table="trained", recipe=recipe) | known)
        results = Results(tmp_path, tmp_path, Identities(compose_config))
        return stored_tables(results.spec("study"), results)

    return made


def test_choices_by_size_rows_by_accuracy_and_every_pair(tables):
    choices, rows, pairs = tables(
        {
            ("baseline", "short"): [90.0],
            ("identity", "short"): [88.0],
            ("paper", "short"): [80.0, 81.0, 82.0],
            ("soft", "short"): [84.0, 85.0],
            ("plain", "short"): [82.0],
            ("both", "short"): [86.5],
            ("only3x3", "short"): [83.0],
            ("paper", "adam_short"): [83.5],
        }
    )
    assert [(row["id"], row["change"], row["pairs"]) for row in choices.rows] == [
        ("layer", -5.0, 1),  # identity → only3x3, which also keeps the shortcuts
        ("threshold", 4.0, 2),
        ("adam", 2.5, 1),
        ("shortcuts", -2.0, 1),
        ("decay", 1.5, 2),
    ]
    threshold = choices.rows[1]
    assert (threshold["low"], threshold["high"], threshold["seeds"]) == (3.5, 4.5, 7)
    order = ["baseline", "identity", "both", "soft", "paper", "only3x3", "plain", "paper"]
    assert [row["id"] for row in rows.rows] == order
    assert rows.rows[1]["top1_change"] == -2.0
    by_pair = {(row["choice"], row["row"]): row for row in pairs.rows}
    assert len(by_pair) == 7
    seeds = by_pair["soft", "paper"]
    assert seeds["low"] < 3.5 < seeds["high"]
    assert (by_pair["soft", "plain"]["change"], by_pair["soft", "plain"]["low"]) == (4.5, "one seed")
    assert "one seed" in to_markdown(pairs)


def test_a_pair_in_two_precisions_is_named_and_rows_without_runs_are_not_there(tables, tmp_path):
    choices, _, pairs = tables({("paper", "short"): [80.0], ("soft", "short"): [84.0]})
    assert len(choices.rows) == len(pairs.rows) == 1
    assert not any("precisions" in note for note in choices.notes)
    (path,) = (tmp_path / "runs" / "trained").glob("soft-*")
    path.write_text(path.read_text().replace('"precision": "float32"', '"precision": "bfloat16"'))
    results = Results(tmp_path, tmp_path, Identities(compose_config))
    choices, *_ = stored_tables(results.spec("study"), results)
    assert choices.notes[-1] == "In different precisions: soft (paper)."


def test_a_precision_that_a_recipe_asks_for_is_a_choice(tables, tmp_path):
    asked = "short trainer.precision=bf16"
    tables({("paper", "short"): [80.0], ("paper", asked): [81.0]})
    for path in (tmp_path / "runs" / "trained").glob("paper-*"):
        text = path.read_text()
        path.write_text(text.replace('"float32"', '"bfloat16"') if asked in text else text)
    results = Results(tmp_path, tmp_path, Identities(compose_config))
    choices, *_ = stored_tables(results.spec("study"), results)
    assert [(row["choice"], row["change"]) for row in choices.rows] == [("bfloat16", 1.0)]
    assert not any("precisions" in note for note in choices.notes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title: S\nkind: study\nrows: []", "needs of: TABLE and recipe: NAME"),
        ("title: S\nkind: study\nof: t\nrecipe: short\nrows: [{id: a, label: b, values: [1, 2]}]", "setting"),
        ("title: S\nkind: study\nof: t\nrecipe: short\nrows: [{id: a, label: b, setting: c, value: 1}]", "values"),
    ],
)
def test_specifications_that_can_not_be(tmp_path, text, words):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(TableError, match=words):
        study_tables(load_spec(tmp_path, "s"), Results(tmp_path, tmp_path, Identities(compose_config)))


def test_a_study_of_no_runs_names_the_table_that_makes_them(tables):
    with pytest.raises(TableError, match=r"holds nothing of table 'trained'; make it with `.* TABLE=trained`"):
        tables({})


def test_a_study_needs_the_size_of_the_images(tables, tmp_path):
    tables({("paper", "short"): [80.0], ("soft", "short"): [84.0]})
    (tmp_path / "trained.yaml").write_text(TRAINED.replace("counted:", "networks:"))
    results = Results(tmp_path, tmp_path, Identities(compose_config))
    with pytest.raises(TableError, match="a study of it needs counted"):
        stored_tables(results.spec("study"), results)


def test_shipped_studies_name_settings_of_rows_that_there_are():
    spec = load_spec(EXPERIMENTS, "resnet20_study")
    of = load_spec(EXPERIMENTS, spec.of)
    overrides = {override for row in of.rows for override in row["overrides"]}
    for choice in read_choices(spec):
        if choice.setting.startswith(("policy.options.", "trainer.")):
            assert any(choice.setting in override for override in overrides) or choice.id == "one_block", choice
