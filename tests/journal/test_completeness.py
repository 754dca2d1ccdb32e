"""Completeness: a trace without what its type requires counts nowhere until records complete it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.build import (
    CALLER,
    EXPLAINED,
    NOON,
    PACK,
    by_model,
    by_rule,
    erasing,
    record,
    rows,
    sent,
    undo_migrations,
    writing,
)
from thor_policy.core import records
from thor_policy.core.decisions import Decision, Floor, Governing, Traits
from thor_policy.core.traces import REQUIREMENTS
from thor_policy.journal import events, statistics
from thor_policy.journal.events import Event
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.maintenance.rebuild import rebuild, rebuild_in_place
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def requiring(*names: str, decision_type: str = "exception", **changes: Any) -> Decision:
    """A decision by rule whose pack requires these of its type."""
    floor = Floor(outcome="deny", final=True, traits=Traits(type=decision_type, required=names))
    return by_rule(floor=floor, **changes)


def reported(record_id: str, *required: str, **members: Any) -> Event:
    """A decision of a person, under a pack that requires these of its type."""
    report = records.DecisionReport(outcome="approve", made_by="human", **members)
    governing = Governing(pack=PACK, required=required)
    return events.record_event(report, record_id=record_id, at=NOON, caller=CALLER, governing=governing)


def lacks(path: Path, decision_id: str) -> list[str]:
    with Reader(path) as reader:
        decision = reader.get(decision_id)
    assert decision is not None
    return decision["lacks"] or []


def counted(path: Path) -> int:
    with Reader(path) as reader:
        return int(statistics.statistics(reader)["decisions"])


def completing(decision_id: str, other: str = "") -> dict[str, Sequence[Event]]:
    """For each requirement that a record adds: records that do not add it, and then one that does.

    `other` is another recorded decision.
    """
    return {
        "approved_by": (
            sent(records.Approval(decision_id=decision_id, approver="kim", verdict="rejected")),
            sent(records.Approval(decision_id=decision_id, approver="kim")),
        ),
        "source_data": (sent(records.Consultation(system="crm", decision_id=decision_id)),),
        "outcome": (
            sent(records.Outcome(decision_id=decision_id, status="PENDING")),
            replace(
                sent(records.Outcome(decision_id=decision_id, status="SUCCESS")),
                body={"id": "o", "caller": {"transport": "ipc"}, "status": "SUCCESS", "claimed": True},
            ),
            sent(records.Outcome(decision_id=decision_id, status="FAILURE")),
        ),
        "review": (
            sent(records.Assignment(decision_id=decision_id, reviewer="kim", type="assign")),
            sent(records.Review(decision_id=decision_id, reviewer="kim", verdict="accept")),
        ),
        "edge:CITES": (
            sent(records.Edge(source=other, target=decision_id, type="CITES")),
            sent(records.Edge(source=decision_id, target=other, type="TRIGGERED_BY")),
            sent(records.Edge(source=decision_id, target=other, type="CITES")),
        ),
    }


def test_a_trace_without_an_approver_is_held_and_counts_once_it_is_approved(path: Path) -> None:
    held = requiring("approved_by")
    record(path, by_model(), held)
    assert (lacks(path, held.id), counted(path)) == (["approved_by"], 1)
    with Reader(path) as reader:
        assert statistics.quarantined(reader) == 1
        assert [row["decision_id"] for row in reader.quarantined()] == [held.id]
        assert held.id not in reader.past()
        assert held.id not in [row["decision_id"] for row in reader.decisions(counted=True)]
        assert held.id in [row["decision_id"] for row in reader.decisions()]
    record(path, sent(records.Approval(decision_id=held.id, approver="kim")))
    assert (lacks(path, held.id), counted(path)) == ([], 2)
    with Reader(path) as reader:
        assert (statistics.quarantined(reader), reader.quarantined()) == (0, [])
        assert held.id in reader.past()
    assert verify(path).ok


@pytest.mark.parametrize("name", completing(""))
def test_a_record_of_its_own_completes_a_trace(path: Path, name: str) -> None:
    held, other = requiring(name), by_rule()
    *others, last = completing(held.id, other.id)[name]
    record(path, other, held, *others)
    assert lacks(path, held.id) == [name]
    record(path, last)
    assert lacks(path, held.id) == []
    assert verify(path).problem is None


@pytest.mark.parametrize("name", completing(""))
def test_a_trace_is_complete_in_the_transaction_that_records_everything_at_once(
    path: Path, name: str
) -> None:
    held, other = requiring(name), by_rule()
    record(path, other, held, completing(held.id, other.id)[name][-1])
    assert lacks(path, held.id) == []


def test_every_requirement_is_held_until_it_is_there(path: Path) -> None:
    """A report that states nothing lacks everything that nobody else adds."""
    record(path, reported("d", *REQUIREMENTS))
    assert set(lacks(path, "d")) == set(REQUIREMENTS) - {"actor", "policy_version"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("entity", "quote:7"),
        ("reasoning", "The customer waits."),
        ("confidence", 0.5),
        ("confidence_level", "high"),
        ("risk", "low"),
        ("session", "s1"),
        ("timestamp_decision", "2026-05-13T10:00:00Z"),
    ],
)
def test_a_member_completes_a_trace_in_the_report_or_in_a_supplement(
    path: Path, name: str, value: Any
) -> None:
    record(path, reported("whole", name, **{name: value}), reported("d", name))
    assert (lacks(path, "whole"), lacks(path, "d")) == ([], [name])
    record(path, sent(records.Supplement(decision_id="d", values={name: value})))
    assert lacks(path, "d") == []
    with Reader(path) as reader:
        assert reader.trace("d")["supplements"][0]["supplied"] == {name: value}
    assert verify(path).problem is None


def test_a_supplement_that_is_a_claim_completes_nothing(path: Path) -> None:
    record(path, reported("d", "risk"))
    claim = events.record_event(
        records.Supplement(decision_id="d", values={"risk": "low"}),
        record_id="s",
        at=NOON,
        caller=CALLER,
        claimed="yes",
    )
    record(path, claim)
    assert lacks(path, "d") == ["risk"]


def test_data_that_a_session_consulted_before_its_decision_is_source_data(path: Path) -> None:
    record(path, sent(records.Consultation(system="crm", session="s1")))
    record(path, reported("d", "source_data", session="s1"), reported("e", "source_data", session="s2"))
    assert (lacks(path, "d"), lacks(path, "e")) == ([], ["source_data"])
    record(path, sent(records.Consultation(system="crm", session="s2")))
    assert lacks(path, "e") == []


def test_a_reason_that_the_model_writes_later_completes_a_trace(path: Path) -> None:
    floor = Floor(outcome="allow", final=False, traits=Traits(required=("reasoning",)))
    decision = by_model(floor=floor)
    record(path, decision)
    assert lacks(path, decision.id) == ["reasoning"]
    record(path, events.explanation_event(decision.id, EXPLAINED, NOON))
    assert lacks(path, decision.id) == []


def test_a_trace_names_everything_that_it_lacks_in_the_order_of_the_pack(path: Path) -> None:
    held = requiring("outcome", "approved_by", "source_data", "entity")
    record(path, held)
    assert lacks(path, held.id) == ["outcome", "approved_by", "source_data"]
    record(path, sent(records.Approval(decision_id=held.id, approver="kim")))
    assert lacks(path, held.id) == ["outcome", "source_data"]


def test_an_erasure_puts_no_trace_into_quarantine(path: Path) -> None:
    record(path, reported("d", "reasoning", reasoning="So."))
    record(path, erasing(path, 1))
    assert lacks(path, "d") == []
    assert verify(path).problem is None


def test_an_erasure_takes_no_trace_out_of_quarantine(path: Path) -> None:
    held = requiring("approved_by", "source_data")
    record(path, held, sent(records.Approval(decision_id=held.id, approver="alice")))
    with Journal(path) as journal:
        assert erase(journal, "user:alice").left == ()
    assert lacks(path, held.id) == ["source_data"]
    assert verify(path).problem is None


def test_a_rebuild_gives_the_same_quarantine(path: Path, tmp_path: Path) -> None:
    first, second, third = requiring("approved_by"), requiring("outcome", "review"), requiring("edge:CITES")
    record(path, first, second, third)
    record(path, sent(records.Approval(decision_id=first.id, approver="kim")))
    record(path, sent(records.Outcome(decision_id=second.id, status="SUCCESS")))
    with Journal(path) as journal:
        archive_before(journal, events.timestamp(NOON + 1))
    stored = rows(path, "SELECT decision_id, required, lacks FROM decisions ORDER BY seq")
    assert [lacking for *_, lacking in stored] == [None, '["review"]', '["edge:CITES"]']
    rebuild(path, tmp_path / "new" / "journal.db")
    assert (
        rows(tmp_path / "new" / "journal.db", "SELECT decision_id, required, lacks FROM decisions") == stored
    )
    with writing(path) as db:
        db.execute("UPDATE decisions SET lacks = NULL")
    assert not verify(path).ok
    with Journal(path) as journal:
        rebuild_in_place(journal)
    assert rows(path, "SELECT decision_id, required, lacks FROM decisions ORDER BY seq") == stored
    assert verify(path).ok


@pytest.mark.parametrize("text", ["NULL", "'[]'", "'[\"review\"]'", "'no json'", "7"])
def test_a_changed_column_of_what_a_trace_lacks_or_requires_is_found(path: Path, text: str) -> None:
    for column in ("lacks", "required"):
        copy = path.with_name(f"{column}.db")
        record(copy, requiring("approved_by"))
        with writing(copy) as db:
            db.execute(f"UPDATE decisions SET {column} = {text}")
        assert (verify(copy).bad_seq, verify(copy).projections_ok) == (1, False)


def test_an_unknown_requirement_of_a_later_version_holds_a_trace(path: Path) -> None:
    held = requiring("signed_by_the_moon", "edge:x'y")
    record(path, held)
    assert lacks(path, held.id) == ["signed_by_the_moon", "edge:x'y"]


def test_pages_of_the_quarantine_are_newest_first(path: Path) -> None:
    held = [requiring("outcome") for _ in range(5)]
    record(path, *held)
    with Reader(path) as reader:
        first = reader.quarantined(2)
        second = reader.quarantined(2, before=first[-1]["decision_id"])
    assert [row["decision_id"] for row in (*first, *second)] == [each.id for each in held[:0:-1]]


@pytest.mark.parametrize(
    ("members", "columns"),
    [
        ({}, (None, None, None, None)),
        ({"urgency": "urgent", "judgment_call": True}, (None, None, "urgent", 1)),
        (
            {
                "timestamp_decision": "2026-05-13T12:00:00+02:00",
                "confidence_level": "low",
                "judgment_call": False,
            },
            ("2026-05-13T10:00:00.000000Z", "low", None, None),
        ),
    ],
)
def test_a_report_states_when_and_how_surely_it_was_made(
    path: Path, members: dict[str, Any], columns: tuple[Any, ...]
) -> None:
    record(path, reported("d", **members))
    stored = rows(path, "SELECT timestamp_decision, confidence_level, urgency, judgment_call FROM decisions")
    assert stored == [columns]
    assert rows(path, "SELECT actor, prompt_version FROM decisions") == [
        ("human:uid:1000", "core@1.2.0+c0ffee000000")
    ]


@pytest.mark.parametrize(
    ("stated", "level", "judgment_call"),
    [
        (None, None, 1),
        (None, "low", 1),
        (None, "medium", 1),
        (None, "high", None),
        (True, "high", 1),
        (False, None, None),
    ],
)
def test_a_decision_of_the_model_is_a_judgment_call_unless_it_is_sure_or_the_pack_says_so(
    path: Path, stated: bool | None, level: Any, judgment_call: int | None
) -> None:
    floor = Floor(outcome="allow", final=False, traits=Traits(judgment_call=stated))
    record(path, by_model(floor=floor, confidence_level=level))
    assert rows(path, "SELECT judgment_call, confidence_level FROM decisions") == [(judgment_call, level)]


def test_a_decision_by_rule_is_no_judgment_call(path: Path) -> None:
    record(path, by_rule())
    assert rows(path, "SELECT judgment_call FROM decisions") == [(None,)]


def test_decisions_are_listed_by_their_traits(path: Path) -> None:
    floor = Floor(
        outcome="deny", final=True, traits=Traits(type="exception", is_exception=True, urgency="urgent")
    )
    special, plain = by_rule(floor=floor), by_rule()
    sure, unsure = by_model(confidence_level="high"), by_model()
    record(path, unsure, special, plain, sure)
    with Reader(path) as reader:

        def ids(**filters: Any) -> list[str]:
            return [row["decision_id"] for row in reader.decisions(**filters)]

        assert ids(exception=True) == ids(urgency="urgent") == ids(type="exception") == [special.id]
        assert ids(urgency="normal") == [sure.id, plain.id, unsure.id]
        assert ids(confidence_level="high") == [sure.id]
        assert ids(judgment_call=True) == [unsure.id]


def test_a_journal_of_the_version_before_gets_the_columns(path: Path) -> None:
    record(path, by_rule(), sent(records.DecisionReport(agent="trader", outcome="BUY"), record_id="d"))
    undo_migrations(path, "0012_completeness")
    Journal(path).close()
    assert verify(path).ok
    assert counted(path) == 2
    record(path, requiring("outcome"))
    assert counted(path) == 2


def test_the_quarantine_is_read_by_an_index(path: Path) -> None:
    record(path, by_rule())
    (plan,) = rows(
        path, "EXPLAIN QUERY PLAN SELECT * FROM decisions WHERE lacks IS NOT NULL ORDER BY seq DESC LIMIT 20"
    )
    assert "decisions_lacks" in plan[3]
