"""Look-ups in the journal: one decision with its records, and pages of decisions by filter.

Owns the read-only connections. Invariant: no call can change the file, and no transaction stays open between
calls, so a slow reader never keeps the write-ahead log from restarting. Any thread or process; each has its
own reader.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import msgspec

from thor_policy.core.approvals import Task
from thor_policy.core.decisions import PackInfo, Tier
from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Json
from thor_policy.journal import approval_tasks, events, schema, segments, storage, summaries, vectors
from thor_policy.journal.completeness import COMPLETE
from thor_policy.journal.elapsed import first_within
from thor_policy.journal.projections import JSON_COLUMNS
from thor_policy.security import files
from thor_policy.telemetry.clocks import Instant

Record = dict[str, Json]

#: Least characters of the end of an id that may stand for the whole id.
ENDING_CHARS = schema.ENDING_CHARS
#: The first tag of the questions of `invariance`, which have no scenario.
INVARIANCE_TAG = "invariance"
#: The condition for decisions that answered a question of `test` or `invariance`, and that nobody acted on.
OF_TESTS = f"""(scenario_id IS NOT NULL OR tags LIKE '["{INVARIANCE_TAG}"%')"""
#: The condition for decisions that count in figures: no reports of callers whose reports are claims, and no
#: trace that lacks what its type requires.
COUNTED = f"claimed IS NOT 'report' AND {COMPLETE}"
#: The condition for decisions that rules and model made alone: where an approval lifted the outcome, a
#: verdict on it says nothing of them.
NOT_LIFTED = "approval_task IS NULL"
#: Tables of records about a decision.
_TRACE = (
    *("consultations", "approval_requests", "approvals", "approval_ends", "supplements", "reviews"),
    *("outcomes", "shadows", "counterfactuals", "trace_states", "enrichments"),
)
#: Those of them that also concern the decisions that a task lifted, with the column that names the task.
_OF_TASKS = {"approval_requests": "id", "approvals": "task", "approval_ends": "task"}
#: Values of `tier` of decisions that a daemon made. Reported decisions have others.
_TIERS = get_args(Tier)


class Reader:
    """The journal at `path`, opened read-only. `any_thread`: several threads use it, one at a time.

    Raises JournalError if there is none, or if it was written before 0.1.0.
    """

    def __init__(self, path: Path, *, any_thread: bool = False) -> None:
        self.path = path
        self._connection = open_read_only(path, check_same_thread=not any_thread)
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
        """False if an earlier version wrote the file, so that tables of this version may be missing."""
        with self.snapshot() as connection:
            return not schema.pending(connection)

    # ------------------------------------------------------------ one decision

    def get(self, decision_id: str) -> Record | None:
        """One decision as a record, its JSON columns decoded; None if there is none."""
        records = self._records("SELECT * FROM decisions WHERE decision_id = ?", (decision_id,))
        return records[0] if records else None

    def resolve(self, id_or_end: str) -> str:
        """The decision id `id_or_end`, or the only one that ends with it. Raises JournalError."""
        if self.get(id_or_end) is not None:
            return id_or_end
        with self.snapshot() as connection:
            rows = connection.execute(
                "SELECT decision_id FROM decisions WHERE substr(decision_id, ?) = ? LIMIT 2",
                (-len(id_or_end), id_or_end),
            ).fetchall()
        if len(id_or_end) < ENDING_CHARS or not rows:
            raise JournalError(f"there is no decision {id_or_end[:64]!r} in {self.path}")
        if len(rows) > 1:
            raise JournalError(f"several decisions end in {id_or_end!r}; give the whole id")
        return str(rows[0][0])

    def trace(self, decision_id: str) -> Record:
        """One decision with its event and the rows of every table about it (`_TRACE`).

        A decision that an approval lifted has the rows of that task, too. The event is the original one, from
        the database or an archive, with its private part (None if that was erased). Raises JournalError if
        there is no such decision.
        """
        decision, event = self.recorded(decision_id)
        rows: Record = {table: self._about(table, decision) for table in _TRACE}
        return {"decision": decision, "event": event, **rows}

    def _about(self, table: str, decision: Record) -> list[Record]:
        about = f"SELECT * FROM {table} WHERE decision_id = ?"
        values = [decision["decision_id"]]
        if table in _OF_TASKS and decision["approval_task"] is not None:
            about += f" UNION SELECT * FROM {table} WHERE {_OF_TASKS[table]} = ?"
            values.append(decision["approval_task"])
        return self._records(f"{about} ORDER BY seq", values)

    def recorded(self, decision_id: str) -> tuple[Record, Record]:
        """The decision and its event, as in `trace`. Raises JournalError."""
        decision = self.get(decision_id)
        if decision is None:
            raise JournalError(f"there is no decision {decision_id[:64]!r} in {self.path}")
        return decision, self._event(decision["seq"])

    def recorded_at(self, seq: int) -> str:
        """The wall time of an event, from the database or an archive. Raises JournalError."""
        return str(self._event(seq)["at"])

    def _event(self, seq: int) -> Record:
        with self.snapshot() as connection:
            row = connection.execute(
                "SELECT e.at, e.kind, e.body, e.hash, p.value FROM events e "
                "LEFT JOIN private p ON p.seq = e.seq WHERE e.seq = ?",
                (seq,),
            ).fetchone()
            if row is None:
                row = _archived_event(connection, self.path, seq)
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
        from_seq: int | None = None,
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
        reason_code: str | None = None,
        trace_status: str | None = None,
        tests: bool | None = None,
        counted: bool = False,
        exception: bool = False,
        urgency: str | None = None,
        judgment_call: bool = False,
        confidence_level: str | None = None,
    ) -> list[Record]:
        """Newest first, at most `limit`. `before` is the id of the last decision of the previous page.

        The newest is the one recorded last; `from_seq` leaves out those recorded earlier. `since` and `until`
        select by the wall time that was recorded: RFC 3339, in UTC if they have no offset. An `actor` without
        `:` is a user. `correct` is that of a scenario or a review, `status` that of the recorded outcome,
        `trace_status` the state of the trace. `tests` selects only decisions of tests, or only others;
        `counted` only those that count in figures, `exception` only exceptions, `judgment_call` only
        judgment calls.
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
            "is_exception": 1 if exception else None,
            "urgency": None if urgency == "normal" else urgency,
            "judgment_call": 1 if judgment_call else None,
            "confidence_level": confidence_level,
            "trace_status": trace_status,
        }
        columns = {name: value for name, value in columns.items() if value is not None}
        rare = [name for name in columns if columns[name] not in schema.COMMON.get(name, ())]
        where: list[tuple[str, tuple[Any, ...]]] = [
            (f"{name} = ?", (value,)) for name, value in columns.items()
        ]
        where += [
            (schema.rare_condition(name, common), ())
            for name, common in schema.COMMON.items()
            if name in rare
        ]
        if trace_status not in (None, "active"):
            where.append((schema.NOT_ACTIVE, ()))
        if reason_code is not None:
            where.append(("reason_code = ?", (reason_code,)))
        if urgency == "normal":
            where.append(("urgency IS NULL", ()))
        if tests is not None:
            where.append((OF_TESTS if tests else f"NOT {OF_TESTS}", ()))
        if counted:
            where.append((COUNTED, ()))
        where += _span(since, until)
        if before is not None:
            page = self._records("SELECT seq FROM decisions WHERE decision_id = ?", (before,))
            if not page:
                raise JournalError(f"before: there is no decision {before[:64]!r}")
            where.append(("seq < ?", (page[0]["seq"],)))
        if from_seq is not None:
            where.append(("seq >= ?", (from_seq,)))
        conditions = f"WHERE {' AND '.join(condition for condition, _ in where)}" if where else ""
        values = [value for _, values in where for value in values]
        return self._records(
            f"SELECT * FROM decisions {conditions} ORDER BY seq DESC LIMIT ?", (*values, limit)
        )

    def quarantined(self, limit: int = 20, *, before: str | None = None) -> list[Record]:
        """Decisions whose trace lacks something that its type requires, newest first.

        `before` is that of `decisions`.
        """
        where, values = "", []
        if before is not None:
            where, values = " AND seq < (SELECT seq FROM decisions WHERE decision_id = ?)", [before]
        return self._records(
            f"SELECT * FROM decisions WHERE lacks IS NOT NULL{where} ORDER BY seq DESC LIMIT ?",
            (*values, limit),
        )

    def search(self, words: Sequence[str], limit: int = 20) -> list[Record]:
        """Decisions whose context summary has all of these words, newest first, each with its `summary`.

        An argument of several words stands for these words side by side. Words are compared without case and
        accents; no character is an operator. Raises JournalError if there is no word.
        """
        if not any(char.isalnum() for word in words for char in word):
            raise JournalError("words: give at least one word with a letter or a digit")
        return self._records(
            "SELECT d.*, s.text AS summary FROM summaries_words JOIN summaries s ON s.seq = "
            "summaries_words.rowid JOIN decisions d ON d.seq = s.seq WHERE summaries_words MATCH ? "
            "ORDER BY summaries_words.rowid DESC LIMIT ?",
            (summaries.quoted(words), limit),
        )

    def enrichments_within(self, seconds: float, now: Instant) -> list[tuple[int, int]]:
        """When enrichments of the last `seconds` were recorded, and their time of the device; nanoseconds.

        Those of an earlier boot count as recorded now, since how long ago that was is unknown.
        """
        with self.snapshot() as connection:
            if not connection.execute("SELECT 1 FROM enrichments LIMIT 1").fetchone():
                return []
            return [
                (mono_ns if boot_id == now.boot_id else now.ns, int(device_ms * 1e6))
                for boot_id, mono_ns, device_ms in connection.execute(
                    "SELECT e.boot_id, e.mono_ns, r.device_ms FROM enrichments r "
                    "JOIN events e ON e.seq = r.seq WHERE r.seq >= ?",
                    (first_within(connection, seconds, now),),
                )
            ]

    def summaries_due(self, limit: int) -> tuple[list[str], int]:
        """Ids of decisions whose summary is to be made, at most `limit`, and the newest event then."""
        with self.snapshot() as connection:
            (newest,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
            return summaries.due(connection, limit), newest

    def task(self, task_id: str) -> Task | None:
        """A task of approvals as the newest commits left it. Raises JournalError.

        Its parts may be of several commits; whoever changes or uses it is checked by the writer.
        """
        try:
            return approval_tasks.find(self._connection, task_id)
        except (sqlite3.Error, ValueError) as error:
            raise JournalError(f"{self.path} cannot be read as a journal: {error}") from error

    def vectors_due(self, limit: int) -> tuple[list[str], int]:
        """Ids of decisions whose situation is to be embedded, at most `limit`, and the newest event then."""
        with self.snapshot() as connection:
            (newest,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
            return vectors.due(connection, limit), newest

    def summary(self, decision_id: str) -> str | None:
        """The stored summary of a decision; None if there is none, or if it is due to be made again."""
        records = self._records(
            "SELECT s.text FROM decisions d JOIN summaries s ON s.seq = d.seq WHERE d.decision_id = ? "
            "AND NOT EXISTS (SELECT 1 FROM summaries_due p WHERE p.seq = s.seq)",
            (decision_id,),
        )
        return (records[0]["text"] or None) if records else None

    def unreviewed(self, limit: int = 20) -> list[Record]:
        """Decisions without a review, newest first."""
        return self.decisions(limit=limit, reviewed=False)

    def incorrect(self, limit: int = 20) -> list[Record]:
        """Decisions that differ from what a scenario or a reviewer expected, newest first."""
        return self.decisions(limit=limit, correct=False)

    def corrections(self, limit: int = 1_000, *, after_seq: int = 0) -> list[Record]:
        """Decisions that a reviewer corrected, oldest first. `after_seq` is the last `review_seq` so far."""
        return self._records(
            "SELECT d.*, r.seq AS review_seq, r.reviewer, r.verdict FROM reviews r JOIN decisions d "
            "ON d.decision_id = r.decision_id WHERE r.verdict NOT IN ('accept', 'withdrawn') AND r.seq > ? "
            f"AND d.{COMPLETE} AND r.id NOT IN (SELECT withdraws FROM reviews WHERE verdict = 'withdrawn') "
            "ORDER BY r.seq LIMIT ?",
            (after_seq, limit),
        )

    def calibration(
        self, pack_sha256: str, model_sha256: str, *, temperature: float | None = None
    ) -> Record | None:
        """The newest calibration of a pack on a model (with that temperature); None if there is none."""
        records = self._records(
            "SELECT temperature, pack_sha256, model_sha256, judged FROM calibrations "
            "WHERE pack_sha256 = ? AND model_sha256 = ? AND temperature = coalesce(?, temperature) "
            "ORDER BY seq DESC LIMIT 1",
            (pack_sha256, model_sha256, temperature),
        )
        return records[0] if records else None

    def promotions(self, limit: int = 20) -> list[Record]:
        """Packs that passed or failed the promotion gate, newest first."""
        return self._records("SELECT * FROM promotions ORDER BY seq DESC LIMIT ?", (limit,))

    def taken_over(self, pack: PackInfo) -> Record | None:
        """The newest promotion that replaced `pack` under its name; None if `pack` was not replaced.

        The record has `version`, `sha256` and `timestamp` of the promotion.
        """
        records = self._records(
            "SELECT version, sha256, timestamp FROM promotions WHERE sha256 != :sha256 "
            "AND seq = (SELECT max(seq) FROM promotions WHERE name = :name AND passed) "
            "AND EXISTS (SELECT 1 FROM promotions WHERE name = :name AND passed AND against = :sha256)",
            {"name": pack.name, "sha256": pack.sha256},
        )
        return records[0] if records else None

    def loaded_model(self, sha256: str, *, before_seq: int) -> Record | None:
        """Name, build and device of a model at its last load before an event; None if no load is recorded."""
        records = self._records(
            "SELECT name, build, device FROM models WHERE sha256 = ? AND seq < ? ORDER BY seq DESC LIMIT 1",
            (sha256, before_seq),
        )
        return records[0] if records else None

    def erasure(self, seq: int) -> int | None:
        """The event that erased something of the event `seq`; None if nothing was erased."""
        records = self._records("SELECT by_seq FROM erasures WHERE seq = ?", (seq,))
        return int(records[0]["by_seq"]) if records else None

    def decided_here(self, *, since: str | None = None, sample: int | None = None) -> list[str]:
        """Ids of the decisions that a daemon made, oldest first; at most `sample`, chosen at random."""
        order = "ORDER BY random() LIMIT ?" if sample is not None else "ORDER BY seq LIMIT ?"
        records = self._records(
            "SELECT decision_id, seq FROM decisions INDEXED BY decisions_timestamp WHERE timestamp >= ? "
            f"AND tier IN ({', '.join('?' * len(_TIERS))}) {order}",
            (instant(since, "since") or "", *_TIERS, -1 if sample is None else sample),
        )
        return [record["decision_id"] for record in sorted(records, key=lambda record: record["seq"])]

    def past(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """Ids of the newest decisions in a time span, at most `limit`; oldest first.

        Reported decisions are included if they count.
        `since`, `until` and `actor` have the meaning that they have in `decisions`.
        """
        records = self._records(
            "SELECT decision_id FROM decisions INDEXED BY decisions_timestamp WHERE timestamp >= ? "
            f"AND timestamp < ? AND {COUNTED} AND actor IS coalesce(?, actor) "
            "AND action IS coalesce(?, action) "
            "ORDER BY seq DESC LIMIT ?",
            (
                instant(since, "since") or "",
                instant(until, "until") or "~",
                _actor(actor),
                action,
                -1 if limit is None else limit,
            ),
        )
        return [record["decision_id"] for record in reversed(records)]

    def newest_run(self, pack_sha256: str, model_sha256: str, temperature: float) -> str | None:
        """The newest `whatif` run of a pack on a model at that temperature; None if there is none."""
        records = self._records(
            "SELECT run FROM counterfactuals WHERE pack_sha256 = ? AND model_sha256 = ? AND temperature = ? "
            "ORDER BY seq DESC LIMIT 1",
            (pack_sha256, model_sha256, temperature),
        )
        return records[0]["run"] if records else None

    def counterfactuals(self, run: str) -> list[Record]:
        """The results of a run so far, in order of recording."""
        return self._records("SELECT * FROM counterfactuals WHERE run = ? ORDER BY seq", (run,))

    def judged(self, pack_sha256: str, model_sha256: str, *, by: str) -> Iterator[Record]:
        """Decisions of one pack on one model with a known right outcome, oldest first, read page by page.

        `by` says where the right outcome is from: `reviews` (accepted or corrected), or `suites` (the
        expected outcome of a scenario that expects only one). Each record has `probabilities`, `temperature`,
        `tags` (of a scenario: its suite, its difficulty, its own) and `right`.
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
            f"SELECT seq, probabilities, temperature, tags, {right} AS right FROM decisions "
            f"WHERE decision_correct IS NOT NULL AND {known} AND {COMPLETE} AND {NOT_LIFTED} AND seq > ? "
            "AND substr(prompt_version, -12) = ? "
            "AND substr(model_version, -12) = ? AND label IS NOT NULL ORDER BY seq LIMIT 1000",
            (seq, pack_sha256[:12], model_sha256[:12]),
        ):
            yield from page
            seq = page[-1]["seq"]

    def answered(self, pack_sha256: str, *, since: str) -> Iterator[Record]:
        """What a band of a pack is chosen by: its decisions from a time on, oldest first, page by page.

        Questions of tests, reports of others, incomplete traces and decisions that an approval lifted are
        left out. `right` is the outcome that reviewers accepted or stated, None without a verdict.
        """
        seq = 0
        while page := self._records(
            "SELECT seq, decision_id, timestamp, decision, label, probabilities, temperature, floor, "
            "risk_level, substr(model_version, -12) AS model, CASE WHEN reviewed = 1 AND "
            "(decision_correct = 1 OR review_decision IS NOT NULL) THEN coalesce(review_decision, decision) "
            f"END AS right FROM decisions WHERE {COUNTED} AND {NOT_LIFTED} AND scenario_id IS NULL "
            "AND seq > ? AND substr(prompt_version, -12) = ? AND timestamp >= ? ORDER BY seq LIMIT 1000",
            (seq, pack_sha256[:12], since),
        ):
            yield from page
            seq = page[-1]["seq"]

    def prior(self, pack_sha256: str, model_sha256: str) -> dict[str, float]:
        """The prior of the newest decision of a pack on a model that has one, unless archived; else empty."""
        records = self._records(
            "SELECT json_extract(body, '$.prior') AS prior FROM decisions JOIN events USING (seq) "
            "WHERE substr(prompt_version, -12) = ? AND substr(model_version, -12) = ? "
            "AND label IS NOT NULL AND json_extract(body, '$.prior') IS NOT NULL ORDER BY seq DESC LIMIT 1",
            (pack_sha256[:12], model_sha256[:12]),
        )
        return msgspec.json.decode(records[0]["prior"], type=dict[str, float]) if records else {}

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
            return [_decode_columns(dict(zip(names, row, strict=True))) for row in cursor.fetchall()]

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """One snapshot of the journal for all reads inside. A failing read raises JournalError."""
        try:
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
        except (sqlite3.Error, ValueError, OSError, EOFError) as error:
            raise JournalError(f"{self.path} cannot be read as a journal: {error}") from error


def is_of_test(record: Record) -> bool:
    """True for a decision that answered a question of `test` or `invariance`: `OF_TESTS` for a record."""
    return record["scenario_id"] is not None or record["tags"][:1] == [INVARIANCE_TAG]


def claim_in(event: Mapping[str, Json]) -> str | None:
    """What the caller stated with a decision, by its event, that is only a claim; None: nothing."""
    body = event["body"]
    if body.get("claimed"):
        return "the whole report"
    annotations = body.get("annotations") or {}
    if not annotations.get("claimed"):
        return None
    parts = [f"expected {' or '.join(annotations['expected'])}"] if "expected" in annotations else []
    parts += [f"scenario {annotations['scenario_id']}"] if "scenario_id" in annotations else []
    parts += [f"tags {', '.join(annotations['tags'])}"] if "tags" in annotations else []
    return ", ".join(parts)


def open_read_only(path: Path, *, check_same_thread: bool = True) -> sqlite3.Connection:
    """A read-only connection to the journal at `path`. Raises JournalError if there is none that may be used.

    Its files may belong to this user, to root, or to the owner of their directory.
    """
    try:
        if not os.path.lexists(path):
            raise JournalError(f"there is no journal at {path}; `thorpolicy serve` creates one")
        storage.check_files(path, owners=files.owners_beside(path))
        return sqlite3.connect(
            read_only_uri(path), uri=True, isolation_level=None, check_same_thread=check_same_thread
        )
    except (sqlite3.Error, OSError) as error:
        raise JournalError(f"{path} cannot be read as a journal: {error}") from error


def read_only_uri(path: Path) -> str:
    """The SQLite URI that opens a file read-only."""
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def instant(text: str | None, name: str) -> str | None:
    """An RFC 3339 time in the form of stored timestamps, which compare as text. Raises JournalError.

    `name` is the field or option for the error.
    """
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        return events.timestamp((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError) as error:
        raise JournalError(
            f"{name}: {text!r} is not an RFC 3339 time such as 2026-07-01T12:00:00Z"
        ) from error


def _span(since: str | None, until: str | None) -> list[tuple[str, tuple[str, ...]]]:
    """The conditions of a span of stored timestamps, with their values.

    The index on `timestamp` gives the first and the last `seq` of the span, so that a page reads only rows
    between them. The plus sign keeps that index from choosing the order of the page.
    """
    bounds = [("timestamp >= ?", since), ("timestamp < ?", until)]
    given = [(condition, at) for condition, at in bounds if at is not None]
    of_span = " AND ".join(condition for condition, _ in given)
    values = tuple(at for _, at in given)
    edges = [("seq >=", "min", since), ("seq <=", "max", until)]
    rows_of_span = f"FROM decisions INDEXED BY decisions_timestamp WHERE {of_span}"
    return [(f"+{condition}", (at,)) for condition, at in given] + [
        (f"{comparison} (SELECT {edge}(seq) {rows_of_span})", values)
        for comparison, edge, at in edges
        if at is not None
    ]


def _actor(actor: str | None) -> str | None:
    """An actor in the form of the column; without a type it is a user."""
    return actor if actor is None or ":" in actor else f"user:{actor}"


def _archived_event(connection: sqlite3.Connection, path: Path, seq: int) -> tuple[Any, ...]:
    event = segments.find_event(connection, path, seq)
    if event is None:
        raise ValueError(f"event {seq} is neither in the database nor in an archive")
    row, part = event
    return row.at.decode(), row.kind.decode(), row.body, row.hash, part and part[1]


def _decode_columns(record: Record) -> Record:
    for column in JSON_COLUMNS & record.keys():
        if record[column] is not None:
            record[column] = msgspec.json.decode(record[column])
    return record
