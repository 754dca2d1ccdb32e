"""Which abstention band keeps a promise: at most so many asks a day, at most so many false allows.

Owns the choice of `limits.abstain.below` from reviewed decisions, with its bounds, and the curve behind it.
Invariant: with probability `CONFIDENCE` over the sample, both promises hold for the band that `choose`
gives, if the sample is drawn at random and the future is like it; where the sample cannot show that, it
refuses. Pure; any thread.

A **false allow** is a question of the model that is allowed, though it should have got a stricter outcome.
Its rate is over all questions that the model answers, so a wider band never raises it. That order is fixed
before any data is seen: bands are tested from the widest to the narrowest, each by the exact bound of
Clopper and Pearson at the full level, and the test ends at the first band that fails (fixed sequence
testing, as in Angelopoulos et al. 2021, "Learn then Test"). So no correction is needed for the choice among
many bands. The share of asks is bounded for all bands at the same time (Dvoretzky, Kiefer and Wolfowitz,
with the constant of Massart 1990), and the questions of a day by the exact bound of Poisson's law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from thor_policy.core.errors import CalibrationError

#: Probability that both promises hold, over the sample. The rest is divided: half for false allows, a quarter
#: each for the share of asks and for the questions of a day.
CONFIDENCE = 0.95
_FALSE_ALLOWS, _ASKS, _A_DAY = (1 - CONFIDENCE) / 2, (1 - CONFIDENCE) / 4, (1 - CONFIDENCE) / 4
#: The bands that are tried, widest first: `below` from 1.00 down to 0.00.
BANDS = tuple(round(1 - step / 100, 2) for step in range(101))


class Reviewed(Struct, frozen=True, kw_only=True):
    """A question of the model that was reviewed.

    `confidence` is that of an allow, before any band; None if the outcome was stricter without a band.
    `may_allow`: reviewers say that an allow is right.
    """

    confidence: float | None
    may_allow: bool


class Served(Struct, frozen=True, kw_only=True):
    """A question that was decided, reviewed or not. `asks`: it is asked about without any band."""

    confidence: float | None
    asks: bool


class Promise(Struct, frozen=True, kw_only=True):
    """What the band must keep: asks a day, and false allows as a share of the model's questions, 0 to 1.

    `reviewers_miss` is the share of false allows that reviewers accept, 0 to below 1, as blind second reviews
    show it. `days` is how long `Served` questions were gathered.
    """

    asks_per_day: float
    false_allows: float
    days: float
    reviewers_miss: float = 0.0


class Point(Struct, frozen=True, kw_only=True):
    """One band: what the sample shows, and the bounds. `keeps` is whether both promises are shown to hold.

    The promises rest on the upper bounds. The lower ones have the same level, and show how wide the sample
    leaves it.
    """

    below: float
    false_allows: float
    false_allows_at_least: float
    false_allows_at_most: float
    asks_per_day: float
    asks_per_day_at_least: float
    asks_per_day_at_most: float
    allowed: int
    keeps: bool


class Choice(Struct, frozen=True, kw_only=True):
    """The narrowest band that keeps both promises, and the curve of all bands, widest first."""

    below: float
    point: Point
    curve: tuple[Point, ...]
    reviewed: int
    served: int


def curve(reviewed: Sequence[Reviewed], served: Sequence[Served], promise: Promise) -> tuple[Point, ...]:
    """What each band would do, widest first. Raises CalibrationError without reviewed or served questions."""
    if not reviewed or not served or promise.days <= 0:
        raise CalibrationError("there is no reviewed question of the model, or none was served; review more")
    if not 0 <= promise.reviewers_miss < 1:
        raise CalibrationError(f"reviewers_miss is {promise.reviewers_miss}; it must be from 0 to below 1")
    seen = 1 - promise.reviewers_miss
    a_day = poisson_upper(len(served), _A_DAY) / promise.days
    a_day_at_least = poisson_lower(len(served), _A_DAY) / promise.days
    margin = math.sqrt(math.log(1 / _ASKS) / (2 * len(served)))
    points, still = [], True
    for below in BANDS:
        allowed = [question for question in reviewed if _is_allowed(question.confidence, below)]
        wrong = sum(not question.may_allow for question in allowed)
        asks = sum(q.asks or (q.confidence is not None and q.confidence < below) for q in served) / len(
            served
        )
        at_most = min(1.0, binomial_upper(wrong, len(reviewed), _FALSE_ALLOWS) / seen)
        still = still and at_most <= promise.false_allows
        asks_at_most = min(1.0, asks + margin) * a_day
        points.append(
            Point(
                below=below,
                false_allows=wrong / len(reviewed) / seen,
                false_allows_at_least=binomial_lower(wrong, len(reviewed), _FALSE_ALLOWS),
                false_allows_at_most=at_most,
                asks_per_day=asks * len(served) / promise.days,
                asks_per_day_at_least=max(0.0, asks - margin) * a_day_at_least,
                asks_per_day_at_most=asks_at_most,
                allowed=len(allowed),
                keeps=still and asks_at_most <= promise.asks_per_day,
            )
        )
    return tuple(points)


def chosen(points: Sequence[Point]) -> Point | None:
    """The narrowest band of a curve that keeps both promises; None if none does."""
    return next((point for point in reversed(points) if point.keeps), None)


def choose(reviewed: Sequence[Reviewed], served: Sequence[Served], promise: Promise) -> Choice:
    """The narrowest band that keeps both promises.

    Raises CalibrationError if the sample shows no band that does, with what would be needed.
    """
    points = curve(reviewed, served, promise)
    if (point := chosen(points)) is not None:
        return Choice(
            below=point.below, point=point, curve=points, reviewed=len(reviewed), served=len(served)
        )
    raise CalibrationError(refusal(points, len(reviewed), promise))


def needed(false_allows: float, reviewers_miss: float = 0.0) -> int:
    """The fewest reviewed questions that can show so small a rate: none of them a false allow."""
    rate = false_allows * (1 - reviewers_miss)
    return math.ceil(math.log(_FALSE_ALLOWS) / math.log1p(-rate)) if 0 < rate < 1 else 1


def refusal(points: Sequence[Point], reviewed: int, promise: Promise) -> str:
    """Why no band of a curve keeps both promises, and what would be needed."""
    least = needed(promise.false_allows, promise.reviewers_miss)
    if points[0].false_allows_at_most > promise.false_allows:
        return (
            f"{reviewed} reviewed questions cannot show at most {promise.false_allows:.2%} false allows, "
            f"even if nothing is allowed: {least} are needed; review more of the random sample"
        )
    safe = [point for point in points if point.false_allows_at_most <= promise.false_allows]
    narrowest = safe[-1]
    return (
        f"no band keeps both promises: the narrowest that keeps false allows at or below "
        f"{promise.false_allows:.2%} asks up to {narrowest.asks_per_day_at_most:.1f} times a day, and "
        f"{promise.asks_per_day:g} are promised; allow more of either, or review more"
    )


def _is_allowed(confidence: float | None, below: float) -> bool:
    return confidence is not None and confidence >= below


def binomial_upper(hits: int, of: int, level: float) -> float:
    """The upper bound of Clopper and Pearson of a share, wrong with probability `level` at most."""
    from scipy.stats import beta  # takes a second to import

    return 1.0 if hits >= of else float(beta.ppf(1 - level, hits + 1, of - hits))


def binomial_lower(hits: int, of: int, level: float) -> float:
    """The lower bound of Clopper and Pearson of a share, wrong with probability `level` at most."""
    from scipy.stats import beta

    return 0.0 if hits <= 0 else float(beta.ppf(level, hits, of - hits + 1))


def poisson_lower(count: int, level: float) -> float:
    """The exact lower bound of the mean of a Poisson count."""
    from scipy.stats import gamma

    return 0.0 if count <= 0 else float(gamma.ppf(level, count))


def poisson_upper(count: int, level: float) -> float:
    """The exact upper bound of the mean of a Poisson count."""
    from scipy.stats import gamma

    return float(gamma.ppf(1 - level, count + 1))
