"""Verification: does every event match its hash, every row its event, and is the chain complete?

Owns the check of the whole journal, archives included. Invariant: it only reads, page by page in constant
memory, with no transaction open between pages. It checks up to the event that was newest at its start, so it
ends beside a busy writer. Any process; `verify` checks ranges in parallel on several cores, `verify_slowly`
a few events in each step, on the thread that takes the steps.

Integrity: each event's hash follows from its content and the hash before it. Each private part has the digest
that its event (or the newest erasure) gives. Each row of a table is the projection of its event, and no row
is without an event. Columns of a decision that a later event changes are checked with that event: the row
names it, and the number of rows that name an event must equal the number of events that are named.
Completeness: every signed checkpoint of this chain is on it, so nothing up to the newest one was truncated or
rewritten.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from msgspec import Struct

from thor_policy.core.errors import JournalError
from thor_policy.journal import chain, checkpoints, schema, segments
from thor_policy.journal.projections import GROUP_OF, TABLES
from thor_policy.journal.verification.ranges import RangeResult, Task, check_pages, check_range, connect
from thor_policy.security.signatures import PublicKeys

#: Events in one task of a process.
RANGE = 25_000
#: Events above which it pays to start processes.
MANY = 100_000


class Verdict(Struct, frozen=True, kw_only=True):
    """The result of `verify`. `bad_seq` is the first wrong event, `problem` the reason.

    `head` is the hash of the newest sound event, in hex. `complete` is None if no checkpoint or anchor covers
    the chain, `incomplete` is the reason if it is False. `checkpoint_seq` is the newest event that a valid
    checkpoint covers: a truncation after it would not show. `gaps` counts the losses that the journal
    records.
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
    """Check the journal at `path`; `progress` gets the number of events checked.

    `anchors` are sequence numbers and hashes that somebody noted. The checkpoints are those in
    `checkpoint_dir`, by default `checkpoints/` beside the journal. Trusted keys are `public_keys`, by default
    the keys in that directory. Raises JournalError if the file is no journal at all, or was written before
    0.1.0.
    """
    if not path.is_file():
        raise JournalError(f"there is no journal at {path}")
    try:
        with closing(connect(path)) as connection:
            schema.refuse_earlier(connection, path)
            # the file of the newest checkpoint event may not be written yet; those of the others are
            (newest_event,) = connection.execute("SELECT coalesce(max(seq), 0) FROM checkpoints").fetchone()
            stored = checkpoints.read_directory(checkpoint_dir or path.parent / "checkpoints")
            steps = _Verification(connection, path, stored, newest_event, public_keys, anchors).run()
            while True:
                try:
                    progress(next(steps))
                except StopIteration as end:
                    verdict: Verdict = end.value
                    return verdict
    except sqlite3.DatabaseError as error:
        raise JournalError(f"{path} cannot be read as a journal: {error}") from error


def verify_slowly(path: Path, size: int) -> Generator[int, None, Verdict]:
    """Check the integrity of the journal at `path`, `size` events in each step; completeness is unknown.

    Each step gives the number of events checked; the first problem ends them. All steps, and `close`, are for
    the same thread. No transaction stays open between them. An archive or an erasure between two steps looks
    like damage: begin anew then. Raises JournalError.
    """
    try:
        with closing(connect(path, mapped=False)) as connection:
            return (yield from _Verification(connection, path, checkpoints.StoredCheckpoints()).run(size))
    except (sqlite3.Error, OSError) as error:
        raise JournalError(f"{path} cannot be read as a journal: {error}") from error


class _Verification:
    """One run over the whole journal."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        stored: checkpoints.StoredCheckpoints,
        newest_event: int = 0,
        public_keys: PublicKeys | None = None,
        anchors: Sequence[tuple[int, str]] = (),
    ) -> None:
        self._connection = connection
        self._path = path
        self._stored = stored
        self._newest_event = newest_event
        self._keys = stored.public_keys if public_keys is None else public_keys
        self._anchors = anchors
        self._total = RangeResult()
        self._archived = 0

    def run(self, size: int | None = None) -> Generator[int, None, Verdict]:
        """Check everything; each step gives the number of events checked.

        A step is a range, shared among processes. With `size` it is so many events on this thread, and the
        check ends at the first problem.
        """
        # one query for each: for both at once SQLite would read every event
        (low,) = self._connection.execute("SELECT min(seq) FROM events").fetchone()
        (high,) = self._connection.execute("SELECT max(seq) FROM events").fetchone()
        newest = high or 0
        archives = [
            segment
            for segment in segments.segments(self._connection, self._path)
            if low is not None and segment.first_seq < low
        ]
        self._archived = sum(segment.events for segment in archives)
        signed = frozenset(checkpoint.seq for checkpoint in self._stored.checkpoints)
        hashes_of = signed | {1} | {seq for seq, _ in self._anchors}
        tasks = [Task(self._path, a.first_seq, a.last_seq, hashes_of, a.path) for a in archives]
        live_from = archives[-1].last_seq + 1 if archives else 1
        total = self._total
        if low is not None and low < 1:
            total.note(low, "its number is before that of the first event")
            return self._verdict(chain_ok=False)
        for first in range(live_from, newest + 1, RANGE):
            tasks.append(Task(self._path, first, min(first + RANGE - 1, newest), hashes_of))
            if self._connection.execute("SELECT 1 FROM events WHERE seq = ?", (first,)).fetchone() is None:
                break  # the task reports it; a huge sequence number must not make endless tasks
        total.head = chain.GENESIS
        with closing(self._map(tasks, newest)) as results:
            for task in tasks:
                result = next(results) if size is None else (yield from self._slowly(task, size))
                if result.before is not None and result.before != total.head:
                    total.note(task.first, "it does not follow the event before it")
                    return self._verdict(chain_ok=False)
                if result.events:
                    total.head = result.head
                total.events += result.events
                total.kinds += result.kinds
                total.open_groups.update(result.open_groups)
                total.hashes |= result.hashes
                total.erased += result.erased
                yield total.events
                if result.problem is not None:
                    total.note(result.bad_seq, result.problem)
                if not result.chain_ok or (result.problem and size):
                    return self._verdict(chain_ok=result.chain_ok)
        if total.problem is None:
            self._check_the_whole(archives, newest)
        return self._verdict(chain_ok=True)

    def _slowly(self, task: Task, size: int) -> Generator[int, None, RangeResult]:
        result = RangeResult()
        for _ in check_pages(self._connection, task, result, size):
            yield self._total.events + result.events
            if result.problem is not None:
                break
        return result

    def _map(self, tasks: Sequence[Task], newest: int) -> Generator[RangeResult, None, None]:
        """The result of each task, in order. Many events are shared among processes, one for each core."""
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
        """The verdict so far. If the chain is broken, its completeness is unknown."""
        total = self._total
        problem = total.problem
        if problem and total.bad_seq is not None:
            problem = f"event {total.bad_seq}: {problem}"
        good, incomplete = self._completeness() if chain_ok else (0, None)
        covered = chain_ok and (self._anchors or self._own_checkpoints)
        return Verdict(
            events=total.events,
            archived=self._archived,
            head=total.head.hex(),
            chain_ok=chain_ok,
            projections_ok=problem is None,
            bad_seq=total.bad_seq,
            problem=problem,
            complete=False if incomplete else True if covered else None,
            incomplete=incomplete,
            checkpoints=len(self._stored.checkpoints),
            checkpoint_seq=good,
            erased=total.erased,
            gaps=total.kinds["gap"],
        )

    @property
    def _name(self) -> str:
        """The chain's name."""
        return self._total.hashes.get(1, b"").hex()

    @property
    def _own_checkpoints(self) -> list[checkpoints.Checkpoint]:
        """The checkpoints of this chain."""
        return [checkpoint for checkpoint in self._stored.checkpoints if checkpoint.chain == self._name]

    # ------------------------------------------------------------ checks over all ranges

    def _check_the_whole(self, archives: Sequence[segments.Segment], newest: int) -> None:
        """Check that every row has its event, and that every row names only changes that have an event.

        Events after `newest` are not checked, but a row after it must have an event of its kind.
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
                total.note(None, f"the table {table} has rows without an event")
        for kind, group in GROUP_OF.items():
            if total.open_groups[group] and not self._all_changed(archives, kind, group):
                total.note(None, f"{group} of the table decisions names an event that does not exist")
        (private,) = connection.execute(
            "SELECT count(*) FROM private WHERE seq NOT IN (SELECT seq FROM events)"
        ).fetchone()
        if private:
            total.note(None, "a private part has no event")
        if total.problem is None:
            self._erasures()

    def _all_changed(self, archives: Sequence[segments.Segment], kind: str, group: str) -> bool:
        """True if each row that names a change names one that exists.

        Called if the counts differ, which also happens when a writer changes a row again meanwhile.
        """
        named = set(
            self._connection.execute(
                f"SELECT {group}, decision_id FROM decisions d WHERE {group} IS NOT NULL AND NOT EXISTS "
                f"(SELECT 1 FROM events e WHERE e.seq = d.{group} AND e.kind = ? AND "
                "e.subject_id = d.decision_id)",
                (kind,),
            )
        )
        for segment in archives:
            if any(segment.first_seq <= seq <= segment.last_seq for seq, _ in named):
                with segments.reading(segment.path) as stored:
                    for row, _ in stored:
                        if row.kind.decode() == kind:
                            named.discard((row.seq, row.subject_id.decode()))
        return not named

    def _erasures(self) -> None:
        """Check that each row of the table erasures is in an event. The ranges checked the converse."""
        rows = self._connection.execute("SELECT by_seq, seq, digest FROM erasures ORDER BY by_seq, seq")
        parts: dict[str, str] = {}
        parts_of = 0
        for by_seq, seq, digest in rows:
            if by_seq != parts_of:
                body = segments.body_of(self._connection, self._path, by_seq, kind="erased")
                parts, parts_of = (body or {}).get("parts", {}), by_seq
            if parts.get(str(seq)) != digest.hex():
                self._total.note(seq, "the table erasures says that it was erased, but no event does")

    def _completeness(self) -> tuple[int, str | None]:
        """The newest event that a valid checkpoint covers, and the reason if the chain is incomplete."""
        total, good, own = self._total, 0, self._own_checkpoints
        for seq, head in self._anchors:
            if total.hashes.get(seq, b"").hex() != head.lower():
                return good, f"event {seq} does not match the anchor"
        others = {checkpoint.chain for checkpoint in self._stored.checkpoints} - {self._name}
        for checkpoint in own:
            seq = checkpoint.seq
            if problem := checkpoints.check(checkpoint, self._keys):
                return good, f"the checkpoint of event {seq}: {problem}"
            if seq > total.events:
                return good, f"a checkpoint covers event {seq}, but the chain ends at {total.events}"
            if total.hashes.get(seq, b"").hex() != checkpoint.head:
                return good, f"event {seq} does not match its checkpoint"
            good = max(good, seq)
        if self._stored.unreadable:
            return good, f"a checkpoint cannot be read: {self._stored.unreadable[0]}"
        if others and not self._begins_with_a_gap():
            return (
                good,
                f"there are checkpoints of another chain, {min(others)[:16]}: was the journal replaced?",
            )
        noted = self._connection.execute(
            "SELECT seq FROM checkpoints WHERE seq < ?", (self._newest_event,)
        ).fetchall()
        if own and (gone := {seq for (seq,) in noted} - {checkpoint.seq for checkpoint in own}):
            return good, f"the checkpoint of event {min(gone)} is missing, and {len(gone) - 1} more"
        return good, None

    def _begins_with_a_gap(self) -> bool:
        return self._connection.execute("SELECT 1 FROM gaps WHERE seq = 1").fetchone() is not None


# ---------------------------------------------------------------- sharing ranges among processes


def _shared(tasks: Sequence[Task], pool: ProcessPoolExecutor, ahead: int) -> Iterator[RangeResult]:
    """The result of each task, in order.

    Other processes take tasks from the first on, at most `ahead` at a time; this one takes them from the
    last.
    """
    begun: dict[int, Future[RangeResult]] = {}
    done: dict[int, RangeResult] = {}
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
    """Without the garbage collector, which finds no cycles here and takes a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
