"""Archives: old events in compressed files, still one chain with what is in the database.

Owns the segment files (`archive/` beside the journal). Invariant: a segment is whole or not there; events
leave the database only after the segment that holds them is on disk and an `archived` event that names it
is committed. Rows of the tables people query stay. Any thread but the engine's; what changes the database
runs on the journal's thread.

A segment is a gzip file with one JSON object a line: the columns of an event (hashes in hex), and `salt`
and `private` where a private part is left.
"""

from __future__ import annotations

import gzip
import os
import sqlite3
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Json
from thor_policy.journal import chain
from thor_policy.journal.storage import EVENT_COLUMNS
from thor_policy.security import files

#: Events in one segment.
SEGMENT_EVENTS = 50_000
#: Most bytes of one line.
MAX_LINE_BYTES = 64 * 2**20

#: A private part: salt and value.
Part = tuple[bytes, bytes]


class Segment(Struct, frozen=True, kw_only=True):
    """One archive file, as its `archived` event tells of it; `head` is the hash of its last event."""

    path: Path
    first_seq: int
    last_seq: int
    events: int
    head: str


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event in a segment."""

    seq: int
    at: str
    boot_id: str
    mono_ns: int
    kind: str
    subject_id: str
    body: str
    private_digest: str
    prev_hash: str
    hash: str
    salt: str | None = None
    private: str | None = None


_lines = msgspec.json.Decoder(Line)
_encode = msgspec.json.Encoder().encode


def directory(journal: Path) -> Path:
    """Where the segments of a journal lie."""
    return journal.parent / "archive"


def file_name(chain_name: str, first: int, last: int) -> str:
    """The name of a segment of that chain: a journal that begins anew here writes over no other's files."""
    return f"{chain_name[:16]}-{first:012d}-{last:012d}.jsonl.gz"


def segments(connection: sqlite3.Connection, journal: Path) -> list[Segment]:
    """The archives of a journal, oldest first; where two hold the same event, the one made last."""
    rows = connection.execute(
        "SELECT file, first_seq, last_seq, events, head FROM archives ORDER BY seq DESC"
    ).fetchall()
    found: list[Segment] = []
    for file, first, last, count, head in rows:
        if all(last < one.first_seq or one.last_seq < first for one in found):
            path = directory(journal) / Path(file).name
            found.append(Segment(path=path, first_seq=first, last_seq=last, events=count, head=head))
    return sorted(found, key=lambda one: one.first_seq)


def is_there(segment: Segment) -> bool:
    """True if the file is there, and ends as it was told."""
    end = _end_of(segment.path)
    return end is not None and (end.seq, end.hash.hex()) == (segment.last_seq, segment.head)


@contextmanager
def unpacked(path: Path) -> Iterator[Iterator[bytes]]:
    """The bytes of a segment, some at a time."""
    with gzip.open(path, "rb") as file:
        yield iter(lambda: file.read(2**22), b"")


@contextmanager
def reading(path: Path) -> Iterator[Iterator[tuple[chain.Row, Part | None]]]:
    """The events of a segment with their private parts. Raises OSError, ValueError while it is read."""
    with gzip.open(path, "rb") as file:
        yield (_of_line(line) for line in _bounded(file))


def _bounded(file: Any) -> Iterator[bytes]:
    try:
        while line := file.readline(MAX_LINE_BYTES):
            if not line.endswith(b"\n"):
                raise ValueError("a line does not end")
            yield line
    except (EOFError, zlib.error) as error:
        raise ValueError(f"the file is damaged: {error}") from error


def _of_line(raw: bytes) -> tuple[chain.Row, Part | None]:
    line = _lines.decode(raw)
    part = None
    if line.private is not None:
        part = bytes.fromhex(line.salt or ""), line.private.encode()
    return (
        chain.Row(
            line.seq,
            line.at.encode(),
            line.boot_id.encode(),
            line.mono_ns,
            line.kind.encode(),
            line.subject_id.encode(),
            line.body.encode(),
            bytes.fromhex(line.private_digest),
            bytes.fromhex(line.prev_hash),
            bytes.fromhex(line.hash),
        ),
        part,
    )


def _to_line(row: chain.Row, part: Part | None) -> bytes:
    return (
        _encode(
            Line(
                seq=row.seq,
                at=row.at.decode(),
                boot_id=row.boot_id.decode(),
                mono_ns=row.mono_ns,
                kind=row.kind.decode(),
                subject_id=row.subject_id.decode(),
                body=row.body.decode(),
                private_digest=row.private_digest.hex(),
                prev_hash=row.prev_hash.hex(),
                hash=row.hash.hex(),
                salt=part[0].hex() if part else None,
                private=part[1].decode() if part else None,
            )
        )
        + b"\n"
    )


def write_segment(path: Path, found: Iterable[tuple[chain.Row, Part | None]]) -> chain.Row:
    """Write a segment, whole or not at all; returns its last event. Raises JournalError."""
    half = path.with_name(f".{path.name}.new")
    last: chain.Row | None = None
    try:
        path.parent.mkdir(mode=0o750, exist_ok=True)
        with half.open("wb") as raw:
            os.fchmod(raw.fileno(), 0o640)
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
                for row, part in found:
                    file.write(_to_line(row, part))
                    last = row
            raw.flush()
            os.fsync(raw.fileno())
        if last is None:
            raise JournalError("there is nothing to archive")
        files.rename(half, path)
    except BaseException as error:
        with suppress(OSError):
            half.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise JournalError(f"the archive {path} cannot be written: {error.strerror or error}") from error
        raise
    return last


def live_events(
    connection: sqlite3.Connection, first: int, last: int, *, page: int = 2_000
) -> Iterator[tuple[chain.Row, Part | None]]:
    """Events of the database with their private parts, a page to a transaction."""
    columns = ", ".join(f"e.{name.strip()}" for name in EVENT_COLUMNS.split(","))
    while first <= last:
        connection.text_factory = bytes
        rows = connection.execute(
            f"SELECT {columns}, p.salt, p.value FROM events e LEFT JOIN private p ON p.seq = e.seq "
            "WHERE e.seq BETWEEN ? AND ? ORDER BY e.seq",
            (first, min(first + page - 1, last)),
        ).fetchall()
        connection.text_factory = str
        if not rows:
            return
        for row in rows:
            yield chain.Row._make(row[:10]), None if row[10] is None else (row[10], row[11])
        first = rows[-1][0] + 1


def all_events(connection: sqlite3.Connection, journal: Path) -> Iterator[tuple[chain.Row, Part | None]]:
    """Every event with its private part, archived ones first."""
    (low,) = connection.execute("SELECT coalesce(min(seq), 0) FROM events").fetchone()
    seq = 0
    for one in segments(connection, journal):
        if one.first_seq < low:
            with reading(one.path) as lines:
                yield from lines
            seq = one.last_seq
    (high,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
    yield from live_events(connection, seq + 1, high)


def event(connection: sqlite3.Connection, journal: Path, seq: int) -> tuple[chain.Row, Part | None] | None:
    """An archived event; None if no segment has it. Reads its segment up to it."""
    for one in segments(connection, journal):
        if one.first_seq <= seq <= one.last_seq:
            with reading(one.path) as lines:
                return next((found for found in lines if found[0].seq == seq), None)
    return None


def sweep(connection: sqlite3.Connection, journal: Path, chain_name: str) -> None:
    """Take away what an archive or an erasure that was cut off left of this chain.

    That is half a file, and a whole one that no event names and whose events are all in the database. Any
    other file stays: it may be all there is of what it holds.
    """
    if not chain_name:
        return
    named = {one.path for one in segments(connection, journal)}
    for path in directory(journal).glob(f"*{chain_name[:16]}-*"):
        half = path.name.startswith(".") and path.name.endswith(".new")
        if half or (path not in named and path.suffix == ".gz" and _is_live(connection, path)):
            path.unlink(missing_ok=True)


def _is_live(connection: sqlite3.Connection, path: Path) -> bool:
    """True if the database has the last event of a segment, and so all of them: it is one chain."""
    end = _end_of(path)
    if end is None:
        return False
    found = connection.execute("SELECT hash FROM events WHERE seq = ?", (end.seq,)).fetchone()
    return found is not None and bytes(found[0]) == end.hash


def _end_of(path: Path) -> chain.Row | None:
    """The last event of a segment; None if it cannot be read to its end."""
    try:
        with reading(path) as lines:
            end = deque(lines, maxlen=1)
    except (OSError, ValueError):
        return None
    return end[0][0] if end else None


def body_of(connection: sqlite3.Connection, journal: Path, seq: int, *, kind: str) -> dict[str, Json] | None:
    """The body of an event of that kind, wherever it lies; None if there is none."""
    row = connection.execute("SELECT body FROM events WHERE seq = ? AND kind = ?", (seq, kind)).fetchone()
    if row is not None:
        live: dict[str, Json] = msgspec.json.decode(row[0])
        return live
    found = event(connection, journal, seq)
    if found is None or found[0].kind != kind.encode():
        return None
    archived: dict[str, Json] = msgspec.json.decode(found[0].body)
    return archived
