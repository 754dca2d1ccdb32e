"""How finely the work of several callers is interleaved: no finer than it must be.

Owns the interval at which Python's threads take turns, and how many decisions of one caller may wait for
their commit. Invariant: while several callers ask, threads take turns often and little of each caller is
under way, so that each waits little for the others; while one asks alone, neither costs it anything. Main
thread.
"""

from __future__ import annotations

import sys
from typing import Final

from thor_policy.core.fair_queue import Debts

#: How long a thread waits for the interpreter while another one runs, in seconds, while one caller asks and
#: while several do. Python's own 5 ms make each step of the others wait. The shorter one alone costs 10 to
#: 15 % of the decisions per second, both of the smaller figures together 20 to 30 %.
ALONE_S, SHARED_S = 0.000_5, 0.000_1
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
        self.shared = False
        self._set()

    def note(self, share: str, now_ns: int) -> None:
        """A caller has sent a request."""
        if share != self._newest:
            if self._newest:
                self._other_ns = now_ns
            self._newest = share

    def turn(self, now_ns: int) -> None:
        """Set what the requests until now call for."""
        shared = now_ns - self._other_ns < _REMEMBERED_NS
        if shared != self.shared:
            self.shared = shared
            self._set()

    def close(self) -> None:
        """Set the interval back."""
        sys.setswitchinterval(self._usual_s)

    def _set(self) -> None:
        sys.setswitchinterval(SHARED_S if self.shared else ALONE_S)
        self._uncommitted.allow(SHARED_UNCOMMITTED if self.shared else ALONE_UNCOMMITTED)
