"""The reader: one decision with its records, pages by filter, and statistics."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.build import (
    ASKED,
    EXPLAINED,
    NOON,
    WAIT_S,
    Fates,
    by_model,
    by_rule,
    erasing,
    fallback,
    note,
    record,
    rows,
    sent,
    writing,
)
from tests.tasks import KIM, cancelled, given, lift, liftable, requested
from thor_policy.cli.main import cli
from thor_policy.core import records
from thor_policy.core.decisions import Timings
from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Action, Annotations, Entity, Evaluation
from thor_policy.journal import events, statistics
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal

HOUR = 3_600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight decisions, an hour apart from noon on, with outcomes and reviews. Tests must only read it."""
    path = tmp_path_factory.mktemp("library") / "journal.db"
    bob = Entity(type="user", id="bob")
    by_bob = Evaluation(subject=bob, action=Action(name="read"), resource=Entity(type="doc", id="guide"))
    signal = records.DecisionReport(
        agent="trader",
        outcome="buy",
        type="signal",
        entity="ACME",
        session="s1",
        model="gpt",
        confidence=0.96,
        risk="low",
        latency_ms=300.0,
        input_tokens=10,
        output_tokens=2,
    )
    other = records.DecisionReport(agent="trader", outcome="sell", type="signal", entity="ACME", session="s2")
    record(
        path,
        by_model(id="d1", at=NOON, annotations=Annotations(expected=("deny",))),
        by_model(id="d2", at=NOON + HOUR, outcome="allow", allow=True, risk="low", evaluation=by_bob),
        note(),
        by_rule(id="d3", at=NOON + 2 * HOUR, annotations=Annotations(expected=("allow",))),
        fallback(id="d4", at=NOON + 3 * HOUR, risk="critical"),
        by_model(id="d5", at=NOON + 4 * HOUR, annotations=Annotations(expected=("allow",))),
        by_model(id="d6", at=NOON + 5 * HOUR, outcome="allow", allow=True),
        sent(signal, at=NOON + 6 * HOUR, record_id="d7"),
        sent(other, at=NOON + 7 * HOUR, record_id="d8"),
        events.explanation_event("d1", EXPLAINED, NOON + 1),
        sent(records.Consultation(system="crm", decision_id="d7", value={"tier": "gold"}), record_id="c1"),
        sent(records.Approval(decision_id="d7", approver="kim"), record_id="a1"),
        sent(records.Outcome(decision_id="d7", status="PENDING"), record_id="o1"),
        sent(records.Outcome(decision_id="d7", status="SUCCESS", value=12.5), record_id="o2"),
        sent(records.Outcome(decision_id="d8", status="FAILURE", value=-2.5), record_id="o3"),
        sent(records.Outcome(decision_id="d2", status="PENDING"), record_id="o4"),
        sent(records.Review(decision_id="d2", reviewer="kim", verdict="accept"), record_id="r1"),
        sent(
            records.Review(
                decision_id="d6", reviewer="kim", verdict="correct_both", decision="deny", reasoning="no"
            ),
            record_id="r2",
        ),
        sent(
            records.Review(decision_id="d1", reviewer="bo", verdict="correct_reasoning", reasoning="so"),
            record_id="r3",
        ),
    )
    return path


@pytest.fixture
def reader(library: Path) -> Iterator[Reader]:
    with Reader(library) as reader:
        yield reader


def ids(decisions: list[dict[str, Any]]) -> str:
    return " ".join(decision["decision_id"] for decision in decisions)


# ---------------------------------------------------------------- one decision


def test_get_returns_a_decision_with_decoded_json(reader: Reader) -> None:
    shown = reader.get("d3")
    assert shown is not None
    assert (shown["decision"], shown["clauses"], shown["tags"], shown["probabilities"]) == (
        "deny",
        ["R3"],
        [],
        {},
    )
    assert shown["situation"]["subject"]["id"] == "alice"
    assert reader.get("d9") is None


def test_resolve_finds_a_decision_by_the_end_of_its_id(path: Path) -> None:
    record(path, by_model(id="0001-abcdefgh"), by_model(id="0002-abcdefgh"), by_model(id="short"))
    with Reader(path) as reader:
        assert reader.resolve("0001-abcdefgh") == "0001-abcdefgh"
        assert reader.resolve("1-abcdefgh") == "0001-abcdefgh"
        assert reader.resolve("short") == "short"
        with pytest.raises(JournalError, match="several decisions end in 'abcdefgh'; give the whole id"):
            reader.resolve("abcdefgh")
        for nothing in ("hort", "", "1-bcdefgh", "%abcdefgh"):
            with pytest.raises(JournalError, match="there is no decision"):
                reader.resolve(nothing)


def test_a_trace_has_the_decision_and_all_records_about_it(library: Path, reader: Reader) -> None:
    trace = reader.trace("d7")
    assert trace["decision"] == reader.get("d7")
    assert {
        name: [row["id"] for row in trace[name]] for name in trace if name not in ("decision", "event")
    } == {
        "consultations": ["c1"],
        "approval_requests": [],
        "approvals": ["a1"],
        "approval_ends": [],
        "supplements": [],
        "reviews": [],
        "outcomes": ["o1", "o2"],
        "shadows": [],
        "counterfactuals": [],
        "trace_states": [],
        "enrichments": [],
    }
    assert trace["consultations"][0]["answer"] == {"tier": "gold"}
    event = trace["event"]
    assert (event["seq"], event["kind"], event["at"]) == (8, "decision_report", "2026-07-01T18:00:00.000000Z")
    assert (event["body"]["outcome"], event["private"]["agent"]) == ("buy", "trader")
    assert [(event["hash"],)] == rows(library, "SELECT lower(hex(hash)) FROM events WHERE seq = 8")


def test_a_trace_has_the_event_of_the_decision(reader: Reader) -> None:
    event = reader.trace("d1")["event"]
    assert event["body"]["prompt"]["prefix_tokens"] == 1527
    assert event["private"]["evaluation"]["context"] == ASKED.context
    assert [review["verdict"] for review in reader.trace("d1")["reviews"]] == ["correct_reasoning"]


def test_a_trace_of_an_unknown_decision_is_refused(reader: Reader) -> None:
    with pytest.raises(JournalError, match="there is no decision 'd9'"):
        reader.trace("d9")


def test_a_trace_of_an_erased_decision_has_no_private_part(path: Path) -> None:
    record(path, by_model(id="d1"))
    record(path, erasing(path, 1))
    with Reader(path) as reader:
        trace = reader.trace("d1")
    assert (trace["event"]["private"], trace["decision"]["actor"]) == (None, None)
    assert trace["decision"]["decision"] == trace["event"]["body"]["outcome"] == "deny"


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "d8 d7 d6 d5 d4 d3 d2 d1"),
        ({"limit": 2}, "d8 d7"),
        ({"limit": 0}, ""),
        ({"outcome": "allow"}, "d6 d2"),
        ({"outcome": "buy"}, "d7"),
        ({"tier": "rule"}, "d3"),
        ({"tier": "agent"}, "d8 d7"),
        ({"risk": "critical"}, "d4"),
        ({"risk": "low"}, "d7 d2"),
        ({"actor": "user:bob"}, "d2"),
        ({"actor": "bob"}, "d2"),
        ({"actor": "agent:trader"}, "d8 d7"),
        ({"actor": "trader"}, ""),
        ({"actor": "' OR 1 = 1 --"}, ""),
        ({"entity": "ACME"}, "d8 d7"),
        ({"entity": "doc:guide"}, "d2"),
        ({"type": "signal"}, "d8 d7"),
        ({"type": "policy_application"}, "d6 d5 d4 d3 d2 d1"),
        ({"type": "other"}, ""),
        ({"session": "s1"}, "d7"),
        ({"correct": True}, "d2 d1"),
        ({"correct": False}, "d6 d5 d3"),
        ({"reviewed": False}, "d8 d7 d5 d4 d3"),
        ({"reviewed": True}, "d6 d2 d1"),
        ({"status": "SUCCESS"}, "d7"),
        ({"status": "PENDING"}, "d2"),
        ({"since": "2026-07-01T18:00:00Z"}, "d8 d7"),
        ({"since": "2026-07-01T18:00:00.000001Z"}, "d8"),
        ({"since": "2026-07-01T20:00:00+02:00"}, "d8 d7"),
        ({"since": "2026-07-01 18:00"}, "d8 d7"),
        ({"since": "2026-07-02"}, ""),
        ({"until": "2026-07-01T13:00:00Z"}, "d1"),
        ({"until": "2026-07-01T13:00:00.000001Z"}, "d2 d1"),
        ({"since": "2026-07-01T13:00:00Z", "until": "2026-07-01T15:00:00Z"}, "d3 d2"),
        ({"outcome": "deny", "tier": "model", "correct": False}, "d5"),
        ({"type": "signal", "before": "d8"}, "d7"),
        ({"outcome": "deny", "before": "d4"}, "d3 d1"),
        ({"before": "d1"}, ""),
    ],
)
def test_decisions_are_filtered_by_every_option(
    reader: Reader, filters: dict[str, Any], expected: str
) -> None:
    assert ids(reader.decisions(**filters)) == expected


class Explaining(Reader):
    """Gives the plan of a page in place of its rows."""

    def _records(self, sql: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        if "ORDER BY seq DESC" not in sql:
            return super()._records(sql, values)
        return [{"plan": step[3]} for step in self._connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]


def test_a_page_with_a_time_span_reads_only_the_rows_between_its_first_and_its_last(library: Path) -> None:
    with Explaining(library) as reader:
        step, *edges = reader.decisions(outcome="allow", since="2026-01-01", until="2027-01-01", before="d5")
    assert (
        step["plan"] == "SEARCH decisions USING INDEX decisions_decision (decision=? AND rowid>? AND rowid<?)"
    )
    span = "SEARCH decisions USING COVERING INDEX decisions_timestamp (timestamp>? AND timestamp<?)"
    assert [edge["plan"] for edge in edges if "SCALAR" not in edge["plan"]] == [span, span]


@pytest.mark.parametrize(
    "filters",
    [
        {"actor": "alice"},
        {"entity": "ACME"},
        {"outcome": "deny"},
        {"tier": "fallback"},
        {"risk": "critical"},
        {"session": "s1"},
        {"type": "signal"},
        {"reviewed": False},
        {"correct": False},
        {"status": "SUCCESS"},
    ],
    ids=lambda filters: "".join(filters),
)
def test_every_filter_reads_its_page_from_an_index(library: Path, filters: dict[str, Any]) -> None:
    """No row that does not match is read and nothing is sorted: a page is as fast among millions."""
    with Explaining(library) as reader:
        (step,) = reader.decisions(**filters)
    (name,) = filters
    column = {
        "outcome": "decision",
        "risk": "risk_level",
        "type": "decision_type",
        "correct": "decision_correct",
        "status": "outcome_status",
    }.get(name, name)
    assert step["plan"] == f"SEARCH decisions USING INDEX decisions_{column} ({column}=?)"


@pytest.mark.parametrize(
    "filters", [{}, {"tier": "rule"}, {"risk": "low"}, {"type": "policy_application"}], ids=str
)
def test_a_page_of_a_common_value_reads_the_newest_rows(library: Path, filters: dict[str, Any]) -> None:
    """Nothing is sorted, and few rows are skipped. An index of each common value would cost every commit."""
    with Explaining(library) as reader:
        assert [step["plan"] for step in reader.decisions(**filters)] == ["SCAN decisions"]


@pytest.mark.parametrize(
    "filters", [{}, {"reviewed": False}, {"tier": "model"}], ids=["all", "rare", "common"]
)
def test_each_page_continues_where_the_last_one_ended(path: Path, filters: dict[str, Any]) -> None:
    """Also if several decisions have the same time, or later ones have an earlier time."""
    chance = random.Random(5)
    decisions = [by_model(at=NOON + chance.randrange(8) / 4) for _ in range(20)]
    record(path, *decisions)
    with Reader(path) as reader:
        pages = [reader.decisions(limit=3, **filters)]
        while pages[-1] and len(pages) < 20:
            pages.append(reader.decisions(limit=3, before=pages[-1][-1]["decision_id"], **filters))
    assert [len(page) for page in pages] == [3, 3, 3, 3, 3, 3, 2, 0]
    listed = [decision["decision_id"] for page in pages for decision in page]
    assert listed == [decision.id for decision in reversed(decisions)]


def test_a_page_before_an_unknown_decision_is_refused(reader: Reader) -> None:
    with pytest.raises(JournalError, match="before: there is no decision 'd9'"):
        reader.decisions(before="d9")


def test_an_invalid_time_is_refused_by_every_query(reader: Reader) -> None:
    with pytest.raises(JournalError, match="since: 'yesterday' is not an RFC 3339 time such as"):
        reader.decisions(since="yesterday")
    with pytest.raises(JournalError, match="until: '2026-13-01' is not an RFC 3339 time"):
        reader.decisions(until="2026-13-01")
    figures: tuple[Callable[..., Any], ...] = (
        statistics.statistics,
        statistics.latency,
        statistics.confidence,
    )
    for ask in (*figures, statistics.hourly):
        with pytest.raises(JournalError, match="since: '' is not an RFC 3339 time"):
            ask(reader, since="")


def test_unreviewed_and_incorrect_decisions_are_listed(reader: Reader) -> None:
    assert ids(reader.unreviewed()) == "d8 d7 d5 d4 d3"
    assert ids(reader.unreviewed(limit=1)) == "d8"
    assert ids(reader.incorrect()) == "d6 d5 d3"
    assert ids(reader.incorrect(limit=2)) == "d6 d5"


def test_corrections_are_listed_oldest_first(reader: Reader) -> None:
    corrections = reader.corrections()
    assert [
        (correction["decision_id"], correction["reviewer"], correction["verdict"])
        for correction in corrections
    ] == [
        ("d6", "kim", "correct_both"),
        ("d1", "bo", "correct_reasoning"),
    ]
    assert (corrections[0]["review_decision"], corrections[0]["review_reasoning"]) == ("deny", "no")
    assert corrections[0]["situation"]["action"] == {"name": "deploy", "properties": {}}
    assert ids(reader.corrections(limit=1)) == "d6"
    assert ids(reader.corrections(after_seq=corrections[0]["review_seq"])) == "d1"
    assert reader.corrections(after_seq=corrections[1]["review_seq"]) == []


def test_newer_decisions_are_listed_in_order_of_recording(reader: Reader) -> None:
    assert ids(reader.newer_than(0)) == "d1 d2 d3 d4 d5 d6 d7 d8"
    assert ids(reader.newer_than(6, limit=2)) == "d6 d7"
    assert reader.newer_than(reader.newest_seq()) == []
    assert reader.newest_seq() == 19


# ---------------------------------------------------------------- figures


def test_statistics_count_decisions_and_compare_them_with_expectations(reader: Reader) -> None:
    assert statistics.statistics(reader) == {
        "decisions": 8,
        "first": "2026-07-01T12:00:00.000000Z",
        "last": "2026-07-01T19:00:00.000000Z",
        "outcomes": {"deny": 4, "allow": 2, "buy": 1, "sell": 1},
        "tiers": {"model": 4, "agent": 2, "rule": 1, "fallback": 1},
        "risks": {"high": 4, "low": 2, "critical": 1},
        "expected": 5,
        "correct": 2,
        "reviewed": 3,
        "lifted": 0,
        "turned_out": {"SUCCESS": 1, "FAILURE": 1, "PENDING": 1},
        "value": 10.0,
        "score_ms": {"p50": 12.5, "p90": 12.5, "p99": 12.5},
    }


def test_a_lifted_decision_is_counted_but_not_in_accuracy_and_confidence(path: Path) -> None:
    expected = Annotations(expected=("deny",))
    _, allowed = lift(path, annotations=expected, confidence=0.75)
    record(path, sent(records.Review(decision_id=allowed.id, reviewer="kim", verdict="accept")))
    with Reader(path) as reader:
        figures = statistics.statistics(reader)
        assert (figures["decisions"], figures["lifted"], figures["reviewed"]) == (2, 1, 1)
        assert (figures["expected"], figures["correct"]) == (0, 0)
        assert [bucket["decisions"] for bucket in statistics.confidence(reader)] == [1]
        assert [row["expected"] for row in statistics.breakdown(reader, "actor")] == [0]


def test_the_trace_of_a_lifted_decision_has_the_rows_of_its_task(path: Path) -> None:
    denied, allowed = lift(path)
    with Reader(path) as reader:
        for decision in (denied, allowed):
            trace = reader.trace(decision.id)
            assert [row["id"] for row in trace["approval_requests"]] == ["task-1"]
            assert [row["approver"] for row in trace["approvals"]] == ["kim", "lee"]
            assert trace["approval_ends"] == []


def test_log_show_prints_requests_verdicts_and_ends_of_approvals(path: Path) -> None:
    denied = liftable()
    record(path, denied)
    record(path, requested(denied, reason="release 7"), given(KIM, comment="go on"))
    record(path, cancelled(reason="postponed"))
    folder = path.rename(path.with_name("policy_decisions.db")).parent
    printed = CliRunner().invoke(cli, ["log", "show", denied.id, "--state-dir", str(folder)]).output
    for title in ("approval_request", "approval", "approval_end"):
        assert f"\n{title}\n" in printed
    shown = [
        text for text in ("release 7", "go on", "cancelled", "postponed", "lifted_by") if text in printed
    ]
    assert shown == ["release 7", "go on", "cancelled", "postponed"]


def test_statistics_since_a_time(reader: Reader) -> None:
    later = statistics.statistics(reader, since="2026-07-01T15:30:00Z")
    assert (later["decisions"], later["expected"], later["correct"]) == (4, 2, 0)
    assert (later["first"], later["tiers"]) == ("2026-07-01T16:00:00.000000Z", {"model": 2, "agent": 2})
    before = statistics.statistics(reader, since="2026-07-02T00:00:00Z")
    assert (before["decisions"], before["first"], before["score_ms"]) == (0, None, None)


def test_statistics_of_an_empty_journal(path: Path) -> None:
    record(path)
    with Reader(path) as reader:
        nothing = statistics.statistics(reader)
        assert (nothing["decisions"], nothing["first"], nothing["outcomes"]) == (0, None, {})
        assert (nothing["expected"], nothing["correct"], nothing["score_ms"]) == (0, 0, None)
        assert (nothing["turned_out"], nothing["value"], nothing["reviewed"]) == ({}, None, 0)
        assert reader.decisions() == reader.corrections() == []
        assert statistics.hourly(reader) == statistics.latency(reader) == statistics.confidence(reader) == []
        assert [statistics.breakdown(reader, by) for by in statistics.DIMENSIONS] == [[]] * 4
        assert reader.newest_seq() == 0


@pytest.mark.parametrize(
    ("count", "percentiles"),
    [
        (1, {"p50": 1, "p90": 1, "p99": 1}),
        (2, {"p50": 1, "p90": 2, "p99": 2}),
        (100, {"p50": 50, "p90": 90, "p99": 99}),
        (1_000, {"p50": 500, "p90": 900, "p99": 990}),
    ],
)
def test_percentiles_count_only_decisions_of_the_model(
    path: Path, count: int, percentiles: dict[str, float]
) -> None:
    taken_ms = list(range(1, count + 1))
    random.Random(count).shuffle(taken_ms)
    record(
        path,
        *(by_model(timings=Timings(score_ms=float(ms))) for ms in taken_ms),
        *(by_rule() for _ in range(count)),
    )
    with Reader(path) as reader:
        assert statistics.statistics(reader)["score_ms"] == percentiles
        assert statistics.latency(reader) == [{"model": "phi-4-mini", "decisions": count, **percentiles}]


def test_latency_lists_each_model_most_decisions_first(reader: Reader) -> None:
    assert statistics.latency(reader) == [
        {"model": "phi-4-mini", "decisions": 4, "p50": 13.25, "p90": 13.25, "p99": 13.25},
        {"model": "gpt", "decisions": 1, "p50": 300.0, "p90": 300.0, "p99": 300.0},
    ]


def test_a_breakdown_has_a_record_for_each_actor(reader: Reader) -> None:
    breakdown = statistics.breakdown(reader, "actor")
    assert [(record["actor"], record["total"]) for record in breakdown] == [
        ("user:alice", 5),
        ("agent:trader", 2),
        ("user:bob", 1),
    ]
    assert breakdown[1] == {
        "actor": "agent:trader",
        "total": 2,
        "allowed": 0,
        "expected": 0,
        "correct": 0,
        "successful": 1,
        "failed": 1,
        "pending": 0,
        "average_value": 5.0,
        "total_value": 10.0,
        "average_latency_ms": 300.0,
        "input_tokens": 10,
        "output_tokens": 2,
        "average_confidence": 0.96,
        "success_rate": 0.5,
    }
    assert (breakdown[2]["pending"], breakdown[2]["success_rate"], breakdown[2]["correct"]) == (1, None, 1)
    assert (breakdown[0]["expected"], breakdown[0]["correct"], breakdown[0]["allowed"]) == (4, 1, 1)


@pytest.mark.parametrize(
    ("by", "totals"),
    [
        ("model", {"phi-4-mini": 4, "gpt": 1, None: 3}),
        ("pack", {"core@1.2.0+c0ffee000000": 6, None: 2}),
        ("type", {"policy_application": 6, "signal": 2}),
    ],
)
def test_a_breakdown_by_every_dimension(reader: Reader, by: str, totals: dict[str | None, int]) -> None:
    breakdown = statistics.breakdown(reader, by)
    assert {record[by]: record["total"] for record in breakdown} == totals
    assert [record["total"] for record in breakdown] == sorted(totals.values(), reverse=True)
    later = statistics.breakdown(reader, by, since="2026-07-01T18:30:00Z")
    assert sum(record["total"] for record in later) == 1


def test_a_breakdown_has_at_most_so_many_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST_ROWS", 3)
    record(path, *(sent(records.DecisionReport(agent=f"a{n}", outcome="x")) for n in (1, 2, 3, 3, 4, 4, 4)))
    with Reader(path) as reader:
        breakdown = statistics.breakdown(reader, "actor")
    assert [record["total"] for record in breakdown] == [3, 2, 1]


def test_confidence_is_counted_in_buckets(path: Path) -> None:
    """A bucket includes its lower bound and ends before the next."""
    right, wrong = Annotations(expected=("deny",)), Annotations(expected=("allow",))
    record(
        path,
        by_model(confidence=0.0, annotations=right),
        by_model(confidence=0.49, annotations=wrong),
        by_model(confidence=0.5),
        by_model(confidence=0.95, annotations=right),
        by_model(confidence=1.0, annotations=right),
        by_model(confidence=0.9499, annotations=wrong),
        by_rule(),
    )
    with Reader(path) as reader:
        assert statistics.confidence(reader) == [
            {"from": 0.0, "decisions": 2, "judged": 2, "correct": 1, "confidence": 0.245},
            {"from": 0.5, "decisions": 1, "judged": 0, "correct": 0, "confidence": 0.5},
            {"from": 0.9, "decisions": 1, "judged": 1, "correct": 0, "confidence": 0.9499},
            {"from": 0.95, "decisions": 2, "judged": 2, "correct": 2, "confidence": 0.975},
        ]
        assert statistics.confidence(reader, since="2026-07-02") == []


def test_decisions_are_counted_by_hour(path: Path) -> None:
    record(path, *(by_model(at=NOON + offset) for offset in (0, 10, HOUR - 1e-6, HOUR, 30 * HOUR)))
    with Reader(path) as reader:
        assert statistics.hourly(reader) == [("2026-07-01T12", 3), ("2026-07-01T13", 1), ("2026-07-02T18", 1)]
        assert statistics.hourly(reader, since="2026-07-01T12:30:00Z") == [
            ("2026-07-01T12", 1),
            ("2026-07-01T13", 1),
            ("2026-07-02T18", 1),
        ]


# ---------------------------------------------------------------- beside a live writer


def test_a_reader_sees_what_was_committed_since_it_opened(path: Path) -> None:
    fates = Fates()
    with Journal(path, on_committed=fates) as journal, Reader(path) as reader:
        assert statistics.statistics(reader)["decisions"] == 0
        journal.decided(by_model(id="new"))
        fates.wait(1)
        assert reader.get("new") is not None


def test_a_reader_holds_no_transaction_between_calls(path: Path) -> None:
    record(path, by_model(id="d1"))
    with Reader(path) as reader, writing(path) as db:
        db.execute("PRAGMA busy_timeout = 0")
        for ask in (
            lambda: reader.get("d1"),
            lambda: reader.trace("d1"),
            reader.decisions,
            reader.newest_seq,
            lambda: statistics.statistics(reader),
            lambda: statistics.hourly(reader),
        ):
            ask()
            db.execute("UPDATE _sqlite_migrations SET applied_at = applied_at || '.'")
            ((busy, _, _),) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            assert not busy, "a reader holds the log back"


def test_statistics_beside_a_live_writer_read_one_snapshot(path: Path) -> None:
    stop, fates = threading.Event(), Fates()

    def write() -> None:
        while not stop.is_set():
            journal.decided(by_model())
            fates.wait(1)

    with Journal(path, on_committed=fates, synchronous="OFF") as journal:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            with Reader(path) as reader:
                while writer.is_alive() and (figures := statistics.statistics(reader))["decisions"] < 200:
                    for counts in ("outcomes", "tiers", "risks"):
                        assert sum(figures[counts].values()) == figures["decisions"]
        finally:
            stop.set()
            writer.join(WAIT_S)


# ---------------------------------------------------------------- what cannot be read


def test_the_error_for_a_missing_journal_names_the_command_that_creates_one(path: Path) -> None:
    with pytest.raises(JournalError, match=r"no journal at .*journal\.db; `thorpolicy serve` creates one"):
        Reader(path)
    assert not path.exists()


@pytest.mark.parametrize("sql", ["DELETE FROM events", "INSERT INTO gaps VALUES (1, '', '', '')", "VACUUM"])
def test_a_reader_cannot_write(library: Path, sql: str) -> None:
    before = library.read_bytes()
    with Reader(library) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute(sql)
    assert library.read_bytes() == before


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE decisions SET tags = 'not json'",
        "UPDATE decisions SET decision = CAST(x'ff' AS TEXT)",
        "DROP TABLE decisions",
    ],
)
def test_a_file_that_is_no_journal_is_an_error_of_the_reader(path: Path, sql: str) -> None:
    record(path, by_model(id="d1"))
    with Reader(path) as reader:
        with writing(path) as db:
            db.execute(sql)
        for ask in (reader.decisions, lambda: reader.get("d1"), lambda: reader.trace("d1")):
            with pytest.raises(JournalError, match="cannot be read as a journal"):
                ask()


def test_a_trace_without_its_event_is_an_error(path: Path) -> None:
    record(path, by_model(id="d1"))
    with writing(path) as db:
        db.execute("DELETE FROM events")
    with (
        Reader(path) as reader,
        pytest.raises(JournalError, match="event 1 is neither in the database nor in an archive"),
    ):
        reader.trace("d1")


def test_a_journal_whose_path_has_special_characters_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "50% ?mode=rwc#x é" / "journal.db"
    record(path, by_model(id="d1"))
    with Reader(path) as reader:
        assert ids(reader.decisions()) == "d1"
