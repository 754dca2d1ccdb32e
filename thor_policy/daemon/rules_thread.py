"""The rules thread: it runs the rules on each request, and decides those that they alone decide.

Owns the thread that runs the rules, so that a request which they decide never waits for the model. Invariant:
each request ends in exactly one of three: a decision handed to the journal, a refusal, or the engine's queue
with its floor. Nothing here waits for the disk or the model.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from thor_policy.core.decisions import Decision
from thor_policy.core.engine import DecisionLog
from thor_policy.core.errors import RequestError, decision_failed
from thor_policy.core.fair_queue import OWN, Debts, FairQueue, Lane
from thor_policy.core.requests import Request, Together
from thor_policy.core.results import EngineResult, Refused
from thor_policy.daemon.shares import check_in_time
from thor_policy.policy.decider import Assessment, Policy
from thor_policy.telemetry import logs
from thor_policy.telemetry.watchdog import Pulse

log = logging.getLogger(__name__)

#: Weight of the newest request in the running mean of how long one takes.
_MEAN_WEIGHT = 0.1
#: How long the decisions of a batch wait for the next one of it, in seconds.
HELD_S = 0.02


class Judging(Protocol):
    """The engine thread, as far as requests need it (`daemon.engine_thread`)."""

    @property
    def alive(self) -> bool: ...

    @property
    def mean_decision_ms(self) -> float: ...

    def ahead(self, lane: Lane) -> int: ...

    def submit(self, assessment: Assessment, lane: Lane) -> None: ...

    def drop(self, lane: Lane) -> list[Request]: ...


class _Waiting(NamedTuple):
    """A request, and the lane that it came in."""

    request: Request
    lane: Lane


@dataclass
class _Held:
    """Decisions of a batch of `size`, until all of them are there; when the newest came, monotonic ns."""

    size: int
    newest_ns: int = 0
    decisions: list[tuple[Decision, int]] = field(default_factory=list)


class RulesThread:
    """Runs the rules of `policy`, and hands what they leave to the model to `engine`.

    Each decision goes to `journal` with its ticket; `on_outcome` gets it first, on this thread, and must not
    block. A caller with too many `uncommitted` decisions waits, and others are decided. With
    `record_together` the decisions of a batch are recorded as one, if they come within `HELD_S`.
    """

    def __init__(
        self,
        policy: Policy,
        engine: Judging,
        journal: DecisionLog,
        on_outcome: Callable[[int, EngineResult], None],
        uncommitted: Debts,
        record_together: Callable[[Sequence[tuple[Decision, int]]], None] | None = None,
    ) -> None:
        self._policy = policy
        self._engine = engine
        self._journal = journal
        self._on_outcome = on_outcome
        self._uncommitted = uncommitted
        self._record_together = record_together
        #: Decisions of batches that are not recorded yet, by batch.
        self._held: dict[int, _Held] = {}
        self._queue: FairQueue[_Waiting] = FairQueue(debts=uncommitted)
        self._thread = threading.Thread(target=self._run, name="rules", daemon=True)
        self._limit = logs.Limit()
        #: Beats with each request.
        self.pulse = Pulse()
        #: How long the rules of one request take, in milliseconds.
        self.mean_ms = 0.0
        #: What became of requests, and exceptions that no code expected.
        self.counters = Counter(decisions=0, for_the_model=0, refused=0, internal_errors=0)

    def start(self) -> None:
        """Begin to take requests."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False when the thread has ended."""
        return self._thread.is_alive()

    def refusal(self) -> RequestError | None:
        """Why no request should be submitted; None while they are decided."""
        if not self._engine.alive:
            return RequestError("unavailable", "the engine has stopped; the daemon must be restarted")
        if not self.alive:
            return RequestError("unavailable", "the rules have stopped; the daemon must be restarted")
        return None

    @property
    def waiting(self) -> int:
        """Requests that wait for the rules."""
        return len(self._queue)

    def expected_ms(self, lane: Lane) -> int:
        """How long the rules of the requests before one in this lane will take, in milliseconds."""
        return int(self._queue.ahead(lane) * self.mean_ms)

    def submit(self, request: Request, lane: Lane = OWN) -> None:
        """Queue an admitted request; returns at once."""
        self._queue.put(_Waiting(request, lane), lane)

    def drop(self, lane: Lane) -> list[Request]:
        """Take out the requests of a lane that no decision was begun for, and return them."""
        return [waiting.request for waiting in self._queue.drop(lane)] + self._engine.drop(lane)

    def stop(self, timeout_s: float) -> bool:
        """Finish what is queued, then end; False if it did not within `timeout_s`."""
        self._queue.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ------------------------------------------------------------ the loop

    def _run(self) -> None:
        while (waiting := self._next()) is not None:
            started_ns = time.monotonic_ns()
            try:
                self._decide(*waiting)
            except RequestError as error:
                self.counters["refused"] += 1
                self._refuse(waiting.request, error)
            except Exception:
                self.counters["internal_errors"] += 1
                if (unlogged := self._limit.admit(started_ns)) is not None:
                    extra = logs.fields(unlogged=unlogged or None)
                    log.exception("the rules failed with an unexpected error", extra=extra)
                self._refuse(waiting.request, decision_failed())
            took_ms = (time.monotonic_ns() - started_ns) / 1e6
            self._queue.charge(took_ms)
            self.mean_ms += _MEAN_WEIGHT * (took_ms - self.mean_ms)
            if self._held:
                self._release_old()
        self._release_all()

    def _next(self) -> _Waiting | None:
        while True:
            try:
                waiting = self._queue.get(block=False)
            except queue.Empty:
                self.pulse.rest()
                try:
                    waiting = self._queue.get(timeout_s=HELD_S if self._held else None)
                except queue.Empty:  # what a batch lacks is with the model, or was refused
                    self._release_all()
                    continue
            self.pulse.beat()
            return waiting

    def _decide(self, request: Request, lane: Lane) -> None:
        """Decide a request, or hand it to the engine. Raises RequestError."""
        assessment = self._policy.assess(request)
        if not assessment.final:
            left_ms = (request.deadline_ns - assessment.done_ns) // 1_000_000
            check_in_time(int(self._engine.ahead(lane) * self._engine.mean_decision_ms), left_ms)
            self.counters["for_the_model"] += 1
            self._engine.submit(assessment, lane)
            return
        decision = self._policy.judge(assessment)
        self.counters["decisions"] += 1
        self._on_outcome(request.ticket, decision)
        self._uncommitted.owe(request.caller.who or "")
        if request.together is None or self._record_together is None:
            self._journal.decided(decision, request.ticket)
        else:
            self._hold(request.together, decision, request.ticket)

    # ------------------------------------------------------------ batches

    def _hold(self, together: Together, decision: Decision, ticket: int) -> None:
        held = self._held.setdefault(together.batch, _Held(together.size))
        held.newest_ns = time.monotonic_ns()
        held.decisions.append((decision, ticket))
        if len(held.decisions) == held.size:
            self._release(together.batch)

    def _release(self, batch: int) -> None:
        """Hand the decisions of a batch to the journal."""
        assert self._record_together is not None  # noqa: S101  only then is something held
        self._record_together(self._held.pop(batch).decisions)

    def _release_old(self) -> None:
        now_ns = time.monotonic_ns()
        for batch in [at for at, held in self._held.items() if now_ns - held.newest_ns > HELD_S * 1e9]:
            self._release(batch)

    def _release_all(self) -> None:
        for batch in list(self._held):
            self._release(batch)

    def _refuse(self, request: Request, error: RequestError) -> None:
        self._on_outcome(request.ticket, Refused(request.ticket, error))
