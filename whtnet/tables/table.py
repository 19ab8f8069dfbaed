"""A table as data: columns that say how their cells look, rows of numbers, spreads over seeds, and texts."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from whtnet.bench import Quartiles

NOT_AT_HAND = "not at hand"


class Spread(NamedTuple):
    """Mean and sample standard deviation (0 for a single value) of n values, and the seeds that gave them."""

    mean: float
    sd: float
    n: int
    seeds: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.text()

    def text(self, form: str = ".2f") -> str:
        """As ``91.20 ± 0.15 (n=3)``; one value alone has no deviation."""
        deviation = f" ± {self.sd:{form.lstrip('+')}}" if self.n > 1 else ""
        return f"{self.mean:{form}}{deviation} (n={self.n})"


def spread(values: Sequence[float], seeds: Sequence[int] = ()) -> Spread:
    """Mean and sample standard deviation of at least one value."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.fmean(values), sd, len(values), tuple(seeds))


class Shown(NamedTuple):
    """A number that looks another way than its column's others: a format specification, and a unit behind it."""

    value: float | Spread | Quartiles
    form: str
    unit: str = ""


Cell = float | Spread | Quartiles | Shown | str | None
"""A number, or a text: in a column of numbers the reason why there is none."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: key of its cells in the rows, and heading for programs.
        heading: for people; the name if empty.
        form: format specification of its numbers; None for a column of text, which is left-aligned.
        scale: what its numbers are shown in; 1e-6 shows millions.
        spreads: whether it holds means over seeds, which take several columns for programs.
        quartiles: whether it holds medians with their quartiles, which do too.
    """

    name: str
    heading: str = ""
    form: str | None = None
    scale: float = 1
    spreads: bool = False
    quartiles: bool = False

    def text(self, cell: Cell) -> str:
        """A cell for people."""
        if cell is None or isinstance(cell, str):
            return cell or ""
        value, form, unit = cell if isinstance(cell, Shown) else (cell, self.form or "", "")
        if isinstance(value, Spread):
            return value.text(form) + unit
        if isinstance(value, Quartiles):  # as "24.1 (23.5–24.6)"
            median, low, high = (format(part * self.scale, form) for part in value)
            return f"{median} ({low}–{high}){unit}"
        return format(value * self.scale if self.scale != 1 else value, form) + unit


@dataclass(frozen=True)
class Table:
    """What :mod:`whtnet.tables.render` shows.

    Attributes:
        title: heading.
        columns: in order.
        rows: cells by the name of their column; a missing one is empty. A row that can be picked out has an ``id`` too.
        intro: text above.
        notes: lines below.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Cell]]
    intro: str = ""
    notes: Sequence[str] = ()

    @property
    def headings(self) -> list[str]:
        """Headings of the columns, for people."""
        return [column.heading or column.name for column in self.columns]

    @property
    def texts(self) -> list[list[str]]:
        """Cells of the rows, for people."""
        return [[column.text(row.get(column.name)) for column in self.columns] for row in self.rows]

    def excerpt(self, columns: Sequence[str], rows: Sequence[str]) -> "Table":
        """These columns of the rows with these ids, or of all rows, without intro and notes.

        Raises:
            KeyError: naming a column or id that there is not.
        """
        by_name = {column.name: column for column in self.columns}
        ids = {row.get("id") for row in self.rows}
        if missing := [name for name in rows if name not in ids] + [name for name in columns if name not in by_name]:
            raise KeyError(missing[0])
        kept = [row for row in self.rows if not rows or row.get("id") in rows]
        return Table(self.title, [by_name[name] for name in columns] or self.columns, kept)

    def is_text(self, index: int) -> bool:
        """Whether the column is one of text."""
        return self.columns[index].form is None
