"""The queue that serves callers in turn."""

from __future__ import annotations

import queue
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.fair_queue import Debts, FairQueue, Lane

ANN, BOB = Lane("uid 1", "a"), Lane("uid 2", "b")


def filled(*lanes: Lane) -> FairQueue[str]:
    waiting: FairQueue[str] = FairQueue(clock_ns=lambda: 0)
    for number, lane in enumerate(lanes):
        waiting.put(f"{lane.share}/{lane.connection}/{number}", lane)
    return waiting


def served(waiting: FairQueue[str], count: int, cost_ms: float = 1.0) -> list[str]:
    taken = []
    for _ in range(count):
        item = waiting.get(block=False)
        assert item is not None
        waiting.charge(cost_ms)
        taken.append(item)
    return taken


def test_one_lane_is_served_in_the_order_of_arrival() -> None:
    assert served(filled(ANN, ANN, ANN), 3) == ["uid 1/a/0", "uid 1/a/1", "uid 1/a/2"]


def test_a_caller_that_comes_later_is_not_behind_all_that_waits() -> None:
    waiting = filled(*[ANN] * 100, BOB)
    assert "uid 2/b/100" in served(waiting, 2)


def test_more_connections_give_a_caller_no_more_turns() -> None:
    many = [Lane("uid 1", number) for number in range(32)]
    waiting = filled(*many * 4, *[BOB] * 20)
    assert sum(item.startswith("uid 2") for item in served(waiting, 20)) == 10


def test_the_connections_of_a_caller_take_turns() -> None:
    other = Lane("uid 1", "c")
    waiting = filled(*[ANN] * 10, other)
    assert "uid 1/c/10" in served(waiting, 2)


def test_a_caller_whose_work_costs_more_gets_fewer_turns() -> None:
    waiting = filled(*[ANN] * 50, *[BOB] * 50)
    turns = {"uid 1": 0, "uid 2": 0}
    for _ in range(44):
        item = waiting.get(block=False)
        assert item is not None
        share = item.split("/")[0]
        turns[share] += 1
        waiting.charge(10.0 if share == "uid 1" else 1.0)
    assert turns == {"uid 1": 4, "uid 2": 40}


def test_a_pause_does_not_clear_what_a_caller_has_used() -> None:
    waiting = filled(ANN, BOB)
    served(waiting, 1, cost_ms=100.0)
    served(waiting, 1, cost_ms=1.0)
    for _ in range(5):
        waiting.put("ann", ANN)
        waiting.put("bob", BOB)
    assert served(waiting, 5) == ["bob"] * 5


def test_a_caller_that_asks_seldom_is_served_at_once_after_a_piece_that_took_long() -> None:
    waiting = filled(*[ANN] * 2_000)
    served(waiting, 1_500)
    waiting.put("bob's long one", BOB)
    assert served(waiting, 1, cost_ms=800.0) == ["bob's long one"]
    waiting.put("bob's short one", BOB)
    assert served(waiting, 1) == ["bob's short one"]
    for _ in range(1_000):
        waiting.put("bob's many", BOB)
    many = served(waiting, 400)
    assert many.count("bob's many") == 300  # the 200 ms that are left of his credit, then every other turn


def test_a_caller_that_asked_alone_is_not_behind_the_credit_of_a_newcomer() -> None:
    """V6: where many requests of a newcomer came at once, the next one of a caller waited up to a second."""
    now_ms = 0
    waiting: FairQueue[str] = FairQueue(clock_ns=lambda: now_ms * 1_000_000)
    for number in range(5_000):  # a millisecond of each 20
        waiting.put(f"ann {number}", ANN)
        now_ms += 1
        served(waiting, 1)
        now_ms += 19
    for number in range(1_000):
        waiting.put(f"bob {number}", BOB)
    waiting.put("ann's next", ANN)
    assert "ann's next" in served(waiting, 3)


def test_a_caller_that_asked_without_pause_is_behind_the_credit_of_a_newcomer() -> None:
    waiting = filled(*[ANN] * 5_000)
    served(waiting, 4_000)
    for _ in range(2_000):
        waiting.put("bob", BOB)
    assert served(waiting, 1_400).count("bob") == 1_200


def test_a_caller_that_owes_waits_and_others_do_not() -> None:
    debts = Debts(2)
    waiting: FairQueue[str] = FairQueue(debts=debts)
    for item, lane in (("a1", ANN), ("a2", ANN), ("a3", ANN), ("b1", BOB)):
        waiting.put(item, lane)
    for _ in range(2):
        debts.owe("uid 1")
    assert served(waiting, 1) == ["b1"]
    with pytest.raises(queue.Empty):
        waiting.get(timeout_s=0.001)
    debts.settle("uid 1")
    assert served(waiting, 1) == ["a1"]
    debts.owe("uid 1")
    waiting.close()
    taken: list[str | None] = []
    thread = threading.Thread(target=lambda: taken.append(waiting.get()))
    thread.start()
    debts.settle("uid 1")
    thread.join(20)
    assert taken == ["a2"]


def test_ahead_counts_what_is_served_before_a_new_piece_of_a_lane() -> None:
    waiting = filled(*[ANN] * 10)
    assert (waiting.ahead(ANN), waiting.ahead(Lane("uid 1", "new")), waiting.ahead(BOB)) == (10, 1, 1)


def test_dropping_a_lane_returns_its_work_and_leaves_the_rest() -> None:
    waiting = filled(ANN, BOB, ANN)
    assert waiting.drop(ANN) == ["uid 1/a/0", "uid 1/a/2"]
    assert waiting.drop(ANN) == []
    assert (len(waiting), served(waiting, 1)) == (1, ["uid 2/b/1"])


def test_an_empty_queue_says_so_and_a_closed_one_ends() -> None:
    waiting = filled(ANN)
    waiting.close()
    assert waiting.get() == "uid 1/a/0"
    assert waiting.get() is None
    with pytest.raises(queue.Empty):
        FairQueue[str]().get(block=False)
    with pytest.raises(queue.Empty):
        FairQueue[str]().get(timeout_s=0.001)


def test_a_thread_that_waits_gets_what_another_puts() -> None:
    waiting: FairQueue[str] = FairQueue()
    taken: list[str | None] = []
    thread = threading.Thread(target=lambda: taken.append(waiting.get()))
    thread.start()
    waiting.put("ann", ANN)
    thread.join(20)
    assert taken == ["ann"]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=60),
    st.lists(st.floats(0.1, 9.0), min_size=60, max_size=60),
)
def test_while_callers_wait_none_is_ahead_by_more_than_its_longest_piece(
    puts: list[tuple[int, int]], costs_ms: list[float]
) -> None:
    waiting: FairQueue[str] = FairQueue()
    left: dict[str, int] = {}
    for share, connection in puts:
        waiting.put(f"{share}", Lane(f"{share}", connection))
        left[f"{share}"] = left.get(f"{share}", 0) + 1
    used_ms = dict.fromkeys(left, 0.0)
    for cost_ms in costs_ms[: len(puts)]:
        share_served = waiting.get(block=False)
        assert share_served is not None
        behind = [used_ms[share] for share, count in left.items() if count]
        assert used_ms[share_served] <= min(behind) + 1e-9
        waiting.charge(cost_ms)
        used_ms[share_served] += cost_ms
        left[share_served] -= 1
    assert len(waiting) == 0
    assert set(left.values()) == {0}
