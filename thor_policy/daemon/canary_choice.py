"""The choice among candidates by their record: which of them decided best in the past.

Owns that choice. Invariant: a candidate is chosen only if its whole interval lies above the active pack's
record; small numbers choose nothing, and the refusal says what is missing. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from msgspec import Struct

from thor_policy.core.errors import RequestError
from thor_policy.daemon.alert_rules import wilson
from thor_policy.daemon.canary_rules import ERROR_RATE, difference


class Merit(Struct, frozen=True, kw_only=True):
    """The record of a candidate: `hits` of its results turned out well; `low` to `high` is the interval."""

    name: str
    hits: int
    of: int
    low: float
    high: float

    def __str__(self) -> str:
        share = f"{100 * self.hits / self.of:.1f} % of {self.of}" if self.of else "no results"
        interval = f" ({100 * self.low:.1f} to {100 * self.high:.1f} %)" if self.of else ""
        return f"{self.name}: {share}{interval}"


def merit(name: str, hits: int, of: int) -> Merit:
    """A record with its 95 % interval."""
    low, high = wilson(hits, of)
    return Merit(name=name, hits=hits, of=of, low=round(low, 6), high=round(high, 6))


def choose(candidates: Sequence[Merit], active: Merit, *, least: int) -> tuple[int, str]:
    """The place of the best candidate, and why. Raises RequestError `conflict` if none is shown to be better.

    Candidates with `least` results or more compare by the lower ends of their intervals. The best must be
    better than the active pack with 95 % confidence, however many there are to choose from (Bonferroni).
    """
    known = [place for place, each in enumerate(candidates) if each.of >= least]
    figures = "; ".join(map(str, (*candidates, active)))
    if not known or active.of < least:
        short = active if known else max(candidates, key=lambda each: each.of)
        raise RequestError(
            "conflict",
            f"the record does not say which is best: {short.name} has {short.of} results, and {least} are "
            f"the fewest that count; record outcomes or reviews, or name one candidate. {figures}",
        )
    best = max(known, key=lambda place: candidates[place].low)
    ours = candidates[best]
    z = NormalDist().inv_cdf(1 - ERROR_RATE / (2 * len(candidates)))
    value, low, high = difference((ours.hits, ours.of), (active.hits, active.of), z)
    shown = f"{100 * value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    if low <= 0:
        raise RequestError(
            "conflict",
            f"the record does not show that {ours.name} is better than {active.name}: {shown}; record more "
            f"outcomes or reviews, or name one candidate. {figures}",
        )
    return best, f"{ours.name} is better than {active.name} by {shown}. {figures}"
