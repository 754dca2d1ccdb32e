"""The clocks of the machine: what measures elapsed time, and when the wall clock steps.

Owns the choice of the clock for elapsed time (CLOCK_BOOTTIME) and the detection of steps. Invariant: nothing
orders or measures by the wall clock, which a person, a time server or an empty battery may set to anything;
it is only recorded. CLOCK_BOOTTIME never steps and, unlike CLOCK_MONOTONIC, counts while the machine is
suspended; it means nothing in another boot. Any thread; `StepWatch`: the main thread.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

#: Change of wall time minus boot time between two turns that counts as a step, in nanoseconds. A time server
#: that slews moves it by at most 0.5 ms in a second.
STEP_NS = 1_000_000_000
#: Longest that reading two clocks may take, in nanoseconds. The process may be stopped between the two.
_AT_ONCE_NS = 50_000_000


class Instant(NamedTuple):
    """A time: nanoseconds since a boot of a machine. Only instants of the same boot can be subtracted."""

    boot_id: str
    ns: int


@lru_cache(maxsize=1)
def boot_id() -> str:
    """The id of this boot; one of this process alone if the kernel gives none: nothing is comparable then."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(uuid.uuid4())


def boot_ns() -> int:
    """Nanoseconds since the boot, those in suspension included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def now() -> Instant:
    """The present time of this boot."""
    return Instant(boot_id(), boot_ns())


def wall_offset_ns() -> int:
    """Wall time minus boot time, in nanoseconds: it changes when the wall clock is set."""
    while True:
        before_ns, wall_ns = boot_ns(), time.time_ns()
        if boot_ns() - before_ns < _AT_ONCE_NS:
            return wall_ns - before_ns


class StepWatch:
    """Logs each step of the wall clock once, and counts it as `clock_steps`.

    `offset_ns` is that of `wall_offset_ns`. A change of at most `STEP_NS` between two turns is no step.
    """

    def __init__(self, counters: Counter[str], offset_ns: int) -> None:
        self._counters = counters
        self._offset_ns = offset_ns

    def turn(self, offset_ns: int) -> float:
        """Compare with the turn before; returns the step in seconds (0: none), negative for a step back."""
        step_ns, self._offset_ns = offset_ns - self._offset_ns, offset_ns
        if abs(step_ns) <= STEP_NS:
            return 0.0
        self._counters["clock_steps"] += 1
        log.warning(
            "the wall clock stepped by %+.1f s: times recorded from here on differ by that; order, leases "
            "and idempotency keys do not depend on it",
            step_ns / 1e9,
        )
        return step_ns / 1e9
