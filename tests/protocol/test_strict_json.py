"""Strict JSON on the wire: members that are there twice, numbers that do not fit, optional nulls."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct, structs

from tests.build import LEAST_RECORDS
from thor_policy.core import records
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Action, Annotations, Entity, Evaluation
from thor_policy.protocol.messages import (
    ControlRequest,
    EvaluateBatchRequest,
    EvaluateRequest,
    MaintenanceRequest,
    Message,
    RecordRequest,
    StatusRequest,
)
from thor_policy.protocol.requests import decode_request, evaluation_from, recover_request_id

MAX_BYTES = 65_536
#: A question in which every member is there.
REQUEST = (
    '{"subject":{"type":"user","id":"kim","properties":{"role":"guest"}},'
    '"action":{"name":"look","properties":{"method":"GET"}},'
    '"resource":{"type":"plain","id":"x","properties":{"owner":{"id":"kim"}}},'
    '"context":{"amount":1.5,"list":[{"n":1},[{"n":2}]]}}'
)
ITEMS = f'{{"v":1,"evaluations":[{REQUEST}],"options":{{"evaluations_semantic":"execute_all"}}}}'
SITUATION = (
    '{"v":1,"situation":{"actor_id":"user:kim","actor_role":"guest","action_type":"look",'
    '"resource":"plain:x","details":{"a":{"b":1}}}}'
)
REPORT = (
    '{"v":1,"op":"decision_report","record":{"agent":"trader","outcome":"BUY",'
    '"context":{"price":{"amount":1}},"tags":["a"]}}'
)
QUESTION = f'{{"v":1,"id":"q-1","request":{REQUEST},"annotations":{{"scenario_id":"E01"}}}}'
ALICE: dict[str, Any] = {
    "subject": {"type": "user", "id": "alice"},
    "action": {"name": "read"},
    "resource": {"type": "doc", "id": "handbook"},
}
ALICE_READS = Evaluation(
    subject=Entity(type="user", id="alice"),
    action=Action(name="read"),
    resource=Entity(type="doc", id="handbook"),
)
FLAT = {"actor_id": "user:alice", "action_type": "read", "resource": "doc:handbook"}


def decode(raw: str | bytes, max_bytes: int = MAX_BYTES) -> Message:
    frame = raw.encode() if isinstance(raw, str) else raw
    return decode_request(frame, max_bytes=max_bytes, max_deadline_ms=120_000)


def refused(raw: str | bytes, max_bytes: int = MAX_BYTES) -> str:
    with pytest.raises(RequestError) as refusal:
        decode(raw, max_bytes)
    assert refusal.value.code == "bad_request"
    return refusal.value.message


def whole(**members: Any) -> str:
    return json.dumps({"v": 1, "id": "q-1"} | members)


# ---------------------------------------------------------------- a member twice

TWICE = {
    "role": (QUESTION, '"role":"guest"', '"role":"guest","role":"staff"', "request.subject.properties.role"),
    "subject": (QUESTION, '"subject":', '"subject":{"type":"user","id":"eve"},"subject":', "request.subject"),
    "version": (QUESTION, '"v":1', '"v":1,"v":1', "v"),
    "id": (QUESTION, '"id":"q-1"', '"id":"q-0","id":"q-1"', "id"),
    "request": (QUESTION, '"request":', '"request":null,"request":', "request"),
    "scenario_id": (
        QUESTION,
        '"scenario_id":',
        '"scenario_id":"E02","scenario_id":',
        "annotations.scenario_id",
    ),
    "name of the action": (QUESTION, '"name":"look"', '"name":"look","name":"look"', "request.action.name"),
    "escaped letter": (
        QUESTION,
        '"role":',
        '"role":"staff","r\\u006fle":',
        "request.subject.properties.role",
    ),
    "escaped colon": (QUESTION, '"role":', '"a\\u003ab":1,"a:b":2,"role":', "request.subject.properties.a:b"),
    "escaped colon in capitals": (
        QUESTION,
        '"role":"guest"',
        '"role":"\\u003A\\u003A","role":"::"',
        "request.subject.properties.role",
    ),
    "empty name": (QUESTION, '"amount":', '"":1,"":1,"amount":', "request.context."),
    "within lists": (QUESTION, '[{"n":2}]', '[{"n":2,"n":2}]', "request.context.list.1.0.n"),
    "deep in a resource": (
        QUESTION,
        '{"id":"kim"}',
        '{"id":"kim","id":"eve"}',
        "request.resource.properties.owner.id",
    ),
    "ignored member": (QUESTION, '"v":1', '"v":1,"trace":{"a":[{"b":1,"b":1}]}', "trace.a.0.b"),
    "ignored member of the subject": (
        QUESTION,
        '"type":"user"',
        '"type":"user","x":{"y":0,"y":0}',
        "request.subject.x.y",
    ),
    "item of a batch": (ITEMS, '"amount":1.5', '"amount":1.5,"amount":2.5', "evaluations.0.context.amount"),
    "options": (ITEMS, '"options":{', '"options":{"x":{"y":1,"y":1},', "options.x.y"),
    "actor of a situation": (
        SITUATION,
        '"actor_id":',
        '"actor_id":"user:eve","actor_id":',
        "situation.actor_id",
    ),
    "detail of a situation": (SITUATION, '{"b":1}', '{"b":1,"b":2}', "situation.details.a.b"),
    "record": (REPORT, '"agent":', '"agent":"eve","agent":', "record.agent"),
    "context of a record": (REPORT, '{"amount":1}', '{"amount":1,"amount":1}', "record.context.price.amount"),
    "op": (REPORT, '"op":', '"op":"status","op":', "op"),
    "status": ('{"v":1,"op":"status"}', '"v":1', '"v":1,"x":{"y":1,"y":1}', "x.y"),
    "maintenance": (
        '{"v":1,"op":"maintenance","record":{"task":"checkpoint"}}',
        '"task":',
        '"task":"erase","task":',
        "record.task",
    ),
    "control": (
        '{"v":1,"op":"control","record":{"task":"reload"}}',
        '"task":',
        '"task":"adapter","task":',
        "record.task",
    ),
}


@pytest.mark.parametrize(("good", "part", "bad", "place"), TWICE.values(), ids=TWICE)
def test_a_member_that_is_there_twice_is_refused_with_its_place(
    good: str, part: str, bad: str, place: str
) -> None:
    assert decode(good)
    assert good.count(part) == 1
    assert refused(good.replace(part, bad)) == f"{place}: is there twice in one object; give it one time"


@pytest.mark.parametrize(
    "text",
    [
        '{"a:b":"c:d","e":"::"}',
        '{"\\u003a":"\\u003A",":x":"\\\\u003a"}',
        '{"a":"\\":\\":","b\\"":"\\\\"}',
        '{"a":{"a":{"a":[{"a":1},{"a":1}]}}}',
        '{"a":1,"A":1,"\\u0061 ":1,"\\u00e4":1,"a\\u0308":1}',
        '{"a" : 1 ,\n\t"b"\r:\t{ } }',
    ],
)
def test_colons_in_strings_and_equal_names_in_different_objects_are_accepted(text: str) -> None:
    message = decode(QUESTION.replace('{"amount":1.5,', f'{{"free":{text},'))
    assert isinstance(message, EvaluateRequest)
    assert message.evaluation.context["free"] == json.loads(text)


def test_a_long_name_is_cut_in_the_refusal_of_a_member_twice() -> None:
    name = "k" * 5_000
    assert refused(f'{{"v":1,"{name}":1,"{name}":1}}').startswith(f"{'k' * 40}: is there twice")


NAMES = st.text(max_size=6) | st.sampled_from(["role", "a:b", '"', "\\", ":", "ä"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.text(alphabet=':"\\u03aA{}[],', max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


def written(draw: st.DrawFn, value: Any) -> str:
    """The value as JSON, with any character of a string escaped or not, and white space anywhere."""
    space = draw(st.sampled_from(["", " ", "\n\t"]))
    if isinstance(value, dict):
        members = (f"{written(draw, name)}{space}:{written(draw, part)}" for name, part in value.items())
        return f"{{{space}{','.join(members)}}}"
    if isinstance(value, list):
        return f"[{','.join(written(draw, part) for part in value)}{space}]"
    if isinstance(value, str) and draw(st.booleans()):
        units = value.encode("utf-16-be")
        escapes = (units[at : at + 2].hex() for at in range(0, len(units), 2))
        return '"' + "".join(f"\\u{draw(st.sampled_from([e, e.upper()]))}" for e in escapes) + '"'
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


def objects(value: Any) -> list[dict[str, Any]]:
    """Every object in the value that has a member."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ([value] if isinstance(value, dict) and value else []) + [
        o for part in inner for o in objects(part)
    ]


class Twice(str):
    """A name that is equal to its text for JSON, and another one for a dict."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


@given(st.data())
def test_json_is_accepted_as_it_is_and_refused_with_any_member_written_twice(data: st.DataObject) -> None:
    value = data.draw(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3))
    where = data.draw(st.sampled_from(["context", "metadata", "ignored"]))

    def frame() -> bytes:
        text = written(data.draw, value)  # type: ignore[arg-type]
        free = json.dumps({"context": 0} | ALICE) if where == "context" else '{"type":"goal","title":"t"}'
        return {
            "context": f'{{"v":1,"request":{free.replace("0", text, 1)}}}',
            "metadata": f'{{"v":1,"op":"node","record":{{"type":"goal","title":"t","metadata":{text}}}}}',
            "ignored": f'{{"v":1,"op":"status","trace":{text}}}',
        }[where].encode()

    raw = frame()
    message = decode(raw, 10**6)
    if isinstance(message, EvaluateRequest):
        assert message.evaluation.context == value
    if isinstance(message, RecordRequest):
        assert isinstance(message.record, records.Node)
        assert message.record.metadata == value
    assert json.loads(raw)
    chosen = data.draw(st.sampled_from(objects(value)))
    name = data.draw(st.sampled_from(sorted(chosen)))
    chosen[Twice(name)] = data.draw(VALUES)
    assert "is there twice" in refused(frame(), 10**6)


#: Items of a list that fill a frame, and whether they are valid.
HOSTILE = {
    "quotes": (b'"\\""' + b',"\\""' * 12_000, True),
    "backslashes": (b'"' + b"\\\\" * 32_000 + b'"', True),
    "escaped colons": (b'"' + b"\\u003a" * 10_000 + b'"', True),
    "colons": (b'"' + b":" * 64_000 + b'"', True),
    "half a string": (b'"' + b"\\\\" * 32_000, False),
    "objects": (b"{}" + b",{}" * 20_000, True),
    "members": (b",".join(b'{"":0}' for _ in range(9_000)), True),
    "digits": (b"9" * 64_000, False),
    "integers": (b",".join(b"18446744073709551616" for _ in range(3_000)), False),
}


@pytest.mark.parametrize(("filling", "valid"), HOSTILE.values(), ids=HOSTILE)
def test_a_frame_full_of_quotes_backslashes_or_colons_is_read_right(filling: bytes, valid: bool) -> None:
    whole_list = b'{"v":1,"id":"q-1","op":"status","x":[' + filling + b"]"
    if valid:
        assert decode(whole_list + b"}") == StatusRequest(id="q-1", op="status")
    else:
        refused(whole_list + b"}")
    message = refused(whole_list + b',"y":"\\u003a","id":"q-2"}')
    assert message.startswith("id: is there twice") or not valid
    refused(whole_list[:-1])


# ---------------------------------------------------------------- numbers

NO_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 400 + ".0"]
NO_INTEGERS = [2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 18446744073709551615]
PLACES = {
    "context": (
        QUESTION.replace("1.5", "HERE"),
        "request.context.amount",
    ),
    "properties": (QUESTION.replace('"guest"', "HERE"), "request.subject.properties.role"),
    "ignored": ('{"v":1,"id":"q-1","op":"status","trace":{"a":[HERE]}}', "trace.a.0"),
    "ignored of the question": (
        QUESTION.replace('"name":"look"', '"name":"look","x":[HERE]'),
        "request.action.x.0",
    ),
    "annotations": (QUESTION.replace('"E01"', '"E01","x":HERE'), "annotations.x"),
    "options": (ITEMS.replace('"options":{', '"options":{"x":HERE,'), "options.x"),
    "items of another op": (
        '{"v":1,"id":"q-1","op":"status","evaluations":[{"n":HERE}]}',
        "evaluations.0.n",
    ),
    "situation": (SITUATION.replace('{"b":1}', '{"b":HERE}'), "situation.details.a.b"),
    "record": (REPORT.replace('"agent":', '"confidence":HERE,"agent":'), "record.confidence"),
    "context of a record": (REPORT.replace('{"amount":1}', '{"amount":HERE}'), "record.context.price.amount"),
    "ignored of a record": (REPORT.replace('"agent":', '"x":{"y":HERE},"agent":'), "record.x.y"),
    "deadline": (f'{{"v":1,"deadline_ms":HERE,"request":{REQUEST}}}', "deadline_ms"),
    "version": ('{"v":HERE,"op":"status"}', "v"),
    "scale": (
        '{"v":1,"op":"control","record":{"task":"adapter","adapter":"a","scale":HERE}}',
        "record.scale",
    ),
}


@pytest.mark.parametrize("number", NO_NUMBERS, ids=lambda number: number[:9])
@pytest.mark.parametrize(("text", "place"), PLACES.values(), ids=PLACES)
def test_a_number_that_is_not_finite_is_refused_in_every_member(text: str, place: str, number: str) -> None:
    message = refused(text.replace("HERE", number))
    if number[-1].isdecimal():
        assert message == f"{place}: the number is too large for 64 bits"
    else:
        assert message.startswith("the request is not valid JSON: ")


@pytest.mark.parametrize("number", NO_INTEGERS, ids=lambda number: str(number)[:9])
@pytest.mark.parametrize(("text", "place"), PLACES.values(), ids=PLACES)
def test_an_integer_beyond_64_bits_is_refused_in_every_member(text: str, place: str, number: int) -> None:
    assert refused(text.replace("HERE", str(number))) == f"{place}: the integer does not fit 64 bits"


def test_an_integer_beyond_64_bits_in_an_item_of_a_batch_refuses_that_item_alone() -> None:
    items = [ALICE, ALICE | {"context": {"n": [2**63]}}, ALICE | {"ignored": -(2**64)}, ALICE]
    batch = decode(whole(evaluations=items))
    assert isinstance(batch, EvaluateBatchRequest)
    assert [str(item) if isinstance(item, RequestError) else "decoded" for item in batch.items] == [
        "decoded",
        "evaluations.1.context.n.0: the integer does not fit 64 bits",
        "evaluations.2.ignored: the integer does not fit 64 bits",
        "decoded",
    ]
    assert refused(whole(evaluations=[ALICE], request={"n": 2**64})).startswith("request.n: the integer")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("inf"), ": inf is no JSON number; give a finite number, or leave the member out"),
        (2**63, ": the integer does not fit 64 bits; give a float or a string"),
        ({1: 2}, ": the name 1 is no string; make it one"),
    ],
)
def test_a_question_of_a_suite_that_is_no_json_is_refused(value: Any, problem: str) -> None:
    for fields, place in (
        ({"request": ALICE | {"context": {"n": value}}}, "request.context.n"),
        ({"situation": FLAT | {"n": value}}, "situation.n"),
    ):
        with pytest.raises(RequestError) as refusal:
            evaluation_from(fields)
        assert (refusal.value.code, refusal.value.message) == ("bad_request", f"{place}{problem}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e30", 1e30),
        (str(2**63 - 1), 2**63 - 1),
        (str(-(2**63)), -(2**63)),
        ("1" + "0" * 30 + ".0", 1e30),
        ("1.7976931348623157e308", 1.7976931348623157e308),
        ("1e-400", 0.0),
        ("-0", 0),
        ("1E5", 1e5),
        ('"18446744073709551616"', "18446744073709551616"),
    ],
)
def test_a_number_that_fits_keeps_its_value_and_its_type(text: str, value: Any) -> None:
    message = decode(PLACES["context"][0].replace("HERE", text))
    assert isinstance(message, EvaluateRequest)
    amount = message.evaluation.context["amount"]
    assert (type(amount), amount) == (type(value), value)


@pytest.mark.parametrize("bad", ["1e400", str(2**64), '{"n":1,"n":1}'])
def test_the_request_id_is_recovered_from_a_frame_with_strict_faults(bad: str) -> None:
    raw = PLACES["context"][0].replace("HERE", bad).encode()
    refused(raw)
    assert recover_request_id(raw, MAX_BYTES) == "q-1"


# ---------------------------------------------------------------- null


@pytest.mark.parametrize(
    "members",
    [
        {"id": None},
        {"op": None},
        {"deadline_ms": None},
        {"explain": None},
        {"pack": None},
        {"idempotency_key": None},
        {"annotations": None},
        {"situation": None},
        {"evaluations": None},
        {"options": None},
        {"record": None},
        {"annotations": {"scenario_id": None, "expected": None, "tags": None}},
        {"request": ALICE | {"context": None}},
        {"request": ALICE | {"subject": ALICE["subject"] | {"properties": None}}},
        {"request": ALICE | {"action": ALICE["action"] | {"properties": None}}},
        {"request": ALICE | {"resource": ALICE["resource"] | {"properties": None}}},
        {"request": None, "situation": FLAT},
        {
            "request": None,
            "situation": FLAT | {"actor_role": None, "t3_tensor": None, "identity_metrics": None},
        },
        {"evaluations": [], "options": {"evaluations_semantic": None}},
    ],
    ids=json.dumps,
)
def test_null_for_an_optional_member_reads_as_absent(members: dict[str, Any]) -> None:
    message = decode(whole(**{"request": ALICE} | members))
    assert message == EvaluateRequest(
        id=members.get("id", "q-1") or "",
        evaluation=ALICE_READS,
        explain="none",
        deadline_ms=None,
        pack=None,
        annotations=Annotations(),
    )


#: Every struct that a frame is decoded into.
STRUCTS = [
    Evaluation,
    Entity,
    Action,
    Annotations,
    *records.RECORDS.values(),
    records.Maintenance,
    records.Control,
    records.Calibration,
    records.Counterfactuals,
    records.Redecided,
    records.JudgePack,
    records.JudgeModel,
    records.JudgeAdapter,
    records.Promotion,
]


def test_null_in_an_item_of_a_batch_takes_the_default_of_the_batch() -> None:
    items = [{"context": None}, {"subject": None, "context": {"n": None}}]
    options = {"evaluations_semantic": None}
    message = decode(whole(request=ALICE | {"context": {"a": 1}}, evaluations=items, options=options))
    assert isinstance(message, EvaluateBatchRequest)
    assert message.semantic == "execute_all"
    contexts = [item.evaluation.context for item in message.items if isinstance(item, EvaluateRequest)]
    assert contexts == [{"a": 1}, {"n": None}]
    assert decode(whole(request=None, situation=None, evaluations=[ALICE]))


def test_null_inside_context_and_properties_stays_a_value() -> None:
    subject = ALICE["subject"] | {"properties": {"role": None}}
    message = decode(whole(request=ALICE | {"subject": subject, "context": {"a": None, "b": {"c": [None]}}}))
    assert isinstance(message, EvaluateRequest)
    assert message.evaluation.subject.properties == {"role": None}
    assert message.evaluation.context == {"a": None, "b": {"c": [None]}}
    message = decode(whole(situation=FLAT | {"details": None}))
    assert isinstance(message, EvaluateRequest)
    assert message.evaluation.context == {"details": None}


@pytest.mark.parametrize("op", LEAST_RECORDS)
def test_null_for_every_optional_member_of_a_record_reads_as_absent(op: str) -> None:
    fields, record = LEAST_RECORDS[op]
    nulls = dict.fromkeys(records.RECORDS[op].__struct_fields__)
    message = decode(whole(op=op, record=nulls | fields, deadline_ms=None, idempotency_key=None))
    assert message == RecordRequest(id="q-1", record=record, deadline_ms=None)


@pytest.mark.parametrize(
    ("op", "record"),
    [
        (op, fields | {name: None})
        for op, (fields, _) in LEAST_RECORDS.items()
        for name in fields
        if name != "session"
    ],
)
def test_null_for_a_required_member_of_a_record_is_refused(op: str, record: dict[str, Any]) -> None:
    (name,) = (name for name, value in record.items() if value is None)
    expected = f"expected `{'object' if name == 'values' else 'str'}`, got `null`"
    if name == "agent":
        expected = "is missing; only a decision of made_by human has none"
    assert refused(whole(op=op, record=record)) == f"record.{name}: {expected}"


def test_null_in_maintenance_and_control_reads_as_absent() -> None:
    control = decode(
        whole(op="control", record={"task": "adapter", "adapter": "a", "scale": None, "pack": None})
    )
    assert isinstance(control, ControlRequest)
    assert control.control.scale == 1.0
    redecided = {
        "decision_id": "d",
        "served": "allow",
        "outcome": "deny",
        "direction": "tightened",
        "tier": "rule",
        "floor": "deny",
        "clauses": None,
        "score_ms": None,
    }
    run = {
        "run": "r",
        "pack": {"name": "p", "version": "1", "sha256": "a" * 64},
        "model": {
            "name": "m",
            "sha256": "b" * 64,
            "quantisation": "q8",
            "adapter": {"name": "a", "sha256": "c" * 64, "scale": None},
        },
        "temperature": None,
        "results": [redecided],
    }
    message = decode(whole(op="maintenance", record={"task": "counterfactual", "counterfactuals": run}))
    assert isinstance(message, MaintenanceRequest)
    done = message.maintenance.counterfactuals
    assert done is not None
    assert done.model.adapter is not None
    assert (done.temperature, done.model.adapter.scale, done.results[0].clauses) == (1.0, 1.0, ())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"v": None}, "v: the protocol version is missing; this is 1"),
        ({"request": None}, "request: give either `request` or `situation`, and only one"),
        ({"request": None, "situation": None}, "request: give either `request` or `situation`, and only one"),
        ({"request": ALICE | {"subject": None}}, "request.subject: expected `object`, got `null`"),
        (
            {"request": ALICE | {"subject": {"type": None, "id": "a"}, "context": None}},
            "request.subject.type: expected `str`, got `null`",
        ),
        ({"request": None, "situation": FLAT | {"actor_id": None}}, "situation.actor_id: must be a string"),
        ({"evaluations": [None]}, None),
        ({"op": "outcome", "record": None}, "record: is missing; the op outcome needs one"),
        ({"annotations": {"tags": [None]}}, "annotations.tags[0]: expected `str`, got `null`"),
    ],
)
def test_null_for_a_required_member_is_refused(members: dict[str, Any], message: str | None) -> None:
    raw = whole(**{"request": ALICE} | members)
    if message is not None:
        assert refused(raw) == message
        return
    batch = decode(raw)
    assert isinstance(batch, EvaluateBatchRequest)
    assert str(batch.items[0]) == "evaluations.0: must be an object"


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_a_member_that_may_be_null_is_null_when_it_is_absent(kind: type[Struct]) -> None:
    for field in structs.fields(kind):
        if type(None) in get_args(field.type):
            assert field.default is None, field.name


def test_status_ignores_members_that_it_does_not_need() -> None:
    assert decode(whole(op="status", request=None, pack=None)) == StatusRequest(id="q-1", op="status")
