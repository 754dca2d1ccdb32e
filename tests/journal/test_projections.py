"""Projections: the rows that each event makes, and that they follow from its stored bytes alone."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import (
    ASKED,
    BREACH,
    CALLER,
    CANARY,
    ENRICHED,
    EXPLAINED,
    MODEL,
    NOON,
    PACK,
    PROMOTION,
    Fates,
    about,
    by_model,
    by_rule,
    canary_events,
    decision_row,
    erasing,
    fallback,
    note,
    on_trial,
    one_of_each,
    record,
    redecided,
    row,
    rows,
    sent,
    signing,
    what_judges,
)
from tests.tasks import cancelled, lift, liftable, requested
from thor_policy.core import records
from thor_policy.core.decisions import (
    Adapter,
    Decision,
    Explanation,
    Floor,
    ModelInfo,
    Obligation,
    PackInfo,
    Scored,
    Tier,
    Timings,
    Trial,
)
from thor_policy.core.requests import Action, Annotations, Caller, Entity, Evaluation, Json, Risk
from thor_policy.journal import canary_queries, events, projections, schema
from thor_policy.journal.events import Event
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.projections import AT, DECISION_COLUMNS, GROUP_OF, GROUPS, TABLES
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.telemetry import clocks

TIME = "2026-07-01T12:00:00.000000Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture(scope="module")
def empty() -> Iterator[sqlite3.Connection]:
    """An empty journal."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        schema.migrate(db)
        yield db


# ---------------------------------------------------------------- the tables

#: The columns by which people and their scripts know a decision; none may be renamed.
PROMISED = (
    "decision_id timestamp situation team_context model_name model_version prompt_version decision "
    "classification risk_level reasoning full_response expected_decision decision_correct "
    "reasoning_coverage reviewed review_decision review_reasoning review_timestamp scenario_id tags"
)


def test_the_table_decisions_has_every_documented_column(empty: sqlite3.Connection) -> None:
    columns = {name for _, name, *_ in empty.execute("PRAGMA table_info(decisions)")}
    assert columns >= set(PROMISED.split())


@pytest.mark.parametrize(
    "column",
    ["timestamp", "reviewed", "decision_correct", "decision_type", "entity", "actor", "decision", "tier"],
)
def test_the_table_decisions_has_the_documented_indexes(empty: sqlite3.Connection, column: str) -> None:
    first = {
        empty.execute(f"PRAGMA index_info({name})").fetchone()[2]
        for _, name, *_ in empty.execute("PRAGMA index_list(decisions)")
    }
    assert column in first


@pytest.mark.parametrize(
    ("table", "column"),
    [(table, "decision_id") for table in ("consultations", "outcomes", "reviews", "approvals")]
    + [
        ("consultations", "session"),
        ("nodes", "id"),
        ("edges", "id"),
        ("edges", "source"),
        ("edges", "target"),
    ],
)
def test_look_ups_by_name_use_an_index(empty: sqlite3.Connection, table: str, column: str) -> None:
    plan = empty.execute(f"EXPLAIN QUERY PLAN SELECT * FROM {table} WHERE {column} = 'x'").fetchall()
    assert "USING INDEX" in plan[0][3]


def test_every_table_is_strict(empty: sqlite3.Connection) -> None:
    tables = {
        name: strict
        for _, name, kind, _, _, strict in empty.execute("PRAGMA table_list").fetchall()
        if kind == "table" and not name.startswith(("sqlite_", "_sqlite_"))
    }
    assert set(tables) == {
        *("events", "private", "erasures", "summaries", "summaries_due", "vectors", "approvals_open"),
        "shipping",
        *TABLES,
    }
    assert set(tables.values()) == {1}


def test_a_row_has_the_columns_of_its_table(empty: sqlite3.Connection) -> None:
    columns = tuple(name for _, name, *_ in empty.execute("PRAGMA table_info(decisions)"))
    assert columns == DECISION_COLUMNS
    assert {name for names in GROUPS.values() for name in names} < set(DECISION_COLUMNS)
    assert set(GROUP_OF.values()) == set(GROUPS)


# ---------------------------------------------------------------- decisions


def test_the_row_of_a_decision_by_the_model(path: Path) -> None:
    decision = by_model(
        annotations=Annotations(scenario_id="s-7", expected=("deny", "require_mfa"), tags=("night", "ci"))
    )
    record(path, decision)
    assert decision_row(path, decision.id) == {
        "seq": 1,
        "decision_id": decision.id,
        "timestamp": TIME,
        "situation": events.encode(ASKED).decode(),
        "team_context": "platform",
        "model_name": "phi-4-mini",
        "model_version": "Q4_K_M+ffffffffffff",
        "prompt_version": "core@1.2.0+c0ffee000000",
        "decision": "deny",
        "classification": None,
        "risk_level": "high",
        "reasoning": None,
        "full_response": None,
        "expected_decision": "deny|require_mfa",
        "decision_correct": 1,
        "reasoning_coverage": None,
        "reviewed": 0,
        "review_decision": None,
        "review_reasoning": None,
        "review_timestamp": None,
        "scenario_id": "s-7",
        "tags": '["night","ci"]',
        "decision_type": "policy_application",
        "actor": "user:alice",
        "action": "deploy",
        "entity": "env:production",
        "session": None,
        "allow": 0,
        "tier": "model",
        "reason_code": None,
        "floor": "allow",
        "label": "deny",
        "confidence": 0.75,
        "probabilities": '{"allow":0.25,"deny":0.75}',
        "clauses": "[]",
        "is_exception": 0,
        "input_tokens": None,
        "output_tokens": None,
        "caller_uid": 1000,
        "queue_ms": 0.5,
        "rules_ms": 0.25,
        "score_ms": 12.5,
        "explain_ms": None,
        "latency_ms": 13.25,
        "outcome_status": None,
        "outcome_value": None,
        "original_id": None,
        "temperature": 1.0,
        "explained_seq": None,
        "reviewed_seq": None,
        "outcome_seq": None,
        "claimed": None,
        "timestamp_decision": None,
        "confidence_level": None,
        "urgency": None,
        "judgment_call": 1,
        "required": None,
        "lacks": None,
        "trace_status": "active",
        "status_seq": None,
        "approval_task": None,
        "lifted": None,
        "canary": None,
        "canary_arm": None,
        "canary_note": None,
    }


def test_a_decision_by_rule_names_its_clauses_and_no_model(path: Path) -> None:
    decision = by_rule()
    record(path, decision)
    shown = decision_row(path, decision.id)
    assert (shown["decision"], shown["tier"], shown["floor"], shown["allow"]) == ("deny", "rule", "deny", 0)
    assert (shown["classification"], shown["reasoning"]) == ("freeze_violation", "the freeze is on")
    assert (shown["clauses"], shown["full_response"]) == ('["R3"]', None)
    for column in ("model_name", "model_version", "label", "confidence", "reason_code"):
        assert shown[column] is None
    assert (shown["probabilities"], shown["score_ms"]) == ("{}", 0.0)


def test_the_row_of_a_decision_with_an_inline_explanation_has_the_reason(path: Path) -> None:
    decision = by_model(explanation=EXPLAINED)
    record(path, decision)
    shown = decision_row(path, decision.id)
    assert (shown["reasoning"], shown["full_response"]) == (EXPLAINED.reasoning, EXPLAINED.text)
    assert (shown["clauses"], shown["explain_ms"], shown["explained_seq"]) == ('["R3","R1"]', 80.5, None)


def test_the_row_of_a_fallback_has_its_reason_code(path: Path) -> None:
    decision = fallback()
    record(path, decision)
    shown = decision_row(path, decision.id)
    assert (shown["decision"], shown["tier"], shown["reason_code"]) == ("deny", "fallback", "engine_failed")
    assert shown["model_name"] is None


def test_the_row_of_a_decision_shows_whether_it_allows(path: Path) -> None:
    decision = by_model(outcome="allow", allow=True)
    record(path, decision)
    shown = decision_row(path, decision.id)
    assert (shown["decision"], shown["allow"]) == ("allow", 1)


@pytest.mark.parametrize(
    ("expected", "shown", "correct"),
    [
        ((), None, None),
        (("deny",), "deny", 1),
        (("allow", "deny"), "allow|deny", 1),
        (("allow",), "allow", 0),
    ],
)
def test_the_row_of_a_decision_shows_whether_it_meets_the_expectation(
    path: Path, expected: tuple[str, ...], shown: str | None, correct: int | None
) -> None:
    decision = by_model(annotations=Annotations(expected=expected))
    record(path, decision)
    stored = decision_row(path, decision.id)
    assert (stored["expected_decision"], stored["decision_correct"]) == (shown, correct)


@pytest.mark.parametrize(
    ("context", "shown"),
    [
        ({}, None),
        ({"team_context": None}, None),
        ({"team_context": "night shift"}, "night shift"),
        ({"team_context": {"on_call": ["bo"]}}, '{"on_call":["bo"]}'),
        ({"team_context": 5}, "5"),
    ],
)
def test_the_team_context_is_text_or_json(path: Path, context: dict[str, Json], shown: str | None) -> None:
    decision = by_model(evaluation=about(**context))
    record(path, decision)
    assert decision_row(path, decision.id)["team_context"] == shown


def test_a_reported_decision_has_a_row_in_decisions(path: Path) -> None:
    reported = records.DecisionReport(
        agent="trader",
        outcome="buy",
        type="signal",
        made_by="committee",
        entity="ACME",
        session="s1",
        model="gpt",
        prompt="what now?",
        response="buy it",
        reasoning="it is cheap",
        context={"price": 7.5},
        confidence=0.5,
        risk="low",
        input_tokens=10,
        output_tokens=2,
        latency_ms=300.0,
        is_exception=True,
        precedents=("p1",),
        tags=("x", "y"),
    )
    record(path, sent(reported, record_id="d1"))
    shown = decision_row(path, "d1")
    filled = {name: value for name, value in shown.items() if value is not None}
    assert filled == {
        "seq": 1,
        "decision_id": "d1",
        "timestamp": TIME,
        "situation": '{"prompt":"what now?","context":{"price":7.5}}',
        "model_name": "gpt",
        "decision": "buy",
        "risk_level": "low",
        "reasoning": "it is cheap",
        "full_response": "buy it",
        "reviewed": 0,
        "tags": '["x","y"]',
        "decision_type": "signal",
        "actor": "committee:trader",
        "entity": "ACME",
        "session": "s1",
        "tier": "committee",
        "confidence": 0.5,
        "probabilities": "{}",
        "clauses": "[]",
        "is_exception": 1,
        "input_tokens": 10,
        "output_tokens": 2,
        "caller_uid": 1000,
        "latency_ms": 300.0,
        "trace_status": "active",
    }


def test_a_report_with_only_required_fields_has_a_row(path: Path) -> None:
    record(path, sent(records.DecisionReport(agent="a", outcome="buy"), record_id="d1"))
    shown = decision_row(path, "d1")
    assert (shown["decision"], shown["actor"], shown["decision_type"]) == (
        "buy",
        "agent:a",
        "policy_application",
    )
    assert (shown["tags"], shown["is_exception"], shown["situation"]) == ("[]", 0, "{}")
    assert verify(path).ok


# ---------------------------------------------------------------- what changes a decision's row


def test_an_explanation_completes_its_decision_and_no_other(path: Path) -> None:
    decision, other = by_model(), by_model()
    record(path, decision, other)
    before, untouched = decision_row(path, decision.id), decision_row(path, other.id)
    record(path, events.explanation_event(decision.id, EXPLAINED, NOON + 1))
    assert decision_row(path, decision.id) == before | {
        "classification": "freeze_violation",
        "clauses": '["R3","R1"]',
        "reasoning": "Nobody deploys on a Friday.",
        "full_response": EXPLAINED.text,
        "explain_ms": 80.5,
        "explained_seq": 3,
    }
    assert decision_row(path, other.id) == untouched
    assert verify(path).ok


def test_the_newest_outcome_counts_and_each_has_its_row(path: Path) -> None:
    decision, other = by_model(), by_model()
    record(path, decision, other)
    before, untouched = decision_row(path, decision.id), decision_row(path, other.id)
    record(
        path,
        sent(records.Outcome(decision_id=decision.id, status="PENDING"), record_id="o1"),
        sent(
            records.Outcome(decision_id=decision.id, status="FAILURE", value=-2, note="sold"), record_id="o2"
        ),
    )
    assert decision_row(path, decision.id) == before | {
        "outcome_status": "FAILURE",
        "outcome_value": -2.0,
        "outcome_seq": 4,
    }
    assert decision_row(path, other.id) == untouched
    assert rows(path, "SELECT * FROM outcomes") == [
        (3, TIME, "o1", decision.id, "PENDING", None, None, 1000, None),
        (4, TIME, "o2", decision.id, "FAILURE", -2.0, "sold", 1000, None),
    ]
    assert verify(path).ok


@pytest.mark.parametrize(
    ("verdict", "correct"),
    [("accept", 1), ("correct_reasoning", 1), ("correct_decision", 0), ("correct_both", 0)],
)
def test_a_review_marks_its_decision_right_or_wrong(path: Path, verdict: Any, correct: int) -> None:
    decision = by_model(annotations=Annotations(expected=("deny",)))
    record(path, decision)
    before = decision_row(path, decision.id)
    review = records.Review(
        decision_id=decision.id, reviewer="kim", verdict=verdict, decision="allow", reasoning="he may"
    )
    record(path, sent(review, at=NOON + 1, record_id="r1"))
    assert decision_row(path, decision.id) == before | {
        "reviewed": 1,
        "review_decision": "allow",
        "review_reasoning": "he may",
        "review_timestamp": "2026-07-01T12:00:01.000000Z",
        "decision_correct": correct,
        "reviewed_seq": 2,
    }
    assert row(path, "reviews") == {
        "seq": 2,
        "timestamp": "2026-07-01T12:00:01.000000Z",
        "id": "r1",
        "decision_id": decision.id,
        "reviewer": "kim",
        "verdict": verdict,
        "decision": "allow",
        "reasoning": "he may",
        "caller_uid": 1000,
        "blind": 0,
        "adjudicates": 0,
        "sampled": 0,
        "withdraws": None,
    }
    assert verify(path).ok


def test_a_withdrawn_review_restores_the_review_before_it(path: Path) -> None:
    decision = by_model(annotations=Annotations(expected=("deny",)))
    record(path, decision)
    before = decision_row(path, decision.id)
    first = records.Review(
        decision_id=decision.id, reviewer="kim", verdict="correct_both", decision="allow", reasoning="he may"
    )
    second = records.Review(decision_id=decision.id, reviewer="robin", verdict="accept", blind=True)
    taken_back = records.Review(
        decision_id=decision.id,
        reviewer="robin",
        verdict="withdrawn",
        withdraws="r2",
        stands="correct_both",
        decision="allow",
    )
    record(path, sent(first, record_id="r1"), sent(second, record_id="r2"), sent(taken_back, at=NOON + 1))
    assert decision_row(path, decision.id) == before | {
        "reviewed": 1,
        "review_decision": "allow",
        "review_reasoning": None,  # text stays where it was written, so that it is erased in one place
        "review_timestamp": "2026-07-01T12:00:01.000000Z",
        "decision_correct": 0,
        "reviewed_seq": 4,
    }
    nothing_stands = records.Review(
        decision_id=decision.id, reviewer="kim", verdict="withdrawn", withdraws="r1", right=True
    )
    record(path, sent(nothing_stands))
    assert decision_row(path, decision.id) == before | {"reviewed_seq": 5}
    assert rows(path, "SELECT verdict, blind, withdraws FROM reviews ORDER BY seq") == [
        ("correct_both", 0, None),
        ("accept", 1, None),
        ("withdrawn", 0, "r2"),
        ("withdrawn", 0, "r1"),
    ]
    assert verify(path).ok


def test_an_assignment_has_its_own_row_and_leaves_the_decision_alone(path: Path) -> None:
    decision = by_model()
    record(path, decision)
    before = decision_row(path, decision.id)
    given = records.Assignment(decision_id=decision.id, reviewer="kim", type="assign", given_by="robin")
    leased = records.Assignment(decision_id=decision.id, reviewer="kim", type="lease", seconds=600)
    record(path, sent(given, record_id="a1"), sent(leased, record_id="a2"))
    assert rows(path, "SELECT * FROM assignments") == [
        (2, TIME, "a1", decision.id, "kim", "assign", "robin", None, 1000),
        (3, TIME, "a2", decision.id, "kim", "lease", None, 600, 1000),
    ]
    assert decision_row(path, decision.id) == before
    assert verify(path).ok


def test_the_newest_review_counts(path: Path) -> None:
    decision = by_model()
    reviews = [
        sent(
            records.Review(decision_id=decision.id, reviewer="kim", verdict="correct_both", decision="allow")
        ),
        sent(records.Review(decision_id=decision.id, reviewer="robin", verdict="accept")),
    ]
    record(path, decision, *reviews)
    shown = decision_row(path, decision.id)
    assert (shown["reviewed_seq"], shown["decision_correct"], shown["review_decision"]) == (3, 1, None)
    assert verify(path).ok


# ---------------------------------------------------------------- rows of their own


def test_the_row_of_a_consultation(path: Path) -> None:
    decision = by_model()
    full = records.Consultation(
        system="crm",
        decision_id=decision.id,
        session="s1",
        entity="ACME",
        query="who is it?",
        value={"tier": "gold", "n": [1, 2.5]},
        relevance=0.75,
        took_ms=3,
        fresh_at="2026-07-01T11:59:00Z",
    )
    record(
        path,
        decision,
        sent(full, record_id="c1"),
        sent(records.Consultation(system="crm", value=False), record_id="c2"),
    )
    assert rows(path, "SELECT * FROM consultations") == [
        (
            *(2, TIME, "c1", decision.id, "s1", "crm", "ACME", "who is it?", '{"tier":"gold","n":[1,2.5]}'),
            *(0.75, 3.0, "2026-07-01T11:59:00Z", 1000),
        ),
        (3, TIME, "c2", None, None, "crm", None, None, "false", None, None, None, 1000),
    ]


def test_the_row_of_an_approval(path: Path) -> None:
    decision = by_model()
    full = records.Approval(
        decision_id=decision.id,
        approver="kim",
        verdict="rejected",
        role="lead",
        channel="mail",
        evidence="see there",
        step=2,
    )
    least = records.Approval(decision_id=decision.id, approver="robin")
    record(path, decision, sent(full, record_id="a1"), sent(least, record_id="a2"))
    assert rows(path, "SELECT * FROM approvals") == [
        (2, TIME, "a1", decision.id, "kim", "lead", "mail", "rejected", 2, "see there", 1000, *[None] * 6),
        (3, TIME, "a2", decision.id, "robin", None, None, "approved", 1, None, 1000, *[None] * 6),
    ]


def test_the_rows_of_a_request_for_approvals_its_verdicts_its_end_and_its_use(path: Path) -> None:
    denied, allowed = lift(path)
    spec = {"pack": PACK, "offer": denied.offer, "who": "uid:1000", "requested_by": "uid:1000"}
    (request,) = rows(
        path, "SELECT id, decision_id, outcome, urgency, reason, caller_uid FROM approval_requests"
    )
    assert request == ("task-1", denied.id, "require_attestation", None, "release 7", 1000)
    ((stored,),) = rows(path, "SELECT spec FROM approval_requests")
    assert msgspec.json.decode(stored) == msgspec.json.decode(msgspec.json.encode(spec))
    verdicts = "SELECT task, decision_id, approver, verdict, step, role, roles, caller_uid FROM approvals"
    assert rows(path, verdicts) == [
        ("task-1", denied.id, "kim", "approved", 1, "manager", '["manager"]', 61002),
        ("task-1", denied.id, "lee", "approved", 2, "security", '["security"]', 61003),
    ]
    row = decision_row(path, allowed.id)
    assert (row["approval_task"], row["lifted"]) == ("task-1", "require_attestation")
    assert rows(path, "SELECT * FROM approvals_open") == []
    other = liftable()
    record(path, other)
    record(path, requested(other, task="task-2"))
    assert rows(path, "SELECT task, caller FROM approvals_open") == [("task-2", "uid:1000")]
    record(path, cancelled(task="task-2", reason="postponed"))
    ends = "SELECT task, decision_id, status, reason, caller_uid FROM approval_ends"
    assert rows(path, ends) == [("task-2", other.id, "cancelled", "postponed", 1000)]
    assert rows(path, "SELECT * FROM approvals_open") == []


def test_the_rows_of_nodes_and_edges(path: Path) -> None:
    node = records.Node(
        type="goal",
        title="ship",
        description="soon",
        status="abandoned",
        confidence=80,
        session="s1",
        metadata={"a": 1},
        agent="coder",
    )
    edge = records.Edge(source="n1", target="n2", type="leads_to", weight=1, rationale="so it is")
    record(
        path,
        sent(node, record_id="n1"),
        sent(records.Node(type="action", title="build"), record_id="n2"),
        sent(edge, record_id="e1"),
    )
    assert rows(path, "SELECT * FROM nodes") == [
        (1, TIME, "n1", "goal", "ship", "soon", "abandoned", 80, "s1", '{"a":1}', 1000, None, None, "coder"),
        (2, TIME, "n2", "action", "build", None, "active", None, None, None, 1000, None, None, None),
    ]
    assert rows(path, "SELECT * FROM edges") == [
        (3, TIME, "e1", "n1", "n2", "leads_to", 1.0, "so it is", 1000, None, None, None),
    ]


def test_the_rows_of_the_daemons_own_events(path: Path) -> None:
    rule = signing(path)
    record(
        path,
        events.model_loaded(MODEL, NOON),
        events.pack_activated(PACK, NOON),
        events.gap_event("lost", NOON, decision=2),
        checkpoints=rule,
    )
    assert rows(path, "SELECT * FROM models") == [
        (1, TIME, "phi-4-mini", "f" * 64, "Q4_K_M", "phi3", 3_800_000_000, MODEL.build, "cpu")
    ]
    assert rows(path, "SELECT * FROM packs") == [(2, TIME, "core", "1.2.0", PACK.sha256)]
    assert rows(path, "SELECT * FROM gaps") == [(3, TIME, "lost", '{"decision":2}')]
    assert rows(path, "SELECT seq, key FROM checkpoints") == [(4, rule.signer.key)]
    assert rows(path, "SELECT subject_id FROM events ORDER BY seq") == [
        (MODEL.sha256,),
        (PACK.sha256,),
        ("gap",),
        (rule.signer.key,),
    ]


def test_the_row_of_a_drift_has_null_for_a_shift_that_is_not_finite(path: Path) -> None:
    fields: dict[str, Any] = {"golden": "X1", "before": "deny", "now": "allow", "pack": PACK, "model": MODEL}
    record(
        path, *(events.drift_event(shift=shift, at=NOON, **fields) for shift in (0.25, math.inf, math.nan))
    )
    same = ("X1", "deny", "allow")
    digests = (PACK.sha256, MODEL.sha256)
    assert rows(path, "SELECT * FROM drifts") == [
        (1, TIME, *same, 0.25, *digests),
        (2, TIME, *same, None, *digests),
        (3, TIME, *same, None, *digests),
    ]


def test_a_shadow_decision_has_its_own_row_and_none_in_decisions(path: Path) -> None:
    record(path, *what_judges())
    assert rows(path, "SELECT count(*) FROM decisions") == [(1,)]
    (served,) = rows(path, "SELECT decision_id FROM decisions")[0]
    columns = "decision_id, served, decision, agrees, tier, reason_code, label, confidence, model_name"
    assert rows(path, f"SELECT {columns} FROM shadows") == [
        (served, "deny", "allow", 0, "model", None, "deny", 0.75, "phi-4-mini+tuned"),
        (served, "deny", "deny", 1, "fallback", "engine_failed", None, None, None),
    ]
    assert rows(path, "SELECT prompt_version FROM shadows") == [("core@1.2.0+c0ffee000000",)] * 2
    assert verify(path).ok


def test_a_shadow_of_an_unknown_decision_is_refused(path: Path) -> None:
    fates = Fates()
    with Journal(path, on_committed=fates) as journal:
        journal.shadowed(by_model(), by_model(), NOON)
        assert fates.wait(1)[0].error == "not_found"
    assert rows(path, "SELECT * FROM shadows") == []


def test_a_counterfactual_has_its_own_row_and_none_in_decisions(path: Path) -> None:
    first, second = by_model(), by_rule(outcome="allow", allow=True)
    record(path, first, second, *events.counterfactual_events(redecided(first, second), NOON))
    tuned = replace(MODEL, adapter=Adapter(name="tuned", sha256="c" * 64, scale=0.5))
    model = ("phi-4-mini+tuned", f"Q4_K_M+{tuned.identity[:12]}", tuned.identity)
    judge = ("core@2+dddddddddddd", "d" * 64, *model)
    result = ("model", None, "allow", "allow", 0.75, '["R1"]', 1.5, 12.5, 13.25)
    assert rows(path, "SELECT * FROM counterfactuals") == [
        (3, TIME, "run-1", first.id, "deny", "allow", "loosened", *judge, *result),
        (4, TIME, "run-1", second.id, "allow", "deny", "tightened", *judge, *result),
    ]
    assert rows(path, "SELECT count(*) FROM decisions") == [(2,)]
    with Reader(path) as reader:
        (shown,) = reader.trace(first.id)["counterfactuals"]
        assert (shown["decision"], shown["clauses"]) == ("allow", ["R1"])
        assert reader.newest_run("d" * 64, tuned.identity, 1.5) == "run-1"
        assert reader.newest_run("d" * 64, tuned.identity, 1.0) is None
        assert reader.newest_run("d" * 64, MODEL.identity, 1.5) is None
        assert [row["decision_id"] for row in reader.counterfactuals("run-1")] == [first.id, second.id]
    assert verify(path).ok


def test_a_model_with_an_adapter_has_another_version_in_every_row(path: Path) -> None:
    half, whole = (
        replace(MODEL, adapter=Adapter(name="tuned", sha256="c" * 64, scale=scale)) for scale in (0.5, 1.0)
    )
    record(path, by_model(), by_model(model=half), by_model(model=whole))
    models = rows(path, "SELECT model_name, model_version FROM decisions ORDER BY seq")
    assert [name for name, _ in models] == ["phi-4-mini", "phi-4-mini+tuned", "phi-4-mini+tuned"]
    assert [version for _, version in models] == [
        f"Q4_K_M+{model.identity[:12]}" for model in (MODEL, half, whole)
    ]
    assert len({version for _, version in models}) == 3


def test_the_row_of_an_activated_adapter(path: Path) -> None:
    record(path, *what_judges())
    assert rows(path, "SELECT name, sha256, scale, model_sha256 FROM adapters") == [
        ("tuned", "c" * 64, 0.5, MODEL.sha256),
        (None, None, None, MODEL.sha256),
    ]


# ---------------------------------------------------------------- what is erased


def test_erased_values_are_gone_from_every_row(path: Path) -> None:
    record(path, *one_of_each())
    seqs = [seq for (seq,) in rows(path, "SELECT seq FROM private")]
    record(path, erasing(path, *seqs))
    assert rows(path, "SELECT * FROM private") == []
    everything = repr([rows(path, f"SELECT * FROM {table}") for table in ("events", *TABLES)])
    for word in ("alice", "production", "trader", "ACME", "kim", "robin", "Friday", "cheap", "sold", "ship"):
        assert word not in everything
    verdict = verify(path)
    assert (verdict.problem, verdict.erased) == (None, len(seqs))


def test_the_row_of_an_erased_decision_keeps_outcome_and_numbers(path: Path) -> None:
    decision = by_model()
    review = records.Review(decision_id=decision.id, reviewer="kim", verdict="accept", reasoning="well")
    record(path, decision, events.explanation_event(decision.id, EXPLAINED, NOON), sent(review))
    before = decision_row(path, decision.id)
    record(path, erasing(path, 1, 2, 3))
    gone = ("situation", "team_context", "actor", "entity", "reasoning", "full_response", "review_reasoning")
    assert decision_row(path, decision.id) == before | dict.fromkeys(gone)
    assert row(path, "reviews")["reviewer"] is None
    assert verify(path).ok


def test_an_erasure_can_replace_a_private_part(path: Path) -> None:
    decision, other = by_model(), by_model()
    record(path, decision, other)
    kept = events.encode({"evaluation": about(team_context="night")}).decode()
    record(path, erasing(path, 1, keep=kept))
    assert decision_row(path, decision.id)["team_context"] == "night"
    assert decision_row(path, other.id)["team_context"] == "platform"
    record(path, erasing(path, 1))
    assert decision_row(path, decision.id)["team_context"] is None
    assert (verify(path).problem, verify(path).erased) == (None, 1)


# ---------------------------------------------------------------- the invariant

text = st.text(max_size=12)
name = st.text(min_size=1, max_size=12)
json_values: st.SearchStrategy[Json] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(text, json_values, max_size=3)
finite = st.floats(allow_nan=False, allow_infinity=False)
ms = st.floats(0, 1e12)
share = st.floats(0, 1)
counts = st.integers(0, 2**53)
texts = st.lists(text, max_size=3).map(tuple)
names = st.lists(name, max_size=3).map(tuple)
moments = st.floats(0, 4e9)
risks = st.sampled_from(get_args(Risk))
entities = st.builds(Entity, type=text, id=text, properties=objects)
contexts = objects | st.builds(lambda context, team: context | {"team_context": team}, objects, json_values)
explanations = st.builds(
    Explanation,
    classification=st.none() | text,
    clauses=texts,
    reasoning=text,
    text=text,
    truncated=st.booleans(),
    generated_tokens=counts,
    explain_ms=ms,
)
decisions = st.builds(
    Decision,
    id=name,
    at=moments,
    evaluation=st.builds(
        Evaluation,
        subject=entities,
        action=st.builds(Action, name=text, properties=objects),
        resource=entities,
        context=contexts,
    ),
    caller=st.builds(
        Caller, transport=st.sampled_from(["ipc", "inproc"]), uid=st.none() | st.integers(0, 2**32)
    ),
    outcome=text,
    allow=st.booleans(),
    tier=st.sampled_from(get_args(Tier)),
    floor=st.builds(
        Floor,
        outcome=text,
        final=st.booleans(),
        rules=texts,
        clauses=texts,
        because=st.none() | text,
        classification=st.none() | text,
        facts=objects,
        errors=st.dictionaries(text, text, max_size=2),
        risk=risks,
    ),
    risk=risks,
    pack=st.builds(PackInfo, name=text, version=text, sha256=text),
    model=st.none()
    | st.builds(
        ModelInfo,
        name=text,
        sha256=text,
        quantisation=text,
        architecture=text,
        parameters=counts,
        build=text,
        device=text,
    ),
    reason_code=st.none() | text,
    label=st.none() | text,
    confidence=st.none() | share,
    probabilities=st.dictionaries(text, share, max_size=3),
    scored=st.none()
    | st.builds(
        Scored,
        label=text,
        probabilities=st.just({}),
        logits=st.lists(finite, max_size=3).map(tuple),
        suffix_tokens=st.lists(counts, max_size=3).map(tuple),
        prefix_tokens=counts,
        prefix_digest=text,
        score_ms=ms,
    ),
    explanation=st.none() | explanations,
    obligations=st.lists(st.builds(Obligation, id=text, type=text, properties=objects), max_size=2).map(
        tuple
    ),
    annotations=st.builds(Annotations, scenario_id=st.none() | text, expected=texts, tags=texts),
    timings=st.builds(Timings, queue_ms=ms, rules_ms=ms, score_ms=ms),
)
maybe = st.none() | name
reported = st.builds(
    records.DecisionReport,
    agent=name,
    outcome=name,
    type=name,
    made_by=st.sampled_from(get_args(records.MadeBy)),
    entity=maybe,
    session=maybe,
    model=maybe,
    prompt=st.none() | text,
    response=st.none() | text,
    reasoning=st.none() | text,
    context=objects,
    confidence=st.none() | share,
    risk=st.none() | risks,
    input_tokens=st.none() | counts,
    output_tokens=st.none() | counts,
    latency_ms=st.none() | ms,
    is_exception=st.booleans(),
    precedents=names,
    tags=names,
)
graph = st.builds(
    records.Node,
    type=st.sampled_from(["goal", "decision", "option"]),
    title=name,
    description=st.none() | text,
    status=st.sampled_from(["active", "superseded"]),
    confidence=st.none() | st.integers(0, 100),
    session=maybe,
    metadata=objects,
)


def linked(ids: list[str]) -> st.SearchStrategy[records.Edge]:
    """An edge between two of these."""
    return st.builds(
        lambda ends, **fields: records.Edge(source=ends[0], target=ends[1], type="CITES", **fields),
        st.permutations(ids),
        weight=st.none() | finite,
        rationale=st.none() | text,
        similarity=st.none() | share,
        how=maybe,
        favourable=st.none() | st.booleans(),
    )


def stated(decision_id: str, before: str) -> st.SearchStrategy[records.TraceState]:
    """A state of a trace that was in the state `before`; no other decision is named."""
    return st.builds(
        records.TraceState,
        decision_id=st.just(decision_id),
        status=st.just("active" if before == "under_review" else "under_review"),
        because=text.filter(bool),
    )


def consulted(decision_id: st.SearchStrategy[str | None]) -> st.SearchStrategy[records.Consultation]:
    return st.builds(
        records.Consultation,
        system=name,
        decision_id=decision_id,
        session=maybe,
        entity=maybe,
        query=st.none() | text,
        value=json_values,
        relevance=st.none() | share,
        took_ms=st.none() | ms,
        fresh_at=maybe,
    )


def hung_on(decision_id: str) -> st.SearchStrategy[records.Record]:
    """Any record about one decision."""
    this = st.just(decision_id)
    happened = st.builds(
        records.Outcome,
        decision_id=this,
        status=st.sampled_from(get_args(records.Status)),
        value=st.none() | finite,
        note=st.none() | text,
    )
    review = st.builds(
        records.Review,
        decision_id=this,
        reviewer=name,
        verdict=st.sampled_from(get_args(records.Verdict)),
        decision=maybe,
        reasoning=st.none() | text,
        blind=st.booleans(),
        withdraws=maybe,
        stands=st.sampled_from([None, *get_args(records.Judgement)]),
        right=st.none() | st.booleans(),
    )
    assignment = st.builds(
        records.Assignment,
        decision_id=this,
        reviewer=st.just("kim"),
        type=st.sampled_from(["lease", "release", "assign", "unassign"]),
        given_by=maybe,
        seconds=st.none() | st.integers(1, 3_600),
    )
    approval = st.builds(
        records.Approval,
        decision_id=this,
        approver=name,
        verdict=st.sampled_from(["approved", "rejected"]),
        role=maybe,
        channel=maybe,
        evidence=st.none() | text,
        step=counts,
    )
    return happened | review | assignment | approval | consulted(this)


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Any sequence of events that the journal accepts."""
    history: list[Event] = []
    known: list[str] = []
    states: dict[str, str] = {}
    for number in range(draw(st.integers(1, 8))):
        choices = [
            "decision",
            "decision_report",
            "graph",
            "consultation",
            *(["hung", "explained", "stated"] if known else []),
            *(["linked"] if len(known) > 1 else []),
        ]
        at, chosen = draw(moments), draw(st.sampled_from(choices))
        if chosen == "decision":
            decision = draw(decisions.filter(lambda drawn: drawn.id not in known))
            known.append(decision.id)
            history.append(events.decision_event(decision))
        elif chosen == "explained":
            history.append(events.explanation_event(draw(st.sampled_from(known)), draw(explanations), at))
        else:
            source = {"decision_report": reported, "graph": graph, "consultation": consulted(st.none())}
            if chosen == "linked":
                source[chosen] = linked(known)
            elif chosen == "stated":
                decision_id = draw(st.sampled_from(known))
                source[chosen] = stated(decision_id, states.get(decision_id, "active"))
            made = draw(source[chosen] if chosen in source else hung_on(draw(st.sampled_from(known))))
            if isinstance(made, records.TraceState):
                states[made.decision_id] = made.status
            event = sent(made, at=at, record_id=f"\x00{number}")
            history.append(event)
            if chosen == "decision_report":
                known.append(event.subject_id)
    return history


def computed(path: Path) -> dict[str, dict[int, tuple[Any, ...]]]:
    """Every table, computed from the stored bytes of the events in their order."""
    tables: dict[str, dict[int, tuple[Any, ...]]] = {table: {} for table in TABLES}
    at_seq: dict[str, int] = {}
    with closing(sqlite3.connect(path)) as db:
        db.text_factory = bytes
        stored = db.execute(
            "SELECT e.seq, kind, at, subject_id, body, value FROM events e LEFT JOIN private p "
            "ON p.seq = e.seq ORDER BY e.seq"
        ).fetchall()
    for seq, kind_, at_, subject, body, private in stored:
        kind, at, subject_id = kind_.decode(), at_.decode(), subject.decode()
        table, columns, changes = projections.project(
            kind, seq, at, subject_id, *projections.read(kind, body, private)
        )
        if table is not None:
            tables[table][seq] = columns
        if table == "decisions":
            at_seq[subject_id] = seq
        if changes is not None:
            group = GROUP_OF[kind]
            new = list(tables["decisions"][at_seq[subject_id]])
            for column, value in zip((group, *GROUPS[group]), (seq, *changes), strict=True):
                new[AT[column]] = value
            tables["decisions"][at_seq[subject_id]] = tuple(new)
    return tables


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(histories())
def test_every_row_follows_from_the_stored_bytes(
    tmp_path_factory: pytest.TempPathFactory, history: list[Event]
) -> None:
    """The invariant behind verification and rebuilding."""
    path = tmp_path_factory.mktemp("any") / "journal.db"
    record(path, *history)
    for table, expected in computed(path).items():
        assert {stored[0]: stored for stored in rows(path, f"SELECT * FROM {table}")} == expected
    verdict = verify(path)
    assert (verdict.problem, verdict.events) == (None, len(history))


def test_the_rows_of_each_kind_of_event_follow_from_the_stored_bytes(path: Path) -> None:
    several = one_of_each()
    given = records.Assignment(
        decision_id=several[2].subject_id, reviewer="kim", type="assign", given_by="bo"
    )
    supplied = sent(records.Supplement(decision_id=several[2].subject_id, values={"risk": "low"}))
    drifted = events.drift_event(golden="X1", before="a", now="b", shift=0.5, pack=PACK, model=MODEL, at=NOON)
    promoted = events.promotion_event(PROMOTION, NOON, by_uid=1000, by_key=None)
    doubted = records.TraceState(decision_id=several[2].subject_id, status="under_review", because="why?")
    record(
        path,
        *several,
        sent(given),
        supplied,
        sent(doubted),
        *what_judges(),
        drifted,
        promoted,
        events.enrichment_event(several[2].subject_id, ENRICHED, NOON),
        events.alert_event(
            "alert-1", kind="volume", state="raised", of=None, name=None, figures={"value": 9.5}, at=NOON
        ),
        *canary_events(),
        events.decision_event(on_trial()),
        checkpoints=signing(path),
    )
    denied, _ = lift(path)
    record(path, requested(denied, task="task-2"))
    record(path, cancelled(task="task-2"))
    assert rows(path, "SELECT temperature, judged FROM calibrations") == [(2.0, 60)]
    for table, expected in computed(path).items():
        assert {stored[0]: stored for stored in rows(path, f"SELECT * FROM {table}")} == expected
        assert expected or table == "archives", f"nothing of the table {table} was tried"


def test_the_rows_of_a_canary_have_its_terms_its_share_and_the_figures_that_ended_it(path: Path) -> None:
    decision = on_trial()
    record(path, *canary_events(), decision)
    with Reader(path) as reader, reader.snapshot() as connection:
        known = canary_queries.newest(connection)
    assert known is not None
    assert known.canary == replace(CANARY, share=0.5)
    assert (known.seq, known.cause, known.breach, known.reason) == (1, "rolled_back", BREACH, None)
    assert rows(path, "SELECT state, share, by_uid FROM canaries ORDER BY seq") == [
        ("started", 0.25, 1000),
        ("resized", 0.5, 1000),
        ("ended", None, None),
    ]
    row = decision_row(path, decision.id)
    assert (row["canary"], row["canary_arm"], row["canary_note"]) == ("canary-1", "canary", "looser")


def test_the_body_of_a_decision_on_trial_quotes_nothing_of_the_request(path: Path) -> None:
    """The floor of the active pack is recorded without its facts, as that of the candidate is."""
    bound = Floor(outcome="deny", final=True, facts={"who": "alice"}, errors={"fact:x": "alice"})
    record(path, on_trial(trial=Trial(id="c", arm="canary", own="allow", bound=bound)))
    ((body,),) = rows(path, "SELECT body FROM events")
    assert "alice" not in body
    assert '"bound":{"outcome":"deny","final":true}' in body


def test_the_row_of_a_promotion_has_pack_report_key_and_user(path: Path) -> None:
    refused = replace(PROMOTION, passed=False, key=None, signature=None)
    promotions = [
        events.promotion_event(PROMOTION, NOON, by_uid=1000, by_key="desk"),
        events.promotion_event(refused, NOON, by_uid=None, by_key=None),
    ]
    record(path, *promotions)
    assert rows(path, "SELECT name, version, sha256, against, passed, by_uid, key FROM promotions") == [
        ("team", "2", "d" * 64, PACK.sha256, 1, 1000, "ab" * 8),
        ("team", "2", "d" * 64, PACK.sha256, 0, None, None),
    ]
    assert rows(path, "SELECT report ->> '$.checks[0].name' FROM promotions") == [("lint",), ("lint",)]
    assert verify(path).ok


def test_an_event_of_a_kind_without_a_table_is_on_the_chain_only(path: Path) -> None:
    record(path, note())
    assert [table for table in TABLES if rows(path, f"SELECT * FROM {table}")] == []


def test_a_second_decision_with_the_same_id_is_refused(path: Path) -> None:
    fates = Fates()
    with Journal(path, on_committed=fates) as journal:
        journal.append(sent(records.DecisionReport(agent="a", outcome="buy"), record_id="d1"))
        fates.wait(1)
        journal.append(sent(records.DecisionReport(agent="a", outcome="sell"), record_id="d1"))
        assert fates.wait(1)[0].error == "unavailable"
        journal.write(records.Node(type="goal", title="t"), record_id="n1", at=NOON, caller=CALLER)
        assert fates.wait(1)[0].error is None
    assert decision_row(path, "d1")["decision"] == "buy"
    assert verify(path).ok


def test_an_enrichment_is_a_row_of_its_own_and_changes_nothing_of_its_decision(path: Path) -> None:
    decision = by_model()
    record(path, decision)
    before = rows(path, "SELECT * FROM decisions")
    record(path, events.enrichment_event(decision.id, ENRICHED, NOON + 9))
    assert rows(path, "SELECT * FROM decisions") == before
    (row,) = rows(path, "SELECT why, risk, alternative, model_sha256, device_ms FROM enrichments")
    assert row == ('["low_confidence"]', "The release breaks for alice.", "allow", MODEL.sha256, 900.5)


def test_erasing_an_actor_erases_the_texts_of_its_enrichments(path: Path) -> None:
    decision = by_model()
    record(path, decision, events.enrichment_event(decision.id, ENRICHED, NOON))
    with Journal(path) as journal:
        assert erase(journal, "user:alice").left == ()
    (row,) = rows(path, "SELECT risk, alternatives, rationale, alternative, quality FROM enrichments")
    assert row == (None, None, None, "allow", ENRICHED.quality)
    assert verify(path).ok


def test_enrichments_of_the_last_hours_count_with_their_time_of_the_device(path: Path) -> None:
    decision = by_model()
    record(path, decision, events.enrichment_event(decision.id, ENRICHED, NOON))
    with Reader(path) as reader:
        ((at_ns, spent_ns),) = reader.enrichments_within(3_600, clocks.now())
        assert (0 < at_ns <= clocks.boot_ns(), spent_ns) == (True, 900_500_000)
        other = clocks.Instant("another boot", 7)
        assert reader.enrichments_within(3_600, other) == [(7, 900_500_000)]
        later = clocks.Instant(clocks.boot_id(), clocks.boot_ns() + 3_601 * 10**9)
        assert reader.enrichments_within(3_600, later) == []
