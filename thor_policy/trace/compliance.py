"""Reports of compliance: who approved each decision of a type, under which policy, and what became of it.

Owns the report, its digest and signature, and their check. Invariant: the digest covers every row and the
statement, which has the scope, the counts and the checkpoint, so no row can be added, changed or left out.
Rows are read page by page, never all at once. Any thread or process, on a reader of its own.

The digest is the sha256 over lines of canonical JSON: UTF-8, members sorted, no blanks. First comes each row,
in the order of the report, then the statement; each line ends with one newline. The signature is Ed25519 over
three lines of ASCII:

    thor-policy compliance 1
    <digest>
    <key>
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from thor_policy.core import strict_json
from thor_policy.core.errors import JournalError
from thor_policy.journal import checkpoints, compliance_queries, events
from thor_policy.journal.compliance_queries import MOST_RECORDS, Scope
from thor_policy.journal.reader import Reader, Record, instant
from thor_policy.journal.trace_queries import Connection
from thor_policy.security import files, signatures
from thor_policy.security.signatures import Digest, Key, KeyId, PublicKeys, Signature

#: First line of what is signed; a new form gets a new number.
HEADING = "thor-policy compliance 1"
#: Candidates that are read in one snapshot.
PAGE = 500
#: Most rows of a report, and most bytes of a report that is checked.
MOST_ROWS, MOST_BYTES = 100_000, 256 * 2**20

Count = Annotated[int, Meta(ge=0)]


class Covering(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The signed checkpoint that covers every row: the journal had the event `seq` with the hash `head`."""

    seq: Annotated[int, Meta(ge=1)]
    head: Digest
    at: str
    key: KeyId


class Statement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a report says of itself.

    `since` (included) and `until` (not included) are recorded times. `chain` and `newest_event` say which
    state of which journal it shows. `rows_until_event` is the newest event that a row shows, `checkpoint`
    covers it. `more`: there are further rows, which a report with `before` has. `left_out` counts decisions
    between the rows: traces that lack something, reports that are claims, questions of tests.
    """

    type: str
    since: str
    until: str
    before: str | None
    made_at: str
    chain: Digest
    newest_event: Count
    rows: Count
    more: bool
    left_out: dict[str, Count]
    rows_until_event: Count
    checkpoint: Covering | None


class Seal(Struct, frozen=True, kw_only=True):
    """Statement and digest of a report, and its signature; without one, `unsigned` says why."""

    statement: Statement
    digest: Digest
    key: KeyId | None = None
    signature: Signature | None = None
    unsigned: str | None = None


class Stored(Seal, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A report as JSON: its rows and what `Seal` has."""

    rows: list[Record]


def months_before(at: float, months: int) -> str:
    """The time so many months of the calendar before `at` (Unix seconds), as RFC 3339.

    The day is the last of its month where that has fewer days. Raises JournalError before the year 1.
    """
    moment = datetime.fromtimestamp(at, UTC)
    year, month = divmod(moment.year * 12 + moment.month - 1 - months, 12)
    if year < 1:
        raise JournalError("months: the time would be before the year 1; give fewer months")
    for day in range(moment.day, 27, -1):
        try:
            return moment.replace(year=year, month=month + 1, day=day).isoformat()
        except ValueError:
            continue
    return moment.replace(year=year, month=month + 1).isoformat()


class Report:
    """One report: iterate over its rows to the end, then `seal` it.

    `scope` is what it is about. `since` and `until` are RFC 3339 times, `now` is Unix seconds. `before` is
    the id of the last row of the page before. Raises JournalError.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        type: str,
        since: str,
        until: str | None,
        now: float,
        limit: int = MOST_ROWS,
        before: str | None = None,
    ) -> None:
        if not 1 <= limit <= MOST_ROWS:
            raise JournalError(f"limit: must be from 1 to {MOST_ROWS:,}")
        self._reader, self._limit, self._before_id = reader, limit, before
        self._made_at = events.timestamp(now)
        with reader.snapshot() as connection:
            chain = compliance_queries.chain_name(connection)
            if chain is None:
                raise JournalError(f"{reader.path} holds no events, so there is nothing to report")
            self._chain = chain
            self.scope = Scope(
                type=type,
                since=instant(since, "since") or "",
                until=instant(until, "until") or self._made_at,
                newest=compliance_queries.newest_event(connection),
            )
            self._before = self.scope.newest + 1
            if before is not None:
                place = compliance_queries.place(connection, before)
                if place is None:
                    raise JournalError(f"before: there is no decision {before[:64]!r}")
                self._before = place
        if self.scope.since >= self.scope.until:
            raise JournalError(
                f"since: {self.scope.since} is not before until, {self.scope.until}; give an earlier time"
            )
        self._hash = hashlib.sha256()
        self._rows = self._newest_shown = 0
        self._more = False
        self._left_out = {"quarantined": 0, "claims": 0, "tests": 0}

    def __iter__(self) -> Iterator[Record]:
        """The rows, newest first."""
        while page := self._page():
            for candidate, row in page:
                if row is None:
                    self._left_out[candidate["left_out"]] += 1
                    continue
                if self._rows == self._limit:
                    self._more = True
                    return
                self._rows += 1
                self._hash.update(_line(row))
                yield row

    def _page(self) -> list[tuple[Record, Record | None]]:
        """The next candidates with their rows; None for one that is left out."""
        wanted = min(PAGE, self._limit - self._rows + 1)
        with self._reader.snapshot() as connection:
            candidates = compliance_queries.page(connection, self.scope, before=self._before, limit=wanted)
            page = [
                (candidate, None if candidate["left_out"] else self._row(connection, candidate))
                for candidate in candidates
            ]
        if page:
            self._before = candidates[-1]["seq"]
        return page

    def _row(self, connection: Connection, decision: Record) -> Record:
        newest = self.scope.newest
        approvals = compliance_queries.approvals(connection, decision, newest)
        states = compliance_queries.states(connection, decision["decision_id"], newest)
        self._newest_shown = max(
            self._newest_shown, decision["seq"], *(record["seq"] for record in (*approvals, *states))
        )
        return {
            "id": decision["decision_id"],
            "seq": decision["seq"],
            "at": decision["timestamp"],
            "made_at": decision["timestamp_decision"] or decision["timestamp"],
            "type": decision["decision_type"],
            "is_exception": bool(decision["is_exception"]),
            "outcome": decision["decision"],
            "lifted": decision["lifted"],
            "actor": decision["actor"],
            "action": decision["action"],
            "entity": decision["entity"],
            "decided_by": decision["tier"],
            "recorded_by": compliance_queries.who(decision),
            "policy": compliance_queries.policy(connection, decision, self._made_at),
            "approvals": [_approval(approval) for approval in approvals[:MOST_RECORDS]],
            "approvals_not_listed": len(approvals[MOST_RECORDS:]),
            "status": states[-1]["status"] if states else "active",
            "states": [_state(state) for state in states[:MOST_RECORDS]],
            "states_not_listed": len(states[MOST_RECORDS:]),
        }

    def seal(self, checkpoint_dir: Path, key_path: Path) -> Seal:
        """Statement, digest and signature of the rows so far.

        The signature is by the checkpoint key at `key_path`, if this user can read it; no key is made. Raises
        JournalError if a checkpoint gives an event another hash than the journal.
        """
        statement = Statement(
            type=self.scope.type,
            since=self.scope.since,
            until=self.scope.until,
            before=self._before_id,
            made_at=self._made_at,
            chain=self._chain,
            newest_event=self.scope.newest,
            rows=self._rows,
            more=self._more,
            left_out=self._left_out,
            rows_until_event=self._newest_shown,
            checkpoint=self._covering(checkpoint_dir),
        )
        content = self._hash.copy()
        content.update(_line(statement))
        digest = content.hexdigest()
        try:
            key = Key.load_existing(key_path)
        except (OSError, ValueError) as error:
            return Seal(
                statement=statement, digest=digest, unsigned=f"the checkpoint key {files.reason(error)}"
            )
        return Seal(
            statement=statement, digest=digest, key=key.key, signature=key.signature(_signed(digest, key.key))
        )

    def _covering(self, directory: Path) -> Covering | None:
        if not self._newest_shown:
            return None
        checkpoint = checkpoints.covering(directory, self._chain, self._newest_shown)
        if checkpoint is None:
            return None
        with self._reader.snapshot() as connection:
            head = compliance_queries.hash_of(connection, checkpoint.seq)
        if head not in (None, checkpoint.head):
            raise JournalError(
                f"the checkpoint of event {checkpoint.seq} in {directory} gives it another hash than the "
                "journal: this is not the journal that was signed; run `thorpolicy log verify`"
            )
        return Covering(seq=checkpoint.seq, head=checkpoint.head, at=checkpoint.at, key=checkpoint.key)


def check(content: bytes, trusted: PublicKeys) -> tuple[Stored, str | None]:
    """A report that was written as JSON, and its problem; None: a trusted key signed exactly this report.

    Raises JournalError if it is no report.
    """
    try:
        stored = strict_json.decode_as(content, Stored)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise JournalError(f"this is no report of `compliance --format json`: {error}") from error
    hashed = hashlib.sha256()
    for row in stored.rows:
        hashed.update(_line(row))
    hashed.update(_line(stored.statement))
    if len(stored.rows) != stored.statement.rows:
        return stored, f"it has {len(stored.rows):,} rows, its statement says {stored.statement.rows:,}"
    if hashed.hexdigest() != stored.digest:
        return stored, "its rows or its statement were changed: they have another digest"
    if stored.key is None or stored.signature is None:
        return stored, f"it is not signed ({stored.unsigned or 'no reason is given'})"
    return stored, signatures.problem(
        stored.key, stored.signature, _signed(stored.digest, stored.key), trusted
    )


def _signed(digest: str, key: str) -> bytes:
    return signatures.lines(HEADING, digest, key)


def _line(value: Record | Statement) -> bytes:
    return msgspec.json.encode(value, order="sorted") + b"\n"


def _approval(record: Record) -> Record:
    shown = ("verdict", "approver", "role", "channel", "evidence", "step", "task", "at")
    recorder = record["recorded_by"] or compliance_queries.who(record)
    return {**{name: record[name] for name in shown}, "recorded_by": recorder}


def _state(record: Record) -> Record:
    shown = ("status", "at", "by", "because")
    return {**{name: record[name] for name in shown}, "recorded_by": compliance_queries.who(record)}
