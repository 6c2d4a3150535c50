"""What is known of an archive, asked of Parquet files by DuckDB: what must be read, what has changed, and buckets of rows to settle.

Tables larger than the memory are no matter: DuckDB reads them column by column and spills what it cannot hold into the work folder.

    listing   the files that the sources have now
    pending   rows that were read and are in no tables yet
    kept      the rows of the tables that count
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from medssl.archive.index.buckets import DEALT
from medssl.archive.index.folder import IndexFolder
from medssl.archive.index.parts import instances_file, parts_of
from medssl.archive.index.summary import CHANGES, PRIVATE
from medssl.archive.instance import SCHEMA
from medssl.archive.outcomes import Reason
from medssl.archive.tables import damaged
from medssl.errors import ArchiveError

MEMORY = "2GB"
"""What DuckDB holds before it spills."""
BUCKET = 2**16
"""Rows that are settled at once: some hundred MB."""
LEAST = 2**13
"""Rows for which a process of their own is worth its start."""
_BATCH = 2**14
"""Rows to settle that are handed over at once."""
LISTING = pa.schema(
    {
        "source": pa.int64(),
        "number": pa.int64(),
        "key": pa.binary(),
        "size": pa.int64(),
        "version": pa.string(),
        "sure": pa.bool_(),
    }
)
"""A file of a source: its place in the source's order, and what is known without opening it; `sure` where it is the one that was read."""
MARKS = pa.schema({"source": pa.int64(), "key": pa.binary(), "frame": pa.int64(), "mark": pa.string()})
"""What the whole archive says of an instance."""

_AGAIN = (Reason.UNREADABLE, Reason.KILLED, Reason.TOO_LONG, Reason.TOO_LARGE, Reason.NO_DECODER)
"""Reasons that may lie with the machine that read the file: it is read again."""
_COLUMNS = ", ".join(f'"{name}"' for name in SCHEMA.names)


@dataclass(frozen=True)
class Facts:
    """Where the three lie."""

    folder: IndexFolder
    tables: tuple[str, ...]
    """Tables of which rows are kept; none where all is read again."""
    work: Path

    @contextmanager
    def asked(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection with the views; no thread of it is left when the block ends, so that workers can be forked."""
        settings: dict[str, Any] = {
            "memory_limit": MEMORY,
            "temp_directory": str(self.work / "spilled"),
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
        }
        with duckdb.connect(":memory:", config=settings) as connection:
            try:
                _done(connection, "SET enable_progress_bar = false")
                self._views(connection)
                yield connection
            except duckdb.IOException as error:
                raise ArchiveError(f"the tables of the index cannot be read or written: {error}. Is the disk full?") from error
            except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
                raise damaged("a table", "cannot be read") from error

    def _views(self, connection: duckdb.DuckDBPyConnection) -> None:
        _view(connection, "listing", list(self.work.glob("listing-*.parquet")), LISTING)
        shard = "CAST(regexp_extract(filename, '(\\d+)[.]parquet$', 1) AS BIGINT) AS shard"
        _view(connection, "pending", sorted(self.folder.scan.glob("*.parquet")), SCHEMA, shard)
        _done(connection, "CREATE TEMP TABLE changes (tables BIGINT, kind VARCHAR, name VARCHAR)")
        for number, name in enumerate(self.tables):
            file = self.folder.root / name / "changes.parquet"
            _view(connection, "these", [file], CHANGES)
            _done(connection, "INSERT INTO changes SELECT ?, * FROM these", [number])
        for number, name in enumerate(self.tables):
            private = self.folder.private / name
            _view(connection, f"kept_{number}", [instances_file(private, part) for part in parts_of(private)], PRIVATE)
        rows = [
            f"SELECT * FROM kept_{number} AS k WHERE NOT EXISTS "
            f"(FROM changes AS c WHERE c.tables > {number} AND c.kind = 'file' AND c.name = k.file)"
            for number in range(len(self.tables))
        ]
        if rows:
            _done(connection, f"CREATE TEMP VIEW kept AS {' UNION ALL '.join(rows)}")
        else:
            _view(connection, "kept", [], PRIVATE)


def _view(connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path], schema: pa.Schema, *more: str) -> None:
    columns = ", ".join([*(f'"{column}"' for column in schema.names), *more])
    if files:
        listed = ", ".join("'" + glob.escape(str(file)).replace("'", "''") + "'" for file in files)
        source = f"read_parquet([{listed}]{', filename = true' if more else ''})"
    else:
        source = f"{name}_none"
        extra = [("filename", pa.string())] if more else []
        connection.register(source, pa.schema([*schema, *(pa.field(*one) for one in extra)]).empty_table())
    _done(connection, f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {columns} FROM {source}")


def _quoted(words: Collection[str]) -> str:
    return ", ".join("'" + word.replace("'", "''") + "'" for word in words) or "NULL"


def write_todo(connection: duckdb.DuckDBPyConnection, file: Path, only: Collection[int]) -> int:
    """Write source and key of the files of these sources that must be read, in their order; returns how many."""
    again = _quoted(_AGAIN)
    _done(
        connection,
        f"""
        CREATE OR REPLACE TEMP VIEW known AS
            SELECT source, key, size, version FROM pending WHERE reason NOT IN ({again})
            UNION ALL SELECT source, key, size, version FROM kept WHERE version <> '' AND reason NOT IN ({again});
        COPY (
            SELECT source, key FROM listing AS l
            ANTI JOIN known AS k ON k.source = l.source AND k.key = l.key AND k.version = l.version AND (l.size = 0 OR k.size = l.size)
            WHERE NOT l.sure AND l.source IN ({", ".join(map(str, only)) or "NULL"})
            ORDER BY l.source, l.number
        ) TO '{_name(file)}' (FORMAT parquet)
        """,
    )
    return _count(connection, f"FROM read_parquet('{glob.escape(_name(file))}')")


def _name(file: Path) -> str:
    return str(file).replace("'", "''")


def _count(connection: duckdb.DuckDBPyConnection, rest: str) -> int:
    ((found,),) = _done(connection, f"SELECT count(*) {rest}")
    return int(found)


def _done(connection: duckdb.DuckDBPyConnection, *asked: Any) -> list[Any]:
    """All of a statement's result: what is not fetched keeps the connection busy."""
    found: list[Any] = connection.execute(*asked).fetchall()
    return found


def outer_archives(connection: duckdb.DuckDBPyConnection, sources: Collection[int]) -> list[tuple[int, bytes, int, str]]:
    """Source, key, size and version of the files of these sources that look like zip or tar files, by source and key."""
    found: list[tuple[int, bytes, int, str]] = connection.execute(
        f"""
        WITH now AS (
            SELECT source, key, size, version, reason FROM pending UNION ALL SELECT source, key, size, version, reason FROM kept
        )
        SELECT DISTINCT n.source, n.key, n.size, n.version FROM now AS n
        SEMI JOIN listing AS l ON l.source = n.source AND l.key = n.key AND l.version = n.version
        WHERE n.reason = ? AND n.source IN ({", ".join(map(str, sources)) or "NULL"}) ORDER BY ALL
        """,
        [Reason.COMPRESSED_ARCHIVE.value],
    ).fetchall()
    return found


def unreliable(connection: duckdb.DuckDBPyConnection) -> set[int]:
    """Sources with files that must be read again, whether or not the source is the same."""
    return {int(row[0]) for row in _done(connection, f"SELECT DISTINCT source FROM kept WHERE outcome IN ({_quoted(_AGAIN)})")}


def list_kept(connection: duckdb.DuckDBPyConnection, sources: Collection[int], file: Path) -> None:
    """List the files of these sources as they were: nothing of them has changed."""
    _done(
        connection,
        f"""
        COPY (
            SELECT DISTINCT source, 0::BIGINT AS number, key, size, version, true AS sure FROM kept
            WHERE source IN ({", ".join(map(str, sources)) or "NULL"})
        ) TO '{_name(file)}' (FORMAT parquet)
        """,
    )


@dataclass(frozen=True)
class Changed:
    """What a build has to do; the tables `work`, `fresh`, `gone` and `touched` of the connection say it row by row."""

    rows: int
    """Rows to settle."""
    anything: bool
    everything: bool
    """Does no row of earlier tables stay as it is?"""


def find_changes(connection: duckdb.DuckDBPyConnection, first_shard: int, otherwise: bool) -> Changed:
    """What is new, what is gone, and which kept rows are in a series with either or share a UID with one.

    `first_shard` is that of the first shard which this build read; `otherwise`: all is settled again, because other things are asked.
    """
    again = _quoted(_AGAIN)
    _done(
        connection,
        f"""
        CREATE TEMP TABLE superseded AS
            SELECT source, key, max(shard) AS latest FROM (SELECT DISTINCT source, key, shard FROM pending)
            GROUP BY ALL HAVING count(*) > 1;
        CREATE TEMP VIEW fresh AS
            SELECT {_COLUMNS} FROM (
                SELECT p.* FROM pending AS p
                SEMI JOIN listing AS l ON l.source = p.source AND l.key = p.key
                    AND (p.shard >= {first_shard} OR (p.version = l.version AND (l.size = 0 OR p.size = l.size)))
            ) AS p
            ANTI JOIN superseded AS s ON s.source = p.source AND s.key = p.key AND s.latest > p.shard
            ANTI JOIN (FROM kept WHERE reason IN ({again})) AS k ON k.source = p.source AND k.key = p.key AND k.frame = p.frame
                AND k.size = p.size AND k.version = p.version AND k.reason = p.reason;
        """,
    )
    if not _count(connection, "FROM kept"):
        _done(connection, f"CREATE TEMP VIEW work AS FROM fresh; CREATE TEMP VIEW rest AS SELECT {_COLUMNS} FROM kept;")
        _done(connection, "CREATE TEMP TABLE dropped AS SELECT file, volume FROM kept")
        rows = _count(connection, "FROM work")
        return Changed(rows, rows > 0, True)
    _done(
        connection,
        f"""
        CREATE TEMP TABLE new_files AS SELECT DISTINCT source, key FROM fresh;
        CREATE TEMP TABLE gone AS SELECT DISTINCT source, key FROM kept
            WHERE (source, key) NOT IN (SELECT (source, key) FROM listing) OR (source, key) IN (SELECT (source, key) FROM new_files);
        CREATE TEMP VIEW stays AS SELECT k.* FROM kept AS k ANTI JOIN gone AS g USING (source, key);
        CREATE TEMP VIEW moved AS
            SELECT patient, study, series, kind, uid FROM fresh
            UNION ALL SELECT patient, study, series, kind, uid FROM kept SEMI JOIN gone USING (source, key);
        CREATE TEMP TABLE uids AS SELECT DISTINCT kind, uid FROM moved WHERE uid <> '';
        CREATE TEMP TABLE concerned AS
            SELECT DISTINCT patient, study, series FROM moved WHERE series <> ''
            UNION SELECT DISTINCT patient, study, series FROM stays SEMI JOIN uids USING (kind, uid) WHERE series <> '';
        CREATE TEMP TABLE touched AS SELECT DISTINCT source, key FROM stays
            {"" if otherwise else "SEMI JOIN concerned USING (patient, study, series)"};
        CREATE TEMP VIEW work AS FROM fresh UNION ALL SELECT {_COLUMNS} FROM stays SEMI JOIN touched USING (source, key);
        CREATE TEMP VIEW rest AS SELECT {_COLUMNS} FROM stays ANTI JOIN touched USING (source, key);
        CREATE TEMP TABLE dropped AS SELECT file, volume FROM kept AS k
            WHERE (source, key) IN (SELECT (source, key) FROM gone) OR (source, key) IN (SELECT (source, key) FROM touched);
        """,
    )
    rows = _count(connection, "FROM work")
    return Changed(rows, rows > 0 or _count(connection, "FROM dropped") > 0, not _count(connection, "FROM rest"))


def dropped(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """What no longer counts in the tables before, as `CHANGES`."""
    return connection.sql(
        "SELECT DISTINCT 'file' AS kind, file AS name FROM dropped UNION ALL "
        "SELECT DISTINCT 'volume', volume FROM dropped WHERE volume IS NOT NULL ORDER BY ALL"
    ).to_arrow_table()


def write_repeated(connection: duckdb.DuckDBPyConnection, usable: Collection[str], file: Path) -> bool:
    """Write the rows of the whole archive that share a UID with one to be settled, if there are any; `usable` are the reasons of rows
    that may yet be in a volume."""
    reasons = _quoted(usable)
    # Of a hash, which takes a tenth of the memory; what collides is told apart by whoever looks at the rows.
    _done(
        connection,
        f"""
        CREATE TEMP TABLE twice AS
            WITH every AS (SELECT kind, uid, frame, reason FROM work UNION ALL SELECT kind, uid, frame, reason FROM rest)
            SELECT of FROM (SELECT hash(kind, uid, frame) AS of FROM every WHERE uid <> '' AND reason IN ({reasons}))
            GROUP BY of HAVING count(*) > 1
        """,
    )
    if not _count(connection, "FROM twice"):
        return False
    _done(
        connection,
        f"""
        CREATE TEMP TABLE several AS SELECT DISTINCT kind, uid FROM work
            WHERE uid <> '' AND reason IN ({reasons}) AND hash(kind, uid, frame) IN (FROM twice);
        COPY (
            WITH every AS (FROM work UNION ALL FROM rest)
            SELECT {_COLUMNS} FROM every SEMI JOIN several USING (kind, uid) ORDER BY kind, uid, source, key, frame
        ) TO '{_name(file)}' (FORMAT parquet)
        """,
    )
    return True


def read_repeated(file: Path) -> Iterator[pa.Table]:
    """The rows of `write_repeated`, those of one UID in one table."""
    waiting = SCHEMA.empty_table()
    for batch in pq.ParquetFile(file).iter_batches(4096):
        table = pa.concat_tables([waiting, pa.Table.from_batches([batch]).cast(SCHEMA)])
        begin = 0
        uids = list(zip(table["kind"].to_pylist(), table["uid"].to_pylist(), strict=True))
        for row in range(1, len(uids)):
            if uids[row] != uids[row - 1]:
                yield table.slice(begin, row - begin)
                begin = row
        waiting = table.slice(begin)
    if len(waiting):
        yield waiting


def rows_to_settle(connection: duckdb.DuckDBPyConnection, rows: int, marks: Path, workers: int) -> pa.RecordBatchReader:
    """The `rows` rows to be settled, as they come, with their marks and each with the number of a bucket in which its series is whole."""
    count = max(1, -(-rows // BUCKET), min(workers, rows // LEAST))
    bucket = f"(CASE WHEN series = '' THEN hash(source, key) ELSE hash(patient, study, series) END) % {count}"
    return connection.sql(
        f"""
        SELECT {_COLUMNS}, m.mark, CAST({bucket} AS BIGINT) AS {DEALT} FROM work AS w
        LEFT JOIN read_parquet('{glob.escape(_name(marks))}') AS m USING (source, key, frame)
        """
    ).to_arrow_reader(_BATCH)
