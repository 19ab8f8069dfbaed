"""A table as Markdown, LaTeX, CSV and text in a terminal, all from the same numbers."""

import csv
import io
import re
from collections.abc import Sequence

from rich.table import Table as RichTable

from whtnet.bench import Quartiles
from whtnet.tables.table import Cell, Column, Shown, Spread, Table


def to_markdown(table: Table) -> str:
    """GitHub Markdown under a heading."""
    notes = "\n".join(f"- {note}" for note in table.notes)
    parts = [f"## {table.title}", table.intro, markdown_rows(table), notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_rows(table: Table) -> str:
    """Columns and cells alone, in GitHub Markdown."""
    rule = [":---" if table.is_text(i) else "---:" for i in range(len(table.columns))]
    return "\n".join(_markdown_row(row) for row in (table.headings, rule, *table.texts))


def to_latex(table: Table, label: str) -> str:
    r"""A ``table`` float for a paper that loads booktabs, pure ASCII where the cells use the characters known here.

    The caption is title and intro; the notes stand below. ``label`` is what ``\ref`` takes.
    """
    alignment = "".join("l" if table.is_text(i) else "r" for i in range(len(table.columns)))
    head, *body = [" & ".join(map(_latex, row)) + r" \\" for row in (table.headings, *table.texts)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(f'{table.title}. {table.intro}'.strip())}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        *(r"\toprule", head, r"\midrule", *body, r"\bottomrule"),
        r"\end{tabular}",
        *(rf"\par\footnotesize {_latex(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Columns and cells alone, for a program.

    Numbers are plain and unscaled; a column of numbers holds nothing else, and is empty where there is none. A mean
    over seeds takes four columns: NAME_mean, NAME_std (empty for one seed), NAME_n, NAME_seeds. A median with quartiles
    takes three: NAME_median, NAME_low, NAME_high.
    """
    head = [name for column in table.columns for name in _csv_names(column)]
    body = [[value for column in table.columns for value in _csv(column, row.get(column.name))] for row in table.rows]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *body])
    return text.getvalue()


def to_rich(table: Table) -> RichTable:
    """For a terminal."""
    shown = RichTable(title=table.title, caption="\n".join(table.notes) or None, caption_justify="left")
    for i, heading in enumerate(table.headings):
        shown.add_column(heading, justify="left" if table.is_text(i) else "right", overflow="fold")
    for row in table.texts:
        shown.add_row(*row)
    return shown


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


_LATEX_CHARACTERS = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}"}
    | {"×": r"$\times$", "→": r"$\rightarrow$", "±": r"$\pm$", "−": "$-$", "–": "--", "…": r"\ldots{}", "\n": " "}
    | {"≤": r"$\leq$", "≥": r"$\geq$", "√": r"$\surd$"}
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


def _csv_names(column: Column) -> list[str]:
    parts = _SPREAD if column.spreads else _QUARTILES if column.quartiles else ()
    return [f"{column.name}_{part}" for part in parts] or [column.name]


_SPREAD, _QUARTILES = ("mean", "std", "n", "seeds"), ("median", "low", "high")


def _csv(column: Column, cell: Cell) -> list[str]:
    value = cell.value if isinstance(cell, Shown) else cell
    if column.form is None:
        return [column.text(cell).replace("`", "")]
    width = len(_csv_names(column))
    if value is None or isinstance(value, str):
        return [""] * width
    if isinstance(value, Quartiles):
        return [_plain(part) for part in value]
    if not isinstance(value, Spread):
        return [_plain(value)] + [""] * (width - 1)
    deviation = _plain(value.sd) if value.n > 1 else ""
    return [_plain(value.mean), deviation, str(value.n), " ".join(map(str, value.seeds))]


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.10g}"
