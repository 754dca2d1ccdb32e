"""What the watch for alerts reads: results and decisions since an event, and which alerts are raised.

Owns these queries. Invariant: each reads a bounded number of rows by an index, so its time depends on what is
new and not on the length of the journal. Claims, quarantined traces and decisions of tests are left out. Any
thread, on the connection of a `Reader.snapshot`.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from thor_policy.core.requests import Json


class Result(NamedTuple):
    """The recorded outcome of a decision; `actor` is None if it was erased, `model` where there was none."""

    decision_id: str
    success: bool
    actor: str | None
    model: str | None


class Raised(NamedTuple):
    """An alert that is raised; `name` is None if there is none, or if it was erased."""

    id: str
    kind: str
    of: str | None
    name: str | None


def results_after(connection: sqlite3.Connection, seq: int, limit: int) -> tuple[list[Result], int, int]:
    """Results among the next `limit` recorded outcomes after an event; how many those are; the last one."""
    rows = connection.execute(
        "SELECT o.seq, o.decision_id, o.status, o.claimed, d.actor, d.model_name, "
        "d.claimed IS 'report' OR d.lacks IS NOT NULL OR d.scenario_id IS NOT NULL "
        "FROM (SELECT seq, decision_id, status, claimed FROM outcomes WHERE seq > ? ORDER BY seq LIMIT ?) o "
        "CROSS JOIN decisions d ON d.decision_id = o.decision_id",
        (seq, limit),
    ).fetchall()
    results = [
        Result(decision_id, status == "SUCCESS", actor, model)
        for _, decision_id, status, claimed, actor, model, left_out in rows
        if status in ("SUCCESS", "FAILURE") and not claimed and not left_out
    ]
    return results, len(rows), max((row[0] for row in rows), default=seq)


def before_newest_outcomes(connection: sqlite3.Connection, count: int) -> int:
    """The event before the newest `count` recorded outcomes."""
    (seq,) = connection.execute(
        "SELECT min(seq) FROM (SELECT seq FROM outcomes ORDER BY seq DESC LIMIT ?)", (count,)
    ).fetchone()
    return 0 if seq is None else int(seq) - 1


def decisions_after(connection: sqlite3.Connection, seq: int, limit: int) -> tuple[int, int, int]:
    """How many of the next `limit` decisions after an event are no tests; how many; the last one."""
    counted, rows, last = connection.execute(
        "SELECT sum(scenario_id IS NULL), count(*), max(seq) FROM "
        "(SELECT seq, scenario_id FROM decisions WHERE seq > ? ORDER BY seq LIMIT ?)",
        (seq, limit),
    ).fetchone()
    return counted or 0, rows, seq if last is None else last


def newest_decision(connection: sqlite3.Connection) -> int:
    """The event of the newest decision; 0 without one."""
    (seq,) = connection.execute("SELECT coalesce(max(seq), 0) FROM decisions").fetchone()
    return int(seq)


def raised(connection: sqlite3.Connection) -> list[Raised]:
    """The alerts that are raised, oldest first."""
    rows = connection.execute(
        "SELECT id, kind, of, name FROM alerts a WHERE state = 'raised' AND NOT EXISTS "
        "(SELECT 1 FROM alerts c WHERE c.id = a.id AND c.state = 'cleared') ORDER BY seq"
    )
    return [Raised(*row) for row in rows]


def alerts(connection: sqlite3.Connection, limit: int, *, only_raised: bool = False) -> list[dict[str, Json]]:
    """The newest alerts with the figures at which they were raised; `cleared` is None for a raised one."""
    cursor = connection.execute(
        "SELECT a.id, a.timestamp AS raised, c.timestamp AS cleared, a.kind, a.of, a.name, a.value, a.low, "
        "a.high, a.sample, a.threshold FROM alerts a "
        "LEFT JOIN alerts c ON c.id = a.id AND c.state = 'cleared' "
        f"WHERE a.state = 'raised' {'AND c.seq IS NULL' if only_raised else ''} ORDER BY a.seq DESC LIMIT ?",
        (limit,),
    )
    names = [name for name, *_ in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
