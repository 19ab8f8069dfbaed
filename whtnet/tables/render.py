"""A table as data, and as Markdown, as text in a terminal, and in the README."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table as RichTable

from whtnet.errors import UserError
from whtnet.files import atomic_write

NOT_AT_HAND = "not at hand"


@dataclass(frozen=True)
class Table:
    """Cells as text, ready to show.

    Attributes:
        title: heading.
        columns: headings of the columns; the first one is left-aligned, and so is every one in ``text_columns``.
        rows: cells.
        intro: text above.
        notes: lines below.
        text_columns: headings of further left-aligned columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    intro: str = ""
    notes: Sequence[str] = ()
    text_columns: Sequence[str] = ()

    def markdown(self, level: int = 2) -> str:
        """GitHub Markdown under a heading of the given level."""
        rule = [":---" if self._is_text(i) else "---:" for i in range(len(self.columns))]
        lines = [_markdown_row(row) for row in (self.columns, rule, *self.rows)]
        parts = [f"{'#' * level} {self.title}", self.intro, "\n".join(lines), "\n".join(f"- {n}" for n in self.notes)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(title=self.title, caption="\n".join(self.notes) or None, caption_justify="left")
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="left" if self._is_text(i) else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def _is_text(self, index: int) -> bool:
        return index == 0 or self.columns[index] in self.text_columns


def write_markdown(path: Path, tables: Sequence[Table], command: str) -> None:
    """Write tables to a Markdown file that says which command made it."""
    head = f"<!-- Made by `{command}`; changes by hand are lost. -->\n\n"
    atomic_write(path, head + "\n".join(table.markdown() for table in tables))


def update_readme(readme: Path, name: str, table: Table) -> None:
    """Put ``table`` between ``<!-- table: NAME -->`` and ``<!-- end -->``; a README without the marks stays as it is.

    Raises:
        UserError: if the marks don't come as a pair.
    """
    text = readme.read_text(encoding="utf-8")
    mark = f"<!-- table: {name} -->"
    if mark not in text:
        return
    pattern = re.compile(re.escape(mark) + r"\n.*?<!-- end -->", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"{readme}: {mark} has no <!-- end --> after it; put the mark back")
    atomic_write(readme, pattern.sub(lambda _: f"{mark}\n{table.markdown(3)}<!-- end -->", text, count=1))


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
