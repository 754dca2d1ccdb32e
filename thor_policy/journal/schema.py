"""The shape of the journal file, as numbered migrations that are only ever appended to.

Owns the DDL. Invariant: a file that opens has exactly the migrations of this list; a file from a newer
version is refused, never guessed at. Used by whoever opens the file for writing, before anything else.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing

from sqlite_utils import Database, Migrations

from thor_policy.errors import JournalError

migrations = Migrations("thor_policy")


@migrations(name="0001_events")
def _events(db: Database) -> None:
    """The chain, and the side table whose values can be erased without breaking it."""
    db.execute(
        """
        CREATE TABLE events (
            seq        INTEGER PRIMARY KEY,
            at         TEXT NOT NULL,
            boot_id    TEXT NOT NULL,
            mono_ns    INTEGER NOT NULL,
            kind       TEXT NOT NULL,
            subject_id TEXT NOT NULL,
            body       TEXT NOT NULL,
            prev_hash  BLOB NOT NULL,
            hash       BLOB NOT NULL
        ) STRICT
        """
    )
    db.execute("CREATE INDEX events_subject ON events (subject_id)")
    db.execute(
        """
        CREATE TABLE private (
            seq   INTEGER PRIMARY KEY,
            salt  BLOB NOT NULL,
            value TEXT NOT NULL
        ) STRICT
        """
    )


@migrations(name="0002_decisions")
def _decisions(db: Database) -> None:
    """One row a decision, one column a fact."""
    db.execute(
        """
        CREATE TABLE decisions (
            decision_id        TEXT PRIMARY KEY,
            seq                INTEGER NOT NULL,
            timestamp          TEXT NOT NULL,
            situation          TEXT NOT NULL,
            team_context       TEXT,
            model_name         TEXT,
            model_version      TEXT,
            prompt_version     TEXT NOT NULL,
            decision           TEXT NOT NULL,
            classification     TEXT,
            risk_level         TEXT NOT NULL,
            reasoning          TEXT,
            full_response      TEXT,
            expected_decision  TEXT,
            decision_correct   INTEGER,
            reasoning_coverage REAL,
            reviewed           INTEGER NOT NULL DEFAULT 0,
            review_decision    TEXT,
            review_reasoning   TEXT,
            review_timestamp   TEXT,
            scenario_id        TEXT,
            tags               TEXT NOT NULL DEFAULT '[]',
            allow              INTEGER NOT NULL,
            tier               TEXT NOT NULL,
            reason_code        TEXT,
            floor              TEXT NOT NULL,
            label              TEXT,
            confidence         REAL,
            probabilities      TEXT NOT NULL,
            clauses            TEXT NOT NULL,
            subject_type       TEXT NOT NULL,
            subject_id         TEXT NOT NULL,
            action             TEXT NOT NULL,
            resource_type      TEXT NOT NULL,
            resource_id        TEXT NOT NULL,
            caller_uid         INTEGER,
            pack_name          TEXT NOT NULL,
            pack_sha256        TEXT NOT NULL,
            model_sha256       TEXT,
            queue_ms           REAL NOT NULL,
            rules_ms           REAL NOT NULL,
            score_ms           REAL NOT NULL,
            explain_ms         REAL
        ) STRICT
        """
    )
    db.execute("CREATE INDEX decisions_timestamp ON decisions (timestamp)")
    db.execute("CREATE INDEX decisions_reviewed ON decisions (reviewed, timestamp)")
    db.execute("CREATE INDEX decisions_correct ON decisions (decision_correct, timestamp)")
    db.execute("CREATE INDEX decisions_subject ON decisions (subject_id, timestamp)")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a file up to date. Raises JournalError if a newer version wrote it."""
    db = Database(connection)
    with closing(Database(memory=True)) as empty:
        ours = {migration.name for migration in migrations.pending(empty)}
    if newer := sorted({migration.name for migration in migrations.applied(db)} - ours):
        raise JournalError(
            f"the journal was written by a newer version (it has {', '.join(newer)}); upgrade thor-policy"
        )
    migrations.apply(db)
