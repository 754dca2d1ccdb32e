"""Leases on decisions: one holder at a time, in any process, and each lease ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.build import NOON, Fates, booted, by_model, decision_row, note, record, rows, sent
from thor_policy.core import records
from thor_policy.core.results import Committed
from thor_policy.journal.events import Event
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.telemetry.clocks import Instant


@pytest.fixture
def path(tmp_path: Path) -> Path:
    record(tmp_path / "journal.db", by_model(id="d1"), by_model(id="d2"))
    return tmp_path / "journal.db"


def lease(reviewer: str, at: float = NOON, **changes: Any) -> Event:
    fields: dict[str, Any] = {"decision_id": "d1", "type": "lease", "seconds": 600} | changes
    return sent(records.Assignment(reviewer=reviewer, **fields), at=at)


def verdict(reviewer: str, at: float = NOON) -> Event:
    return sent(records.Review(decision_id="d1", reviewer=reviewer, verdict="accept"), at=at)


def fates(path: Path, *batches: list[Event], at: Sequence[Callable[[], Instant]] = ()) -> list[str | None]:
    """The errors of events that are recorded in these batches, each in a newly opened journal.

    `at` is the clock of each batch; by default all are recorded at once.
    """
    committed: list[Committed] = []
    for batch, now in zip(batches, at or [booted(0)] * len(batches), strict=True):
        callback = Fates()
        with Journal(path, on_committed=callback, synchronous="OFF", now=now) as journal:
            with callback.one_batch(journal):
                for event in batch:
                    journal.append(event)
            committed += callback.wait(len(batch))
    return [fate.error for fate in committed]


@pytest.mark.parametrize("together", [True, False])
def test_only_one_reviewer_at_a_time_holds_a_lease_on_a_decision(path: Path, together: bool) -> None:
    requests = [lease("kim"), lease("robin"), lease("kim", NOON + 1), lease("robin", decision_id="d2")]
    batches = [requests] if together else [[request] for request in requests]
    assert fates(path, *batches) == [None, "conflict", None, None]
    assert rows(path, "SELECT decision_id, reviewer FROM assignments ORDER BY seq") == [
        ("d1", "kim"),
        ("d1", "kim"),
        ("d2", "robin"),
    ]
    assert verify(path).ok


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    "end", [verdict("kim"), lease("kim", type="release", seconds=None)], ids=["review", "release"]
)
def test_a_review_or_a_release_by_its_holder_ends_a_lease(path: Path, end: Event, together: bool) -> None:
    requests = [lease("kim"), end, lease("robin")]
    assert fates(path, *([requests] if together else [[request] for request in requests])) == [
        None,
        None,
        None,
    ]


def test_a_review_before_a_lease_does_not_end_it(path: Path) -> None:
    assert fates(path, [verdict("kim")], [lease("kim")], [lease("robin")]) == [None, None, "conflict"]


@pytest.mark.parametrize("together", [True, False])
def test_no_other_reviewer_ends_a_lease(path: Path, together: bool) -> None:
    others = [verdict("robin"), lease("robin", type="release", seconds=None), lease("robin")]
    requests = [lease("kim"), *others]
    assert fates(path, *([requests] if together else [[request] for request in requests])) == [
        None,
        None,  # a review by anybody is accepted at any time
        "conflict",
        "conflict",
    ]
    assert decision_row(path, "d1")["reviewed"] == 1


def test_a_lease_ends_after_its_seconds(path: Path) -> None:
    batches = [[lease("kim")], [lease("robin")], [lease("robin")]]
    clocks = [booted(5), booted(604.9), booted(605)]
    assert fates(path, *batches, at=clocks) == [None, "conflict", None]


def test_a_lease_ends_with_the_boot_of_its_machine(path: Path) -> None:
    """Nobody knows how long the machine was off; the clock of the new boot may show more or less."""
    batches = [[lease("kim")], [lease("robin")], [lease("kim")], [lease("robin")]]
    clocks = [booted(50, "a"), booted(51, "b"), booted(40, "c"), booted(41, "c")]
    assert fates(path, *batches, at=clocks) == [None, None, None, "conflict"]


def test_a_lease_whose_event_was_archived_has_ended(path: Path) -> None:
    record(path, lease("kim"), note(), now=booted(5))
    with Journal(path, now=booted(6)) as journal:
        archive_before(journal, "9999-01-01")
    assert fates(path, [lease("robin")], at=[booted(7)]) == [None]


def test_an_assignment_is_not_a_lease_and_may_go_to_anybody(path: Path) -> None:
    given = lease("robin", type="assign", seconds=None)
    assert fates(path, [lease("kim")], [given], [lease("robin")]) == [None, None, "conflict"]


def test_a_refused_lease_is_not_counted_as_lost_and_leaves_the_chain_as_it_was(path: Path) -> None:
    fates = Fates()
    record(path, lease("kim"))
    with Journal(path, on_committed=fates) as journal:
        journal.append(lease("robin"))
        (fate,) = fates.wait(1)
        assert fate.message == "decision_id: another reviewer has this decision; take the next"
        assert (journal.counters["refused"], journal.counters["lost"]) == (1, 0)
    assert verify(path).events == 3
