"""Long work on a journal, in steps: what archiving, erasing and building anew share.

Owns these steps. Invariant: whoever does such work reads on a connection of its own and changes the
journal only by events and short tasks on the journal's thread. On a thread that may wait (a command's, or
the daemon's clerk).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from thor_policy.core.errors import JournalError
from thor_policy.journal import chain
from thor_policy.journal.events import Event
from thor_policy.journal.reader import read_only_uri
from thor_policy.journal.segments import Part
from thor_policy.journal.writer import Journal

#: Events in one step on the journal's thread.
STEP = 500
#: How long a short step on the journal's thread may take, in seconds.
PATIENCE_S = 300

T = TypeVar("T")
Progress = Callable[[int], None]
Found = Iterator[tuple[chain.Row, Part | None]]


def commit(journal: Journal, event: Event) -> None:
    fate = result_of(journal.commit(event))
    if fate.error is not None:
        raise JournalError(f"the journal could not record it: {fate.message or fate.error}")


def result_of(future: Future[T], patience_s: float | None = PATIENCE_S) -> T:
    """The result of a step on the journal's thread (None: however long it takes). Raises JournalError."""
    try:
        return future.result(patience_s)
    except TimeoutError as error:
        raise JournalError(f"the journal did not come to it within {patience_s} s") from error
    except sqlite3.Error as error:
        raise JournalError(f"the journal failed: {error}") from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What cannot be read inside is a JournalError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise JournalError(f"the file {error.filename} is missing; put it back, then begin again") from error
    except (sqlite3.Error, OSError, ValueError) as error:
        raise JournalError(f"{path} cannot be read: {error}") from error


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA busy_timeout = 5000")
    return connection
