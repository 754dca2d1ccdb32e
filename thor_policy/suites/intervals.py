"""Confidence in counts: shares with their intervals, and pairs that differ.

Owns the statistics that several packages report. Invariant: every share has its interval, and every test of
pairs is exact. Pure; any thread.
"""

from __future__ import annotations

from msgspec import Struct

#: Confidence of every interval.
CONFIDENCE = 0.95


class Rate(Struct, frozen=True, kw_only=True):
    """`hits` of `of`, with the 95 % Wilson interval of the share. `share` is None if `of` is 0."""

    hits: int
    of: int
    share: float | None
    low: float
    high: float


class Paired(Struct, frozen=True, kw_only=True):
    """What changed among pairs: gains minus losses as a share of all pairs, with the 95 % interval.

    `p_value` is that of McNemar's exact test: how likely so uneven a split is if gains and losses are equally
    frequent.
    """

    difference: float
    low: float
    high: float
    p_value: float


def rate(hits: int, of: int) -> Rate:
    """A share with its Wilson interval (Wilson 1927)."""
    from scipy.stats import binomtest  # takes a second to import

    if not of:
        return Rate(hits=0, of=0, share=None, low=0.0, high=1.0)
    interval = binomtest(hits, of).proportion_ci(CONFIDENCE, method="wilson")
    return Rate(hits=hits, of=of, share=hits / of, low=float(interval.low), high=float(interval.high))


def paired(gained: int, lost: int, pairs: int) -> Paired:
    """The difference that `gained` and `lost` among `pairs` show.

    Given how many pairs differ, the gains among them are binomial. Their Clopper-Pearson interval, times the
    share of pairs that differ, bounds the difference. If no pair differs, the bound is the upper limit of the
    share for none of `pairs`.
    """
    from scipy.stats import binomtest

    differ = gained + lost
    if not differ:
        limit = rate(0, pairs).high
        return Paired(difference=0.0, low=-limit, high=limit, p_value=1.0)
    test = binomtest(gained, differ)
    gains = test.proportion_ci(CONFIDENCE, method="exact")
    share = differ / pairs
    return Paired(
        difference=(gained - lost) / pairs,
        low=(2 * float(gains.low) - 1) * share,
        high=(2 * float(gains.high) - 1) * share,
        p_value=float(test.pvalue),
    )
