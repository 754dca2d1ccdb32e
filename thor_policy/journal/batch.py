"""A batch: the events of one transaction, prepared, given places in the chain, and written.

Owns what a transaction writes. Invariant: the rows of an event are those of `projections.project`, whether
the event is new (`add`) or stored already (`add_stored`), and one `write` writes the whole batch. Called by
the journal's thread, and by a rebuild.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from thor_policy.journal import (
    approval_tasks,
    approvals,
    chain,
    events,
    graph,
    leases,
    projections,
    summaries,
    vectors,
)
from thor_policy.journal.completeness import Touched
from thor_policy.journal.events import Event
from thor_policy.journal.rewrites import Projection, Rewrite, Row
from thor_policy.telemetry.clocks import Instant

#: Places of two columns in a row of `decisions`.
_REQUIRED, _APPROVAL_TASK = projections.AT["required"], projections.AT["approval_task"]


class Prepared(Struct, frozen=True, gc=False):
    """An encoded event: all that does not depend on its place in the chain, which is 0 in `projection`."""

    event: Event
    put_ns: int
    at: str
    hashed: tuple[bytes, bytes, bytes, bytes]  # at, kind, subject, body
    body: str
    digest: bytes
    private: tuple[bytes, str] | None  # salt, value
    size: int  # bytes of body and private part
    projection: Projection


def prepare(event: Event, put_ns: int) -> Prepared:
    """Encode an event that was handed over at `put_ns` (monotonic). Raises if it cannot be encoded."""
    body, at = events.encode(event.body), events.timestamp(event.at)
    private, digest, size = None, b"", len(body)
    if event.private is not None:
        value = events.encode(event.private)
        salt, digest = chain.seal(value)
        private = salt, value.decode()
        size += len(value)
    return Prepared(
        event,
        put_ns,
        at,
        (at.encode(), event.kind.encode(), event.subject_id.encode(), body),
        body.decode(),
        digest,
        private,
        size,
        projections.project(event.kind, 0, at, event.subject_id, event.body, event.private),
    )


class Placed:
    """A batch as rows, each event with its place in the chain.

    `seq` and `head` are those of the event before it, and then of its newest event. `first` is the hash of
    event 1 if that is in it. `now` is the clock of the events that get a place.
    """

    def __init__(self, seq: int, head: bytes, now: Callable[[], Instant]) -> None:
        self.seq, self.head, self.first = seq, head, b""
        self._now, self._boot_text = now, now().boot_id
        self._boot = self._boot_text.encode()
        self.events: list[tuple[Any, ...]] = []
        #: The decisions in this batch, each with its caller.
        self.decisions: dict[str, str | None] = {}
        #: The new holder of each decision whose lease changes in this batch; None: nobody.
        self.leases: dict[str, str | None] = {}
        self.graph = graph.Uncommitted(self.decisions)
        self.approvals = approvals.Uncommitted()
        self._tasks = approvals.Changed()
        self._private: list[tuple[int, bytes, str]] = []
        self._rows: dict[str, list[Row]] = {}
        self._changes: list[tuple[str, str, int, Row]] = []
        self._rewrites: list[tuple[int, Rewrite]] = []
        self._touched = Touched()
        self._about: dict[str, None] = {}

    def add(self, prepared: Prepared) -> int:
        """Give an event its place; returns its sequence number."""
        event, digest, (table, row, changes) = prepared.event, prepared.digest, prepared.projection
        at, kind, subject_id, body = prepared.hashed
        self.seq += 1
        seq, previous, mono_ns = self.seq, self.head, self._now().ns
        self.head = chain.hash_of(previous, seq, at, self._boot, mono_ns, kind, subject_id, body, digest)
        if seq == 1:
            self.first = self.head
        self.events.append(
            (
                *(seq, prepared.at, self._boot_text, mono_ns, event.kind, event.subject_id, prepared.body),
                *(digest, previous, self.head),
            )
        )
        if prepared.private is not None:
            self._private.append((seq, *prepared.private))
        if table == "decisions":
            self.decisions[event.subject_id] = events.who_sent(event.body)
        elif event.kind in leases.KINDS:
            leases.note_uncommitted(self.leases, event)
        elif event.kind in graph.KINDS:
            self.graph.note(event)
        if table is not None:
            self._rows.setdefault(table, []).append((seq, *row[1:]))
        if changes is not None:
            self._changes.append((event.kind, event.subject_id, seq, changes))
        self._rewrites += [(seq, rewrite) for rewrite in event.rewrites]
        self._touch(event.kind, seq, event.subject_id, event.body, table, row)
        return seq

    def _touch(
        self, kind: str, seq: int, subject_id: str, body: events.Part, table: str | None, row: Row
    ) -> None:
        """Note whose trace an event may complete, whose summary it makes old, and which task it changes."""
        if table == "decisions":
            if row[_REQUIRED] is not None:
                self._touched.decided(subject_id)
            if (task := row[_APPROVAL_TASK]) is not None:
                self._tasks.note("decision", row[0], body, task)
        else:
            self._touched.add(kind, subject_id, body)
            if kind in summaries.SHOWN:
                self._about[subject_id] = None
            if kind in approvals.KINDS or kind == "approval":
                self._tasks.note(kind, seq, body, None)

    def add_stored(
        self, row: chain.Row, part: tuple[bytes, bytes] | None, *, tables_only: bool = False
    ) -> None:
        """Add an event that has its place already, to rebuild its rows; and itself, unless `tables_only`."""
        kind, subject_id, at = row.kind.decode(), row.subject_id.decode(), row.at.decode()
        body, private = projections.read(kind, row.body, part and part[1])
        table, columns, changes = projections.project(kind, row.seq, at, subject_id, body, private)
        self.seq, self.head = row.seq, row.hash
        if table is not None:
            self._rows.setdefault(table, []).append(columns)
        if changes is not None:
            self._changes.append((kind, subject_id, row.seq, changes))
        self._touch(kind, row.seq, subject_id, body, table, columns)
        if tables_only:
            return
        texts = (row.at, row.boot_id, row.kind, row.subject_id, row.body)
        at, boot, kind, subject_id, body_text = (text.decode() for text in texts)
        self.events.append(
            (
                *(row.seq, at, boot, row.mono_ns, kind, subject_id, body_text),
                *(row.private_digest, row.prev_hash, row.hash),
            )
        )
        if part is not None:
            self._private.append((row.seq, part[0], part[1].decode()))

    def write(self, connection: sqlite3.Connection) -> None:
        """Write all rows, inside the caller's transaction."""
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
            self._touched.add("erased", rewrite.subject_id, {})
            lifted = approval_tasks.lifted_by_record(connection, rewrite.seq)
            for decision_id in (rewrite.subject_id, *lifted):
                summaries.forget(connection, decision_id, seq)
                vectors.forget(connection, decision_id)
        self._touched.refresh(connection)
        self._tasks.keep_open(connection)
        summaries.note_changes(connection, self._about, self.seq)


def _insert(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


def _rewrite(connection: sqlite3.Connection, by_seq: int, rewrite: Rewrite) -> None:
    """Replace a private part by what is left of it, and the rows that are computed from it."""
    seq = rewrite.seq
    connection.execute("DELETE FROM private WHERE seq = ?", (seq,))
    if rewrite.private is not None and not rewrite.archived:
        connection.execute("INSERT INTO private VALUES (?, ?, ?)", (seq, *rewrite.private))
    connection.execute("INSERT OR REPLACE INTO erasures VALUES (?, ?, ?)", (seq, by_seq, rewrite.digest))
    table, row, changes = rewrite.projection
    if table == "decisions":
        values = dict(zip(projections.DECISION_COLUMNS, row, strict=True))
        for group, columns in projections.GROUPS.items():
            of_group = {name: values.pop(name) for name in columns}
            _update(connection, of_group, f"seq = ? AND {group} IS NULL", seq)
            values.pop(group)
        values.pop("lacks")
        _update(connection, values, "seq = ?", seq)
    elif table is not None:
        connection.execute(f"DELETE FROM {table} WHERE seq = ?", (seq,))
        _insert(connection, table, [row])
    if changes is not None:
        group = projections.GROUP_OF[rewrite.kind]
        of_group = dict(zip(projections.GROUPS[group], changes, strict=True))
        _update(connection, of_group, f"decision_id = ? AND {group} = ?", rewrite.subject_id, seq)


def _update(connection: sqlite3.Connection, columns: dict[str, Any], where: str, *values: Any) -> None:
    assignments = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(f"UPDATE decisions SET {assignments} WHERE {where}", (*columns.values(), *values))
