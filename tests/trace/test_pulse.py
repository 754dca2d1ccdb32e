"""The pulse of a made work history equals the one that was counted by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.build import by_rule, record, sent
from tests.work import DAY_S, NOW, TRACE, history, link, node
from thor_policy.core import records
from thor_policy.journal.reader import Reader, Record
from thor_policy.trace import pulse as pulse_module
from thor_policy.trace.pulse import Pulse, pulse


def ids(items: tuple[Record, ...]) -> list[str]:
    return [item["id"] for item in items]


def of(path: Path, *more: object, now: float = NOW, **options: float) -> Pulse:
    record(path, *history(), *more)  # type: ignore[arg-type]
    with Reader(path) as reader:
        return pulse(reader, now=now, **options)


def test_the_pulse_of_a_made_history_equals_a_hand_counted_one(tmp_path: Path) -> None:
    made = of(tmp_path / "j.db")
    assert ids(made.goals) == ["again", "docs", "speed", "ship"]
    assert ids(made.decisions) == ["sure", "guess", TRACE, "use-fast"]
    assert ids(made.uncovered) == ["again", "speed"]  # `sure` is abandoned
    assert ids(made.open) == ["guess", TRACE]  # a pending outcome is none
    assert ids(made.doubtful) == ["guess", "speed"]  # 49 and 30 %, not 50 %
    assert ids(made.stale) == ["speed"]  # `ship` got its outcome six days ago
    assert made.summary == (
        "4 active goals (2 without a decision or action, 1 stale for 7 days), "
        "4 decisions (2 without an outcome), 2 below 50 % confidence"
    )
    assert (made.at, made.cut) == ("2026-07-15T12:00:00.000000Z", False)


@pytest.mark.parametrize(
    ("days", "stale"),
    [(5.9, ["speed", "ship"]), (6, ["speed"]), (14, []), (13.9, ["speed"]), (1.5, ["docs", "speed", "ship"])],
)
def test_a_goal_is_stale_after_the_stated_days(tmp_path: Path, days: float, stale: list[str]) -> None:
    assert ids(of(tmp_path / "j.db", stale_days=days).stale) == stale


def test_each_gap_closes_when_its_missing_part_is_recorded(tmp_path: Path) -> None:
    made = of(
        tmp_path / "j.db",
        node("measure", "action", 14),
        link("is-slow", "requires", "measure", 14),
        sent(records.Outcome(decision_id=TRACE, status="FAILURE")),
        node("wrong", "outcome", 14),
        link("guess", "leads_to", "wrong", 14),
    )
    assert ids(made.uncovered) == ["again"]
    assert ids(made.open) == []
    assert ids(made.stale) == []


def test_what_blocks_or_was_rejected_covers_no_goal(tmp_path: Path) -> None:
    record(
        tmp_path / "j.db",
        *(node(name, "goal") for name in ("g1", "g2")),
        node("o", "option"),
        *(node(name, "action") for name in ("a1", "a2")),
        link("g1", "blocks", "a1"),
        link("g2", "rejected", "o"),
        link("o", "leads_to", "a2"),
    )
    with Reader(tmp_path / "j.db") as reader:
        assert ids(pulse(reader, now=NOW).uncovered) == ["g2", "g1"]


def test_a_decision_that_was_overturned_is_no_longer_open(tmp_path: Path) -> None:
    state = records.TraceState(decision_id=TRACE, status="under_review", because="a doubt")
    assert TRACE in ids(of(tmp_path / "a.db", sent(state)).open)
    better = by_rule(id="018f-better")
    over = records.TraceState(decision_id=TRACE, status="overturned", because="wrong", by=better.id)
    assert TRACE not in ids(of(tmp_path / "b.db", better, sent(over)).open)


def test_more_than_is_looked_at_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "MOST", 3)
    made = of(tmp_path / "j.db")
    assert (ids(made.goals), made.cut) == (["again", "docs", "speed"], True)


def test_an_empty_journal_has_a_pulse(tmp_path: Path) -> None:
    record(tmp_path / "j.db")
    with Reader(tmp_path / "j.db") as reader:
        made = pulse(reader, now=NOW + DAY_S)
    assert made.summary.startswith("0 active goals (0 without a decision or action, 0 stale for 7 days)")


def test_only_the_nearest_parts_of_a_goal_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse_module, "MOST_PARTS", 3)
    names = [f"o{number}" for number in range(3)]
    record(
        tmp_path / "j.db",
        node("far", "goal"),
        node("near", "goal"),
        *(node(name, "option") for name in names),
        node("done", "action"),
        *(link(first, "leads_to", second) for first, second in pairwise(["far", *names, "done"])),
        link("near", "leads_to", "o1"),
    )
    with Reader(tmp_path / "j.db") as reader:
        assert ids(pulse(reader, now=NOW).uncovered) == ["far"]
