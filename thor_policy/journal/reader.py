"""Looking things up in the journal: one decision with all that hangs on it, and pages by filter.

Owns the read-only connections. Invariant: nothing here can change the file, and no transaction stays open
between calls, so a slow reader never holds the write-ahead log back. Any thread or process; one connection
each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import msgspec

from thor_policy.core.decisions import PackInfo, Tier
from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Json
from thor_policy.journal import events, schema, segments
from thor_policy.journal.projections import JSON_COLUMNS

Record = dict[str, Json]

#: Characters of an id's end that may stand for it.
ENDING_CHARS = 8
#: Tables whose rows hang on a decision.
_TRACE = ("consultations", "approvals", "reviews", "outcomes", "shadows", "counterfactuals")
#: Who takes a decision here; others report theirs.
_TIERS = get_args(Tier)


class Reader:
    """The journal at `path`, opened read-only.

    Raises JournalError if there is none, or if it was written before 0.1.0.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise JournalError(f"there is no journal at {path}; `thorpolicy serve` makes one")
        try:
            self._connection = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise JournalError(f"{path} cannot be read as a journal: {error}") from error
        try:
            with self.snapshot() as connection:
                connection.execute("PRAGMA busy_timeout = 5000")
                schema.refuse_earlier(connection, path)
                connection.execute("SELECT explained_seq FROM decisions WHERE seq = 0")
        except JournalError:
            self.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def is_current(self) -> bool:
        """False if an earlier version wrote the file, so that tables of this one may be missing."""
        with self.snapshot() as connection:
            return not schema.pending(connection)

    # ------------------------------------------------------------ one decision

    def get(self, decision_id: str) -> Record | None:
        """One decision as a record, its JSON columns decoded; None if there is none."""
        found = self._records("SELECT * FROM decisions WHERE decision_id = ?", (decision_id,))
        return found[0] if found else None

    def resolve(self, told: str) -> str:
        """The decision id that is `told`, or the only one that ends so. Raises JournalError."""
        if self.get(told) is not None:
            return told
        with self.snapshot() as connection:
            found = connection.execute(
                "SELECT decision_id FROM decisions WHERE substr(decision_id, ?) = ? LIMIT 2",
                (-len(told), told),
            ).fetchall()
        if len(told) < ENDING_CHARS or not found:
            raise JournalError(f"there is no decision {told[:64]!r} in {self.path}")
        if len(found) > 1:
            raise JournalError(f"several decisions end in {told!r}; give the whole id")
        return str(found[0][0])

    def trace(self, decision_id: str) -> Record:
        """One decision with its event, its consultations, approvals, reviews and outcomes.

        The event is what was recorded when it was made, with its private part (None if that was erased),
        wherever it lies. Raises JournalError if there is no such decision.
        """
        decision, event = self.recorded(decision_id)
        hung: Record = {
            table: self._records(f"SELECT * FROM {table} WHERE decision_id = ? ORDER BY seq", (decision_id,))
            for table in _TRACE
        }
        return {"decision": decision, "event": event, **hung}

    def recorded(self, decision_id: str) -> tuple[Record, Record]:
        """The first two parts of a `trace`: the decision and its event. Raises JournalError."""
        decision = self.get(decision_id)
        if decision is None:
            raise JournalError(f"there is no decision {decision_id[:64]!r} in {self.path}")
        return decision, self._event(decision["seq"])

    def _event(self, seq: int) -> Record:
        with self.snapshot() as connection:
            row = connection.execute(
                "SELECT e.at, e.kind, e.body, e.hash, p.value FROM events e "
                "LEFT JOIN private p ON p.seq = e.seq WHERE e.seq = ?",
                (seq,),
            ).fetchone()
            if row is None:
                row = _archived(connection, self.path, seq)
        at, kind, body, link, private = row
        return {
            "seq": seq,
            "at": at,
            "kind": kind,
            "hash": link.hex(),
            "body": events.decode(body),
            "private": private and events.decode(private),
        }

    # ------------------------------------------------------------ pages

    def decisions(
        self,
        *,
        limit: int = 20,
        before: str | None = None,
        since: str | None = None,
        until: str | None = None,
        actor: str | None = None,
        entity: str | None = None,
        outcome: str | None = None,
        tier: str | None = None,
        risk: str | None = None,
        type: str | None = None,
        session: str | None = None,
        reviewed: bool | None = None,
        correct: bool | None = None,
        status: str | None = None,
    ) -> list[Record]:
        """Newest first, at most `limit`; `before` is the id of the last decision of the page before.

        `since` and `until` are RFC 3339, in UTC unless they say otherwise; an `actor` without `:` is a user.
        `correct` is that of a scenario or a review, `status` that of the outcome in the world.
        """
        since, until = instant(since, "since"), instant(until, "until")
        columns: dict[str, Any] = {
            "actor": _actor(actor),
            "entity": entity,
            "decision": outcome,
            "tier": tier,
            "risk_level": risk,
            "session": session,
            "reviewed": None if reviewed is None else int(reviewed),
            "decision_correct": None if correct is None else int(correct),
            "outcome_status": status,
            "decision_type": type,
        }
        columns = {name: value for name, value in columns.items() if value is not None}
        rare = [name for name in columns if columns[name] not in schema.COMMON.get(name, ())]
        where: list[tuple[str, tuple[Any, ...]]] = [
            (f"{name} = ?", (value,)) for name, value in columns.items()
        ]
        where += [(schema.is_rare(name, schema.COMMON[name]), ()) for name in schema.COMMON if name in rare]
        bounds = [("timestamp >= ?", since), ("timestamp < ?", until)]
        where += [(condition, (at,)) for condition, at in bounds if at is not None]
        newest = until
        if before is not None:
            page = self._records("SELECT timestamp, seq FROM decisions WHERE decision_id = ?", (before,))
            if not page:
                raise JournalError(f"before: there is no decision {before[:64]!r}")
            newest = page[0]["timestamp"]
            where.append(("(timestamp, seq) < (?, ?)", (newest, page[0]["seq"])))
        order = "timestamp DESC, seq DESC"
        if rare:  # then an index on one of these columns and the second serves the page
            order = f"{schema.SECOND} DESC, {order}"
            bounds = [
                (f"{schema.SECOND} >= unixepoch(?)", since),
                (f"{schema.SECOND} <= unixepoch(?)", newest),
            ]
            where += [(condition, (at,)) for condition, at in bounds if at is not None]
        conditions = f"WHERE {' AND '.join(condition for condition, _ in where)}" if where else ""
        values = [value for _, values in where for value in values]
        return self._records(
            f"SELECT * FROM decisions {conditions} ORDER BY {order} LIMIT ?", (*values, limit)
        )

    def unreviewed(self, limit: int = 20) -> list[Record]:
        """Decisions that nobody has looked at yet, newest first."""
        return self.decisions(limit=limit, reviewed=False)

    def incorrect(self, limit: int = 20) -> list[Record]:
        """Decisions that a scenario or a reviewer wanted otherwise, newest first."""
        return self.decisions(limit=limit, correct=False)

    def corrections(self, limit: int = 1_000, *, after_seq: int = 0) -> list[Record]:
        """What reviewers said decisions should have been, oldest first; `after_seq` continues a page."""
        return self._records(
            "SELECT d.*, r.seq AS review_seq, r.reviewer, r.verdict FROM reviews r JOIN decisions d "
            "ON d.decision_id = r.decision_id WHERE r.verdict NOT IN ('accept', 'withdrawn') AND r.seq > ? "
            "AND r.id NOT IN (SELECT withdraws FROM reviews WHERE verdict = 'withdrawn') "
            "ORDER BY r.seq LIMIT ?",
            (after_seq, limit),
        )

    def calibration(
        self, pack_sha256: str, model_sha256: str, *, temperature: float | None = None
    ) -> Record | None:
        """The newest calibration of a pack on a model (of that temperature); None if there is none."""
        found = self._records(
            "SELECT temperature, pack_sha256, model_sha256, judged FROM calibrations "
            "WHERE pack_sha256 = ? AND model_sha256 = ? AND temperature = coalesce(?, temperature) "
            "ORDER BY seq DESC LIMIT 1",
            (pack_sha256, model_sha256, temperature),
        )
        return found[0] if found else None

    def promotions(self, limit: int = 20) -> list[Record]:
        """Packs that passed the gate of promotion or were refused there, newest first."""
        return self._records("SELECT * FROM promotions ORDER BY seq DESC LIMIT ?", (limit,))

    def taken_over(self, pack: PackInfo) -> Record | None:
        """The pack promoted last under that name, if `pack` had its place taken; None if it holds it.

        `version`, `sha256` and `timestamp` of the promotion.
        """
        found = self._records(
            "SELECT version, sha256, timestamp FROM promotions WHERE sha256 != :sha256 "
            "AND seq = (SELECT max(seq) FROM promotions WHERE name = :name AND passed) "
            "AND EXISTS (SELECT 1 FROM promotions WHERE name = :name AND passed AND against = :sha256)",
            {"name": pack.name, "sha256": pack.sha256},
        )
        return found[0] if found else None

    def loaded_model(self, sha256: str, *, before_seq: int) -> Record | None:
        """What a model was when it was last loaded before an event; None if that was never recorded."""
        found = self._records(
            "SELECT name, build, device FROM models WHERE sha256 = ? AND seq < ? ORDER BY seq DESC LIMIT 1",
            (sha256, before_seq),
        )
        return found[0] if found else None

    def erasure(self, seq: int) -> int | None:
        """The event that erased something of the event `seq`; None if it is as it was recorded."""
        found = self._records("SELECT by_seq FROM erasures WHERE seq = ?", (seq,))
        return int(found[0]["by_seq"]) if found else None

    def decided_here(self, *, since: str | None = None, sample: int | None = None) -> list[str]:
        """Ids of the decisions that a daemon took itself, oldest first; at most `sample`, drawn by chance."""
        drawn = "ORDER BY random() LIMIT ?" if sample is not None else "ORDER BY seq LIMIT ?"
        found = self._records(
            "SELECT decision_id, seq FROM decisions INDEXED BY decisions_timestamp WHERE timestamp >= ? "
            f"AND tier IN ({', '.join('?' * len(_TIERS))}) {drawn}",
            (instant(since, "since") or "", *_TIERS, -1 if sample is None else sample),
        )
        return [row["decision_id"] for row in sorted(found, key=lambda row: row["seq"])]

    def past(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """Ids of all decisions of a time, taken here or reported, oldest first; of too many the newest.

        `since`, `until` and `actor` are those of `decisions`.
        """
        found = self._records(
            "SELECT decision_id FROM decisions INDEXED BY decisions_timestamp WHERE timestamp >= ? "
            "AND timestamp < ? AND actor IS coalesce(?, actor) AND action IS coalesce(?, action) "
            "ORDER BY seq DESC LIMIT ?",
            (
                instant(since, "since") or "",
                instant(until, "until") or "~",
                _actor(actor),
                action,
                -1 if limit is None else limit,
            ),
        )
        return [row["decision_id"] for row in reversed(found)]

    def newest_run(self, pack_sha256: str, model_sha256: str, temperature: float) -> str | None:
        """The newest run over past decisions by this judge; None if there is none."""
        found = self._records(
            "SELECT run FROM counterfactuals WHERE pack_sha256 = ? AND model_sha256 = ? AND temperature = ? "
            "ORDER BY seq DESC LIMIT 1",
            (pack_sha256, model_sha256, temperature),
        )
        return found[0]["run"] if found else None

    def counterfactuals(self, run: str) -> list[Record]:
        """What a run has come to so far, in order of recording."""
        return self._records("SELECT * FROM counterfactuals WHERE run = ? ORDER BY seq", (run,))

    def judged(self, pack_sha256: str, model_sha256: str, *, by: str) -> Iterator[Record]:
        """Decisions by one pack on one model whose right outcome is known, oldest first, a page at a time.

        `by` is `reviews` (what reviewers accepted or corrected) or `suites` (what a scenario expected, where
        that is one outcome). Each record has `probabilities`, `temperature` and `right`.
        """
        right = {
            "reviews": "coalesce(review_decision, decision)",
            "suites": "expected_decision",
        }[by]
        known = {
            "reviews": "reviewed = 1 AND (decision_correct = 1 OR review_decision IS NOT NULL)",
            "suites": "scenario_id IS NOT NULL AND expected_decision NOT LIKE '%|%'",
        }[by]
        seq = 0
        while page := self._records(
            f"SELECT seq, probabilities, temperature, {right} AS right FROM decisions "
            f"WHERE decision_correct IS NOT NULL AND {known} AND seq > ? AND substr(prompt_version, -12) = ? "
            "AND substr(model_version, -12) = ? AND label IS NOT NULL ORDER BY seq LIMIT 1000",
            (seq, pack_sha256[:12], model_sha256[:12]),
        ):
            yield from page
            seq = page[-1]["seq"]

    def newer_than(self, seq: int, limit: int = 1_000) -> list[Record]:
        """Decisions recorded after the event `seq`, in order of recording."""
        return self._records("SELECT * FROM decisions WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit))

    def newest_seq(self) -> int:
        """Sequence number of the newest event; 0 before the first."""
        with self.snapshot() as connection:
            return int(connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])

    def _records(self, sql: str, values: Sequence[Any] | Mapping[str, Any]) -> list[Record]:
        with self.snapshot() as connection:
            cursor = connection.execute(sql, values)
            names = [column[0] for column in cursor.description]
            return [_decoded(dict(zip(names, row, strict=True))) for row in cursor.fetchall()]

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """One moment of the journal for all that is read inside; what cannot be read is a JournalError."""
        try:
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
        except (sqlite3.Error, ValueError, OSError, EOFError) as error:
            raise JournalError(f"{self.path} cannot be read as a journal: {error}") from error


def read_only_uri(path: Path) -> str:
    """SQLite's name for the file, opened without the right to write."""
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def instant(told: str | None, name: str) -> str | None:
    """An RFC 3339 time as timestamps are stored, so that the two compare as text. Raises JournalError."""
    if told is None:
        return None
    try:
        at = datetime.fromisoformat(told)
        return events.timestamp((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError) as error:
        raise JournalError(f"{name}: {told!r} is no RFC 3339 time such as 2026-07-01T12:00:00Z") from error


def _actor(told: str | None) -> str | None:
    """An actor as rows have it: without a type it is a user."""
    return told if told is None or ":" in told else f"user:{told}"


def _archived(connection: sqlite3.Connection, path: Path, seq: int) -> tuple[Any, ...]:
    found = segments.event(connection, path, seq)
    if found is None:
        raise ValueError(f"event {seq} is neither there nor archived")
    row, part = found
    return row.at.decode(), row.kind.decode(), row.body, row.hash, part and part[1]


def _decoded(record: Record) -> Record:
    for column in JSON_COLUMNS & record.keys():
        if record[column] is not None:
            record[column] = msgspec.json.decode(record[column])
    return record
