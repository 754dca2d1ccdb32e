"""Timelines: a session in order of recording; a goal breadth first, then in order of recording."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.build import record
from tests.work import TRACE, link, node, recorded_history
from thor_policy.core.errors import JournalError
from thor_policy.journal.reader import Reader
from thor_policy.trace.timeline import Timeline, by_goal, by_session


def shown(timeline: Timeline) -> list[tuple[int, str | None, str]]:
    return [(entry.depth, entry.via, entry.item["id"]) for entry in timeline.entries]


def test_a_session_is_shown_in_order_of_recording_whatever_the_clock_showed(tmp_path: Path) -> None:
    record(
        tmp_path / "j.db",
        node("b", "goal", 5, session="s"),
        node("other", "goal", 5, session="t"),
        node("a", "action", 0, session="s"),
    )
    with Reader(tmp_path / "j.db") as reader:
        assert shown(by_session(reader, "s", limit=9)) == [(0, None, "b"), (0, None, "a")]
        newest = by_session(reader, "s", limit=1)
        assert (shown(newest), newest.cut) == ([(0, None, "a")], True)


def test_a_goal_is_shown_breadth_first_then_in_order_of_recording(tmp_path: Path) -> None:
    with Reader(recorded_history(tmp_path / "j.db")) as reader:
        assert shown(by_goal(reader, "ship", limit=99)) == [
            (0, None, "ship"),
            (1, "leads_to", "fast-path"),
            (1, "rejected", "slow-path"),
            (2, "leads_to", "use-fast"),
            (3, "leads_to", "write"),
            (4, "leads_to", "worked"),
        ]
        docs = by_goal(reader, "docs", limit=99)
        assert [(depth, via, id) for depth, via, id in shown(docs) if via != "RESULTED_IN"] == [
            (0, None, "docs"),
            (1, "leads_to", TRACE),
            (2, "leads_to", "outline"),
            (3, "superseded by", "outline-2"),
        ]
        assert [entry.item["status"] for entry in docs.entries if entry.via == "RESULTED_IN"] == ["pending"]


def test_a_cycle_ends_and_a_limit_is_stated(tmp_path: Path) -> None:
    record(
        tmp_path / "j.db",
        *(node(name, "goal") for name in "abc"),
        *(link(source, "leads_to", target) for source, target in ("ab", "bc", "ca", "ac")),
    )
    with Reader(tmp_path / "j.db") as reader:
        assert shown(by_goal(reader, "a", limit=99)) == [
            (0, None, "a"),
            (1, "leads_to", "b"),
            (1, "leads_to", "c"),
        ]
        assert not by_goal(reader, "a", limit=3).cut
        two = by_goal(reader, "a", limit=2)
        assert (len(two.entries), two.cut) == (2, True)


def test_an_unknown_goal_is_an_error(tmp_path: Path) -> None:
    with (
        Reader(recorded_history(tmp_path / "j.db")) as reader,
        pytest.raises(JournalError, match="no node is recorded under the id 'nobody'"),
    ):
        by_goal(reader, "nobody", limit=9)
