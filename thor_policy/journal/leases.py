"""Who holds a decision while reviewing it.

Owns the meaning of `lease` and `release`. Invariant: a lease is given inside the transaction that records it,
so no two reviewers hold one decision at the same time, whichever process wrote either. A lease ends by
itself after its seconds, by a release, and by a review of its holder. Called by the journal's thread.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from thor_policy.journal import events
from thor_policy.journal.events import Event

#: Kinds of event that give or end a lease.
KINDS = frozenset({"assignment", "review"})

#: Newest lease or release of a decision that its holder has not ended by a review, if it lasts still.
_LIVE = """
SELECT reviewer FROM assignments a WHERE a.seq = (
    SELECT max(seq) FROM assignments WHERE decision_id = ? AND type IN ('lease', 'release')
) AND type = 'lease' AND unixepoch(timestamp) + seconds > unixepoch(?) AND NOT EXISTS (
    SELECT 1 FROM reviews r WHERE r.decision_id = a.decision_id AND r.seq > a.seq AND r.reviewer = a.reviewer
)
"""


def note(held: dict[str, str | None], event: Event) -> None:
    """Keep in `held` what an event that is not committed yet means for its decision's lease."""
    body: Any = event.body
    if event.kind == "review":
        if held.get(event.subject_id) == _reviewer(event):
            held[event.subject_id] = None
    elif body["type"] in ("lease", "release"):
        held[event.subject_id] = _reviewer(event) if body["type"] == "lease" else None


def held_by_another(connection: sqlite3.Connection, held: dict[str, str | None], event: Event) -> bool:
    """True if an event asks for a lease, or its end, that somebody else holds."""
    body: Any = event.body
    if body["type"] not in ("lease", "release"):
        return False
    if event.subject_id in held:
        holder = held[event.subject_id]
    else:
        holder = holder_of(connection, event.subject_id, event.at)
    return holder is not None and holder != _reviewer(event)


def holder_of(connection: sqlite3.Connection, decision_id: str, at: float) -> str | None:
    """Who holds a decision at that Unix time; None if nobody does, or one whose name was erased."""
    found = connection.execute(_LIVE, (decision_id, events.timestamp(at))).fetchone()
    return None if found is None else found[0]


def _reviewer(event: Event) -> str | None:
    private: Any = event.private
    return (private or {}).get("reviewer")
