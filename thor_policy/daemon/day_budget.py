"""A budget of each day: how many enrichments, and how many seconds of the device.

Owns what was used of the day. Invariant: a day is 24 hours of a clock that never steps, such as that of the
boot, so setting the wall clock gives nobody a second day; what is used never falls but at the day's turn. The
time is an argument. One thread uses it; its numbers may be read from any.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Length of a day, in nanoseconds.
DAY_NS = 24 * 3_600 * 10**9


class DayBudget:
    """At most `most` pieces of work a day, and `most_s` seconds of the device; 0: none.

    `used` are pieces that were done before, as (time, nanoseconds of the device): the day begins with the
    oldest. Times are nanoseconds of one clock.
    """

    def __init__(
        self, most: int, most_s: float, *, now_ns: int, used: Iterable[tuple[int, int]] = ()
    ) -> None:
        before = [(min(at_ns, now_ns), spent_ns) for at_ns, spent_ns in used]
        self.most, self.most_s = most, most_s
        self.begins_ns = min((at_ns for at_ns, _ in before), default=now_ns)
        self.pieces = len(before)
        self.spent_ns = sum(spent_ns for _, spent_ns in before)
        #: How often a day turned.
        self.turns = 0
        self.turn(now_ns)

    def turn(self, now_ns: int) -> None:
        """Begin a new day if the present one is over. Days follow one another without gaps."""
        if (days := (now_ns - self.begins_ns) // DAY_NS) > 0:
            self.begins_ns += days * DAY_NS
            self.pieces = self.spent_ns = 0
            self.turns += 1

    def has_time(self, now_ns: int) -> bool:
        """True while device time of the day is left."""
        self.turn(now_ns)
        return self.spent_ns < self.most_s * 1e9

    def may_begin(self, now_ns: int) -> bool:
        """True if another piece may begin."""
        return self.has_time(now_ns) and self.pieces < self.most

    def begin(self, now_ns: int) -> None:
        """Count a piece that begins."""
        self.turn(now_ns)
        self.pieces += 1

    def spend(self, spent_ns: int, now_ns: int) -> None:
        """Count time of the device, at its end."""
        self.turn(now_ns)
        self.spent_ns += spent_ns

    def turns_in_s(self, now_ns: int) -> float:
        """Seconds until the day turns."""
        return max(0, self.begins_ns + DAY_NS - now_ns) / 1e9
