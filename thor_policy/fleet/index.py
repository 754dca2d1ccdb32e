"""The index of similar decisions: a summary of each decision of a store, its vector, and lists of vectors.

Owns the making of all three, at the centre: a device ships none, since they follow from its events.
Invariant: a summary is made of what the store holds of a decision, so an erasure, which deletes the
summary, leads to another without what was erased; shipping and questions never wait for the lists to be
made. The main thread of a command.
"""

from __future__ import annotations

import math
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
#: Fewer vectors have no lists: all are compared.
LISTED_FROM = 10_000
#: Vectors of a list while there are at most a million; then lists and vectors of a list grow alike, because
#: making lists costs their product.
_LIST_VECTORS, _LINEAR_TO = 1_000, 1_000_000
#: Most lists: making them takes a gigabyte.
_MOST_LISTS = 2_000
#: What pgvector needs to find the centres of lists, for a list and for two lists, in bytes: samples of 50
#: vectors of half precision, and bounds of the distance of each sample and centre.
_LIST_BYTES, _PAIR_BYTES = 50 * 800, 50 * 4 + 8
#: The lock that one command at a time takes to make lists.
_LOCK = 0x7468_6F72

_LISTS_NOW = """
SELECT split_part(option, '=', 2)::integer AS lists
FROM pg_class, unnest(reloptions) option
WHERE oid = to_regclass('thorpolicy.summaries_embedding') AND option LIKE 'lists=%'
"""

_DUE = """
SELECT d.*, e.body, p.value FROM decisions d
JOIN events e ON e.journal = d.journal AND e.seq = d.seq
LEFT JOIN private p ON p.journal = d.journal AND p.seq = d.seq
WHERE (d.journal, d.seq) > (%(journal)s, %(seq)s) AND NOT EXISTS (SELECT 1 FROM summaries s
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
    """Make what is missing; returns how many decisions were indexed. Needs the rights of the owner.

    A summary that is erased meanwhile is made by the next command.
    """
    done, last = 0, {"journal": 0, "seq": 0}
    while rows := store.ask(_DUE, {"page": PAGE, **last}):
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
        last = {name: rows[-1][name] for name in ("journal", "seq")}
        done += len(rows)
        progress(done)
    return done


def lists_due(store: Store) -> int | None:
    """How many lists the vectors are to be arranged in; None while those that are there will do."""
    (vectors,) = store.ask("SELECT count(embedding) AS count FROM summaries")
    lists = lists_for(vectors["count"])
    now = store.ask(_LISTS_NOW)
    return lists if lists and (not now or lists >= 2 * now[0]["lists"]) else None


def lists_for(vectors: int) -> int:
    """How many lists so many vectors have; 0 if none."""
    if vectors < LISTED_FROM:
        return 0
    return min(vectors // _LIST_VECTORS if vectors <= _LINEAR_TO else math.isqrt(vectors), _MOST_LISTS)


def arrange(store: Store, lists: int) -> bool:
    """Make so many lists of the vectors that are there, beside the old ones, which serve until then.

    False if another command makes them now. Needs the rights of the owner.
    """
    memory_kb = max(65_536, (lists * _LIST_BYTES + lists * lists * _PAIR_BYTES) * 5 // 4 // 1024)
    with failing():
        run = store.connection.execute
        locked = run("SELECT pg_try_advisory_lock(%s) AS locked", (_LOCK,)).fetchone()
        if not locked or not locked["locked"]:
            return False
        try:
            run("SELECT set_config('maintenance_work_mem', %s, false)", (f"{memory_kb}kB",))
            run("DROP INDEX IF EXISTS summaries_arranged")  # what a command left that was ended
            statement = (
                "CREATE INDEX CONCURRENTLY summaries_arranged ON summaries "
                f"USING ivfflat ((embedding::halfvec(384)) halfvec_cosine_ops) WITH (lists = {lists:d})"
            )
            run(statement.encode())
            with store.connection.transaction():
                run("DROP INDEX IF EXISTS summaries_embedding")
                run("ALTER INDEX summaries_arranged RENAME TO summaries_embedding")
            run("ANALYZE summaries")
        finally:
            run("SELECT pg_advisory_unlock(%s)", (_LOCK,))
    return True


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
