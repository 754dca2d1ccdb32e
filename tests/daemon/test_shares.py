"""What each caller may take."""

from __future__ import annotations

import heapq
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thor_policy.core.fair_queue import Lane
from thor_policy.daemon import shares
from thor_policy.daemon.shares import Places, Rates, Refusals, TokenBucket

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


class TestRefusals:
    def send(self, refusals: Refusals, rate: int, from_ms: int, for_ms: int) -> list[float]:
        """Have `rate` requests a second refused; for how long their caller was barred each time."""
        barred = []
        for at_ns in range(from_ms * 1_000_000, (from_ms + for_ms) * 1_000_000, SECOND_NS // rate):
            refusals.wait_ms("uid 1", at_ns, 0)
            if (seconds := refusals.bar_s("uid 1", at_ns)) is not None:
                barred.append(seconds)
        return barred

    def test_come_back_one_after_the_other_and_not_before_their_least_time(self) -> None:
        refusals = Refusals()
        assert [refusals.wait_ms("uid 1", 0, 1) for _ in range(5)] == [1, 2, 4, 6, 8]
        assert refusals.wait_ms("uid 1", 0, 5_000) == 5_000
        assert refusals.wait_ms("uid 2", 0, 0) == 0

    def test_of_a_caller_that_waits_bar_nobody(self) -> None:
        """It sends 3,000 at once, and each again when it may."""
        refusals, due = Refusals(), [0] * 3_000
        for _ in range(9_000):
            at_ns = heapq.heappop(due)
            heapq.heappush(due, at_ns + refusals.wait_ms("uid 1", at_ns, 1) * 1_000_000)
            assert refusals.bar_s("uid 1", at_ns) is None

    def test_bar_a_caller_that_does_not_wait_and_each_time_for_longer(self) -> None:
        refusals = Refusals()
        assert self.send(refusals, 3_000, 0, 900) == [10.0]
        assert self.send(refusals, 3_000, 1_000, 8_000) == []  # it is barred already
        assert self.send(refusals, 3_000, 12_000, 100) == [20.0]
        assert self.send(refusals, 3_000, 60_000, 100) == [40.0]

    def test_of_long_requests_count_by_their_size(self) -> None:
        """58 KiB each: nine a second are more than 500 KiB."""
        refusals = Refusals()
        assert [refusals.wait_ms("uid 1", 0, 0, 58 * 1_024) for _ in range(3)] == [0, 116, 232]
        barred = [
            refusals.wait_ms("uid 2", at_ms * 1_000_000, 0, 58 * 1_024)
            and refusals.bar_s("uid 2", at_ms * 1_000_000)
            for at_ms in range(0, 2_000, 50)
        ]
        assert 10.0 in barred

    def test_are_forgotten_after_ten_minutes(self) -> None:
        refusals = Refusals()
        self.send(refusals, 3_000, 0, 900)
        assert self.send(refusals, 3_000, 700_000, 100) == []
        assert self.send(refusals, 3_000, 700_500, 900) == [10.0]

    def test_of_one_caller_bar_no_other(self) -> None:
        refusals = Refusals()
        self.send(refusals, 3_000, 0, 900)
        refusals.wait_ms("uid 2", SECOND_NS, 0)
        assert refusals.bar_s("uid 2", SECOND_NS) is None

    def test_of_a_caller_that_waits_longer_than_it_must_bar_nobody(self) -> None:
        """It was stopped for as long as the last of its 3,000 turns took to come, and sends all at once."""
        refusals = Refusals()
        waits_ms = [refusals.wait_ms("uid 1", 0, 0) for _ in range(3_000)]
        for _ in range(3_000):
            refusals.wait_ms("uid 1", max(waits_ms) * 1_000_000, 0)
            assert refusals.bar_s("uid 1", max(waits_ms) * 1_000_000) is None

    def test_of_a_long_request_or_batch_that_waits_bar_nobody(self) -> None:
        """Eight mebibytes take 16 s of turns; a batch of 64 questions is 64 requests that come at once."""
        refusals, at_ns = Refusals(), 0
        for _ in range(5):
            at_ns += refusals.wait_ms("uid 1", at_ns, 0, 8 * 2**20) * 1_000_000
            assert refusals.bar_s("uid 1", at_ns) is None
        for _ in range(50):
            waits_ms = [refusals.wait_ms("uid 2", at_ns, 0, 1_000, parts=64) for _ in range(64)]
            assert refusals.bar_s("uid 2", at_ns) is None
            at_ns += max(waits_ms) * 1_000_000

    @settings(max_examples=60)
    @given(
        st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 2_000)), min_size=1, max_size=60),
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20_000)), min_size=1, max_size=40),
    )
    def test_of_a_client_that_waits_for_each_of_its_requests_bar_nobody(
        self, requests: list[tuple[int, int]], answers: list[tuple[int, int]]
    ) -> None:
        """Each request has a length and a time when it is sent first.

        Of the answers one in four is a decision, after which the client asks anew. The others are `busy` with
        a least time; the client takes as long to come back, and a while longer.
        """
        refusals, answer = Refusals(), itertools.cycle(answers)
        due = [(at_ms * 1_000_000, size_bytes) for size_bytes, at_ms in requests]
        heapq.heapify(due)
        for _ in range(600):
            at_ns, size_bytes = heapq.heappop(due)
            kind, more_ms = next(answer)
            if kind:
                wait_ms = refusals.wait_ms("uid 1", at_ns, more_ms if kind == 1 else 0, size_bytes)
                assert refusals.bar_s("uid 1", at_ns) is None
                at_ns += wait_ms * 1_000_000
            heapq.heappush(due, (at_ns + more_ms * 1_000, size_bytes))

    def test_that_come_while_a_caller_is_barred_get_the_rest_of_that_time_and_turns_after_it(self) -> None:
        refusals = Refusals()
        self.send(refusals, 3_000, 0, 900)
        left_ms = refusals.barred_ms("uid 1", SECOND_NS)
        assert 9_000 < left_ms < 10_000
        waits_ms = [refusals.wait_ms("uid 1", SECOND_NS, left_ms) for _ in range(100_000)]
        assert waits_ms[0] >= left_ms
        assert [wait_ms - waits_ms[0] for wait_ms in waits_ms[:3]] == [0, 2, 4]
        assert max(waits_ms) <= left_ms + 10_000, "a flood does not make its caller wait for ever"
        assert refusals.bar_s("uid 1", SECOND_NS) is None

    def test_bar_until_a_moment_and_from_that_moment_on_no_longer(self) -> None:
        refusals = Refusals()
        self.send(refusals, 3_000, 0, 900)
        end_ns = SECOND_NS
        while refusals.barred_ms("uid 1", end_ns):
            end_ns += refusals.barred_ms("uid 1", end_ns) * 1_000_000 - 999_999
        assert refusals.barred_ms("uid 1", end_ns - 1) == 1
        assert refusals.wait_ms("uid 1", end_ns, 0) == 0
        assert refusals.bar_s("uid 1", end_ns) is None

    def test_bar_for_no_longer_than_320_s_however_often(self) -> None:
        """After 1,020 bars, nearly four days, a power of two was no number that a float can hold."""
        refusals, at_ms, barred = Refusals(), 0, []
        for _ in range(1_200):
            barred += self.send(refusals, 3_000, at_ms, 100 if barred else 900)
            at_ms += int(barred[-1] * 1e3) + 1_000
        assert barred[:7] == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 320.0]
        assert set(barred[6:]) == {320.0}

    def test_are_forgotten_ten_minutes_after_the_bar_not_after_its_beginning(self) -> None:
        refusals, at_ms, barred = Refusals(), 0, []
        for _ in range(6):
            barred += self.send(refusals, 3_000, at_ms, 900)
            at_ms += int(barred[-1] * 1e3) + 1_000
        at_ms += 590_000  # nearly ten minutes after the last of them
        assert self.send(refusals, 3_000, at_ms, 900) == [320.0]
        assert self.send(refusals, 3_000, at_ms + 925_000, 900) == [10.0]

    def test_of_many_other_names_do_not_make_the_daemon_forget_a_bar(self) -> None:
        """A relay, or whoever has many keys, could so begin anew each time."""
        refusals = Refusals()
        assert self.send(refusals, 3_000, 0, 900) == [10.0]
        for number in range(10_000):
            refusals.wait_ms(f"key {number}", SECOND_NS, 0)
        assert refusals.barred_ms("uid 1", SECOND_NS) > 0
        assert self.send(refusals, 3_000, 12_000, 100) == [20.0]
        assert len(refusals._accounts) + len(refusals._barred) <= 2 * 4_096

    def test_of_many_barred_callers_are_bounded_and_the_bar_that_ends_last_stays(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shares, "_ACCOUNTS", 20)
        refusals = Refusals()
        self.send(refusals, 3_000, 0, 900)
        self.send(refusals, 3_000, 12_000, 100)
        for number in range(30):
            refusals.wait_ms(f"key {number}", 13 * SECOND_NS, 0)
            for _ in range(510):
                refusals.wait_ms(f"key {number}", 14 * SECOND_NS, 0)
            assert refusals.bar_s(f"key {number}", 14 * SECOND_NS) == 10.0
        assert len(refusals._barred) == 20
        assert refusals.barred_ms("uid 1", 15 * SECOND_NS) > 0


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
