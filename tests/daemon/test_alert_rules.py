"""The rules of alerts: they begin on evidence, end with a gap, and small numbers raise nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.build import BREACH, PACK
from thor_policy.core.canary import Breach, Terms
from thor_policy.core.status import ArmStatus, CanaryStatus
from thor_policy.daemon.alert_rules import (
    LEAST_BUCKETS,
    Drift,
    Judged,
    SuccessRate,
    Volume,
    canary,
    wilson,
)
from thor_policy.suites import intervals

S = 10**9


class TestCanary:
    @pytest.mark.parametrize(
        ("state", "happens"),
        [
            ("running", []),
            ("stopped", []),
            ("promoted", []),
            ("rolled_back", ["raised"]),
            ("failed", ["raised"]),
        ],
    )
    def test_an_alert_is_raised_where_nobody_ended_the_canary(self, state: str, happens: list[str]) -> None:
        assert switched([canary(newest(state))]) == happens

    def test_the_next_canary_clears_it_and_the_figures_are_those_of_the_roll_back(self) -> None:
        over = canary(newest("rolled_back", BREACH))
        assert (over.value, over.low, over.high, over.sample) == (0.1, 0.05, 0.2, 50)
        assert switched([over, over, canary(newest("running"))]) == ["raised", "cleared"]


def newest(state: Any, breach: Breach | None = None) -> CanaryStatus:
    none = ArmStatus(decisions=0, looser=0, failed=0, unanswered=0, results=0, hits=0, mean_ms=None)
    return CanaryStatus(
        id="c",
        state=state,
        share=0.1,
        pack=PACK,
        model=None,
        adapter=None,
        started="",
        ended=None,
        terms=Terms(),
        canary=none,
        control=none,
        breach=breach,
        reason=None,
    )


def switched(judgements: Sequence[Judged]) -> list[str]:
    """What happens to an alert under these judgements: raised and cleared, in turns."""
    happened: list[str] = []
    raised = False
    for judged in judgements:
        if raised and judged.ends:
            raised = False
            happened.append("cleared")
        elif not raised and judged.begins:
            raised = True
            happened.append("raised")
    return happened


def rate(*, below: float = 0.5, least: int = 30, window: int = 200) -> SuccessRate:
    return SuccessRate(below=below, least=least, window=window)


class TestSuccessRate:
    @given(st.integers(0, 500), st.data())
    def test_the_interval_is_that_of_scipy(self, of: int, data: st.DataObject) -> None:
        hits = data.draw(st.integers(0, of))
        known = intervals.rate(hits, of)
        assert wilson(hits, of) == pytest.approx((known.low, known.high), abs=1e-9)

    def test_an_agent_that_fails_most_of_the_time_raises_an_alert_from_the_least_sample_on(self) -> None:
        failing = rate()
        begins = []
        for number in range(40):
            failing.add(f"d{number}", number % 5 == 0)
            begins.append(failing.judge().begins)
        assert begins.index(True) == 29

    def test_a_share_below_the_threshold_by_chance_alone_raises_nothing(self) -> None:
        unlucky = rate()
        for number in range(60):
            unlucky.add(f"d{number}", number < 28)  # 28 of 60; the interval reaches 0.59
        judged = unlucky.judge()
        assert (judged.value < 0.5, judged.begins, judged.ends) == (True, False, False)

    @given(st.lists(st.booleans(), max_size=29))
    def test_fewer_results_than_the_sample_raise_and_clear_nothing(self, results: list[bool]) -> None:
        few = rate()
        for number, success in enumerate(results):
            few.add(f"d{number}", success)
            assert not few.judge().begins
            assert not few.judge().ends

    def test_it_is_raised_and_cleared_in_turns_while_the_share_wavers_at_the_threshold(self) -> None:
        wavering = rate(window=100)
        judgements = []
        for number in range(2_000):
            wavering.add(f"d{number}", number % 2 == 0)
            judgements.append(wavering.judge())
        assert switched(judgements) == []

    def test_an_agent_that_recovers_clears_its_alert(self) -> None:
        recovering = rate(window=100)
        judgements = []
        for number in range(300):
            recovering.add(f"d{number}", number >= 100)
            judgements.append(recovering.judge())
        assert switched(judgements) == ["raised", "cleared"]

    def test_a_later_result_of_a_decision_takes_the_place_of_the_earlier(self) -> None:
        corrected = rate()
        for success in (False, True):
            for number in range(50):
                corrected.add(f"d{number}", success)
        judged = corrected.judge()
        assert (judged.value, judged.sample) == (1.0, 50)

    @given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=200), st.integers(1, 20))
    def test_the_share_is_that_of_the_newest_results_of_each_decision(
        self, results: list[tuple[int, bool]], window: int
    ) -> None:
        watched, newest = rate(least=1, window=window), dict[int, bool]()
        for decision, success in results:
            watched.add(str(decision), success)
            newest.pop(decision, None)
            newest[decision] = success
            kept = list(newest.values())[-window:]
            newest = dict(list(newest.items())[-window:])
            assert watched.judge().value == pytest.approx(sum(kept) / len(kept), abs=1e-4)


def volume(**more: float) -> Volume:
    return Volume(**{"sigma": 6.0, "least": 30, "bucket_ns": 300 * S, "now_ns": 0} | more)  # type: ignore[arg-type]


def judgements_of(counts: Sequence[int], watched: Volume | None = None) -> list[Judged]:
    """The judgements of buckets with these numbers of decisions."""
    watched = watched or volume()
    judgements = []
    for number, count in enumerate(counts, 1):
        watched.add(count)
        judged = watched.turn(number * 300 * S)
        if judged is not None:
            judgements.append(judged)
    return judgements


class TestVolume:
    def test_a_flood_is_raised_with_its_first_bucket_and_cleared_when_it_is_over(self) -> None:
        judgements = judgements_of([100] * 20 + [400] * 2 + [100] * 5)
        assert switched(judgements) == ["raised", "cleared"]
        assert [judged.begins for judged in judgements][8] is True

    def test_silence_is_raised_too(self) -> None:
        assert switched(judgements_of([100] * 20 + [0] * 3 + [100] * 3)) == ["raised", "cleared"]

    def test_after_equal_numbers_what_random_arrivals_could_be_raises_nothing(self) -> None:
        assert switched(judgements_of([100] * 20 + [150, 60])) == []

    def test_what_lasts_becomes_usual(self) -> None:
        judgements = judgements_of([100] * 48 + [400] * 60)
        assert switched(judgements) == ["raised", "cleared"]
        assert judgements[-1].low < 400 < judgements[-1].high

    @pytest.mark.parametrize("seed", range(5))
    def test_random_arrivals_raise_nothing(self, seed: int) -> None:
        draw = random.Random(seed)
        counts = [sum(draw.random() < 0.05 for _ in range(2_000)) for _ in range(200)]
        assert switched(judgements_of(counts)) == []

    @given(st.lists(st.integers(0, 29), max_size=100))
    def test_fewer_decisions_than_the_sample_raise_nothing(self, counts: list[int]) -> None:
        assert switched(judgements_of(counts)) == []

    @given(st.lists(st.integers(0, 100_000), max_size=LEAST_BUCKETS))
    def test_nothing_is_judged_before_the_usual_is_known(self, counts: list[int]) -> None:
        assert judgements_of(counts) == []

    def test_a_bucket_that_is_judged_late_counts_by_its_length(self) -> None:
        watched = volume()
        judgements_of([100] * 20, watched)
        watched.add(300)
        judged = watched.turn(23 * 300 * S)
        assert judged is not None
        assert (judged.value, judged.begins) == (100, False)
        assert watched.turn(24 * 300 * S - 1) is None

    @given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 10**13)), max_size=60))
    def test_no_judgement_both_begins_and_ends_an_alert(self, steps: list[tuple[int, int]]) -> None:
        watched, now_ns = volume(), 0
        for count, wait_ns in steps:
            now_ns += wait_ns
            watched.add(count)
            judged = watched.turn(now_ns)
            assert judged is None or not (judged.begins and judged.ends)


class TestDrift:
    def test_a_change_raises_it_and_a_round_without_one_clears_it(self) -> None:
        drift = Drift()
        counters = [(0, 6), (1, 8), (1, 12), (2, 13), (2, 18), (2, 19)]
        judgements = [
            drift.judge(drifted=drifted, answered=answered, golden=6) for drifted, answered in counters
        ]
        assert [(judged.begins, judged.ends) for judged in judgements] == [
            (False, True),
            (True, False),
            (False, False),
            (True, False),
            (False, False),
            (False, True),
        ]
        assert switched(judgements) == ["raised", "cleared"]

    def test_a_sentinel_that_asks_nothing_raises_and_clears_nothing(self) -> None:
        judged = Drift().judge(drifted=0, answered=0, golden=0)
        assert (judged.begins, judged.ends) == (False, False)
