"""Verdicts follow from what was counted, trained and timed, never from what somebody wrote."""

import pytest
from shipped import SHIPPED
from test_tables import record, results_of

from whtnet.records import write_json
from whtnet.tables import Shown, TableError, load_spec, spread, stored_tables
from whtnet.tables.verdicts import read_claims

TRAINED = """
title: Mine
kind: training
rows:
  - {id: a, label: first, overrides: []}
  - {id: b, label: second, overrides: []}
  - {id: c, label: third, overrides: []}
"""
ACCURACY = "kind: accuracy, table: mine, row: b, published: 90, baseline: 91.5, control: c"


def verdict(folder, claim, records=()):
    (folder / "mine.yaml").write_text(TRAINED)
    (folder / "verdicts.yaml").write_text(
        f"title: V\nkind: verdicts\nrows: [{{id: x, claim: It does., source: here, {claim}}}]"
    )
    results = results_of(folder, records)
    ((row,), *_) = [table.rows for table in stored_tables(results.spec("verdicts"), results)]
    return row


@pytest.mark.parametrize(
    ("ours", "baseline", "expected"),
    [
        ([], [91.0], "not run"),
        ([90.1], [91.0], "reproduced"),
        ([88.0], [89.0], "only in part"),  # the loss, not the accuracy
        ([91.0], [93.0], "only in part"),  # the accuracy, not the loss
        ([91.0], [], "only in part"),
        ([85.0], [91.7], "not reproduced"),
        ([85.0], [], "not reproduced"),
        ([89.8, 89.7, 90.3], [91.4, 91.5, 91.45], "reproduced"),  # within the seeds' noise
        ([89.8, 90.1], [91.4, 91.4], "only in part"),  # of two runs nearly anything would be
        ([89.8, 89.7, 90.3], [91.4, 91.6], "only in part"),  # nor has the loss an interval then
        ([88.9, 88.8, 88.85], [91.4, 91.5, 91.45], "not reproduced"),
    ],
)
def test_accuracies(tmp_path, ours, baseline, expected):
    records = [record("b", seed, top1) for seed, top1 in enumerate(ours)]
    records += [record("a", seed, top1) for seed, top1 in enumerate(baseline)]
    row = verdict(tmp_path, ACCURACY, records)
    assert row["verdict"] == expected
    assert row["published_change"] == -1.5
    if ours and baseline:
        assert row["ours"].value == spread(ours, range(len(ours)))
        assert row["change"] == pytest.approx(spread(ours).mean - spread(baseline).mean)


def test_the_longest_recipe_that_row_and_baseline_share_counts(tmp_path):
    short = [record("a", 0, 91.0), record("b", 0, 90.0), record("c", 0, 86.0)]
    long = [{**record(row, 0, 93.0, recipe="authors"), "epochs": 200} for row in "ab"]
    longest = {**record("b", 0, 20.0, recipe="longest"), "epochs": 900}
    row = verdict(tmp_path, ACCURACY, [*short, longest])
    assert row["ours"].value.mean == 90.0
    assert row["control"] == Shown(spread([86.0], [0]), ".2f", ": third")
    row = verdict(tmp_path, ACCURACY, [*short, longest, *long])
    assert (row["ours"].value.mean, row["evidence"]) == (93.0, "`mine`, b, recipe `authors`")
    assert "control" not in row  # it was not trained so


COUNTED = "kind: count, table: counted, row: a, published: 10"


@pytest.mark.parametrize(("ours", "expected"), [(10, "reproduced"), (11, "not reproduced"), (None, "not run")])
def test_counts(tmp_path, ours, expected):
    (tmp_path / "counted.yaml").write_text("title: C\nkind: parameters\nrows: [{id: a}]")
    if ours:
        write_json(tmp_path / "counted.json", {"rows": [{"id": "a", "ours": ours}], "families": []})
    assert verdict(tmp_path, COUNTED)["verdict"] == expected


@pytest.mark.parametrize(
    ("claim", "ours", "expected"),
    [
        ("kind: speed, row: fast, published: 3", 4.0, "reproduced"),
        ("kind: speed, row: fast, published: 5", 4.0, "not reproduced"),
        ("kind: memory, row: fast, published: -0.5", -0.75, "reproduced"),
        ("kind: memory, row: fast, published: -0.9", -0.75, "not reproduced"),
    ],
)
def test_speed_and_memory(tmp_path, claim, ours, expected):
    (tmp_path / "fast.yaml").write_text(
        "title: S\nkind: speed\nrows: [{id: conv, test: 2d, label: c}, {id: fast, test: 2d, label: f}]"
    )
    timed = {"conv": {}, "fast": {"times_as_fast": {"conv": {"median": 4.0, "low": 3.0, "high": 5.0}}}}
    measured = {"layers": {"kept": {"2d": {"forward": timed}}}, "layer_memory": {"2d": {"conv": 8, "fast": 2}}}
    write_json(tmp_path / "fast.json", measured)
    row = verdict(tmp_path, f"{claim}, table: fast, control: conv")
    assert (row["ours"].value, row["verdict"]) == (ours, expected)


@pytest.mark.parametrize(("top1", "expected"), [(91.66, "reproduced"), (91.64, "reproduced"), (91.6, "not reproduced")])
def test_released_weights(tmp_path, top1, expected):
    (tmp_path / "released.yaml").write_text("title: R\nkind: parameters\nrows: [{id: a}]")
    write_json(tmp_path / "released.json", {"rows": [{"id": "a", "ours": top1}], "families": []})
    assert verdict(tmp_path, "kind: weights, table: released, row: a, published: 91.66")["verdict"] == expected


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ("kind: guess, table: mine, row: a, published: 1", "unknown kind 'guess'"),
        ("kind: accuracy, table: mine, row: z, published: 1", "no row 'z'"),
        ("kind: accuracy, table: mine, row: a, published: 1, control: y", "no row 'y'"),
        ("kind: accuracy, table: mine, row: a", "published"),
        ("kind: accuracy, table: mine, row: a, published: 1, verdict: reproduced", "verdict"),
    ],
)
def test_malformed_claims(tmp_path, claim, words):
    with pytest.raises(TableError, match=words):
        verdict(tmp_path, claim)


def test_shipped_claims_have_a_source_each():
    spec = load_spec(SHIPPED.folder.parent / "experiments", "verdicts")
    assert all(claim.source for claim in read_claims(spec))
    assert len(stored_tables(spec, SHIPPED)[0].rows) == len(spec.rows)
