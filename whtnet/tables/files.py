"""Tables as files: what a table's files hold, writing them, and the README's blocks."""

import re
from collections.abc import Sequence
from pathlib import Path

from whtnet.errors import UserError
from whtnet.files import atomic_write
from whtnet.tables.render import markdown_rows, to_csv, to_latex, to_markdown
from whtnet.tables.spec import TableError, TableSpec
from whtnet.tables.table import Table


def rendered(name: str, tables: Sequence[Table], command: str) -> dict[str, str]:
    """By its path below the results, what each file of some tables holds.

    ``NAME.md`` has all of them; each alone is ``tables/NAME-1.tex`` and ``.csv``, ``NAME-2`` and so on.

    Args:
        name: of the files.
        tables: in order.
        command: what makes them; the files that admit a comment say so.
    """
    made = f"Made by `{command}`; changes by hand are lost."
    files = {f"{name}.md": f"<!-- {made} -->\n\n" + "\n".join(map(to_markdown, tables))}
    for number, table in enumerate(tables, start=1):
        stem = f"{name}-{number}"
        files[f"tables/{stem}.tex"] = f"% {made} Needs booktabs.\n" + to_latex(table, f"tab:{stem}")
        files[f"tables/{stem}.csv"] = to_csv(table)
    return files


def write_tables(folder: Path, name: str, tables: Sequence[Table], command: str) -> Path:
    """Write what :func:`rendered` says; returns the path of the Markdown file."""
    for path, text in rendered(name, tables, command).items():
        atomic_write(folder / path, text)
    return folder / f"{name}.md"


def update_readme(readme: Path, spec: TableSpec, table: Table) -> None:
    """Put what ``spec.front`` picks from ``table`` between ``<!-- table: NAME -->`` and ``<!-- end -->``.

    A README without the marks stays as it is.

    Raises:
        UserError: if the marks don't come as a pair.
    """
    text = readme.read_text(encoding="utf-8")
    updated = with_table(text, spec, table, readme)
    if updated != text:
        atomic_write(readme, updated)


def with_table(text: str, spec: TableSpec, table: Table, readme: Path) -> str:
    """The text of ``readme`` with its part of ``table`` in its block; raises as :func:`update_readme`."""
    mark = f"<!-- table: {spec.name} -->"
    if mark not in text:
        return text
    pattern = re.compile(re.escape(mark) + r"\n.*?<!-- end -->", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"{readme}: {mark} has no <!-- end --> after it; put the mark back")
    try:
        excerpt = table.excerpt(spec.front.get("columns", ()), spec.front.get("rows", ()))
    except KeyError as error:
        raise TableError(f"table {spec.name!r}: front names {error}, which is no column and no row of it") from error
    return pattern.sub(lambda _: f"{mark}\n{markdown_rows(excerpt)}\n<!-- end -->", text, count=1)
