"""Archiving: moving old events from the database into compressed segments.

Owns that move. Invariant: a segment is complete on disk and named on the chain before its events leave the
database, and the next run finishes an interrupted one. One maintenance task at a time, on a thread that may
wait.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Json
from thor_policy.journal import chain, segments, shipping
from thor_policy.journal.events import Event
from thor_policy.journal.idempotency import first_remembered
from thor_policy.journal.maintenance.tasks import (
    STEP,
    Progress,
    StoredEvents,
    commit,
    connect,
    result_of,
    transaction,
)
from thor_policy.journal.reader import instant
from thor_policy.journal.segments import SEGMENT_EVENTS
from thor_policy.journal.writer import Journal


def archive_before(
    journal: Journal, before: str, *, unshipped: bool = False, progress: Progress = lambda _: None
) -> list[segments.Segment]:
    """Move the events before a time (RFC 3339) into compressed segments.

    The newest event always stays. So do the first event whose idempotency key is still remembered and all
    events after it, and, unless `unshipped`, all events that a sink has not acknowledged.
    `progress` gets the number of events moved. Raises JournalError if the time is invalid, the disk fails, or
    the events do not form a chain.
    """
    until = instant(before, "before") or ""
    made: list[segments.Segment] = []
    with closing(connect(journal.path)) as connection:
        done, head = finish_interrupted(journal, connection)
        last = _last_before(connection, done, until)
        keyed = first_remembered(connection, journal.now())
        last = last if keyed is None else min(last, keyed - 1)
        slowest = None if unshipped else shipping.slowest(connection)
        last = last if slowest is None else min(last, slowest.acknowledged)
        moved = 0
        for first in range(done + 1, last + 1, SEGMENT_EVENTS):
            segment = _archive_segment(
                journal, connection, first, min(first + SEGMENT_EVENTS - 1, last), head
            )
            head = bytes.fromhex(segment.head)
            _trim(journal, segment.last_seq)
            made.append(segment)
            moved += segment.events
            progress(moved)
    return made


def waits_for(journal: Journal, before: str) -> str | None:
    """The sink for which events before that time stay in the database; None if they wait for none."""
    until = instant(before, "before") or ""
    with closing(connect(journal.path)) as connection:
        slowest = shipping.slowest(connection)
        if slowest is None:
            return None
        row = connection.execute(
            "SELECT at FROM events WHERE seq > ? AND seq < (SELECT max(seq) FROM events) ORDER BY seq",
            (slowest.acknowledged,),
        ).fetchone()
    return slowest.sink if row is not None and row[0] < until else None


def finish_interrupted(journal: Journal, connection: sqlite3.Connection) -> tuple[int, bytes]:
    """Finish an interrupted run; returns sequence number and hash of the last archived event."""
    segments.remove_leftovers(connection, journal.path, journal.chain)
    (low,) = connection.execute("SELECT coalesce(min(seq), 0) FROM events").fetchone()
    done, head = 0, chain.GENESIS
    for segment in segments.segments(connection, journal.path):
        if segment.last_seq >= low:
            if not segments.is_complete(segment):  # a rebuilt copy, which has its events in the database
                break
            _trim(journal, segment.last_seq)
        done, head = segment.last_seq, bytes.fromhex(segment.head)
    return done, head


def _last_before(connection: sqlite3.Connection, done: int, until: str) -> int:
    """The last event of the unbroken run of events older than `until` that follows the event `done`."""
    (newest,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
    seq = done
    while rows := connection.execute(
        "SELECT seq, at FROM events WHERE seq > ? AND seq < ? ORDER BY seq LIMIT 5000", (seq, newest)
    ).fetchall():
        for number, at in rows:
            if at >= until:
                return seq
            seq = int(number)
    return seq


def _archive_segment(
    journal: Journal, connection: sqlite3.Connection, first: int, last: int, head: bytes
) -> segments.Segment:
    """Write events `first` to `last` to a segment, then record that. `head` is the hash before `first`."""
    path = segments.directory(journal.path) / segments.file_name(journal.chain, first, last)
    end = segments.write_segment(
        path, _checked(segments.live_events(connection, first, last), first, last, head)
    )
    body: dict[str, Json] = {
        "file": path.name,
        "first_seq": first,
        "last_seq": last,
        "events": last - first + 1,
        "head": end.hash.hex(),
        "chain": journal.chain,
    }
    commit(journal, Event(kind="archived", subject_id=path.name, at=time.time(), body=body))
    return segments.Segment(
        path=path, first_seq=first, last_seq=last, events=last - first + 1, head=end.hash.hex()
    )


def _checked(events: StoredEvents, first: int, last: int, head: bytes) -> StoredEvents:
    """The events `first` to `last`. Raises JournalError where they do not continue the chain from `head`."""
    cure = "run `thorpolicy log verify`"
    for row, part in events:
        if row.seq != first:
            raise JournalError(f"event {first} is missing; {cure}")
        if row.prev_hash != head or chain.hash_of(row.prev_hash, *row[:8]) != row.hash:
            raise JournalError(f"event {row.seq} does not match its hash; {cure}")
        first, head = row.seq + 1, row.hash
        yield row, part
    if first != last + 1:
        raise JournalError(f"event {first} is missing; {cure}")


def _trim(journal: Journal, last: int) -> None:
    """Delete archived events from the database, in steps."""

    def step(connection: sqlite3.Connection) -> int:
        with transaction(connection):
            (first,) = connection.execute("SELECT min(seq) FROM events").fetchone()
            until = min((first or last) + STEP - 1, last)
            connection.execute("DELETE FROM private WHERE seq <= ?", (until,))
            return connection.execute("DELETE FROM events WHERE seq <= ?", (until,)).rowcount

    while result_of(journal.run(step)):
        pass
