"""The engine thread: one loop that decides, and explains when nobody waits for a decision.

Owns the thread that owns the engine. Invariant: a waiting decision goes before the next explanation step,
and each request ends in exactly one outcome: a decision handed to the journal, or a refusal. Nothing here
waits for the disk.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from thor_policy import logs
from thor_policy.core import Decision, DecisionLog, Request
from thor_policy.errors import EngineError, RequestError
from thor_policy.notify import Pulse
from thor_policy.policy import Explained, Policy, Unexplained

log = logging.getLogger(__name__)

#: Weight of the newest decision in the running mean of how long one takes.
_MEAN_WEIGHT = 0.1


@dataclass(frozen=True)
class Refused:
    """A request that got no decision."""

    ticket: int
    error: RequestError


Outcome = Decision | Explained | Unexplained | Refused


class Idle(Protocol):
    """Work for when nobody waits and nothing is explained, in turns of one decode at most."""

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until there is something to do; None: never."""

    def turn(self, policy: Policy, now_ns: int, at: float) -> None: ...


class Worker:
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
        tell: Callable[[int, Outcome], None],
        idle: Idle | None = None,
    ) -> None:
        self._idle = idle
        self._open_policy = open_policy
        self._opened: queue.SimpleQueue[Policy | BaseException] = queue.SimpleQueue()
        self._journal = journal
        self._tell = tell
        self._queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
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
        #: Longest explanation step, and longest that a decision waited for one to end, in ms.
        self.step_ms_max = 0.0
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
        step_ended_ns = 0  # 0: something was decided since
        try:
            while True:
                explaining = engine.explaining > 0
                if not explaining:
                    self.pulse.rest()
                wait_s = None
                if self._idle is not None and not explaining:
                    wait_s = self._idle.wait_s(time.monotonic_ns())
                try:
                    request = self._queue.get(block=not explaining, timeout=wait_s)
                except queue.Empty:
                    self.pulse.beat()
                    step_ended_ns = self._explain() if explaining else self._idle_turn()
                    continue
                self.pulse.beat()
                if request is None:
                    break
                waited_ms = (step_ended_ns - request.received_ns) / 1e6
                self.step_wait_ms_max = max(self.step_wait_ms_max, waited_ms)
                step_ended_ns = 0
                self._decide(request)
            while engine.explaining:
                self._explain()
        finally:
            engine.close()

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
