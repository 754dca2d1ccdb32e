"""The status: what is read while other threads go on."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import cycle

import pytest

from thor_policy.core.status import sum_of


@pytest.fixture
def changing() -> Iterator[Counter[str]]:
    """A counter that another thread counts in, often under a new name."""
    counter, ended = Counter(first=1), threading.Event()

    def count() -> None:
        for number in cycle(range(2_000)):
            counter[f"name {number}"] += 1
            if number == 0:
                if ended.is_set():
                    return
                for name in list(counter)[1:]:
                    del counter[name]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield counter
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(before)


def test_a_sum_of_counters_that_change_is_made(changing: Counter[str]) -> None:
    for _ in range(2_000):
        assert sum_of(Counter(first=1), changing)["first"] == 2


def test_equal_names_are_added_and_zeros_are_left_out() -> None:
    assert sum_of(Counter(a=1, b=0), Counter(a=2, c=4)) == {"a": 3, "c": 4}
    assert list(sum_of(Counter(b=0))) == []


def test_what_is_summed_stays_as_it_was() -> None:
    part = Counter(a=1)
    sum_of(part, Counter(a=2))
    assert part == {"a": 1}
