"""Tables: what they should hold (`spec`), what was measured (`parameters`, `training`, `speed`), how they look."""

from whtnet.tables.figures import draw_growth, draw_ratios
from whtnet.tables.parameters import (
    count_coverage,
    count_families,
    count_rows,
    coverage_tables,
    parameter_tables,
)
from whtnet.tables.render import Table, update_readme, write_markdown
from whtnet.tables.spec import TableError, TableSpec, load_spec, table_names
from whtnet.tables.speed import measure_speed, speed_tables
from whtnet.tables.training import place, training_table

__all__ = [
    "Table",
    "TableError",
    "TableSpec",
    "count_coverage",
    "count_families",
    "count_rows",
    "coverage_tables",
    "draw_growth",
    "draw_ratios",
    "load_spec",
    "measure_speed",
    "parameter_tables",
    "place",
    "speed_tables",
    "table_names",
    "training_table",
    "update_readme",
    "write_markdown",
]
