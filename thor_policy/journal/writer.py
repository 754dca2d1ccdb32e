"""The one connection that writes, and the thread that owns it.

Owns the journal file while the process lives (an flock says so). Invariant: an event is acknowledged only
after the transaction that holds it, its place in the chain and its projections is committed. `append`
never waits: what arrives during a commit is the next batch, so the disk sets the pace and no timer adds
delay.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from msgspec import Struct

from thor_policy.core import Decision, Explanation
from thor_policy.errors import AlreadyRunning, ErrorCode, JournalError
from thor_policy.journal import chain, events, schema
from thor_policy.journal.events import Event

log = logging.getLogger(__name__)

#: Events in one transaction; bounds how long a commit can hold back the events behind it.
MAX_BATCH = 512
#: How long a transaction waits for a lock that some other process should not hold.
BUSY_TIMEOUT_MS = 5_000
#: What SQLite raises when the file or the disk is at fault; any other error is that of one event.
DISK_ERRORS = (sqlite3.OperationalError, sqlite3.DatabaseError, sqlite3.InternalError)


class Committed(Struct, frozen=True, kw_only=True):
    """The fate of one event: on disk, or (with `error`) not. `commit_ms` is queue plus transaction time."""

    ticket: int | None
    kind: str
    seq: int = 0
    commit_ms: float = 0.0
    error: ErrorCode | None = None


OnCommitted = Callable[[list[Committed]], None]


class Journal:
    """The journal file, open for writing.

    `on_committed` gets the fate of every event, batch by batch, on the journal's thread; it must not
    block. Raises AlreadyRunning if another process holds the file, JournalError if it cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        on_committed: OnCommitted,
        synchronous: str = "FULL",
        erasable: Sequence[str] = (),
    ) -> None:
        self.path = path
        self._on_committed = on_committed
        self._erasable = tuple(erasable)
        self._queue: queue.SimpleQueue[tuple[Event, int] | None] = queue.SimpleQueue()
        self.committed_events = 0
        self.failed_events = 0
        self.batches = 0
        self.failing: str | None = None
        self._lock = _take_lock(path)
        try:
            self._connection, self._seq, self._head = _open(path, synchronous)
        except BaseException:
            os.close(self._lock)
            raise
        self._boot_id = _boot_id()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """False when the journal thread has ended."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Events that are not in a transaction yet."""
        return self._queue.qsize()

    @property
    def seq(self) -> int:
        """Sequence number of the newest committed event; 0 before the first."""
        return self._seq

    def append(self, event: Event) -> None:
        """Hand over an event; returns at once. Its fate comes to `on_committed`."""
        self._queue.put((event, time.monotonic_ns()))

    def decided(self, decision: Decision, ticket: int | None = None) -> None:
        """Record a decision."""
        self.append(events.decided(decision, ticket))

    def explained(
        self, decision_id: str, explanation: Explanation, at: float, ticket: int | None = None
    ) -> None:
        """Record an explanation that was written after its decision; `at` is Unix time in seconds."""
        self.append(events.explained(decision_id, explanation, at, ticket))

    def close(self, timeout_s: float = 30.0) -> None:
        """Commit what was appended, then release the file; safe to call twice."""
        if self._lock < 0:
            return
        self._queue.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise JournalError(f"the journal did not drain within {timeout_s} s; {self.waiting} events left")
        os.close(self._lock)
        self._lock = -1

    # ------------------------------------------------------------ the journal thread

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._on_committed(self._commit(batch))
        finally:
            self._connection.close()

    def _next_batch(self) -> list[tuple[Event, int]]:
        """What has arrived since the last commit, at least one event; empty at the end."""
        batch: list[tuple[Event, int]] = []
        item = self._queue.get()
        while item is not None:
            batch.append(item)
            if len(batch) == MAX_BATCH:
                return batch
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            self._queue.put(None)
        return batch

    def _commit(self, batch: list[tuple[Event, int]]) -> list[Committed]:
        """Record a batch in one transaction; an event that cannot be stored fails alone."""
        connection = self._connection
        seq, head = self._seq, self._head
        try:
            connection.execute("BEGIN IMMEDIATE")
            inserts = events.Inserts(connection)
            for event, _ in batch:
                seq += 1
                head = self._insert(inserts, event, seq, head)
            inserts.flush()
            connection.execute("COMMIT")
        except Exception as error:  # whatever it was: nothing of this transaction may be acknowledged
            self._roll_back()
            if len(batch) > 1 and type(error) not in DISK_ERRORS:
                middle = len(batch) // 2
                return self._commit(batch[:middle]) + self._commit(batch[middle:])
            return self._failed(batch, error)
        first = self._seq + 1
        self._seq, self._head = seq, head
        self.committed_events += len(batch)
        self.batches += 1
        self.failing = None
        now_ns = time.monotonic_ns()
        return [
            Committed(
                ticket=event.ticket, kind=event.kind, seq=first + index, commit_ms=(now_ns - put_ns) / 1e6
            )
            for index, (event, put_ns) in enumerate(batch)
        ]

    def _insert(self, inserts: events.Inserts, event: Event, seq: int, prev_hash: bytes) -> bytes:
        body, private = events.split(event.body, self._erasable)
        if private:
            value = events.encode(private)
            salt, digest = chain.seal(value)
            inserts.add("private", (seq, salt, value))
            text = events.encode(body | {"private": digest})
            body = events.join(body, private)
        else:
            text = events.encode(body)
        at, mono_ns = events.timestamp(event.at), time.monotonic_ns()
        link = chain.hash_of(prev_hash, seq, at, self._boot_id, mono_ns, event.kind, event.subject_id, text)
        inserts.add(
            "events", (seq, at, self._boot_id, mono_ns, event.kind, event.subject_id, text, prev_hash, link)
        )
        events.project(inserts, event.kind, seq, at, body)
        return link

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            with suppress(sqlite3.Error):  # then the next BEGIN fails, and its batch hears of it
                self._connection.execute("ROLLBACK")

    def _failed(self, batch: list[tuple[Event, int]], error: Exception) -> list[Committed]:
        self.failing = f"{type(error).__name__}: {error}"
        self.failed_events += len(batch)
        log.error("the journal lost %d events, which stay unanswered: %s", len(batch), self.failing)
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        code: ErrorCode = "disk_full" if full else "unavailable"
        return [Committed(ticket=event.ticket, kind=event.kind, error=code) for event, _ in batch]


# ---------------------------------------------------------------- opening


def _take_lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise JournalError(f"cannot write in the state directory {path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise AlreadyRunning(
            f"the state directory {path.parent} is in use by process {holder or 'unknown'}; "
            "stop it, or choose another with --state-dir"
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _open(path: Path, synchronous: str) -> tuple[sqlite3.Connection, int, bytes]:
    """The connection, and sequence number and hash of the newest event."""
    with ExitStack() as undo:
        try:
            path.touch(mode=0o640)
            path.chmod(0o640)  # before SQLite gives the log beside it the same mode
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            undo.callback(connection.close)
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            schema.migrate(connection)
            newest = connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        except (sqlite3.Error, OSError) as error:
            raise JournalError(f"{path} cannot be used as a journal: {error}") from error
        undo.pop_all()
    return connection, *(newest or (0, chain.GENESIS))


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
