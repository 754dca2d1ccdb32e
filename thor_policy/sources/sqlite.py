"""A source that is a query on a SQLite file of somebody else.

Owns how the file is opened. Invariant: the file is opened read-only for each look-up, so a replaced file is
read at once; the query ends by its deadline, cannot open another file, and gives bounded rows and bytes.
Threads of its workers.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from thor_policy.policy.source_specs import SourceSpec, Sqlite
from thor_policy.sources.source import MAX_LISTED, Found, SourceError, at_time, found_in, listed

#: Instructions of SQLite's virtual machine between two looks at the clock.
_STEPS = 1_000
#: Errors whose text repeats names of the query and no value.
_WORDS = ("SQLITE_ERROR", "SQLITE_CANTOPEN", "SQLITE_NOTADB", "ProgrammingError")
#: Longest text of a row or a statement, in bytes.
_MAX_BYTES = 65_536


class SqliteSource:
    """The query of `spec` on the file at `path`."""

    #: The file is opened for each look-up, so nothing can be wrong in between.
    problem: str | None = None

    def __init__(self, spec: SourceSpec, sqlite: Sqlite, path: Path) -> None:
        self._spec, self._sqlite = spec, sqlite
        self._uri = f"file:{quote(str(path))}?mode=ro"
        self._name = path.name

    def look_up(self, type: str, id: str, deadline_ns: int) -> Found | None:
        with self._querying(deadline_ns) as connection:
            cursor = connection.execute(self._sqlite.query, {"id": id, "type": type})
            row = cursor.fetchone()
            if row is None:
                return None
            document = {column[0]: value for column, value in zip(cursor.description, row, strict=True)}
        for name, attribute in self._spec.attributes.items():
            column = (attribute.at or name).partition(".")[0]
            if column not in document and (attribute.at or name) not in document:
                raise SourceError(f"the query gives no column {column}")
            if attribute.type == "bool" and document.get(column) in (0, 1):  # SQLite has no type for it
                document[column] = bool(document[column])
        return found_in(self._spec, document, fresh_at=at_time(time.time()))

    def listing(self, type: str, deadline_ns: int) -> list[str]:
        if self._sqlite.listing is None:
            raise SourceError("the source cannot list its entities; add sqlite.listing to pack.yaml")
        with self._querying(deadline_ns) as connection:
            cursor = connection.execute(self._sqlite.listing, {"type": type})
            return listed(row[0] for row in cursor.fetchmany(MAX_LISTED + 1))

    def close(self) -> None:
        pass

    @contextmanager
    def _querying(self, deadline_ns: int) -> Iterator[sqlite3.Connection]:
        left_s = (deadline_ns - time.monotonic_ns()) / 1e9
        if left_s <= 0:
            raise SourceError("the deadline passed before the query")
        connection = None
        try:
            connection = sqlite3.connect(self._uri, uri=True, timeout=left_s, isolation_level=None)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_BYTES)
            connection.set_progress_handler(lambda: time.monotonic_ns() >= deadline_ns, _STEPS)
            yield connection
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY:
                raise SourceError(f"{self._name} is locked by another program") from None
            if time.monotonic_ns() >= deadline_ns:
                raise SourceError("the query was stopped at its deadline") from None
            raise SourceError(f"{self._name}: {_reason(error)}") from None
        finally:
            if connection is not None:
                connection.close()


def _reason(error: sqlite3.Error) -> str:
    """What went wrong, in SQLite's words only where they cannot repeat a value."""
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    return f"{error}" if name in _WORDS else name
