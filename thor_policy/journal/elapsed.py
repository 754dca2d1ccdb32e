"""Which events are young: elapsed time by the clock of the boot, over any number of boots.

Owns the meaning of "within so many seconds" for events. Invariant: the answer never depends on wall time, and
no event is called old that may be young. Within a boot, elapsed time is the difference of `mono_ns`. How long
a machine was off, or which time passed before a boot's first event, is unknown and counts as nothing. So the
seconds are those over which each boot recorded events. Any thread, on a connection of its own.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left, bisect_right

from thor_policy.telemetry.clocks import Instant


def first_within(connection: sqlite3.Connection, seconds: float, now: Instant) -> int:
    """The first event of the database that may be younger than `seconds`; all events after it may be, too.

    One after the newest event if none is. Raises sqlite3.Error.
    """
    (lowest,) = connection.execute("SELECT min(seq) FROM events").fetchone()
    (seq,) = connection.execute("SELECT max(seq) FROM events").fetchone()
    if seq is None:
        return 1

    def at(seq: int) -> Instant:
        row = connection.execute("SELECT boot_id, mono_ns FROM events WHERE seq = ?", (seq,)).fetchone()
        return Instant("", 0) if row is None else Instant(*row)  # a damaged file may lack an event

    left_ns = int(seconds * 1e9)
    until_ns = now.ns if at(seq).boot_id == now.boot_id else at(seq).ns
    while seq >= lowest:
        boot_id = at(seq).boot_id
        back = 1
        while seq - back >= lowest and at(seq - back).boot_id == boot_id:
            back *= 2
        search = range(max(lowest, seq - back), seq + 1)
        first = search[bisect_left(search, True, key=lambda place: at(place).boot_id == boot_id)]
        span_ns = max(0, until_ns - at(first).ns)
        if span_ns >= left_ns:
            of_boot = range(first, seq + 1)
            return first + bisect_right(of_boot, until_ns - left_ns, key=lambda place: at(place).ns)
        left_ns -= span_ns
        seq = first - 1
        until_ns = at(seq).ns
    return int(lowest)
