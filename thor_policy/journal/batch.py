"""A batch with its places in the chain: events made ready, given their rows, and written.

Owns what a transaction writes. Invariant: an event's rows are those that `projections` gives it, whether
it is new (`add`) or told again (`again`), and everything of a batch is written by one `write`. Called by
the journal's thread, and by whoever makes a journal anew.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from thor_policy.journal import chain, events, leases, projections
from thor_policy.journal.events import Event
from thor_policy.journal.rewrites import Projection, Rewrite, Row


class Ready(Struct, frozen=True, gc=False):
    """An event with all that does not depend on its place in the chain; the projection has a zero for it."""

    event: Event
    put_ns: int
    at: str
    hashed: tuple[bytes, bytes, bytes, bytes]  # at, kind, subject, body
    body: str
    digest: bytes
    private: tuple[bytes, str] | None  # salt, value
    projection: Projection


def make_ready(event: Event, put_ns: int) -> Ready:
    body, at = events.encode(event.body), events.timestamp(event.at)
    private, digest = None, b""
    if event.private is not None:
        value = events.encode(event.private)
        salt, digest = chain.seal(value)
        private = salt, value.decode()
    return Ready(
        event,
        put_ns,
        at,
        (at.encode(), event.kind.encode(), event.subject_id.encode(), body),
        body.decode(),
        digest,
        private,
        projections.project(event.kind, 0, at, event.subject_id, event.body, event.private),
    )


class Placed:
    """A batch with its places in the chain, as rows."""

    def __init__(self, seq: int, head: bytes, boot: bytes) -> None:
        self.seq, self.head, self.first = seq, head, b""
        self._boot, self._boot_text = boot, boot.decode()
        self.events: list[tuple[Any, ...]] = []
        self.decisions: set[str] = set()
        #: Of each decision whose lease changed in this batch: who holds it now.
        self.leases: dict[str, str | None] = {}
        self._private: list[tuple[int, bytes, str]] = []
        self._rows: dict[str, list[Row]] = {}
        self._changes: list[tuple[str, str, int, Row]] = []
        self._rewrites: list[tuple[int, Rewrite]] = []

    def add(self, ready: Ready) -> int:
        """Give an event its place; returns its sequence number."""
        event, digest, (table, row, changes) = ready.event, ready.digest, ready.projection
        at, kind, subject_id, body = ready.hashed
        self.seq += 1
        seq, previous, mono_ns = self.seq, self.head, time.monotonic_ns()
        self.head = chain.hash_of(previous, seq, at, self._boot, mono_ns, kind, subject_id, body, digest)
        if seq == 1:
            self.first = self.head
        self.events.append(
            (
                *(seq, ready.at, self._boot_text, mono_ns, event.kind, event.subject_id, ready.body),
                *(digest, previous, self.head),
            )
        )
        if ready.private is not None:
            self._private.append((seq, *ready.private))
        if table == "decisions":
            self.decisions.add(event.subject_id)
        elif event.kind in leases.KINDS:
            leases.note(self.leases, event)
        if table is not None:
            self._rows.setdefault(table, []).append((seq, *row[1:]))
        if changes is not None:
            self._changes.append((event.kind, event.subject_id, seq, changes))
        self._rewrites += [(seq, rewrite) for rewrite in event.rewrites]
        return seq

    def again(self, row: chain.Row, part: tuple[bytes, bytes] | None, *, tables_only: bool = False) -> None:
        """Take an event that has its place already, to make its rows (and perhaps itself) anew."""
        kind, subject_id, at = row.kind.decode(), row.subject_id.decode(), row.at.decode()
        body, private = projections.read(kind, row.body, part and part[1])
        table, columns, changes = projections.project(kind, row.seq, at, subject_id, body, private)
        self.seq, self.head = row.seq, row.hash
        if table is not None:
            self._rows.setdefault(table, []).append(columns)
        if changes is not None:
            self._changes.append((kind, subject_id, row.seq, changes))
        if tables_only:
            return
        texts = (row.at, row.boot_id, row.kind, row.subject_id, row.body)
        at, boot, kind, subject_id, told = (one.decode() for one in texts)
        self.events.append(
            (
                *(row.seq, at, boot, row.mono_ns, kind, subject_id, told),
                *(row.private_digest, row.prev_hash, row.hash),
            )
        )
        if part is not None:
            self._private.append((row.seq, part[0], part[1].decode()))

    def write(self, connection: sqlite3.Connection) -> None:
        """Write everything, inside the caller's transaction."""
        _insert(connection, "events", self.events)
        _insert(connection, "private", self._private)
        for table, rows in self._rows.items():
            _insert(connection, table, rows)
        for kind, decision_id, seq, changes in self._changes:
            group = projections.GROUP_OF[kind]
            values = dict(zip(projections.GROUPS[group], changes, strict=True))
            _update(connection, {**values, group: seq}, "decision_id = ?", decision_id)
        for seq, rewrite in self._rewrites:
            _rewrite(connection, seq, rewrite)


def _insert(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


def _rewrite(connection: sqlite3.Connection, by_seq: int, rewrite: Rewrite) -> None:
    """Put what is left of a private part in its place, and the values that follow from it."""
    seq = rewrite.seq
    connection.execute("DELETE FROM private WHERE seq = ?", (seq,))
    if rewrite.private is not None and not rewrite.archived:
        connection.execute("INSERT INTO private VALUES (?, ?, ?)", (seq, *rewrite.private))
    connection.execute("INSERT OR REPLACE INTO erasures VALUES (?, ?, ?)", (seq, by_seq, rewrite.digest))
    table, row, changes = rewrite.projection
    if table == "decisions":
        values = dict(zip(projections.DECISION_COLUMNS, row, strict=True))
        for group, columns in projections.GROUPS.items():
            ours = {name: values.pop(name) for name in columns}
            _update(connection, ours, f"seq = ? AND {group} IS NULL", seq)
            values.pop(group)
        _update(connection, values, "seq = ?", seq)
    elif table is not None:
        connection.execute(f"DELETE FROM {table} WHERE seq = ?", (seq,))
        _insert(connection, table, [row])
    if changes is not None:
        group = projections.GROUP_OF[rewrite.kind]
        ours = dict(zip(projections.GROUPS[group], changes, strict=True))
        _update(connection, ours, f"decision_id = ? AND {group} = ?", rewrite.subject_id, seq)


def _update(connection: sqlite3.Connection, columns: dict[str, Any], where: str, *which: Any) -> None:
    told = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(f"UPDATE decisions SET {told} WHERE {where}", (*columns.values(), *which))
