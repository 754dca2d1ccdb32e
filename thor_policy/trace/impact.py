"""Impact: every decision that rests on a precedent or on a version of a pack, however far away.

Owns the walk and its bound. Invariant: each decision is visited at most one time, the nearest first, so a
cycle of citations ends; and where the bound cuts the walk off, the result says so. Any thread or process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from thor_policy.core.errors import JournalError
from thor_policy.journal import impact_queries
from thor_policy.journal.reader import Reader, Record
from thor_policy.journal.trace_queries import Connection

#: Most decisions that are counted and listed, and most that are read to find those of a pack.
MOST_RESTING, MOST_READ = 5_000, 20_000
#: Decisions whose edges one query reads.
_BATCH = 500


class Impact(Struct, frozen=True, kw_only=True):
    """What rests on `of`: a decision, or a pack.

    `decisions` are all of them, the nearest first: id, at, type, outcome, status, entity, `depth` (edges
    away; 0 for those that a pack governed), `via` and `rests_on` (the last edge). `counts` has their number
    by type, outcome and status. `left_out` is the number of claims and of traces in quarantine on the way,
    which count nowhere. If not `complete`, there are more than the bound `most`.
    """

    of: str
    decisions: list[Record]
    counts: list[Record]
    left_out: int
    complete: bool
    most: int = MOST_RESTING


class _Step(NamedTuple):
    """How far away a decision is, and the last edge to it."""

    depth: int
    via: str
    rests_on: str


def of_precedent(reader: Reader, decision_id: str) -> Impact:
    """What cites a decision, or took its place, and what rests on those. Raises JournalError."""
    with reader.snapshot() as connection:
        if not impact_queries.shown(connection, [decision_id]):
            raise JournalError(f"precedent: there is no decision {decision_id[:64]!r} in {reader.path}")
        resting: dict[str, _Step] = {}
        complete = _walk(connection, [decision_id], {decision_id}, resting)
        return _impact(connection, decision_id, resting, {}, complete=complete)


def of_pack(reader: Reader, pack: str) -> Impact:
    """The decisions that a pack governed, newest first, and what rests on those. Raises JournalError.

    `pack` is NAME@VERSION, or at least 12 digits of its sha256.
    """
    with reader.snapshot() as connection:
        governed, complete = impact_queries.under_pack(
            connection, pack, limit=MOST_RESTING, most_read=MOST_READ
        )
        known = {row["id"]: row for row in governed}
        resting = {id: _Step(0, "GOVERNED_BY", pack) for id in known}
        complete = _walk(connection, list(resting), set(resting), resting) and complete
        return _impact(connection, pack, resting, known, complete=complete)


def _walk(connection: Connection, level: list[str], visited: set[str], resting: dict[str, _Step]) -> bool:
    """Add what rests on the decisions of a level to `resting`; False if the bound cut it off."""
    depth = 0
    while level:
        depth, following = depth + 1, []
        for start in range(0, len(level), _BATCH):
            limit = 4 * MOST_RESTING  # of edges: several may lead to one decision
            edges = impact_queries.resting(connection, level[start : start + _BATCH], limit)
            for _, id, via, rests_on in edges:
                if id in visited:
                    continue
                if len(resting) >= MOST_RESTING:
                    return False
                visited.add(id)
                following.append(id)
                resting[id] = _Step(depth, via, rests_on)
            if len(edges) == limit:
                return False
        level = following
    return True


def _impact(
    connection: Connection,
    of: str,
    resting: Mapping[str, _Step],
    known: Mapping[str, Record],
    *,
    complete: bool,
) -> Impact:
    """The result. `known` has what is shown of some of the decisions; that of the others is read."""
    shown = {**known, **impact_queries.shown(connection, [id for id in resting if id not in known])}
    decisions, left_out = [], 0
    for id, step in resting.items():
        row = shown.get(id)
        if row is None or not row.pop("counted"):  # an end that an earlier version allowed is no decision
            left_out += row is not None
            continue
        row["depth"], row["via"], row["rests_on"] = step
        decisions.append(row)
    counts = Counter((row["type"], row["outcome"], row["status"]) for row in decisions)
    return Impact(
        of=of,
        decisions=decisions,
        counts=[
            {"type": type_, "outcome": outcome, "status": status, "decisions": count}
            for (type_, outcome, status), count in counts.most_common()
        ],
        left_out=left_out,
        complete=complete,
    )
