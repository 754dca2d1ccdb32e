"""The engine thread: one loop that decides, and explains when nobody waits for a decision.

Owns the thread that owns the engine. Invariant: a waiting decision goes before the next explanation step,
and each request ends in exactly one outcome: a decision handed to the journal, or a refusal. Nothing here
waits for the disk.

An errand (loading a pack, say) is done in bounded steps, one after each decision, so that neither holds
the other up. Explanations are for when no decision waits; the shadow pack, for when nothing is explained
either; idle work, for when nothing else is to be done.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from thor_policy.core.engine import DecisionLog, Steps
from thor_policy.core.errors import EngineError, RequestError
from thor_policy.core.requests import Request
from thor_policy.core.results import EngineResult, Explained, Refused, Unexplained
from thor_policy.policy.decider import Policy
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
    """Work of another kind for the engine thread, and whoever waits for what it comes to."""

    begin: Callable[[Policy], Steps[Any]]
    future: Future[Any]


class EngineThread:
    """Runs a policy on a thread of its own, which also opens it.

    The thread that loads the model has to be the one that decodes: llama.cpp's threads come in a pool for
    each thread that calls, and beside a second pool they stop spinning at barriers, which cost 8 % here.

    Each decision and explanation goes to `log` with its ticket; `tell` hears of it first, on this thread,
    and must not block. `idle` gets a turn when there is nothing else to do.
    """

    def __init__(
        self,
        open_policy: Callable[[], Policy],
        journal: DecisionLog,
        tell: Callable[[int, EngineResult], None],
        idle: Idle | None = None,
    ) -> None:
        self._idle = idle
        self._open_policy = open_policy
        self._opened: queue.SimpleQueue[Policy | BaseException] = queue.SimpleQueue()
        self._journal = journal
        self._tell = tell
        self._queue: queue.SimpleQueue[Request | _Task | None] = queue.SimpleQueue()
        self._tasks: deque[_Task] = deque()
        self._step_ended_ns = 0
        self._ended = False
        self._steps: Steps[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        #: Beats with each decision and each explanation step.
        self.pulse = Pulse()
        self.mean_decision_ms = 0.0
        self.decisions = 0
        self.explanations = 0
        self.unexplained = 0
        self.refused = 0
        self.internal_errors = 0
        self._limit = logs.Limit()
        self.shadows = 0
        #: Longest explanation step, longest step of an errand, and longest that a decision waited for a step
        #: of either (or for the shadow pack) to end, in ms.
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

    def refusal(self) -> RequestError | None:
        """Why no request should be submitted; None while they are decided."""
        if self.alive:
            return None
        return RequestError("unavailable", "the engine has stopped; the daemon must be restarted")

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return self._queue.qsize()

    def submit(self, request: Request) -> None:
        """Queue an admitted request; returns at once."""
        self._queue.put(request)

    def do(self, begin: Callable[[Policy], Steps[T]]) -> Future[T]:
        """Run an errand on the engine thread, behind the requests that wait now; what it comes to, or raises.

        Errands run one after another. RequestError `shutting_down` is what one comes to that the end cut off.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        self._queue.put(_Task(begin, future))
        if self._ended:
            self._turn_away()
        return future

    def stop(self, timeout_s: float) -> bool:
        """Finish what is queued, then end; False if it did not within `timeout_s`."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

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
        """What is most urgent, and a step of the errand; False at the end."""
        policy = self._policy
        busy = bool(policy.engine.explaining or self._tasks or policy.shadows_waiting)
        wait_s = None
        if not busy:
            self.pulse.rest()
            wait_s = self._idle.wait_s(time.monotonic_ns()) if self._idle is not None else None
        try:
            item = self._queue.get(block=not busy, timeout=wait_s)
        except queue.Empty:
            self.pulse.beat()
            if policy.engine.explaining:
                self._step_ended_ns = self._explain()
            elif policy.shadows_waiting and not self._tasks:
                self._step_ended_ns = self._shadow()
            elif not busy:
                self._step_ended_ns = self._idle_turn()
        else:
            self.pulse.beat()
            if item is None:
                return False
            if isinstance(item, _Task):
                self._tasks.append(item)
            else:
                waited_ms = (self._step_ended_ns - item.received_ns) / 1e6
                self.step_wait_ms_max = max(self.step_wait_ms_max, waited_ms)
                self._step_ended_ns = 0  # something was decided since
                self._decide(item)
        if self._tasks:
            self._step_ended_ns = self._run_task()
            if policy.awaits_explanations:
                self._step_ended_ns = self._explain()
        return True

    def _run_task(self) -> int:
        """One step of the errand that is first; returns when it ended, in monotonic nanoseconds."""
        started_ns, errand = time.monotonic_ns(), self._tasks[0]
        try:
            if self._steps is None:
                self._steps = errand.begin(self._policy)
            next(self._steps)
        except StopIteration as end:
            self._end_task()
            errand.future.set_result(end.value)
        except Exception as error:
            self._end_task()
            errand.future.set_exception(error)
        ended_ns = time.monotonic_ns()
        self.task_step_ms_max = max(self.task_step_ms_max, (ended_ns - started_ns) / 1e6)
        return ended_ns

    def _end_task(self) -> None:
        self._steps = None
        self._tasks.popleft()

    def _end_tasks(self) -> None:
        """What was begun is cut off, what waits is refused."""
        if self._steps is not None:
            self._steps.close()
        for errand in self._tasks:
            errand.future.set_exception(_stopping())
        self._tasks.clear()
        self._ended = True
        self._turn_away()

    def _turn_away(self) -> None:
        """Errands that come after the end get an answer too, on the thread that finds them."""
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, _Task):
                item.future.set_exception(_stopping())

    def _shadow(self) -> int:
        """One question by the shadow pack; returns when it ended, in monotonic nanoseconds."""
        try:
            answered = self._policy.decide_shadow()
        except Exception:
            self._log_fault("the shadow pack failed for a reason that no code foresaw")
        else:
            if answered is not None:
                self.shadows += 1
                self._journal.shadowed(*answered, time.time())
        return time.monotonic_ns()

    def _decide(self, request: Request) -> None:
        started_ns = time.monotonic_ns()
        try:
            decision = self._policy.decide(request)
        except RequestError as error:
            self.refused += 1
            self._tell(request.ticket, Refused(request.ticket, error))
            return
        except Exception:
            self._log_fault("a decision failed for a reason that no code foresaw")
            internal = RequestError("internal", "the decision failed; the daemon's log says why")
            self._tell(request.ticket, Refused(request.ticket, internal))
            return
        took_ms = (time.monotonic_ns() - started_ns) / 1e6
        self.mean_decision_ms += _MEAN_WEIGHT * (took_ms - self.mean_decision_ms)
        self.decisions += 1
        self._tell(request.ticket, decision)
        self._journal.decided(decision, request.ticket)
        wanted = request.explain != "none" and decision.explanation is None
        if wanted and not self._policy.is_explaining(request.ticket):
            self.unexplained += 1
            self._tell(request.ticket, Unexplained(request.ticket))

    def _idle_turn(self) -> int:
        """One turn of idle work; returns when it ended, in monotonic nanoseconds."""
        try:
            if self._idle is not None:
                self._idle.turn(self._policy, time.monotonic_ns(), time.time())
        except Exception:
            self._log_fault("idle work failed for a reason that no code foresaw; there is no more of it")
            self._idle = None
        return time.monotonic_ns()

    def _log_fault(self, message: str) -> None:
        """Count and log the exception that is being handled; a flood of them is logged in part."""
        self.internal_errors += 1
        if (unlogged := self._limit.admit(time.monotonic_ns())) is not None:
            log.exception("%s", message, extra=logs.fields(unlogged=unlogged or None))

    def _explain(self) -> int:
        """One step of all explanations; returns when it ended, in monotonic nanoseconds."""
        started_ns = time.monotonic_ns()
        ended: list[Explained | Unexplained]
        try:
            ended = self._policy.step()
        except EngineError as error:
            log.error("explanations given up: %s", error)
            ended = list(self._policy.abandon())
        except Exception:
            self._log_fault("explanations failed for a reason that no code foresaw")
            ended = list(self._policy.abandon())
        ended_ns = time.monotonic_ns()
        self.step_ms_max = max(self.step_ms_max, (ended_ns - started_ns) / 1e6)
        for outcome in ended:
            explained = isinstance(outcome, Explained)
            self.explanations += explained  # before anybody hears of it, and looks
            self.unexplained += not explained
            self._tell(outcome.ticket, outcome)
            if isinstance(outcome, Explained):
                self._journal.explained(outcome.decision_id, outcome.explanation, time.time(), outcome.ticket)
        return ended_ns


def _stopping() -> RequestError:
    return RequestError("shutting_down", "the daemon is stopping")
