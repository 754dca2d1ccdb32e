"""When an alert is raised and cleared: a low success rate, a number of decisions out of the usual, drift,
shipping that is behind, a canary that was rolled back.

Owns the rules, without journal and clock. Invariant: each rule says both when its alert begins and when it
ends, and between the two lies a gap, so that a figure at its limit does not raise it again and again. Small
numbers raise nothing: a rate counts by its interval. Pure; one thread.
"""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict, deque

from msgspec import Struct

from thor_policy.core.status import CanaryStatus, ShippingStatus

#: Quantile of the normal distribution for an interval of 95 %.
_Z = 1.959963984540054
#: How many buckets of the past make up what is usual, and the least that must have passed.
USUAL_BUCKETS, LEAST_BUCKETS = 48, 12
#: A number of decisions is usual again within this part of the distance at which the alert begins.
_USUAL_AGAIN = 0.5
#: Scale that makes the median absolute deviation of a normal distribution its standard deviation.
_MAD_SCALE = 1.4826


class Judged(Struct, frozen=True, kw_only=True):
    """What a rule makes of its figures: whether an alert begins, and whether one that was raised ends.

    `value` is the share of successes, the decisions of a bucket, or the changed answers; `low` to `high` is
    its interval, or what is usual; `sample` is what it rests on, `threshold` the setting.
    """

    begins: bool
    ends: bool
    value: float
    low: float
    high: float
    sample: int
    threshold: float


def wilson(hits: int, of: int, z: float = _Z) -> tuple[float, float]:
    """The Wilson interval of a share (Wilson 1927), of 95 % or at another quantile; 0 to 1 for none of none.

    `suites.intervals` has the same from scipy, which takes a daemon too long to import.
    """
    if not of:
        return 0.0, 1.0
    share, z2 = hits / of, z * z
    centre, scale = share + z2 / (2 * of), 1 + z2 / of
    half = z * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


class SuccessRate:
    """The newest `window` results of an agent or a model.

    From `least` results on the alert begins when even the upper end of the interval is below `below`, and
    ends when the share itself is not below any more.
    """

    def __init__(self, *, below: float, least: int, window: int) -> None:
        self._below, self._least, self._window = below, least, window
        self._results: OrderedDict[str, bool] = OrderedDict()
        self._hits = 0

    def add(self, decision_id: str, success: bool) -> None:
        """Take the result of a decision; a later result of the same decision takes its place."""
        self._hits += success - self._results.pop(decision_id, False)
        self._results[decision_id] = success
        if len(self._results) > self._window:
            _, oldest = self._results.popitem(last=False)
            self._hits -= oldest

    def judge(self) -> Judged:
        count = len(self._results)
        low, high = wilson(self._hits, count)
        share = self._hits / count if count else 1.0
        return Judged(
            begins=count >= self._least and high < self._below,
            ends=count >= self._least and share >= self._below,
            value=round(share, 4),
            low=round(low, 4),
            high=round(high, 4),
            sample=count,
            threshold=self._below,
        )


class Volume:
    """The number of decisions in buckets of time.

    The alert begins when a bucket is more than `sigma` deviations from the median of the last buckets, and
    from `least` decisions on: in the bucket, or in the median. Deviations are never less than those of random
    arrivals. It ends when a bucket is within half that distance, and what lasts becomes usual. Times are
    nanoseconds.
    """

    def __init__(self, *, sigma: float, least: int, bucket_ns: int, now_ns: int) -> None:
        self._sigma, self._least, self._bucket_ns = sigma, least, bucket_ns
        self._ends_ns = now_ns + bucket_ns
        self._count = 0
        self._past: deque[float] = deque(maxlen=USUAL_BUCKETS)

    def add(self, count: int) -> None:
        """Count decisions in the present bucket."""
        self._count += count

    def turn(self, now_ns: int) -> Judged | None:
        """Judge the bucket if it is over; None if it is not, or if too few have passed to judge it."""
        if now_ns < self._ends_ns:
            return None
        buckets = 1 + (now_ns - self._ends_ns) // self._bucket_ns
        count, self._count = self._count / buckets, 0
        self._ends_ns += buckets * self._bucket_ns
        past = list(self._past)
        self._past.append(count)
        return self._judged(count, past) if len(past) >= LEAST_BUCKETS else None

    def _judged(self, count: float, past: list[float]) -> Judged:
        usual = statistics.median(past)
        spread = _MAD_SCALE * statistics.median(abs(each - usual) for each in past)
        distance = self._sigma * max(spread, math.sqrt(usual), 1.0)
        away = abs(count - usual)
        return Judged(
            begins=away > distance and max(count, usual) >= self._least,
            ends=away <= distance * _USUAL_AGAIN,
            value=round(count, 1),
            low=round(max(0.0, usual - distance), 1),
            high=round(usual + distance, 1),
            sample=round(sum(past)),
            threshold=self._sigma,
        )


class Drift:
    """Answers of the drift sentinel: the alert begins with a change, and ends after a round without one."""

    def __init__(self) -> None:
        self._drifted = self._answered = 0
        self._since = 0

    def judge(self, *, drifted: int, answered: int, golden: int) -> Judged:
        """Judge its counters, which only grow; `golden` is the number of answers in a round."""
        changes = drifted - self._drifted
        self._since = 0 if changes else self._since + answered - self._answered
        self._drifted, self._answered = drifted, answered
        return Judged(
            begins=changes > 0,
            ends=not changes and golden > 0 and self._since >= golden,
            value=changes,
            low=0,
            high=0,
            sample=golden,
            threshold=0,
        )


def shipping(sink: ShippingStatus, most_s: float) -> Judged:
    """A sink that is behind for more than `most_s` seconds (0: never), or that takes no more events.

    The alert ends when the sink takes events and is behind for less than half of that.
    """
    late = bool(most_s) and sink.behind > 0 and sink.behind_s > most_s
    return Judged(
        begins=late or sink.alarm is not None,
        ends=sink.alarm is None and (not sink.behind or not most_s or sink.behind_s <= most_s / 2),
        value=round(sink.behind_s, 1),
        low=0,
        high=most_s,
        sample=sink.behind,
        threshold=most_s,
    )


def canary(newest: CanaryStatus) -> Judged:
    """The newest canary, if it was rolled back or could not go on. The alert ends when another one starts."""
    breach, over = newest.breach, newest.state in ("rolled_back", "failed")
    return Judged(
        begins=over,
        ends=not over,
        value=breach.value if breach else 0,
        low=breach.low if breach else 0,
        high=breach.high if breach else 0,
        sample=breach.sample if breach else 0,
        threshold=breach.threshold if breach else 0,
    )
