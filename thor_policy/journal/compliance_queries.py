"""Queries of compliance: the decisions of a type in a time span, who approved each, and what became of it.

Owns the queries of `thor_policy.trace.compliance`. Invariant: a page reads the index of the type, newest
first, and then a bounded number of rows for each decision; and what was recorded after the event `newest` is
in no page, so all pages of a report show one state. Any thread or process, on the connection of a
`Reader.snapshot`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from thor_policy.core.decisions import PackInfo
from thor_policy.core.requests import Caller
from thor_policy.journal.reader import OF_TESTS, Record
from thor_policy.journal.schema import COMMON, rare_condition
from thor_policy.journal.trace_queries import Connection, policy_period, rows

#: The type that stands for every decision that is marked as an exception, too.
EXCEPTION = "exception"
#: Most approvals, and most changes of state, that are listed of one decision; the others are counted.
MOST_RECORDS = 100

_COLUMNS = f"""
d.seq, d.decision_id, d.timestamp, d.timestamp_decision, d.decision_type, d.is_exception, d.decision,
d.lifted, d.actor, d.action, d.entity, d.tier, d.prompt_version, d.caller_uid, d.approval_task,
CASE WHEN d.claimed = 'report' THEN 'claims' WHEN d.lacks IS NOT NULL THEN 'quarantined'
     WHEN {OF_TESTS} THEN 'tests' END AS left_out, e.body
"""
#: The plus sign keeps the index on timestamp away: the indexes of types go by `seq`, and have the time too.
_IN_SPAN = "seq < :before AND +timestamp >= :since AND +timestamp < :until"
_OF_TYPE = f"SELECT seq FROM decisions WHERE decision_type = :type AND {_IN_SPAN}"
_EXCEPTIONS = f"SELECT seq FROM decisions WHERE is_exception = 1 AND {_IN_SPAN}"
_WITH_EVENT = "LEFT JOIN events e ON e.seq = {}.seq WHERE"
_APPROVALS = f"""
SELECT a.seq, a.timestamp AS at, a.verdict, a.approver, a.role, a.channel, a.evidence, a.recorded_by, a.task,
       a.step, a.caller_uid, e.body
FROM approvals a {_WITH_EVENT.format("a")} a.decision_id = :id AND a.seq <= :newest
UNION
SELECT a.seq, a.timestamp, a.verdict, a.approver, a.role, a.channel, a.evidence, a.recorded_by, a.task,
       a.step, a.caller_uid, e.body
FROM approvals a {_WITH_EVENT.format("a")} a.task = :task AND a.task IS NOT NULL AND a.seq <= :newest
ORDER BY 1
"""
_STATES = f"""
SELECT s.seq, s.timestamp AS at, s.status, s."by", s.because, s.caller_uid, e.body
FROM trace_states s {_WITH_EVENT.format("s")} s.decision_id = :id AND s.seq <= :newest ORDER BY s.seq
"""


class Scope(Struct, frozen=True, kw_only=True):
    """What a report is about: a type, a span of recorded times, and the `newest` event that it knows."""

    type: str
    since: str
    until: str
    newest: int


class _Recorded(Struct, frozen=True):
    """What the event of a record says of itself."""

    caller: Caller | None = None
    pack: PackInfo | None = None


def page(connection: Connection, scope: Scope, *, before: int, limit: int) -> list[Record]:
    """The decisions of the scope with a smaller `seq` than `before`, newest first, at most `limit`.

    `before` is at most the event after `newest`.
    Each has `left_out`: why it counts nowhere (`quarantined`, `claims`, `tests`), or None.
    """
    of_type = _OF_TYPE
    if scope.type not in COMMON["decision_type"]:
        of_type += f" AND {rare_condition('decision_type', COMMON['decision_type'])}"
    if scope.type == EXCEPTION:
        of_type += f" UNION {_EXCEPTIONS}"
    return rows(
        connection,
        f"SELECT {_COLUMNS} FROM ({of_type} ORDER BY seq DESC LIMIT :limit) c JOIN decisions d "
        "ON d.seq = c.seq LEFT JOIN events e ON e.seq = d.seq ORDER BY d.seq DESC",
        {
            "type": scope.type,
            "since": scope.since,
            "until": scope.until,
            "before": before,
            "limit": limit,
        },
    )


def who(record: Mapping[str, Any]) -> str | None:
    """The caller of the event of a record: `uid:1000`, `key:laptop`.

    Of an archived event the uid alone is left, so a caller over tcp is None.
    """
    if record["body"] is not None:
        caller = msgspec.json.decode(record["body"], type=_Recorded).caller
        return None if caller is None else caller.who
    return None if record["caller_uid"] is None else f"uid:{record['caller_uid']}"


def policy(connection: Connection, decision: Mapping[str, Any], until: str) -> Record | None:
    """The pack that governed a decision, and from when to when it was the active one; None: no pack did.

    `sha256` has 12 digits where the event is archived and the pack was never activated.
    """
    version = decision["prompt_version"]
    if version is None:
        return None
    name, _, rest = version.partition("@")
    number, _, sha256 = rest.rpartition("+")
    pack = None
    if decision["body"] is not None:
        pack = msgspec.json.decode(decision["body"], type=_Recorded).pack
    if pack is not None:
        sha256 = pack.sha256
    else:
        known = connection.execute(
            "SELECT sha256 FROM packs WHERE name = ? AND substr(sha256, 1, 12) = ? LIMIT 1", (name, sha256)
        ).fetchone()
        sha256 = known[0] if known else sha256
    first, last = policy_period(connection, version, decision["seq"], until)
    return {
        "name": name,
        "version": number,
        "sha256": sha256,
        "effective_from": first,
        "effective_to": last,
    }


def approvals(connection: Connection, decision: Mapping[str, Any], newest: int) -> list[Record]:
    """The verdicts about a decision, and those of the task that lifted it, in order of recording."""
    values = {"id": decision["decision_id"], "task": decision["approval_task"], "newest": newest}
    return rows(connection, _APPROVALS, values)


def states(connection: Connection, decision_id: str, newest: int) -> list[Record]:
    """The changes of the state of a decision, in order of recording."""
    return rows(connection, _STATES, {"id": decision_id, "newest": newest})


def place(connection: Connection, decision_id: str) -> int | None:
    """The event of a decision; None if there is no such decision."""
    row = connection.execute("SELECT seq FROM decisions WHERE decision_id = ?", (decision_id,)).fetchone()
    return None if row is None else int(row[0])


def newest_event(connection: Connection) -> int:
    """The number of the newest event; 0 before the first."""
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])


def chain_name(connection: Connection) -> str | None:
    """The hash of event 1, which names the chain; None before the first event."""
    row = connection.execute(
        "SELECT lower(hex(hash)) FROM events WHERE seq = 1 UNION ALL SELECT chain FROM archives LIMIT 1"
    ).fetchone()
    return None if row is None else str(row[0])


def hash_of(connection: Connection, seq: int) -> str | None:
    """The hash of an event; None if it is archived."""
    row = connection.execute("SELECT lower(hex(hash)) FROM events WHERE seq = ?", (seq,)).fetchone()
    return None if row is None else str(row[0])
