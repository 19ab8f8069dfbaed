"""Tables: what they should hold (`spec`), what was measured (`parameters`, `training`), how they look (`render`)."""

from whtnet.tables.parameters import count_families, count_rows, parameter_tables
from whtnet.tables.render import Table, update_readme, write_markdown
from whtnet.tables.spec import TableError, TableSpec, load_spec, table_names
from whtnet.tables.training import training_table

__all__ = [
    "Table",
    "TableError",
    "TableSpec",
    "count_families",
    "count_rows",
    "load_spec",
    "parameter_tables",
    "table_names",
    "training_table",
    "update_readme",
    "write_markdown",
]
