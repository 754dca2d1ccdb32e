"""Vectors of situations in the journal: the erasable side storage from which the index of precedents is made.

Owns the table `vectors`: one row for a decision whose situation was embedded, `change` the number of the
change that wrote it. Invariant: a vector is of the private part that is stored now; an erasure empties it in
its own transaction, under a new `change`, so that a reader of changes drops it. All can be made again from
the events, so `verify` does not read the table. The journal's thread, but for `due`, `newest` and `changes`,
which only read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from msgspec import Struct


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done inside, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


class Made(Struct, frozen=True, kw_only=True):
    """A vector (16-bit floats, little-endian; empty: there is no text) for the decision with number `seq`.

    It was made of what was committed up to the event `upto_seq`.
    """

    seq: int
    vector: bytes
    upto_seq: int


class Change(NamedTuple):
    """A vector that was stored or emptied, and the columns of its decision that filters use."""

    change: int
    seq: int
    vector: bytes
    timestamp: str
    decision_type: str
    pack: str | None
    actor: str | None
    entity: str | None


def forget(connection: sqlite3.Connection, decision_id: str) -> None:
    """Empty the vector of a decision, and mark it as due, inside the caller's transaction."""
    connection.execute(
        "INSERT OR REPLACE INTO vectors (seq, embedder, vector) SELECT v.seq, '', x'' FROM decisions d "
        "JOIN vectors v ON v.seq = d.seq WHERE d.decision_id = ?",
        (decision_id,),
    )


def store(connection: sqlite3.Connection, embedder: str, made: Sequence[Made]) -> int:
    """Store vectors in one transaction; returns how many. One that an erasure overtook stays due."""
    with _transaction(connection):
        kept = [each for each in made if not _erased_since(connection, each.upto_seq)]
        connection.executemany(
            "INSERT OR REPLACE INTO vectors (seq, embedder, vector) VALUES (?, ?, ?)",
            [(each.seq, embedder, each.vector) for each in kept],
        )
    return len(kept)


def empty_others(connection: sqlite3.Connection, embedder: str, after: int, limit: int) -> int | None:
    """Empty vectors of other embedders among the next `limit`, and mark them as due.

    `after` is the number of the decision before them; returns that of the last of them, None if none is left.
    """
    rows = connection.execute(
        "SELECT seq, embedder FROM vectors WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
    ).fetchall()
    with _transaction(connection):
        connection.executemany(
            "INSERT OR REPLACE INTO vectors (seq, embedder, vector) VALUES (?, '', x'')",
            [(seq,) for seq, name in rows if name not in ("", embedder)],
        )
    return int(rows[-1][0]) if rows else None


def _erased_since(connection: sqlite3.Connection, seq: int) -> bool:
    """True if anything was erased after an event. The condition repeats that of the index on subjects."""
    return bool(
        connection.execute(
            "SELECT EXISTS (SELECT 1 FROM events WHERE kind = 'erased' AND subject_id = 'erased' AND seq > ? "
            "AND kind NOT IN ('decision', 'decision_report'))",
            (seq,),
        ).fetchone()[0]
    )


# ---------------------------------------------------------------- reading


def due(connection: sqlite3.Connection, limit: int) -> list[str]:
    """Ids of decisions whose vector is to be made, oldest first: those of an erasure, then the new ones."""
    rows = connection.execute(
        "SELECT d.decision_id FROM vectors v JOIN decisions d ON d.seq = v.seq WHERE v.embedder = '' "
        "ORDER BY v.seq LIMIT ?",
        (limit,),
    ).fetchall()
    rows += connection.execute(
        "SELECT decision_id FROM decisions WHERE seq > (SELECT coalesce(max(seq), 0) FROM vectors) "
        "ORDER BY seq LIMIT ?",
        (limit - len(rows),),
    ).fetchall()
    return list(dict.fromkeys(decision_id for (decision_id,) in rows))


def newest(connection: sqlite3.Connection) -> int:
    """The number of the newest change; 0 before the first."""
    return int(connection.execute("SELECT coalesce(max(change), 0) FROM vectors").fetchone()[0])


def changes(connection: sqlite3.Connection, *, after: int, limit: int) -> list[Change]:
    """Vectors that were stored or emptied after a change, in order, at most `limit`."""
    rows = connection.execute(
        "SELECT v.change, v.seq, v.vector, d.timestamp, d.decision_type, d.prompt_version, d.actor, d.entity "
        "FROM vectors v JOIN decisions d ON d.seq = v.seq WHERE v.change > ? ORDER BY v.change LIMIT ?",
        (after, limit),
    ).fetchall()
    return [Change(*row) for row in rows]


def of_decision(connection: sqlite3.Connection, decision_id: str) -> bytes | None:
    """The vector of a decision; None if there is none."""
    row = connection.execute(
        "SELECT v.vector FROM decisions d JOIN vectors v ON v.seq = d.seq WHERE d.decision_id = ?",
        (decision_id,),
    ).fetchone()
    return (row[0] or None) if row else None
