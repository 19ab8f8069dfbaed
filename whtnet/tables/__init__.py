"""Tables: what they hold (`spec`), what was measured (`counts`, `training`, `speed`), how they look (`render`)."""

from whtnet.tables import rows
from whtnet.tables.asked import Asked
from whtnet.tables.compare import comparisons
from whtnet.tables.counts import (
    count_coverage,
    count_families,
    count_rows,
    coverage_tables,
    parameter_tables,
)
from whtnet.tables.deployment import deployment_tables, measure_deployment
from whtnet.tables.devices import with_measurement
from whtnet.tables.figures import draw_figures, figure_names
from whtnet.tables.files import pages, rendered, update_page, with_tables, write_tables
from whtnet.tables.layers import measure_layers
from whtnet.tables.measure import measure_speed
from whtnet.tables.released import is_equal, measure_released
from whtnet.tables.render import to_csv, to_latex, to_markdown, to_rich
from whtnet.tables.results import Results
from whtnet.tables.runs import Compose, Identities, run_overrides
from whtnet.tables.spec import TableError, TableSpec, load_spec, table_names
from whtnet.tables.speed import speed_tables
from whtnet.tables.stored import command_for, stored_tables
from whtnet.tables.table import Cell, Column, Shown, Spread, Table, spread
from whtnet.tables.training import count_training_rows, place, trained_rows, training_tables

__all__ = [
    "Asked",
    "Cell",
    "Column",
    "Compose",
    "Identities",
    "Results",
    "Shown",
    "Spread",
    "Table",
    "TableError",
    "TableSpec",
    "command_for",
    "comparisons",
    "count_coverage",
    "count_families",
    "count_rows",
    "count_training_rows",
    "coverage_tables",
    "deployment_tables",
    "draw_figures",
    "figure_names",
    "is_equal",
    "load_spec",
    "measure_deployment",
    "measure_layers",
    "measure_released",
    "measure_speed",
    "pages",
    "parameter_tables",
    "place",
    "rendered",
    "rows",
    "run_overrides",
    "speed_tables",
    "spread",
    "stored_tables",
    "table_names",
    "to_csv",
    "to_latex",
    "to_markdown",
    "to_rich",
    "trained_rows",
    "training_tables",
    "update_page",
    "with_measurement",
    "with_tables",
    "write_tables",
]
