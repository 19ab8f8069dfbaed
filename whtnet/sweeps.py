"""``train.py -m``: every job of a sweep runs, whatever becomes of the others; a table at the end. Needs no PyTorch."""

import contextlib
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode

from whtnet.errors import JobFailedError, UserError

_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
_BasicSweeper: Any = Plugins.instance().class_name_to_class[_BASIC]


class SweepError(UserError, RuntimeError):
    """Jobs of a sweep failed; the others were finished."""


class TableSweeper(_BasicSweeper):
    """Hydra's sweeper over all combinations, but a failed job ends no other one.

    Raises:
        SweepError: after the last job, where some failed.
    """

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Run the jobs that ``arguments`` make, and show their results."""
        launch = self.launcher.launch
        jobs: list[tuple[Sequence[str], JobReturn]] = []

        def launch_and_keep(batch: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
            jobs.extend(zip(batch, launch(batch, initial_job_idx=initial_job_idx), strict=True))
            return []  # Hydra would raise the first error of those it is given

        self.launcher.launch = launch_and_keep
        try:
            super().sweep(arguments)
        finally:
            if not any(_is_trained(job) for _, job in jobs):
                _remove_unused(Path(self.config.hydra.sweep.dir))
        if not jobs:
            raise SweepError("the sweep has no jobs: a range or a list of it is empty")
        failed = [job for _, job in jobs if job.status != JobStatus.COMPLETED]
        _show(jobs)
        if failed:
            raise SweepError(f"{len(failed)} of {len(jobs)} jobs failed")
        return [job for _, job in jobs]


def register_sweeper() -> None:
    """Let it serve as Hydra's ``hydra/sweeper=basic``, the default; may be called more than once."""
    Plugins.instance().class_name_to_class[_BASIC] = TableSweeper


def title_of_job() -> str | None:
    """Number and overrides of the job of a sweep that runs now; None outside sweeps."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return None
    return f"job {hydra.job.num}: {' '.join(hydra.overrides.task)}"


def _show(jobs: Sequence[tuple[Sequence[str], JobReturn]]) -> None:
    from rich.table import Table

    from whtnet.console import console

    common = set.intersection(*(set(overrides) for overrides, _ in jobs)) if len(jobs) > 1 else set()
    table = Table(title=f"{len(jobs)} jobs")
    table.add_column("job", justify="right")
    table.add_column("overrides", overflow="fold")
    table.add_column("result", overflow="fold")
    for number, (overrides, job) in enumerate(jobs):
        table.add_row(str(number), " ".join(o for o in overrides if o not in common), _result(job))
    console.print(table)


def _is_trained(job: JobReturn) -> bool:
    """Whether there is a run of it; a dry run leaves none."""
    return job.status == JobStatus.COMPLETED and job._return_value is not None  # the public property raises errors


def _result(job: JobReturn) -> str:
    value: Any = job._return_value
    if job.status == JobStatus.COMPLETED:
        return "done" if value is None else f"test top-1 {100 - value:.2f} %"
    if not isinstance(value, JobFailedError):
        traceback.print_exception(value)
    return f"error: {value}"


def _remove_unused(folder: Path) -> None:
    with contextlib.suppress(NotADirectoryError):
        (folder / "multirun.yaml").unlink(missing_ok=True)
    for empty in (folder, *folder.parents[:1]):
        if empty != Path() and empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()
