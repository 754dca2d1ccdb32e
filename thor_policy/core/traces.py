"""What a complete trace has, and the names of what a context summary can say.

Owns the closed lists behind `trace.complete` and `trace.summaries` of a pack. Invariant: a name that is not
in them is refused when the pack is loaded, so a trace is never held for something that nobody can add. Pure;
any thread.
"""

from __future__ import annotations

import re

#: What can be required of a trace: a member of the decision, or something that a later record adds.
REQUIREMENTS: dict[str, str] = {
    "actor": "who decided, or for whom",
    "entity": "what the decision is about",
    "reasoning": "why",
    "confidence": "a confidence from 0 to 1",
    "confidence_level": "high, medium or low",
    "risk": "low, medium, high or critical",
    "session": "the session that it belongs to",
    "timestamp_decision": "when the decision was made",
    "policy_version": "the pack that governs it",
    "approved_by": "an approval with the verdict approved",
    "source_data": "data that was consulted",
    "outcome": "how it turned out: SUCCESS or FAILURE",
    "review": "a review by a person",
}
#: Requirements that only a record of their own adds, and the op of that record. `supplement` adds the others.
ADDED_BY = {
    "approved_by": "approval",
    "source_data": "consultation",
    "outcome": "outcome",
    "review": "review",
    "policy_version": "decision_report",
}
#: A requirement of an edge from the decision: `edge:CITES`.
EDGE = re.compile(r"edge:[A-Za-z][A-Za-z0-9_]{0,63}")


def is_requirement(name: str) -> bool:
    """True for a name that `trace.complete` may have."""
    return name in REQUIREMENTS or EDGE.fullmatch(name) is not None


def cure_of(name: str) -> str:
    """What completes a trace that lacks `name`: the op of a record."""
    return "edge" if name.startswith("edge:") else ADDED_BY.get(name, "supplement")
