"""The index of similar decisions: a summary of each decision of a store, and its vector.

Owns the making of both, at the centre: a device ships neither, since both follow from its events.
Invariant: a summary is made of what the store holds of a decision, so an erasure, which deletes the
summary, leads to another without what was erased. The main thread of a command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from thor_policy.core.requests import Json
from thor_policy.core.summaries import summary
from thor_policy.fleet.postgres import failing
from thor_policy.fleet.store import Store, vector_text
from thor_policy.journal.events import timestamp

#: Decisions of one transaction.
PAGE = 200

_DUE = """
SELECT d.*, e.body, p.value FROM decisions d
JOIN events e ON e.journal = d.journal AND e.seq = d.seq
LEFT JOIN private p ON p.journal = d.journal AND p.seq = d.seq
WHERE NOT EXISTS (SELECT 1 FROM summaries s
    WHERE s.journal = d.journal AND s.seq = d.seq AND s.embedding IS NOT NULL)
ORDER BY d.journal, d.seq LIMIT %(page)s
"""

_OUTCOMES = "SELECT * FROM outcomes WHERE journal = %(journal)s AND decision_id = %(id)s ORDER BY seq"
_APPROVALS = """
SELECT * FROM approvals WHERE journal = %(journal)s AND (decision_id = %(id)s OR task = %(task)s) ORDER BY seq
"""


class Embedder(Protocol):
    """Makes the vector of a text."""

    def embed(self, text: str) -> Sequence[float]:
        """The vector of a text at unit length, of `store.DIMENSIONS` numbers."""


def index(store: Store, embedder: Embedder, *, progress: Callable[[int], None] = lambda _: None) -> int:
    """Make what is missing; returns how many decisions were indexed. Needs the rights of the owner."""
    done = 0
    while rows := store.ask(_DUE, {"page": PAGE}):
        made = []
        for row in rows:
            text = summary(_trace(store, row))
            made.append((row["journal"], row["seq"], text, vector_text(embedder.embed(text))))
        with failing(), store.connection.transaction(), store.connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO summaries VALUES (%s, %s, %s, %s::vector) ON CONFLICT (journal, seq) "
                "DO UPDATE SET text = excluded.text, embedding = excluded.embedding",
                made,
            )
        done += len(rows)
        progress(done)
    return done


def _trace(store: Store, row: dict[str, Any]) -> dict[str, Json]:
    """What `core.summaries` needs of a decision."""
    about = {"journal": row["journal"], "id": row["decision_id"], "task": row["approval_task"]}
    body, value = row.pop("body"), row.pop("value")
    return {
        "decision": _plain(row),
        "event": {
            "body": msgspec.json.decode(bytes(body)),
            "private": None if value is None else msgspec.json.decode(bytes(value)),
        },
        "outcomes": [_plain(each) for each in store.ask(_OUTCOMES, about)],
        "approvals": [_plain(each) for each in store.ask(_APPROVALS, about)],
    }


def _plain(row: dict[str, Any]) -> dict[str, Json]:
    """A row with its times as the device writes them."""
    return {
        name: timestamp(value.astimezone(UTC).timestamp()) if isinstance(value, datetime) else value
        for name, value in row.items()
    }
