"""What is recorded of canaries: the newest one, the decisions and results of its arms, and past performance.

Owns these queries. Invariant: each page reads a bounded number of rows by an index; claims, quarantined
traces, decisions of tests and those that an approval lifted count in no figure of success. Any thread, on the
connection of a `Reader.snapshot`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from thor_policy.core.canary import Breach, Canary, Cause
from thor_policy.core.requests import Json
from thor_policy.journal.reader import COUNTED, NOT_LIFTED, OF_TESTS

_BREACH = ("condition", "value", "low", "high", "level", "sample", "control_sample", "threshold")
#: The condition for decisions of which it is known how they turned out.
_KNOWN = "(outcome_status IN ('SUCCESS', 'FAILURE') OR (reviewed = 1 AND decision_correct IS NOT NULL))"
#: How a decision turned out: what a reviewer says, else what became of it.
_GOOD = "iif(reviewed = 1 AND decision_correct IS NOT NULL, decision_correct, outcome_status = 'SUCCESS')"
_COUNTS = f"{_KNOWN} AND {COUNTED} AND {NOT_LIFTED} AND NOT {OF_TESTS}"


class Known(NamedTuple):
    """A canary with its newest share: the event that started it, and how it ended, if it did."""

    canary: Canary
    seq: int
    started: str
    cause: Cause | None
    ended: str | None
    breach: Breach | None
    reason: str | None


class Decided(NamedTuple):
    """A decision of an arm. `took_ms` is the time of rules and model alone."""

    decision_id: str
    canary: str
    arm: str
    note: str | None
    tier: str
    took_ms: float


class Result(NamedTuple):
    """How a decision of an arm turned out; `good` is None if it does not count any more."""

    decision_id: str
    canary: str
    arm: str
    good: bool | None


class Compared(NamedTuple):
    """An outcome that a candidate served, and that of the active pack on the same question."""

    canary: str
    served: str
    active: str


class Record(NamedTuple):
    """What a pack on a model has behind it: how many of its decisions turned out well."""

    pack: str
    model: str | None
    hits: int
    of: int


def newest(connection: sqlite3.Connection) -> Known | None:
    """The canary that was started last; None if there was none."""
    row = connection.execute(
        "SELECT id FROM canaries WHERE state = 'started' ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    return None if row is None else _known(connection, row[0])


def newest_first(connection: sqlite3.Connection, limit: int) -> list[Known]:
    """At most `limit` canaries, newest first."""
    ids = connection.execute(
        "SELECT id FROM canaries WHERE state = 'started' ORDER BY seq DESC LIMIT ?", (limit,)
    ).fetchall()
    return [_known(connection, canary_id) for (canary_id,) in ids]


def _known(connection: sqlite3.Connection, canary_id: str) -> Known:
    cursor = connection.execute("SELECT * FROM canaries WHERE id = ? ORDER BY seq", (canary_id,))
    names = [name for name, *_ in cursor.description]
    rows = [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
    first = next(row for row in rows if row["state"] == "started")
    canary = msgspec.json.decode(first["spec"], type=Canary)
    cause = ended = breach = reason = None
    for row in rows:
        if row["state"] == "resized":
            canary = replace(canary, share=row["share"])
        elif row["state"] == "ended":
            cause, ended, reason = row["cause"], row["timestamp"], row["reason"]
            if row["condition"] is not None:
                breach = Breach(**{name: row[name] for name in _BREACH})
    return Known(canary, first["seq"], first["timestamp"], cause, ended, breach, reason)


def decided_after(connection: sqlite3.Connection, seq: int, limit: int) -> tuple[list[Decided], int, int]:
    """Those with an arm among the next `limit` decisions after an event; how many those are; the last one."""
    rows = connection.execute(
        "SELECT seq, decision_id, canary, canary_arm, canary_note, tier, rules_ms + score_ms "
        "FROM decisions WHERE seq > ? ORDER BY seq LIMIT ?",
        (seq, limit),
    ).fetchall()
    decided = [Decided(*row[1:]) for row in rows if row[2] is not None]
    return decided, len(rows), rows[-1][0] if rows else seq


def results_after(connection: sqlite3.Connection, seq: int, limit: int) -> tuple[list[Result], int, int]:
    """What became of decisions with an arm that the next `limit` outcomes and reviews after an event are
    about; how many those are; the last one."""
    rows = connection.execute(
        "SELECT seq, decision_id FROM ("
        "SELECT * FROM (SELECT seq, decision_id FROM outcomes WHERE seq > ? ORDER BY seq LIMIT ?) UNION ALL "
        "SELECT * FROM (SELECT seq, decision_id FROM reviews WHERE seq > ? ORDER BY seq LIMIT ?)"
        ") ORDER BY seq LIMIT ?",
        (seq, limit, seq, limit, limit),
    ).fetchall()
    results = [
        Result(*row)
        for decision_id in dict.fromkeys(decision_id for _, decision_id in rows)
        for row in connection.execute(
            f"SELECT decision_id, canary, canary_arm, iif({_COUNTS}, {_GOOD}, NULL) FROM decisions "
            "WHERE decision_id = ? AND canary IS NOT NULL",
            (decision_id,),
        )
    ]
    return results, len(rows), rows[-1][0] if rows else seq


def compared_after(connection: sqlite3.Connection, seq: int, limit: int) -> tuple[list[Compared], int, int]:
    """What the active pack said in place of candidates, among the next `limit` shadows after an event; how
    many those are; the last one."""
    rows = connection.execute(
        "SELECT s.seq, d.canary, s.served, s.decision, d.canary_arm, s.tier FROM (SELECT seq, decision_id, "
        "served, decision, tier FROM shadows WHERE seq > ? ORDER BY seq LIMIT ?) s "
        "LEFT JOIN decisions d ON d.decision_id = s.decision_id ORDER BY s.seq",
        (seq, limit),
    ).fetchall()
    compared = [Compared(*row[1:4]) for row in rows if row[4] == "canary" and row[5] != "fallback"]
    return compared, len(rows), rows[-1][0] if rows else seq


def performance(connection: sqlite3.Connection) -> list[Record]:
    """How the decisions of each pack on each model turned out; `model` is None where rules alone decided."""
    rows = connection.execute(
        f"SELECT prompt_version, model_version, sum({_GOOD}), count(*) FROM decisions "
        f"WHERE (outcome_status IS NOT NULL OR reviewed = 1) AND {_COUNTS} AND prompt_version IS NOT NULL "
        "AND tier IN ('rule', 'cache', 'model', 'fallback') GROUP BY 1, 2"
    )
    return [Record(pack, model, int(hits), of) for pack, model, hits, of in rows]


def as_rows(known: list[Known]) -> Iterator[dict[str, Json]]:
    """Canaries as plain values, for lists."""
    for each in known:
        yield {
            "id": each.canary.id,
            "state": each.cause or "running",
            "started": each.started,
            "ended": each.ended,
            "share": each.canary.share,
            "pack": each.canary.pack,
            "model": each.canary.model,
            "adapter": each.canary.adapter,
            "against": each.canary.against,
            "terms": each.canary.terms,
            "breach": each.breach,
            "reason": each.reason,
        }
