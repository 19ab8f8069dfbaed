"""Tables as files: what a table's files hold, writing them, and the README's blocks."""

import re
from collections.abc import Sequence
from pathlib import Path

from whtnet.errors import UserError
from whtnet.files import atomic_write
from whtnet.tables.render import to_csv, to_latex, to_markdown
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


def update_readme(readme: Path, name: str, table: Table) -> None:
    """Put ``table`` between ``<!-- table: NAME -->`` and ``<!-- end -->``; a README without the marks stays as it is.

    Raises:
        UserError: if the marks don't come as a pair.
    """
    text = readme.read_text(encoding="utf-8")
    updated = with_table(text, name, table, readme)
    if updated != text:
        atomic_write(readme, updated)


def with_table(text: str, name: str, table: Table, readme: Path) -> str:
    """The text of ``readme`` with ``table`` in its block; raises as :func:`update_readme`."""
    mark = f"<!-- table: {name} -->"
    if mark not in text:
        return text
    pattern = re.compile(re.escape(mark) + r"\n.*?<!-- end -->", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"{readme}: {mark} has no <!-- end --> after it; put the mark back")
    return pattern.sub(lambda _: f"{mark}\n{to_markdown(table, 3)}<!-- end -->", text, count=1)
