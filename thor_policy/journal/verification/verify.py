"""Verification: is every event what was written, every table what they say, and is the end still there?

Owns the check of the whole journal, archives included. Invariant: it only reads, in constant memory, a
page at a time, and holds no transaction between pages; it checks up to the event that was newest when it
began, so it ends beside a writer that never rests. Any process; ranges are checked side by side on
several cores.

Integrity: each event's hash follows from its content and the hash before it; each private part has the
digest that its event (or the newest erasure) gives; each row of a table is the projection of its event,
and no row is without one. Columns of a decision that a later event changes are checked with that event:
rows name it, and as many rows must name one as events were found to be named. Completeness: every signed
checkpoint of this chain is on it, so nothing up to the newest one was cut off or stamped anew.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from msgspec import Struct

from thor_policy.core.errors import JournalError
from thor_policy.journal import chain, checkpoints, schema, segments
from thor_policy.journal.projections import GROUP_OF, TABLES
from thor_policy.journal.verification.ranges import Done, Task, check_range, connect
from thor_policy.security.signatures import PublicKeys

#: Events in one task of a process.
RANGE = 25_000
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
    there. Raises JournalError if the file is no journal at all, or was
    written before 0.1.0.
    """
    if not path.is_file():
        raise JournalError(f"there is no journal at {path}")
    try:
        with closing(connect(path)) as connection:
            schema.refuse_earlier(connection, path)
            # the file of the newest note may still be on its way; those of the others are there from here on
            (newest_note,) = connection.execute("SELECT coalesce(max(seq), 0) FROM checkpoints").fetchone()
            found = checkpoints.found(checkpoint_dir or path.parent / "checkpoints")
            return _Verification(connection, path, found, newest_note, public_keys, anchors, progress).run()
    except sqlite3.DatabaseError as error:
        raise JournalError(f"{path} cannot be read as a journal: {error}") from error


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
        self._total = Done()
        self._archived = 0

    def run(self) -> Verdict:
        low, high = self._connection.execute("SELECT min(seq), max(seq) FROM events").fetchone()
        newest = high or 0
        archives = [
            one
            for one in segments.segments(self._connection, self._path)
            if low is not None and one.first_seq < low
        ]
        self._archived = sum(one.events for one in archives)
        wanted = frozenset(one.seq for one in self._found.checkpoints) | {1} | {s for s, _ in self._anchors}
        tasks = [Task(self._path, a.first_seq, a.last_seq, wanted, a.path) for a in archives]
        live_from = archives[-1].last_seq + 1 if archives else 1
        total = self._total
        if low is not None and low < 1:
            total.note(low, "it stands before the first event")
            return self._verdict(chain_ok=False)
        for first in range(live_from, newest + 1, RANGE):
            tasks.append(Task(self._path, first, min(first + RANGE - 1, newest), wanted))
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

    def _map(self, tasks: Sequence[Task], newest: int) -> Iterator[Done]:
        """What each task found, in order; many events are shared among a process a core."""
        others = min(len(tasks), len(os.sched_getaffinity(0))) - 1
        if min(newest, len(tasks) * RANGE) < MANY or others < 1:
            yield from map(check_range, tasks)
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

    def _check_the_whole(self, archives: Sequence[segments.Segment], newest: int) -> None:
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

    def _all_changed(self, archives: Sequence[segments.Segment], kind: str, group: str) -> bool:
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
                with segments.reading(one.path) as lines:
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
                body = segments.body_of(self._connection, self._path, by_seq, kind="erased")
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


# ---------------------------------------------------------------- sharing ranges among processes


def _shared(tasks: Sequence[Task], pool: ProcessPoolExecutor, ahead: int) -> Iterator[Done]:
    """What each task found, in order: others begin at the first, at most `ahead` of them, this process at the
    last."""
    begun: dict[int, Future[Done]] = {}
    done: dict[int, Done] = {}
    first, last = 0, len(tasks)
    for number in range(len(tasks)):
        while True:
            while first < last and len(begun) < ahead:
                begun[first] = pool.submit(check_range, tasks[first])
                first += 1
            if number in done or begun[number].done() or first == last:
                break
            last -= 1
            with _no_collection():
                done[last] = check_range(tasks[last])
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
