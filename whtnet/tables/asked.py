"""The runs that a reproduction of a training table asks for: what they are recorded as, and the jobs that make them."""

import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whtnet.errors import UserError
from whtnet.experiment import Experiment
from whtnet.jobs import Job
from whtnet.runs import finished_folder
from whtnet.tables.runs import Identities, run_overrides
from whtnet.tables.spec import TableError, TableSpec, setting_of

Row = Mapping[str, Any]

_OPTIONS = {"seed": "--seeds", "resume": "--fresh"}
"""Options of ``whtnet table``, by the setting of one run that they stand for."""


@dataclass(frozen=True)
class Asked:
    """Rows of a training table, and how to train them.

    Attributes:
        spec: the table.
        rows: those that are chosen.
        trainer: a recipe, as of :func:`whtnet.tables.run_overrides`.
        overrides: of all runs, the starts' too; they come last, each on top of those before it.
        identities: of the runs that rows and recipes make.
    """

    spec: TableSpec
    rows: Sequence[Row]
    trainer: str
    overrides: Sequence[str]
    identities: Identities

    def check(self) -> None:
        """Find a row that can't be composed.

        Raises:
            TableError: naming the first override that does not go with a row, the row, and what is wrong; for one that
                is an option's, or of a run that keeps nothing.
            UserError: if a row can't be composed without overrides either.
        """
        for word in (*shlex.split(self.trainer)[1:], *self.overrides):
            if option := _OPTIONS.get(setting_of(word)):
                raise TableError(f"{word} does nothing for the runs of a table; {option} does")
        for row in self._with_starts():
            if self._error(row, self.overrides) is not None:
                self._refuse(row)
            if self.identities.experiment(self.spec, row, self._recipe(self.overrides)).trainer.dry_run:
                raise TableError(
                    "trainer.dry_run=true keeps nothing that a table could show; leave it out, or try the settings of "
                    f"row {row['id']} with `python train.py … trainer.dry_run=true`"
                )

    @functools.cached_property
    def recipe(self) -> str:
        """What the runs are recorded as: the trainer, and those overrides without which a run would be another one."""
        asked, kept = self._identities(self.overrides), list(self.overrides)
        for override in self.overrides:
            others = kept.copy()
            others.remove(override)
            if self._identities(others) == asked:
                kept = others
        in_order = sorted(kept, key=setting_of)
        if self._identities(in_order) == asked:  # the same overrides in another order are the same recipe
            kept = in_order
        return self._recipe(kept)

    def experiment(self, row: Row, seed: int) -> Experiment:
        """What the run of ``row`` from ``seed`` is.

        Raises:
            UserError: if it can't be composed.
        """
        return self.identities.experiment(self.spec, row, self._recipe(self.overrides)).with_seed(seed)

    def config(self, row: Row, *before: str) -> Mapping[str, Any]:
        """The whole config of the runs of ``row``; its overrides come after those in ``before``."""
        return self.identities.compose([*before, *run_overrides(self.spec, row, self._recipe(self.overrides))])

    def jobs(self, runs: Sequence[tuple[Row, int]], logger: str, place: Path, *, fresh: bool) -> list[tuple[Row, Job]]:
        """The jobs of ``runs``, each behind its start; that is one of them where it isn't finished here.

        Rows that ask for the same run share its job.

        Args:
            runs: rows and seeds.
            logger: the choice of that group.
            place: folder of the ``run_root`` of the runs.
            fresh: whether what was begun, or is finished, is trained again.
        """
        asked = {self.experiment(row, seed).identity for row, seed in runs}
        jobs: dict[str, tuple[Row, Job]] = {}

        def add(row: Row, seed: int) -> None:
            job = self._job(row, seed, logger, place, fresh)
            if job.experiment.identity in jobs:
                return
            if (first := job.experiment.start) is not None and (
                first.identity in asked or finished_folder(first, job.options["root"]) is None
            ):
                add(self.spec.row(row["start"]), seed)
            jobs[job.experiment.identity] = row, job

        for row, seed in runs:
            add(row, seed)
        return list(jobs.values())

    def _job(self, row: Row, seed: int, logger: str, place: Path, fresh: bool) -> Job:
        config, title = self.config(row, f"logger={logger}"), f"{row['id']}, seed {seed}"
        options = {
            "root": place / config["run_root"],
            "resume": "never" if fresh else "auto",
            "label": title,
            "group": self.spec.name,
            "tags": (self.spec.name, row["id"]),
        }
        return Job(title, self.experiment(row, seed), config["logger"], options)

    def _recipe(self, overrides: Sequence[str]) -> str:
        return shlex.join([*shlex.split(self.trainer), *overrides])

    def _identities(self, overrides: Sequence[str]) -> list[str | None]:
        return [self.identities(self.spec, row, self._recipe(overrides), 0) for row in self.rows]

    def _with_starts(self) -> list[Row]:
        """The rows, behind those that they start from, which are trained with them."""
        found: dict[str, Row] = {}
        for row in self.rows:
            chain = [row]
            while "start" in chain[0]:
                chain.insert(0, self.spec.row(chain[0]["start"]))
            found |= {one["id"]: one for one in chain}
        return list(found.values())

    def _error(self, row: Row, overrides: Sequence[str]) -> UserError | None:
        try:
            self.identities.experiment(self.spec, row, self._recipe(overrides))
        except UserError as error:
            return error
        return None

    def _refuse(self, row: Row) -> None:
        """Say which override ``row`` can't take: the one behind the most that it takes."""
        errors = [self._error(row, self.overrides[:n]) for n in range(len(self.overrides) + 1)]
        if errors[0] is not None:
            raise errors[0]
        taken = max(n for n, error in enumerate(errors) if error is None)
        takers = [other["id"] for other in self.rows if self._error(other, self.overrides) is None]
        remedy = f"; --rows {','.join(takers)} leaves such rows out" if takers else ""
        name = str(row["id"]) + ("" if row in self.rows else ", which chosen rows start from,")
        raise TableError(
            f"--override {shlex.quote(self.overrides[taken])} does not go with row {name} of table "
            f"{self.spec.name!r}: {errors[taken + 1]}{remedy}"
        )
