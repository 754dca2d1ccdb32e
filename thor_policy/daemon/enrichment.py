"""Enrichment: what the model writes about decisions while the engine has nothing else to do.

Owns which decisions wait for it, its budget, and the one that is written. Invariant: it takes one short
decode a turn, and no turn while a decision, an explanation, a shadow or a task waits, nor within `quiet_s` of
a decision; what waits is bounded. A failure leaves the trace as it was, and is counted. Nothing of it
outlives the process: what was not recorded is not continued. Engine thread, but for `offer` and `forget`,
which any thread may call. Its counters may be read from any.

Decisions that wait are in memory, questions included, so an erasure forgets them all: what is recorded later
must not repeat what was erased before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from thor_policy.core.decisions import Decision
from thor_policy.core.enrichment import Mode, Trigger
from thor_policy.core.errors import EngineError, RequestError
from thor_policy.core.requests import Request
from thor_policy.core.status import EnrichmentStatus
from thor_policy.daemon.day_budget import DayBudget
from thor_policy.journal import events
from thor_policy.journal.events import Event
from thor_policy.policy import enrichment
from thor_policy.policy.decider import Policy
from thor_policy.policy.residents import Resident
from thor_policy.telemetry import clocks, logs

log = logging.getLogger(__name__)

#: The ticket of a text in the engine. Tickets of requests are positive.
_TICKET = -1


@dataclass(frozen=True)
class Plan:
    """What the settings say of enrichment: see `Config`. Times are seconds."""

    mode: Mode = "never"
    on: tuple[str, ...] = ()
    per_day: int = 0
    s_per_day: float = 0.0
    timeout_s: float = 60.0
    quiet_s: float = 0.25
    most_waiting: int = 256
    masked: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Waiting:
    """A decision that waits to be enriched."""

    resident: Resident
    decision: Decision
    why: tuple[Trigger, ...]


@dataclass
class _Run:
    """The one that is written: since when (monotonic nanoseconds), and for how long on the device."""

    of: _Waiting
    begun_ns: int
    device_ns: int = field(default=0)


class Enricher:
    """Enriches decisions on idle time. `record` gets each result and must not block.

    `wake` makes the engine thread ask `wait_s` again. `used` is what was used of the day before a restart:
    (time by `day_clock`, nanoseconds of the device). Other times are monotonic nanoseconds; `at` is Unix
    time.
    """

    def __init__(
        self,
        record: Callable[[Event], None],
        plan: Plan,
        *,
        wake: Callable[[], None] = lambda: None,
        used: Iterable[tuple[int, int]] = (),
        day_clock: Callable[[], int] = clocks.boot_ns,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._record, self._plan, self._wake = record, plan, wake
        self._day_clock, self._clock = day_clock, clock
        self._budget = DayBudget(plan.per_day, plan.s_per_day, now_ns=day_clock(), used=used)
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._forgets = 0
        self._forgot = 0
        self._quiet_from_ns = 0
        self._limit = logs.Limit()
        #: Results that were handed to the journal. Failed: the engine failed, or the question did not fit.
        #: Empty: nothing of the text held. Late: not written within the timeout. Over budget: stopped by the
        #: day's device time. Dropped: too many waited. Forgotten: an erasure, or the pack was unloaded.
        #: Masked: a value of the question is masked, so nothing was asked of the model.
        self.counters = Counter(
            enriched=0,
            enrichments_failed=0,
            enrichments_empty=0,
            enrichments_late=0,
            enrichments_over_budget=0,
            enrichments_dropped=0,
            enrichments_forgotten=0,
            enrichments_masked=0,
        )

    def status(self) -> EnrichmentStatus:
        """What `status` says of it."""
        budget, now_ns = self._budget, self._day_clock()
        over = budget.turns_in_s(now_ns) == 0  # the day is over, and no turn has noticed yet
        return EnrichmentStatus(
            mode=self._plan.mode,
            waiting=len(self._waiting),
            running=self._run is not None,
            today=0 if over else budget.pieces,
            per_day=budget.most,
            today_s=0.0 if over else round(budget.spent_ns / 1e9, 3),
            s_per_day=budget.most_s,
            day_turns_in_s=round(budget.turns_in_s(now_ns), 1),
            days=budget.turns,
            counters=dict(self.counters),
        )

    # ------------------------------------------------------------ any thread

    def offer(self, request: Request, resident: Resident, decision: Decision) -> None:
        """Take note of a decision; it waits to be enriched if mode, triggers and its caller say so."""
        plan = self._plan
        self._quiet_from_ns = self._clock()
        if plan.mode == "never" or resident.pack.rules_only or decision.tier == "fallback":
            return
        why = enrichment.why(decision, request.enrich, plan.mode, plan.on)
        if not why:
            return
        with self._lock:
            if plan.masked and events.has_masked(decision, plan.masked):
                self.counters["enrichments_masked"] += 1
                return
            if len(self._waiting) >= plan.most_waiting:
                self.counters["enrichments_dropped"] += 1
                return
            self._waiting.append(_Waiting(resident, decision, why))
        self._wake()

    def forget(self) -> None:
        """Forget every decision that waits, and the one that is written; an erasure calls it."""
        with self._lock:
            self.counters["enrichments_forgotten"] += len(self._waiting)
            self._waiting.clear()
            self._forgets += 1

    # ------------------------------------------------------------ engine thread

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until there is something to do; None: never, as things are."""
        quiet_s = max(0.0, self._plan.quiet_s - (now_ns - self._quiet_from_ns) / 1e9)
        if self._run is not None:
            return quiet_s
        if not self._waiting:
            return None
        day_ns = self._day_clock()
        if self._budget.may_begin(day_ns):
            return quiet_s
        return self._budget.turns_in_s(day_ns) if self._plan.per_day and self._plan.s_per_day else None

    def turn(self, policy: Policy, now_ns: int, at: float) -> None:
        """Begin the next, or go on with the one that is written, by one decode."""
        run = self._run
        if run is None:
            self._run = self._begin(policy, now_ns)
            return
        fate = self._cut_off(run, now_ns) or self._advance(policy, run, at)
        if fate is not None:
            self._run = None
            self.counters[fate] += 1

    def _cut_off(self, run: _Run, now_ns: int) -> str | None:
        """The counter of why the one that is written must not go on; None: it may."""
        if self._forgot != self._forgets:
            return "enrichments_forgotten"
        if now_ns >= run.begun_ns + int(self._plan.timeout_s * 1e9):
            return "enrichments_late"
        return None if self._budget.has_time(self._day_clock()) else "enrichments_over_budget"

    def _begin(self, policy: Policy, now_ns: int) -> _Run | None:
        """Begin the next one; None if there is none, or if it cannot be written."""
        if not self._budget.may_begin(self._day_clock()):
            return None
        with self._lock:
            self._forgot = self._forgets
            waiting = self._waiting.popleft() if self._waiting else None
        if waiting is None:
            return None
        resident, decision = waiting.resident, waiting.decision
        if resident not in tuple(policy.residents):
            self.counters["enrichments_forgotten"] += 1
            return None
        run, started_ns = _Run(waiting, now_ns), self._clock()
        deadline_ns = now_ns + int(self._plan.timeout_s * 1e9)
        self._budget.begin(self._day_clock())
        try:
            scored = decision.scored
            if scored is None:
                question = resident.question(decision.evaluation, decision.floor)
                scored = policy.engine.score(resident.key, question, deadline_ns)
            steps = enrichment.steps(resident.pack, decision)
            policy.engine.enrich(_TICKET, resident.key, scored, steps, deadline_ns)
        except (EngineError, RequestError) as error:
            self._log_failure(decision, error)
            self.counters["enrichments_failed"] += 1
            return None
        finally:
            self._spend(run, started_ns)
        return run

    def _advance(self, policy: Policy, run: _Run, at: float) -> str | None:
        """Take one step; the counter of the fate of the one that is written, None while it has none."""
        waiting, started_ns = run.of, self._clock()
        try:
            written = policy.engine.enrich_step()
        except EngineError as error:
            self._log_failure(waiting.decision, error)
            return "enrichments_failed"
        finally:
            self._spend(run, started_ns)
        if written is None:
            return None
        if written.truncated:  # cut off by the deadline, or by the length of the stream
            late = self._clock() >= run.begun_ns + int(self._plan.timeout_s * 1e9)
            return "enrichments_late" if late else "enrichments_failed"
        result = enrichment.result(
            waiting.resident.pack,
            waiting.decision,
            written,
            model=waiting.resident.model,
            because=waiting.why,
            device_ms=run.device_ns / 1e6,
        )
        if result is None:
            return "enrichments_empty"
        with self._lock:  # an erasure that forgets now comes before the record, or behind it
            if self._forgot != self._forgets:
                return "enrichments_forgotten"
            self._record(events.enrichment_event(waiting.decision.id, result, at))
        return "enriched"

    def _spend(self, run: _Run, started_ns: int) -> None:
        spent_ns = self._clock() - started_ns
        run.device_ns += spent_ns
        self._budget.spend(spent_ns, self._day_clock())

    def _log_failure(self, decision: Decision, error: Exception) -> None:
        if (unlogged := self._limit.admit(self._clock())) is not None:
            extra = logs.fields(decision_id=decision.id, unlogged=unlogged or None)
            log.warning("a decision was not enriched: %s", logs.Hidden(str(error)), extra=extra)
