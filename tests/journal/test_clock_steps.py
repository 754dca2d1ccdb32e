"""The journal under a wall clock that steps: order by seq, elapsed time by the clock of the boot (K33)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.build import NOON, Fates, by_model, fallback, record, rows, sent
from thor_policy.core import records
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Annotations
from thor_policy.core.results import PriorRecord
from thor_policy.journal import statistics
from thor_policy.journal.events import Event
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal
from thor_policy.review import queue

#: Further than any window of the journal: keys are remembered for 24 hours.
FAR_S = 25 * 3_600.0
#: The wall clock of a machine that has neither a battery for its clock nor a server of time: 1970.
NO_NTP = 40.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def ids(decisions: list[dict[str, Any]]) -> list[str]:
    return [decision["decision_id"] for decision in decisions]


# ---------------------------------------------------------------- order


def before_and_after_a_step_back(path: Path, **changes: Any) -> list[str]:
    """Six decisions; before the fourth the wall clock steps to 1970. Returns their ids, newest first."""
    times = (NOON, NOON + 60, NOON + 120, NO_NTP, NO_NTP + 60, NO_NTP + 120)
    record(path, *(by_model(id=f"d{number}", at=at, **changes) for number, at in enumerate(times)))
    return ["d5", "d4", "d3", "d2", "d1", "d0"]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"outcome": "deny"},
        {"actor": "alice"},
        {"entity": "env:production"},
        {"tier": "model"},
        {"reviewed": False},
        {"since": "1970-01-01T00:00:00Z"},
        {"until": "2026-07-02T00:00:00Z"},
        {"outcome": "deny", "since": "1970-01-01T00:00:00Z", "until": "2026-07-02T00:00:00Z"},
    ],
    ids=lambda filters: "_".join(filters) or "all",
)
def test_the_newest_decision_is_listed_first_after_the_wall_clock_stepped_back(
    path: Path, filters: dict[str, Any]
) -> None:
    newest_first = before_and_after_a_step_back(path)
    with Reader(path) as reader:
        assert ids(reader.decisions(**filters)) == newest_first


@pytest.mark.parametrize("filters", [{}, {"outcome": "deny"}], ids=["all", "outcome"])
def test_pages_continue_by_seq_over_a_step_of_the_wall_clock(path: Path, filters: dict[str, Any]) -> None:
    newest_first = before_and_after_a_step_back(path)
    with Reader(path) as reader:
        listed = ids(reader.decisions(limit=2, **filters))
        while page := reader.decisions(limit=2, before=listed[-1], **filters):
            listed += ids(page)
    assert listed == newest_first


def test_incorrect_and_rare_decisions_are_listed_newest_first_after_a_step_back(path: Path) -> None:
    newest_first = before_and_after_a_step_back(path, annotations=Annotations(expected=("allow",)))
    with Reader(path) as reader:
        assert ids(reader.incorrect()) == newest_first


def test_fallbacks_are_listed_newest_first_after_a_step_back(path: Path) -> None:
    record(path, fallback(id="d1", at=NOON), fallback(id="d2", at=NO_NTP))
    with Reader(path) as reader:
        assert ids(reader.decisions(tier="fallback")) == ["d2", "d1"]


def test_since_and_until_select_by_the_wall_time_that_was_recorded(path: Path) -> None:
    before_and_after_a_step_back(path)
    with Reader(path) as reader:
        assert ids(reader.decisions(since="2026-07-01T12:01:00Z")) == ["d2", "d1"]
        assert ids(reader.decisions(until="2026-07-01T12:01:00Z")) == ["d5", "d4", "d3", "d0"]
        assert ids(reader.decisions(since="1970-01-01T00:01:40Z", until="2026-07-01T12:02:00Z")) == [
            "d5",
            "d4",
            "d1",
            "d0",
        ]
        assert reader.decisions(since="2026-07-02") == []
        assert reader.decisions(until="1970-01-01") == []


def test_the_first_and_the_last_decision_of_the_statistics_are_those_recorded_first_and_last(
    path: Path,
) -> None:
    before_and_after_a_step_back(path)
    with Reader(path) as reader:
        figures = statistics.statistics(reader)
    assert (figures["first"], figures["last"]) == (
        "2026-07-01T12:00:00.000000Z",
        "1970-01-01T00:02:40.000000Z",
    )


def test_a_queue_for_reviewers_is_newest_first_after_a_step_back(path: Path) -> None:
    newest_first = before_and_after_a_step_back(path)
    with Reader(path) as reader:
        picked = queue.picks(reader, "kim", by="newest")
    assert [pick.decision_id for pick in picked] == newest_first


# ---------------------------------------------------------------- elapsed time


def recalled(journal: Journal, digest: str) -> PriorRecord | RequestError | None:
    """What the journal remembers of a key."""
    answers: list[PriorRecord | RequestError | None] = []
    journal.recall(digest, answers.append)
    journal.run(lambda _: None).result()
    return answers[0]


def keyed(name: str, digest: str, at: float) -> Event:
    return sent(records.Node(type="goal", title=name), record_id=name, at=at, idempotency=f"{digest}-content")


@pytest.mark.parametrize("step_s", [FAR_S, -FAR_S, NO_NTP - NOON], ids=["forward", "back", "to_1970"])
def test_a_key_is_remembered_over_a_step_of_the_wall_clock(path: Path, step_s: float) -> None:
    """The event has the wall time before the step; the journal looks it up after the step."""
    with Journal(path, synchronous="OFF") as journal:
        journal.commit(keyed("n1", "1" * 64, time.time() - step_s)).result()
        prior = recalled(journal, "1" * 64)
    assert isinstance(prior, PriorRecord)
    assert prior.id == "n1"


@pytest.mark.parametrize("decision", [by_model, fallback])
def test_a_decision_with_a_key_is_remembered_over_a_step_forward(path: Path, decision: Any) -> None:
    with Journal(path, synchronous="OFF") as journal:
        journal.decided(decision(id="d1", at=time.time() - FAR_S, idempotency=f"{'1' * 64}-content"))
        prior = recalled(journal, "1" * 64)
    assert isinstance(prior, PriorRecord)
    assert prior.id == "d1"


def test_a_remembered_key_is_not_archived_after_a_step_forward(path: Path) -> None:
    with Journal(path, synchronous="OFF") as journal:
        journal.commit(sent(records.Node(type="goal", title="n"), at=time.time() - 2 * FAR_S)).result()
        journal.commit(keyed("n1", "1" * 64, time.time() - FAR_S)).result()
        journal.commit(sent(records.Node(type="goal", title="n"), at=time.time())).result()
        (segment,) = archive_before(journal, "9999-01-01")
        assert (segment.first_seq, segment.last_seq) == (1, 1)
        assert recalled(journal, "1" * 64) is not None


def lease(reviewer: str, at: float, seconds: int = 600) -> Event:
    return sent(records.Assignment(decision_id="d1", reviewer=reviewer, type="lease", seconds=seconds), at=at)


@pytest.mark.parametrize("step_s", [FAR_S, -FAR_S], ids=["forward", "back"])
def test_a_lease_is_held_over_a_step_of_the_wall_clock(path: Path, step_s: float) -> None:
    fates = Fates()
    with Journal(path, synchronous="OFF", on_committed=fates) as journal:
        for event in (lease("kim", NOON), lease("bo", NOON + step_s)):
            if journal.seq == 0:
                journal.decided(by_model(id="d1", at=NOON))
                fates.wait(1)
            journal.append(event)
            (fate,) = fates.wait(1)
    assert fate.error == "conflict"
    assert rows(path, "SELECT reviewer FROM assignments") == [("kim",)]


def test_a_held_decision_is_not_offered_to_another_reviewer_after_a_step_forward(path: Path) -> None:
    record(path, by_model(id="d1", at=NOON), lease("kim", time.time() - FAR_S))
    with Reader(path) as reader:
        assert queue.picks(reader, "bo", by="newest") == []
        assert [pick.decision_id for pick in queue.picks(reader, "kim", by="newest")] == ["d1"]
