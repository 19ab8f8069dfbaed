"""Tables: what they should hold (`spec`), what was measured (`parameters`, `training`, `speed`), how they look."""

from whtnet.tables.figures import draw_figures
from whtnet.tables.parameters import (
    count_coverage,
    count_families,
    count_rows,
    coverage_tables,
    parameter_tables,
)
from whtnet.tables.render import Table, update_readme, write_tables
from whtnet.tables.spec import TableError, TableSpec, load_spec, table_names
from whtnet.tables.speed import measure_speed, speed_tables
from whtnet.tables.stored import command_for, counts_file, stored_tables
from whtnet.tables.training import count_training_rows, place, trained_rows, training_tables

__all__ = [
    "Table",
    "TableError",
    "TableSpec",
    "command_for",
    "count_coverage",
    "count_families",
    "count_rows",
    "count_training_rows",
    "counts_file",
    "coverage_tables",
    "draw_figures",
    "load_spec",
    "measure_speed",
    "parameter_tables",
    "place",
    "speed_tables",
    "stored_tables",
    "table_names",
    "trained_rows",
    "training_tables",
    "update_readme",
    "write_tables",
]
