"""Labels beside the points of a chart, none over another or over a point."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

GAP = 12.0  # from a point to its label
_RADIUS = 6.0  # of a point, with air


class Place(NamedTuple):
    """Of a label: which side of its point it stands on, and how far along the y axis it is moved."""

    right: bool
    shift: float


class _Box(NamedTuple):
    anchor: float  # x of the point that it belongs to
    left: float
    right: float
    low: float
    high: float

    def is_clear_of(self, other: "_Box") -> bool:
        """Whether the two don't overlap, and won't when the chart grows wider and their points move apart."""
        if self.high <= other.low or other.high <= self.low:
            return True
        first, second = sorted((self, other), key=lambda box: (box.anchor, box.left))
        return first.right <= second.left


def place_labels(
    points: Sequence[tuple[float, float]], widths: Sequence[float], room: tuple[float, float], line: float = 15.0
) -> list[Place]:
    """Find a place for each label, as near to its point as there is one.

    What is found holds in every wider chart too: labels keep their size there while the points move apart along x.

    Args:
        points: (x, y) in pixels or any other unit of length, from a corner of the chart.
        widths: of the labels, in that unit.
        room: width and height of the chart.
        line: height of a label.
    """
    taken = [_Box(x, x - _RADIUS, x + _RADIUS, y - _RADIUS, y + _RADIUS) for x, y in points]
    wanted = _in_columns(points, room[1], line)
    places: dict[int, Place] = {}
    for index in sorted(range(len(points)), key=wanted.__getitem__):
        (x, y), width = points[index], widths[index]
        others = [*taken[:index], *taken[index + 1 :]]
        for place in _candidates(x, y, wanted[index], width, room, line):
            box = _box(x, y, width, line, place)
            if all(box.is_clear_of(other) for other in others):
                break
        places[index] = place
        taken.append(box)
    return [places[index] for index in range(len(points))]


def _in_columns(points: Sequence[tuple[float, float]], height: float, line: float) -> list[float]:
    """The y of labels that stand above one another in their points' order where points do, with room for each."""
    wanted = [y for _, y in points]
    order = sorted(range(len(points)), key=lambda i: points[i][0])
    starts = [k for k, index in enumerate(order) if k == 0 or points[index][0] - points[order[k - 1]][0] > GAP]
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        column = order[start:stop]
        shown = spread_out([wanted[index] - line / 2 for index in column], line, height - line)
        for index, top in zip(column, shown, strict=True):
            wanted[index] = top + line / 2
    return wanted


def _candidates(x: float, y: float, wanted: float, width: float, room: tuple[float, float], line: float) -> list[Place]:
    fits = {True: x + GAP + width <= room[0], False: x - GAP - width >= 0}
    sides = [right for right in (True, False) if fits[right]] or [x < room[0] / 2]
    steps = itertools.chain(
        [0.0],
        *(
            [step, -step]
            for step in itertools.takewhile(lambda step: step <= room[1], itertools.count(line / 3, line / 3))
        ),
    )
    inside = [wanted + step for step in steps if line / 2 <= wanted + step <= room[1] - line / 2]
    return [Place(right, at - y) for at in inside or [wanted] for right in sides]


def _box(x: float, y: float, width: float, line: float, place: Place) -> _Box:
    left, right = (x + GAP, x + GAP + width) if place.right else (x - GAP - width, x - GAP)
    return _Box(x, left, right, y + place.shift - line / 2, y + place.shift + line / 2)


def spread_out(values: Sequence[float], gap: float, end: float) -> list[float]:
    """Move values as little as makes them differ by ``gap``, in order and, as far as there is room, from 0 to ``end``.

    Least squares: less their ranks' gaps, the sorted values must not fall, which is isotonic regression.
    """
    from scipy.optimize import isotonic_regression  # slow to import, and needed here alone

    if not len(values):
        return []
    order = np.argsort(values, kind="stable")
    room = gap * np.arange(len(values))
    placed = np.empty(len(values))
    placed[order] = isotonic_regression(np.asarray(values, dtype=float)[order] - room).x.clip(0, end - room[-1]) + room
    return placed.tolist()
