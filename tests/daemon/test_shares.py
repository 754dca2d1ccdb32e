"""What each caller may take."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.fair_queue import Lane
from thor_policy.daemon.shares import Places, Rates, TokenBucket

SECOND_NS = 1_000_000_000


class TestTokenBucket:
    def test_gives_its_burst_at_once_and_then_its_rate(self) -> None:
        bucket = TokenBucket(10, 5, 0)
        for _ in range(5):
            assert bucket.wait_ms(1, 0) == 0
            bucket.take(1)
        assert bucket.wait_ms(1, 0) == 100
        assert bucket.wait_ms(1, SECOND_NS // 10) == 0

    def test_keeps_no_more_than_its_burst(self) -> None:
        bucket = TokenBucket(10, 5, 0)
        assert bucket.wait_ms(5, 100 * SECOND_NS) == 0
        bucket.take(5)
        assert bucket.wait_ms(1, 100 * SECOND_NS) == 100

    def test_lets_more_than_its_burst_through_when_it_is_full_and_is_in_debt_after_that(self) -> None:
        bucket = TokenBucket(10, 5, 0)
        assert bucket.wait_ms(20, 0) == 0
        bucket.take(20)
        assert bucket.wait_ms(1, 0) == 1_600


class TestRates:
    def test_refuse_with_the_setting_and_the_time_to_wait(self) -> None:
        rates = Rates(2, 0)
        assert [rates.charge("uid 1", 0) for _ in range(2)] == [None, None]
        refusal = rates.charge("uid 1", 0)
        assert refusal is not None
        assert (refusal.code, refusal.retry_after_ms) == ("busy", 500)
        assert "caller_requests_per_s" in refusal.message
        assert rates.charge("uid 1", SECOND_NS // 2) is None

    def test_of_one_caller_are_not_those_of_another(self) -> None:
        rates = Rates(1, 0)
        assert rates.charge("uid 1", 0) is None
        assert rates.charge("uid 2", 0) is None

    def test_charge_nothing_for_what_they_refuse(self) -> None:
        rates = Rates(100, 1_000)
        for _ in range(50):
            rates.charge("uid 1", 0, size_bytes=1_000)
        assert rates.charge("uid 1", 2 * SECOND_NS, requests=99, size_bytes=1) is None

    def test_count_bytes_too(self) -> None:
        rates = Rates(0, 1_000)
        assert rates.charge("uid 1", 0, size_bytes=1_000) is None
        refusal = rates.charge("uid 1", 0, size_bytes=100)
        assert refusal is not None
        assert refusal.retry_after_ms == 100
        assert "caller_bytes_per_s" in refusal.message

    def test_are_unlimited_at_0(self) -> None:
        rates = Rates(0, 0)
        assert {rates.charge("uid 1", 0, requests=10**9, size_bytes=10**12) for _ in range(9)} == {None}

    def test_remember_a_bounded_number_of_callers(self) -> None:
        rates = Rates(1, 0)
        for number in range(10_000):
            rates.charge(f"key {number}", 0)
        assert len(rates._accounts) <= 4_096


class TestPlaces:
    def test_one_caller_gets_half_and_one_connection_half_of_that(self) -> None:
        places, lane = Places(), Lane("uid 1", "a")
        while places.has_place(lane, 100):
            places.take(lane)
        assert places.total == 25
        for connection in range(100):
            while places.has_place(Lane("uid 1", connection), 100):
                places.take(Lane("uid 1", connection))
        assert places.held("uid 1") == 50

    def test_a_caller_gets_half_of_what_the_others_leave(self) -> None:
        places = Places()
        for number in range(3):
            for connection in range(50):
                while places.has_place(Lane(f"uid {number}", connection), 100):
                    places.take(Lane(f"uid {number}", connection))
        assert [places.held(f"uid {number}") for number in range(3)] == [50, 25, 13]
        assert places.has_place(Lane("uid 77", "new"), 100)

    def test_a_limit_of_one_lets_one_in(self) -> None:
        places = Places()
        assert places.has_place(Lane("uid 1", "a"), 1)
        places.take(Lane("uid 1", "a"))
        assert not places.has_place(Lane("uid 2", "b"), 1)

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=50))
    def test_what_is_given_back_is_free_again(self, taken: list[tuple[int, int]]) -> None:
        places = Places()
        for share, connection in taken:
            places.take(Lane(f"{share}", connection))
        for share, connection in taken:
            places.give_back(Lane(f"{share}", connection))
        assert (places.total, places.held("0"), len(places._of_lane)) == (0, 0, 0)
