import itertools

import pytest
import torch

from whtnet.tables.labels import GAP, place_labels, spread_out
from whtnet.tables.points import by_recipe, principal_rows, published_points
from whtnet.tables.training import TrainedRow

LINE = 15.0


def boxes(points, widths, places):
    """The labels' boxes, in a chart that is as much wider as the points' x tell."""
    for (x, y), width, place in zip(points, widths, places, strict=True):
        left = x + GAP if place.right else x - GAP - width
        yield left, left + width, y + place.shift - LINE / 2, y + place.shift + LINE / 2


def overlap(a, b):
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] - 1e-6 and b[2] < a[3] - 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_labels_overlap_in_no_chart_as_wide_or_wider(seed):
    generator = torch.Generator().manual_seed(seed)
    width, height = 270, 400
    points = (torch.rand(14, 2, generator=generator) * torch.tensor([width, height])).tolist()
    points += [[40.0, 200.0]] * 3
    widths = (30 + 90 * torch.rand(len(points), generator=generator)).tolist()
    places = place_labels(points, widths, (width, height), LINE)
    for stretch in (1, 1.7, 4):
        wide = [(stretch * x, y) for x, y in points]
        shown = list(boxes(wide, widths, places))
        assert not [pair for pair in itertools.combinations(shown, 2) if overlap(*pair)]
        marks = [(x - 4, x + 4, y - 4, y + 4) for x, y in wide]
        assert not [pair for pair in itertools.product(shown, marks) if overlap(*pair)]


def test_a_label_alone_stands_beside_its_point_inside_the_chart():
    assert place_labels([(10, 50)], [60], (270, 100)) == [(True, 0)]
    assert place_labels([(260, 50)], [60], (270, 100)) == [(False, 0)]
    (place,) = place_labels([(10, 2)], [60], (270, 100), LINE)
    assert place.right
    assert place.shift >= LINE / 2 - 2


def test_labels_of_points_above_one_another_keep_their_order():
    points = [(20.0, 100.0 + 2 * n) for n in (3, 0, 4, 1, 2)]
    places = place_labels(points, [80.0] * 5, (270, 260), LINE)
    ends = [y + place.shift for (_, y), place in zip(points, places, strict=True)]
    assert sorted(range(5), key=ends.__getitem__) == [1, 3, 4, 0, 2]
    assert max(ends) - min(ends) == pytest.approx(4 * LINE)


def test_values_are_spread_out_in_order():
    assert spread_out([10, 50, 12], 15, 100) == [3.5, 50, 18.5]
    assert spread_out([98, 99], 15, 100) == [85, 100]
    assert spread_out([1, 2], 15, 100) == [0, 15]
    assert spread_out([], 15, 100) == []


def row(name, top1, recipe="short", epochs=15, **more):
    return TrainedRow(name, name, recipe, {}, {}, [{"test_top1": top1, "seed": 0, "epochs": epochs}], **more)


def test_rows_are_compared_within_a_recipe():
    alone = row("a", 95.0, "authors", 200)
    rows = [row("a", 90.0), row("b", 80.0), alone, TrainedRow("c", "c", None, {}, {}, [])]
    assert {recipe: [r.id for r in group] for recipe, group in by_recipe(rows).items()} == {"short": ["a", "b"]}
    assert list(by_recipe([*rows, row("b", 94.0, "authors", 200)])) == ["authors", "short"]
    assert list(by_recipe([alone])) == ["authors"]
    assert by_recipe(rows[3:]) == {}


def test_what_is_published_is_a_point_once():
    published = {"top1": 90.12, "parameters": 133082, "source": "there"}
    first = row("a", 90.0)
    rows = [TrainedRow("a", "a", recipe, published, {}, []) for recipe in ("short", "authors", None)]
    (point,) = published_points([first, *rows], "parameters")
    assert (point.label, point.cost, point.top1.mean) == ("a, published", 133082, 90.12)
    assert published_points(rows, "macs") == []


def test_the_principal_rows_are_the_baseline_controls_published_ones_and_the_best():
    rows = [row("baseline", 70.0), *(row(f"r{n}", 80.0 + n) for n in range(6)), row("control", 60.0, control=True)]
    assert [r.id for r in principal_rows(rows)] == ["baseline", "r2", "r3", "r4", "r5", "control"]
    claimed = TrainedRow("claimed", "claimed", "short", {"top1": 90.0}, {}, row("x", 50.0).records)
    assert [r.id for r in principal_rows([*rows, claimed])] == ["baseline", "r3", "r4", "r5", "control", "claimed"]
