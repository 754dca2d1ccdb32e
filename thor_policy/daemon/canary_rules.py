"""When a canary is rolled back: the figures of its two arms, and the conditions on them.

Owns the conditions, without journal and clock. Invariant: a condition holds only if a whole interval is
beyond its limit, and from `Terms.least` on; however long a canary runs, one that is no worse than the control
meets a condition with a probability of at most 5 %. Pure; one thread.

A figure that is looked at again and again crosses any fixed limit at some time by chance. So each condition
is looked at when its sample has grown by half, and the look number k gets the part 1 / ((k + 1) (k + 2)) of
the 5 %: these parts add up to the whole. A limit of 0 on looser decisions needs no such care: one of them is
more than none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import NormalDist

from thor_policy.core.canary import Breach, Condition, Terms
from thor_policy.daemon.alert_rules import wilson

#: How often a canary that is no worse may be rolled back, in all looks of one condition together.
ERROR_RATE = 0.05
#: By how much a sample has grown at the next look.
GROWTH = 1.5
#: Shortest time that a decision can have taken, in milliseconds: logarithms need one.
_LEAST_MS = 1e-3


@dataclass
class Times:
    """How long decisions took: their number, and the sums of the logarithms of milliseconds."""

    count: int = 0
    log_sum: float = 0.0
    log_squares: float = 0.0

    def add(self, took_ms: float) -> None:
        log = math.log(max(took_ms, _LEAST_MS))
        self.count += 1
        self.log_sum += log
        self.log_squares += log * log

    @property
    def mean_ms(self) -> float | None:
        """The geometric mean, which a few slow decisions do not move far."""
        return math.exp(self.log_sum / self.count) if self.count else None


@dataclass
class Arm:
    """What is known of the decisions of one arm.

    `failed` are those in which the candidate gave no answer, so that the active pack decided; `unanswered`
    are these and those of the tier `fallback`. `hits` of `results` turned out well. Of those that were
    `compared` with the answer of the active pack, some are looser and some stricter. Times are those of
    decisions that the model scored, and of those that rules made; what the cache answered took none.
    """

    decisions: int = 0
    looser: int = 0
    failed: int = 0
    unanswered: int = 0
    results: int = 0
    hits: int = 0
    compared: int = 0
    loosened: int = 0
    tightened: int = 0
    by_model: Times = field(default_factory=Times)
    by_rule: Times = field(default_factory=Times)

    def decided(self, *, note: str | None, tier: str, took_ms: float) -> None:
        """Count a decision."""
        self.decisions += 1
        self.looser += note == "looser"
        self.failed += note == "failed"
        self.unanswered += note == "failed" or tier == "fallback"
        if note != "failed" and tier in ("model", "rule"):
            (self.by_model if tier == "model" else self.by_rule).add(took_ms)

    @property
    def success_rate(self) -> float | None:
        return self.hits / self.results if self.results else None


class Conditions:
    """The conditions of one canary, and how far each was looked at."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._looks: dict[Condition, int] = {}

    def breach(self, trial: Arm, control: Arm) -> Breach | None:
        """The first condition that these figures meet; None if they meet none."""
        return next(self._breaches(trial, control), None)

    def _breaches(self, trial: Arm, control: Arm) -> Iterator[Breach]:
        terms = self._terms
        if (level := self._level("looser", trial.decisions, every_time=not terms.looser)) is not None:
            low, high = wilson(trial.looser, trial.decisions, _z(level))
            if trial.looser and low > terms.looser:
                share = trial.looser / trial.decisions
                yield _breach("looser", share, low, high, level, trial.decisions, 0, terms.looser)
        differ = trial.loosened + trial.tightened
        if differ and (level := self._level("loosened", trial.compared)) is not None:
            low, high = wilson(trial.loosened, differ, _z(level))
            if low > terms.loosened:
                counts = trial.compared, 0
                yield _breach("loosened", trial.loosened / differ, low, high, level, *counts, terms.loosened)
        sample = min(trial.results, control.results)
        if (level := self._level("success", sample)) is not None:
            value, low, high = difference(
                (trial.hits, trial.results), (control.hits, control.results), _z(level)
            )
            if high < -terms.success_drop:
                counts = trial.results, control.results
                yield _breach("success", value, low, high, level, *counts, terms.success_drop)
        sample = min(trial.decisions, control.decisions)
        if (level := self._level("fallback", sample)) is not None:
            value, low, high = difference(
                (trial.unanswered, trial.decisions), (control.unanswered, control.decisions), _z(level)
            )
            if low > terms.fallback_rise:
                counts = trial.decisions, control.decisions
                yield _breach("fallback", value, low, high, level, *counts, terms.fallback_rise)
        ours, theirs = times_of(trial, control)
        sample = min(ours.count, theirs.count)
        if terms.latency_ratio and (level := self._level("latency", sample)) is not None:
            value, low, high = ratio(ours, theirs, _z(level))
            if low > terms.latency_ratio:
                counts = ours.count, theirs.count
                yield _breach("latency", value, low, high, level, *counts, terms.latency_ratio)

    def _level(self, condition: Condition, sample: int, *, every_time: bool = False) -> float | None:
        """The confidence of the interval of this look; None: it is too early for one."""
        if sample < self._terms.least:
            return None
        look = int(math.log(sample / self._terms.least, GROWTH) + 1e-9)
        if look <= self._looks.get(condition, -1) and not every_time:
            return None
        self._looks[condition] = look
        return 1 - ERROR_RATE / ((look + 1) * (look + 2))


def difference(ours: tuple[int, int], theirs: tuple[int, int], z: float) -> tuple[float, float, float]:
    """The difference of two shares (hits, of), and its interval (Newcombe 1998, his method 10)."""
    (hits, of), (their_hits, their_of) = ours, theirs
    share, their_share = hits / of, their_hits / their_of
    (low, high), (their_low, their_high) = wilson(hits, of, z), wilson(their_hits, their_of, z)
    value = share - their_share
    below = math.hypot(share - low, their_high - their_share)
    above = math.hypot(high - share, their_share - their_low)
    return value, value - below, value + above


def times_of(trial: Arm, control: Arm) -> tuple[Times, Times]:
    """The times that are compared: those of the model, where the control asks one; else those of rules."""
    if control.by_model.count:
        return trial.by_model, control.by_model
    return trial.by_rule, control.by_rule


def ratio(ours: Times, theirs: Times, z: float) -> tuple[float, float, float]:
    """How many times as long as theirs our decisions take (geometric means), and its interval."""
    (mean, variance), (their_mean, their_variance) = _log_mean(ours), _log_mean(theirs)
    value, half = mean - their_mean, z * math.sqrt(variance + their_variance)
    return math.exp(value), math.exp(value - half), math.exp(value + half)


def _log_mean(times: Times) -> tuple[float, float]:
    """The mean of the logarithms, and the variance of that mean."""
    mean = times.log_sum / times.count
    spread = max(0.0, times.log_squares / times.count - mean * mean) * times.count / max(1, times.count - 1)
    return mean, spread / times.count


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _breach(
    condition: Condition,
    value: float,
    low: float,
    high: float,
    level: float,
    sample: int,
    control_sample: int,
    threshold: float,
) -> Breach:
    return Breach(
        condition=condition,
        value=round(value, 6),
        low=round(low, 6),
        high=round(high, 6),
        level=round(level, 6),
        sample=sample,
        control_sample=control_sample,
        threshold=threshold,
    )
