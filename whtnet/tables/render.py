"""A table as data, and as Markdown, LaTeX, CSV, as text in a terminal, and in the README."""

import csv
import io
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
        rule = [":---" if self.is_text(i) else "---:" for i in range(len(self.columns))]
        lines = [_markdown_row(row) for row in (self.columns, rule, *self.rows)]
        parts = [f"{'#' * level} {self.title}", self.intro, "\n".join(lines), "\n".join(f"- {n}" for n in self.notes)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def latex(self, label: str) -> str:
        r"""A ``table`` float for a paper that loads booktabs, pure ASCII where the cells use the characters known here.

        The caption is title and intro; the notes stand below. ``label`` is what ``\ref`` takes.
        """
        alignment = "".join("l" if self.is_text(i) else "r" for i in range(len(self.columns)))
        head, *body = [" & ".join(map(_latex, row)) + r" \\" for row in (self.columns, *self.rows)]
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(f'{self.title}. {self.intro}'.strip())}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{alignment}}}",
            *(r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
            r"\end{tabular}",
            *(rf"\par\footnotesize {_latex(note)}" for note in self.notes),
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Columns and cells alone, for a program: without code marks, numbers without separators of thousands."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [_csv(cell) for cell in row] for row in (self.columns, *self.rows)
        )
        return text.getvalue()

    def rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(title=self.title, caption="\n".join(self.notes) or None, caption_justify="left")
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="left" if self.is_text(i) else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def is_text(self, index: int) -> bool:
        """Whether the column is left-aligned."""
        return index == 0 or self.columns[index] in self.text_columns


def write_tables(folder: Path, name: str, tables: Sequence[Table], command: str) -> Path:
    """Write tables to ``NAME.md``, and each to ``tables/NAME-1.tex`` and ``.csv``, ``NAME-2`` and so on.

    Args:
        folder: of the results.
        name: of the files.
        tables: in order.
        command: what makes them; the files that admit a comment say so.

    Returns:
        Path of the Markdown file.
    """
    made = f"Made by `{command}`; changes by hand are lost."
    markdown = folder / f"{name}.md"
    atomic_write(markdown, f"<!-- {made} -->\n\n" + "\n".join(table.markdown() for table in tables))
    for number, table in enumerate(tables, start=1):
        path = folder / "tables" / f"{name}-{number}"
        atomic_write(path.with_suffix(".tex"), f"% {made} Needs booktabs.\n" + table.latex(f"tab:{path.name}"))
        atomic_write(path.with_suffix(".csv"), table.csv())
    return markdown


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


_LATEX_CHARACTERS = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}"}
    | {"×": r"$\times$", "→": r"$\rightarrow$", "±": r"$\pm$", "−": "$-$", "–": "--", "…": r"\ldots{}", "\n": " "}
)


def _latex(cell: str) -> str:
    cell = re.sub(r"(?<!\w)-(?=\d)", "−", cell)  # a sign, not a hyphen
    text, *rest = re.split(r"`([^`]+)`", cell)
    parts = [_latex_text(text)]
    for code, after in zip(rest[::2], rest[1::2], strict=True):
        parts += [rf"\texttt{{{code.translate(_LATEX_CHARACTERS)}}}", _latex_text(after)]
    return "".join(parts)


def _latex_text(text: str) -> str:
    return re.sub(r'"([^"]*)"', r"``\1''", text.translate(_LATEX_CHARACTERS))


def _csv(cell: str) -> str:
    cell = cell.replace("`", "")
    return cell.replace(",", "") if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?%?", cell) else cell
