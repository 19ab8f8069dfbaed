"""Tables as files: what a table's files hold, writing them, and the blocks of the README and the guide."""

import re
from collections.abc import Sequence
from dataclasses import replace
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


def pages(root: Path) -> list[Path]:
    """The pages of a checkout that may show tables: the README and the guide's; none where there is no checkout."""
    return [page for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if page.is_file()]


def update_page(page: Path, spec: TableSpec, tables: Sequence[Table]) -> None:
    """Put ``tables`` of ``spec`` where ``page`` has marks for them.

    ``<!-- table: NAME -->`` and ``<!-- end -->`` take what ``spec.front`` picks from the first one, ``NAME-2`` in the
    place of ``NAME`` the second one, and so on. A page without the marks stays as it is.

    Raises:
        UserError: if the marks don't come as a pair.
    """
    text = page.read_text(encoding="utf-8")
    updated = with_tables(text, spec, tables, page)
    if updated != text:
        atomic_write(page, updated)


def with_tables(text: str, spec: TableSpec, tables: Sequence[Table], page: Path) -> str:
    """The text of ``page`` with the tables in their blocks; raises as :func:`update_page`."""
    for number, table in enumerate(tables, start=1):
        mark = f"<!-- table: {spec.name if number == 1 else f'{spec.name}-{number}'} -->"
        if mark in text:
            text = _with_block(text, mark, _front(spec, table) if number == 1 else table, page)
    return text


def _front(spec: TableSpec, table: Table) -> Table:
    picked = spec.front.get("rows", ())
    try:
        excerpt = table.excerpt(spec.front.get("columns", ()), picked)
    except KeyError as error:
        raise TableError(f"table {spec.name!r}: front names {error}, which is no column and no row of it") from error
    return replace(excerpt, rows=[row for row in excerpt.rows if row.get("comparable", True)]) if picked else excerpt


def _with_block(text: str, mark: str, table: Table, page: Path) -> str:
    pattern = re.compile(re.escape(mark) + r"\n.*?<!-- end -->", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"{page}: {mark} has no <!-- end --> after it; put the mark back")
    return pattern.sub(lambda _: f"{mark}\n{markdown_rows(table)}\n<!-- end -->", text, count=1)
