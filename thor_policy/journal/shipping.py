"""What the shipper needs of the journal: the next events for a sink, and how far each sink is.

Owns the table `shipping`. Invariant: a sink that is listed there has acknowledged every event up to
`acknowledged`, so archiving and erasing wait for the slowest one; the table is no projection, since no event
says what is in it. Readers: any thread or process, on a read-only connection; `acknowledge` and `forget`: the
journal's thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from thor_policy.core.errors import JournalError
from thor_policy.core.records import Shipped
from thor_policy.journal import chain, segments
from thor_policy.journal.completeness import COMPLETING
from thor_policy.journal.projections import TABLES
from thor_policy.journal.segments import Part
from thor_policy.telemetry.clocks import Instant


class Cursor(Struct, frozen=True, kw_only=True):
    """How far a sink is. `alarm` is why it takes no more events; None: it does."""

    sink: str
    acknowledged: int
    alarm: str | None


class Behind(Struct, frozen=True, kw_only=True):
    """How far a sink is behind: events, and seconds since the oldest event that it lacks was recorded."""

    cursor: Cursor
    events: int
    seconds: float


#: The kinds of event that make a decision.
_DECISIONS = frozenset(TABLES["decisions"])
#: Most sinks that are noted.
MOST_SINKS = 16


def acknowledge(connection: sqlite3.Connection, *, shipped: Shipped, at: str) -> None:
    """Note how far a sink is, in a transaction of its own. `at` is RFC 3339.

    Raises JournalError for an event that the journal does not have, and for a sink too many.
    """
    if shipped.seq > newest(connection):
        raise JournalError(f"the sink {shipped.sink} cannot have event {shipped.seq}: it is not recorded")
    known = [cursor.sink for cursor in cursors(connection)]
    if shipped.sink not in known and len(known) >= MOST_SINKS:
        raise JournalError(f"{MOST_SINKS} sinks are known; forget one first with `thorpolicy ship --forget`")
    connection.execute(
        "INSERT INTO shipping VALUES (?, ?, ?, ?) ON CONFLICT (sink) DO UPDATE SET "
        "acknowledged = excluded.acknowledged, at = excluded.at, alarm = excluded.alarm",
        (shipped.sink, shipped.seq, at, shipped.alarm),
    )


def forget(connection: sqlite3.Connection, *, sink: str) -> bool:
    """Forget a sink: nothing waits for it any more. False if it was not known."""
    return connection.execute("DELETE FROM shipping WHERE sink = ?", (sink,)).rowcount == 1


def cursors(connection: sqlite3.Connection) -> list[Cursor]:
    """The sinks by name."""
    rows = connection.execute("SELECT sink, acknowledged, alarm FROM shipping ORDER BY sink").fetchall()
    return [Cursor(sink=sink, acknowledged=seq, alarm=alarm) for sink, seq, alarm in rows]


def slowest(connection: sqlite3.Connection) -> Cursor | None:
    """The sink that has acknowledged the least; None if there is no sink."""
    return min(cursors(connection), key=lambda cursor: cursor.acknowledged, default=None)


def behind(connection: sqlite3.Connection, now: Instant, wall: str) -> list[Behind]:
    """How far each sink is behind. `wall` is RFC 3339, for events of an earlier boot.

    An event that is archived counts as recorded when the oldest event of the database was.
    """
    (newest,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
    listed = []
    for cursor in cursors(connection):
        row = connection.execute(
            "SELECT boot_id, mono_ns, unixepoch(?, 'subsec') - unixepoch(at, 'subsec') FROM events "
            "WHERE seq > ? ORDER BY seq LIMIT 1",
            (wall, cursor.acknowledged),
        ).fetchone()
        seconds = 0.0
        if row is not None:
            boot_id, mono_ns, by_wall = row
            seconds = (now.ns - mono_ns) / 1e9 if boot_id == now.boot_id else float(by_wall or 0)
        listed.append(
            Behind(
                cursor=cursor,
                events=max(0, newest - cursor.acknowledged),
                seconds=round(max(0.0, seconds), 3),
            )
        )
    return listed


# ---------------------------------------------------------------- events


def newest(connection: sqlite3.Connection) -> int:
    """The number of the newest event; 0 before the first."""
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])


def chain_name(connection: sqlite3.Connection) -> bytes | None:
    """The hash of event 1, which names the chain (32 bytes); None before the first event."""
    row = connection.execute("SELECT hash FROM events WHERE seq = 1").fetchone()
    if row is not None:
        return bytes(row[0])
    row = connection.execute("SELECT chain FROM archives LIMIT 1").fetchone()
    return None if row is None else bytes.fromhex(row[0])


def stored_hash(connection: sqlite3.Connection, journal: Path, seq: int) -> bytes | None:
    """The hash of an event, from the database or an archive (32 bytes); None if there is no such event."""
    row = connection.execute("SELECT hash FROM events WHERE seq = ?", (seq,)).fetchone()
    if row is not None:
        return bytes(row[0])
    event = segments.find_event(connection, journal, seq)
    return None if event is None else event[0].hash


def after(
    connection: sqlite3.Connection, journal: Path, seq: int, *, events: int, size: int
) -> list[tuple[chain.Row, Part | None]]:
    """The events after `seq` with their private parts, in order: at most `events`, and at most `size` bytes.

    One event is returned whatever its size. Events that left the database are read from their archive.
    """
    page: list[tuple[chain.Row, Part | None]] = []
    left = size
    for row, part in _stored(connection, journal, seq, events):
        left -= sum(map(len, row[1:3])) + len(row.body) + len(row.subject_id)
        left -= sum(map(len, part)) if part else 0
        if page and left < 0:
            break
        page.append((row, part))
        if len(page) == events:
            break
    return page


def private_parts(
    connection: sqlite3.Connection, journal: Path, seqs: list[int]
) -> Iterator[tuple[chain.Row, Part | None]]:
    """These events as they are now, each with what is left of its private part."""
    for seq in seqs:
        event = next(segments.live_events(connection, seq, seq), None) or segments.find_event(
            connection, journal, seq
        )
        if event is not None:
            yield event


def incomplete(connection: sqlite3.Connection, rows: Sequence[chain.Row]) -> dict[str, list[str] | None]:
    """What the traces lack now that these events made or may complete; None: nothing. No event says it."""
    decisions: set[str] = set()
    sessions: set[str] = set()
    for row in rows:
        kind = row.kind.decode()
        if kind in _DECISIONS or kind in COMPLETING:
            decisions.add(row.subject_id.decode())
        if kind in ("consultation", "edge"):
            body = msgspec.json.decode(row.body)
            decisions |= {body["source"]} if kind == "edge" else set()
            sessions |= {body["session"]} if body.get("session") else set()
    traces = connection.execute(
        "SELECT decision_id, lacks FROM decisions WHERE required IS NOT NULL AND decision_id IN "
        "(SELECT value FROM json_each(?)) UNION SELECT decision_id, lacks FROM decisions "
        "WHERE required IS NOT NULL AND session IS NOT NULL AND session IN (SELECT value FROM json_each(?))",
        (msgspec.json.encode(decisions).decode(), msgspec.json.encode(sessions).decode()),
    )
    return {name: None if lacks is None else msgspec.json.decode(lacks) for name, lacks in traces}


def erased_digest(connection: sqlite3.Connection, seq: int) -> bytes | None:
    """What the private part of an event is verified against since it was erased; None if it was not."""
    row = connection.execute("SELECT digest FROM erasures WHERE seq = ?", (seq,)).fetchone()
    return None if row is None else bytes(row[0])


def _stored(
    connection: sqlite3.Connection, journal: Path, seq: int, events: int
) -> Iterator[tuple[chain.Row, Part | None]]:
    (low,) = connection.execute("SELECT coalesce(min(seq), 0) FROM events").fetchone()
    for segment in segments.segments(connection, journal):
        if segment.last_seq > seq and segment.first_seq < low:
            with segments.reading(segment.path) as stored:
                for row, part in stored:
                    if row.seq > seq:
                        yield row, part
            seq = segment.last_seq
    yield from segments.live_events(connection, seq + 1, newest(connection), page=min(events, 2_000))
