"""The engine thread: one loop that asks the model, and explains when nobody waits for a decision.

Owns the thread that owns the engine. It gets requests that the rules have been run on (`rules_thread`).
Invariant: a waiting decision goes before the next explanation step, and each request ends in exactly one
result: a decision handed to the journal, or a refusal. Nothing here waits for the disk.

A task (loading a pack, say) is done in bounded steps, one after each decision, so that neither holds the
other up. Explanations run when no decision waits; the shadow pack, when nothing is explained either; idle
work, when nothing else is to be done.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeVar

from thor_policy.core.engine import DecisionLog, Steps
from thor_policy.core.errors import EngineError, RequestError, decision_failed, shutting_down
from thor_policy.core.fair_queue import OWN, Debts, FairQueue, Lane
from thor_policy.core.requests import Request
from thor_policy.core.results import EngineResult, Explained, Refused, Unexplained
from thor_policy.policy.decider import Assessment, Policy
from thor_policy.telemetry import logs
from thor_policy.telemetry.watchdog import Pulse

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Weight of the newest decision in the running mean of how long one takes.
_MEAN_WEIGHT = 0.1


class Idle(Protocol):
    """Work for when there is nothing else to do, in turns of one decode at most."""

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until there is something to do; None: never."""

    def turn(self, policy: Policy, now_ns: int, at: float) -> None: ...


@dataclass(frozen=True)
class _Task:
    """Work of another kind for the engine thread, and the future that gets its result."""

    begin: Callable[[Policy], Steps[Any]]
    future: Future[Any]


class _Step(Enum):
    """A bounded step of work that no request waits for; `NONE`: there is none but that of a task."""

    EXPLANATION = "explanation"
    SHADOW = "shadow"
    IDLE = "idle"
    TASK = "task"
    NONE = "none"


class EngineThread:
    """Runs a policy on a thread of its own, which also opens it.

    It makes the first decode too: llama.cpp's threads come in a pool for each thread that decodes, and beside
    a second pool they stop spinning at barriers, which cost 8 % here.

    Each decision and explanation goes to `journal` with its ticket; `on_outcome` gets it first, on this
    thread, and must not block. `idle` works get turns, the first ones first, when there is nothing else to
    do. A caller with too many
    `uncommitted` decisions waits, and others are decided: so what a caller floods waits in the fair queue,
    and not in the journal, which records in order of arrival.
    """

    def __init__(
        self,
        open_policy: Callable[[], Policy],
        journal: DecisionLog,
        on_outcome: Callable[[int, EngineResult], None],
        idle: Sequence[Idle] = (),
        *,
        uncommitted: Debts | None = None,
    ) -> None:
        self._idle = list(idle)
        self._open_policy = open_policy
        self._opened: queue.SimpleQueue[Policy | BaseException] = queue.SimpleQueue()
        self._journal = journal
        self._on_outcome = on_outcome
        self._uncommitted = uncommitted
        self._queue: FairQueue[Assessment | _Task] = FairQueue(debts=uncommitted)
        self._tasks: deque[_Task] = deque()
        self._steps: Steps[Any] | None = None
        self._run_step_of: dict[_Step, Callable[[], None]] = {
            _Step.EXPLANATION: self._explain,
            _Step.SHADOW: self._shadow,
            _Step.IDLE: self._idle_turn,
            _Step.TASK: self._advance_task,
            _Step.NONE: lambda: None,
        }
        #: When the newest step ended, monotonic nanoseconds; 0 once a decision followed it.
        self._step_ended_ns = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        #: Beats with each decision and each explanation step.
        self.pulse = Pulse()
        self.mean_decision_ms = 0.0
        #: Results by kind, and exceptions that no code expected.
        self.counters = Counter(
            decisions=0, explanations=0, unexplained=0, refused=0, shadows=0, internal_errors=0
        )
        self._limit = logs.Limit()
        #: Longest explanation step, longest step of a task, and longest that a decision waited for a step
        #: of any kind to end, in milliseconds.
        self.step_ms_max = 0.0
        self.task_step_ms_max = 0.0
        self.step_wait_ms_max = 0.0

    def start(self) -> Policy:
        """Open the policy and begin to decide; raises whatever opening it raises."""
        self._thread.start()
        opened = self._opened.get()
        if isinstance(opened, BaseException):
            self._thread.join()
            raise opened
        return opened

    @property
    def alive(self) -> bool:
        """False when the engine thread has ended."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests that wait for the model, each with its floor."""
        return len(self._queue)

    def ahead(self, lane: Lane) -> int:
        """Requests that are likely to be decided before one that comes in this lane now."""
        return self._queue.ahead(lane)

    def submit(self, assessment: Assessment, lane: Lane = OWN) -> None:
        """Queue a request that the model is asked about; returns at once."""
        self._queue.put(assessment, lane)

    def drop(self, lane: Lane) -> list[Request]:
        """Take out the requests of a lane that no decision was begun for, and return them."""
        return [item.request for item in self._queue.drop(lane) if isinstance(item, Assessment)]

    def do(self, begin: Callable[[Policy], Steps[T]]) -> Future[T]:
        """Run a task on the engine thread, in turn with the requests that wait; the future gets its result.

        Tasks run one after another. A task that the end cuts off raises RequestError `shutting_down`.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._queue.put(_Task(begin, future))
        if self._ended:
            self._refuse_queued_tasks()
        return future

    def wake(self) -> None:
        """Look for idle work again; returns at once. Any thread."""
        self._queue.nudge()

    def stop(self, timeout_s: float) -> bool:
        """Finish what is queued, then end; False if it did not within `timeout_s`."""
        self._queue.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ------------------------------------------------------------ the loop

    def _run(self) -> None:
        try:
            self._policy = self._open_policy()
        except BaseException as error:  # to be raised where the start was asked for
            self._opened.put(error)
            return
        self._opened.put(self._policy)
        engine = self._policy.engine
        try:
            while self._turn():
                pass
            while engine.explaining:
                self._explain()
        finally:
            self._end_tasks()
            engine.close()

    def _turn(self) -> bool:
        """Schedule what is most urgent, run it, and one step of a task after it; False at the end."""
        work = self._schedule()
        if work is None:
            return False
        if isinstance(work, Assessment):
            self._account_wait(work)
            self._decide(work)
            self._step_ended_ns = 0
        elif isinstance(work, _Task):
            self._tasks.append(work)
        else:
            self._run_step(work)
        if self._tasks:
            self._run_step(_Step.TASK)
            if self._policy.awaits_explanations:
                self._run_step(_Step.EXPLANATION)
        return True

    def _schedule(self) -> Assessment | _Task | _Step | None:
        """A request or task from the queue; while there is none, the next step; None at the end."""
        policy = self._policy
        busy = bool(policy.engine.explaining or self._tasks or policy.shadows_waiting)
        wait_s = None
        if not busy:
            self.pulse.rest()
            wait_s = self._idle_wait_s(time.monotonic_ns())
        try:
            return self._queue.get(block=not busy, timeout_s=wait_s)
        except queue.Empty:
            if policy.engine.explaining:
                return _Step.EXPLANATION
            if self._tasks:
                return _Step.NONE
            return _Step.SHADOW if policy.shadows_waiting else _Step.IDLE
        finally:
            self.pulse.beat()

    def _run_step(self, step: _Step) -> None:
        self._run_step_of[step]()
        if step is not _Step.NONE:
            self._step_ended_ns = time.monotonic_ns()

    def _account_wait(self, assessment: Assessment) -> None:
        """Measure how long a request waited for a step to end."""
        waited_ms = (self._step_ended_ns - assessment.done_ns) / 1e6
        self.step_wait_ms_max = max(self.step_wait_ms_max, waited_ms)

    # ------------------------------------------------------------ tasks

    def _advance_task(self) -> None:
        """One step of the first task."""
        started_ns, task = time.monotonic_ns(), self._tasks[0]
        try:
            if self._steps is None:
                self._steps = task.begin(self._policy)
            next(self._steps)
        except StopIteration as end:
            self._end_task()
            task.future.set_result(end.value)
        except Exception as error:
            self._end_task()
            task.future.set_exception(error)
        self.task_step_ms_max = max(self.task_step_ms_max, (time.monotonic_ns() - started_ns) / 1e6)

    def _end_task(self) -> None:
        self._steps = None
        self._tasks.popleft()

    def _end_tasks(self) -> None:
        """Cut off the task that began, refuse those that wait."""
        if self._steps is not None:
            self._steps.close()
        for task in self._tasks:
            task.future.set_exception(shutting_down())
        self._tasks.clear()
        self._ended = True
        self._refuse_queued_tasks()

    def _refuse_queued_tasks(self) -> None:
        """Refuse tasks that came after the end, on whichever thread finds them."""
        for item in self._queue.drop(OWN):
            if isinstance(item, _Task):
                item.future.set_exception(shutting_down())

    # ------------------------------------------------------------ decisions

    def _decide(self, assessment: Assessment) -> None:
        started_ns, request = time.monotonic_ns(), assessment.request
        try:
            decision = self._policy.judge(assessment)
        except RequestError as error:
            self.counters["refused"] += 1
            self._on_outcome(request.ticket, Refused(request.ticket, error))
            return
        except Exception:
            self._log_fault("a decision failed with an unexpected error")
            self._on_outcome(request.ticket, Refused(request.ticket, decision_failed()))
            return
        finally:
            took_ms = (time.monotonic_ns() - started_ns) / 1e6
            self._queue.charge(took_ms)
        self.mean_decision_ms += _MEAN_WEIGHT * (took_ms - self.mean_decision_ms)
        self.counters["decisions"] += 1
        self._on_outcome(request.ticket, decision)
        if self._uncommitted is not None:
            self._uncommitted.owe(request.caller.who or "")
        self._journal.decided(decision, request.ticket)
        wanted = request.explain != "none" and decision.explanation is None
        if wanted and not self._policy.is_explaining(request.ticket):
            self.counters["unexplained"] += 1
            self._on_outcome(request.ticket, Unexplained(request.ticket))

    # ------------------------------------------------------------ steps

    def _explain(self) -> None:
        """One step of all explanations."""
        started_ns = time.monotonic_ns()
        ended: list[Explained | Unexplained]
        try:
            ended = self._policy.step()
        except EngineError as error:
            log.error("explanations given up: %s", error)
            ended = list(self._policy.abandon())
        except Exception:
            self._log_fault("explanations failed with an unexpected error")
            ended = list(self._policy.abandon())
        self.step_ms_max = max(self.step_ms_max, (time.monotonic_ns() - started_ns) / 1e6)
        for result in ended:
            explained = isinstance(result, Explained)
            # counted first: whoever gets the result may look at the counters
            self.counters["explanations" if explained else "unexplained"] += 1
            self._on_outcome(result.ticket, result)
            if isinstance(result, Explained):
                self._journal.explained(
                    result.decision_id, result.explanation, time.time(), result.ticket, result.sender
                )

    def _shadow(self) -> None:
        """One question by the shadow pack."""
        try:
            pair = self._policy.decide_shadow()
        except Exception:
            self._log_fault("the shadow pack failed with an unexpected error")
        else:
            if pair is not None:
                self.counters["shadows"] += 1
                self._journal.shadowed(*pair, time.time())

    def _idle_wait_s(self, now_ns: int) -> float | None:
        """Seconds until there is idle work; None: never, unless somebody wakes this thread."""
        waits = [wait_s for work in self._idle if (wait_s := work.wait_s(now_ns)) is not None]
        return min(waits, default=None)

    def _idle_turn(self) -> None:
        """One turn of the first idle work that is due."""
        now_ns = time.monotonic_ns()
        for work in self._idle:
            if work.wait_s(now_ns) != 0:
                continue
            try:
                work.turn(self._policy, now_ns, time.time())
            except Exception:
                self._log_fault("idle work failed with an unexpected error; there is no more of it")
                self._idle.remove(work)
            return

    def _log_fault(self, message: str) -> None:
        """Count and log the exception that is being handled; a flood of them is logged in part."""
        self.counters["internal_errors"] += 1
        if (unlogged := self._limit.admit(time.monotonic_ns())) is not None:
            log.exception("%s", message, extra=logs.fields(unlogged=unlogged or None))
