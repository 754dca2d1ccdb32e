"""The time that the rules of one request may take.

Owns the budget, and the check that stands between expressions, at each call of a function from an expression,
and in loops over texts. Invariant: after the first check that finds the budget spent or the deadline passed,
every later check of this request finds so too. The budget counts the processor time of the thread: a process
that was stopped, or waited for a processor, has spent none. What CEL itself computes is not interrupted.
Each thread has a budget of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from thor_policy.core.requests import NEVER_NS

#: Why rules were stopped: the reason code of the decision. The budget was spent, or the deadline passed.
StopCode = Literal["rules_budget", "rules_deadline"]
STOP_CODES: tuple[StopCode, ...] = get_args(StopCode)


class RulesStopped(Exception):
    """The rules of a request took too long; `code` says which limit they met."""

    def __init__(self, code: StopCode) -> None:
        super().__init__(f"the rules were stopped ({code})")
        self.code: StopCode = code


class Budget:
    """`cpu_ms` milliseconds of this thread's processor time from now on, and at most until `deadline_ns`.

    `now_ns` is the monotonic clock, whose time `deadline_ns` is; `cpu_ns` the processor time of this thread.
    """

    def __init__(
        self,
        cpu_ms: float,
        deadline_ns: int = NEVER_NS,
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
        cpu_ns: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        self.now_ns, self._cpu_ns = now_ns, cpu_ns
        self._deadline_ns = deadline_ns
        self._cpu_until_ns = cpu_ns() + int(cpu_ms * 1e6)
        #: Before this time no limit can be met: a thread spends at most the time that passes.
        self.next_look_ns = min(now_ns() + int(cpu_ms * 1e6), deadline_ns)
        self._stopped: StopCode | None = None

    def check(self) -> None:
        """Raise RulesStopped if the budget is spent or the deadline has passed."""
        if self._stopped is None:
            now_ns = self.now_ns()
            if now_ns < self.next_look_ns:
                return
            left_ns = self._cpu_until_ns - self._cpu_ns()
            if left_ns > 0 and now_ns < self._deadline_ns:
                self.next_look_ns = min(now_ns + left_ns, self._deadline_ns)
                return
            self.next_look_ns = 0
            self._stopped = "rules_budget" if left_ns <= 0 else "rules_deadline"
        raise RulesStopped(self._stopped)


class _Current(threading.local):
    budget: Budget | None = None


#: The budget of this thread.
current = _Current()


@contextmanager
def spending(budget: Budget) -> Iterator[None]:
    """Let checks on this thread look at this budget."""
    current.budget = budget
    try:
        yield
    finally:
        current.budget = None


def check() -> None:
    """Raise RulesStopped if the budget of this thread is spent."""
    budget = current.budget
    if budget is not None and budget.now_ns() >= budget.next_look_ns:
        budget.check()
