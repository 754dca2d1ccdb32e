"""The choice of an abstention band.

Its bounds, its refusals, and that the promise holds on simulated reviewers.
"""

from __future__ import annotations

import itertools
import random

import pytest
from msgspec.structs import replace

from tests.reviewers import REVIEWERS, held, sample, traffic, true_false_allows
from thor_policy.core.errors import CalibrationError
from thor_policy.policy.bands import (
    BANDS,
    Promise,
    Reviewed,
    binomial_upper,
    choose,
    curve,
    needed,
    poisson_upper,
)

PROMISE = Promise(asks_per_day=60, false_allows=0.05, days=30)


@pytest.mark.parametrize(("misses", "alarms"), [(0.0, 0.0), (0.2, 0.05)])
def test_the_promise_holds_on_simulated_reviewers(misses: float, alarms: float) -> None:
    kept, chosen = held(20, misses, alarms)
    assert kept >= 19
    assert chosen >= 15


@pytest.mark.soak
@pytest.mark.parametrize(("misses", "alarms"), REVIEWERS)
def test_the_promise_holds_in_95_of_100_runs(misses: float, alarms: float) -> None:
    kept, _ = held(100, misses, alarms)
    assert kept >= 95


def test_reviewers_that_miss_false_allows_break_the_promise_if_nobody_says_so() -> None:
    """The figure that `reviewers_miss` corrects: without it, a careless reviewer looks like a good model."""
    rng = random.Random(1)
    promise = Promise(asks_per_day=1_000, false_allows=0.05, days=30)
    below = choose(sample(rng, 3_000, misses=0.8), traffic(rng, 3_000), promise).below
    assert true_false_allows(below) > 0.05
    honest = replace(promise, reviewers_miss=0.8)
    with pytest.raises(CalibrationError):  # 300 such reviews are too few
        choose(sample(rng, 300, misses=0.8), traffic(rng, 3_000), honest)
    questions, served = sample(rng, 500, misses=0.8), traffic(rng, 500)
    for corrected, plain in zip(
        curve(questions, served, honest), curve(questions, served, promise), strict=True
    ):
        assert corrected.false_allows_at_most == pytest.approx(min(1.0, plain.false_allows_at_most * 5))


def test_a_wider_band_never_allows_more_and_never_asks_less() -> None:
    rng = random.Random(7)
    points = curve(sample(rng, 400), traffic(rng, 500), PROMISE)
    assert [point.below for point in points] == list(BANDS)
    for wide, narrow in itertools.pairwise(points):
        assert wide.false_allows <= narrow.false_allows
        assert wide.asks_per_day >= narrow.asks_per_day
        assert wide.allowed <= narrow.allowed
    kept = [point.keeps for point in points]
    assert all(point.false_allows <= point.false_allows_at_most for point in points)
    assert any(kept)


def test_the_narrowest_band_that_keeps_the_promise_is_chosen() -> None:
    rng = random.Random(3)
    choice = choose(
        sample(rng, 2_000), traffic(rng, 3_000), Promise(asks_per_day=90, false_allows=0.08, days=30)
    )
    at = choice.curve.index(choice.point)
    assert choice.point.keeps
    assert not choice.curve[at + 1].keeps
    assert (choice.reviewed, choice.served) == (2_000, 3_000)


def test_a_sample_that_is_too_small_is_refused_with_what_is_needed() -> None:
    rng = random.Random(5)
    least = needed(0.01)
    assert least == 368
    with pytest.raises(CalibrationError, match="368 are needed"):
        choose(sample(rng, 300), traffic(rng, 3_000), Promise(asks_per_day=1e9, false_allows=0.01, days=30))
    clean = [Reviewed(confidence=1.0, may_allow=True)] * least
    assert (
        choose(clean, traffic(rng, 100), Promise(asks_per_day=1e9, false_allows=0.01, days=30)).below == 0.0
    )
    assert needed(0.01, reviewers_miss=0.5) > 2 * least - 2


def test_promises_that_exclude_each_other_are_refused_with_the_trade() -> None:
    rng = random.Random(5)
    with pytest.raises(CalibrationError, match=r"asks up to .* times a day, and 5 are promised"):
        choose(sample(rng, 2_000), traffic(rng, 3_000), Promise(asks_per_day=5, false_allows=0.06, days=30))


@pytest.mark.parametrize("misses", [-0.1, 1.0, 2.0])
def test_a_share_of_misses_that_is_none_is_refused(misses: float) -> None:
    rng = random.Random(5)
    promise = Promise(asks_per_day=5, false_allows=0.06, days=30, reviewers_miss=misses)
    with pytest.raises(CalibrationError, match="from 0 to below 1"):
        curve(sample(rng, 10), traffic(rng, 10), promise)
    with pytest.raises(CalibrationError, match="review more"):
        curve([], [], PROMISE)


def test_the_bounds_are_those_of_the_tables() -> None:
    assert binomial_upper(0, 100, 0.05) == pytest.approx(0.029513, abs=1e-5)  # 1 - 0.05 ** (1 / 100)
    assert binomial_upper(5, 100, 0.025) == pytest.approx(0.112835, abs=1e-5)
    assert binomial_upper(7, 7, 0.05) == 1.0
    assert poisson_upper(0, 0.05) == pytest.approx(2.995732, abs=1e-5)
    assert poisson_upper(10, 0.025) == pytest.approx(18.390356, abs=1e-5)
