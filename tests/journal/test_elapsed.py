"""Which events are young, in one boot and over several."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.journal.elapsed import first_within
from thor_policy.telemetry.clocks import Instant

#: Seconds that a test asks about.
WINDOW_S = 100


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, boot_id TEXT, mono_ns INTEGER)")
        yield connection


def first_young(
    connection: sqlite3.Connection, times: list[tuple[str, int]], now: tuple[str, int], *, lowest: int = 1
) -> int:
    """The first young event of those recorded at `times`: boots, and seconds since them."""
    connection.execute("DELETE FROM events")
    rows = [(seq, boot, seconds * 10**9) for seq, (boot, seconds) in enumerate(times, lowest)]
    connection.executemany("INSERT INTO events VALUES (?, ?, ?)", rows)
    return first_within(connection, WINDOW_S, Instant(now[0], now[1] * 10**9))


@pytest.mark.parametrize(
    ("times", "now", "expected"),
    [
        ([], ("a", 5), 1),
        ([("a", 5)], ("a", 5), 1),
        ([("a", 5)], ("a", 104), 1),
        ([("a", 5)], ("a", 105), 2),
        ([("a", 5), ("a", 6), ("a", 7)], ("a", 106), 3),
        # the machine was off: only the seconds of each boot count
        ([("a", 5), ("a", 6)], ("b", 10_000), 1),
        ([("a", 5), ("a", 6), ("b", 10)], ("b", 108), 1),
        ([("a", 5), ("a", 6), ("b", 10)], ("b", 109), 2),
        ([("a", 5), ("a", 6), ("b", 10)], ("b", 110), 4),
        ([("a", 5), ("a", 65), ("b", 1), ("b", 21), ("c", 9)], ("c", 28), 1),
        ([("a", 5), ("a", 65), ("b", 1), ("b", 21), ("c", 9)], ("c", 29), 2),
        ([("a", 5), ("a", 65), ("b", 1), ("b", 21), ("c", 9)], ("c", 88), 2),
        ([("a", 5), ("a", 65), ("b", 1), ("b", 21), ("c", 9)], ("c", 89), 4),
        # a clock that went back, as in a container with a clock of its own, makes nothing old
        ([("a", 500)], ("a", 5), 1),
    ],
)
def test_an_event_is_old_when_so_many_seconds_have_surely_passed(
    connection: sqlite3.Connection, times: list[tuple[str, int]], now: tuple[str, int], expected: int
) -> None:
    assert first_young(connection, times, now) == expected


def test_only_events_of_the_database_are_read(connection: sqlite3.Connection) -> None:
    assert first_young(connection, [("a", 5), ("a", 6)], ("a", 7), lowest=1_000) == 1_000


def test_a_file_that_lacks_an_event_makes_nothing_old_that_is_young(connection: sqlite3.Connection) -> None:
    first_young(connection, [("a", second) for second in range(50)], ("a", 0))
    connection.execute("DELETE FROM events WHERE seq = 20")
    assert first_within(connection, WINDOW_S, Instant("a", 60 * 10**9)) == 1


@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(1, 60), min_size=1, max_size=9)), max_size=6),
    st.integers(0, 200),
    st.booleans(),
)
def test_the_answer_is_that_of_adding_up_the_seconds_between_events(
    connection: sqlite3.Connection, boots: list[tuple[int, list[int]]], later_s: int, rebooted: bool
) -> None:
    times, seconds = [], 0
    for number, (start, steps) in enumerate(boots):
        seconds = start
        for step in steps:
            seconds += step
            times.append((f"boot {number}", seconds))
    boot = "the next boot" if rebooted or not times else times[-1][0]
    elapsed, young = 0, len(times) + 1
    for seq in range(len(times), 0, -1):
        after = times[seq] if seq < len(times) else (boot, seconds + later_s)
        elapsed += after[1] - times[seq - 1][1] if after[0] == times[seq - 1][0] else 0
        young = seq if elapsed < WINDOW_S else young
    assert [name for name, _ in groupby(boot for boot, _ in times)] == [
        f"boot {n}" for n in range(len(boots))
    ]
    assert first_young(connection, times, (boot, seconds + later_s)) == young


def test_many_events_take_few_look_ups() -> None:
    """A binary search: the events of a boot are not read one by one."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, boot_id TEXT, mono_ns INTEGER)")
        connection.execute(
            "INSERT INTO events WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000) "
            "SELECT i, i / 60000, i * 1000000000 FROM n"
        )
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        assert first_within(connection, 86_400, Instant("1", 100_000 * 10**9)) == 13_600
        assert len(statements) < 200
