"""The one connection that writes the journal, and the thread that owns it.

Owns the journal file while the process lives. Invariant: an event is acknowledged only after the commit of
the transaction with the event, its place in the chain and its projections, and nothing is written once the
names of directory and file lead to others than those that were opened. `append` never waits: what arrives
during a commit is the next batch, so the disk sets the pace and no timer adds delay. The public methods may
be called from any thread; `_run` is the journal's thread: gather, commit, report.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import datetime
from enum import Enum
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeAlias, TypeVar

from msgspec import to_builtins
from msgspec.structs import replace

from thor_policy.core import records
from thor_policy.core.approvals import Moment, Person
from thor_policy.core.decisions import Decision, Explanation, Governing
from thor_policy.core.errors import ErrorCode, JournalError, RequestError
from thor_policy.core.idempotency import Mark
from thor_policy.core.requests import Caller, Claimed
from thor_policy.core.results import Committed, PriorRecord
from thor_policy.journal import approval_tasks, approvals, digest_key, events, graph, leases
from thor_policy.journal.batch import Placed, Prepared, prepare
from thor_policy.journal.events import Event
from thor_policy.journal.idempotency import find_recorded
from thor_policy.journal.signing_rule import Checkpoints, SigningRule
from thor_policy.journal.storage import (
    BUSY_TIMEOUT_MS,
    DiskSpace,
    open_for_writing,
    reopen,
    take_lock,
)
from thor_policy.telemetry import clocks
from thor_policy.telemetry.clocks import Instant
from thor_policy.telemetry.logs import Hidden
from thor_policy.telemetry.watchdog import Pulse

log = logging.getLogger(__name__)

#: Most events in one transaction; it bounds how long later events wait for a commit.
MAX_BATCH = 512
#: Bytes of write-ahead log above which the writer waits for readers, so that the log can restart.
WAL_LIMIT_BYTES = 128 * 2**20
#: How long the writer then waits, and how many bytes it writes before it waits again.
WAL_WAIT_MS, WAL_STEP_BYTES = 250, 32 * 2**20
#: How long an idle thread waits before it checks checkpoints and the disk, in seconds.
IDLE_S = 1.0
#: What SQLite raises when the file or the disk is at fault. Any other error is the fault of one event.
DISK_ERRORS = (sqlite3.OperationalError, sqlite3.DatabaseError, sqlite3.InternalError)

T = TypeVar("T")


class _Mark(Enum):
    """Stands for an item of the queue: there is none (NOTHING), or no more will come (END)."""

    NOTHING = 0
    END = 1


OnCommitted = Callable[[list[Committed]], None]


_Item: TypeAlias = "tuple[Event, int] | list[tuple[Event, int]] | _Task[Any] | _Mark"


class Journal:
    """The journal file, open for writing.

    `on_committed` gets the fate of every event, batch by batch, on the journal's thread; it must not block.
    `now` is the clock that measures elapsed time, `wall` gives Unix time in seconds.
    Raises AlreadyRunning if another process holds the file, JournalError if the file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        on_committed: OnCommitted = lambda _: None,
        synchronous: str = "FULL",
        min_free_mb: int = 0,
        ballast_mb: int = 0,
        checkpoints: Checkpoints | None = None,
        masked: tuple[str, ...] = (),
        max_batch: int = MAX_BATCH,
        now: Callable[[], Instant] = clocks.now,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.now = now
        self._wall_clock = wall
        self._on_committed = on_committed
        self._synchronous = synchronous
        self._max_batch = max_batch
        self._masked = masked
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self.batches = 0
        #: Approved tasks that can still lift something. Any thread may get one.
        self.approved = approval_tasks.Approved()
        self.failing: str | None = None
        self._full = False
        #: Beats with each batch, each task and each check of the disk. A failed attempt is progress too.
        self.pulse = Pulse()
        #: Events by fate (`committed`, `refused`, `lost`), and other counts.
        self.counters: Counter[str] = Counter()
        #: Lost events, by kind: those that no `gap` event reports yet, and those that the newest one reports.
        self._lost: Counter[str] = Counter()
        self._lost_in_gap: Counter[str] = Counter()
        self._ended = False
        self._wal = path.with_name(f"{path.name}-wal")
        self._wal_limit = WAL_LIMIT_BYTES
        self._signing = None if checkpoints is None else SigningRule(checkpoints, self.counters)
        self.disk_space = DiskSpace(path.parent, min_free_mb=min_free_mb, ballast_mb=ballast_mb)
        self._lock = take_lock(path)
        with ExitStack() as undo:
            undo.callback(os.close, self._lock)
            opened = open_for_writing(path, synchronous, self.disk_space)
            undo.callback(opened.connection.close)
            self._connection, self._seq, self._head = opened.connection, opened.seq, opened.head
            self._first, self._place = opened.first, opened.place
            #: Nanoseconds of the boot, and the wall time that it was then at least.
            self._least_wall = now().ns, max(wall(), _newest_at(opened.connection))
            self._digest_key = digest_key.open_key(path)
            self.disk_space.restore()
            if self._signing is not None:
                self._signing.sign_what_a_crash_left(self._connection, self.chain)
            undo.pop_all()
        if opened.aside is not None:
            why = f"the journal was damaged and is kept as {opened.aside.name}: {opened.why}"
            self.append(events.gap_event(why, time.time(), file=opened.aside.name))
        #: Events that are ready to be committed, and an item that must wait until they are committed.
        self._prepared: list[Prepared] = []
        self._postponed: _Item = _Mark.NOTHING
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="journal-commit")
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """False when the journal thread has ended."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Number of events that are not in a transaction yet."""
        return self._queue.qsize()

    @property
    def seq(self) -> int:
        """Sequence number of the newest committed event; 0 before the first."""
        return self._seq

    def refusal(self) -> RequestError | None:
        """Why no new request should be admitted; None while the journal records. Any thread."""
        if not self.alive:
            return RequestError("unavailable", "the journal has stopped; the daemon must be restarted")
        failing = self.failing
        try:
            free = self.disk_space.recent_free_bytes(time.monotonic_ns())
            least = self.disk_space.min_free_bytes
        except OSError as error:
            why = failing or error.strerror
            return RequestError("unavailable", f"the disk of {self.path.parent} fails: {why}")
        if free < least or (failing and self._full):
            return RequestError(
                "disk_full",
                f"{free / 2**20:.1f} MiB are free in {self.path.parent}; min_free_mb requires "
                f"{least // 2**20} MiB: free space there",
            )
        if failing:
            return RequestError(
                "unavailable", f"the journal cannot be written ({failing}); the daemon retries every second"
            )
        return None

    def moment(self) -> Moment:
        """Now, by both clocks. Any thread."""
        (boot_id, ns), at = self.now(), self._wall_clock()
        then_ns, least = self._least_wall
        behind_ns = (least - at) * 1e9 + ns - then_ns
        return Moment(boot_id, ns, at, back=behind_ns > clocks.STEP_NS)

    def append(self, event: Event) -> None:
        """Hand over an event; returns at once. `on_committed` gets its fate."""
        self._queue.put((event, time.monotonic_ns()))
        if self._ended:
            self._refuse_the_rest()

    def decided(self, decision: Decision, ticket: int | None = None) -> None:
        """Record a decision, and an edge to each of its precedents."""
        digest = self._digest_key.of_value if self._masked and decision.sources else None
        self.append(events.decision_event(decision, ticket, masked=self._masked, digest=digest))
        for edge in events.citations_of(decision):
            self.append(edge)

    def decided_together(self, decisions: Sequence[tuple[Decision, int]]) -> None:
        """Record decisions with their tickets in one transaction, if all can be stored."""
        digest, put_ns = self._digest_key.of_value if self._masked else None, time.monotonic_ns()
        made = [
            events.decision_event(
                decision, ticket, masked=self._masked, digest=digest if decision.sources else None
            )
            for decision, ticket in decisions
        ]
        self._queue.put([(event, put_ns) for event in made])
        if self._ended:
            self._refuse_the_rest()

    def explained(
        self,
        decision_id: str,
        explanation: Explanation,
        at: float,
        ticket: int | None = None,
        sender: str | None = None,
    ) -> None:
        """Record an explanation that was written after its decision; `at` is Unix time in seconds."""
        self.append(events.explanation_event(decision_id, explanation, at, ticket, sender=sender))

    def write(
        self,
        record: records.Record,
        *,
        record_id: str,
        at: float,
        caller: Caller,
        ticket: int | None = None,
        idempotency: str | None = None,
        claimed: Claimed = "no",
        governing: Governing | None = None,
        person: Person | None = None,
        recorder: Person | None = None,
        bounds: events.Bounds | None = None,
    ) -> None:
        """Record what a client sent. Its fate is `not_found` if it names an unknown decision.

        `governing` is the pack that governs a reported decision, which becomes one event and an edge to each
        of its precedents that is recorded.
        """
        self.append(
            events.record_event(
                record,
                record_id=record_id,
                at=at,
                caller=caller,
                ticket=ticket,
                masked=self._masked,
                idempotency=idempotency,
                claimed=claimed,
                governing=governing,
                person=person,
                recorder=recorder,
                bounds=bounds,
            )
        )
        for edge in events.citations(record, record_id=record_id, at=at, caller=caller):
            self.append(edge)

    def digest(self, content: bytes) -> str:
        """The keyed digest of what an approval is bound to. Any thread."""
        return self._digest_key.of_content(content)

    def mark(self, caller: Caller, key: str, content: str) -> Mark:
        """The mark of a request with an idempotency key; `content` is the sha256 of what it asks."""
        return self._digest_key.mark(caller, key, content)

    def replace_digest_key(self) -> None:
        """Make all digests on the chain meaningless: no key sent so far is recognised any more.

        Waits for the disk. Raises JournalError.
        """
        self._digest_key = digest_key.replace_key(self.path)

    def recall(self, digest: str, on_answer: Callable[[PriorRecord | RequestError | None], None]) -> None:
        """Look up what was recorded for an idempotency key, among all that is committed by then.

        `digest` is that of caller and key. Returns at once; `on_answer` gets the answer on the journal's
        thread and must not block.
        """

        def answer(future: Future[PriorRecord | None]) -> None:
            error = future.exception()
            if error is None:
                on_answer(future.result())
            else:
                on_answer(RequestError("unavailable", f"the idempotency key could not be looked up: {error}"))

        self.run(lambda db: find_recorded(db, digest, self.now())).add_done_callback(answer)

    def commit(self, event: Event) -> Future[Committed]:
        """Record one event in a transaction of its own, for a caller that must know that it is on disk."""
        return self.run(lambda _: self._commit([prepare(event, time.monotonic_ns())])[-1])

    def commit_all(self, batch: Sequence[Event]) -> Future[list[Committed]]:
        """Record events in one transaction. An event that cannot be recorded has its own fate."""
        return self.run(lambda _: self._commit([prepare(event, time.monotonic_ns()) for event in batch]))

    def commit_records(
        self, kept: Sequence[tuple[str, records.Record]], *, at: float, caller: Caller
    ) -> Future[list[Committed]]:
        """Record these with the ids that they have, in one transaction; each has its own fate."""
        return self.commit_all(
            [
                events.record_event(record, record_id=id, at=at, caller=caller, masked=self._masked)
                for id, record in kept
            ]
        )

    def shadowed(self, served: Decision, shadow: Decision, at: float) -> None:
        """Record the decision of a shadow pack. The `served` decision must be recorded before."""
        self.append(events.shadow_event(served, shadow, at))

    def checkpoint(self) -> Future[int]:
        """Sign the chain as it is now. The result is the newest event that a checkpoint covers."""

        def task(_: sqlite3.Connection) -> int:
            self._checkpoint()
            return 0 if self._signing is None else self._signing.signed_seq

        return self.run(task)

    @property
    def chain(self) -> str:
        """The chain's name: the hash of its first event, in hex; empty before that."""
        return self._first.hex()

    def run(self, task: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Call `task` with the connection between two batches. It must be short, because decisions wait.

        The future gets a JournalError if the journal is closed before the task's turn.
        """
        future: Future[T] = Future()
        self._queue.put(_Task(task, future))
        if self._ended:
            self._refuse_the_rest()
        return future

    def close(self, timeout_s: float = 30.0) -> None:
        """Commit what was appended, then release the file. Safe to call twice."""
        if self._lock < 0:
            return
        self._queue.put(_Mark.END)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise JournalError(f"the journal did not drain within {timeout_s} s; {self.waiting} events left")
        os.close(self._lock)
        self._lock = -1

    # ------------------------------------------------------------ the journal thread

    def _run(self) -> None:
        try:
            while self._gather():
                batch, self._prepared = self._prepared, []
                self._report(self._commit(batch))
                self._bound_wal()
                self._checkpoint_if_due()
            self._checkpoint()
        finally:
            self._committer.shutdown()
            self._connection.close()
            self._ended = True
            self._refuse_the_rest()

    def _refuse_the_rest(self) -> None:
        """Give a fate to everything that arrives after the end. Called by the thread that notices it."""
        message = "the journal is closed"
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, tuple | list):
                refused = [event for event, _ in (item if isinstance(item, list) else [item])]
                self.counters["lost"] += len(refused)
                self._on_committed(
                    [
                        Committed(
                            ticket=event.ticket,
                            kind=event.kind,
                            error="shutting_down",
                            message=message,
                            sender=event.sender,
                        )
                        for event in refused
                    ]
                )
            elif isinstance(item, _Task):
                item.fail(JournalError(message))

    def _gather(self) -> bool:
        """Wait until an event is ready to be committed, and run tasks meanwhile. False at the end."""
        self.pulse.beat()
        while not self._prepared:
            item = self._next() if self._postponed is _Mark.NOTHING else self._postponed
            self._postponed = _Mark.NOTHING
            if isinstance(item, tuple):
                self._encode(*item)
            elif isinstance(item, list):
                for event, put_ns in item:
                    self._encode(event, put_ns)
            elif isinstance(item, _Task):
                self._run_task(item)
            else:
                return False
        self._gather_more(lambda: False)
        return True

    def _run_task(self, task: _Task[Any]) -> None:
        try:
            self._check_place()
        except JournalError as error:
            self._fail(error)
            task.fail(error)
        else:
            task.run(self._connection)

    def _gather_more(self, enough: Callable[[], bool]) -> None:
        """Prepare the events that have arrived, up to a full batch, or to an item that is no event."""
        while len(self._prepared) < self._max_batch and self._postponed is _Mark.NOTHING and not enough():
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, tuple):
                self._encode(*item)
            elif isinstance(item, list):
                for event, put_ns in item:
                    self._encode(event, put_ns)
            else:
                self._postponed = item

    def _next(self) -> _Item:
        """The next item. While there is none, do the periodic work: recovery, ballast, checkpoints."""
        while True:
            self.pulse.rest()
            try:
                item = self._queue.get(timeout=IDLE_S)
                self.pulse.beat()
                return item
            except queue.Empty:
                self.pulse.beat()
                self._do_periodic_work()

    def _do_periodic_work(self) -> None:
        if self.failing:
            self._recover()
        else:
            try:
                self._check_place()
            except JournalError as error:
                self._fail(error)
        if not self.failing:
            self.disk_space.restore()
            self._checkpoint_if_due()

    def _encode(self, event: Event, put_ns: int) -> None:
        """Prepare an event, or report that it cannot be stored."""
        try:
            self._prepared.append(prepare(event, put_ns))
        except Exception as error:  # invalid Unicode, an invalid time, a value that is not JSON
            self._report([self._lose(event, "unavailable", f"the event cannot be stored: {error}")])

    def _report(self, fates: list[Committed]) -> None:
        if fates:
            self._on_committed(fates)

    def _commit(self, batch: list[Prepared]) -> list[Committed]:
        """Record a batch in one transaction; an event that cannot be stored fails alone."""
        if not batch:
            return []
        try:
            if self.failing:
                self._reopen()
            return self._transaction(batch)
        except Exception as error:  # after any error, nothing of this transaction may be acknowledged
            self._roll_back()
            code = getattr(error, "sqlite_errorcode", 0)
            if code == sqlite3.SQLITE_FULL and self.disk_space.release():
                self.counters["ballast_released"] += 1
                return self._commit(batch)
            full = code == sqlite3.SQLITE_FULL
            if type(error) in (*DISK_ERRORS, JournalError):
                self._fail(error)
            elif len(batch) > 1:
                middle = len(batch) // 2
                return self._commit(batch[:middle]) + self._commit(batch[middle:])
            known = isinstance(error, sqlite3.Error | JournalError)  # another may repeat what it cannot store
            why = error if known else Hidden(error)
            log.error("the journal could not record %d events: %s", len(batch), why)
            reason: ErrorCode = "disk_full" if full else "unavailable"
            message = "the disk is full" if full else "the journal failed"
            return [self._lose(prepared.event, reason, message) for prepared in batch]

    def _transaction(self, batch: list[Prepared]) -> list[Committed]:
        placed = Placed(self._seq, self._head, self.now)
        placed.approvals.approved = self.approved
        if self._lost:
            lost = events.gap_event("events could not be recorded", time.time(), **self._lost)
            placed.add(prepare(lost, time.monotonic_ns()))
            self._lost_in_gap = Counter(self._lost)
        objections: dict[int, RequestError] = {}
        places = []
        tasks: dict[int, str] = {}
        for number, prepared in enumerate(batch):
            try:
                checked = self._checked(prepared, placed, tasks, number)
                along = self._checked_along(prepared, placed)
            except RequestError as objection:
                objections[number] = objection
                places.append(0)
            else:
                places.append(placed.add(checked))
                for event in along:
                    placed.add(event)
        self._check_place()
        self._connection.execute("BEGIN IMMEDIATE")
        placed.write(self._connection)
        citing = {  # in the transaction, so that no citation comes between
            number: graph.cited_by(self._connection, prepared.event.subject_id)
            for number, prepared in enumerate(batch)
            if prepared.event.kind == "trace_state" and places[number]
        }
        changed = {number: approval_tasks.find(self._connection, task) for number, task in tasks.items()}
        moment = self.moment() if changed else None
        if self._queue.empty():
            self._connection.execute("COMMIT")
        else:  # the disk does not need the interpreter, so prepare what has arrived meanwhile
            begun = threading.Event()
            commit = self._committer.submit(self._commit_aside, begun)
            begun.wait()
            self._gather_more(commit.done)
            commit.result()
        self._seq, self._head = placed.seq, placed.head
        self._first = self._first or placed.first
        self.counters["committed"] += len(placed.events)
        self.batches += 1
        if any(prepared.event.rewrites for prepared in batch):
            self.approved.clear()
        self.approved.renew(changed.values(), placed.approvals.uses)
        self.failing = None
        self._lost.clear()
        now_ns = time.monotonic_ns()
        return [
            Committed(
                ticket=prepared.event.ticket,
                kind=prepared.event.kind,
                seq=seq,
                commit_ms=(now_ns - prepared.put_ns) / 1e6,
                size=prepared.size,
                sender=prepared.event.sender,
                cited_by=citing.get(number),
                task=changed.get(number),
                moment=moment if number in changed else None,
            )
            if seq
            else self._refused(prepared.event, objections[number])
            for number, (seq, prepared) in enumerate(zip(places, batch, strict=True))
        ]

    def _commit_aside(self, begun: threading.Event) -> None:
        begun.set()
        self._connection.execute("COMMIT")

    def _refused(self, event: Event, why: RequestError) -> Committed:
        self.counters["refused"] += 1
        return Committed(
            ticket=event.ticket,
            kind=event.kind,
            error=why.code,
            message=why.message,
            sender=event.sender,
            reason_code=why.reason_code,
        )

    def _checked(self, prepared: Prepared, placed: Placed, tasks: dict[int, str], number: int) -> Prepared:
        """The event as it is to be recorded; `tasks` gets the task that it changes. Raises RequestError."""
        concerns_task = approvals.concerns(event := prepared.event)
        if event.kind == "decision" and not concerns_task:
            return prepared  # most events: nothing can object
        if concerns_task:
            settled = approvals.check(self._connection, placed.approvals, event, self.moment())
            if event.kind != "decision":
                body: Any = settled.body
                tasks[number] = body["id"] if event.kind == "approval_request" else body["task"]
                prepared = prepare(settled, prepared.put_ns)
        if (objection := self._objection(prepared.event, placed)) is not None:
            raise objection
        return self._if_own(prepared, placed)

    def _checked_along(self, prepared: Prepared, placed: Placed) -> list[Prepared]:
        """What is recorded along with an event, none of it yet. Raises RequestError if any must not be."""
        if not (along := prepared.event.along):
            return []
        with placed.graph.supposing(prepared.event):
            for event in along:
                if (objection := self._objection(event, placed)) is not None:
                    raise objection
        return [prepare(event, prepared.put_ns) for event in along]

    def _objection(self, event: Event, placed: Placed) -> RequestError | None:
        """Why an event must not be recorded; None if it may be."""
        if not self._is_known(event, placed):
            return RequestError("not_found", f"decision_id: there is no decision {event.subject_id[:64]!r}")
        if event.kind == "assignment" and leases.held_by_another(
            self._connection, placed.leases, event, self.now()
        ):
            return RequestError("conflict", "decision_id: another reviewer has this decision; take the next")
        if event.kind in graph.CHECKED:
            return graph.problem_of(self._connection, placed.graph, event)
        return None

    def _if_own(self, prepared: Prepared, placed: Placed) -> Prepared:
        """The event; without `claimed` if it is about a decision that its caller made, and so counts."""
        event = prepared.event
        if not event.unless_own:
            return prepared
        maker = self._maker_of(event.subject_id, placed)
        if maker is None or maker != events.who_sent(event.body):
            return prepared
        body = {name: value for name, value in to_builtins(event.body).items() if name != "claimed"}
        return prepare(replace(event, body=body, unless_own=False), prepared.put_ns)

    def _maker_of(self, decision_id: str, placed: Placed) -> str | None:
        """Who asked for, or reported, a decision. None for a CURVE key whose decision is archived."""
        if decision_id in placed.decisions:
            return placed.decisions[decision_id]
        row = self._connection.execute(
            "SELECT d.caller_uid, e.body FROM decisions d LEFT JOIN events e ON e.seq = d.seq "
            "WHERE d.decision_id = ?",
            (decision_id,),
        ).fetchone()
        if row is None:
            return None
        uid, body = row
        if body is not None:
            return events.who_sent(body)
        return None if uid is None else f"uid:{uid}"

    def _is_known(self, event: Event, placed: Placed) -> bool:
        """False if the event is about a decision that is not recorded."""
        if event.kind not in events.ABOUT_DECISION:
            return True
        if event.kind == "consultation" and event.subject_id == event.body["id"]:  # type: ignore[index]
            return True
        if event.subject_id in placed.decisions:
            return True
        row = self._connection.execute(
            "SELECT 1 FROM decisions WHERE decision_id = ?", (event.subject_id,)
        ).fetchone()
        return row is not None

    def _lose(self, event: Event, error: ErrorCode, message: str) -> Committed:
        self.counters["lost"] += 1
        self._lost[str(event.kind)] += 1
        return Committed(
            ticket=event.ticket, kind=event.kind, error=error, message=message, sender=event.sender
        )

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):  # closed, or stuck: then the next BEGIN fails, and its batch is lost
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _fail(self, error: Exception) -> None:
        """Admit nothing until `_recover` or a transaction succeeds."""
        self.failing = f"{type(error).__name__}: {error}"
        self._full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL or self.disk_space.is_full()

    # ------------------------------------------------------------ the file and its log

    def _check_place(self, *, with_wal: bool = True) -> None:
        """Raise JournalError if a name leads to another file than the one that was opened."""
        exchanged = self._place.difference(self.path, with_wal=with_wal)
        if exchanged is None:
            return
        if not self.failing:
            self.counters["exchanged"] += 1
            log.critical("nothing is recorded: %s since the journal was opened", exchanged)
        raise JournalError(
            f"{exchanged} since the journal was opened; put the opened one back, or restart the daemon"
        )

    def _recover(self) -> None:
        """Try a commit, that of the gap if there is one. `failing` is None if it succeeds."""
        self.counters["recoveries_tried"] += 1
        try:
            self._reopen()
            if self._lost:
                self._transaction([])
                return
            self._connection.execute("BEGIN IMMEDIATE")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            self._connection.execute(f"PRAGMA user_version = {version}")  # the same value, but it is a write
            self._connection.execute("COMMIT")
            self.failing = None
        except (sqlite3.Error, JournalError) as error:
            self._roll_back()
            self._fail(error)

    def _reopen(self) -> None:
        """Open the file again: after a failed sync only the file shows what is on disk.

        A commit that failed may be on disk all the same, and the disk may have lost one that succeeded.
        """
        self._check_place(with_wal=False)  # closing copies a log that has lost its name into the database
        with suppress(sqlite3.Error):
            self._connection.close()
        opened = reopen(self.path, self._synchronous)
        known, self._seq, self._head, self._first = self._seq, opened.seq, opened.head, opened.first
        self._connection, self._place = opened.connection, opened.place
        self.approved.clear()
        self.counters["reopened"] += 1
        if self._seq < known:
            log.critical("%s ends at event %d; %d were acknowledged", self.path, self._seq, known)
            self._lost["acknowledged"] += known - self._seq
        back = Counter(
            dict(
                self._connection.execute(
                    "SELECT kind, count(*) FROM events WHERE seq > ? GROUP BY kind", (known,)
                )
            )
        )
        self._lost -= back
        if back["gap"]:
            self._lost -= self._lost_in_gap

    def _bound_wal(self) -> None:
        """If the write-ahead log is large, wait briefly for the readers that keep it from restarting."""
        try:
            size = self._wal.stat().st_size
        except OSError:
            return
        if size < self._wal_limit:
            return
        try:
            self._connection.execute(f"PRAGMA busy_timeout = {WAL_WAIT_MS}")
            (blocked, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        except sqlite3.Error as error:
            self._fail(error)
            return
        self.counters["wal_blocked"] += blocked
        self._wal_limit = size + WAL_STEP_BYTES if blocked else WAL_LIMIT_BYTES

    # ------------------------------------------------------------ checkpoints

    def _checkpoint_if_due(self) -> None:
        if self._signing is not None and self._signing.is_due(self._seq):
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Commit a `checkpoint` event, and sign the chain up to it."""
        signing = self._signing
        if signing is None or self.failing or self._seq == signing.signed_seq:
            return
        event = signing.event(time.time())
        fate = self._commit([prepare(event, time.monotonic_ns())])[-1]
        if fate.error is None:
            signing.sign(self.chain, self._seq, self._head, events.timestamp(event.at))
        signing.ended(self._seq)


def _newest_at(connection: sqlite3.Connection) -> float:
    """The wall time of the newest event, as Unix time; 0 if there is none, infinity if it is damaged."""
    row = connection.execute("SELECT at FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    try:
        return 0.0 if row is None else datetime.fromisoformat(row[0]).timestamp()
    except (TypeError, ValueError):
        return inf


class _Task(Generic[T]):
    """A call that needs the connection, and the future of its result."""

    def __init__(self, call: Callable[[sqlite3.Connection], T], future: Future[T]) -> None:
        self._call, self._future = call, future

    def run(self, connection: sqlite3.Connection) -> None:
        try:
            self._future.set_result(self._call(connection))
        except BaseException as error:
            self._future.set_exception(error)

    def fail(self, error: JournalError) -> None:
        self._future.set_exception(error)
