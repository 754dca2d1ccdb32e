"""Queries for reviewing: verdicts, assignments and leases of many decisions at once.

Owns the queries of reviewing that `Reader` does not have. Invariant: each call reads one snapshot. Any thread
or process, on a reader of its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from msgspec import Struct

from thor_policy.core.requests import Json
from thor_policy.journal import leases
from thor_policy.journal.reader import Reader, Record, instant
from thor_policy.telemetry.clocks import Instant

#: Most ids in one query; SQLite allows 32,766.
_MANY = 500
_COLUMNS = "r.*, d.decision AS outcome, d.risk_level"


class Claim(Struct, frozen=True, kw_only=True):
    """Who has a decision: the `holder` of a lease that has not ended, the `assignee` of an assignment."""

    holder: str | None = None
    assignee: str | None = None


def reviews(reader: Reader, *, since: str | None = None) -> list[Record]:
    """All reviews of the decisions that were reviewed since an RFC 3339 time, oldest first.

    Each record has the `outcome` served. Earlier reviews of these decisions are included, because they are
    needed to decide which review stands.
    """
    sql = (
        f"SELECT {_COLUMNS} FROM reviews r JOIN decisions d ON d.decision_id = r.decision_id WHERE "
        "r.decision_id IN (SELECT decision_id FROM reviews WHERE timestamp >= ?) ORDER BY r.seq"
    )
    with reader.snapshot() as connection:
        return _records(connection, sql, (instant(since, "since") or "",))


def reviews_of(reader: Reader, decision_ids: Sequence[str]) -> list[Record]:
    """All reviews of these decisions, oldest first in each query, as `reviews` gives them."""
    records: list[Record] = []
    with reader.snapshot() as connection:
        for ids, marks in _pages(decision_ids):
            sql = (
                f"SELECT {_COLUMNS} FROM reviews r JOIN decisions d ON d.decision_id = r.decision_id "
                f"WHERE r.decision_id IN ({marks}) ORDER BY r.seq"
            )
            records += _records(connection, sql, ids)
    return records


def claims(reader: Reader, decision_ids: Sequence[str], *, now: Instant) -> dict[str, Claim]:
    """Who has these decisions; decisions that nobody has are left out."""
    by_decision: dict[str, Claim] = {}
    with reader.snapshot() as connection:
        for ids, marks in _pages(decision_ids):
            assigned = connection.execute(
                "SELECT decision_id, reviewer, max(seq), type FROM assignments WHERE "
                f"type IN ('assign', 'unassign') AND decision_id IN ({marks}) GROUP BY decision_id",
                ids,
            ).fetchall()
            leased = connection.execute(
                "SELECT DISTINCT decision_id FROM assignments WHERE type = 'lease' "
                f"AND decision_id IN ({marks})",
                ids,
            ).fetchall()
            assignees = {id_: reviewer for id_, reviewer, _, type_ in assigned if type_ == "assign"}
            holders = {id_: leases.holder_of(connection, id_, now) for (id_,) in leased}
            for id_ in assignees.keys() | holders.keys():
                claim = Claim(holder=holders.get(id_), assignee=assignees.get(id_))
                if claim != Claim():
                    by_decision[id_] = claim
    return by_decision


def _pages(decision_ids: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    for start in range(0, len(decision_ids), _MANY):
        ids = list(decision_ids[start : start + _MANY])
        yield ids, ", ".join("?" * len(ids))


def _records(connection: sqlite3.Connection, sql: str, values: Sequence[Json]) -> list[Record]:
    cursor = connection.execute(sql, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
