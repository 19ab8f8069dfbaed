"""What each choice of a method is worth: pairs of a training table's rows that differ in that choice alone."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from whtnet.backbones import build_backbone
from whtnet.experiment import MEANS, Experiment
from whtnet.policy import Policy, SiteMap, choose_sites, explicit_policy, find_sites
from whtnet.settings import canonical
from whtnet.tables.results import Results
from whtnet.tables.spec import TableError, TableSpec
from whtnet.tables.statistics import INTERVAL_COLUMNS, SINGLE_RUN, interval_cells
from whtnet.tables.table import Cell, Column, Table
from whtnet.tables.training import TrainedRow

RECIPE = "recipe"
LAYER = "layer"  # LAYER.KIND: what stands at the sites of a kind
OPTION = "policy.options"

Place = tuple[str, str]
"""A setting, and the site where it holds; empty for one of the whole run."""

Settings = Mapping[Place, str]
"""Values as JSON by their place; a site that keeps its module has none."""

Differences = Mapping[str, set[tuple[str, str]]]
"""By setting, the pairs of values, as JSON, in which two rows differ."""


@dataclass(frozen=True)
class Choice:
    """A row of a study.

    Attributes:
        id: of its own.
        label: what is done otherwise.
        setting: ``policy.options.NAME`` of the layers, ``layer.KIND`` for the layer at the sites of a kind (null for
            what the backbone has there), ``trainer.NAME``, or ``recipe`` for the same row by another recipe.
        values: without and with it.
    """

    id: str
    label: str
    setting: str
    values: tuple[Any, Any]

    def separates(self, found: Differences) -> bool:
        """Whether what differs between two rows is this choice, and nothing else."""
        return found == {self.setting: {tuple(map(_text, self.values))}}


@dataclass(frozen=True)
class Pair:
    """Two rows that differ in one choice."""

    choice: Choice
    without: TrainedRow
    with_it: TrainedRow

    @property
    def change(self) -> float:
        """Difference of the mean accuracies in points."""
        return self.with_it.top1.mean - self.without.top1.mean


def read_choices(spec: TableSpec) -> list[Choice]:
    """The rows of a study.

    Raises:
        TableError: for a row that lacks something or has too much.
    """
    try:
        return [Choice(**{**row, "values": tuple(row["values"])}) for row in spec.rows]
    except (TypeError, KeyError) as error:
        raise TableError(f"table {spec.name!r}: {error}") from error


def study_tables(spec: TableSpec, results: Results) -> list[Table]:
    """Each choice by the size of its change; the rows of the study and the controls by accuracy; every pair.

    Raises:
        TableError: for rows that can't be read, or a study that names no table or recipe.
    """
    if spec.of is None or spec.recipe is None:
        raise TableError(f"table {spec.name!r}: a study needs of: TABLE and recipe: NAME")
    choices, of = read_choices(spec), results.spec(spec.of)
    trained = [row for row in results.rows(of) if row.records]
    pairs = find_pairs(choices, trained, spec.recipe, _sites_of(of))
    notes = [
        f"Runs of table `{of.name}` by recipe `{spec.recipe}`. A choice that no two rows differ in alone is left out.",
        *_mixed(pairs),
    ]
    return [
        Table(spec.title, _CHOICE_COLUMNS, _choice_cells(pairs), spec.intro, notes),
        Table(f"{spec.title}: the rows and the controls", _ROW_COLUMNS, _row_cells(pairs, trained, spec.recipe)),
        Table(f"{spec.title}: every pair", _PAIR_COLUMNS, [_pair_cells(pair) for pair in pairs], notes=[_WELCH]),
    ]


# --- Pairs ---


def find_pairs(
    choices: Sequence[Choice], rows: Sequence[TrainedRow], recipe: str, sites: Callable[[Experiment], SiteMap]
) -> list[Pair]:
    """All pairs of rows, one at least by ``recipe``, that differ in one of the choices, the largest change first.

    Args:
        choices: of the study.
        rows: with records.
        recipe: of the rows that are compared.
        sites: of an experiment's backbone.
    """
    settings = {(row.id, row.recipe): _settings(row, sites) for row in rows}
    pairs = []
    for without, with_it in itertools.permutations(rows, 2):
        found = _differences(without, with_it, settings) if recipe in (without.recipe, with_it.recipe) else {}
        pairs += [Pair(choice, without, with_it) for choice in choices if choice.separates(found)]
    return sorted(pairs, key=lambda pair: -abs(pair.change))


def _differences(
    without: TrainedRow, with_it: TrainedRow, settings: Mapping[tuple[str, str | None], Settings]
) -> Differences:
    if without.recipe != with_it.recipe:  # one recipe differs from another in much, and is one choice
        recipes = {RECIPE: {(_text(without.recipe), _text(with_it.recipe))}}
        return recipes if without.id == with_it.id else {}
    a, b = settings[without.id, without.recipe], settings[with_it.id, with_it.recipe]
    found: dict[str, set[tuple[str, str]]] = {}
    for setting, place in a.keys() | b.keys():
        value, other = a.get((setting, place)), b.get((setting, place))
        if None in (value, other) and setting.startswith(OPTION):  # an option that one of the two layers does not have
            continue
        if value != other:
            found.setdefault(setting, set()).add((value or _text(None), other or _text(None)))
    return found


def _settings(row: TrainedRow, sites: Callable[[Experiment], SiteMap]) -> Settings:
    experiment = Experiment.from_record(row.records[0])
    trainer = {f"trainer.{name}": v for name, v in asdict(experiment.trainer).items() if name not in MEANS}
    others = {name: experiment.content.get(name) for name in ("backbone", "dataset", "finetune")}
    found = {(name, ""): value for name, value in {**trainer, **others}.items()}
    policy = Policy.from_dict(explicit_policy(experiment.policy))
    for site, rule in choose_sites(sites(experiment), policy, experiment.backbone.name):
        found[f"{LAYER}.{site.kind}", site.name] = rule.replace
        found |= {(f"{OPTION}.{name}", site.name): value for name, value in rule.options.items()}
    return {place: _text(value) for place, value in found.items()}


def _text(value: Any) -> str:
    """One text for all values that mean the same."""
    return json.dumps(canonical(value))


def _sites_of(spec: TableSpec) -> Callable[[Experiment], SiteMap]:
    """The sites of the backbones of a training table, each searched once."""
    if not spec.counted:
        raise TableError(f"table {spec.name!r}: a study of it needs counted: with the images' size")
    found: dict[str, SiteMap] = {}

    def sites(experiment: Experiment) -> SiteMap:
        key = json.dumps(experiment.backbone.to_dict(), sort_keys=True)
        if key not in found:
            with torch.device("meta"):
                model = build_backbone(**experiment.backbone.to_dict())
            found[key] = find_sites(model, tuple(spec.counted[0]["input_size"]))
        return found[key]

    return sites


# --- Tables ---

_CHOICE_COLUMNS = (
    Column("choice"),
    Column("change", "change of top-1 (points)", "+.2f"),
    Column("low", "smallest", "+.2f"),
    Column("high", "largest", "+.2f"),
    Column("pairs", form=","),
    Column("seeds", "runs", ","),
)

_ROW_COLUMNS = (
    Column("row"),
    Column("parameters", form=","),
    Column("test_top1", "test top-1 (%)", ".2f", spreads=True),
    Column("top1_change", "against baseline", "+.2f"),
)

_PAIR_COLUMNS = (
    Column("choice"),
    Column("row"),
    Column("without", "without (%)", ".2f", spreads=True),
    Column("with", "with (%)", ".2f", spreads=True),
    Column("change", form="+.2f"),
    *INTERVAL_COLUMNS,
)

_WELCH = f"Intervals of the change by Welch's t over seeds; {SINGLE_RUN}, and two single runs have none."


def _choice_cells(pairs: Sequence[Pair]) -> list[dict[str, Cell]]:
    """A line for each choice: the mean over its pairs, the smallest and the largest change."""
    rows: list[tuple[float, dict[str, Cell]]] = []
    for choice in dict.fromkeys(pair.choice for pair in pairs):
        of = [pair for pair in pairs if pair.choice == choice]
        changes = [pair.change for pair in of]
        mean = sum(changes) / len(changes)
        runs = {(row.id, row.recipe): row.top1.n for pair in of for row in (pair.without, pair.with_it)}
        cells: dict[str, Cell] = {
            "id": choice.id,
            "choice": choice.label,
            "change": mean,
            "low": min(changes),
            "high": max(changes),
            "pairs": len(of),
            "seeds": sum(runs.values()),
        }
        rows.append((abs(mean), cells))
    return [cells for _, cells in sorted(rows, key=lambda row: -row[0])]


def _row_cells(pairs: Sequence[Pair], trained: Sequence[TrainedRow], recipe: str) -> list[dict[str, Cell]]:
    """The rows of the pairs, the baseline, the controls and what is published, by falling accuracy."""
    shown = {(row.id, row.recipe) for pair in pairs for row in (pair.without, pair.with_it)}
    shown |= {(row.id, recipe) for row in trained if row.control or row.published or row.baseline is None}
    return [
        {
            "id": row.id,
            "row": row.label,
            "parameters": row.cost["parameters"],
            "test_top1": row.top1,
            "top1_change": row.top1_change,
        }
        for row in sorted(trained, key=lambda row: -row.top1.mean)
        if (row.id, row.recipe) in shown
    ]


def _pair_cells(pair: Pair) -> dict[str, Cell]:
    return {
        "choice": pair.choice.label,
        "row": pair.without.id,
        "without": pair.without.top1,
        "with": pair.with_it.top1,
        "change": pair.change,
        **interval_cells(pair.with_it.top1, pair.without.top1),
    }


def _mixed(pairs: Sequence[Pair]) -> list[str]:
    """A line on the pairs whose rows were computed in different precisions, where no recipe asks for one."""

    def precisions(row: TrainedRow) -> set[str]:
        return {record["precision"] for record in row.records}

    def asked(pair: Pair) -> bool:
        return any("trainer.precision=" in str(row.recipe) for row in (pair.without, pair.with_it))

    mixed = [pair for pair in pairs if not asked(pair) and precisions(pair.without) != precisions(pair.with_it)]
    names = "; ".join(f"{pair.choice.label} ({pair.without.id})" for pair in mixed)
    return [f"In different precisions: {names}."] if mixed else []
