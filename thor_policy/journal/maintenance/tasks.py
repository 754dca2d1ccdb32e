"""The steps that archive, erase and rebuild share.

Owns these steps. Invariant: long work reads on its own connection, and changes the journal only by events and
by short tasks on the journal's thread. On a thread that may wait: that of a command, or the maintenance
thread of the daemon.
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
from thor_policy.journal.reader import open_read_only
from thor_policy.journal.segments import Part
from thor_policy.journal.writer import Journal

#: Events in one step on the journal's thread.
STEP = 500
#: How long a short step on the journal's thread may take, in seconds.
STEP_TIMEOUT_S = 300

T = TypeVar("T")
Progress = Callable[[int], None]
StoredEvents = Iterator[tuple[chain.Row, Part | None]]


def commit(journal: Journal, event: Event) -> None:
    """Record an event, and wait for its commit. Raises JournalError."""
    fate = result_of(journal.commit(event))
    if fate.error is not None:
        raise JournalError(f"the journal could not record the event: {fate.message or fate.error}")


def result_of(future: Future[T], timeout_s: float | None = STEP_TIMEOUT_S) -> T:
    """The result of a step on the journal's thread; `timeout_s` None waits for ever. Raises JournalError."""
    try:
        return future.result(timeout_s)
    except TimeoutError as error:
        raise JournalError(
            f"the journal's thread did not run the step within {timeout_s} s; try again when it is less busy"
        ) from error
    except sqlite3.Error as error:
        raise JournalError(f"the journal failed: {error}") from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction: all writes inside are committed, or none."""
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
    """Turns errors of reading inside into a JournalError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise JournalError(
            f"the file {error.filename} is missing; put it back, then run the command again"
        ) from error
    except (sqlite3.Error, OSError, ValueError) as error:
        raise JournalError(f"{path} cannot be read: {error}") from error


def connect(path: Path) -> sqlite3.Connection:
    """A read-only connection to the journal at `path`."""
    connection = open_read_only(path, check_same_thread=False)
    connection.execute("PRAGMA busy_timeout = 5000")
    return connection
