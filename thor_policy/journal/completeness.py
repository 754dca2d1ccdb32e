"""Completeness: what the trace of a decision must have, what it lacks, and so whether it counts.

Owns the column `lacks` of `decisions`, and the conditions behind it. Invariant: `lacks` is a function of what
the tables hold (`lacking`), computed again in the transaction of each record that may complete the trace, so
a trace leaves quarantine with that record and no other way. An erased member counts as there: an erasure puts
no trace into quarantine. The journal's thread; `lacking` also by `verify`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec

from thor_policy.core.traces import EDGE
from thor_policy.journal.events import Part

#: The condition for decisions whose trace is complete.
COMPLETE = "lacks IS NULL"

_DECIDED_HERE = "d.tier IN ('rule', 'cache', 'model', 'fallback')"
#: Where a decision itself has what can be required of it.
_MEMBERS = {
    "actor": "d.actor IS NOT NULL",
    "entity": "d.entity IS NOT NULL",
    "reasoning": "d.reasoning IS NOT NULL",
    "confidence": "d.confidence IS NOT NULL",
    "confidence_level": "d.confidence_level IS NOT NULL",
    "risk": "d.risk_level IS NOT NULL",
    "session": "d.session IS NOT NULL",
    "timestamp_decision": f"d.timestamp_decision IS NOT NULL OR {_DECIDED_HERE}",
}
#: Where a record, or a column that follows from one, has it.
_RECORDS = {
    "policy_version": "d.prompt_version IS NOT NULL",
    "approved_by": "EXISTS (SELECT 1 FROM approvals a WHERE a.decision_id = d.decision_id "
    "AND a.verdict = 'approved') OR EXISTS (SELECT 1 FROM approvals a WHERE a.task = d.approval_task "
    "AND a.task IS NOT NULL AND a.verdict = 'approved')",
    "source_data": "EXISTS (SELECT 1 FROM consultations c WHERE c.decision_id = d.decision_id) "
    "OR EXISTS (SELECT 1 FROM consultations c WHERE c.session = d.session AND c.session IS NOT NULL)",
    "outcome": "EXISTS (SELECT 1 FROM outcomes o WHERE o.decision_id = d.decision_id "
    "AND o.status <> 'PENDING' AND o.claimed IS NOT 1)",
    "review": "d.reviewed = 1",
}
_SUPPLIED = (
    "EXISTS (SELECT 1 FROM supplements s, json_each(s.names) n WHERE s.decision_id = d.decision_id "
    "AND s.claimed IS NOT 1 AND n.value = '{name}')"
)
_ERASED = "EXISTS (SELECT 1 FROM erasures e WHERE e.seq = d.seq AND length(e.digest) = 0)"
#: Kinds of event that may complete the trace of the decision that they are about.
COMPLETING = frozenset(
    {"approval", "consultation", "outcome", "review", "explanation", "supplement", "erased"}
)


def _condition(name: str) -> str:
    """The SQL condition under which the decision `d` has what is required; false for an unknown name."""
    if name in _MEMBERS:
        return f"({_MEMBERS[name]} OR {_SUPPLIED.format(name=name)} OR {_ERASED})"
    if name in _RECORDS:
        return f"({_RECORDS[name]})"
    if EDGE.fullmatch(name):
        kind = name.removeprefix("edge:")
        return f"EXISTS (SELECT 1 FROM edges g WHERE g.source = d.decision_id AND g.type = '{kind}')"
    return "0"


def lacking(connection: sqlite3.Connection, seq: int) -> tuple[str | None, str | None]:
    """What the trace of a decision lacks, as its column says and as the tables say: JSON, None for nothing.

    Both are of one moment.
    """
    (required,) = connection.execute("SELECT required FROM decisions WHERE seq = ?", (seq,)).fetchone()
    names: list[str] = msgspec.json.decode(required) if required else []
    if not names:
        return connection.execute("SELECT lacks FROM decisions WHERE seq = ?", (seq,)).fetchone()[0], None
    conditions = ", ".join(map(_condition, names))
    stored, *held = connection.execute(
        f"SELECT d.lacks, {conditions} FROM decisions d WHERE d.seq = ?", (seq,)
    ).fetchone()
    left = [name for name, holds in zip(names, held, strict=True) if not holds]
    return stored, msgspec.json.encode(left).decode() if left else None


class Touched:
    """The decisions whose traces the events of a batch may complete."""

    def __init__(self) -> None:
        self._decisions: dict[str, None] = {}
        self._sessions: dict[str, None] = {}

    def decided(self, decision_id: str) -> None:
        """A decision with requirements is in the batch."""
        self._decisions[decision_id] = None

    def add(self, kind: str, subject_id: str, body: Part) -> None:
        """An event is in the batch."""
        if kind in COMPLETING:
            self._decisions[subject_id] = None
            if kind == "consultation" and isinstance(body, dict) and body.get("session"):
                self._sessions[body["session"]] = None
        elif kind == "edge" and isinstance(body, dict):
            self._decisions[body["source"]] = None

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Compute `lacks` of these decisions again, inside the caller's transaction."""
        of_those = "SELECT seq FROM decisions WHERE required IS NOT NULL AND"
        for column, values in (("decision_id", self._decisions), ("session", self._sessions)):
            for value in values:
                rows = connection.execute(f"{of_those} {column} = ?", (value,)).fetchall()
                _refresh(connection, [seq for (seq,) in rows])


def _refresh(connection: sqlite3.Connection, seqs: Iterable[int]) -> None:
    for seq in seqs:
        stored, left = lacking(connection, seq)
        if stored != left:
            connection.execute("UPDATE decisions SET lacks = ? WHERE seq = ?", (left, seq))
