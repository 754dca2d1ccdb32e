"""Leases: which reviewer holds a decision.

Owns the meaning of `lease` and `release`. Invariant: a lease is granted inside the transaction that records
it, so two reviewers never hold one decision at the same time, whichever process wrote the leases. A lease
ends after its seconds by the clock of the boot, by a release, by a review of its holder, or with the boot:
nobody knows how long a machine was off, and no reviewer may wait for a lease that never ends. Called by the
journal's thread.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from thor_policy.journal.events import Event
from thor_policy.telemetry.clocks import Instant

#: Kinds of event that grant or end a lease.
KINDS = frozenset({"assignment", "review"})

#: The holder of the newest lease of a decision, unless it was released, has expired, or ended by a review.
#: A lease whose event was archived has ended.
_LIVE = """
SELECT reviewer FROM assignments a JOIN events e ON e.seq = a.seq WHERE a.seq = (
    SELECT max(seq) FROM assignments WHERE decision_id = ? AND type IN ('lease', 'release')
) AND type = 'lease' AND e.boot_id = ? AND e.mono_ns + seconds * 1000000000 > ? AND NOT EXISTS (
    SELECT 1 FROM reviews r WHERE r.decision_id = a.decision_id AND r.seq > a.seq AND r.reviewer = a.reviewer
)
"""


def note_uncommitted(holders: dict[str, str | None], event: Event) -> None:
    """Update `holders`, by decision, with an event that is not committed yet. None: nobody holds it."""
    body: Any = event.body
    if event.kind == "review":
        if holders.get(event.subject_id) == _reviewer(event):
            holders[event.subject_id] = None
    elif body["type"] in ("lease", "release"):
        holders[event.subject_id] = _reviewer(event) if body["type"] == "lease" else None


def held_by_another(
    connection: sqlite3.Connection, holders: dict[str, str | None], event: Event, now: Instant
) -> bool:
    """True if an event requests or releases a lease that another reviewer holds."""
    body: Any = event.body
    if body["type"] not in ("lease", "release"):
        return False
    if event.subject_id in holders:
        holder = holders[event.subject_id]
    else:
        holder = holder_of(connection, event.subject_id, now)
    return holder is not None and holder != _reviewer(event)


def holder_of(connection: sqlite3.Connection, decision_id: str, now: Instant) -> str | None:
    """Who holds a decision; None if nobody does, or if the holder's name was erased."""
    row = connection.execute(_LIVE, (decision_id, *now)).fetchone()
    return None if row is None else row[0]


def _reviewer(event: Event) -> str | None:
    private: Any = event.private
    return (private or {}).get("reviewer")
