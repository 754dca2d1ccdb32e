"""The maker of summaries: off the decision's path, page by page, with the template of the pack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.build import NOON, PACK, by_model, by_rule, sent, writing
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.daemon.summary_maker import MOST_POSTPONED, PAGE, REST_S, SummaryMaker
from thor_policy.journal import events
from thor_policy.journal.projections import version_of
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal

SECOND_NS = 10**9


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.db", synchronous="OFF") as journal:
        yield journal


def recorded(journal: Journal, *decisions: object) -> None:
    for decision in decisions:
        journal.commit(events.decision_event(decision)).result(60)  # type: ignore[arg-type]


def summaries_of(journal: Journal, *decisions: object) -> list[str | None]:
    with Reader(journal.path) as reader:
        return [reader.summary(decision.id) for decision in decisions]  # type: ignore[attr-defined]


def test_a_turn_makes_a_page_of_summaries_and_the_next_turn_the_rest(journal: Journal) -> None:
    decisions = [by_rule() for _ in range(PAGE + 3)]
    recorded(journal, *decisions)
    maker = SummaryMaker(journal, per_s=PAGE, now_ns=0)
    assert maker.wait_s(0) == 0
    maker.turn(0)
    assert sum(text is not None for text in summaries_of(journal, *decisions)) == PAGE
    assert maker.wait_s(0) == 1.0
    maker.turn(SECOND_NS)
    assert None not in summaries_of(journal, *decisions)
    maker.turn(2 * SECOND_NS)
    assert maker.wait_s(2 * SECOND_NS) == REST_S
    assert maker.counters == {
        "summaries_made": PAGE + 3,
        "summaries_empty": 0,
        "summaries_overtaken": 0,
        "summaries_failed": 0,
    }


def test_the_template_is_that_of_the_pack_and_the_type(journal: Journal) -> None:
    templates = {(version_of(PACK), "policy_application"): "Ours: {outcome}."}
    decision = by_rule()
    recorded(journal, decision)
    maker = SummaryMaker(
        journal,
        per_s=100,
        template_of=lambda *key: templates.get(key),
        now_ns=0,  # type: ignore[arg-type]
    )
    maker.turn(0)
    (text,) = summaries_of(journal, decision)
    assert text is not None
    assert text.startswith("Ours: deny. ")


def test_a_later_record_is_in_the_summary_after_the_next_turn(journal: Journal) -> None:
    decision = by_rule()
    recorded(journal, decision)
    maker = SummaryMaker(journal, per_s=100, now_ns=0)
    maker.turn(0)
    paid = records.Outcome(decision_id=decision.id, status="SUCCESS", note="paid")
    journal.commit(sent(paid)).result(60)
    assert summaries_of(journal, decision) == [None]
    maker.turn(SECOND_NS)
    (text,) = summaries_of(journal, decision)
    assert "Result: SUCCESS, paid." in (text or "")


def test_nothing_is_made_while_requests_wait_but_for_every_eleventh_turn(journal: Journal) -> None:
    decision = by_rule()
    recorded(journal, decision)
    maker = SummaryMaker(journal, per_s=100, busy=lambda: True, now_ns=0)
    for turn in range(MOST_POSTPONED):
        maker.turn(turn)
        assert summaries_of(journal, decision) == [None]
    maker.turn(MOST_POSTPONED)
    assert summaries_of(journal, decision) != [None]


def test_a_summary_that_cannot_be_made_keeps_no_other_from_being_made(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = by_rule(), by_model()
    recorded(journal, first, second)
    with writing(journal.path) as db:
        db.execute("UPDATE events SET body = 'no json' WHERE seq = 1")
    maker = SummaryMaker(journal, per_s=100, now_ns=0)
    maker.turn(0)
    assert maker.counters["summaries_empty"] == 1
    assert summaries_of(journal, first)[0] is None
    assert summaries_of(journal, second)[0] is not None
    maker.turn(SECOND_NS)
    assert maker.counters["summaries_empty"] == 1
    assert f"the summary of the decision {first.id} could not be made" in caplog.text


def test_a_journal_without_events_is_no_fault(journal: Journal) -> None:
    maker = SummaryMaker(journal, per_s=100, now_ns=0)
    maker.turn(0)
    assert maker.counters["summaries_failed"] == 0


def test_a_closed_journal_is_counted_and_ends_no_thread(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        recorded(journal, by_rule())
    maker = SummaryMaker(journal, per_s=100, now_ns=0)
    maker.turn(0)
    assert maker.counters["summaries_failed"] == 1


def test_none_are_made_with_a_rate_of_zero(journal: Journal) -> None:
    assert SummaryMaker(journal, per_s=0, now_ns=0).wait_s(NOON_NS) is None


NOON_NS = int(NOON) * SECOND_NS


def test_the_setting_has_bounds() -> None:
    assert replace(Config(), summaries_per_s=0).summaries_per_s == 0
