"""The DDL of the journal file, as numbered migrations. New migrations are appended; old ones never change.

Owns the DDL. Invariant: an open file has exactly the migrations of this list. A file from a newer version, or
from before 0.1.0, is refused. Called by the writer when it opens the file, and by readers for the check.

An index on a column serves pages of one value, newest first: SQLite ends each of its entries with the row's
`seq`. A short entry counts, because each commit writes one of each index, most of them to a page of its own.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from thor_policy.core.errors import JournalError

if TYPE_CHECKING:
    from sqlite_utils import Database

#: Values that many decisions have. A page of them is quickly read by the index on timestamp, and an index of
#: them would cost every commit. To change this list, add a migration (the indexes are made in 0014).
COMMON: dict[str, tuple[str, ...]] = {
    "decision_type": ("policy_application",),
    "tier": ("model", "rule", "cache"),
    "risk_level": ("low", "medium", "high"),
}

#: Columns that are null in most decisions.
MOSTLY_NULL = ("decision_correct", "session", "outcome_status")

#: The set in files written before the release of 0.1.0. Kinds of event had other names then.
EARLIER_SET = "thor_policy"

#: The set of this list.
SET = "journal"

_Migration: TypeAlias = "Callable[[Database], None]"


class _Migrations:
    """The migrations by name, in order. sqlite_utils applies them; it is imported where one is pending."""

    def __init__(self) -> None:
        self._by_name: dict[str, _Migration] = {}

    def __call__(self, *, name: str) -> Callable[[_Migration], _Migration]:
        """Decorate a migration with its name."""

        def register(migration: _Migration) -> _Migration:
            if name in self._by_name:
                raise ValueError(f"there are two migrations {name}")
            self._by_name[name] = migration
            return migration

        return register

    @property
    def names(self) -> list[str]:
        return list(self._by_name)

    def apply(self, connection: sqlite3.Connection) -> None:
        """Apply those that were not applied, each in a transaction."""
        # sqlite_utils imports numpy and pandas where they are installed, to know their types. No column here
        # has one, and numpy is a tenth of the time that the daemon takes to start.
        modules: dict[str, Any] = sys.modules
        unneeded = [name for name in ("numpy", "pandas") if name not in modules]
        modules.update(dict.fromkeys(unneeded))
        try:
            from sqlite_utils import Database, Migrations
        finally:
            for name in unneeded:
                del modules[name]
        migrations = Migrations(SET)
        for name, migration in self._by_name.items():
            migrations(name=name)(migration)
        migrations.apply(Database(connection, execute_plugins=False))


migrations = _Migrations()


def rare_condition(column: str, common: tuple[str, ...]) -> str:
    """The condition of a partial index. A query must repeat it to use the index.

    Not `NOT IN`: of three values or more, SQLite makes a table of them for each row that is inserted.
    """
    return " AND ".join(f"{column} != {value!r}" for value in common)


@migrations(name="0001_chain")
def _chain(db: Database) -> None:
    """The chain, and beside it the private parts, which can be erased without breaking it."""
    db.execute(
        """
        CREATE TABLE events (
            seq            INTEGER PRIMARY KEY,
            at             TEXT NOT NULL,
            boot_id        TEXT NOT NULL,
            mono_ns        INTEGER NOT NULL,
            kind           TEXT NOT NULL,
            subject_id     TEXT NOT NULL,
            body           TEXT NOT NULL,
            private_digest BLOB NOT NULL,
            prev_hash      BLOB NOT NULL,
            hash           BLOB NOT NULL
        ) STRICT
        """
    )
    # the event of a decision is looked up by its row in `decisions`
    db.execute(
        "CREATE INDEX events_subject ON events (subject_id) WHERE kind NOT IN ('decision', 'decision_report')"
    )
    db.execute(
        """
        CREATE TABLE private (
            seq   INTEGER PRIMARY KEY,
            salt  BLOB NOT NULL,
            value TEXT NOT NULL
        ) STRICT
        """
    )
    db.execute(
        """
        CREATE TABLE erasures (
            seq    INTEGER PRIMARY KEY,
            by_seq INTEGER NOT NULL,
            digest BLOB NOT NULL
        ) STRICT
        """
    )


@migrations(name="0002_decisions")
def _decisions(db: Database) -> None:
    """One row for each decision, one column for each fact."""
    db.execute(
        """
        CREATE TABLE decisions (
            seq                INTEGER PRIMARY KEY,
            decision_id        TEXT NOT NULL UNIQUE,
            timestamp          TEXT NOT NULL,
            situation          TEXT,
            team_context       TEXT,
            model_name         TEXT,
            model_version      TEXT,
            prompt_version     TEXT,
            decision           TEXT NOT NULL,
            classification     TEXT,
            risk_level         TEXT,
            reasoning          TEXT,
            full_response      TEXT,
            expected_decision  TEXT,
            decision_correct   INTEGER,
            reasoning_coverage REAL,
            reviewed           INTEGER NOT NULL,
            review_decision    TEXT,
            review_reasoning   TEXT,
            review_timestamp   TEXT,
            scenario_id        TEXT,
            tags               TEXT NOT NULL,
            decision_type      TEXT NOT NULL,
            actor              TEXT,
            action             TEXT,
            entity             TEXT,
            session            TEXT,
            allow              INTEGER,
            tier               TEXT NOT NULL,
            reason_code        TEXT,
            floor              TEXT,
            label              TEXT,
            confidence         REAL,
            probabilities      TEXT NOT NULL,
            clauses            TEXT NOT NULL,
            is_exception       INTEGER NOT NULL,
            input_tokens       INTEGER,
            output_tokens      INTEGER,
            caller_uid         INTEGER,
            queue_ms           REAL,
            rules_ms           REAL,
            score_ms           REAL,
            explain_ms         REAL,
            latency_ms         REAL,
            outcome_status     TEXT,
            outcome_value      REAL,
            original_id        TEXT,
            temperature        REAL,
            explained_seq      INTEGER,
            reviewed_seq       INTEGER,
            outcome_seq        INTEGER
        ) STRICT
        """
    )
    db.execute("CREATE INDEX decisions_timestamp ON decisions (timestamp)")
    for column, where in _index_conditions().items():
        db.execute(f"CREATE INDEX decisions_{column} ON decisions ({column}, unixepoch(timestamp)) {where}")


def _index_conditions() -> dict[str, str]:
    """The columns of `decisions` that have an index, and which rows are in it."""
    return {
        **dict.fromkeys(("reviewed", "decision", "actor", "entity"), ""),
        **{
            column: f"WHERE {column} NOT IN ({', '.join(map(repr, common))})"  # until 0014
            for column, common in COMMON.items()
        },
        **{column: f"WHERE {column} IS NOT NULL" for column in MOSTLY_NULL},
    }


@migrations(name="0003_traces")
def _traces(db: Database) -> None:
    """Records about decisions, and events of the daemon itself: one row for each event."""
    tables = {
        "consultations": "id TEXT NOT NULL, decision_id TEXT, session TEXT, system TEXT NOT NULL, "
        "entity TEXT, query TEXT, answer TEXT, relevance REAL, took_ms REAL, fresh_at TEXT, "
        "caller_uid INTEGER",
        "outcomes": "id TEXT NOT NULL, decision_id TEXT NOT NULL, status TEXT NOT NULL, value REAL, "
        "note TEXT, caller_uid INTEGER",
        "reviews": "id TEXT NOT NULL, decision_id TEXT NOT NULL, reviewer TEXT, verdict TEXT NOT NULL, "
        "decision TEXT, reasoning TEXT, caller_uid INTEGER, blind INTEGER, adjudicates INTEGER, "
        "sampled INTEGER, withdraws TEXT",
        "approvals": "id TEXT NOT NULL, decision_id TEXT NOT NULL, approver TEXT, role TEXT, channel TEXT, "
        "verdict TEXT NOT NULL, step INTEGER NOT NULL, evidence TEXT, caller_uid INTEGER",
        "nodes": "id TEXT NOT NULL, type TEXT NOT NULL, title TEXT, description TEXT, status TEXT NOT NULL, "
        "confidence INTEGER, session TEXT, metadata TEXT, caller_uid INTEGER",
        "edges": "id TEXT NOT NULL, source TEXT NOT NULL, target TEXT NOT NULL, type TEXT NOT NULL, "
        "weight REAL, rationale TEXT, caller_uid INTEGER",
        "packs": "name TEXT NOT NULL, version TEXT NOT NULL, sha256 TEXT NOT NULL",
        "models": "name TEXT NOT NULL, sha256 TEXT NOT NULL, quantisation TEXT NOT NULL, "
        "architecture TEXT NOT NULL, parameters INTEGER NOT NULL, build TEXT NOT NULL, device TEXT NOT NULL",
        "calibrations": "temperature REAL NOT NULL, pack_sha256 TEXT NOT NULL, model_sha256 TEXT NOT NULL, "
        "judged INTEGER NOT NULL",
        "checkpoints": "key TEXT NOT NULL",
        "gaps": "reason TEXT NOT NULL, lost TEXT NOT NULL",
        "archives": "file TEXT NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, "
        "events INTEGER NOT NULL, head TEXT NOT NULL, chain TEXT NOT NULL",
    }
    for table, columns in tables.items():
        db.execute(
            f"CREATE TABLE {table} (seq INTEGER PRIMARY KEY, timestamp TEXT NOT NULL, {columns}) STRICT"
        )
    for table in ("consultations", "outcomes", "reviews", "approvals"):
        db.execute(f"CREATE INDEX {table}_decision ON {table} (decision_id)")
    for table in ("nodes", "edges"):
        db.execute(f"CREATE UNIQUE INDEX {table}_id ON {table} (id)")
    db.execute("CREATE INDEX reviews_withdraws ON reviews (withdraws) WHERE withdraws IS NOT NULL")
    db.execute("CREATE INDEX consultations_session ON consultations (session) WHERE session IS NOT NULL")
    db.execute("CREATE INDEX edges_source ON edges (source)")
    db.execute("CREATE INDEX edges_target ON edges (target)")


@migrations(name="0004_shadows")
def _shadows(db: Database) -> None:
    """What shadow packs would have answered, and which adapter is active: one row for each event."""
    db.execute(
        """
        CREATE TABLE shadows (
            seq            INTEGER PRIMARY KEY,
            timestamp      TEXT NOT NULL,
            decision_id    TEXT NOT NULL,
            served         TEXT NOT NULL,
            decision       TEXT NOT NULL,
            agrees         INTEGER NOT NULL,
            prompt_version TEXT NOT NULL,
            model_name     TEXT,
            model_version  TEXT,
            tier           TEXT NOT NULL,
            reason_code    TEXT,
            floor          TEXT NOT NULL,
            label          TEXT,
            confidence     REAL,
            probabilities  TEXT NOT NULL,
            temperature    REAL NOT NULL,
            score_ms       REAL NOT NULL
        ) STRICT
        """
    )
    db.execute("CREATE INDEX shadows_decision ON shadows (decision_id)")
    db.execute(
        """
        CREATE TABLE adapters (
            seq          INTEGER PRIMARY KEY,
            timestamp    TEXT NOT NULL,
            name         TEXT,
            sha256       TEXT,
            scale        REAL,
            model_sha256 TEXT NOT NULL
        ) STRICT
        """
    )


@migrations(name="0005_idempotency")
def _idempotency(db: Database) -> None:
    """The index of events with an idempotency key, by the digest at the start of the body (`recall`)."""
    db.execute(
        "CREATE INDEX events_idempotency ON events (substr(body, 17, 64)) "
        """WHERE substr(body, 1, 16) = '{"idempotency":"'"""
    )


@migrations(name="0006_drift")
def _drift(db: Database) -> None:
    """Each change of the model's answer to a golden question."""
    db.execute(
        """
        CREATE TABLE drifts (
            seq          INTEGER PRIMARY KEY,
            timestamp    TEXT NOT NULL,
            golden       TEXT NOT NULL,
            label_before TEXT NOT NULL,
            label        TEXT NOT NULL,
            shift        REAL,
            pack_sha256  TEXT NOT NULL,
            model_sha256 TEXT NOT NULL
        ) STRICT
        """
    )


@migrations(name="0007_assignments")
def _assignments(db: Database) -> None:
    """Which decisions are assigned or leased to which reviewers."""
    db.execute(
        "CREATE TABLE assignments (seq INTEGER PRIMARY KEY, timestamp TEXT NOT NULL, id TEXT NOT NULL, "
        "decision_id TEXT NOT NULL, reviewer TEXT, type TEXT NOT NULL, given_by TEXT, seconds INTEGER, "
        "caller_uid INTEGER) STRICT"
    )
    db.execute("CREATE INDEX assignments_decision ON assignments (decision_id)")


@migrations(name="0008_counterfactuals")
def _counterfactuals(db: Database) -> None:
    """Past decisions, decided again by another pack, model or adapter: one row for each event."""
    db.execute(
        """
        CREATE TABLE counterfactuals (
            seq            INTEGER PRIMARY KEY,
            timestamp      TEXT NOT NULL,
            run            TEXT NOT NULL,
            decision_id    TEXT NOT NULL,
            served         TEXT NOT NULL,
            decision       TEXT NOT NULL,
            direction      TEXT NOT NULL,
            prompt_version TEXT NOT NULL,
            pack_sha256    TEXT NOT NULL,
            model_name     TEXT NOT NULL,
            model_version  TEXT NOT NULL,
            model_sha256   TEXT NOT NULL,
            tier           TEXT NOT NULL,
            reason_code    TEXT,
            floor          TEXT NOT NULL,
            label          TEXT,
            confidence     REAL,
            clauses        TEXT NOT NULL,
            temperature    REAL NOT NULL,
            score_ms       REAL NOT NULL,
            took_ms        REAL NOT NULL
        ) STRICT
        """
    )
    db.execute("CREATE INDEX counterfactuals_decision ON counterfactuals (decision_id)")
    db.execute("CREATE INDEX counterfactuals_run ON counterfactuals (run)")
    db.execute("CREATE INDEX counterfactuals_judge ON counterfactuals (pack_sha256, model_sha256)")


@migrations(name="0009_promotions")
def _promotions(db: Database) -> None:
    """Packs that passed or failed the promotion gate: one row for each event."""
    db.execute(
        "CREATE TABLE promotions (seq INTEGER PRIMARY KEY, timestamp TEXT NOT NULL, name TEXT NOT NULL, "
        "version TEXT NOT NULL, sha256 TEXT NOT NULL, against TEXT NOT NULL, model_sha256 TEXT NOT NULL, "
        "passed INTEGER NOT NULL, report TEXT NOT NULL, key TEXT, signature TEXT, by_uid INTEGER) STRICT"
    )


@migrations(name="0010_order")
def _order(db: Database) -> None:
    """The newest decision is the one with the highest `seq`, whatever the wall clock showed."""
    for column, where in _index_conditions().items():
        db.execute(f"DROP INDEX decisions_{column}")
        db.execute(f"CREATE INDEX decisions_{column} ON decisions ({column}) {where}")


@migrations(name="0011_claims")
def _claims(db: Database) -> None:
    """What callers stated who may not: in a decision its annotations or the whole report, and outcomes."""
    db.execute("ALTER TABLE decisions ADD COLUMN claimed TEXT")
    db.execute("ALTER TABLE outcomes ADD COLUMN claimed INTEGER")


@migrations(name="0012_completeness")
def _completeness(db: Database) -> None:
    """What kind of decision it is, what its trace must have and lacks, and summaries with their words."""
    for column in (
        "timestamp_decision TEXT",
        "confidence_level TEXT",
        "urgency TEXT",
        "judgment_call INTEGER",
    ):
        db.execute(f"ALTER TABLE decisions ADD COLUMN {column}")
    for column in ("required TEXT", "lacks TEXT"):
        db.execute(f"ALTER TABLE decisions ADD COLUMN {column}")
    db.execute("CREATE INDEX decisions_lacks ON decisions (seq) WHERE lacks IS NOT NULL")
    db.execute("CREATE INDEX decisions_urgency ON decisions (urgency) WHERE urgency IS NOT NULL")
    db.execute("CREATE INDEX decisions_exception ON decisions (is_exception) WHERE is_exception = 1")
    db.execute(
        "CREATE TABLE supplements (seq INTEGER PRIMARY KEY, timestamp TEXT NOT NULL, id TEXT NOT NULL, "
        "decision_id TEXT NOT NULL, names TEXT NOT NULL, supplied TEXT, caller_uid INTEGER, claimed INTEGER) "
        "STRICT"
    )
    db.execute("CREATE INDEX supplements_decision ON supplements (decision_id)")
    db.execute("CREATE TABLE summaries (seq INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT")
    db.execute("CREATE TABLE summaries_due (seq INTEGER PRIMARY KEY, by_seq INTEGER NOT NULL) STRICT")
    db.execute(
        "CREATE VIRTUAL TABLE summaries_words USING fts5("
        "text, content = 'summaries', content_rowid = 'seq', tokenize = 'unicode61 remove_diacritics 2')"
    )


@migrations(name="0013_graph")
def _graph(db: Database) -> None:
    """The state of traces, what nodes and edges say, and every edge in one view.

    What follows from the columns of a decision or of a record is in the view only, not in a row.
    """
    db.execute("ALTER TABLE decisions ADD COLUMN trace_status TEXT NOT NULL DEFAULT 'active'")
    db.execute("ALTER TABLE decisions ADD COLUMN status_seq INTEGER")
    db.execute(f"CREATE INDEX decisions_trace_status ON decisions (trace_status) WHERE {NOT_ACTIVE}")
    for table, column in (
        ("nodes", "actor_type TEXT"),
        ("nodes", "role TEXT"),
        ("edges", "similarity REAL"),
        ("edges", "how TEXT"),
        ("edges", "favourable INTEGER"),
    ):
        db.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
    db.execute(
        "CREATE TABLE trace_states (seq INTEGER PRIMARY KEY, timestamp TEXT NOT NULL, id TEXT NOT NULL, "
        'decision_id TEXT NOT NULL, status TEXT NOT NULL, "by" TEXT, because TEXT, caller_uid INTEGER) STRICT'
    )
    db.execute("CREATE INDEX trace_states_decision ON trace_states (decision_id)")
    db.execute('CREATE INDEX trace_states_by ON trace_states ("by") WHERE "by" IS NOT NULL')
    db.execute(f"CREATE INDEX nodes_entity ON nodes (title) WHERE {OF_ENTITY}")
    for table in ("consultations", "outcomes"):
        db.execute(f"CREATE INDEX {table}_id ON {table} (id)")
    db.execute(_EDGES_VIEW)


@migrations(name="0014_cheap_conditions")
def _cheap_conditions(db: Database) -> None:
    """The indexes of rare values, with conditions that cost an insert little (`rare_condition`)."""
    for column, common in COMMON.items():
        db.execute(f"DROP INDEX decisions_{column}")
        condition = rare_condition(column, common)
        db.execute(f"CREATE INDEX decisions_{column} ON decisions ({column}) WHERE {condition}")


@migrations(name="0015_approvals")
def _approvals(db: Database) -> None:
    """Tasks of approvals: requests, verdicts, ends, and the decisions that they lifted."""
    for column in ("approval_task TEXT", "lifted TEXT"):
        db.execute(f"ALTER TABLE decisions ADD COLUMN {column}")
    for column in ("task", "roles", "groups", "parties", "recorded_by", "comment"):
        db.execute(f"ALTER TABLE approvals ADD COLUMN {column} TEXT")
    db.execute(
        "CREATE TABLE approval_requests (seq INTEGER PRIMARY KEY, timestamp TEXT NOT NULL, id TEXT NOT NULL, "
        "decision_id TEXT NOT NULL, outcome TEXT NOT NULL, urgency TEXT, reason TEXT, spec TEXT NOT NULL, "
        "caller_uid INTEGER) STRICT"
    )
    db.execute(
        "CREATE TABLE approval_ends (seq INTEGER PRIMARY KEY, timestamp TEXT NOT NULL, id TEXT NOT NULL, "
        "decision_id TEXT NOT NULL, task TEXT NOT NULL, status TEXT NOT NULL, reason TEXT, "
        "caller_uid INTEGER) STRICT"
    )
    db.execute(
        "CREATE TABLE approvals_open "
        "(seq INTEGER PRIMARY KEY, task TEXT NOT NULL, caller TEXT NOT NULL) STRICT"
    )
    for table, column, where in (
        ("approval_requests", "id", ""),
        ("approval_requests", "decision_id", ""),
        ("approval_ends", "task", ""),
        ("approval_ends", "decision_id", ""),
        ("approvals", "task", "WHERE task IS NOT NULL"),
        ("decisions", "approval_task", "WHERE approval_task IS NOT NULL"),
    ):
        db.execute(f"CREATE INDEX {table}_{column} ON {table} ({column}) {where}")
    db.execute("DROP VIEW trace_edges")
    db.execute(f"{_EDGES_VIEW}{_EDGES_OF_USED_APPROVALS}")


@migrations(name="0016_work")
def _work(db: Database) -> None:
    """Whose work a node is, and indexes for lists of nodes, for what is superseded, and for links of work."""
    db.execute("ALTER TABLE nodes ADD COLUMN agent TEXT")
    for name, columns in (
        ("nodes_type", "nodes (type)"),
        ("nodes_timestamp", "nodes (timestamp)"),
        ("nodes_session", "nodes (session) WHERE session IS NOT NULL"),
        ("nodes_agent", "nodes (agent) WHERE agent IS NOT NULL"),
        ("nodes_ended", "nodes (status) WHERE status != 'active'"),
        ("nodes_doubtful", f"nodes (seq) WHERE {DOUBTFUL}"),
        ("edges_supersedes", f"edges (target) WHERE {SUPERSEDES}"),
        ("edges_work", f"edges (seq) WHERE {OF_WORK}"),
    ):
        db.execute(f"CREATE INDEX {name} ON {columns}")


@migrations(name="0017_vectors")
def _vectors(db: Database) -> None:
    """Vectors of situations, by which precedents are found. `embedder` is empty where one is due again."""
    db.execute(
        "CREATE TABLE vectors (change INTEGER PRIMARY KEY AUTOINCREMENT, seq INTEGER NOT NULL UNIQUE, "
        "embedder TEXT NOT NULL, vector BLOB NOT NULL) STRICT"
    )
    db.execute("CREATE INDEX vectors_due ON vectors (seq) WHERE embedder = ''")


@migrations(name="0019_enrichments")
def _enrichments(db: Database) -> None:
    """What the model wrote about decisions on idle time: one row for each event."""
    db.execute(
        "CREATE TABLE enrichments (seq INTEGER PRIMARY KEY, timestamp TEXT NOT NULL, "
        "decision_id TEXT NOT NULL, why TEXT NOT NULL, model_name TEXT NOT NULL, "
        "model_version TEXT NOT NULL, model_sha256 TEXT NOT NULL, risk TEXT, alternative TEXT, "
        "alternatives TEXT, rationale TEXT, quality TEXT NOT NULL, generated_tokens INTEGER NOT NULL, "
        "device_ms REAL NOT NULL, took_ms REAL NOT NULL) STRICT"
    )
    db.execute("CREATE INDEX enrichments_decision ON enrichments (decision_id)")


@migrations(name="0020_alerts")
def _alerts(db: Database) -> None:
    """Alerts that were raised and cleared: one row for each event, both with the same id."""
    db.execute(
        "CREATE TABLE alerts (seq INTEGER PRIMARY KEY, timestamp TEXT NOT NULL, id TEXT NOT NULL, "
        "state TEXT NOT NULL, kind TEXT NOT NULL, of TEXT, name TEXT, value REAL, low REAL, high REAL, "
        "sample INTEGER, threshold REAL) STRICT"
    )
    db.execute("CREATE INDEX alerts_id ON alerts (id)")


@migrations(name="0021_bounded_lists")
def _bounded_lists(db: Database) -> None:
    """Indexes that hold all that a list looks at before its page: no row is read that it leaves out."""
    db.execute("DROP INDEX decisions_exception")
    db.execute(
        "CREATE INDEX decisions_exception ON decisions (is_exception, seq, timestamp) WHERE is_exception = 1"
    )
    db.execute("DROP INDEX decisions_decision_type")
    db.execute(
        "CREATE INDEX decisions_decision_type ON decisions (decision_type, seq, timestamp) "
        f"WHERE {rare_condition('decision_type', COMMON['decision_type'])}"
    )
    db.execute(f"CREATE INDEX nodes_end ON nodes ({ENDING.format('id')})")
    db.execute(f"CREATE INDEX edges_superseding ON edges (seq) WHERE {SUPERSEDES}")


@migrations(name="0023_shipping")
def _shipping(db: Database) -> None:
    """How far each sink has acknowledged the events. It is not on the chain, since it says nothing of it."""
    db.execute(
        "CREATE TABLE shipping (sink TEXT PRIMARY KEY, acknowledged INTEGER NOT NULL, at TEXT NOT NULL, "
        "alarm TEXT) STRICT"
    )


@migrations(name="0028_canaries")
def _canaries(db: Database) -> None:
    """Canaries: one row for each event; and the arm of each decision that was made while one ran."""
    for column in ("canary", "canary_arm", "canary_note"):
        db.execute(f"ALTER TABLE decisions ADD COLUMN {column} TEXT")
    db.execute(
        "CREATE TABLE canaries (seq INTEGER PRIMARY KEY, timestamp TEXT NOT NULL, id TEXT NOT NULL, "
        "state TEXT NOT NULL, cause TEXT, share REAL, spec TEXT, choice TEXT, condition TEXT, value REAL, "
        "low REAL, high REAL, level REAL, sample INTEGER, control_sample INTEGER, threshold REAL, "
        "reason TEXT, by_uid INTEGER) STRICT"
    )
    db.execute("CREATE INDEX canaries_id ON canaries (id)")


#: The conditions of partial indexes. A query must repeat them to use the index. The types of edges between
#: nodes of work are in small letters, those of traces in capitals.
OF_WORK = "type >= 'a'"
SUPERSEDES = "type = 'supersedes'"
DOUBTFUL = "confidence < 50"
NOT_ACTIVE = "trace_status != 'active'"
OF_ENTITY = "type = 'entity'"
#: Characters of the end of an id that are indexed, and the expression of that index.
ENDING_CHARS = 8
ENDING = f"substr({{}}, -{ENDING_CHARS})"

#: Every edge: `source, type, target, seq, timestamp, id`. `id` is that of the record that states it, or NULL.
#: Each part reads one index of its table where `source` is given.
_EDGES_VIEW = """
CREATE VIEW trace_edges AS
SELECT decision_id AS source, 'DECIDED_BY' AS type,
       iif(tier IN ('rule', 'cache', 'model', 'fallback'), 'system:thor-policy', actor) AS target,
       seq, timestamp, NULL AS id
FROM decisions
UNION ALL SELECT decision_id, 'GOVERNED_BY', prompt_version, seq, timestamp, NULL
FROM decisions WHERE prompt_version IS NOT NULL
UNION ALL SELECT decision_id, 'APPLIES_TO', entity, seq, timestamp, NULL
FROM decisions WHERE entity IS NOT NULL
UNION ALL SELECT decision_id, 'RESULTED_IN', id, seq, timestamp, id FROM outcomes WHERE claimed IS NULL
UNION ALL SELECT decision_id, 'CONSULTED', id, seq, timestamp, id
FROM consultations WHERE decision_id IS NOT NULL
UNION ALL SELECT d.decision_id, 'CONSULTED', c.id, d.seq, d.timestamp, c.id
FROM decisions d JOIN consultations c ON c.session = d.session
WHERE c.decision_id IS NULL AND d.session IS NOT NULL AND c.seq < d.seq
UNION ALL SELECT decision_id, iif(step < 2, 'APPROVED_BY', 'COUNTERSIGNED_BY'), approver, seq, timestamp, id
FROM approvals WHERE verdict = 'approved'
UNION ALL SELECT s.decision_id, iif(s.status = 'superseded', 'SUPERSEDED_BY', 'OVERTURNED_BY'), s."by",
       s.seq, s.timestamp, s.id
FROM trace_states s WHERE s."by" IS NOT NULL
UNION ALL SELECT source, type, target, seq, timestamp, id FROM edges
"""
#: Since 0015: who approved a task is an edge of the decision that it lifted, too.
_EDGES_OF_USED_APPROVALS = """\
UNION ALL SELECT d.decision_id, iif(a.step < 2, 'APPROVED_BY', 'COUNTERSIGNED_BY'), a.approver,
       d.seq, d.timestamp, a.id
FROM decisions d JOIN approvals a ON a.task = d.approval_task
WHERE a.verdict = 'approved' AND d.approval_task IS NOT NULL
"""


def _applied(connection: sqlite3.Connection, to: str) -> list[str]:
    """The migrations of the set `to` that were applied to a file, in order."""
    with closing(connection.cursor()) as cursor:
        known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '_sqlite_migrations'"
        if cursor.execute(known).fetchone() is None:
            return []
        names = "SELECT name FROM _sqlite_migrations WHERE migration_set = ? ORDER BY rowid"
        return [name for (name,) in cursor.execute(names, (to,))]


def pending(connection: sqlite3.Connection) -> list[str]:
    """The migrations that were not applied to a file yet."""
    applied = _applied(connection, SET)
    return [name for name in migrations.names if name not in applied]


def refuse_earlier(connection: sqlite3.Connection, path: Path) -> None:
    """Raise JournalError if the file at `path` was written before 0.1.0; no migration exists for it."""
    if _applied(connection, EARLIER_SET):
        raise JournalError(
            f"{path} was written before the release of thor-policy 0.1.0; this version cannot read it. "
            f"Keep using the version that wrote it, or move {path.name}*, checkpoints/ and archive/ out of "
            f"{path.parent}: the daemon then begins a new journal"
        )


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the pending migrations. Raises JournalError if a newer version wrote the file."""
    if newer := sorted(set(_applied(connection, SET)) - set(migrations.names)):
        raise JournalError(
            f"the journal was written by a newer version (it has {', '.join(newer)}); upgrade thor-policy"
        )
    if pending(connection):
        migrations.apply(connection)
