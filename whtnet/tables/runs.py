"""Which records are runs of a table's rows as they are today."""

import dataclasses
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whtnet.errors import UserError
from whtnet.experiment import Experiment
from whtnet.policy import canonical_policy
from whtnet.tables.spec import TableSpec

Compose = Callable[[Sequence[str]], Mapping[str, Any]]
"""The config that a list of overrides makes."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Runs:
    """The records of a table.

    Attributes:
        rows: of its rows as they are today, by the id of the row and the recipe.
        others: made with other settings than their row, or their recipe, has today.
    """

    rows: Mapping[tuple[str, str], Sequence[Record]]
    others: Sequence[Record] = ()

    @property
    def records(self) -> list[Record]:
        """All records of the rows."""
        return [record for records in self.rows.values() for record in records]

    def filled_from(self, reference: "Runs") -> "Runs":
        """These, and the reference's of every row and recipe that these lack."""
        return Runs({**reference.rows, **self.rows}, [*reference.others, *self.others])


class Identities:
    """The identities of the runs that a table's rows ask for, each row and recipe composed once.

    Args:
        compose: the config that a list of overrides makes.
    """

    def __init__(self, compose: Compose) -> None:
        self.compose = compose
        self._experiments: dict[tuple[str, ...], Experiment | UserError] = {}

    def __call__(self, spec: TableSpec, row: Mapping[str, Any], recipe: str, seed: int) -> str | None:
        """Of the run of ``row`` by ``recipe`` from ``seed``; None where that can't be composed any more."""
        try:
            experiment = self.experiment(spec, row, recipe)
        except UserError:  # a recipe that is gone, an override of what is gone
            return None
        return experiment.with_seed(seed).identity

    def experiment(self, spec: TableSpec, row: Mapping[str, Any], recipe: str) -> Experiment:
        """What the runs of ``row`` by ``recipe`` are; their start is the experiment of the row that it starts from.

        Args:
            spec: the table.
            row: of the table.
            recipe: as of :func:`run_overrides`.

        Raises:
            UserError: if that can't be composed.
        """
        key = (spec.name, row["id"], recipe)
        if key not in self._experiments:
            try:
                self._experiments[key] = self._composed(spec, row, recipe)
            except UserError as error:
                self._experiments[key] = error
        found = self._experiments[key]
        if isinstance(found, UserError):
            raise found
        return found

    def _composed(self, spec: TableSpec, row: Mapping[str, Any], recipe: str) -> Experiment:
        experiment = Experiment.from_config(self.compose(run_overrides(spec, row, recipe)))
        canonical_policy(experiment.policy)  # for its errors: a layer or an option that there is not
        if "start" not in row:
            return experiment
        return dataclasses.replace(experiment, start=self.experiment(spec, spec.row(row["start"]), recipe))


def run_overrides(spec: TableSpec, row: Mapping[str, Any], recipe: str) -> list[str]:
    """What a run of ``row`` is composed from.

    Args:
        spec: the table.
        row: of the table.
        recipe: the name of a trainer config, and overrides behind it that come last, as in ``short trainer.epochs=60``.
    """
    trainer, *more = shlex.split(recipe)
    start = [f"finetune.start='{row['start']}'"] if "start" in row else []  # its name stands for what is trained then
    return [*spec.overrides, f"trainer={trainer}", *start, *row["overrides"], *more]


def match_runs(spec: TableSpec, records: Sequence[Record], identities: Identities) -> Runs:
    """Sort the records of a table by whether their identity is that of a row today.

    A record counts for the row whose run it is, whatever the row was called when it was made, and for those without
    records whose run it is too. Of a run that was repeated under another name of its row, the record that was finished
    last counts, alone.
    """
    records = _last_finished(record for record in records if record["table"] == spec.name)
    rows = {row["id"]: row for row in spec.rows}
    found: dict[tuple[str, str], list[Record]] = {}
    others = []
    for record in records:
        named = [rows[record["row"]]] if record["row"] in rows else []
        asked = (row for row in [*named, *spec.rows] if _is_run_of(spec, row, record, identities))
        if row := next(asked, None):
            found.setdefault((row["id"], record["recipe"]), []).append(record)
        else:
            others.append(record)
    kept = [record for own in found.values() for record in own]
    with_records = {name for name, _ in found}
    for row in (row for row in spec.rows if row["id"] not in with_records):
        for record in (record for record in kept if _is_run_of(spec, row, record, identities)):
            found.setdefault((row["id"], record["recipe"]), []).append(record)
    return Runs(found, others)


def _last_finished(records: Iterable[Record]) -> list[Record]:
    last: dict[tuple[str, str], Record] = {}
    for record in records:
        key = record["recipe"], record["identity"]
        if key not in last or record["finished"] > last[key]["finished"]:
            last[key] = record
    return list(last.values())


def _is_run_of(spec: TableSpec, row: Mapping[str, Any], record: Record, identities: Identities) -> bool:
    return identities(spec, row, record["recipe"], record["seed"]) == record["identity"]
