"""Whether what the project publishes holds, checked in a minute or two without training anything."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from whtnet.backbones import build_backbone, without_weights
from whtnet.data import DatasetNotFoundError, load_dataset
from whtnet.engine import evaluate
from whtnet.errors import UserError
from whtnet.experiment import Experiment
from whtnet.policy import apply_policy_
from whtnet.records import record_file
from whtnet.released import ReleasedFilesNotFoundError, released_folder
from whtnet.tables import (
    Compose,
    Results,
    TableSpec,
    command_for,
    count_rows,
    count_training_rows,
    figure_names,
    is_equal,
    measure_released,
    rendered,
    rows,
    stored_tables,
    with_tables,
)

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
TOLERANCE = 0.1
"""Points of accuracy that weights may be off their record's: training may have evaluated in bfloat16, on a GPU."""

_BATCH = 500
_NO_TABLES = ("runs", "weights", "report.html")  # in results/, besides what tables are made of and rendered to


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        name: of what was checked.
        outcome: ``passed``, ``failed`` or ``skipped``.
        reason: why it failed, or was skipped.
    """

    name: str
    outcome: str
    reason: str = ""


def passed_or_failed(name: str, problem: str) -> Check:
    """Failed if there is a problem."""
    return Check(name, FAILED if problem else PASSED, problem)


def check_made(specs: Iterable[TableSpec], results: Results) -> Iterator[Check]:
    """Of which tables there are results; the others, such as one's own that was made elsewhere, are skipped."""
    for spec in specs:
        made = results.holds(spec)
        reason = (
            "" if made else f"{results.folder} holds nothing of it; `{command_for(spec)} ARGS=--update` puts it there"
        )
        yield Check(spec.name, PASSED if made else SKIPPED, reason)


def check_records(results: Results) -> Iterator[Check]:
    """Every record replays: its settings make the experiment that it says again, and its commit is the code."""
    for record in results.records:
        problem = "made with local changes, which no commit has" if record["environment"]["dirty"] else ""
        try:
            Experiment.from_record(record)
        except UserError as error:
            problem = str(error)
        yield passed_or_failed(record_file(record), problem)


def counts_again(spec: TableSpec) -> bool:
    """Whether :func:`check_counts` counts the rows of a table."""
    return spec.kind == "parameters" or bool(spec.counted)


def check_counts(
    specs: Iterable[TableSpec],
    results: Results,
    compose: Compose,
    backbone_settings: Callable[[Mapping[str, Any]], dict[str, Any]],
    on_step: Callable[[str], None],
) -> Iterator[Check]:
    """Every published count, and what the rows of training tables cost, counted again on built models.

    Args:
        specs: of the tables.
        results: with what was counted for them.
        compose: the config that a list of overrides makes.
        backbone_settings: keywords of ``build_backbone`` for a row of a table of published counts.
        on_step: called with the name of each row when it is counted.
    """
    for spec in specs:
        if spec.kind == "parameters":
            stored = (results.measured(spec) or {}).get("rows", ())
            for row in count_rows(spec, backbone_settings, on_step):
                problem = "" if row in stored else f"results/{spec.name}.json says other numbers"
                problem = problem if row["ours"] == row["published"] else f"{row['ours']:,} is not {row['published']:,}"
                yield passed_or_failed(f"{spec.name}: {row['id']}", problem)
        elif spec.counted:
            counted, stored = count_training_rows(spec, compose, on_step), results.counts(spec)
            for name, costs in counted.items():
                problem = "" if stored.get(name) == costs else f"results/{spec.name}.json says other numbers"
                yield passed_or_failed(f"{spec.name}: {name}", problem)


def check_rows(specs: Iterable[TableSpec], results: Results) -> Iterator[Check]:
    """What was counted and measured is of the rows that the tables have today: of all of them, and of no others."""
    for spec in specs:
        if (stored := results.measured(spec)) is not None:
            wanted, found = rows.specified(spec), rows.measured(spec, stored)
            parts = (("lacks", wanted - found), ("has what is no row any more:", found - wanted))
            problem = ", and ".join(f"{verb} {', '.join(sorted(names))}" for verb, names in parts if names)
            problem = problem and f"results/{spec.name}.json {problem}; `{command_for(spec)} ARGS=--update`"
            yield passed_or_failed(f"rows of table {spec.name}", problem)


def check_files(specs: Sequence[TableSpec], results: Results) -> Iterator[Check]:
    """The files in results/ are what the records, counts and timings render to, and there are no others.

    Figures must be there; what they show is not compared, because another Matplotlib draws another file.
    """
    expected: set[str] = set()
    for spec in specs:
        files = rendered(spec.name, stored_tables(spec, results), command_for(spec))
        figures = [f"figures/{name}.svg" for name in figure_names(spec, results)]
        expected |= {*files, *figures, f"{spec.name}.json"}
        unlike = [path for path, text in files.items() if not _holds(results.folder / path, text)]
        unlike += [path for path in figures if not (results.folder / path).is_file()]
        remedy = f"{', '.join(unlike)}: missing or changed by hand; `{command_for(spec)} ARGS='--update --no-training'`"
        yield passed_or_failed(f"files of table {spec.name}", remedy if unlike else "")
    strays = sorted(_files(results.folder) - expected)
    yield passed_or_failed("no other files", f"of no table: {', '.join(strays)}" if strays else "")


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _files(results: Path) -> set[str]:
    paths = {path.relative_to(results) for path in results.rglob("*") if path.is_file()}
    return {path.as_posix() for path in paths if path.parts[0] not in _NO_TABLES}


def check_pages(specs: Iterable[TableSpec], results: Results, pages: Iterable[Path]) -> Iterator[Check]:
    """The tables in the README and the guide are those of the results."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    for spec in specs:
        shown = [page for page, text in texts.items() if re.search(rf"<!-- table: {spec.name}(-\d+)? -->", text)]
        tables = stored_tables(spec, results) if shown else []
        for page in shown:
            same = with_tables(texts[page], spec, tables, page) == texts[page]
            remedy = f"`{command_for(spec)} ARGS='--update --no-training'` puts the table back"
            yield passed_or_failed(f"{page.name}: table {spec.name}", "" if same else remedy)


def check_released(specs: Iterable[TableSpec], on_step: Callable[[str], None]) -> Iterator[Check]:
    """Networks that others released give the accuracies of their logs, where their files and the data are at hand.

    Args:
        specs: of the tables.
        on_step: called with the name of each row when it is evaluated.
    """
    for spec in (spec for spec in specs if spec.kind == "released"):
        try:
            folder = released_folder()
            found = measure_released(spec, folder, on_step)
        except (DatasetNotFoundError, ReleasedFilesNotFoundError) as error:
            yield Check(spec.name, SKIPPED, str(error))
        except UserError as error:
            yield Check(spec.name, FAILED, str(error))
        else:
            for row in found:
                differs = f"{row['ours']:.2f} % are right, the log says {row['best']:.2f} %"
                problem = "" if is_equal(row["ours"], row["best"]) else differs
                yield passed_or_failed(f"{spec.name}: {row['id']}", problem)


def check_weights(results: Results) -> Iterator[Check]:
    """Every ``weights/NAME.safetensors`` gives what its record says, where the data is at hand.

    A file's metadata says the ``identity`` of its record; its tensors are the ``state_dict`` of the trained network.
    """
    records = {record["identity"]: record for record in results.records}
    for path in sorted((results.folder / "weights").glob("*.safetensors")):
        yield _check_weights(path, records)


def _check_weights(path: Path, records: Mapping[str, Mapping[str, Any]]) -> Check:
    with safe_open(path, "pt") as file:
        identity = (file.metadata() or {}).get("identity", "none")
    if identity not in records:
        return Check(path.name, FAILED, f"no record has its identity {identity}")
    try:
        top1 = _evaluate(Experiment.from_record(records[identity]), path)
    except DatasetNotFoundError as error:
        return Check(path.name, SKIPPED, str(error))
    except (UserError, RuntimeError) as error:
        return Check(path.name, FAILED, str(error))
    recorded = records[identity]["test_top1"]
    problem = f"{top1:.2f} % are right, its record says {recorded:.2f} %"
    return passed_or_failed(path.name, problem if abs(top1 - recorded) > TOLERANCE else "")


def _evaluate(experiment: Experiment, weights: Path) -> float:
    data = load_dataset(**experiment.dataset.to_dict(), download=False)
    model = build_backbone(**without_weights(experiment.backbone.to_dict()), num_classes=data.num_classes)
    apply_policy_(model, experiment.policy, data.input_size)
    model.load_state_dict(load_file(weights))
    loaders = data.loaders(batch_size=_BATCH, device=torch.device("cpu"), seed=0)
    return evaluate(model, loaders.test)["top1"]
