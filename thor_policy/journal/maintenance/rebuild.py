"""Rebuilding: every table of a journal is computed again from its events.

Owns that work. Invariant: the tables depend on the events alone, and a new journal is complete or absent. On
a thread that may wait.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from itertools import islice
from pathlib import Path

from thor_policy.core.errors import JournalError
from thor_policy.journal import projections, schema, segments
from thor_policy.journal.batch import Placed
from thor_policy.journal.maintenance.tasks import STEP, Progress, StoredEvents, connect, readable, transaction
from thor_policy.journal.reader import instant
from thor_policy.journal.storage import SIDE_FILES
from thor_policy.journal.writer import Journal
from thor_policy.security import files
from thor_policy.telemetry import clocks


def rebuild(
    source: Path, target: Path, *, at: str | int | None = None, progress: Progress = lambda _: None
) -> int:
    """Write a new journal from the events of another, with all tables rebuilt; returns the newest event.

    `at` ends the copy after the event with that number, or before that time (RFC 3339). The copy is the
    journal as it was then, without what was erased since. A copy that ends before such an erasure does not
    verify, because it lacks the `erased` event. Archived events are in the database of the copy. Raises
    JournalError if `target` exists.
    """
    until = instant(at, "at") if isinstance(at, str) else None
    if os.path.lexists(target):
        raise JournalError(f"{target} exists already; choose another directory")
    connect(source).close()  # raises if there is none
    unfinished = target.with_name(f".{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        files.check_directory(target.parent)
        _remove(unfinished)
        with readable(source):
            newest = _copy(source, unfinished, until, at if isinstance(at, int) else None, progress)
        unfinished.rename(target)
    except OSError as error:
        raise JournalError(f"{target} cannot be written: {error.strerror or error}") from error
    except ValueError as error:
        raise JournalError(f"the directory {target.parent} {error}") from error
    finally:
        _remove(unfinished)
    return newest


def _remove(path: Path) -> None:
    for ending in SIDE_FILES:
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _copy(source: Path, target: Path, until: str | None, last: int | None, progress: Progress) -> int:
    os.close(files.open_own(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
    with closing(connect(source)) as reading, closing(sqlite3.connect(target, isolation_level=None)) as new:
        schema.refuse_earlier(reading, source)
        new.execute("PRAGMA journal_mode = WAL")
        schema.migrate(new)
        new.execute("PRAGMA synchronous = OFF")
        stored = _until(segments.all_events(reading, source), until, last)
        newest = 0
        while page := list(islice(stored, STEP)):
            placed = Placed(newest, page[0][0].prev_hash, clocks.now)
            for row, part in page:
                placed.add_stored(row, part)
            with transaction(new):
                placed.write(new)
            newest = placed.seq
            progress(newest)
        new.executemany(
            "INSERT INTO erasures VALUES (?, ?, ?)",
            reading.execute("SELECT seq, by_seq, digest FROM erasures WHERE seq <= ?", (newest,)),
        )
        _copy_vectors(reading, new, newest)
        new.execute("PRAGMA synchronous = FULL")
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return newest


def _copy_vectors(reading: sqlite3.Connection, new: sqlite3.Connection, newest: int) -> None:
    """Copy the vectors of situations, which take long to make; those that were emptied are made again."""
    known = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'vectors'"
    if reading.execute(known).fetchone() is None:
        return  # an earlier version wrote the file
    of_copy = "SELECT seq, embedder, vector FROM vectors WHERE seq <= ? ORDER BY seq"
    rows = reading.execute(of_copy, (newest,))
    while page := rows.fetchmany(STEP):
        with transaction(new):
            new.executemany("INSERT INTO vectors (seq, embedder, vector) VALUES (?, ?, ?)", page)


def rebuild_in_place(journal: Journal, *, progress: Progress = lambda _: None) -> int:
    """Rebuild every table of an open journal, in one transaction; returns the number of events.

    Raises JournalError if an event cannot be read; then nothing has changed.
    """
    with closing(connect(journal.path)) as reading:

        def task(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                for table in (*projections.TABLES, "approvals_open"):
                    connection.execute(f"DELETE FROM {table}")
                count = 0
                stored = segments.all_events(reading, journal.path)
                while page := list(islice(stored, STEP)):
                    placed = Placed(page[0][0].seq - 1, b"", clocks.now)
                    for row, part in page:
                        placed.add_stored(row, part, tables_only=True)
                    placed.write(connection)
                    count += len(page)
                    progress(count)
            return count

        with readable(journal.path):
            return journal.run(task).result()


def _until(stored: StoredEvents, until: str | None, last: int | None) -> StoredEvents:
    for row, part in stored:
        if (until is not None and row.at.decode() >= until) or (last is not None and row.seq > last):
            return
        yield row, part
