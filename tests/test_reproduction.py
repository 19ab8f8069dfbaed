"""What a reproduction says of the reference: the statistics, and the tables that compare."""

import pytest
from scipy import stats
from test_tables import COUNTED, SPEC, record, results_of, write_spec

from whtnet.records import write_json
from whtnet.tables import comparisons, spread
from whtnet.tables.compare import judge
from whtnet.tables.statistics import mean_interval, welch_interval


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0, 4.0], [2.0, 2.5]), ([88.1, 88.4, 88.7], [81.0, 82.5, 81.9, 82.0])])
def test_welch_interval_is_scipys(a, b):
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert welch_interval(spread(a), spread(b)) == pytest.approx((expected.low, expected.high))


def test_mean_interval_is_scipys():
    values = [88.1, 88.4, 88.9]
    expected = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert mean_interval(spread(values)) == pytest.approx(expected)


def test_a_single_run_takes_the_other_sides_deviation():
    low, high = welch_interval(spread([7.0]), spread([2.0, 4.0, 6.0]))
    half = stats.t.ppf(0.975, 2) * 2.0 * (1 + 1 / 3) ** 0.5
    assert (low, high) == pytest.approx((3 - half, 3 + half))
    assert welch_interval(spread([2.0, 4.0, 6.0]), spread([7.0])) == pytest.approx((-high, -low))
    assert welch_interval(spread([5.0]), spread([1.0])) is None
    assert welch_interval(spread([5.0, 5.0]), spread([1.0, 1.0])) == (4.0, 4.0)


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"),
    [
        ([90.0, 90.4], [90.1, 90.2, 90.4], "within seed noise"),
        ([90.0, 90.4], [80.1, 80.2, 80.4], "differs"),
        ([90.3], [90.1, 90.2, 90.4], "within seed noise"),
        ([91.3], [90.1, 90.2, 90.3], "differs"),
        ([90.0], [90.1], "can't tell (n=1)"),
        ([90.0], [90.0], "equal"),
        ([90.0, 90.0], [90.1, 90.1], "differs"),
    ],
)
def test_words_for_a_difference(mine, theirs, verdict):
    assert judge(spread(mine), spread(theirs)) == verdict


def test_comparison_of_a_training_table(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    write_spec(own, SPEC + COUNTED)
    spec = write_spec(tmp_path, SPEC + COUNTED)
    costs = {
        row: [{"parameters": n, "macs": 7}, {"parameters": n, "macs": 9}]
        for row, n in zip("abc", (1, 2, 3), strict=True)
    }
    reference = results_of(tmp_path, [record("a", s, v) for s, v in enumerate((90.0, 90.4, 90.8))], costs)
    mine = [record("a", 0, 90.2), record("a", 1, 90.3), record("b", 0, 80.0)]
    yours = results_of(own, mine, {**costs, "c": [{"parameters": 4, "macs": 7}, {"parameters": 3, "macs": 9}]})
    accuracies, counts = comparisons(spec, reference, yours)
    first, second = accuracies.rows
    assert (first["reference"].n, first["yours"].n) == (3, 2)
    assert first["difference"] == pytest.approx(-0.15)
    assert first["low"] < -0.15 < first["high"]
    assert (first["verdict"], second["verdict"]) == ("within seed noise", "no reference")
    assert [(row["count"], row.get("reference"), row["yours"], row["verdict"]) for row in counts.rows] == [
        ("c, small: parameters", 3, 4, "differs"),
        ("the others", 11, 11, "equal"),
    ]
    assert comparisons(spec, reference, results_of(tmp_path / "nothing")) == []


def test_comparison_of_counts_that_are_new(tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    spec = write_spec(tmp_path, "title: Mine\nkind: coverage\nrows: []")
    write_json(tmp_path / "mine.json", {"pairs": [{"backbone": "x", "policy": "p", "cost": {"parameters": 3}}]})
    pairs = [{"backbone": "x", "policy": p, "cost": {"parameters": 3}} for p in "pq"]
    write_json(own / "mine.json", {"pairs": [*pairs, {"backbone": "x", "policy": "r", "error": "no"}]})
    (counts,) = comparisons(spec, results_of(tmp_path), results_of(own))
    assert [(row["count"], row["verdict"]) for row in counts.rows] == [
        ("x, q: parameters", "no reference"),
        ("the others", "equal"),
    ]
