"""Verification: is every event what was written, and every projection what the events say?

Owns the check of the whole file. Invariant: it writes to a scratch file only, in constant memory; the
journal is attached read-only, and read a page at a time until the end is reached. Any process, also beside
a running daemon.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from msgspec import Struct

from thor_policy.core import Json
from thor_policy.errors import JournalError
from thor_policy.journal import chain, events, schema
from thor_policy.journal.reader import read_only_uri

#: Events read in one transaction.
PAGE = 2_000


class Verdict(Struct, frozen=True, kw_only=True):
    """What `verify` found. `bad_seq` is the first event that is wrong, `problem` says how.

    `head` is the hash of the last sound event, in hex: kept elsewhere, it shows a cut tail later.
    """

    events: int
    head: str
    chain_ok: bool
    projections_ok: bool
    bad_seq: int | None = None
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.chain_ok and self.projections_ok


def verify(path: Path, *, progress: Callable[[int], None] = lambda _: None) -> Verdict:
    """Check the chain and rebuild every projection; `progress` gets the number of events done.

    Raises JournalError if the file is no journal at all.
    """
    if not path.is_file():
        raise JournalError(f"there is no journal at {path}")
    with tempfile.TemporaryDirectory(prefix="thor-policy-") as folder:
        scratch = Path(folder) / "rebuilt.db"
        with closing(sqlite3.connect(scratch, isolation_level=None, uri=True)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            # bytes that are no UTF-8 are a wrong event to be named, not a file that cannot be read
            connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            schema.migrate(connection)
            try:
                connection.execute("ATTACH ? AS stored", (read_only_uri(path),))
                return _Verification(connection, progress).run()
            except sqlite3.Error as error:
                raise JournalError(f"{path} cannot be read as a journal: {error}") from error


class _Verification:
    """One run: `main` is the scratch file, `stored` the journal."""

    def __init__(self, connection: sqlite3.Connection, progress: Callable[[int], None]) -> None:
        self._connection = connection
        self._progress = progress
        self._count, self._head = 0, chain.GENESIS
        self._sealed = 0

    def run(self) -> Verdict:
        try:
            while True:
                self._connection.execute("BEGIN")
                if not self._page():
                    break
                self._connection.execute("COMMIT")
                self._progress(self._count)
            # still in the transaction that saw the end: no event can have come since
            problem = self._compare()
            self._connection.execute("COMMIT")
        except _Bad as bad:
            self._connection.execute("ROLLBACK")
            return self._verdict(chain_ok=False, bad_seq=bad.seq, problem=f"event {bad.seq}: {bad.reason}")
        return self._verdict(chain_ok=True, problem=problem)

    def _verdict(self, *, chain_ok: bool, bad_seq: int | None = None, problem: str | None) -> Verdict:
        return Verdict(
            events=self._count,
            head=self._head.hex(),
            chain_ok=chain_ok,
            projections_ok=problem is None,
            bad_seq=bad_seq,
            problem=problem,
        )

    def _page(self) -> int:
        """Check and project the next events; returns how many there were."""
        rows = self._connection.execute(
            "SELECT seq, at, boot_id, mono_ns, kind, subject_id, body, prev_hash, hash FROM stored.events "
            "WHERE seq > ? ORDER BY seq LIMIT ?",
            (self._count, PAGE),
        ).fetchall()
        if self._count == 0 and (low := self._below_first()) is not None:
            raise _Bad(low, "it stands before the first event")
        for row in rows:
            self._check(chain.Row(*row))
        return len(rows)

    def _below_first(self) -> int | None:
        row = self._connection.execute("SELECT min(seq) FROM stored.events WHERE seq < 1").fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def _check(self, row: chain.Row) -> None:
        if row.seq != self._count + 1:
            raise _Bad(self._count + 1, "it is missing")
        if row.prev_hash != self._head:
            raise _Bad(row.seq, "it does not follow the event before it")
        if chain.hash_of(self._head, *row[:7]) != row.hash:
            raise _Bad(row.seq, "its content does not match its hash")
        try:
            inserts = events.Inserts(self._connection)
            events.project(inserts, row.kind, row.seq, row.at, self._body(row))
            inserts.flush()
        except (ValueError, KeyError, TypeError, sqlite3.IntegrityError) as error:
            raise _Bad(row.seq, f"its body cannot be read: {error}") from error
        self._count, self._head = row.seq, row.hash

    def _body(self, row: chain.Row) -> dict[str, Json]:
        body: dict[str, Json] = events.decode(row.body)
        digest = body.pop("private", None)
        if digest is None:
            return body
        found = self._connection.execute(
            "SELECT salt, value FROM stored.private WHERE seq = ?", (row.seq,)
        ).fetchone()
        if found is None:
            raise _Bad(row.seq, "its private value is gone, and no event says that it was erased")
        if len(found[0]) != chain.SALT_BYTES or chain.sealed_digest(*found) != digest:
            raise _Bad(row.seq, "its private value was changed")
        self._sealed += 1
        return events.join(body, events.decode(found[1]))

    def _compare(self) -> str | None:
        """The first difference between the stored projection and the rebuilt one."""
        for one, other, told in (
            ("stored", "main", "is not what its events say"),
            ("main", "stored", "is missing, or is not what its events say"),
        ):
            row = self._connection.execute(
                f"SELECT decision_id FROM (SELECT * FROM {one}.decisions "
                f"EXCEPT SELECT * FROM {other}.decisions) LIMIT 1"
            ).fetchone()
            if row:
                return f"the row of decision {row[0]!a} {told}"
        (private,) = self._connection.execute("SELECT count(*) FROM stored.private").fetchone()
        return "a private value belongs to no event" if private != self._sealed else None


class _Bad(Exception):
    def __init__(self, seq: int, reason: str) -> None:
        super().__init__(reason)
        self.seq, self.reason = seq, reason
