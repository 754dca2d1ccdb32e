"""The store of a fleet, as its owner and its readers use it.

Owns the migrations (`sql/NNNN_*.sql`), the roles, and the queries. Invariant: a migration is applied once,
in a transaction with its name; a question of a reader runs in a read-only transaction with a limit of rows
and of time. The main thread of a command.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib import resources
from typing import Any, cast

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.requests import Json
from thor_policy.fleet.postgres import connect, failing

#: Most rows of an answer, and longest time of a question, in milliseconds.
MOST_ROWS, QUESTION_MS = 100_000, 30_000
#: Lists of vectors that a search for similar decisions reads: 20,000 vectors where there are a million.
LISTS_READ = 20
#: Most alarms of a list.
MOST_ALARMS = 10_000
#: Rows that are received together. Before version 17, libpq can receive them one by one only.
_TOGETHER = 500 if psycopg.pq.version() >= 170_000 else 1
#: The numbers of a vector of a summary.
DIMENSIONS = 384

#: Compiling a question of an index takes longer than its answer, and the planner overrates its rows.
_NO_JIT = {"jit": 0}

Row = dict[str, Json]


class StoreError(ThorPolicyError):
    """The store is not what it should be, or a question to it is refused."""


class Store:
    """The store at `url`. Raises ConfigError, SinkError."""

    def __init__(self, url: str) -> None:
        self.connection = connect(url, row_factory=dict_row)
        with failing():
            self.connection.execute("SET search_path = thorpolicy, public")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    # ------------------------------------------------------------ migrations

    def applied(self) -> list[str]:
        """The migrations that were applied, in order."""
        with failing():
            known = self.connection.execute("SELECT to_regclass('thorpolicy.migrations') AS known").fetchone()
            if known is None or known["known"] is None:
                return []
            return [
                row["name"] for row in self.connection.execute("SELECT name FROM migrations ORDER BY name")
            ]

    def migrate(self, *, with_roles: bool = True) -> list[str]:
        """Apply what was not applied, and the roles and their rights; returns the names of the new ones.

        Raises StoreError if a newer version made the store.
        """
        done = self.applied()
        known = migrations()
        if newer := sorted(set(done) - {name for name, _ in known}):
            raise StoreError(
                f"a newer version made this store (it has {', '.join(newer)}); upgrade thor-policy"
            )
        new = [(name, text) for name, text in known if name not in done]
        with failing():
            if not done:  # to make a schema takes a right of the database, even where there is one
                self.connection.execute("CREATE SCHEMA IF NOT EXISTS thorpolicy")
                self.connection.execute(
                    "CREATE TABLE IF NOT EXISTS thorpolicy.migrations "
                    "(name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
                )
            for name, text in new:
                with self.connection.transaction():
                    self.connection.execute(text.encode())
                    self.connection.execute("INSERT INTO migrations (name) VALUES (%s)", (name,))
            if with_roles:
                with self.connection.transaction():
                    self.connection.execute(_text("roles.sql").encode())
        return [name for name, _ in new]

    def require(self) -> None:
        """Raise StoreError unless the store has exactly the migrations of this version."""
        done, known = self.applied(), [name for name, _ in migrations()]
        if done != known:
            raise StoreError(
                "this is no store of this version; run `thorpolicy fleet init` as its owner"
                if set(done) <= set(known)
                else "a newer version made this store; upgrade thor-policy"
            )

    # ------------------------------------------------------------ questions

    def devices(self) -> list[Row]:
        """Each journal of each device: how far it is, and how many alarms its device has."""
        return self.ask("SELECT * FROM fleet ORDER BY device, first_seen")

    def alarms(self) -> list[Row]:
        """The newest alarms, newest first."""
        return self.ask(
            "SELECT at, device, kind, seq, encode(chain, 'hex') AS chain, encode(stored, 'hex') AS stored, "
            "encode(received, 'hex') AS received, times FROM alarms ORDER BY alarm DESC",
            most=MOST_ALARMS,
            clip=True,
        )

    def compliance(self, *, since: str, until: str | None = None, device: str | None = None) -> list[Row]:
        """Each approved exception of a time span (RFC 3339), newest first."""
        return self.ask(
            "SELECT * FROM approved_exceptions WHERE timestamp >= %(since)s::timestamptz "
            "AND (%(until)s::timestamptz IS NULL OR timestamp < %(until)s::timestamptz) "
            "AND (%(device)s::text IS NULL OR device = %(device)s::text) ORDER BY timestamp DESC",
            {"since": since, "until": until, "device": device},
            settings=_NO_JIT,
        )

    def similar(self, vector: Sequence[float], limit: int = 10) -> list[Row]:
        """The decisions of the fleet whose summaries are nearest to a vector, nearest first.

        The lists hold vectors of half precision, so four times as many as wanted are sorted by their exact
        distance. Fewer than `limit` are listed only where the store has no more.
        """
        return self.ask(
            "SELECT 1 - n.distance AS similarity, j.device, d.decision_id, d.timestamp, d.actor, d.action, "
            "d.entity, d.decision, d.outcome_status, d.trace_status FROM ("
            "SELECT journal, seq, embedding <=> %(vector)s::vector AS distance FROM ("
            "SELECT journal, seq, embedding FROM summaries WHERE embedding IS NOT NULL "
            "ORDER BY embedding::halfvec(384) <=> %(vector)s::halfvec(384) "  # as the index has it
            "LIMIT %(candidates)s) c ORDER BY distance LIMIT %(limit)s) n "
            "JOIN decisions d USING (journal, seq) JOIN journals j USING (journal) ORDER BY n.distance",
            {"vector": vector_text(vector), "limit": limit, "candidates": 4 * limit},
            settings=_NO_JIT | {"ivfflat.probes": LISTS_READ, "ivfflat.iterative_scan": "relaxed_order"},
        )

    def vector_of(self, decision_id: str) -> list[float]:
        """The vector of a decision's summary. Raises StoreError if it has none."""
        rows = self.ask(
            "SELECT s.embedding::real[] AS vector FROM summaries s JOIN decisions d USING (journal, seq) "
            "WHERE d.decision_id = %(id)s AND s.embedding IS NOT NULL",
            {"id": decision_id},
        )
        if not rows:
            raise StoreError(f"the store has no vector of {decision_id[:64]!r}; run `thorpolicy fleet index`")
        return list(rows[0]["vector"])

    def ask(
        self,
        question: str,
        values: dict[str, Any] | None = None,
        *,
        most: int = MOST_ROWS,
        clip: bool = False,
        within_ms: int = QUESTION_MS,
        settings: Mapping[str, int | str] | None = None,
    ) -> list[Row]:
        """The answer to one statement, in a read-only transaction. Raises StoreError.

        An answer of more than `most` rows is an error, or with `clip` ends there; no more are received.
        """
        rows: list[Row] = []
        try:
            with self.connection.transaction(), self.connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION READ ONLY")
                cursor.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(within_ms))
                for name, value in (settings or {}).items():
                    cursor.execute("SELECT set_config(%s, %s, true)", (name, str(value)))
                # one statement, as `stream` sends it: a COMMIT in front would end the read-only transaction
                stream = cursor.stream(question.encode(), values, size=_TOGETHER)
                with closing(cast("Generator[Row]", stream)):
                    for row in self._received(stream):
                        if len(rows) == most:
                            if clip:
                                break
                            raise StoreError(
                                f"the answer has more than {most:,} rows; ask for a shorter time, or less"
                            )
                        rows.append(row)
                return rows
        except psycopg.errors.QueryCanceled as error:
            raise StoreError(
                f"the question took longer than {within_ms / 1000:g} s; ask for less, or set --timeout"
            ) from error
        except psycopg.OperationalError:
            with failing():
                raise
        except psycopg.Error as error:
            raise StoreError(f"the store refused the question: {str(error).strip()}") from error
        return rows

    def _received(self, stream: Iterator[Row]) -> Iterator[Row]:
        """The rows of a stream. Raises StoreError for a statement that gives none."""
        try:
            yield from stream
        except psycopg.ProgrammingError as error:
            if error.sqlstate is not None:
                raise
            if self.connection.info.transaction_status == TransactionStatus.ACTIVE:
                self.connection.close()  # a COPY has begun, and nothing else can be asked
            raise StoreError("the statement gives no rows; ask with SELECT") from error

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All questions inside see the store as it was at the first of them."""
        with failing(), self.connection.transaction():
            self.connection.execute("SET TRANSACTION READ ONLY, ISOLATION LEVEL REPEATABLE READ")
            yield

    def pages(self, question: str, values: dict[str, Any], *, rows: int = 2_000) -> Iterator[dict[str, Any]]:
        """The rows of a long question, read page by page in one snapshot."""
        with self.snapshot(), psycopg.ServerCursor(self.connection, "pages") as cursor:
            cursor.itersize = rows
            cursor.execute(question.encode(), values)
            yield from cursor


def migrations() -> list[tuple[str, str]]:
    """Name and text of each migration, in order."""
    names = sorted(
        entry.name.removesuffix(".sql") for entry in _folder().iterdir() if entry.name[:1].isdigit()
    )
    return [(name, f"SET LOCAL search_path = thorpolicy, public;\n{_text(f'{name}.sql')}") for name in names]


def _folder() -> Any:
    return resources.files("thor_policy.fleet") / "sql"


def _text(name: str) -> str:
    return str((_folder() / name).read_text(encoding="utf-8"))


def vector_text(vector: Sequence[float]) -> str:
    """A vector in pgvector's text form."""
    return f"[{','.join(format(float(value), '.7g') for value in vector)}]"
