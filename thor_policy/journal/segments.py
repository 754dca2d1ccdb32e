"""Archives: old events in compressed segment files, which continue the same chain as the database.

Owns the segment files (`archive/` beside the journal). Invariant: a segment is complete or absent, and events
leave the database only after their segment is on disk and an `archived` event that names it is committed.
Rows of the tables that people query stay. Any thread but the engine's; nothing here writes to the database.

A segment is a gzip file with one JSON object on each line: the columns of an event (hashes in hex), and
`salt` and `private` if the event still has a private part.
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
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Json
from thor_policy.journal import chain
from thor_policy.journal.storage import EVENT_COLUMNS
from thor_policy.security import files

#: Most events in one segment.
SEGMENT_EVENTS = 50_000
#: Most bytes of one line.
MAX_LINE_BYTES = 64 * 2**20

#: What SQLite and the chain can hold.
_Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
#: A private part: salt and value.
Part = tuple[bytes, bytes]


class Segment(Struct, frozen=True, kw_only=True):
    """One archive file, as its `archived` event describes it. `head` is the hash of its last event."""

    path: Path
    first_seq: int
    last_seq: int
    events: int
    head: str


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event in a segment."""

    seq: _Number
    at: str
    boot_id: str
    mono_ns: _Number
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
    """The directory of a journal's segments."""
    return journal.parent / "archive"


def file_name(chain_name: str, first: int, last: int) -> str:
    """The name of a segment. It contains the chain, so a new journal overwrites no file of an old one."""
    return f"{chain_name[:16]}-{first:012d}-{last:012d}.jsonl.gz"


def segments(connection: sqlite3.Connection, journal: Path) -> list[Segment]:
    """The segments of a journal, oldest first. If two have the same event, only the newer one is listed."""
    rows = connection.execute(
        "SELECT file, first_seq, last_seq, events, head FROM archives ORDER BY seq DESC"
    ).fetchall()
    listed: list[Segment] = []
    for file, first, last, count, head in rows:
        if all(last < segment.first_seq or segment.last_seq < first for segment in listed):
            path = directory(journal) / Path(file).name
            listed.append(Segment(path=path, first_seq=first, last_seq=last, events=count, head=head))
    return sorted(listed, key=lambda segment: segment.first_seq)


def is_complete(segment: Segment) -> bool:
    """True if the file exists and ends with the event that `segment` names."""
    end = _end_of(segment.path)
    return end is not None and (end.seq, end.hash.hex()) == (segment.last_seq, segment.head)


@contextmanager
def decompressed(path: Path) -> Iterator[Iterator[bytes]]:
    """The uncompressed bytes of a segment, in blocks. Raises OSError or ValueError while it is read."""
    with _opened(path) as file:
        yield iter(lambda: file.read(2**22), b"")


@contextmanager
def reading(path: Path) -> Iterator[Iterator[tuple[chain.Row, Part | None]]]:
    """The events of a segment with their private parts. Raises OSError or ValueError while it is read."""
    with _opened(path) as file:
        yield (decode_line(line) for line in _bounded_lines(file))


@contextmanager
def _opened(path: Path) -> Iterator[gzip.GzipFile]:
    descriptor = files.open_own(path, os.O_RDONLY, owners=files.owners_beside(path))
    try:
        with os.fdopen(descriptor, "rb") as raw, gzip.GzipFile(fileobj=raw, mode="rb") as file:
            yield file
    except (EOFError, zlib.error) as error:
        raise ValueError(f"the file is damaged: {error}") from error


def _bounded_lines(file: Any) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES):
        if not line.endswith(b"\n"):
            raise ValueError(f"a line is incomplete, or longer than {MAX_LINE_BYTES} bytes")
        yield line


def decode_line(raw: bytes) -> tuple[chain.Row, Part | None]:
    """The event of a line, with its private part. Raises ValueError."""
    try:
        line = _lines.decode(raw)
    except RecursionError as error:
        raise ValueError("a line is nested too deep") from error
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


def encode_line(row: chain.Row, part: Part | None) -> bytes:
    """An event as a line, its newline included."""
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


def write_segment(path: Path, events: Iterable[tuple[chain.Row, Part | None]]) -> chain.Row:
    """Write a segment, completely or not at all; returns its last event. Raises JournalError."""
    unfinished = path.with_name(f".{path.name}.new")
    last: chain.Row | None = None
    try:
        path.parent.mkdir(mode=0o750, exist_ok=True)
        files.check_directory(path.parent)
        unfinished.unlink(missing_ok=True)
        with os.fdopen(files.open_own(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "wb") as raw:
            os.fchmod(raw.fileno(), 0o640)
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
                for row, part in events:
                    file.write(encode_line(row, part))
                    last = row
            raw.flush()
            os.fsync(raw.fileno())
        if last is None:
            raise JournalError("there is nothing to archive")
        files.rename(unfinished, path)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise JournalError(f"the archive {path} cannot be written: {error.strerror or error}") from error
        if isinstance(error, ValueError):
            raise JournalError(f"the folder {path.parent} {error}") from error
        raise
    return last


def live_events(
    connection: sqlite3.Connection, first: int, last: int, *, page: int = 2_000
) -> Iterator[tuple[chain.Row, Part | None]]:
    """Events of the database with their private parts, in pages; each page is read in its own transaction."""
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
    for segment in segments(connection, journal):
        if segment.first_seq < low:
            with reading(segment.path) as stored:
                yield from stored
            seq = segment.last_seq
    (high,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
    yield from live_events(connection, seq + 1, high)


def find_event(
    connection: sqlite3.Connection, journal: Path, seq: int
) -> tuple[chain.Row, Part | None] | None:
    """An archived event; None if no segment has it. Reads the segment up to the event."""
    for segment in segments(connection, journal):
        if segment.first_seq <= seq <= segment.last_seq:
            with reading(segment.path) as stored:
                return next((event for event in stored if event[0].seq == seq), None)
    return None


def remove_leftovers(connection: sqlite3.Connection, journal: Path, chain_name: str) -> None:
    """Delete the files of this chain that an interrupted archive or erasure left.

    These are unfinished files, and complete ones that no event names and whose events are all in the
    database. Any other file stays, because it may be the only copy of its events.
    """
    if not chain_name:
        return
    named = {segment.path for segment in segments(connection, journal)}
    for path in directory(journal).glob(f"*{chain_name[:16]}-*"):
        unfinished = path.name.startswith(".") and path.name.endswith(".new")
        if unfinished or (path not in named and path.suffix == ".gz" and _is_live(connection, path)):
            path.unlink(missing_ok=True)


def _is_live(connection: sqlite3.Connection, path: Path) -> bool:
    """True if the database has the last event of a segment, and so, by the chain, all of its events."""
    end = _end_of(path)
    if end is None:
        return False
    row = connection.execute("SELECT hash FROM events WHERE seq = ?", (end.seq,)).fetchone()
    return row is not None and bytes(row[0]) == end.hash


def _end_of(path: Path) -> chain.Row | None:
    """The last event of a segment; None if it cannot be read to its end."""
    try:
        with reading(path) as lines:
            end = deque(lines, maxlen=1)
    except (OSError, ValueError):
        return None
    return end[0][0] if end else None


def body_of(connection: sqlite3.Connection, journal: Path, seq: int, *, kind: str) -> dict[str, Json] | None:
    """The body of event `seq`, from the database or an archive; None if it has another kind or is missing."""
    row = connection.execute("SELECT body FROM events WHERE seq = ? AND kind = ?", (seq, kind)).fetchone()
    if row is not None:
        live: dict[str, Json] = msgspec.json.decode(row[0])
        return live
    event = find_event(connection, journal, seq)
    if event is None or event[0].kind != kind.encode():
        return None
    archived: dict[str, Json] = msgspec.json.decode(event[0].body)
    return archived
