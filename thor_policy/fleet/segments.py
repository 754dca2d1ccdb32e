"""Sealed JSONL segments: a directory from which any other shipper takes complete files.

Owns the files of a sink's directory. Invariant: a file without the suffix `.tmp` is complete, on disk, never
changed, and follows the one sealed before it; it may be moved away at any time. Where to go on is in a file
`.CHAIN.position`, which is on disk before a segment gets its name. So each event is in exactly one segment,
whatever crashes. The shipper's thread; `read_segment` any.

A segment has a first line (`format`, `device`, `journal`, `first_seq`, `prev_hash`), a line for each event
as in an archive (`journal.segments`), and a last line (`events`, `last_seq`, `head`, `left`,
`checkpoints`). `left` is what `erased` events of the segment left of earlier private parts: a reader
applies it, and deletes the other parts that these events name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from thor_policy.core.requests import Json
from thor_policy.fleet.batches import Batch, Left, Stored
from thor_policy.fleet.shipper import Forked, Position, SinkError
from thor_policy.journal import chain
from thor_policy.journal.checkpoints import Checkpoint
from thor_policy.journal.segments import MAX_LINE_BYTES, decode_line, encode_line
from thor_policy.security import files

#: The form of the files.
FORMAT = "thor-policy segment 1"

_encode = msgspec.json.Encoder().encode


class Limits(Struct, frozen=True, kw_only=True):
    """When a segment is sealed: events, bytes, and seconds since its first event was written."""

    events: int = 10_000
    size: int = 64 * 2**20
    seconds: float = 60.0


class First(Struct, frozen=True, kw_only=True):
    """The first line of a segment. `journal` is the hash of event 1, in hex."""

    format: str
    device: str
    journal: str
    first_seq: int
    prev_hash: str


class LeftLine(Struct, frozen=True, kw_only=True):
    """What an erasure left of the private part of event `seq`."""

    seq: int
    salt: str
    value: str


class Last(Struct, frozen=True, kw_only=True):
    """The last line of a segment: how many events it has, the last of them with its hash."""

    events: int
    last_seq: int
    head: str
    left: list[LeftLine] = []
    checkpoints: list[Checkpoint] = []


class _Sealed(Struct, frozen=True, kw_only=True):
    """The content of a position file: the newest segment, and where it ends."""

    file: str
    seq: int
    head: str


class SegmentSink:
    """Writes to `directory`, which is made if it is missing. `clock` gives monotonic seconds."""

    name = "segments"
    keeps_rows = False

    def __init__(self, directory: Path, limits: Limits | None = None, *, clock: Callable[[], float]) -> None:
        self._directory, self._limits, self._clock = directory, limits or Limits(), clock
        self._open: _Open | None = None
        self._checkpoints: list[Checkpoint] = []
        self._sealed = Position(seq=0, head=chain.GENESIS)

    def position(self, device: str, journal: bytes) -> Position:
        self.close()
        self._checkpoints = []
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o750)
            files.check_directory(self._directory)
            self._sealed = self._finish(journal)
        except (OSError, ValueError) as error:
            raise SinkError(f"the directory {self._directory} {files.reason(error)}") from error
        return self._sealed

    def write(self, batch: Batch) -> Position:
        try:
            if self._open is None:
                self._open = _Open(self._directory, batch, self._clock())
            self._open.add(batch)
            if self._is_due(self._open):
                return self._seal(self._open)
            return self._open.end(self._sealed.seq)
        except OSError as error:
            raise SinkError(f"a segment in {self._directory} cannot be written: {error.strerror}") from error

    def keep(self, device: str, checkpoint: Checkpoint) -> None:
        self._checkpoints.append(checkpoint)

    def report(self, device: str, journal: bytes, kind: str, seq: int, got: bytes | None) -> None:
        """Nobody reads a report here: the shipper's log and the daemon's alert say it."""

    def idle(self) -> Position | None:
        if self._open is None or not self._is_due(self._open):
            return None
        try:
            return self._seal(self._open)
        except OSError as error:
            raise SinkError(f"a segment in {self._directory} cannot be written: {error.strerror}") from error

    def flush(self) -> Position | None:
        """Seal what is written so far, before an end that is foreseen; None if there is nothing."""
        return None if self._open is None else self._seal(self._open)

    def close(self) -> None:
        if self._open is not None:
            self._open.abandon()
            self._open = None

    def _is_due(self, segment: _Open) -> bool:
        limits = self._limits
        return (
            segment.events >= limits.events
            or segment.size >= limits.size
            or self._clock() - segment.since >= limits.seconds
        )

    def _seal(self, segment: _Open) -> Position:
        """Complete the open segment; its name appears last. Raises OSError."""
        self._open = None
        name = segment.complete(self._checkpoints)
        sealed = _Sealed(file=name, seq=segment.last.seq, head=segment.last.hash.hex())
        files.place(self._position_file(segment.journal), _encode(sealed), 0o640, over=True)
        files.rename(segment.path, self._directory / name)
        self._sealed, self._checkpoints = Position(seq=sealed.seq, head=segment.last.hash), []
        return self._sealed

    def _position_file(self, journal: bytes) -> Path:
        return self._directory / f".{journal.hex()[:16]}.position"

    def _finish(self, journal: bytes) -> Position:
        """Finish what a crash interrupted; where the sealed segments end. Raises OSError, ValueError."""
        path = self._position_file(journal)
        try:
            sealed = msgspec.json.decode(files.read_own(path), type=_Sealed)
        except FileNotFoundError:
            sealed = None
        for left in self._directory.glob(f"*-{journal.hex()[:16]}-*.jsonl.tmp"):
            if sealed is not None and left.name == f"{sealed.file}.tmp":
                files.rename(left, self._directory / sealed.file)
            else:
                left.unlink()
        if sealed is None:
            return Position(seq=0, head=chain.GENESIS)
        return Position(seq=sealed.seq, head=bytes.fromhex(sealed.head), acknowledged=sealed.seq)


class _Open:
    """A segment that is being written: a file with the suffix `.tmp`."""

    def __init__(self, directory: Path, batch: Batch, since: float) -> None:
        first = batch.events[0][0]
        self.journal, self.since = batch.journal, since
        self.events = self.size = 0
        self.last = first
        self._left: list[LeftLine] = []
        self._begin = f"{batch.device}-{batch.journal.hex()[:16]}-{first.seq:012d}"
        self.path = directory / f"{self._begin}.jsonl.tmp"
        self.path.unlink(missing_ok=True)
        self._file: BinaryIO = os.fdopen(
            files.open_own(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "wb"
        )
        line = First(
            format=FORMAT,
            device=batch.device,
            journal=batch.journal.hex(),
            first_seq=first.seq,
            prev_hash=first.prev_hash.hex(),
        )
        self._file.write(_encode(line) + b"\n")

    def add(self, batch: Batch) -> None:
        """Write the events of a batch."""
        for row, part in batch.events:
            line = encode_line(row, part)
            self._file.write(line)
            self.size += len(line)
        self._left += map(_left_line, batch.left)
        self.events += len(batch.events)
        self.last = batch.last

    def end(self, acknowledged: int) -> Position:
        """Where the segment ends now; only what was sealed before counts as acknowledged."""
        return Position(seq=self.last.seq, head=self.last.hash, acknowledged=acknowledged)

    def complete(self, checkpoints: list[Checkpoint]) -> str:
        """Write the last line, have it all on disk, and give the file's final name; it is renamed later."""
        last = Last(
            events=self.events,
            last_seq=self.last.seq,
            head=self.last.hash.hex(),
            left=self._left,
            checkpoints=checkpoints,
        )
        self._file.write(_encode(last) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        name = f"{self._begin}-{self.last.seq:012d}.jsonl"
        renamed = self.path.with_name(f"{name}.tmp")
        files.rename(self.path, renamed)
        self.path = renamed
        return name

    def abandon(self) -> None:
        """Leave the file; the next start deletes it."""
        self._file.close()


def _left_line(left: Left) -> LeftLine:
    return LeftLine(seq=left.seq, salt=left.salt.hex(), value=left.value.decode())


# ---------------------------------------------------------------- reading


class Segment(Struct, frozen=True, kw_only=True):
    """A segment that was read to its end, and whose chain is whole."""

    path: Path
    first: First
    last: Last


def read_segment(path: Path, take: Callable[[Stored], None] = lambda _: None) -> Segment:
    """Read and check a segment; `take` gets each event. Raises Forked naming what is wrong."""
    try:
        with path.open("rb") as file:
            lines = _lines(file)
            first = msgspec.json.decode(next(lines, b""), type=First)
            if first.format != FORMAT:
                raise ValueError(f"has the format {first.format!r}, not {FORMAT!r}")
            seq, head, raw = first.first_seq - 1, bytes.fromhex(first.prev_hash), next(lines, b"")
            for following in lines:
                row, part = decode_line(raw)
                if row.seq != seq + 1 or row.prev_hash != head:
                    raise ValueError(f"lacks event {seq + 1}")
                if chain.hash_of(row.prev_hash, *row[:8]) != row.hash:
                    raise ValueError(f"has event {row.seq}, which does not match its hash")
                if part is not None and chain.sealed_digest(*part) != row.private_digest:
                    raise ValueError(f"has a private part of event {row.seq} that does not match its digest")
                take((row, part))
                seq, head, raw = row.seq, row.hash, following
            last = msgspec.json.decode(raw, type=Last)
            if (last.last_seq, last.head, last.events) != (seq, head.hex(), seq - first.first_seq + 1):
                raise ValueError("does not end as its last line says")
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise Forked(f"{path} {files.reason(error) if isinstance(error, OSError) else error}") from error
    return Segment(path=path, first=first, last=last)


def check_segments(directory: Path) -> list[dict[str, Json]]:
    """Check the segments in a directory, and that those of each journal follow each other.

    Returns a row for each journal: `device`, `journal`, `files`, `events`, `first_seq`, `last_seq`, `problem`
    (None: none).
    """
    rows: dict[tuple[str, str], dict[str, Json]] = {}
    for path in sorted(directory.glob("*.jsonl")):
        try:
            segment = read_segment(path)
        except Forked as error:
            rows[(path.name, "")] = {"device": None, "journal": None, "files": 1, "problem": str(error)}
            continue
        first, last = segment.first, segment.last
        key = (first.device, first.journal)
        row = rows.setdefault(
            key,
            {
                "device": first.device,
                "journal": first.journal,
                "files": 0,
                "events": 0,
                "first_seq": first.first_seq,
                "last_seq": first.first_seq - 1,
                "head": first.prev_hash,
                "problem": None,
            },
        )
        if (first.first_seq, first.prev_hash) != (row["last_seq"] + 1, row["head"]):
            row["problem"] = row["problem"] or f"{path.name} does not follow event {row['last_seq']}"
        row |= {
            "files": row["files"] + 1,
            "events": row["events"] + last.events,
            "last_seq": last.last_seq,
            "head": last.head,
        }
    return list(rows.values())


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES):
        if not line.endswith(b"\n"):
            raise ValueError(f"has a line that is incomplete, or longer than {MAX_LINE_BYTES} bytes")
        yield line
