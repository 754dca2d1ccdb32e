"""How sure a count is: shares with their intervals, and pairs that differ.

Owns the statistics that several rooms tell. Invariant: no share without its interval, and a test of pairs
is exact. Pure; any thread.
"""

from __future__ import annotations

from msgspec import Struct

#: Confidence of every interval.
CONFIDENCE = 0.95


class Rate(Struct, frozen=True, kw_only=True):
    """`hits` of `of`, with the 95 % Wilson interval of the share; of nothing, there is no share."""

    hits: int
    of: int
    share: float | None
    low: float
    high: float


class Paired(Struct, frozen=True, kw_only=True):
    """What changed among pairs: the gain less the loss as a share of all, with its 95 % interval.

    `p_value` is McNemar's exact one: how likely so uneven a split is where gains and losses are as frequent.
    """

    difference: float
    low: float
    high: float
    p_value: float


def rate(hits: int, of: int) -> Rate:
    """A share with its Wilson interval (Wilson 1927)."""
    from scipy.stats import binomtest  # a second to import

    if not of:
        return Rate(hits=0, of=0, share=None, low=0.0, high=1.0)
    found = binomtest(hits, of).proportion_ci(CONFIDENCE, method="wilson")
    return Rate(hits=hits, of=of, share=hits / of, low=float(found.low), high=float(found.high))


def paired(gained: int, lost: int, pairs: int) -> Paired:
    """What `gained` and `lost` of so many pairs say.

    Given how many pairs differ, those gained among them are binomial; their Clopper-Pearson interval, times
    the share that differs, bounds the difference. Where none differs, so does the share that might (the
    upper bound of none of `pairs`).
    """
    from scipy.stats import binomtest

    differ = gained + lost
    if not differ:
        most = rate(0, pairs).high
        return Paired(difference=0.0, low=-most, high=most, p_value=1.0)
    test = binomtest(gained, differ)
    inside = test.proportion_ci(CONFIDENCE, method="exact")
    share = differ / pairs
    return Paired(
        difference=(gained - lost) / pairs,
        low=(2 * float(inside.low) - 1) * share,
        high=(2 * float(inside.high) - 1) * share,
        p_value=float(test.pvalue),
    )
