"""What a reproduction asks for: overrides on top of each other, on the rows that are chosen."""

import re

import pytest
from shipped import EXPERIMENTS, compose_config

from whtnet.errors import UserError
from whtnet.tables import Asked, Identities, TableError, load_spec

IDENTITIES = Identities(compose_config)


def asked(*overrides, table="digits", rows=None, trainer="short"):
    spec = load_spec(EXPERIMENTS, table)
    return Asked(spec, spec.chosen(rows), trainer, overrides, IDENTITIES)


def test_an_override_stands_on_those_before_it():
    runs = asked("dataset=synthetic", "dataset.size=8")
    runs.check()
    assert runs.recipe == "short dataset=synthetic dataset.size=8"
    assert runs.experiment(runs.rows[0], 3).dataset.to_dict()["size"] == 8
    assert runs.experiment(runs.rows[0], 3).seed == 3


def test_what_only_chosen_rows_have_can_be_overridden():
    runs = asked("policy.options.threshold=soft", rows=["paper"])
    runs.check()
    assert runs.recipe == "short policy.options.threshold=soft"
    assert runs.experiment(runs.rows[0], 0).policy.options["threshold"] == "soft"


def test_the_error_names_the_first_override_that_fails_the_row_and_the_remedy():
    runs = asked("trainer.epochs=2", "policy.options.threshold=soft", "trainer.epochs=-1")
    with pytest.raises(TableError) as error:
        runs.check()
    assert str(error.value).startswith(
        "--override policy.options.threshold=soft does not go with row baseline of table 'digits': "
        "policy.options.threshold is no setting of the policy that is chosen; conv1x1, conv3x3, "
    )
    assert "fwht2021/540k" in str(error.value)  # as it is typed


def test_the_remedy_names_the_rows_that_take_it():
    with pytest.raises(TableError, match=r"; --rows conv3x3,paper,one_block leaves such rows out$"):
        asked("policy.options.threshold=soft").check()


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("trainer.epocs=3", "no setting 'trainer.epocs'; did you mean trainer.epochs"),
        ("trainer.epochs=0", "trainer.epochs"),
        ("+policy.options.treshold=soft", "none of its layers has an option 'treshold'"),
    ],
)
def test_what_is_wrong_is_said_of_the_override(override, reason):
    with pytest.raises(TableError, match=rf"^--override {re.escape(override)} .* row paper .*{reason}"):
        asked("trainer.lr=1", override, rows=["paper"]).check()


def test_order_does_not_matter_where_it_does_not_to_hydra():
    runs = asked("dataset.size=8", "trainer.patience=2", "dataset=synthetic", "dataset.holdout=0.5")
    runs.check()
    assert runs.experiment(runs.rows[0], 0).dataset.to_dict()["size"] == 8


def test_the_recipe_leaves_out_what_changes_no_run():
    same = ("trainer.workers=1", "run_root=elsewhere", "trainer.lr=0.3", "trainer.lr=0.1")  # the last is the table's
    assert asked(*same).recipe == "short"
    assert asked("trainer.workers=1", "trainer.lr=0.3").recipe == "short trainer.lr=0.3"
    assert asked("++policy.options.threshold=soft").recipe == "short ++policy.options.threshold=soft"  # but baseline's
    assert asked("++policy.options.threshold=soft", rows=["baseline"]).recipe == "short"


def test_overrides_come_after_those_of_the_recipe():
    runs = asked("trainer.lr=0.3", trainer="short trainer.epochs=2")
    assert runs.recipe == "short trainer.epochs=2 trainer.lr=0.3"
    trainer = runs.experiment(runs.rows[0], 0).trainer
    assert (trainer.epochs, trainer.lr) == (2, 0.3)


def test_the_row_that_others_start_from_takes_overrides_too():
    runs = asked("trainer.lr=0.3", table="finetuning_digits", rows=["at_once"])
    assert runs.experiment(runs.rows[0], 1).start.trainer.lr == 0.3
    with pytest.raises(TableError, match="row baseline, which chosen rows start from, of table"):
        asked("policy.options.threshold=soft", table="finetuning_digits", rows=["at_once"]).check()


def test_a_row_that_does_not_compose_by_itself_is_no_overrides_fault():
    with pytest.raises(UserError, match=r"^no trainer 'soup'"):
        asked("trainer.lr=1", trainer="soup").check()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=9", "seed=9 does nothing for the runs of a table; --seeds does"),
        ("resume=never", "--fresh does"),
        ("trainer.dry_run=true", "keeps nothing that a table could show.*row baseline with `python train"),
    ],
)
def test_what_is_no_setting_of_a_tables_runs(override, words):
    with pytest.raises(TableError, match=words):
        asked(override).check()
    with pytest.raises(TableError, match=words):
        asked(trainer=f"short {override}").check()


def test_the_same_overrides_in_another_order_are_one_recipe():
    words = ("trainer.momentum=0.8", "trainer.label_smoothing=0.1")
    assert asked(*words).recipe == asked(*words[::-1]).recipe
    options = ("trainer.opt_options={eps:1}", "trainer.opt_options.eps=2")  # the later one stands on the first
    assert asked("trainer.opt=adam", *options).recipe.endswith("eps=2")


EQUAL = """
title: Equal
kind: training
overrides: [backbone=resnet20, dataset=synthetic, policy=none]
rows:
  - {id: first}
  - {id: second, overrides: [trainer.batch_size=128]}
  - {id: third, start: first, overrides: [trainer.lr=0.1]}
  - {id: fourth, start: second, overrides: [trainer.lr=0.1]}
"""


def test_rows_of_equal_settings_share_a_run(tmp_path):
    (tmp_path / "equal.yaml").write_text(EQUAL)
    spec = load_spec(tmp_path, "equal")
    runs = Asked(spec, spec.rows, "short", (), IDENTITIES)
    jobs = runs.jobs([(row, 0) for row in spec.rows], "none", tmp_path, fresh=False)
    assert [job.title for _, job in jobs] == ["first, seed 0", "third, seed 0"]
