"""Verification: is every event what was written, every table what they say, and is the end still there?

Owns the check of the whole journal, archives included. Invariant: it only reads, in constant memory, a page
at a time, and holds no transaction between pages; it checks up to the event that was newest when it began,
so it ends beside a writer that never rests. Any process; ranges are checked side by side on several cores.

Integrity: each event's hash follows from its content and the hash before it; each private part has the
digest that its event (or the newest erasure) gives; each row of a table is the projection of its event, and
no row is without one. Columns of a decision that a later event changes are checked with that event: rows
name it, and as many rows must name one as events were found to be named. Completeness: every signed
checkpoint of this chain is on it, so nothing up to the newest one was cut off or stamped anew.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from thor_policy.errors import JournalError
from thor_policy.journal import archive, chain, checkpoints, projections
from thor_policy.journal.projections import AT, GROUP_OF, GROUPS, TABLES
from thor_policy.journal.reader import read_only_uri
from thor_policy.journal.storage import EVENT_COLUMNS
from thor_policy.signing import PublicKeys

#: Events read in one transaction, and in one task of a process.
PAGE, RANGE = 500, 25_000
#: Events above which starting processes pays.
MANY = 100_000


class Verdict(Struct, frozen=True, kw_only=True):
    """What `verify` found. `bad_seq` is the first event that is wrong, `problem` says how.

    `head` is the hash of the newest sound event, in hex. `complete` is None where no checkpoint tells;
    `checkpoint_seq` is the newest event that a good checkpoint vouches for: what came later could be cut off
    unseen. `gaps` counts the losses that the journal itself tells of.
    """

    events: int
    archived: int
    head: str
    chain_ok: bool
    projections_ok: bool
    bad_seq: int | None = None
    problem: str | None = None
    complete: bool | None = None
    incomplete: str | None = None
    checkpoints: int = 0
    checkpoint_seq: int = 0
    erased: int = 0
    gaps: int = 0

    @property
    def ok(self) -> bool:
        return self.chain_ok and self.projections_ok and self.complete is not False


def verify(
    path: Path,
    *,
    checkpoint_dir: Path | None = None,
    public_keys: PublicKeys | None = None,
    anchors: Sequence[tuple[int, str]] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> Verdict:
    """Check the journal at `path`; `progress` gets the number of events done.

    `anchors` are sequence numbers and hashes that somebody kept. Checkpoints are those of `checkpoint_dir`,
    by default `checkpoints/` beside the journal, and trusted are `public_keys`, by default those that lie
    there. Raises JournalError if the file is no journal at all.
    """
    if not path.is_file():
        raise JournalError(f"there is no journal at {path}")
    try:
        with closing(_connect(path)) as connection:
            # the file of the newest note may still be on its way; those of the others are there from here on
            (newest_note,) = connection.execute("SELECT coalesce(max(seq), 0) FROM checkpoints").fetchone()
            found = checkpoints.found(checkpoint_dir or path.parent / "checkpoints")
            return _Verification(connection, path, found, newest_note, public_keys, anchors, progress).run()
    except sqlite3.DatabaseError as error:
        raise JournalError(f"{path} cannot be read as a journal: {error}") from error


class _Task(Struct, frozen=True):
    """Events `first` to `last` of the journal at `path`; `segment` is the archive file that holds them.

    `wanted` are the sequence numbers whose hashes are asked for.
    """

    path: Path
    first: int
    last: int
    wanted: frozenset[int]
    segment: Path | None = None


class _Done(Struct, kw_only=True):
    """What a task found: the first `problem`, and whether the chain goes on to the task's end."""

    events: int = 0
    before: bytes | None = None
    head: bytes = b""
    hashes: dict[int, bytes] = {}
    kinds: Counter[str] = msgspec.field(default_factory=Counter)
    #: Groups of columns that rows say were changed, less those that an event was found to have changed.
    open_groups: Counter[str] = msgspec.field(default_factory=Counter)
    erased: int = 0
    bad_seq: int | None = None
    problem: str | None = None
    chain_ok: bool = True

    def note(self, seq: int | None, problem: str) -> None:
        """Remember the first thing that is wrong."""
        if self.problem is None or (seq is not None and self.bad_seq is not None and seq < self.bad_seq):
            self.bad_seq, self.problem = seq, problem


class _Verification:
    """One run over the whole journal."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        found: checkpoints.Found,
        newest_note: int,
        public_keys: PublicKeys | None,
        anchors: Sequence[tuple[int, str]],
        progress: Callable[[int], None],
    ) -> None:
        self._connection = connection
        self._path = path
        self._found = found
        self._newest_note = newest_note
        self._keys = found.public_keys if public_keys is None else public_keys
        self._anchors = anchors
        self._progress = progress
        self._total = _Done()
        self._archived = 0

    def run(self) -> Verdict:
        low, high = self._connection.execute("SELECT min(seq), max(seq) FROM events").fetchone()
        newest = high or 0
        archives = [
            one
            for one in archive.segments(self._connection, self._path)
            if low is not None and one.first_seq < low
        ]
        self._archived = sum(one.events for one in archives)
        wanted = frozenset(one.seq for one in self._found.checkpoints) | {1} | {s for s, _ in self._anchors}
        tasks = [_Task(self._path, a.first_seq, a.last_seq, wanted, a.path) for a in archives]
        live_from = archives[-1].last_seq + 1 if archives else 1
        total = self._total
        if low is not None and low < 1:
            total.note(low, "it stands before the first event")
            return self._verdict(chain_ok=False)
        for first in range(live_from, newest + 1, RANGE):
            tasks.append(_Task(self._path, first, min(first + RANGE - 1, newest), wanted))
            if self._connection.execute("SELECT 1 FROM events WHERE seq = ?", (first,)).fetchone() is None:
                break  # the task will say so; a number far out must not make tasks without end
        total.head = chain.GENESIS
        for task, done in zip(tasks, self._map(tasks, newest), strict=True):
            if done.before is not None and done.before != total.head:
                total.note(task.first, "it does not follow the event before it")
                return self._verdict(chain_ok=False)
            if done.events:
                total.head = done.head
            total.events += done.events
            total.kinds += done.kinds
            total.open_groups.update(done.open_groups)
            total.hashes |= done.hashes
            total.erased += done.erased
            self._progress(total.events)
            if done.problem is not None:
                total.note(done.bad_seq, done.problem)
            if not done.chain_ok:
                return self._verdict(chain_ok=False)
        if total.problem is None:
            self._check_the_whole(archives, newest)
        return self._verdict(chain_ok=True)

    def _map(self, tasks: Sequence[_Task], newest: int) -> Iterator[_Done]:
        """What each task found, in order; many events are shared among a process a core."""
        others = min(len(tasks), len(os.sched_getaffinity(0))) - 1
        if min(newest, len(tasks) * RANGE) < MANY or others < 1:
            yield from map(_check_range, tasks)
            return
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(others, mp_context=spawn, initializer=gc.disable) as pool:
            try:
                yield from _shared(tasks, pool, 2 * others)
            finally:
                pool.shutdown(cancel_futures=True)

    def _verdict(self, *, chain_ok: bool) -> Verdict:
        """What was found so far; where the chain breaks, nothing can be said of its end."""
        total = self._total
        problem = total.problem
        if problem and total.bad_seq is not None:
            problem = f"event {total.bad_seq}: {problem}"
        good, incomplete = self._completeness() if chain_ok else (0, None)
        told = chain_ok and (self._anchors or self._ours)
        return Verdict(
            events=total.events,
            archived=self._archived,
            head=total.head.hex(),
            chain_ok=chain_ok,
            projections_ok=problem is None,
            bad_seq=total.bad_seq,
            problem=problem,
            complete=False if incomplete else True if told else None,
            incomplete=incomplete,
            checkpoints=len(self._found.checkpoints),
            checkpoint_seq=good,
            erased=total.erased,
            gaps=total.kinds["gap"],
        )

    @property
    def _name(self) -> str:
        """The chain's name."""
        return self._total.hashes.get(1, b"").hex()

    @property
    def _ours(self) -> list[checkpoints.Checkpoint]:
        """The checkpoints of this chain."""
        return [one for one in self._found.checkpoints if one.chain == self._name]

    # ------------------------------------------------------------ what only the whole can tell

    def _check_the_whole(self, archives: Sequence[archive.Segment], newest: int) -> None:
        """No table has a row that no event made, and no row names a change that no event made.

        What came after `newest` is not checked, but an event of its kind must be there.
        """
        total, connection = self._total, self._connection
        for table, kinds in TABLES.items():
            (rows,) = connection.execute(f"SELECT count(*) FROM {table} WHERE seq <= ?", (newest,)).fetchone()
            marks = ", ".join("?" * len(kinds))
            (later,) = connection.execute(
                f"SELECT count(*) FROM {table} t WHERE seq > ? AND NOT EXISTS "
                f"(SELECT 1 FROM events e WHERE e.seq = t.seq AND e.kind IN ({marks}))",
                (newest, *kinds),
            ).fetchone()
            if later or rows != sum(total.kinds[kind] for kind in kinds):
                total.note(None, f"the table {table} has rows that no event made")
        for kind, group in GROUP_OF.items():
            if total.open_groups[group] and not self._all_changed(archives, kind, group):
                told = f"rows of decisions say by {group} that an event changed them, which is not there"
                total.note(None, told)
        (private,) = connection.execute(
            "SELECT count(*) FROM private WHERE seq NOT IN (SELECT seq FROM events)"
        ).fetchone()
        if private:
            total.note(None, "a private part belongs to no event")
        if total.problem is None:
            self._erasures()

    def _all_changed(self, archives: Sequence[archive.Segment], kind: str, group: str) -> bool:
        """Whether each row that names a change names one that is there.

        Asked where the count says otherwise: a writer that changes a row again meanwhile upsets it too.
        """
        named = set(
            self._connection.execute(
                f"SELECT {group}, decision_id FROM decisions d WHERE {group} IS NOT NULL AND NOT EXISTS "
                f"(SELECT 1 FROM events e WHERE e.seq = d.{group} AND e.kind = ? AND "
                "e.subject_id = d.decision_id)",
                (kind,),
            )
        )
        for one in archives:
            if any(one.first_seq <= seq <= one.last_seq for seq, _ in named):
                with archive.reading(one.path) as lines:
                    for row, _ in lines:
                        if row.kind.decode() == kind:
                            named.discard((row.seq, row.subject_id.decode()))
        return not named

    def _erasures(self) -> None:
        """Each erasure that the table tells of is in an event; the other way round it was checked before."""
        rows = self._connection.execute("SELECT by_seq, seq, digest FROM erasures ORDER BY by_seq, seq")
        told: dict[str, str] = {}
        told_by = 0
        for by_seq, seq, digest in rows:
            if by_seq != told_by:
                body = archive.body_of(self._connection, self._path, by_seq, kind="erased")
                told, told_by = (body or {}).get("parts", {}), by_seq
            if told.get(str(seq)) != digest.hex():
                self._total.note(seq, "its private part is said to be erased, which no event tells of")

    def _completeness(self) -> tuple[int, str | None]:
        """The newest event that a good checkpoint vouches for, and what is missing."""
        total, good, ours = self._total, 0, self._ours
        for seq, head in self._anchors:
            if total.hashes.get(seq, b"").hex() != head.lower():
                return good, f"event {seq} is not the one of the anchor"
        others = {one.chain for one in self._found.checkpoints} - {self._name}
        for one in ours:
            if problem := checkpoints.check(one, self._keys):
                return good, f"the checkpoint of event {one.seq}: {problem}"
            if one.seq > total.events:
                return good, f"a checkpoint vouches for event {one.seq}, but the chain ends at {total.events}"
            if total.hashes.get(one.seq, b"").hex() != one.head:
                return good, f"event {one.seq} is not the one that its checkpoint vouches for"
            good = max(good, one.seq)
        if self._found.unreadable:
            return good, f"a checkpoint cannot be read: {self._found.unreadable[0]}"
        if others and not self._begins_with_a_gap():
            return (
                good,
                f"there are checkpoints of another chain, {min(others)[:16]}: was it replaced?",
            )
        noted = self._connection.execute(
            "SELECT seq FROM checkpoints WHERE seq < ?", (self._newest_note,)
        ).fetchall()
        if ours and (gone := {seq for (seq,) in noted} - {one.seq for one in ours}):
            return good, f"the checkpoint of event {min(gone)} is missing, and {len(gone) - 1} more"
        return good, None

    def _begins_with_a_gap(self) -> bool:
        return self._connection.execute("SELECT 1 FROM gaps WHERE seq = 1").fetchone() is not None


# ---------------------------------------------------------------- one range of events


def _shared(tasks: Sequence[_Task], pool: ProcessPoolExecutor, ahead: int) -> Iterator[_Done]:
    """What each task found, in order: others begin at the first, at most `ahead` of them, this process at the
    last."""
    begun: dict[int, Future[_Done]] = {}
    done: dict[int, _Done] = {}
    first, last = 0, len(tasks)
    for number in range(len(tasks)):
        while True:
            while first < last and len(begun) < ahead:
                begun[first] = pool.submit(_check_range, tasks[first])
                first += 1
            if number in done or begun[number].done() or first == last:
                break
            last -= 1
            with _no_collection():
                done[last] = _check_range(tasks[last])
        yield begun.pop(number).result() if number in begun else done.pop(number)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the collector of cycles, which finds none here and takes a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_range(task: _Task) -> _Done:
    """Check one range, in whatever process; nothing wrong raises."""
    done = _Done()
    with closing(_connect(task.path)) as connection:
        try:
            _Range(connection, task, done).run()
        except _Broken as broken:
            done.note(broken.seq, broken.reason)
            done.chain_ok = False
        except (sqlite3.Error, OSError, ValueError, EOFError) as error:
            done.note(task.first + done.events, f"it cannot be read: {error}")
            done.chain_ok = False
    return done


class _Wrong(Exception):
    """What stands beside an event is not what the event says; the chain goes on."""

    def __init__(self, seq: int, reason: str) -> None:
        super().__init__(reason)
        self.seq, self.reason = seq, reason


class _Broken(_Wrong):
    """The chain ends here."""


class _Range:
    """The check of one range: pages of stored bytes on one side, rows of tables on the other."""

    def __init__(self, connection: sqlite3.Connection, task: _Task, done: _Done) -> None:
        self._connection = connection
        self._task = task
        self._done = done
        self._next = task.first
        self._erased: dict[int, tuple[int, bytes]] = {}

    def run(self) -> None:
        if self._task.segment is None:
            while self._next <= self._task.last:
                with self._snapshot():
                    self._page(*self._live_page())
        else:
            with archive.reading(self._task.segment) as lines:
                while page := list(islice(lines, PAGE)):
                    private = {row.seq: part for row, part in page if part is not None}
                    with self._snapshot():
                        self._page([row for row, _ in page], private)
            if self._next <= self._task.last:
                raise _Broken(self._next, "it is missing in its archive")

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")

    def _live_page(self) -> tuple[list[chain.Row], dict[int, tuple[bytes, bytes]]]:
        connection = self._connection
        until = min(self._next + PAGE - 1, self._task.last)
        connection.text_factory = bytes
        rows = connection.execute(
            f"SELECT {EVENT_COLUMNS} FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq", (self._next, until)
        ).fetchall()
        private = connection.execute(
            "SELECT seq, salt, value FROM private WHERE seq BETWEEN ? AND ?", (self._next, until)
        ).fetchall()
        connection.text_factory = str
        if not rows:
            raise _Broken(self._next, "it is missing")
        return [chain.Row._make(row) for row in rows], {seq: (salt, value) for seq, salt, value in private}

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        """Rows of a table; text that is no UTF-8 any more is just another text."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.OperationalError as error:
            if "decode" not in str(error):
                raise
        self._connection.text_factory = _any_text
        try:
            return self._connection.execute(sql, values).fetchall()
        finally:
            self._connection.text_factory = str

    def _page(self, rows: list[chain.Row], private: dict[int, tuple[bytes, bytes]]) -> None:
        first, last = rows[0].seq, rows[-1].seq
        self._erased = {
            seq: (by_seq, digest)
            for seq, by_seq, digest in self._connection.execute(
                "SELECT seq, by_seq, digest FROM erasures WHERE seq BETWEEN ? AND ?", (first, last)
            )
        }
        stored = {
            row[0]: row
            for row in self._rows("SELECT * FROM decisions WHERE seq BETWEEN ? AND ?", first, last)
        }
        checked = self._done.events
        try:
            for row in rows:
                self._check_link(row)
                found = stored.pop(row.seq, None)
                try:
                    part = self._checked_part(row, private.pop(row.seq, None))
                    self._check_projection(row, part, found)
                except _Wrong as wrong:
                    self._done.note(wrong.seq, wrong.reason)
        finally:
            kinds = Counter(row.kind for row in rows[: self._done.events - checked])
            for kind, count in kinds.items():
                self._done.kinds[kind.decode(errors="replace")] += count

    def _check_link(self, row: chain.Row) -> None:
        done = self._done
        if row.seq != self._next:
            raise _Broken(self._next, "it is missing")
        if done.before is None:
            done.before = done.head = row.prev_hash
        if row.prev_hash != done.head:
            raise _Broken(row.seq, "it does not follow the event before it")
        try:
            link = chain.hash_of(row.prev_hash, *row[:8])
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise _Broken(row.seq, f"its columns have the wrong types: {error}") from error
        if link != row.hash:
            raise _Broken(row.seq, "its content does not match its hash")
        done.events += 1
        done.head = row.hash
        self._next += 1
        if row.seq in self._task.wanted:
            done.hashes[row.seq] = row.hash

    def _checked_part(self, row: chain.Row, part: tuple[bytes, bytes] | None) -> bytes | None:
        """The private part, if it is the one that was sealed; None where none was or it was erased."""
        by_seq, digest = self._erased.get(row.seq, (0, row.private_digest))
        self._done.erased += by_seq > 0
        if not digest:
            if part is not None:
                raise _Wrong(row.seq, "it has a private part that it should not have")
            return None
        if part is None:
            told = "its private part is gone, and no event says that it was erased"
            raise _Wrong(row.seq, told)
        salt, value = part
        if len(salt) != chain.SALT_BYTES or chain.sealed_digest(salt, value) != digest:
            raise _Wrong(row.seq, "its private part was changed")
        return value

    def _check_projection(self, row: chain.Row, part: bytes | None, found: Any) -> None:
        try:
            kind, subject_id, at = row.kind.decode(), row.subject_id.decode(), row.at.decode()
            body, private = projections.read(kind, row.body, part)
            table, expected, changes = projections.project(kind, row.seq, at, subject_id, body, private)
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _Wrong(row.seq, f"its body cannot be read: {error}") from error
        if table == "decisions":
            self._check_decision(row.seq, found, expected)
        elif found is not None:
            raise _Wrong(row.seq, "the table decisions has a row for it that it did not make")
        elif table is not None:
            shown = self._rows(f"SELECT * FROM {table} WHERE seq = ?", row.seq)
            if shown != [expected]:
                raise _Wrong(row.seq, f"its row in the table {table} is not what it says")
        if changes is not None:
            self._check_changes(row.seq, subject_id, GROUP_OF[kind], changes)
        elif kind == "erased":
            self._check_erasure(row.seq, body)

    def _check_decision(self, seq: int, found: projections.Row | None, expected: projections.Row) -> None:
        if found == expected:
            return
        if found is None:
            raise _Wrong(seq, "its row in the table decisions is missing")
        row = list(found)
        for group, columns in GROUPS.items():
            if row[AT[group]] is not None:
                self._done.open_groups[group] += 1
                for column in (group, *columns):
                    row[AT[column]] = expected[AT[column]]
        if tuple(row) != expected:
            raise _Wrong(seq, "its row in the table decisions is not what it says")

    def _check_changes(self, seq: int, decision_id: str, group: str, changes: projections.Row) -> None:
        columns = ", ".join(GROUPS[group])
        rows = self._rows(f"SELECT {group}, {columns} FROM decisions WHERE decision_id = ?", decision_id)
        found = rows[0] if rows else (None,)
        if found[0] is None or found[0] < seq:
            raise _Wrong(seq, "its decision's row does not know of it")
        if found[0] == seq:
            self._done.open_groups[group] -= 1
            if found[1:] != changes:
                raise _Wrong(seq, "its decision's row is not what it says")

    def _check_erasure(self, by_seq: int, body: Any) -> None:
        for seq, digest in body["parts"].items():
            found = self._connection.execute(
                "SELECT by_seq, digest FROM erasures WHERE seq = ?", (int(seq),)
            ).fetchone()
            if found is None or found[0] < by_seq or (found[0] == by_seq and found[1].hex() != digest):
                raise _Wrong(by_seq, f"it erased a part of event {seq}, which is not so")


def _any_text(stored: bytes) -> str:
    return stored.decode(errors="surrogateescape")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None)
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.execute("PRAGMA cache_size = -8192")
    connection.execute(f"PRAGMA mmap_size = {2**33}")
    return connection
