"""When a canary is rolled back: whole intervals, a least sample, and looks that cry no wolf."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.canary import Breach, Terms
from thor_policy.core.errors import RequestError
from thor_policy.daemon.alert_rules import wilson
from thor_policy.daemon.canary_choice import choose, merit
from thor_policy.daemon.canary_rules import ERROR_RATE, Arm, Conditions, Times, difference, ratio

Z_95 = 1.959963984540054


def arm(
    decisions: int = 0,
    *,
    looser: int = 0,
    unanswered: int = 0,
    hits: int = 0,
    results: int = 0,
    took_ms: tuple[float, ...] = (),
) -> Arm:
    """An arm with these figures."""
    made = Arm()
    for number in range(decisions):
        made.decided(
            note="looser" if number < looser else None,
            tier="fallback" if number < unanswered else "model",
            took_ms=took_ms[number % len(took_ms)] if took_ms else 10.0,
        )
    made.hits, made.results = hits, results
    return made


def breach(terms: Terms, trial: Arm, control: Arm) -> Breach | None:
    return Conditions(terms).breach(trial, control)


class TestLooser:
    def test_no_canary_is_judged_before_the_least_sample(self) -> None:
        terms = Terms(least=50)
        assert breach(terms, arm(49, looser=49), arm(0)) is None
        result = breach(terms, arm(50, looser=1), arm(0))
        assert result is not None
        assert (result.condition, result.value, result.sample) == ("looser", 0.02, 50)
        assert 0 < result.low < result.value < result.high

    def test_a_limit_must_lie_below_the_whole_interval(self) -> None:
        terms = Terms(least=50, looser=0.2)
        assert breach(terms, arm(100, looser=25), arm(0)) is None
        result = breach(terms, arm(100, looser=60), arm(0))
        assert result is not None
        assert result.low > 0.2

    def test_with_the_limit_0_each_turn_looks(self) -> None:
        conditions = Conditions(Terms(least=50))
        assert conditions.breach(arm(50), arm(0)) is None
        assert conditions.breach(arm(51, looser=1), arm(0)) is not None

    def test_a_canary_without_a_looser_decision_stays(self) -> None:
        assert breach(Terms(), arm(100_000), arm(100_000)) is None


class TestLoosened:
    def compared(self, compared: int, loosened: int, tightened: int) -> Arm:
        trial = arm(compared)
        trial.compared, trial.loosened, trial.tightened = compared, loosened, tightened
        return trial

    def test_answers_that_are_looser_more_often_than_stricter_are_found(self) -> None:
        result = breach(Terms(), self.compared(60, 12, 1), arm(0))
        assert result is not None
        assert (result.condition, result.sample) == ("loosened", 60)
        assert result.low > 0.5

    @pytest.mark.parametrize(
        ("compared", "loosened", "tightened"), [(60, 0, 0), (60, 3, 0), (60, 8, 8), (60, 0, 30), (49, 49, 0)]
    )
    def test_answers_that_differ_by_chance_or_are_stricter_end_nothing(
        self, compared: int, loosened: int, tightened: int
    ) -> None:
        assert breach(Terms(), self.compared(compared, loosened, tightened), arm(0)) is None

    def test_with_a_limit_of_1_nothing_is_found(self) -> None:
        assert breach(Terms(loosened=1.0), self.compared(5_000, 5_000, 0), arm(0)) is None


class TestSuccess:
    def test_a_lower_rate_is_found_when_the_interval_excludes_zero(self) -> None:
        terms = Terms(least=50)
        control = arm(results=200, hits=190)
        assert breach(terms, arm(results=60, hits=54), control) is None
        result = breach(terms, arm(results=60, hits=40), control)
        assert result is not None
        assert (result.condition, result.sample, result.control_sample) == ("success", 60, 200)
        assert result.high < 0

    def test_both_arms_need_the_least_sample(self) -> None:
        terms = Terms(least=50)
        assert breach(terms, arm(results=500, hits=0), arm(results=49, hits=49)) is None
        assert breach(terms, arm(results=49, hits=0), arm(results=500, hits=500)) is None

    def test_a_drop_that_is_allowed_ends_nothing(self) -> None:
        trial, control = arm(results=1_000, hits=840), arm(results=1_000, hits=900)
        assert breach(Terms(), trial, control) is not None
        assert breach(Terms(success_drop=0.1), trial, control) is None

    def test_a_better_canary_stays(self) -> None:
        assert breach(Terms(), arm(results=1_000, hits=990), arm(results=1_000, hits=500)) is None


def test_more_decisions_without_an_answer_are_found() -> None:
    result = breach(Terms(), arm(200, unanswered=40), arm(800, unanswered=8))
    assert result is not None
    assert (result.condition, result.value) == ("fallback", pytest.approx(0.19))
    assert breach(Terms(fallback_rise=0.5), arm(200, unanswered=40), arm(800)) is None


class TestLatency:
    FAST, SLOW = (9.0, 10.0, 11.0), (27.0, 30.0, 33.0)

    def test_slower_decisions_are_found(self) -> None:
        result = breach(Terms(), arm(100, took_ms=self.SLOW), arm(100, took_ms=self.FAST))
        assert result is not None
        assert (result.condition, result.value) == ("latency", pytest.approx(3.0, rel=0.01))
        assert (
            breach(Terms(latency_ratio=4), arm(100, took_ms=self.SLOW), arm(100, took_ms=self.FAST)) is None
        )

    def test_with_a_ratio_of_0_latency_ends_nothing(self) -> None:
        terms = Terms(latency_ratio=0)
        assert breach(terms, arm(100, took_ms=self.SLOW), arm(100, took_ms=self.FAST)) is None

    def test_cached_answers_have_no_time(self) -> None:
        control = arm(100, took_ms=self.FAST)
        for _ in range(10_000):
            control.decided(note=None, tier="cache", took_ms=0.01)
        assert breach(Terms(), arm(100, took_ms=self.FAST), control) is None

    def test_the_ratio_is_that_of_geometric_means(self) -> None:
        ours, theirs = Times(), Times()
        for took_ms in (1.0, 100.0):
            ours.add(took_ms)
            theirs.add(took_ms / 4)
        value, low, high = ratio(ours, theirs, Z_95)
        assert value == pytest.approx(4)
        assert low < 4 < high
        assert ours.mean_ms == pytest.approx(10)


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe 1998, table II, method 10: 56/70 against 48/80, 9/10 against 3/10, and 10/10 against 0/10."""
    for ours, theirs, low, high in (
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ):
        value, below, above = difference(ours, theirs, Z_95)
        assert (round(below, 4), round(above, 4)) == (low, high)
        assert value == pytest.approx(ours[0] / ours[1] - theirs[0] / theirs[1])


@given(
    ours=st.integers(1, 400).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))),
    theirs=st.integers(1, 400).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))),
)
def test_a_difference_lies_in_its_interval_and_turns_with_its_arms(
    ours: tuple[int, int], theirs: tuple[int, int]
) -> None:
    value, low, high = difference(ours, theirs, Z_95)
    turned = difference(theirs, ours, Z_95)
    assert -1 - 1e-9 <= low <= value <= high <= 1 + 1e-9
    assert turned == pytest.approx((-value, -high, -low))


def ended_by_chance(rate: float, control_rate: float, *, runs: int, results: int, seed: int) -> int:
    """How many of so many canaries are rolled back, looked at after every result."""
    chance, ended = random.Random(seed), 0
    for _ in range(runs):
        trial, control, conditions = Arm(), Arm(), Conditions(Terms(least=30))
        for _ in range(results):
            for each, share in ((trial, rate), (control, control_rate)):
                each.results += 1
                each.hits += chance.random() < share
            if conditions.breach(trial, control) is not None:
                ended += 1
                break
    return ended


def test_a_canary_that_is_no_worse_is_seldom_rolled_back_however_often_it_is_looked_at() -> None:
    runs = 300
    ended = ended_by_chance(0.9, 0.9, runs=runs, results=1_000, seed=7)
    assert ended <= ERROR_RATE * runs, f"{ended} of {runs}"


def test_a_canary_that_is_worse_by_a_fifth_is_rolled_back() -> None:
    ended = ended_by_chance(0.7, 0.9, runs=50, results=600, seed=8)
    assert ended >= 48


def test_looks_become_stricter_and_rarer() -> None:
    conditions, control = Conditions(Terms(least=100)), arm(10_000)
    trials = (Arm(decisions=decisions, unanswered=decisions) for decisions in range(100, 1_000))
    looks = [look for trial in trials if (look := conditions.breach(trial, control)) is not None]
    assert [look.sample for look in looks] == [100, 150, 225, 338, 507, 760]
    errors = [1 - look.level for look in looks]
    assert errors == sorted(errors, reverse=True)
    assert sum(errors) < ERROR_RATE


class TestChoice:
    def test_the_best_record_is_chosen_with_the_reason(self) -> None:
        candidates = [merit("small@2", 170, 200), merit("small@3", 195, 200)]
        place, why = choose(candidates, merit("the active pack", 160, 200), least=50)
        assert place == 1
        assert "small@3 is better than the active pack by +17.5 points" in why
        assert "small@2: 85.0 % of 200" in why

    def test_a_small_record_that_looks_perfect_is_not_chosen(self) -> None:
        candidates = [merit("small@2", 10, 10), merit("small@3", 190, 200)]
        place, _ = choose(candidates, merit("the active pack", 150, 200), least=50)
        assert place == 1

    @pytest.mark.parametrize(
        ("candidates", "active", "reason"),
        [
            ([(10, 10)], (150, 200), "small@0 has 10 results, and 50 are the fewest that count"),
            ([(60, 60)], (9, 10), "the active pack has 10 results"),
            ([(0, 0)], (0, 0), "small@0 has 0 results"),
            ([(160, 200)], (158, 200), "does not show that small@0 is better"),
            ([(100, 200)], (158, 200), "does not show that small@0 is better"),
        ],
    )
    def test_a_record_that_cannot_say_is_refused(
        self, candidates: list[tuple[int, int]], active: tuple[int, int], reason: str
    ) -> None:
        merits = [merit(f"small@{number}", *counts) for number, counts in enumerate(candidates)]
        with pytest.raises(RequestError, match=reason) as caught:
            choose(merits, merit("the active pack", *active), least=50)
        assert caught.value.code == "conflict"

    def test_more_candidates_need_a_better_record(self) -> None:
        """Of many equal ones some look better by chance."""
        active, lucky = merit("the active pack", 160, 200), merit("small@2", 175, 200)
        assert choose([lucky], active, least=50)[0] == 0
        with pytest.raises(RequestError, match="does not show"):
            choose([lucky, *[merit(f"small@{n}", 160, 200) for n in range(3, 12)]], active, least=50)


def test_the_interval_of_a_share_widens_with_the_confidence() -> None:
    assert wilson(5, 50) == wilson(5, 50, Z_95)
    low, high = wilson(5, 50)
    wider_low, wider_high = wilson(5, 50, 3.0)
    assert wider_low < low < high < wider_high
