"""Batches: events of a journal with what a sink needs beside them.

Owns the reading of the next batch, the check of its chain, and the rows that a store keeps of it.
Invariant: a private part goes with its event only if it has the digest that is on the chain, so an event
that was erased before it was shipped goes without; what an erasure left goes with the `erased` event that
states its digest. A batch is bounded in events and bytes, and read in short transactions, so the journal's
log never waits for a sink. The shipper's thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Json
from thor_policy.journal import chain, events, projections, shipping
from thor_policy.journal.checkpoints import Checkpoint, read_directory
from thor_policy.journal.reader import Reader
from thor_policy.journal.segments import Part

#: Most events of a batch, and most bytes of their texts, unless one event has more.
BATCH_EVENTS, BATCH_BYTES = 1_000, 4 * 2**20

#: The tables whose rows a store keeps.
TABLES = frozenset({"decisions", "reviews", "outcomes", "approvals", "trace_states", "edges"})

Stored = tuple[chain.Row, Part | None]


class Left(Struct, frozen=True, kw_only=True):
    """What an erasure left of the private part of event `seq`, and the row that follows from it."""

    seq: int
    salt: bytes
    value: bytes
    row: dict[str, Json]


class Batch(Struct, frozen=True, kw_only=True):
    """Events in order, each with its private part; and of each `erased` event among them what it left.

    `rows` are those of `rows_of`, and `lacks` what traces lack now; empty for a sink that keeps none. The
    values of JSON columns are `msgspec.Raw`, where nothing in them has to be changed.
    """

    device: str
    journal: bytes
    events: list[Stored]
    left: list[Left]
    rows: dict[str, list[dict[str, Any]]]

    @property
    def last(self) -> chain.Row:
        """The last event."""
        return self.events[-1][0]


class JournalSource:
    """The journal at `path`, as a shipper of `device` reads it. Raises JournalError.

    `checkpoint_dir` has the signed checkpoints.
    """

    def __init__(self, path: Path, device: str, checkpoint_dir: Path) -> None:
        self.device = device
        self._path = path
        self._checkpoint_dir = checkpoint_dir
        self._reader = Reader(path)
        if not self._reader.is_current():
            self._reader.close()
            raise JournalError(
                f"an earlier version wrote {path}; start the daemon, or run `thorpolicy stats`, once"
            )

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()

    def chain(self) -> bytes | None:
        """The hash of event 1, which names the journal; None before the first event."""
        with self._reader.snapshot() as connection:
            return shipping.chain_name(connection)

    def newest(self) -> int:
        """The number of the newest event."""
        with self._reader.snapshot() as connection:
            return shipping.newest(connection)

    def hash_at(self, seq: int) -> bytes | None:
        """The hash of an event; GENESIS for 0, None if the journal has no such event."""
        if seq == 0:
            return chain.GENESIS
        with self._reader.snapshot() as connection:
            return shipping.stored_hash(connection, self._path, seq)

    def batch(
        self,
        seq: int,
        head: bytes,
        *,
        most: int = BATCH_EVENTS,
        size: int = BATCH_BYTES,
        with_rows: bool = True,
    ) -> Batch | None:
        """The events after `seq`, whose hash is `head`; None if there are none.

        Raises JournalError where they do not continue the chain.
        """
        with self._reader.snapshot() as connection:
            name = shipping.chain_name(connection)
            stored = shipping.after(connection, self._path, seq, events=most, size=size)
            if not stored or name is None:
                return None
            stored = _until_erased(stored)
            _check(stored, seq, head)
            named = _erased(stored)
            left = [
                _left_of(row, part)
                for row, part in shipping.private_parts(connection, self._path, list(named))
                if part is not None and chain.sealed_digest(*part).hex() == named[row.seq]
            ]
            traces = shipping.incomplete(connection, [row for row, _ in stored]) if with_rows else {}
            lacking = [
                {"decision_id": _without_nul(decision_id)} | ({} if lacks is None else {"lacks": lacks})
                for decision_id, lacks in traces.items()
            ]
        kept = [(row, part if _is_sealed(row, part) else None) for row, part in stored]
        return Batch(
            device=self.device,
            journal=name,
            events=kept,
            left=left,
            rows=rows_of(kept, raw=True) | {"lacks": lacking} if with_rows else {},
        )

    def checkpoints(self, after: int, upto: int) -> list[Checkpoint]:
        """The checkpoints of this journal that sign an event after `after` and up to `upto`, in order."""
        name = self.chain()
        if name is None or after >= upto:
            return []
        stored = read_directory(self._checkpoint_dir).checkpoints
        return [each for each in stored if each.chain == name.hex() and after < each.seq <= upto]


def _check(stored: Iterable[Stored], seq: int, head: bytes) -> None:
    for row, _ in stored:
        if row.seq != seq + 1:
            raise JournalError(f"event {seq + 1} is missing; run `thorpolicy log verify`")
        if row.prev_hash != head or chain.hash_of(row.prev_hash, *row[:8]) != row.hash:
            raise JournalError(f"event {row.seq} does not match its hash; run `thorpolicy log verify`")
        seq, head = row.seq, row.hash


def _is_sealed(row: chain.Row, part: Part | None) -> bool:
    return part is not None and chain.sealed_digest(*part) == row.private_digest


def _until_erased(stored: list[Stored]) -> list[Stored]:
    """The events up to the first `erased` event, which ends a batch: what it left is bounded then, too."""
    ends = (number for number, (row, _) in enumerate(stored, 1) if row.kind == b"erased")
    return stored[: next(ends, len(stored))]


def _erased(stored: list[Stored]) -> dict[int, str]:
    """The parts that the last event names and of which something is left, each with its digest."""
    row = stored[-1][0]
    if row.kind != b"erased":
        return {}
    parts: dict[str, str] = msgspec.json.decode(row.body).get("parts", {})
    return {int(seq): digest for seq, digest in parts.items() if digest}


def _left_of(row: chain.Row, part: Part) -> Left:
    rows = rows_of([(row, part)])
    (columns,) = rows.get("decisions", [{}])
    return Left(seq=row.seq, salt=part[0], value=part[1], row=columns)


# ---------------------------------------------------------------- rows


def rows_of(stored: Iterable[Stored], *, raw: bool = False) -> dict[str, list[dict[str, Any]]]:
    """The rows of the tables that a store keeps, and under `changes` what events change in decisions.

    `raw`: a value of a JSON column is its text (`msgspec.Raw`), unless there is a NUL in the event.
    Raises JournalError for an event that cannot be read.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for row, part in stored:
        table, values, changes = _projection(row, part)
        plain = _as_text if raw and not _may_have_nul(row, part) else _plain
        if table in TABLES:
            columns = zip(projections.columns_of(table), values, strict=True)
            rows.setdefault(table, []).append(plain(columns))
        if changes is not None:
            group = projections.GROUP_OF[row.kind.decode()]
            changed = plain(zip(projections.GROUPS[group], changes, strict=True))
            rows.setdefault("changes", []).append(
                changed | {group: row.seq, "decision_id": _without_nul(row.subject_id.decode())}
            )
    return rows


def _projection(row: chain.Row, part: Part | None) -> tuple[str, tuple[Any, ...], tuple[Any, ...] | None]:
    kind = row.kind.decode()
    try:
        body, private = projections.read(kind, row.body, part and part[1])
        table, values, changes = projections.project(
            kind, row.seq, row.at.decode(), row.subject_id.decode(), body, private
        )
    except (msgspec.MsgspecError, ValueError, KeyError) as error:
        raise JournalError(f"event {row.seq} cannot be read: {error}") from error
    return table or "", values, changes


def _may_have_nul(row: chain.Row, part: Part | None) -> bool:
    """True if a text of the event may have a NUL: in JSON it can only be written as this escape."""
    return (
        b"\\u0000" in row.body
        or (part is not None and b"\\u0000" in part[1])
        or b"\0" in row.subject_id
        or b"\0" in row.at
    )


def _as_text(columns: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A row whose JSON columns are not decoded."""
    return {
        name: msgspec.Raw(value) if name in projections.JSON_COLUMNS else value
        for name, value in columns
        if value is not None
    }


def _plain(columns: Iterable[tuple[str, Any]]) -> dict[str, Json]:
    """A row as JSON values, without NUL, which PostgreSQL's text cannot have."""
    return {
        name: _without_nul(events.decode(value) if name in projections.JSON_COLUMNS else value)
        for name, value in columns
        if value is not None
    }


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd") if "\0" in value else value
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    return value
