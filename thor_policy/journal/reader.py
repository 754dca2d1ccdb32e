"""Looking things up in the journal: decisions by filter, statistics.

Owns the read-only connections. Invariant: nothing here can change the file, and no transaction stays open
between calls, so a slow reader never holds the write-ahead log back. Any thread or process; one connection
each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from thor_policy.core import Json
from thor_policy.errors import JournalError
from thor_policy.journal import events

Record = dict[str, Json]


class Reader:
    """The journal at `path`, opened read-only. Raises JournalError if there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise JournalError(f"there is no journal at {path}; `thorpolicy serve` makes one")
        try:
            self._connection = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise JournalError(f"{path} cannot be read as a journal: {error}") from error
        try:
            with self._reading():
                self._connection.execute("PRAGMA busy_timeout = 5000")
                self._connection.execute("SELECT count(*) FROM events WHERE seq = 0")
        except JournalError:
            self.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    # ------------------------------------------------------------ look-ups

    def get(self, decision_id: str) -> Record | None:
        """One decision as a record, its JSON columns decoded; None if there is none."""
        found = self._records("WHERE decision_id = ?", (decision_id,), 1)
        return found[0] if found else None

    def decisions(
        self,
        *,
        limit: int = 20,
        outcome: str | None = None,
        tier: str | None = None,
        risk: str | None = None,
        subject: str | None = None,
        since: str | None = None,
        before_seq: int | None = None,
        reviewed: bool | None = None,
        correct: bool | None = None,
    ) -> list[Record]:
        """Newest first, at most `limit`; `since` is RFC 3339, in UTC unless it says otherwise; `before_seq`
        continues a page.
        """
        filters: list[tuple[str, Any]] = [
            ("decision = ?", outcome),
            ("tier = ?", tier),
            ("risk_level = ?", risk),
            ("subject_id = ?", subject),
            ("timestamp >= ?", _instant(since)),
            ("seq < ?", before_seq),
            ("reviewed = ?", None if reviewed is None else int(reviewed)),
            ("decision_correct = ?", None if correct is None else int(correct)),
        ]
        used = [(condition, value) for condition, value in filters if value is not None]
        where = "WHERE " + " AND ".join(condition for condition, _ in used) if used else ""
        return self._records(f"{where} ORDER BY seq DESC", [value for _, value in used], limit)

    def statistics(self, *, since: str | None = None) -> Record:
        """Counts by outcome, tier and risk, accuracy where an expectation is known, latency in ms."""
        where, values = ("WHERE timestamp >= ?", [_instant(since)]) if since else ("", [])
        with self._reading():
            total, expected, correct, first, last = self._connection.execute(
                "SELECT count(*), count(decision_correct), sum(decision_correct), min(timestamp), "
                f"max(timestamp) FROM decisions {where}",
                values,
            ).fetchone()
            return {
                "decisions": total,
                "first": first,
                "last": last,
                "outcomes": self._counts("decision", where, values),
                "tiers": self._counts("tier", where, values),
                "risks": self._counts("risk_level", where, values),
                "expected": expected,
                "correct": correct or 0,
                "score_ms": self._percentiles("score_ms", where, values),
            }

    def _counts(self, column: str, where: str, values: Sequence[Any]) -> dict[str, int]:
        rows = self._connection.execute(
            f"SELECT {column}, count(*) FROM decisions {where} GROUP BY 1 ORDER BY 2 DESC",
            values,
        )
        return dict(rows.fetchall())

    def _percentiles(self, column: str, where: str, values: Sequence[Any]) -> dict[str, float] | None:
        """p50, p90, p99 (nearest rank) of the decisions for which the model was asked."""
        condition = f"{where} AND" if where else "WHERE"
        rows = self._connection.execute(
            f"SELECT {column} FROM decisions {condition} tier = 'model' ORDER BY 1",
            values,
        ).fetchall()
        if not rows:
            return None
        return {f"p{p}": rows[(len(rows) * p - 1) // 100][0] for p in (50, 90, 99)}

    def _records(self, clause: str, values: Sequence[Any], limit: int) -> list[Record]:
        with self._reading():
            cursor = self._connection.execute(
                f"SELECT * FROM decisions {clause} LIMIT ?",
                (*values, limit),
            )
            names = [column[0] for column in cursor.description]
            return [_decoded(dict(zip(names, row, strict=True))) for row in cursor.fetchall()]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One snapshot for all that is read inside; what cannot be read is a JournalError."""
        try:
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
        except (sqlite3.Error, ValueError) as error:
            raise JournalError(f"{self.path} cannot be read as a journal: {error}") from error


def read_only_uri(path: Path) -> str:
    """SQLite's name for the file, opened without the right to write."""
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def _instant(since: str | None) -> str | None:
    """An RFC 3339 time as timestamps are stored, so that the two compare as text."""
    if since is None:
        return None
    try:
        at = datetime.fromisoformat(since)
    except ValueError as error:
        raise JournalError(f"since: {since!r} is no RFC 3339 time such as 2026-07-01T12:00:00Z") from error
    return events.timestamp((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def _decoded(record: Record) -> Record:
    for column in ("situation", "probabilities", "clauses", "tags"):
        record[column] = events.decode(record[column])
    return record
