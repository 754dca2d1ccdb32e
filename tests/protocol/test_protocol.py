"""The wire: what a frame may say, and how a refusal names what is wrong with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.build import LEAST_RECORDS
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
    Timings,
)
from thor_policy.core.errors import ERROR_CODES, RequestError
from thor_policy.core.records import RECORDS
from thor_policy.core.requests import Action, Annotations, Caller, Entity, Evaluation
from thor_policy.protocol.messages import (
    ControlRequest,
    EvaluateBatchRequest,
    EvaluateRequest,
    MaintenanceRequest,
    Message,
    RecordRequest,
    StatusRequest,
    op_of,
)
from thor_policy.protocol.replies import (
    decision_item,
    decode_reply,
    encode_error,
    encode_event,
    encode_reply,
    encode_request,
    error_item,
    explanation_item,
    recorded_item,
)
from thor_policy.protocol.requests import decode_request, evaluation_from, question_fields, recover_request_id

PROMOTION = records.Promotion(
    name="team",
    version="2",
    sha256="a" * 64,
    against="b" * 64,
    model_sha256="c" * 64,
    passed=True,
    report="{}",
    key="ab" * 8,
    signature="cd" * 64,
)
MAX_BYTES = 65_536
MAX_DEADLINE_MS = 120_000

ALICE = {
    "subject": {"type": "user", "id": "alice"},
    "action": {"name": "read"},
    "resource": {"type": "doc", "id": "handbook"},
}
ALICE_READS = Evaluation(
    subject=Entity(type="user", id="alice"),
    action=Action(name="read"),
    resource=Entity(type="doc", id="handbook"),
)


def decode(frame: bytes, *, max_bytes: int = MAX_BYTES) -> Message:
    return decode_request(frame, max_bytes=max_bytes, max_deadline_ms=MAX_DEADLINE_MS)


def frame(**members: Any) -> bytes:
    """A frame in which every member is right but those given here; `...` leaves one out."""
    whole = {"v": 1, "id": "q-1", "op": "evaluate", "request": ALICE} | members
    return json.dumps({name: value for name, value in whole.items() if value is not ...}).encode()


def with_context(context: bytes) -> bytes:
    """A frame whose context is these very bytes."""
    return frame(request=ALICE | {"context": "HERE"}).replace(b'"HERE"', context)


def evaluate(**members: Any) -> EvaluateRequest:
    message = decode(frame(**members))
    assert isinstance(message, EvaluateRequest)
    return message


def situation(**members: Any) -> Evaluation:
    whole = {"actor_id": "user:alice", "action_type": "read", "resource": "doc:handbook"} | members
    return evaluate(request=..., situation=whole).evaluation


def refused(raw: bytes, *, max_bytes: int = MAX_BYTES) -> RequestError:
    with pytest.raises(RequestError) as refusal:
        decode(raw, max_bytes=max_bytes)
    assert refusal.value.code in ERROR_CODES
    return refusal.value


# ---------------------------------------------------------------- what is accepted


def test_the_smallest_request_gets_the_defaults() -> None:
    assert decode(frame(id=..., op=...)) == EvaluateRequest(
        id="",
        evaluation=ALICE_READS,
        explain="none",
        deadline_ms=None,
        pack=None,
        annotations=Annotations(),
    )


def test_every_member_is_decoded_into_its_field() -> None:
    request = {
        "subject": {"type": "user", "id": "alice", "properties": {"role": "developer"}},
        "action": {"name": "read", "properties": {"method": "GET"}},
        "resource": {"type": "doc", "id": "handbook", "properties": {"pages": 3}},
        "context": {"nested": [{"deep": None}, 0.5, True]},
    }
    annotations = {"scenario_id": "E01", "expected": ["allow", "deny"], "tags": ["easy"]}
    assert decode(
        frame(request=request, explain="inline", deadline_ms=2000, pack="small", annotations=annotations)
    ) == EvaluateRequest(
        id="q-1",
        evaluation=Evaluation(
            subject=Entity(type="user", id="alice", properties={"role": "developer"}),
            action=Action(name="read", properties={"method": "GET"}),
            resource=Entity(type="doc", id="handbook", properties={"pages": 3}),
            context={"nested": [{"deep": None}, 0.5, True]},
        ),
        explain="inline",
        deadline_ms=2000,
        pack="small",
        annotations=Annotations(scenario_id="E01", expected=("allow", "deny"), tags=("easy",)),
    )


def test_unknown_members_are_ignored_everywhere() -> None:
    request = {part: value | {"unknown": 1} for part, value in ALICE.items()} | {"unknown": [{}]}
    message = evaluate(request=request, annotations={"unknown": 1}, unknown={"a": [1]})
    assert message.evaluation == ALICE_READS
    assert message.annotations == Annotations()


@pytest.mark.parametrize("op", ["status", "metrics"])
def test_status_and_metrics_need_no_request(op: str) -> None:
    assert decode(frame(op=op, request=...)) == StatusRequest(id="q-1", op=op)  # type: ignore[arg-type]


@pytest.mark.parametrize("explain", ["none", "inline", "later"])
def test_explain_may_be_none_inline_or_later(explain: str) -> None:
    assert evaluate(explain=explain).explain == explain


@pytest.mark.parametrize("enrich", ["auto", "never", "always"])
def test_enrich_may_be_auto_never_or_always(enrich: str) -> None:
    assert evaluate(enrich=enrich).enrich == enrich
    assert evaluate().enrich == "auto"


def test_a_deadline_of_null_means_no_deadline() -> None:
    assert evaluate(deadline_ms=None).deadline_ms is None


@pytest.mark.parametrize("deadline_ms", [1, MAX_DEADLINE_MS])
def test_a_deadline_may_be_at_either_limit(deadline_ms: int) -> None:
    assert evaluate(deadline_ms=deadline_ms).deadline_ms == deadline_ms


def test_names_may_have_256_characters_of_any_width() -> None:
    name = "ü" * 256
    request = {
        "subject": {"type": name, "id": name},
        "action": {"name": name},
        "resource": {"type": name, "id": name},
    }
    message = evaluate(id=name, pack=name, request=request)
    assert (message.id, message.pack, message.evaluation.subject.id) == (name, name, name)


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63)])
def test_an_integer_may_be_at_either_limit_of_64_bits(number: int) -> None:
    assert evaluate(request=ALICE | {"context": {"n": number}}).evaluation.context == {"n": number}


# ---------------------------------------------------------------- the envelope's refusals

OPS = (
    "evaluate, search, status, metrics, decision_report, consultation, outcome, review, assignment, "
    "approval, request_approval, approve, deny, cancel, "
    "supplement, node, edge, trace_state, approvals, similar, push, maintenance, control"
)


@pytest.mark.parametrize(
    ("members", "code", "message"),
    [
        ({"v": ...}, "bad_request", "v: the protocol version is missing; this is 1"),
        ({"v": 0}, "version_mismatch", "v: this daemon speaks protocol version 1 only"),
        ({"v": 2}, "version_mismatch", "v: this daemon speaks protocol version 1 only"),
        ({"v": "1"}, "version_mismatch", "v: this daemon speaks protocol version 1 only"),
        ({"v": True}, "version_mismatch", "v: this daemon speaks protocol version 1 only"),
        ({"v": None}, "bad_request", "v: the protocol version is missing; this is 1"),
        ({"id": 7}, "bad_request", "id: must be a string"),
        ({"id": "i" * 257}, "too_large", "id: has 257 characters; the limit is 256"),
        ({"op": "forget"}, "bad_request", f"op: must be one of {OPS}"),
        ({"op": ["status"]}, "bad_request", f"op: must be one of {OPS}"),
        ({"op": {"record": 1}}, "bad_request", f"op: must be one of {OPS}"),
        ({"explain": "sometime"}, "bad_request", "explain: must be one of none, inline, later"),
        ({"explain": True}, "bad_request", "explain: must be one of none, inline, later"),
        ({"enrich": "sometime"}, "bad_request", "enrich: must be one of auto, never, always"),
        ({"explain": ["none"]}, "bad_request", "explain: must be one of none, inline, later"),
        ({"pack": 1}, "bad_request", "pack: must be a string"),
        ({"pack": ""}, "bad_request", "pack: must not be empty"),
        ({"pack": "p" * 257}, "too_large", "pack: has 257 characters; the limit is 256"),
        ({"idempotency_key": 7}, "bad_request", "idempotency_key: must be a string"),
        ({"idempotency_key": ""}, "bad_request", "idempotency_key: must not be empty"),
        (
            {"idempotency_key": "k" * 257},
            "too_large",
            "idempotency_key: has 257 characters; the limit is 256",
        ),
        (
            {"request": ...},
            "bad_request",
            "request: give either `request` or `situation`, and only one",
        ),
        (
            {"situation": {}},
            "bad_request",
            "request: give either `request` or `situation`, and only one",
        ),
        ({"annotations": 5}, "bad_request", "annotations: expected `object`, got `int`"),
        ({"annotations": {"tags": [1]}}, "bad_request", "annotations.tags[0]: expected `str`, got `int`"),
    ],
)
def test_a_bad_envelope_is_refused_with_field_and_limit(
    members: dict[str, Any], code: str, message: str
) -> None:
    error = refused(frame(**members))
    assert (error.code, error.message) == (code, message)


@pytest.mark.parametrize("deadline_ms", [0, -1, True, 1.5, 2000.0, "2000", [], MAX_DEADLINE_MS + 1])
def test_a_deadline_is_a_whole_number_of_milliseconds_within_the_limit(deadline_ms: Any) -> None:
    error = refused(frame(deadline_ms=deadline_ms))
    assert error.code == "bad_request"
    assert error.message == "deadline_ms: must be a whole number from 1 to 120000"


def test_an_oversized_frame_is_refused_unread_with_both_sizes() -> None:
    assert decode(frame(), max_bytes=len(frame()))
    error = refused(b"[" * 1001, max_bytes=1000)
    assert error.code == "too_large"
    assert error.message == "the request has 1001 bytes; the limit is 1000"


# ---------------------------------------------------------------- what is not JSON


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"v":1,}',
        b"evaluate",
        b'{"v":1} {"v":1}',
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b"{'v':1}",
        with_context(b'{"n":NaN}'),
        with_context(b'{"n":Infinity}'),
        with_context(b'{"n":-Infinity}'),
        with_context(b'{"s":"\\ud800"}'),
        with_context(b'{"s":"\\udc00\\ud800"}'),
        with_context(b'{"\\ud800":1}'),
        with_context(b'{"s":"\n"}'),
    ],
)
def test_a_frame_that_is_not_json_is_refused_as_such(raw: bytes) -> None:
    error = refused(raw)
    assert error.code == "bad_request"
    assert error.message.startswith("the request is not valid JSON: ")


@pytest.mark.parametrize("broken", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_a_frame_that_is_not_utf8_is_refused_as_such(broken: bytes) -> None:
    error = refused(with_context(b'{"s":"' + broken + b'"}'))
    assert (error.code, error.message) == ("bad_request", "the request is not valid UTF-8")


@pytest.mark.parametrize("raw", [b"[]", b"null", b"1", b'"x"', b"true"])
def test_a_frame_that_is_not_an_object_is_refused_with_its_type(raw: bytes) -> None:
    assert refused(raw).message.startswith("the request: expected `object`, got ")


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"9" * 5000])
def test_a_number_that_json_cannot_hold_is_refused_with_its_place(number: bytes) -> None:
    error = refused(with_context(b'{"n":' + number + b"}"))
    assert error.code == "bad_request"
    assert error.message == "request.context.n: the number is too large for 64 bits"


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 10**30])
def test_an_integer_beyond_64_bits_is_refused_with_its_path(number: int) -> None:
    error = refused(frame(request=ALICE | {"context": {"n": [number]}}))
    assert error.code == "bad_request"
    assert error.message == "request.context.n.0: the integer does not fit 64 bits"


# ---------------------------------------------------------------- the request's refusals


def without(part: str) -> dict[str, Any]:
    return {name: value for name, value in ALICE.items() if name != part}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (7, "request: expected `object`, got `int`"),
        ([], "request: expected `object`, got `array`"),
        (without("subject"), "request: object missing required field `subject`"),
        (without("action"), "request: object missing required field `action`"),
        (without("resource"), "request: object missing required field `resource`"),
        (ALICE | {"subject": "alice"}, "request.subject: expected `object`, got `str`"),
        (ALICE | {"subject": {"id": "a"}}, "request.subject: object missing required field `type`"),
        (ALICE | {"subject": {"type": 1, "id": "a"}}, "request.subject.type: expected `str`, got `int`"),
        (ALICE | {"resource": {"type": "d"}}, "request.resource: object missing required field `id`"),
        (ALICE | {"resource": {"type": "d", "id": None}}, "request.resource.id: expected `str`, got `null`"),
        (ALICE | {"action": {"name": True}}, "request.action.name: expected `str`, got `bool`"),
        (
            ALICE | {"action": {"name": "r", "properties": []}},
            "request.action.properties: expected `object`, got `array`",
        ),
        (ALICE | {"context": 1}, "request.context: expected `object`, got `int`"),
        (ALICE | {"context": "c"}, "request.context: expected `object`, got `str`"),
        (ALICE | {"subject": {"type": "", "id": "a"}}, "request.subject.type: must not be empty"),
        (ALICE | {"subject": {"type": "u", "id": ""}}, "request.subject.id: must not be empty"),
        (ALICE | {"action": {"name": ""}}, "request.action.name: must not be empty"),
        (ALICE | {"resource": {"type": "d", "id": ""}}, "request.resource.id: must not be empty"),
    ],
)
def test_a_bad_request_is_refused_with_the_path_of_the_field(request_: Any, message: str) -> None:
    error = refused(frame(request=request_))
    assert (error.code, error.message) == ("bad_request", message)


@pytest.mark.parametrize(
    "path", ["subject.type", "subject.id", "action.name", "resource.type", "resource.id"]
)
def test_a_name_of_257_characters_is_refused_with_its_path_and_the_limit(path: str) -> None:
    part, member = path.split(".")
    error = refused(frame(request=ALICE | {part: ALICE[part] | {member: "n" * 257}}))
    assert error.code == "too_large"
    assert error.message == f"request.{path}: has 257 characters; the limit is 256"


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"k": value}
    return value


def test_eight_levels_of_nesting_are_allowed_and_a_ninth_is_refused_where_it_begins() -> None:
    context = {"c": nested(6)}
    assert evaluate(request=ALICE | {"context": context}).evaluation.context == context
    error = refused(frame(request=ALICE | {"context": {"c": nested(7)}}))
    assert error.code == "bad_request"
    assert error.message == "request.context.c.k.0.k.0.k.0: nested deeper than 8 levels"


@pytest.mark.parametrize("field", ["request", "situation", "annotations", "elsewhere"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "left open"])
def test_a_hundred_thousand_nested_brackets_are_refused(field: str, closed: bool) -> None:
    deep = b"[" * 100_000 + (b"]" * 100_000 if closed else b"")
    raw = frame(**{"request": ..., field: "HERE"}).replace(b'"HERE"', deep)
    error = refused(raw, max_bytes=1_000_000)
    assert (error.code, error.message) == ("bad_request", "the request: nested deeper than 8 levels")
    assert recover_request_id(raw, 1_000_000) == ""


def test_a_request_may_hold_1024_values_and_no_more() -> None:
    others = sum(1 + len(part) for part in ALICE.values()) + 3  # request, context and the list
    assert evaluate(request=ALICE | {"context": {"c": [0] * (1024 - others)}})
    error = refused(frame(request=ALICE | {"context": {"c": [0] * (1025 - others)}}))
    assert (error.code, error.message) == ("too_large", "request: holds more than 1024 values")


@pytest.mark.parametrize("many", [[0] * 1025, {f"k{n}": 0 for n in range(1025)}], ids=["list", "object"])
def test_a_list_or_object_that_is_too_long_is_named(many: Any) -> None:
    error = refused(frame(request=ALICE | {"context": {"c": many}}))
    assert (error.code, error.message) == ("too_large", "request.context.c: holds more than 1024 values")


def test_a_refusal_does_not_repeat_long_keys() -> None:
    error = refused(frame(request=ALICE | {"context": {"k" * 5000: 2**64}}))
    assert error.message == f"request.context.{'k' * 40}: the integer does not fit 64 bits"


# ---------------------------------------------------------------- batches


SEMANTICS = ("execute_all", "deny_on_first_deny", "permit_on_first_permit")


def batch(*items: Any, **members: Any) -> EvaluateBatchRequest:
    message = decode(frame(**{"request": ..., "evaluations": list(items)} | members))
    assert isinstance(message, EvaluateBatchRequest)
    return message


def test_the_items_of_a_batch_are_questions_in_order() -> None:
    other = ALICE | {"action": {"name": "write"}}
    decoded = batch(ALICE, other, explain="later", deadline_ms=2000, pack="small")
    assert (decoded.id, decoded.semantic) == ("q-1", "execute_all")
    assert [item for item in decoded.items if isinstance(item, RequestError)] == []
    assert decoded.items == (
        evaluate(explain="later", deadline_ms=2000, pack="small"),
        evaluate(request=other, explain="later", deadline_ms=2000, pack="small"),
    )


def test_the_request_beside_a_batch_has_the_defaults_of_each_item() -> None:
    decoded = batch({}, {"action": {"name": "write"}}, request=ALICE | {"context": {"k": 1}})
    assert decoded.items == (
        evaluate(request=ALICE | {"context": {"k": 1}}),
        evaluate(request=ALICE | {"context": {"k": 1}, "action": {"name": "write"}}),
    )


@pytest.mark.parametrize("semantic", SEMANTICS)
def test_a_batch_may_set_its_semantic(semantic: str) -> None:
    assert batch(ALICE, options={"evaluations_semantic": semantic}).semantic == semantic


def test_a_malformed_item_is_an_error_in_its_place_and_the_others_are_decoded() -> None:
    decoded = batch(ALICE, {}, 7, ALICE | {"context": {"n": 2**64}}, ALICE)
    errors = {n: item.message for n, item in enumerate(decoded.items) if isinstance(item, RequestError)}
    assert errors == {
        1: "evaluations.1: object missing required field `subject`",
        2: "evaluations.2: must be an object",
        3: "evaluations.3.context.n: the integer does not fit 64 bits",
    }
    assert decoded.items[0] == decoded.items[4] == evaluate()


def test_an_empty_batch_is_a_single_question() -> None:
    assert evaluate(evaluations=[]) == evaluate()


@pytest.mark.parametrize(
    ("members", "code", "message"),
    [
        ({"evaluations": {}}, "bad_request", "evaluations: must be an array"),
        ({"evaluations": 7}, "bad_request", "evaluations: must be an array"),
        (
            {"evaluations": [ALICE] * 65},
            "too_large",
            "evaluations: holds 65 items; the limit is 64",
        ),
        (
            {"evaluations": [ALICE], "situation": {}},
            "bad_request",
            "situation: cannot be used with `evaluations`; give `request`, or neither",
        ),
        ({"evaluations": [ALICE], "request": []}, "bad_request", "request: must be an object"),
        (
            {"evaluations": [], "request": ...},
            "bad_request",
            "request: give either `request` or `situation`, and only one",
        ),
        *(
            (
                {"evaluations": [ALICE], "options": options},
                "bad_request",
                f"options.evaluations_semantic: must be one of {', '.join(SEMANTICS)}",
            )
            for options in ({"evaluations_semantic": "sometimes"}, {"evaluations_semantic": []}, [], 7)
        ),
    ],
)
def test_a_bad_batch_is_refused_as_a_whole(members: dict[str, Any], code: str, message: str) -> None:
    error = refused(frame(**members))
    assert (error.code, error.message) == (code, message)


def test_64_items_are_a_batch() -> None:
    assert len(batch(*[ALICE] * 64).items) == 64


# ---------------------------------------------------------------- records

#: For each op a record that leaves nothing out.
WHOLE: dict[str, records.Record] = {
    "decision_report": records.DecisionReport(
        agent="trader",
        outcome="BUY",
        type="signal",
        made_by="committee",
        entity="ACME",
        session="s",
        model="m",
        prompt="Now?",
        response="Now.",
        reasoning="It is low.",
        context={"price": [{"low": 1.5}]},
        confidence=0.5,
        risk="high",
        input_tokens=2**53,
        output_tokens=0,
        latency_ms=12.5,
        is_exception=True,
        urgency="emergency",
        judgment_call=False,
        confidence_level="medium",
        timestamp_decision="2026-05-13T10:00:00+02:00",
        precedents=("p",),
        tags=("t", "u"),
    ),
    "consultation": records.Consultation(
        system="crm",
        decision_id="d",
        session="s",
        entity="ACME",
        query="tier of ACME",
        value={"tier": 1},
        relevance=1.0,
        took_ms=0.0,
        fresh_at="2026-05-13T10:00:00.5+02:00",
    ),
    "outcome": records.Outcome(decision_id="d", status="FAILURE", value=-12.5, note="stopped out"),
    "review": records.Review(
        decision_id="d", reviewer="ines", verdict="correct_both", decision="HOLD", reasoning="Too early."
    ),
    "assignment": records.Assignment(
        decision_id="d", reviewer="ines", type="lease", given_by="bo", seconds=3_600
    ),
    "approval": records.Approval(
        decision_id="d",
        approver="ines",
        verdict="rejected",
        role="lead",
        channel="phone",
        evidence="call 12",
        step=2,
    ),
    "request_approval": records.ApprovalRequest(
        decision_id="d",
        reason="release",
        urgency="urgent",
        question=records.DeniedQuestion(subject="user:a", action="deploy", resource="env:b"),
    ),
    "approve": records.Approve(
        task="t", comment="fine", consent=records.Consent(approver="ines", channel="email", evidence="mail 7")
    ),
    "deny": records.Deny(task="t", comment="not now"),
    "cancel": records.Cancel(task="t", reason="not needed"),
    "supplement": records.Supplement(
        decision_id="d",
        values={
            "reasoning": "So.",
            "confidence": 1,
            "risk": "low",
            "timestamp_decision": "2026-05-13T10:00:00Z",
        },
    ),
    "node": records.Node(
        type="actor",
        title="t",
        description="long",
        status="abandoned",
        confidence=100,
        session="s",
        metadata={"k": None},
        actor_type="committee",
        role="board",
    ),
    "edge": records.Edge(
        source="a",
        target="b",
        type="CITES",
        weight=-0.5,
        rationale="so",
        similarity=0.5,
        how="by hand",
        favourable=False,
    ),
    "trace_state": records.TraceState(decision_id="d", status="superseded", because="newer", by="e"),
}


def record_frame(op: str, record: Any = ..., **members: Any) -> bytes:
    return frame(**{"op": op, "request": ..., "record": record} | members)


def kept(op: str, **fields: Any) -> Any:
    message = decode(record_frame(op, LEAST_RECORDS[op][0] | fields))
    assert isinstance(message, RecordRequest)
    return message.record


def test_each_record_type_has_its_op() -> None:
    assert set(RECORDS.values()) == set(get_args(records.Record))
    assert RECORDS.keys() == LEAST_RECORDS.keys() == WHOLE.keys()


@pytest.mark.parametrize("op", LEAST_RECORDS)
def test_a_record_needs_only_its_required_fields(op: str) -> None:
    fields, record = LEAST_RECORDS[op]
    assert decode(record_frame(op, fields, id=...)) == RecordRequest(id="", record=record, deadline_ms=None)


@pytest.mark.parametrize("op", WHOLE)
def test_a_record_with_all_fields_is_decoded_as_it_was_encoded(op: str) -> None:
    raw = encode_request("q", op, {"record": WHOLE[op], "deadline_ms": 50})
    assert decode(raw) == RecordRequest(id="q", record=WHOLE[op], deadline_ms=50)


#: Records that refuse members they do not know: nobody must believe that they can name an approver.
CLOSED = ("request_approval", "approve", "deny", "cancel")


@pytest.mark.parametrize("op", CLOSED)
@pytest.mark.parametrize("member", ["approver", "person", "caller", "role"])
def test_a_change_of_a_task_that_names_who_makes_it_is_refused(op: str, member: str) -> None:
    error = refused(record_frame(op, LEAST_RECORDS[op][0] | {member: "ines"}))
    assert (error.code, error.message) == ("bad_request", f"record: object contains unknown field `{member}`")


@pytest.mark.parametrize("op", [op for op in LEAST_RECORDS if op not in CLOSED])
def test_unknown_members_of_a_record_are_ignored(op: str) -> None:
    assert kept(op, unknown={"a": [1]}, caller={"uid": 0}) == LEAST_RECORDS[op][1]


@pytest.mark.parametrize("op", LEAST_RECORDS)
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"record": ...}, "record: is missing; the op {op} needs one"),
        ({"record": None}, "record: is missing; the op {op} needs one"),
        ({"record": []}, "record: expected `object`, got `array`"),
        ({"deadline_ms": 0}, "deadline_ms: must be a whole number from 1 to 120000"),
        ({"idempotency_key": 7}, "idempotency_key: must be a string"),
    ],
)
def test_a_record_op_with_a_bad_envelope_is_refused(op: str, members: dict[str, Any], message: str) -> None:
    error = refused(record_frame(op, **{"record": LEAST_RECORDS[op][0]} | members))
    assert (error.code, error.message) == ("bad_request", message.format(op=op))


@pytest.mark.parametrize(
    ("op", "field"),
    [
        (op, field)
        for op, (fields, _) in LEAST_RECORDS.items()
        for field in fields
        if (op, field) not in (("consultation", "session"), ("decision_report", "agent"))
    ],
)
def test_a_record_without_a_required_field_is_refused(op: str, field: str) -> None:
    fields = {name: value for name, value in LEAST_RECORDS[op][0].items() if name != field}
    error = refused(record_frame(op, fields))
    assert (error.code, error.message) == ("bad_request", f"record: object missing required field `{field}`")


def test_a_consultation_needs_a_decision_id_or_a_session() -> None:
    assert kept("consultation", session=None, decision_id="d").decision_id == "d"
    error = refused(record_frame("consultation", {"system": "crm"}))
    assert error.code == "bad_request"
    assert error.message == "record.decision_id: is missing; give it, or `session`"


@pytest.mark.parametrize(
    "time", ["2026-05-13T10:00:00Z", "2026-05-13T10:00:00.123456-05:30", "2026-05-13 10:00:00z"]
)
def test_fresh_at_is_kept_unchanged(time: str) -> None:
    assert kept("consultation", fresh_at=time).fresh_at == time


@pytest.mark.parametrize(
    "time",
    [
        "yesterday",
        "2026-05-13",
        "2026-05-13T10:00:00",
        "2026-02-30T10:00:00Z",
        "1778666400",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
    ],
)
def test_fresh_at_must_be_a_time_with_a_zone_that_converts_to_utc(time: str) -> None:
    error = refused(record_frame("consultation", LEAST_RECORDS["consultation"][0] | {"fresh_at": time}))
    assert error.code == "bad_request"
    assert error.message == "record.fresh_at: must be an RFC 3339 time such as 2026-05-13T10:00:00Z"


#: Fields by what bounds them: (op, field).
NAME_FIELDS = [
    *(("decision_report", name) for name in ("agent", "outcome", "type", "entity", "session", "model")),
    ("decision_report", "timestamp_decision"),
    ("supplement", "decision_id"),
    *(("consultation", name) for name in ("system", "decision_id", "session", "entity", "fresh_at")),
    ("outcome", "decision_id"),
    *(("review", name) for name in ("decision_id", "reviewer", "decision", "withdraws")),
    *(("assignment", name) for name in ("decision_id", "reviewer", "given_by")),
    *(("approval", name) for name in ("decision_id", "approver", "role", "channel")),
    ("request_approval", "decision_id"),
    *((op, "task") for op in ("approve", "deny", "cancel")),
    *(("node", name) for name in ("title", "session", "role", "agent", "supersedes")),
    *(("edge", name) for name in ("source", "target", "how")),
    *(("trace_state", name) for name in ("decision_id", "by")),
]
TEXT_FIELDS = [
    *(("decision_report", name) for name in ("prompt", "response", "reasoning")),
    ("consultation", "query"),
    ("outcome", "note"),
    ("review", "reasoning"),
    ("approval", "evidence"),
    ("request_approval", "reason"),
    ("approve", "comment"),
    ("deny", "comment"),
    ("cancel", "reason"),
    ("node", "description"),
    ("edge", "rationale"),
    ("node", "rationale"),
]
#: (op, field, least, most); the least and the most are good.
NUMBER_FIELDS = [
    ("decision_report", "confidence", 0, 1),
    ("decision_report", "latency_ms", 0, 10**12),
    ("decision_report", "input_tokens", 0, 2**53),
    ("decision_report", "output_tokens", 0, 2**53),
    ("consultation", "relevance", 0, 1),
    ("consultation", "took_ms", 0, 10**12),
    ("assignment", "seconds", 1, 3_600),
    ("approval", "step", 0, 2**53),
    ("node", "confidence", 0, 100),
    ("edge", "similarity", 0, 1),
]
CHOICE_FIELDS = [
    ("decision_report", "made_by", "agent, human, committee, system"),
    ("decision_report", "risk", "low, medium, high, critical"),
    ("decision_report", "urgency", "normal, urgent, emergency"),
    ("decision_report", "confidence_level", "high, medium, low"),
    ("request_approval", "urgency", "normal, urgent, emergency"),
    ("outcome", "status", "SUCCESS, FAILURE, PENDING"),
    ("review", "verdict", "accept, correct_decision, correct_reasoning, correct_both, withdrawn"),
    ("review", "stands", "accept, correct_decision, correct_reasoning, correct_both"),
    ("assignment", "type", "lease, release, assign, unassign"),
    ("approval", "verdict", "approved, rejected"),
    ("node", "status", "active, superseded, abandoned"),
    ("node", "actor_type", "human, automated_system, committee"),
    ("trace_state", "status", "active, under_review, superseded, overturned"),
]
#: Fields that other tests speak of, or whose type alone bounds them.
OTHER_FIELDS = {
    *(
        ("decision_report", name)
        for name in ("context", "is_exception", "judgment_call", "precedents", "tags")
    ),
    ("supplement", "values"),
    ("approve", "consent"),
    ("request_approval", "question"),
    *(("review", name) for name in ("blind", "adjudicates", "sampled", "right")),
    ("consultation", "value"),
    ("outcome", "value"),
    ("node", "metadata"),
    ("edge", "weight"),
    ("edge", "favourable"),
    *(("node", "type"), ("edge", "type")),  # tests/core/test_graph.py
    ("trace_state", "because"),  # a text that must not be empty
}


#: Members that a field or a choice needs beside it.
NEEDED: dict[tuple[str, str], dict[str, Any]] = {
    ("assignment", "lease"): {"seconds": 60},
    ("review", "withdrawn"): {"withdraws": "r"},
    ("decision_report", "human"): {"agent": None},
    ("trace_state", "superseded"): {"by": "e"},
    ("trace_state", "overturned"): {"by": "e"},
    ("node", "role"): {"type": "actor", "actor_type": "human"},
    ("node", "actor_type"): {"type": "actor"},
    ("node", "rationale"): {"supersedes": "n"},
    ("edge", "how"): {"type": "CITES"},
    ("edge", "similarity"): {"type": "CITES"},
    ("trace_state", "by"): {"status": "superseded"},
}


def refused_field(op: str, field: str, value: Any) -> tuple[str, str]:
    error = refused(record_frame(op, LEAST_RECORDS[op][0] | {field: value}))
    return error.code, error.message


def test_every_field_of_a_record_has_a_limit_in_these_tests() -> None:
    fields = {(op, name) for op, noun in RECORDS.items() for name in noun.__struct_fields__}
    limited = [
        *NAME_FIELDS,
        *TEXT_FIELDS,
        *((op, name) for op, name, *_ in (*NUMBER_FIELDS, *CHOICE_FIELDS)),
        *OTHER_FIELDS,
    ]
    assert sorted(limited) == sorted(fields)


@pytest.mark.parametrize(("op", "field"), NAME_FIELDS)
def test_a_name_has_1_to_256_characters(op: str, field: str) -> None:
    assert refused_field(op, field, "") == ("bad_request", f"record.{field}: must not be empty")
    assert refused_field(op, field, "n" * 257) == (
        "too_large",
        f"record.{field}: has more than 256 characters",
    )
    if field not in ("fresh_at", "timestamp_decision"):
        assert getattr(kept(op, **NEEDED.get((op, field), {}) | {field: "ü" * 256}), field) == "ü" * 256


@pytest.mark.parametrize(("op", "field"), TEXT_FIELDS)
def test_a_text_has_up_to_32768_characters(op: str, field: str) -> None:
    needed = NEEDED.get((op, field), {})
    assert getattr(kept(op, **needed | {field: ""}), field) == ""
    assert getattr(kept(op, **needed | {field: "t" * 32_768}), field) == "t" * 32_768
    assert refused_field(op, field, "t" * 32_769) == (
        "too_large",
        f"record.{field}: has more than 32768 characters",
    )


@pytest.mark.parametrize(("op", "field", "least", "most"), NUMBER_FIELDS)
def test_a_number_lies_within_its_bounds(op: str, field: str, least: int, most: int) -> None:
    needed = NEEDED.get((op, field), {})
    assert getattr(kept(op, **needed | {field: least}), field) == least
    assert getattr(kept(op, **needed | {field: most}), field) == most
    assert refused_field(op, field, least - 1) == ("bad_request", f"record.{field}: must be at least {least}")
    assert refused_field(op, field, most + 1) == ("bad_request", f"record.{field}: must be at most {most}")


@pytest.mark.parametrize(("op", "field", "choices"), CHOICE_FIELDS)
@pytest.mark.parametrize("other", ["", "other", "' - at `$.agent`", "\u0000`\n"])
def test_an_unknown_choice_is_refused_with_the_known_ones(
    op: str, field: str, choices: str, other: str
) -> None:
    assert refused_field(op, field, other) == ("bad_request", f"record.{field}: must be one of {choices}")
    for choice in choices.split(", "):
        needed = NEEDED.get((op, field), {}) | NEEDED.get((op, choice), {})
        assert getattr(kept(op, **needed | {field: choice}), field) == choice


@pytest.mark.parametrize(
    ("op", "members", "message"),
    [
        ("review", {"verdict": "withdrawn"}, "record.withdraws: is missing; the verdict withdrawn needs it"),
        ("assignment", {"type": "lease"}, "record.seconds: is missing; a lease needs it"),
    ],
)
def test_a_withdrawal_needs_withdraws_and_a_lease_needs_seconds(
    op: str, members: dict[str, Any], message: str
) -> None:
    error = refused(record_frame(op, LEAST_RECORDS[op][0] | members))
    assert (error.code, error.message) == ("bad_request", message)


@pytest.mark.parametrize(
    ("op", "field", "value", "message"),
    [
        ("decision_report", "agent", 5, "record.agent: expected `str | null`, got `int`"),
        ("decision_report", "judgment_call", 1, "record.judgment_call: expected `bool | null`, got `int`"),
        ("supplement", "values", [], "record.values: expected `object`, got `array`"),
        ("decision_report", "context", [], "record.context: expected `object`, got `array`"),
        ("decision_report", "is_exception", 1, "record.is_exception: expected `bool`, got `int`"),
        ("decision_report", "input_tokens", 1.5, "record.input_tokens: expected `int | null`, got `float`"),
        ("decision_report", "tags", "t", "record.tags: expected `array`, got `str`"),
        ("decision_report", "tags", ["t", 5], "record.tags[1]: expected `str`, got `int`"),
        ("decision_report", "tags", ["t", ""], "record.tags[1]: must not be empty"),
        ("outcome", "status", 5, "record.status: expected `str`, got `int`"),
        ("outcome", "value", "12", "record.value: expected `float | null`, got `str`"),
        ("outcome", "value", 2**63, "record.value: the integer does not fit 64 bits"),
        ("node", "metadata", [], "record.metadata: expected `object`, got `array`"),
        ("edge", "weight", True, "record.weight: expected `float | null`, got `bool`"),
        ("consultation", "value", {"n": 2**64}, "record.value.n: the integer does not fit 64 bits"),
    ],
)
def test_a_field_of_another_type_is_refused_with_its_path(
    op: str, field: str, value: Any, message: str
) -> None:
    assert refused_field(op, field, value) == ("bad_request", message)


@pytest.mark.parametrize("members", [{}, {"agent": None}, {"made_by": "system"}, {"made_by": "committee"}])
def test_a_decision_that_no_person_made_needs_an_agent(members: dict[str, Any]) -> None:
    error = refused(record_frame("decision_report", {"outcome": "BUY"} | members))
    message = "record.agent: is missing; only a decision of made_by human has none"
    assert (error.code, error.message) == ("bad_request", message)


def test_a_person_who_decided_is_never_named_by_the_record() -> None:
    assert kept("decision_report", made_by="human", agent=None).agent is None
    error = refused(record_frame("decision_report", {"outcome": "BUY", "made_by": "human", "agent": "ines"}))
    assert error.code == "bad_request"
    assert error.message.startswith("record.agent: the kernel or a key says which person decided")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "record.values: expected `object` of length >= 1"),
        ({"approved_by": "ines"}, "record.values.approved_by: a supplement can have actor, entity, "),
        ({"outcome": "SUCCESS"}, "record.values.outcome: a supplement can have actor, entity, "),
        ({"edge:CITES": "d"}, "record.values.edge:CITES: a supplement can have actor, entity, "),
        ({"colour": "red"}, "record.values.colour: a supplement can have actor, entity, "),
        ({"reasoning": " "}, "record.values.reasoning: must be a text that is not empty"),
        ({"entity": None}, "record.values.entity: must be a text that is not empty"),
        ({"confidence": 2}, "record.values.confidence: must be a number from 0 to 1"),
        ({"confidence": True}, "record.values.confidence: must be a number from 0 to 1"),
        ({"risk": "huge"}, "record.values.risk: must be one of low, medium, high, critical"),
        ({"confidence_level": "sure"}, "record.values.confidence_level: must be one of high, medium, low"),
        ({"timestamp_decision": "noon"}, "record.values.timestamp_decision: must be an RFC 3339 time"),
    ],
)
def test_a_supplement_holds_only_what_completes_a_trace(values: dict[str, Any], message: str) -> None:
    error = refused(record_frame("supplement", {"decision_id": "d", "values": values}))
    assert error.code == "bad_request"
    assert error.message.startswith(message)


@pytest.mark.parametrize("field", ["tags", "precedents"])
def test_a_record_has_up_to_64_tags_and_precedents_with_names(field: str) -> None:
    assert getattr(kept("decision_report", **{field: ["t"] * 64}), field) == ("t",) * 64
    message = f"record.{field}: holds more than 64 items"
    assert refused_field("decision_report", field, ["t"] * 65) == ("too_large", message)
    message = f"record.{field}[63]: has more than 256 characters"
    assert refused_field("decision_report", field, ["t"] * 63 + ["t" * 257]) == ("too_large", message)


def test_a_record_has_the_same_limits_of_depth_and_values_as_a_request() -> None:
    assert kept("consultation", value=nested(7)).value == nested(7)
    message = "record.value.0.k.0.k.0.k.0: nested deeper than 8 levels"
    assert refused_field("consultation", "value", nested(8)) == ("bad_request", message)
    others = 1 + len(LEAST_RECORDS["consultation"][0]) + 1  # the record, its fields and the list
    assert kept("consultation", value=[0] * (1024 - others))
    message = "record: holds more than 1024 values"
    assert refused_field("consultation", "value", [0] * (1025 - others)) == ("too_large", message)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_a_number_of_a_record_that_is_nan_or_infinite_is_refused(number: bytes) -> None:
    raw = record_frame("outcome", LEAST_RECORDS["outcome"][0] | {"value": "HERE"}).replace(b'"HERE"', number)
    assert refused(raw).code == "bad_request"


def test_the_protocol_document_lists_every_op_and_member_of_a_record() -> None:
    document = Path(__file__).parents[2] / "docs" / "reference" / "protocol.md"
    rows = [re.findall(r"`(\w+)`", line) for line in document.read_text(encoding="utf-8").splitlines()]
    documented = {row[0]: set(row[1:]) for row in rows if len(row) > 2 and row[0] in RECORDS}
    assert documented == {op: set(noun.__struct_fields__) for op, noun in RECORDS.items()}


# ---------------------------------------------------------------- work on the journal


COUNTERFACTUALS = records.Counterfactuals(
    run="r1",
    pack=records.JudgePack(name="core", version="2", sha256="a" * 64),
    model=records.JudgeModel(
        name="phi",
        sha256="b" * 64,
        quantisation="Q4_K_M",
        adapter=records.JudgeAdapter(name="tuned", sha256="c" * 64, scale=0.5),
    ),
    temperature=1.5,
    results=tuple(
        records.Redecided(
            decision_id=f"d{number}",
            served="deny",
            outcome="allow",
            direction="loosened",
            tier="model",
            floor="allow",
            label="allow",
            confidence=0.75,
            clauses=tuple(f"R{clause}" for clause in range(records.MAX_CLAUSES)),
            reason_code="low_confidence",
            score_ms=12.5,
            took_ms=13.25,
        )
        for number in range(records.MAX_REDECIDED)
    ),
)
PLAIN = msgspec.to_builtins(COUNTERFACTUALS)
REDECIDED = PLAIN["results"][0] | {"clauses": []}


def maintenance_frame(**record: Any) -> bytes:
    return record_frame("maintenance", record)


@pytest.mark.parametrize(
    "maintenance",
    [
        records.Maintenance(task="erase", actor="user:alice"),
        records.Maintenance(task="archive", before="2026-05-13T10:00:00+02:00"),
        records.Maintenance(task="checkpoint"),
        records.Maintenance(task="counterfactual", counterfactuals=COUNTERFACTUALS),
        records.Maintenance(
            task="import_graph",
            graph=records.GraphImport(
                nodes=(records.ImportedNode(id="n", node=records.Node(type="goal", title="t")),),
                edges=(
                    records.ImportedEdge(id="e", edge=records.Edge(source="n", target="m", type="leads_to")),
                ),
            ),
        ),
        records.Maintenance(task="promote", promotion=PROMOTION),
        records.Maintenance(task="shipped", shipped=records.Shipped(sink="postgres", seq=7, alarm="fork")),
        records.Maintenance(task="unship", sink="postgres"),
        records.Maintenance(task="archive", before="2026-05-13T10:00:00+02:00", unshipped=True),
    ],
)
def test_a_maintenance_task_is_decoded_as_it_was_encoded(maintenance: records.Maintenance) -> None:
    raw = encode_request("q", "maintenance", {"record": maintenance})
    assert decode(raw) == MaintenanceRequest(id="q", maintenance=maintenance)


@pytest.mark.parametrize(
    ("record", "code", "message"),
    [
        ({}, "bad_request", "record: object missing required field `task`"),
        (
            {"task": "burn"},
            "bad_request",
            "record.task: must be one of "
            + ", ".join(
                (
                    "erase, archive, checkpoint, rekey",
                    "calibrate, counterfactual, promote, import_graph, shipped, unship",
                )
            ),
        ),
        ({"task": "erase"}, "bad_request", "record.actor: is missing; the task erase needs it"),
        (
            {"task": "erase", "actor": None},
            "bad_request",
            "record.actor: is missing; the task erase needs it",
        ),
        ({"task": "erase", "actor": ""}, "bad_request", "record.actor: must not be empty"),
        (
            {"task": "erase", "actor": "user: "},
            "bad_request",
            "record.actor: must name an actor, such as `user:alice`",
        ),
        ({"task": "erase", "actor": "a" * 257}, "too_large", "record.actor: has more than 256 characters"),
        ({"task": "erase", "actor": 7}, "bad_request", "record.actor: expected `str | null`, got `int`"),
        ({"task": "archive"}, "bad_request", "record.before: is missing; the task archive needs it"),
        (
            {"task": "import_graph"},
            "bad_request",
            "record.graph: is missing; the task import_graph needs it",
        ),
        (
            {"task": "import_graph", "graph": {"nodes": [{"id": "a", "node": {"type": "goal"}}]}},
            "bad_request",
            "record.graph.nodes[0].node: object missing required field `title`",
        ),
        (
            {
                "task": "import_graph",
                "graph": {"edges": [{"id": "e", "edge": {"source": "a", "target": "a", "type": "leads_to"}}]},
            },
            "bad_request",
            "record.graph.edges[0].edge.target: is the source itself; no edge may be a loop (leads_to)",
        ),
        (
            {
                "task": "import_graph",
                "graph": {"nodes": [{"id": "a", "node": {"type": "goal", "title": "t", "supersedes": "b"}}]},
            },
            "bad_request",
            (
                "record.graph.nodes[0].node.supersedes: is for the op node; "
                "an import has an edge of the type supersedes"
            ),
        ),
        (
            {"task": "counterfactual"},
            "bad_request",
            "record.counterfactuals: is missing; the task counterfactual needs it",
        ),
        (
            {"task": "counterfactual", "counterfactuals": PLAIN | {"results": [REDECIDED] * 21}},
            "too_large",
            "record.counterfactuals.results: holds more than 20 items",
        ),
        (
            {
                "task": "counterfactual",
                "counterfactuals": PLAIN | {"results": [REDECIDED, REDECIDED | {"direction": "up"}]},
            },
            "bad_request",
            "record.counterfactuals.results[1].direction: must be one of same, loosened, tightened",
        ),
        (
            {"task": "archive", "before": "yesterday"},
            "bad_request",
            "record.before: must be an RFC 3339 time such as 2026-05-13T10:00:00Z",
        ),
        (
            {"task": "archive", "before": "2026-05-13T10:00:00"},
            "bad_request",
            "record.before: must be an RFC 3339 time such as 2026-05-13T10:00:00Z",
        ),
        ({"task": "promote"}, "bad_request", "record.promotion: is missing; the task promote needs it"),
        ({"task": "shipped"}, "bad_request", "record.shipped: is missing; the task shipped needs it"),
        ({"task": "unship"}, "bad_request", "record.sink: is missing; the task unship needs it"),
        (
            {"task": "promote", "promotion": msgspec.to_builtins(PROMOTION) | {"signature": None}},
            "bad_request",
            "record.promotion.signature: needs key; give both, or neither",
        ),
        (
            {"task": "promote", "promotion": msgspec.to_builtins(PROMOTION) | {"report": "x" * 32_769}},
            "too_large",
            "record.promotion.report: has more than 32768 characters",
        ),
    ],
)
def test_an_incomplete_maintenance_task_is_refused(record: dict[str, Any], code: str, message: str) -> None:
    error = refused(maintenance_frame(**record))
    assert (error.code, error.message) == (code, message)


def test_a_maintenance_task_needs_a_record() -> None:
    error = refused(record_frame("maintenance"))
    assert (error.code, error.message) == ("bad_request", "record: is missing; the op maintenance needs one")


def test_the_protocol_document_lists_every_task_of_maintenance() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "protocol.md").read_text(encoding="utf-8")
    section = text.partition("\n## Maintenance\n")[2].partition("\n## ")[0]
    _, *rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert tuple(rows) == get_args(get_type_hints(records.Maintenance)["task"])


# ---------------------------------------------------------------- packs and adapters


@pytest.mark.parametrize(
    "control",
    [
        records.Control(task="load", pack="/srv/packs/next"),
        records.Control(task="activate", pack="team-governance@2"),
        records.Control(task="shadow", pack="none"),
        records.Control(task="unload", pack="0" * 64),
        records.Control(task="reload"),
        records.Control(task="adapter", adapter="tuned", scale=0.5),
    ],
)
def test_a_control_task_is_decoded_as_it_was_encoded(control: records.Control) -> None:
    raw = encode_request("q", "control", {"record": control})
    assert decode(raw) == ControlRequest(id="q", control=control)


@pytest.mark.parametrize(
    ("record", "code", "message"),
    [
        ({}, "bad_request", "record: object missing required field `task`"),
        (
            {"task": "swap"},
            "bad_request",
            "record.task: must be one of load, activate, shadow, unload, reload, adapter, canary",
        ),
        ({"task": "load"}, "bad_request", "record.pack: is missing; the task load needs it"),
        ({"task": "unload", "pack": ""}, "bad_request", "record.pack: must not be empty"),
        ({"task": "load", "pack": "p" * 4097}, "too_large", "record.pack: has more than 4096 characters"),
        ({"task": "adapter"}, "bad_request", "record.adapter: is missing; the task adapter needs it"),
        ({"task": "adapter", "adapter": "a", "scale": 0}, "bad_request", None),
        ({"task": "adapter", "adapter": "a", "scale": 11}, "bad_request", "record.scale: must be at most 10"),
    ],
)
def test_an_incomplete_control_task_is_refused(
    record: dict[str, Any], code: str, message: str | None
) -> None:
    error = refused(record_frame("control", record))
    assert error.code == code
    assert "record.scale" in error.message if message is None else error.message == message


def test_the_protocol_document_lists_every_task_of_control() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "protocol.md").read_text(encoding="utf-8")
    section = text.partition("\n## Control\n")[2].partition("\n## ")[0]
    _, *rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert tuple(rows) == get_args(get_type_hints(records.Control)["task"])


def test_a_reply_names_the_adapter_its_scale_and_its_rendering() -> None:
    adapter = Adapter(name="tuned", sha256="ef" * 32, scale=0.5)
    assert DECISION.model is not None
    reply = replied(
        msgspec.structs.replace(DECISION, model=msgspec.structs.replace(DECISION.model, adapter=adapter))
    )
    assert reply["context"]["model"]["adapter"] == {
        "name": "tuned",
        "sha256": "ef" * 32,
        "scale": 0.5,
        "rendering": "full",
    }


def test_the_reply_to_a_record_has_its_id_kind_and_sequence_number() -> None:
    raw = encode_reply("q-1", **recorded_item("0198", "outcome", 17))
    assert decode_reply(raw) == {
        "v": 1,
        "id": "q-1",
        "recorded": {"id": "0198", "kind": "outcome", "seq": 17},
    }


# ---------------------------------------------------------------- the flat situation


@pytest.mark.parametrize(
    ("actor_id", "subject"),
    [
        ("user:alice", ("user", "alice")),
        ("service:deployer", ("service", "deployer")),
        ("alice", ("user", "alice")),
        ("user:a:b", ("user", "a:b")),
        ("user:", ("user", "user:")),
        (":alice", ("user", ":alice")),
    ],
)
def test_actor_id_is_the_subject_with_its_type_before_the_first_colon(
    actor_id: str, subject: tuple[str, str]
) -> None:
    decoded = situation(actor_id=actor_id).subject
    assert (decoded.type, decoded.id) == subject


@pytest.mark.parametrize(
    ("resource", "entity"),
    [
        ("env:production", ("env", "production")),
        ("production", ("resource", "production")),
        ("path:/srv:80", ("path", "/srv:80")),
    ],
)
def test_resource_is_the_resource_with_its_type_before_the_first_colon(
    resource: str, entity: tuple[str, str]
) -> None:
    decoded = situation(resource=resource).resource
    assert (decoded.type, decoded.id, decoded.properties) == (*entity, {})


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("actor_role", "role", "developer"),
        ("t3_tensor", "trust", {"competence": 0.5, "reliability": 0.6, "integrity": 0.7}),
        ("identity_metrics", "identity", {"account": "active"}),
    ],
)
def test_members_about_the_actor_become_properties_of_the_subject(key: str, name: str, value: Any) -> None:
    evaluation = situation(**{key: value})
    assert evaluation.subject.properties == {name: value}
    assert evaluation.context == {}


def test_action_type_is_the_name_of_the_action() -> None:
    assert situation(action_type="deploy").action == Action(name="deploy")


@pytest.mark.parametrize(
    "key",
    [
        "team_context",
        "recent_history",
        "details",
        "timestamp",
        "incident_status",
        "approval_pending",
        "anything_else",
        "subject",
        "now",
    ],
)
def test_any_other_key_is_context_under_the_same_name(key: str) -> None:
    evaluation = situation(**{key: ["a value"]})
    assert evaluation == Evaluation(
        subject=ALICE_READS.subject,
        action=ALICE_READS.action,
        resource=ALICE_READS.resource,
        context={key: ["a value"]},
    )


@pytest.mark.parametrize("key", ["actor_id", "action_type", "resource"])
@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        (..., "bad_request", "is missing"),
        ("", "bad_request", "must not be empty"),
        (7, "bad_request", "must be a string"),
        (None, "bad_request", "must be a string"),
        ("n" * 257, "too_large", "has 257 characters; the limit is 256"),
    ],
)
def test_a_situation_without_actor_action_or_resource_is_refused(
    key: str, value: Any, code: str, message: str
) -> None:
    whole = {"actor_id": "user:alice", "action_type": "read", "resource": "doc:handbook"} | {key: value}
    flat = {name: value for name, value in whole.items() if value is not ...}
    error = refused(frame(request=..., situation=flat))
    assert (error.code, error.message) == (code, f"situation.{key}: {message}")


def test_a_situation_has_the_same_limits_as_a_request() -> None:
    assert refused(frame(request=..., situation=[])).message == "situation: must be an object"
    for members, message in (
        ({"deep": nested(8)}, "situation.deep.0.k.0.k.0.k.0: nested deeper than 8 levels"),
        ({"many": [0] * 1025}, "situation.many: holds more than 1024 values"),
        ({"n": 2**63}, "situation.n: the integer does not fit 64 bits"),
    ):
        flat = {"actor_id": "a", "action_type": "b", "resource": "c"} | members
        assert refused(frame(request=..., situation=flat)).message == message


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (ALICE, "request"),
        ({"request": ALICE}, "request"),
        ({"situation": {"actor_id": "alice"}}, "situation"),
        ({"actor_id": "alice", "action_type": "read", "resource": "doc"}, "situation"),
        ({"subject": {}, "request": 1}, "request"),
        ([], "request"),
    ],
)
def test_a_client_may_give_either_form_bare_or_wrapped(value: Any, form: str) -> None:
    (name,) = question_fields(value)
    assert name == form


def test_both_forms_of_one_question_are_the_same_evaluation() -> None:
    flat = {"actor_id": "user:alice", "action_type": "read", "resource": "doc:handbook"}
    assert evaluation_from({"request": ALICE}) == evaluation_from({"situation": flat})


# ---------------------------------------------------------------- the id of a refused request


@pytest.mark.parametrize(
    "raw",
    [
        frame(v=2),
        frame(op="forget"),
        frame(request=...),
        frame(request=7),
        frame(deadline_ms=0),
        frame(request=ALICE | {"context": {"n": 2**64}}),
        frame(request=ALICE | {"context": nested(9)}),
        with_context(b'{"s":"\xff"}'),
        with_context(b'{"n":1e999}'),
    ],
)
def test_the_request_id_is_recovered_from_a_frame_that_is_refused(raw: bytes) -> None:
    refused(raw)
    assert recover_request_id(raw, MAX_BYTES) == "q-1"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", frame(id=7), frame(id=...), frame(id="i" * 257)])
def test_a_request_id_that_cannot_be_read_is_empty(raw: bytes) -> None:
    assert recover_request_id(raw, MAX_BYTES) == ""


def test_the_request_id_of_an_oversized_frame_is_empty() -> None:
    assert recover_request_id(frame(), len(frame())) == "q-1"
    assert recover_request_id(frame(), len(frame()) - 1) == ""


# ---------------------------------------------------------------- properties

NAMES = st.text(min_size=1, max_size=256)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
#: Three levels at most, so that it fits below a context or properties.
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: depth(value) <= 4)
OBJECTS = st.dictionaries(st.text(max_size=12), VALUES, max_size=4)
ENTITIES = st.builds(Entity, type=NAMES, id=NAMES, properties=OBJECTS)
EVALUATIONS = st.builds(
    Evaluation,
    subject=ENTITIES,
    action=st.builds(Action, name=NAMES, properties=OBJECTS),
    resource=ENTITIES,
    context=OBJECTS,
)
#: JSON of any kind, among it the names that the wire knows, so that most of it gets past the first check.
MEMBERS = st.sampled_from(
    [
        "v",
        "id",
        "op",
        "deadline_ms",
        "explain",
        "enrich",
        "pack",
        "annotations",
        "request",
        "situation",
        "subject",
        "action",
        "resource",
        "context",
        "type",
        "name",
        "properties",
        "actor_id",
        "action_type",
        "actor_role",
        "tags",
        "evaluations",
        "options",
        "idempotency_key",
        "record",
    ]
)
ANY_JSON = st.recursive(
    SCALARS | st.integers() | st.sampled_from([1, "evaluate", "status", "outcome", "inline", "user:alice"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(MEMBERS | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=30,
)


#: A field of any record type.
FIELDS = st.sampled_from(sorted({name for noun in RECORDS.values() for name in noun.__struct_fields__}))


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((depth(item) for item in inner), default=0)


def answer_to(raw: bytes) -> Any:
    """The reply of a daemon."""
    try:
        message = decode(raw)
    except RequestError as error:
        return json.loads(encode_error(recover_request_id(raw, MAX_BYTES), error))
    return json.loads(encode_reply(message.id))


def decoded_or_refused(raw: bytes) -> None:
    answer = answer_to(raw)
    assert answer["id"] == recover_request_id(raw, MAX_BYTES)
    if "error" in answer:
        assert answer["error"]["code"] in ERROR_CODES
        assert answer["error"]["message"]


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_decoded_or_refused(raw: bytes) -> None:
    decoded_or_refused(raw)


@given(ANY_JSON)
def test_arbitrary_json_is_decoded_or_refused(value: Any) -> None:
    decoded_or_refused(json.dumps(value).encode())


@given(MEMBERS, ANY_JSON)
def test_any_member_may_hold_arbitrary_json(member: str, value: Any) -> None:
    decoded_or_refused(frame(**{member: value}))
    decoded_or_refused(frame(request=ALICE | {member: value}))
    flat = {"actor_id": "user:alice", "action_type": "read", "resource": "doc:handbook"}
    decoded_or_refused(frame(request=..., situation=flat | {member: value}))


@given(st.sampled_from(sorted(LEAST_RECORDS)), st.dictionaries(FIELDS, ANY_JSON, max_size=3) | ANY_JSON)
def test_a_record_may_hold_arbitrary_json(op: str, value: Any) -> None:
    decoded_or_refused(record_frame(op, value))
    if isinstance(value, dict):
        decoded_or_refused(record_frame(op, LEAST_RECORDS[op][0] | value))


@given(st.data())
def test_a_valid_frame_with_a_few_bytes_changed_is_decoded_or_refused(data: st.DataObject) -> None:
    raw = bytearray(frame(request=ALICE | {"context": {"k": [1.5, "s", None]}}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    decoded_or_refused(bytes(raw))


@pytest.mark.parametrize(
    "filling",
    [b"[" * 8_000_000, b"[0," * 2_000_000, b'{"":' * 2_000_000, b"0" * 8_000_000, b'"\\u0041' * 1_000_000],
    ids=["brackets", "list", "objects", "digits", "escapes"],
)
def test_the_largest_frame_that_config_allows_is_refused(filling: bytes) -> None:
    refused(with_context(b'{"c":' + filling)[: 8 * 1024 * 1024], max_bytes=8 * 1024 * 1024)


@given(EVALUATIONS)
def test_an_evaluation_is_decoded_as_it_was_encoded(evaluation: Evaluation) -> None:
    raw = encode_request("q", "evaluate", {"request": msgspec.to_builtins(evaluation)})
    message = decode(raw, max_bytes=1_000_000)
    assert isinstance(message, EvaluateRequest)
    assert message.evaluation == evaluation


# ---------------------------------------------------------------- replies

DECISION = Decision(
    id="0198",
    at=1_767_279_600.0,
    evaluation=ALICE_READS,
    caller=Caller(transport="ipc", uid=1000),
    outcome="require_mfa",
    allow=False,
    tier="model",
    floor=Floor(outcome="allow", final=False, rules=("reads",), clauses=("R7",)),
    risk="medium",
    pack=PackInfo(name="small", version="1.0.0", sha256="ab" * 32),
    model=ModelInfo(
        name="stub",
        sha256="cd" * 32,
        quantisation="none",
        architecture="stub",
        parameters=0,
        build="1",
        device="cpu",
    ),
    confidence=0.75,
    probabilities={"allow": 0.25, "require_mfa": 0.75},
    explanation=Explanation(
        classification="routine",
        clauses=("R1", "R2"),
        reasoning="It is so.",
        text="whole",
        generated_tokens=9,
        source="model",
    ),
    scored=Scored(
        label="require_mfa",
        probabilities={"allow": 0.25, "require_mfa": 0.75},
        logits=(0.0, 1.0),
        suffix_tokens=(7, 8, 9),
        prefix_tokens=1241,
        prefix_digest="ef" * 32,
        score_ms=3.0,
    ),
    obligations=(Obligation(id="step-up", type="step-up", properties={"acr_value": "phr"}),),
    timings=Timings(queue_ms=1.0, rules_ms=2.0, score_ms=3.0),
)


def replied(decision: Decision = DECISION, *, explained: bool = True) -> dict[str, Any]:
    item = decision_item(decision, explained=explained, commit_ms=4.0, total_ms=11.0)
    return decode_reply(encode_reply("q-1", **item))


def test_the_reply_to_an_evaluation_has_the_documented_shape() -> None:
    assert replied() == {
        "v": 1,
        "id": "q-1",
        "decision": False,
        "context": {
            "decision_id": "0198",
            "outcome": "require_mfa",
            "classification": "routine",
            "risk": "medium",
            "reasoning": "It is so.",
            "reasoning_source": "model",
            "clauses": ["R1", "R2"],
            "confidence": 0.75,
            "probabilities": {"allow": 0.25, "require_mfa": 0.75},
            "tier": "model",
            "floor": "allow",
            "rules": ["reads"],
            "obligations": [{"id": "step-up", "type": "step-up", "properties": {"acr_value": "phr"}}],
            "precedents": [],
            "pack": {"name": "small", "version": "1.0.0", "sha256": "ab" * 32},
            "model": {"name": "stub", "sha256": "cd" * 32, "build": "1", "exact": True, "adapter": None},
            "tokens": {"prefix": 1241, "question": 3, "explanation": 9},
            "timings_ms": {"queue": 1.0, "rules": 2.0, "score": 3.0, "commit": 4.0, "total": 11.0},
        },
    }


def test_a_reply_without_explanation_has_the_rules_clauses_and_no_reasoning() -> None:
    context = replied(explained=False)["context"]
    assert (context["classification"], context["reasoning"], context["clauses"]) == (None, None, ["R7"])
    assert context.keys() == replied()["context"].keys()


def test_a_reply_has_token_counts_only_if_the_model_scored_it() -> None:
    assert replied(explained=False)["context"]["tokens"] == {"prefix": 1241, "question": 3, "explanation": 0}
    by_rules = msgspec.structs.replace(DECISION, tier="rule", model=None, scored=None)
    assert replied(by_rules)["context"]["tokens"] is None


def test_an_explanation_that_never_came_gives_the_same_reply() -> None:
    unexplained = msgspec.structs.replace(DECISION, explanation=None)
    assert replied(unexplained) == replied(explained=False)


def test_a_reason_code_is_there_only_when_there_is_one() -> None:
    fallen = msgspec.structs.replace(
        DECISION, tier="fallback", reason_code="deadline_exceeded", model=None, confidence=None
    )
    context = replied(fallen)["context"]
    assert "reason_code" not in replied()["context"]
    assert context.keys() - replied()["context"].keys() == {"reason_code"}
    assert (context["reason_code"], context["model"], context["confidence"]) == (
        "deadline_exceeded",
        None,
        None,
    )


def test_decision_is_true_only_for_a_decision_that_allows() -> None:
    allowed = msgspec.structs.replace(DECISION, outcome="allow", allow=True)
    assert replied(allowed)["decision"] is True
    assert replied()["decision"] is False


def test_an_error_reply_is_decoded_as_the_same_error() -> None:
    for error in (
        RequestError("busy", "the queue is full", retry_after_ms=250),
        RequestError("bad_request", "v: the protocol version is missing; this is 1"),
    ):
        raw = encode_error("q-1", error)
        body = json.loads(raw)
        assert (body["v"], body["id"], body["error"]["code"]) == (1, "q-1", error.code)
        assert ("retry_after_ms" in body["error"]) == (error.retry_after_ms is not None)
        with pytest.raises(RequestError) as refusal:
            decode_reply(raw)
        assert (refusal.value.code, refusal.value.message, refusal.value.retry_after_ms) == (
            error.code,
            error.message,
            error.retry_after_ms,
        )


@pytest.mark.parametrize("code", ERROR_CODES)
def test_a_failed_item_of_a_batch_is_never_an_allow(code: Any) -> None:
    item = error_item(RequestError(code, "message"))
    assert item["decision"] is False
    assert item["context"]["error"].keys() == {"status", "code", "message"}
    assert 400 <= item["context"]["error"]["status"] <= 599


def test_an_event_message_is_its_kind_and_a_json_object() -> None:
    assert DECISION.explanation is not None
    kind, body = encode_event("explanation", "0198", 7, 3, explanation_item(DECISION.explanation))
    assert kind == b"explanation"
    assert json.loads(body) == {
        "v": 1,
        "decision_id": "0198",
        "seq": 7,
        "number": 3,
        "classification": "routine",
        "clauses": ["R1", "R2"],
        "reasoning": "It is so.",
        "reasoning_source": "model",
        "truncated": False,
    }


def test_any_other_reply_carries_version_and_id() -> None:
    assert decode_reply(encode_reply("q-1", status={"ok": True})) == {
        "v": 1,
        "id": "q-1",
        "status": {"ok": True},
    }


@pytest.mark.parametrize(
    ("op", "record"),
    [
        ("evaluate", ...),
        ("status", ...),
        ("metrics", ...),
        ("outcome", {"decision_id": "0198", "status": "SUCCESS"}),
        ("review", {"decision_id": "0198", "reviewer": "ines", "verdict": "accept"}),
        ("maintenance", {"task": "checkpoint"}),
        ("control", {"task": "reload"}),
    ],
)
def test_op_of_gives_the_op_of_each_record(op: str, record: Any) -> None:
    assert op_of(decode(frame(op=op, record=record))) == op


def test_the_op_of_a_batch_is_evaluate() -> None:
    assert op_of(decode(frame(evaluations=[{}, {}]))) == "evaluate"
