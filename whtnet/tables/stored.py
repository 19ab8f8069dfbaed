"""Tables again from a folder of results, without measuring anything."""

from whtnet.tables.counts import coverage_tables, parameter_tables
from whtnet.tables.deployment import deployment_tables
from whtnet.tables.layers import layer_tables
from whtnet.tables.released import released_tables
from whtnet.tables.results import Results
from whtnet.tables.spec import TableError, TableSpec
from whtnet.tables.speed import speed_tables
from whtnet.tables.study import study_tables
from whtnet.tables.table import Table
from whtnet.tables.training import training_tables
from whtnet.tables.verdicts import verdict_tables


def command_for(spec: TableSpec) -> str:
    """The command that makes a table."""
    return f"make reproduce-table TABLE={spec.name}"


def stored_tables(spec: TableSpec, results: Results) -> list[Table]:
    """The tables of ``spec``.

    Raises:
        TableError: if nothing was measured for it; names the command that does.
        RecordError: for a damaged record.
    """
    if spec.kind == "verdicts":
        return verdict_tables(spec, results)
    if spec.kind == "study":
        tables = study_tables(spec, results)
        if not any(table.rows for table in tables):
            raise missing(results.spec(str(spec.of)), results)
        return tables
    measured = results.measured(spec)
    if spec.kind == "training":
        runs = results.runs(spec)
        if measured is None and not (runs.records or runs.others):
            raise missing(spec, results)
        return training_tables(spec, runs, results.counts(spec))
    if measured is None:
        raise missing(spec, results)
    match spec.kind:
        case "parameters":
            return parameter_tables(spec, measured["rows"], measured["families"])
        case "coverage":
            return coverage_tables(spec, measured["pairs"])
        case "released":
            return released_tables(spec, measured["rows"])
        case "deployment":
            return deployment_tables(spec, measured)
        case "layers":
            return layer_tables(spec, measured["rows"])
        case _:
            return speed_tables(spec, measured)


def missing(spec: TableSpec, results: Results) -> TableError:
    """Nothing was measured for a table."""
    return TableError(f"{results.folder} holds nothing of table {spec.name!r}; make it with `{command_for(spec)}`")
