"""Specifications of tables, one YAML file each in ``experiments/``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whtnet.errors import UserError, did_you_mean
from whtnet.files import FileError, read_yaml
from whtnet.records import is_file_name

KINDS = ("parameters", "coverage", "training", "speed", "deployment", "layers", "released", "study", "verdicts")


class TableError(UserError, ValueError):
    """A table that does not exist, or whose specification can't be read."""


@dataclass(frozen=True)
class TableSpec:
    """What a table holds.

    Attributes:
        name: of the file, and of the results.
        title: heading.
        kind: ``parameters`` (counted), ``coverage`` (counted for every policy on every row's backbone), ``training``
            (trained), ``speed`` (timed), ``deployment`` (exported, and timed in their runtimes), ``layers`` (what the
            layers of trained networks do), ``released`` (others' networks, evaluated), ``study`` (what each choice is
            worth, from the runs of a training table) or ``verdicts`` (published claims judged by what the other tables
            hold).
        intro: a sentence or two above the table, without numbers of results: those are computed.
        rows: each with an ``id``, and what its kind needs. A row of a training table may leave out its ``label`` (the
            id) and its ``overrides`` (none); with ``start``, the id of another, it is fine-tuned from that one's run by
            the same recipe and seed.
        overrides: Hydra overrides that all rows of a training table share.
        recipe: trainer config of a training table; None for the one that is asked for. Of a study: whose runs it takes.
        of: the training table whose rows a study compares.
        seeds: seeds of each row of a training table; a row's own ``seeds`` win.
        counted: what to count a training table's rows at, trained or not, the first as it is trained: ``label``,
            ``input_size``, and ``overrides`` besides the row's.
        rerun: train every row on this machine, whatever records there are; otherwise recorded runs are kept.
        families: backbones for the matrix of a parameter table.
        networks: whole networks of a speed table, or of one of deployment, whose first is the baseline.
        layers: single layers of a table of deployment, whose first is the convolution.
        sites: of a speed table: where layers compete, each with ``id``, ``of`` (what it is a part of), ``images``,
            ``channels``, ``size``, ``out_channels`` where they are others, and ``layers``.
        front: ``columns`` and ``rows`` of the first table that pages show; all of them where left out. A picked row of
            a training table is shown by those recipes by which its baseline was trained as well.
    """

    name: str
    title: str
    kind: str
    rows: tuple[Mapping[str, Any], ...]
    intro: str = ""
    overrides: tuple[str, ...] = ()
    recipe: str | None = None
    of: str | None = None
    seeds: tuple[int, ...] = (0,)
    counted: tuple[Mapping[str, Any], ...] = ()
    rerun: bool = False
    families: tuple[Mapping[str, Any], ...] = ()
    networks: tuple[Mapping[str, Any], ...] = ()
    layers: tuple[Mapping[str, Any], ...] = ()
    sites: tuple[Mapping[str, Any], ...] = ()
    front: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TableError(f"table {self.name!r}: unknown kind {self.kind!r}; choose one of {', '.join(KINDS)}")
        ids = [row.get("id") if isinstance(row, Mapping) else None for row in self.rows]
        if None in ids or len(set(ids)) != len(ids):
            raise TableError(f"table {self.name!r}: every row needs an id of its own, got {ids}")
        if self.kind == "training":
            object.__setattr__(self, "rows", tuple(self._trained(row) for row in self.rows))
        for row in self.rows:
            self._check_start(row)

    def row(self, name: str) -> Mapping[str, Any]:
        """The row with this id.

        Raises:
            TableError: if there is none.
        """
        if found := [row for row in self.rows if row["id"] == name]:
            return found[0]
        raise TableError(
            f"table {self.name!r} has no row {name!r}; {did_you_mean(str(name), (str(row['id']) for row in self.rows))}"
        )

    def chosen(self, ids: Sequence[str] | None) -> list[Mapping[str, Any]]:
        """The rows with these ids, in the table's order; all for None.

        Raises:
            TableError: if one is of no row, or there are none.
        """
        known = [row["id"] for row in self.rows]
        if not known:
            raise TableError(f"table {self.name!r} has no rows; give it one, such as {{id: baseline, label: baseline}}")
        if unknown := sorted(set(ids or ()) - set(known)):
            raise TableError(f"table {self.name!r} has no row {', '.join(unknown)}; there are {', '.join(known)}")
        return [row for row in self.rows if ids is None or row["id"] in ids]

    def _trained(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row of a training table, whole; a run's record must be able to bear its name."""
        for what, name in (("the name", self.name), ("row", row["id"])):
            if not isinstance(name, str) or not is_file_name(name):
                raise TableError(
                    f"table {self.name!r}: {what} {name!r} can't name a record; take letters, digits, '_', '-', '.'"
                )
        row = {"label": row["id"], "overrides": (), **row}
        for key, kind in (("overrides", str), ("seeds", int)):
            values = row.get(key, ())
            if not isinstance(values, list | tuple) or not all(isinstance(value, kind) for value in values):
                raise TableError(f"table {self.name!r}, row {row['id']!r}: {key} needs a list, got {values!r}")
        if seeds := [word for word in (*self.overrides, *row["overrides"]) if setting_of(word) == "seed"]:
            raise TableError(f"table {self.name!r}, row {row['id']!r}: {seeds[0]} does nothing; write seeds: [0, 1]")
        return row

    def _check_start(self, row: Mapping[str, Any]) -> None:
        """Find a start that is no row, and rows that start from each other."""
        chain = [row]
        while "start" in chain[-1]:
            start = self.row(chain[-1]["start"])
            if start in chain:
                circle = " → ".join(str(one["id"]) for one in [*chain, start])
                raise TableError(f"table {self.name!r}: rows start from each other, {circle}; one must start from none")
            chain.append(start)


def setting_of(override: str) -> str:
    """What an override sets: ``trainer.lr`` of ``+trainer.lr=0.1``."""
    return override.lstrip("+~").partition("=")[0]


def table_names(folder: Path) -> list[str]:
    """Names of the tables specified in ``folder``."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_spec(folder: Path, name: str) -> TableSpec:
    """Read the specification of table ``name``.

    Raises:
        TableError: if there is none, or it is malformed.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise TableError(f"no table {name!r}; {did_you_mean(name, table_names(folder))}")
    try:
        data = read_yaml(path)
        names = ("rows", "overrides", "seeds", "counted", "families", "networks", "layers", "sites")
        lists = {key: tuple(data[key]) for key in names if key in data}
        return TableSpec(name=name, **{**data, **lists})
    except (FileError, TypeError) as error:
        raise TableError(f"{path} is no specification of a table: {error}") from error
