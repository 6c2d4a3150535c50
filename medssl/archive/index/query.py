"""`--where`: an SQL condition over the volume table, run by a DuckDB that can read that table and nothing else."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from medssl.archive.index.summary import COLUMNS
from medssl.errors import UsageError


def select_volumes(table: pa.Table, where: str) -> pa.Array:
    """Names of the volumes for which the condition holds; raises `UsageError` for what is no such condition."""
    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        connection.register("given", table)
        connection.execute("CREATE TABLE volumes AS SELECT * FROM given")
        connection.unregister("given")
        for setting in ("enable_external_access = false", "python_enable_replacements = false", "lock_configuration = true"):
            connection.execute(f"SET {setting}")
        query = f"SELECT volume FROM volumes WHERE (\n{where}\n)"
        try:
            statements = connection.extract_statements(query)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UsageError(f"--where takes one condition, such as \"modality = 'CT' AND shape[3] >= 30\", not: {where}")
            return connection.sql(statements[0].query).to_arrow_table()["volume"].combine_chunks()
        except duckdb.Error as error:
            raise UsageError(f'--where "{where}" is no condition over the volume table: {error}. Columns: {", ".join(COLUMNS)}.') from error
