"""Figures of a benchmark: series, ratios with intervals, rates, single values, and the report of a run.

Owns the statistics of `thorpolicy bench`. Invariant: a ratio compares two series of the same run, paired
question by question. Pure; any thread.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from msgspec import Struct

#: Resamplings behind each interval.
BOOTSTRAP = 2_000


class Series(Struct, frozen=True, kw_only=True):
    """Milliseconds of one way to answer: one value per question and round, in the order asked."""

    name: str
    ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.ms)


class Ratio(Struct, frozen=True, kw_only=True):
    """Median of `of` over median of `against`, with a paired 95 % bootstrap interval.

    `extra_ms` is the median of the paired differences. `bound` is the promised limit, in words.
    """

    of: str
    against: str
    ratio: float
    low: float
    high: float
    extra_ms: float
    bound: str | None = None


class Rate(Struct, frozen=True, kw_only=True):
    """Operations per second; `count` is how many were timed."""

    name: str
    per_s: float
    count: int
    note: str = ""


class Fact(Struct, frozen=True, kw_only=True):
    """A single value with its unit in the name."""

    name: str
    value: float


Figure: TypeAlias = Series | Ratio | Rate | Fact
#: Called after each question or other unit of work.
Advance: TypeAlias = Callable[[], None]
#: Called with each figure as soon as it is measured; a series of one round has the round in its name.
Announce: TypeAlias = Callable[[Figure], None]


class Report(Struct, frozen=True, kw_only=True):
    """One run of one benchmark; `facts` are single values with their unit in the name."""

    name: str
    machine: str
    versions: Mapping[str, str]
    questions: int
    rounds: int
    series: tuple[Series, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    rates: tuple[Rate, ...] = ()
    facts: dict[str, float] = {}


def ratio(of: Series, against: Series, *, bound: str | None = None) -> Ratio:
    """Ratio of medians. Pairs are resampled together, so a slowdown that hits both cancels."""
    pairs = np.array([of.ms, against.ms])
    draws = np.random.default_rng(0).integers(0, pairs.shape[1], (BOOTSTRAP, pairs.shape[1]))
    medians = np.median(pairs[:, draws], axis=2)
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    return Ratio(
        of=of.name,
        against=against.name,
        ratio=of.median_ms / against.median_ms,
        low=float(low),
        high=float(high),
        extra_ms=float(np.median(pairs[0] - pairs[1])),
        bound=bound,
    )
