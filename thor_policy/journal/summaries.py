"""Context summaries in the journal: their texts, the index of their words, and which are still to be made.

Owns the tables `summaries`, `summaries_words` (FTS5) and `summaries_due`. Invariant: a text is of the records
that are committed when it is stored; a later record marks it as due in its own transaction, and an erasure
deletes it in its own. All three can be made again from the other tables, so `verify` does not read them. The
journal's thread, but for `due` and `search`, which only read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from msgspec import Struct

#: Kinds of event about a decision that its summary shows.
SHOWN = frozenset({"approval", "consultation", "outcome", "review", "explanation", "supplement"})


class Made(Struct, frozen=True, kw_only=True):
    """A text for the decision `decision_id`, made of what was committed up to the event `upto_seq`."""

    decision_id: str
    text: str
    upto_seq: int


def note_changes(connection: sqlite3.Connection, decision_ids: Iterable[str], by_seq: int) -> None:
    """Mark the summaries of these decisions as due, inside the caller's transaction.

    A decision without one is due anyway: `due` finds it by its number.
    """
    connection.executemany(
        "INSERT OR REPLACE INTO summaries_due SELECT d.seq, ? FROM decisions d "
        "JOIN summaries s ON s.seq = d.seq WHERE d.decision_id = ?",
        [(by_seq, decision_id) for decision_id in decision_ids],
    )


def forget(connection: sqlite3.Connection, decision_id: str, by_seq: int) -> None:
    """Delete the summary of a decision and its words, and mark it as due, inside the caller's transaction."""
    row = connection.execute(
        "SELECT s.seq, s.text FROM summaries s JOIN decisions d ON d.seq = s.seq WHERE d.decision_id = ?",
        (decision_id,),
    ).fetchone()
    if row is not None:
        _delete(connection, *row)
        connection.execute("INSERT OR REPLACE INTO summaries_due VALUES (?, ?)", (row[0], by_seq))


def _delete(connection: sqlite3.Connection, seq: int, text: str) -> None:
    delete_words = "INSERT INTO summaries_words (summaries_words, rowid, text) VALUES ('delete', ?, ?)"
    connection.execute(delete_words, (seq, text))
    connection.execute("DELETE FROM summaries WHERE seq = ?", (seq,))


def store(connection: sqlite3.Connection, made: Sequence[Made]) -> int:
    """Store texts in one transaction; returns how many. One that a later record made old is due again."""
    stored = 0
    connection.execute("BEGIN IMMEDIATE")
    try:
        for each in made:
            (seq,) = connection.execute(
                "SELECT seq FROM decisions WHERE decision_id = ?", (each.decision_id,)
            ).fetchone()
            if _changed_since(connection, each, seq):
                connection.execute("INSERT OR REPLACE INTO summaries_due VALUES (?, ?)", (seq, each.upto_seq))
                continue
            old = connection.execute("SELECT text FROM summaries WHERE seq = ?", (seq,)).fetchone()
            if old is not None:
                _delete(connection, seq, old[0])
            connection.execute("INSERT INTO summaries VALUES (?, ?)", (seq, each.text))
            connection.execute("INSERT INTO summaries_words (rowid, text) VALUES (?, ?)", (seq, each.text))
            connection.execute("DELETE FROM summaries_due WHERE seq = ?", (seq,))
            stored += 1
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    return stored


def _changed_since(connection: sqlite3.Connection, made: Made, seq: int) -> bool:
    """True if a record about the decision, or an erasure, was committed after the text was made."""
    return bool(
        connection.execute(
            "SELECT EXISTS (SELECT 1 FROM events WHERE subject_id = ? AND seq > ? "
            "AND kind NOT IN ('decision', 'decision_report')) "
            "OR EXISTS (SELECT 1 FROM summaries_due WHERE seq = ? AND by_seq > ?) "
            "OR EXISTS (SELECT 1 FROM events WHERE kind = 'erased' AND subject_id = 'erased' AND seq > ? "
            "AND kind NOT IN ('decision', 'decision_report'))",
            (made.decision_id, made.upto_seq, seq, made.upto_seq, made.upto_seq),
        ).fetchone()[0]
    )


def drop_remains(connection: sqlite3.Connection) -> None:
    """Take the words of deleted summaries out of the index, where they stay until its parts are merged."""
    connection.execute("INSERT INTO summaries_words (summaries_words) VALUES ('optimize')")


# ---------------------------------------------------------------- reading


def due(connection: sqlite3.Connection, limit: int) -> list[str]:
    """Ids of decisions whose summary is to be made, oldest first: those that changed, then the new ones."""
    rows = connection.execute(
        "SELECT d.decision_id FROM summaries_due s JOIN decisions d ON d.seq = s.seq ORDER BY s.seq LIMIT ?",
        (limit,),
    ).fetchall()
    rows += connection.execute(
        "SELECT decision_id FROM decisions WHERE seq > (SELECT coalesce(max(seq), 0) FROM summaries) "
        "ORDER BY seq LIMIT ?",
        (limit - len(rows),),
    ).fetchall()
    return list(dict.fromkeys(decision_id for (decision_id,) in rows))


def quoted(words: Sequence[str]) -> str:
    """A query of FTS5 for texts with all of these words; `"two words"` in one argument stand side by side.

    Everything is quoted: no character of a word is an operator of the query language. NUL, which would end
    the query, and what is no Unicode are left out.
    """
    plain = (word.replace("\0", " ").encode("utf-8", "replace").decode() for word in words)
    return " ".join('"' + word.replace('"', '""') + '"' for word in plain)
