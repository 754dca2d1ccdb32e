"""How far the sinks of the shipper are behind, for `status`, metrics and alerts.

Owns that figure. Invariant: it is read from the journal on the maintenance thread, with two look-ups for each
sink; a journal that nobody ships costs one. The shipper is another process: here is only what it noted. The
status may be read from any thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from thor_policy.core.status import ShippingStatus
from thor_policy.journal import shipping
from thor_policy.journal.events import timestamp
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

#: Seconds between two looks.
REST_S = 1.0


class ShippingWatch:
    """Watches how far the sinks of `journal` are. Times are monotonic nanoseconds; `wall` gives Unix time."""

    def __init__(self, journal: Journal, *, wall: Callable[[], float], now_ns: int) -> None:
        self._journal, self._wall = journal, wall
        self._due_ns = now_ns
        self._sinks: tuple[ShippingStatus, ...] = ()
        #: Looks that could not read the journal.
        self.counters = Counter(shipping_failed=0)

    def status(self) -> tuple[ShippingStatus, ...]:
        """The sinks as the newest look saw them."""
        return self._sinks

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until the next turn."""
        return max(0, self._due_ns - now_ns) / 1e9

    def turn(self, now_ns: int) -> None:
        """Look once. No error is raised."""
        self._due_ns = now_ns + int(REST_S * 1e9)
        if self._journal.seq == 0:
            return  # the file has no event yet
        try:
            with Reader(self._journal.path) as reader, reader.snapshot() as connection:
                behind = shipping.behind(connection, self._journal.now(), timestamp(self._wall()))
        except Exception as error:  # a damaged file may raise anything, and the thread must go on
            self.counters["shipping_failed"] += 1
            log.warning("how far the sinks are could not be read: %s", logs.Hidden(str(error)))
            return
        self._sinks = tuple(
            ShippingStatus(
                sink=each.cursor.sink,
                acknowledged=each.cursor.acknowledged,
                behind=each.events,
                behind_s=each.seconds,
                alarm=each.cursor.alarm,
            )
            for each in behind
        )
