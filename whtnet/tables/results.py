"""A folder of results, read again: records of runs, counts and timings, nothing rendered."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whtnet.records import read_json, read_layers, read_records
from whtnet.tables.counts import named_counts
from whtnet.tables.runs import Identities, Record, Runs, match_runs
from whtnet.tables.spec import TableSpec, load_spec, table_names
from whtnet.tables.training import Counts, TrainedRow, trained_rows

RUNS = "runs"


class Results:
    """What was measured for the tables.

    Args:
        experiments: folder of the tables' specifications.
        folder: of the results; ``runs`` in it holds the records.
        identities: of the runs that the tables' rows ask for.
        reference: results that fill in for what was not counted, timed or run here.
    """

    def __init__(
        self, experiments: Path, folder: Path, identities: Identities, reference: "Results | None" = None
    ) -> None:
        self.folder = folder
        self._experiments, self._identities, self._reference = experiments, identities, reference

    def spec(self, name: str) -> TableSpec:
        """The specification of a table; raises as :func:`load_spec`."""
        return load_spec(self._experiments, name)

    def specs(self) -> list[TableSpec]:
        """The specifications of all tables."""
        return [self.spec(name) for name in table_names(self._experiments)]

    @property
    def records_folder(self) -> Path:
        """Where the records are kept."""
        return self.folder / RUNS

    @functools.cached_property
    def records(self) -> list[dict[str, Any]]:
        """All records of this folder, as they were when first asked for."""
        return read_records(self.records_folder)

    def runs(self, spec: TableSpec) -> Runs:
        """The records of a table's rows as they are today, and those that were made with other settings."""
        runs = match_runs(spec, self.records, self._identities)
        return runs.filled_from(self._reference.runs(spec)) if self._reference else runs

    def layers(self, record: Record) -> list[dict[str, Any]]:
        """What the layers of a record of :meth:`runs` learned; empty where nothing was kept."""
        return read_layers(self.records_folder, record) or (self._reference.layers(record) if self._reference else [])

    def holds(self, spec: TableSpec) -> bool:
        """Whether anything was counted, timed or run for a table, or for the one that it is made of."""
        if spec.kind == "verdicts":
            return True
        if spec.kind == "study":
            return self.holds(self.spec(str(spec.of)))
        return self.measured(spec) is not None or any(record["table"] == spec.name for record in self.records)

    def counts(self, spec: TableSpec) -> Counts:
        """What the rows of a training table cost; empty where they were not counted."""
        return (self.measured(spec) or {}).get("rows", {})

    def measured(self, spec: TableSpec) -> Mapping[str, Any] | None:
        """What was counted or timed for a table, None if nothing was; raises as :func:`read_json`."""
        path = self.folder / f"{spec.name}.json"
        if path.is_file():
            return read_json(path)
        return self._reference.measured(spec) if self._reference else None

    def rows(self, spec: TableSpec) -> list[TrainedRow]:
        """The rows of a training table, trained or not."""
        return trained_rows(spec, self.runs(spec), self.counts(spec))

    def numbers(self, spec: TableSpec) -> dict[str, int]:
        """Every count that was made for a table, by what it counts; empty where none was."""
        return named_counts(spec, self.measured(spec) or {})
