"""The check of one range of events, live or archived: the chain, the private parts, and the rows.

Owns the comparison itself. Invariant: it only reads, page by page in constant memory, with no transaction
open between pages. A problem is noted with its event, never raised. Any process.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from thor_policy.journal import chain, projections, segments
from thor_policy.journal.completeness import lacking
from thor_policy.journal.projections import AT, GROUP_OF, GROUPS
from thor_policy.journal.reader import open_read_only
from thor_policy.journal.rewrites import Row
from thor_policy.journal.storage import EVENT_COLUMNS

#: Events read in one transaction.
PAGE = 500


class Task(Struct, frozen=True):
    """Events `first` to `last` of the journal at `path`; `segment` is the archive file that has them.

    `hashes_of` are the sequence numbers whose hashes the result must contain.
    """

    path: Path
    first: int
    last: int
    hashes_of: frozenset[int]
    segment: Path | None = None


class RangeResult(Struct, kw_only=True):
    """The result of a task: the first `problem`, and whether the chain is whole to the end of the range."""

    events: int = 0
    before: bytes | None = None
    head: bytes = b""
    hashes: dict[int, bytes] = {}
    kinds: Counter[str] = msgspec.field(default_factory=Counter)
    #: Groups of columns that rows show as changed, less those that an event of this range changed.
    open_groups: Counter[str] = msgspec.field(default_factory=Counter)
    erased: int = 0
    bad_seq: int | None = None
    problem: str | None = None
    chain_ok: bool = True

    def note(self, seq: int | None, problem: str) -> None:
        """Remember a problem if it is the first one."""
        if self.problem is None or (seq is not None and self.bad_seq is not None and seq < self.bad_seq):
            self.bad_seq, self.problem = seq, problem


def check_range(task: Task) -> RangeResult:
    """Check one range, in any process. No problem raises."""
    result = RangeResult()
    with closing(connect(task.path)) as connection:
        for _ in check_pages(connection, task, result, PAGE):
            pass
    return result


def check_pages(connection: sqlite3.Connection, task: Task, result: RangeResult, size: int) -> Iterator[None]:
    """Check one range into `result`, `size` events in each step. No problem raises."""
    try:
        yield from _Range(connection, task, result, size).pages()
    except _Broken as broken:
        result.note(broken.seq, broken.reason)
        result.chain_ok = False
    except (sqlite3.Error, OSError, ValueError, EOFError) as error:
        result.note(task.first + result.events, f"it cannot be read: {error}")
        result.chain_ok = False


class _Wrong(Exception):
    """A private part or a row does not match its event. The chain continues."""

    def __init__(self, seq: int, reason: str) -> None:
        super().__init__(reason)
        self.seq, self.reason = seq, reason


class _Broken(_Wrong):
    """The chain is broken at this event."""


class _Range:
    """The check of one range: stored events, page by page, compared with the rows of the tables."""

    def __init__(self, connection: sqlite3.Connection, task: Task, result: RangeResult, size: int) -> None:
        self._connection = connection
        self._task = task
        self._result = result
        self._size = size
        self._next = task.first
        self._erased: dict[int, tuple[int, bytes]] = {}

    def pages(self) -> Iterator[None]:
        """Check the range; each page is a step."""
        if self._task.segment is None:
            while self._next <= self._task.last:
                with self._snapshot():
                    self._page(*self._live_page())
                yield
        else:
            with segments.reading(self._task.segment) as stored:
                while page := list(islice(stored, self._size)):
                    private = {row.seq: part for row, part in page if part is not None}
                    with self._snapshot():
                        self._page([row for row, _ in page], private)
                    yield
            if self._next <= self._task.last:
                raise _Broken(self._next, "its archive does not have it")

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")

    def _live_page(self) -> tuple[list[chain.Row], dict[int, tuple[bytes, bytes]]]:
        connection = self._connection
        until = min(self._next + self._size - 1, self._task.last)
        connection.text_factory = bytes
        rows = connection.execute(
            f"SELECT {EVENT_COLUMNS} FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq", (self._next, until)
        ).fetchall()
        private = connection.execute(
            "SELECT seq, salt, value FROM private WHERE seq BETWEEN ? AND ?", (self._next, until)
        ).fetchall()
        connection.text_factory = str
        if not rows:
            raise _Broken(self._next, "it is missing")
        return [chain.Row._make(row) for row in rows], {seq: (salt, value) for seq, salt, value in private}

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        """Rows of a table. Invalid UTF-8 is not an error, it is only another text."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.OperationalError as error:
            if "decode" not in str(error):
                raise
        self._connection.text_factory = _any_text
        try:
            return self._connection.execute(sql, values).fetchall()
        finally:
            self._connection.text_factory = str

    def _page(self, rows: list[chain.Row], private: dict[int, tuple[bytes, bytes]]) -> None:
        first, last = rows[0].seq, rows[-1].seq
        self._erased = {
            seq: (by_seq, digest)
            for seq, by_seq, digest in self._connection.execute(
                "SELECT seq, by_seq, digest FROM erasures WHERE seq BETWEEN ? AND ?", (first, last)
            )
        }
        stored = {
            row[0]: row
            for row in self._rows("SELECT * FROM decisions WHERE seq BETWEEN ? AND ?", first, last)
        }
        checked = self._result.events
        try:
            for row in rows:
                self._check_link(row)
                decision_row = stored.pop(row.seq, None)
                try:
                    part = self._checked_part(row, private.pop(row.seq, None))
                    self._check_projection(row, part, decision_row)
                except _Wrong as wrong:
                    self._result.note(wrong.seq, wrong.reason)
        finally:
            kinds = Counter(row.kind for row in rows[: self._result.events - checked])
            for kind, count in kinds.items():
                self._result.kinds[kind.decode(errors="replace")] += count

    def _check_link(self, row: chain.Row) -> None:
        result = self._result
        if row.seq != self._next:
            raise _Broken(self._next, "it is missing")
        if result.before is None:
            result.before = result.head = row.prev_hash
        if row.prev_hash != result.head:
            raise _Broken(row.seq, "it does not follow the event before it")
        try:
            link = chain.hash_of(row.prev_hash, *row[:8])
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise _Broken(row.seq, f"its columns have the wrong types: {error}") from error
        if link != row.hash:
            raise _Broken(row.seq, "its content does not match its hash")
        result.events += 1
        result.head = row.hash
        self._next += 1
        if row.seq in self._task.hashes_of:
            result.hashes[row.seq] = row.hash

    def _checked_part(self, row: chain.Row, part: tuple[bytes, bytes] | None) -> bytes | None:
        """The private part, if its digest is right; None if the event never had one or it was erased."""
        by_seq, digest = self._erased.get(row.seq, (0, row.private_digest))
        self._result.erased += by_seq > 0
        if not digest:
            if part is not None:
                raise _Wrong(row.seq, "it must not have a private part, but has one")
            return None
        if part is None:
            raise _Wrong(row.seq, "its private part is missing, and no event erased it")
        salt, value = part
        if len(salt) != chain.SALT_BYTES or chain.sealed_digest(salt, value) != digest:
            raise _Wrong(row.seq, "its private part was changed")
        return value

    def _check_projection(self, row: chain.Row, part: bytes | None, decision_row: Any) -> None:
        try:
            kind, subject_id, at = row.kind.decode(), row.subject_id.decode(), row.at.decode()
            body, private = projections.read(kind, row.body, part)
            table, expected, changes = projections.project(kind, row.seq, at, subject_id, body, private)
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _Wrong(row.seq, f"its body cannot be read: {error}") from error
        if table == "decisions":
            self._check_decision(row.seq, decision_row, expected)
        elif decision_row is not None:
            raise _Wrong(row.seq, "the table decisions has a row for it, but it is no decision")
        elif table is not None:
            rows = self._rows(f"SELECT * FROM {table} WHERE seq = ?", row.seq)
            if rows != [expected]:
                raise _Wrong(row.seq, f"its row in the table {table} does not match it")
        if changes is not None:
            self._check_changes(row.seq, subject_id, GROUP_OF[kind], changes)
        elif kind == "erased":
            self._check_erasure(row.seq, body)

    def _check_decision(self, seq: int, actual: Row | None, expected: Row) -> None:
        if actual == expected and expected[AT["required"]] is None:
            return
        if actual is None:
            raise _Wrong(seq, "its row in the table decisions is missing")
        row = list(actual)
        if (required := expected[AT["required"]]) is not None:
            if row[AT["required"]] != required:
                raise _Wrong(seq, "its row in the table decisions does not match it")
            stored, left = lacking(self._connection, seq)
            if stored != left:
                raise _Wrong(seq, "its row in the table decisions does not say what its trace lacks")
            row[AT["lacks"]] = expected[AT["lacks"]]
        for group, columns in GROUPS.items():
            if row[AT[group]] is not None:
                self._result.open_groups[group] += 1
                for column in (group, *columns):
                    row[AT[column]] = expected[AT[column]]
        if tuple(row) != expected:
            raise _Wrong(seq, "its row in the table decisions does not match it")

    def _check_changes(self, seq: int, decision_id: str, group: str, changes: Row) -> None:
        columns = ", ".join(GROUPS[group])
        rows = self._rows(f"SELECT {group}, {columns} FROM decisions WHERE decision_id = ?", decision_id)
        changed_by, *values = rows[0] if rows else (None,)
        if changed_by is None or changed_by < seq:
            raise _Wrong(seq, "the row of its decision does not show it")
        if changed_by == seq:
            self._result.open_groups[group] -= 1
            if tuple(values) != changes:
                raise _Wrong(seq, "the row of its decision does not match it")

    def _check_erasure(self, by_seq: int, body: Any) -> None:
        for seq, digest in body["parts"].items():
            row = self._connection.execute(
                "SELECT by_seq, digest FROM erasures WHERE seq = ?", (int(seq),)
            ).fetchone()
            if row is None or row[0] < by_seq or (row[0] == by_seq and row[1].hex() != digest):
                raise _Wrong(
                    by_seq, f"it erased a part of event {seq}, but the table erasures does not show it"
                )


def _any_text(stored: bytes) -> str:
    return stored.decode(errors="surrogateescape")


def connect(path: Path, *, mapped: bool = True) -> sqlite3.Connection:
    """A read-only connection for a long run.

    A `mapped` file is read faster. In a daemon it must not be: an error of the disk would end the process.
    """
    connection = open_read_only(path)
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.execute(f"PRAGMA cache_size = -{8192 if mapped else 512}")
    if mapped:
        connection.execute(f"PRAGMA mmap_size = {2**33}")
    return connection
