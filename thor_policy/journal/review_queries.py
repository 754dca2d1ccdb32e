"""What reviewers need to know of the journal: verdicts, assignments and leases, for many decisions at once.

Owns the queries of reviewing beyond those of `Reader`. Invariant: each call reads one snapshot. Any
thread or process, on a reader of its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from msgspec import Struct

from thor_policy.core.requests import Json
from thor_policy.journal import leases
from thor_policy.journal.reader import Reader, Record, instant

#: Ids in one query; SQLite takes no more than 32,766.
_MANY = 500
_COLUMNS = "r.*, d.decision AS outcome, d.risk_level"


class Claim(Struct, frozen=True, kw_only=True):
    """Who has a decision: `holder` by a lease that lasts still, `assignee` by an assignment."""

    holder: str | None = None
    assignee: str | None = None


def reviews(reader: Reader, *, since: str | None = None) -> list[Record]:
    """Every row of the table of reviews since an RFC 3339 time, oldest first, with the `outcome` served.

    A decision that was reviewed since brings its earlier reviews along, so that what stands can be told.
    """
    sql = (
        f"SELECT {_COLUMNS} FROM reviews r JOIN decisions d ON d.decision_id = r.decision_id WHERE "
        "r.decision_id IN (SELECT decision_id FROM reviews WHERE timestamp >= ?) ORDER BY r.seq"
    )
    with reader.snapshot() as connection:
        return _records(connection, sql, (instant(since, "since") or "",))


def reviews_of(reader: Reader, decision_ids: Sequence[str]) -> list[Record]:
    """The same of these decisions."""
    found: list[Record] = []
    with reader.snapshot() as connection:
        for ids, marks in _pages(decision_ids):
            sql = (
                f"SELECT {_COLUMNS} FROM reviews r JOIN decisions d ON d.decision_id = r.decision_id "
                f"WHERE r.decision_id IN ({marks}) ORDER BY r.seq"
            )
            found += _records(connection, sql, ids)
    return found


def claims(reader: Reader, decision_ids: Sequence[str], *, at: float) -> dict[str, Claim]:
    """Who has these decisions at that Unix time; those that nobody has are left out."""
    found: dict[str, Claim] = {}
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
            assignees = {one: reviewer for one, reviewer, _, type_ in assigned if type_ == "assign"}
            holders = {one: leases.holder_of(connection, one, at) for (one,) in leased}
            for one in assignees.keys() | holders.keys():
                claim = Claim(holder=holders.get(one), assignee=assignees.get(one))
                if claim != Claim():
                    found[one] = claim
    return found


def _pages(decision_ids: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    for start in range(0, len(decision_ids), _MANY):
        ids = list(decision_ids[start : start + _MANY])
        yield ids, ", ".join("?" * len(ids))


def _records(connection: sqlite3.Connection, sql: str, values: Sequence[Json]) -> list[Record]:
    cursor = connection.execute(sql, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
