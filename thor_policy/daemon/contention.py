"""How finely the work of several callers is interleaved: no finer than it must be.

Owns the interval at which Python's threads take turns, and how many decisions of one caller may wait for
their commit. Invariant: while several callers ask, threads take turns often and little of each caller is
under way, so that each waits little for the others; while one asks alone, neither costs it anything, and
while many requests of one wait for each other, turns are as long as Python's own. Main thread.
"""

from __future__ import annotations

import sys
from typing import Final

from thor_policy.core.fair_queue import Debts

#: How long a thread waits for the interpreter while another one runs, in seconds: while one caller asks,
#: while many requests of one wait, and while several callers ask. Python's own 5 ms make each step of the
#: others wait; where requests wait for each other anyway, the 0.5 ms cost 15 % of the decisions per second.
#: The shortest alone costs as much again, both of the smaller figures together 20 to 30 %.
ALONE_S, BACKLOG_S, SHARED_S = 0.000_5, 0.005, 0.000_1
#: Requests in flight from which on they wait for each other more than for a turn of the threads; and for how
#: long they count, in nanoseconds: many answers come at once, and then the next questions.
_BACKLOG, _BACKLOG_NS = 16, 100_000_000
#: Decisions of one caller that may wait for their commit, while one caller asks and while several do.
ALONE_UNCOMMITTED, SHARED_UNCOMMITTED = 64, 12
#: For how long a caller that has asked counts as one that asks, in nanoseconds.
_REMEMBERED_NS: Final = 10 * 10**9


class Contention:
    """Sets both for the process; `close` sets the interval back to what it was."""

    def __init__(self, uncommitted: Debts) -> None:
        self._uncommitted = uncommitted
        self._usual_s = sys.getswitchinterval()
        self._newest = ""
        #: When a request last came from another caller than the one before it, in monotonic nanoseconds.
        self._other_ns = -_REMEMBERED_NS
        self._backlog_ns = -_BACKLOG_NS
        self.shared = False
        self._interval_s = 0.0
        self._set(ALONE_S)

    def note(self, share: str, now_ns: int) -> None:
        """A caller has sent a request."""
        if share != self._newest:
            if self._newest:
                self._other_ns = now_ns
            self._newest = share

    def turn(self, now_ns: int, in_flight: int) -> None:
        """Set what the requests until now call for; so many are in flight."""
        self.shared = now_ns - self._other_ns < _REMEMBERED_NS
        if in_flight >= _BACKLOG:
            self._backlog_ns = now_ns
        backlog = now_ns - self._backlog_ns < _BACKLOG_NS
        wanted_s = SHARED_S if self.shared else BACKLOG_S if backlog else ALONE_S
        if wanted_s != self._interval_s:
            self._set(wanted_s)

    def close(self) -> None:
        """Set the interval back."""
        sys.setswitchinterval(self._usual_s)

    def _set(self, interval_s: float) -> None:
        self._interval_s = interval_s
        sys.setswitchinterval(interval_s)
        self._uncommitted.allow(SHARED_UNCOMMITTED if self.shared else ALONE_UNCOMMITTED)
