"""The page: verdicts, then a question a chart, then what is folded away, filled into a template."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from whtnet.errors import UserError
from whtnet.report.charts import (
    Bars,
    Chart,
    curve_chart,
    growth_chart,
    layer_bars,
    network_bars,
    pareto_chart,
)
from whtnet.report.maps import Picture, Zeros, layer_pictures, zeros_by_layer
from whtnet.tables import Results, Table, TableError, TableSpec, command_for, rendered, stored_tables
from whtnet.tables.points import METRICS, by_recipe, principal_rows, published_points, short_name
from whtnet.tables.training import TrainedRow, describe_recipe


class ReportError(UserError):
    """There is nothing to report on."""


@dataclass(frozen=True)
class Recipe:
    """What one recipe gave in one table.

    Attributes:
        text: the recipe.
        accuracy: the chart.
        names: what the chart's labels stand for.
        more: further charts, folded.
        zeros: see :func:`zeros_by_layer`.
        pictures: by the label of a row, what its layers learned.
    """

    text: str
    accuracy: Chart
    names: Sequence[tuple[str, str]]
    more: Sequence[Chart]
    zeros: Zeros
    pictures: Sequence[tuple[str, Sequence[Picture]]]


@dataclass(frozen=True)
class Trained:
    """A training table: what each recipe gave; ``alone`` tells of rows by a recipe that no other row was trained by."""

    spec: TableSpec
    recipes: Sequence[Recipe]
    alone: Sequence[str]


@dataclass(frozen=True)
class Timed:
    """A table of speed: its charts."""

    spec: TableSpec
    bars: Sequence[Bars]
    growth: Chart


@dataclass(frozen=True)
class Listed:
    """A table's tables; ``links`` are (text, address) of its files."""

    spec: TableSpec
    tables: Sequence[Table]
    links: Sequence[tuple[str, str]]


def build_report(specs: Iterable[TableSpec], results: Results, folder: Path | None = None) -> str:
    """Build the page from what was measured.

    Args:
        specs: the tables to show; those that were not made yet are listed with the command that makes them.
        results: what was measured.
        folder: that the page will lie in, for its links; that of the results if None.

    Returns:
        HTML with all styles, scripts and data in it.

    Raises:
        ReportError: if none of the tables was made.
        RecordError: for a damaged file of records.
    """
    tables, missing = _stored(specs, results)
    if not any(spec.kind != "verdicts" for spec, _ in tables):
        raise ReportError(
            f"{results.folder} holds no table to report on; make the quick ones with `make reproduce-table`"
        )
    verdicts = [_verdict_first(table) for spec, made in tables if spec.kind == "verdicts" for table in made]
    environment = Environment(
        loader=PackageLoader("whtnet.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["code"] = _code
    return environment.get_template("page.html").render(
        verdicts=verdicts,
        summary=_summary(verdicts),
        trained=_all_trained(tables, results),
        timed=_all_timed(tables, results),
        listed=[Listed(spec, made, _links(spec, made, results, folder or results.folder)) for spec, made in tables],
        missing=missing,
        command_for=command_for,
    )


def _stored(
    specs: Iterable[TableSpec], results: Results
) -> tuple[list[tuple[TableSpec, list[Table]]], list[TableSpec]]:
    """The specifications whose tables were made, with those, and the others."""
    made, missing = [], []
    for spec in specs:
        try:
            made.append((spec, stored_tables(spec, results)))
        except TableError:
            missing.append(spec)
    return made, missing


def _verdict_first(table: Table) -> Table:
    order = {"verdict": 0, "claim": 1}
    return replace(table, columns=sorted(table.columns, key=lambda column: order.get(column.name, 2)))


def _summary(verdicts: Sequence[Table]) -> str:
    counts = Counter(row["verdict"] for table in verdicts for row in table.rows)
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())


def _all_trained(tables: Sequence[tuple[TableSpec, Sequence[Table]]], results: Results) -> list[Trained]:
    """The training tables with runs; those that every machine makes anew, to show that all works, come last."""
    specs = sorted((spec for spec, _ in tables if spec.kind == "training"), key=lambda spec: spec.rerun)
    return [part for spec in specs if (part := _trained(spec, results)).recipes]


def _trained(spec: TableSpec, results: Results) -> Trained:
    rows = results.rows(spec)
    groups = by_recipe(rows)
    alone = [row for row in rows if row.records and row.recipe not in groups]
    return Trained(
        spec,
        [_recipe(group, rows, results) for group in groups.values()],
        [f"{row.label}: {row.top1} by {describe_recipe(row.records)}" for row in alone],
    )


def _recipe(rows: Sequence[TrainedRow], every_row: Sequence[TrainedRow], results: Results) -> Recipe:
    known = [
        replace(row, records=[{**record, "layers": results.layers(record)} for record in row.records]) for row in rows
    ]
    inspected = [row for row in known if any(record["layers"] for record in row.records)]
    names = [(short_name(row), f"{row.label}: {row.top1} %") for row in rows]
    published = published_points(every_row, "parameters")
    return Recipe(
        text=describe_recipe(rows[0].records),
        accuracy=pareto_chart(rows, every_row, "parameters"),
        names=names + [(point.label, f"{point.text}: {point.top1.mean:.2f} %") for point in published],
        more=[pareto_chart(rows, every_row, "macs"), *(curve_chart(rows, metric) for metric in METRICS)],
        zeros=zeros_by_layer(inspected),
        pictures=[(row.label, layer_pictures(row)) for row in (principal_rows(inspected) if inspected else ())],
    )


def _all_timed(tables: Sequence[tuple[TableSpec, Sequence[Table]]], results: Results) -> list[Timed]:
    return [
        Timed(spec, [layer_bars(spec, measured), network_bars(measured)], growth_chart(measured))
        for spec, _ in tables
        if spec.kind == "speed" and (measured := results.measured(spec))
    ]


def _links(spec: TableSpec, tables: Sequence[Table], results: Results, folder: Path) -> list[tuple[str, str]]:
    """The files of a table that are there, by addresses from ``folder``."""
    there = [path for path in rendered(spec.name, tables, command_for(spec)) if (results.folder / path).is_file()]
    return [(Path(path).name, Path(os.path.relpath(results.folder / path, folder)).as_posix()) for path in there]


def _code(text: str) -> Markup:
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
