"""The budget of a day: it stops work, and resets at the day's turn and at no other time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from thor_policy.daemon.day_budget import DAY_NS, DayBudget

S = 10**9
HOUR_NS = 3_600 * S


def test_the_number_of_a_day_stops_further_pieces_until_the_day_turns() -> None:
    budget = DayBudget(2, 60.0, now_ns=5)
    for _ in range(2):
        assert budget.may_begin(5)
        budget.begin(5)
    assert not budget.may_begin(5)
    assert not budget.may_begin(5 + DAY_NS - 1)
    assert budget.may_begin(5 + DAY_NS)
    assert (budget.pieces, budget.turns) == (0, 1)


def test_the_device_time_of_a_day_stops_further_pieces_until_the_day_turns() -> None:
    budget = DayBudget(10, 2.0, now_ns=0)
    budget.begin(0)
    budget.spend(2 * S - 1, 0)
    assert budget.may_begin(0)
    budget.spend(1, 0)
    assert not budget.may_begin(0)
    assert not budget.has_time(DAY_NS - 1)
    assert budget.has_time(DAY_NS)


def test_a_budget_of_zero_allows_nothing_on_any_day() -> None:
    for budget in (DayBudget(0, 9.0, now_ns=0), DayBudget(9, 0.0, now_ns=0)):
        assert not budget.may_begin(0)
        assert not budget.may_begin(3 * DAY_NS)


def test_what_was_used_before_a_restart_counts_in_the_day_that_its_oldest_piece_began() -> None:
    budget = DayBudget(3, 60.0, now_ns=20 * HOUR_NS, used=[(4 * HOUR_NS, S), (9 * HOUR_NS, 2 * S)])
    assert (budget.pieces, budget.spent_ns) == (2, 3 * S)
    assert budget.turns_in_s(20 * HOUR_NS) == 8 * 3_600
    budget.begin(21 * HOUR_NS)
    assert not budget.may_begin(28 * HOUR_NS - 1)
    assert budget.may_begin(28 * HOUR_NS)


def test_a_piece_that_is_said_to_be_of_the_future_counts_as_used_now() -> None:
    budget = DayBudget(1, 60.0, now_ns=HOUR_NS, used=[(99 * DAY_NS, S)])
    assert not budget.may_begin(HOUR_NS)
    assert budget.may_begin(HOUR_NS + DAY_NS)


def test_days_without_work_turn_all_together_and_keep_the_hour_of_the_turn() -> None:
    budget = DayBudget(1, 60.0, now_ns=HOUR_NS)
    budget.begin(HOUR_NS)
    budget.turn(HOUR_NS + 5 * DAY_NS + 7)
    assert (budget.begins_ns, budget.pieces) == (HOUR_NS + 5 * DAY_NS, 0)


@given(st.lists(st.tuples(st.integers(0, DAY_NS), st.integers(0, 10 * S)), max_size=80), st.integers(1, 9))
def test_no_day_has_more_pieces_than_the_budget_whatever_the_times(
    steps: list[tuple[int, int]], most: int
) -> None:
    budget, now_ns, begun = DayBudget(most, 1e9, now_ns=0), 0, list[int]()
    for wait_ns, _ in steps:
        now_ns += wait_ns
        if budget.may_begin(now_ns):
            budget.begin(now_ns)
            begun.append(now_ns)
    for day in range(now_ns // DAY_NS + 1):
        assert sum(day * DAY_NS <= at < (day + 1) * DAY_NS for at in begun) <= most


class Machine(RuleBasedStateMachine):
    """A budget beside a plain account of each day."""

    MOST, MOST_S = 3, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self.budget = DayBudget(self.MOST, self.MOST_S, now_ns=0)
        self.pieces: dict[int, int] = {}
        self.spent_ns: dict[int, int] = {}

    @property
    def day(self) -> int:
        return self.now_ns // DAY_NS

    @rule(wait_ns=st.integers(0, HOUR_NS) | st.integers(0, 3 * DAY_NS) | st.just(DAY_NS))
    def time_passes(self, wait_ns: int) -> None:
        self.now_ns += wait_ns

    @rule(spent_ns=st.integers(0, 6 * S))
    def a_piece_is_wanted(self, spent_ns: int) -> None:
        pieces, spent = self.pieces.get(self.day, 0), self.spent_ns.get(self.day, 0)
        allowed = pieces < self.MOST and spent < self.MOST_S * S
        assert self.budget.may_begin(self.now_ns) == allowed
        if allowed:
            self.budget.begin(self.now_ns)
            self.budget.spend(spent_ns, self.now_ns)
            self.pieces[self.day] = pieces + 1
            self.spent_ns[self.day] = spent + spent_ns

    @invariant()
    def the_account_of_the_day_is_that_of_the_budget(self) -> None:
        self.budget.turn(self.now_ns)
        assert self.budget.pieces == self.pieces.get(self.day, 0)
        assert self.budget.spent_ns == self.spent_ns.get(self.day, 0)
        assert self.budget.turns_in_s(self.now_ns) == (DAY_NS - self.now_ns % DAY_NS) / 1e9


TestMachine = Machine.TestCase
