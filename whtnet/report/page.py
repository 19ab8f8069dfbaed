"""The page: sections of charts and tables, filled into a template."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from whtnet.errors import UserError
from whtnet.report.charts import Chart, curve_charts, layer_charts, pareto_charts, speed_charts, zero_chart
from whtnet.tables import Results, Table, TableError, TableSpec, command_for, stored_tables
from whtnet.tables.training import TrainedRow


class ReportError(UserError):
    """There is nothing to report on."""


@dataclass(frozen=True)
class Block:
    """A part of a section with an anchor of its own.

    Attributes:
        anchor: unique on the page.
        title: heading.
        text: above the charts; ``code`` between backticks.
        charts: in order.
        tables: in order.
        source: a line about where the numbers are from.
    """

    anchor: str
    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    source: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, and blocks."""

    anchor: str
    title: str
    text: str
    blocks: Sequence[Block]


def build_report(specs: Iterable[TableSpec], results: Results) -> str:
    """Build the page from what was measured.

    Args:
        specs: the tables to show; those that were not made yet are listed with the command that makes them.
        results: what was measured.

    Returns:
        HTML with all styles, scripts and data in it.

    Raises:
        ReportError: if none of the tables was made.
        RecordError: for a damaged file of records.
    """
    made: list[TableSpec] = []
    tables: list[list[Table]] = []
    missing = []
    for spec in specs:
        try:
            tables.append(stored_tables(spec, results))
            made.append(spec)
        except TableError:
            missing.append(spec)
    if not made:
        raise ReportError(
            f"{results.folder} holds no table to report on; make the quick ones with `make reproduce-table`"
        )
    sections = [
        section
        for section in (
            _accuracy(made, results),
            _curves(made, results),
            _speed(made, results),
            _layers(made, results),
            _tables(made, tables),
        )
        if section.blocks
    ]
    environment = Environment(
        loader=PackageLoader("whtnet.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["code"] = _code
    return environment.get_template("page.html").render(
        sections=sections, missing=missing, command_for=command_for, plotly=Markup(get_plotlyjs())
    )


def _accuracy(specs: Iterable[TableSpec], results: Results) -> Section:
    blocks = [
        Block(f"accuracy-{spec.name}", spec.title, spec.intro, pareto_charts(rows))
        for spec, rows in _trained(specs, results)
    ]
    text = (
        "Test accuracy at the last epoch, mean and standard deviation over seeds. The dotted line is the Pareto front: "
        "what no cheaper row beats. Open markers are published values."
    )
    return Section("accuracy", "Accuracy against cost", text, blocks)


def _curves(specs: Iterable[TableSpec], results: Results) -> Section:
    blocks = [
        Block(f"curves-{spec.name}", spec.title, charts=curve_charts(rows)) for spec, rows in _trained(specs, results)
    ]
    text = "Mean over seeds; the band is ± one standard deviation where there is more than one seed."
    return Section("curves", "Training curves", text, blocks)


def _speed(specs: Iterable[TableSpec], results: Results) -> Section:
    blocks = [
        Block(f"speed-{spec.name}", spec.title, spec.intro, speed_charts(spec, results.measured(spec)))
        for spec in _of_kind(specs, "speed")
    ]
    return Section("speed", "Speed", "Medians; the numbers, and the machine, stand in the tables below.", blocks)


def _layers(specs: Iterable[TableSpec], results: Results) -> Section:
    blocks = []
    for spec, trained in _trained(specs, results):
        rows = [
            replace(row, records=[{**record, "layers": results.layers(record)} for record in row.records])
            for row in trained
        ]
        inspected = [row for row in rows if any(record["layers"] for record in row.records)]
        if inspected:
            blocks.append(Block(f"zeros-{spec.name}", spec.title, charts=[zero_chart(rows)]))
        for number, row in enumerate(inspected):
            blocks.append(Block(f"layers-{spec.name}-{number}", f"{spec.title}: {row.label}", charts=layer_charts(row)))
    text = (
        "Thresholds and transform-domain weights of the first seed, in sequency order, the lowest at the upper left. "
        "Colours diverge from 0 for thresholds, from 1, where they start, for weights. Shares of zeros are of one "
        "batch of test images, mean over seeds."
    )
    return Section("layers", "What the layers learned", text, blocks)


def _tables(specs: Sequence[TableSpec], tables: Sequence[Sequence[Table]]) -> Section:
    blocks = [
        Block(
            f"table-{spec.name}",
            spec.title,
            tables=shown,
            source=f"Specification: `experiments/{spec.name}.yaml`; made by `{command_for(spec)}`.",
        )
        for spec, shown in zip(specs, tables, strict=True)
    ]
    return Section("tables", "Tables", "A published value stands beside its source.", blocks)


def _trained(specs: Iterable[TableSpec], results: Results) -> list[tuple[TableSpec, list[TrainedRow]]]:
    found = [(spec, [row for row in results.rows(spec) if row.records]) for spec in _of_kind(specs, "training")]
    return [(spec, rows) for spec, rows in found if rows]


def _of_kind(specs: Iterable[TableSpec], kind: str) -> list[TableSpec]:
    return [spec for spec in specs if spec.kind == kind]


def _code(text: str) -> Markup:
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
