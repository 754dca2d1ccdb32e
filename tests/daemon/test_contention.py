"""How finely callers are interleaved: finely while several ask, coarsely while one does."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from thor_policy.core.fair_queue import Debts, FairQueue, Lane
from thor_policy.daemon.contention import (
    _BACKLOG,
    _BACKLOG_NS,
    ALONE_S,
    ALONE_UNCOMMITTED,
    BACKLOG_S,
    SHARED_S,
    SHARED_UNCOMMITTED,
    Contention,
)

SECOND = 10**9


@pytest.fixture
def debts() -> Debts:
    return Debts(1)


@pytest.fixture
def contention(debts: Debts) -> Iterator[Contention]:
    opened = Contention(debts)
    yield opened
    opened.close()


def allowed(debts: Debts) -> int:
    """How many pieces a caller may have."""
    count = 0
    while debts.may("probe"):
        debts.owe("probe")
        count += 1
    for _ in range(count):
        debts.settle("probe")
    return count


def interval_s() -> float:
    return round(sys.getswitchinterval(), 6)


def test_one_caller_has_the_coarse_interval_however_much_it_asks(
    contention: Contention, debts: Debts
) -> None:
    for number in range(1_000):
        contention.note("uid:1", number)
    contention.turn(SECOND, 1)
    assert (interval_s(), allowed(debts), contention.shared) == (ALONE_S, ALONE_UNCOMMITTED, False)


def test_with_a_second_caller_both_get_the_fine_one(contention: Contention, debts: Debts) -> None:
    contention.note("uid:1", 0)
    contention.note("uid:2", 1)
    contention.turn(2, 1)
    assert (interval_s(), allowed(debts), contention.shared) == (SHARED_S, SHARED_UNCOMMITTED, True)


def test_a_caller_that_asks_seldom_counts_for_ten_seconds(contention: Contention) -> None:
    contention.note("uid:2", 0)
    contention.note("uid:1", 1 * SECOND)
    contention.turn(11 * SECOND - 1, 1)
    assert contention.shared
    contention.turn(11 * SECOND, 1)
    assert not contention.shared


def test_callers_that_take_turns_stay_interleaved(contention: Contention) -> None:
    for second in range(100):
        contention.note(f"uid:{second % 2}", second * SECOND)
        contention.turn(second * SECOND, 1)
        assert contention.shared == (second > 0)


def test_while_many_requests_of_one_caller_wait_for_each_other_turns_are_long(
    contention: Contention, debts: Debts
) -> None:
    contention.note("uid:1", 0)
    contention.turn(0, _BACKLOG - 1)
    assert interval_s() == ALONE_S
    contention.turn(1, _BACKLOG)
    assert (interval_s(), allowed(debts)) == (BACKLOG_S, ALONE_UNCOMMITTED)
    contention.turn(_BACKLOG_NS, 0)  # they were all answered at once, and the next ones come
    assert interval_s() == BACKLOG_S
    contention.turn(1 + _BACKLOG_NS, 0)
    assert interval_s() == ALONE_S


def test_many_requests_of_several_callers_do_not_make_turns_long(contention: Contention) -> None:
    contention.note("uid:1", 0)
    contention.note("uid:2", 1)
    contention.turn(2, 10 * _BACKLOG)
    assert interval_s() == SHARED_S


def test_the_interval_is_set_back(debts: Debts) -> None:
    before = sys.getswitchinterval()
    Contention(debts).close()
    assert sys.getswitchinterval() == before


def test_what_waited_for_the_smaller_number_is_served_when_it_rises(debts: Debts) -> None:
    queue: FairQueue[str] = FairQueue(debts=debts)
    debts.owe("uid:1")
    queue.put("next", Lane("uid:1", 1))
    debts.allow(2)
    assert queue.get(timeout_s=1) == "next"
