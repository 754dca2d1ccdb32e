"""The wire format, protocol version 1: one JSON frame in, one JSON frame out.

Owns JSON on the sockets and the mapping of the older flat situation; no other room knows of either.
Invariant: whatever bytes arrive, the result is a typed message or a RequestError that names the field and
the limit. Everything inside a request is hostile text. Pure; called by the main thread and by clients.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from thor_policy.core import Action, Annotations, Decision, Entity, Evaluation, Explain, Json, Timings
from thor_policy.errors import RequestError

PROTOCOL_VERSION = 1
#: Objects and lists inside one another, counted from `request`.
MAX_DEPTH = 8
#: Values (of any kind) in one request.
MAX_VALUES = 1024
#: Characters of an id, a type or an action's name.
MAX_NAME_CHARS = 256
#: Bounds of the integers that rules, SQLite and other languages can hold.
MIN_INT, MAX_INT = -(2**63), 2**63 - 1


class Evaluate(Struct, frozen=True, kw_only=True):
    """A question as it came in. `deadline_ms` is None when the request states none."""

    id: str
    evaluation: Evaluation
    explain: Explain
    deadline_ms: int | None
    pack: str | None
    annotations: Annotations


class Inquire(Struct, frozen=True, kw_only=True):
    """A question about the daemon itself, answered without the model."""

    id: str
    op: Literal["status", "metrics"]


Message: TypeAlias = Evaluate | Inquire


class _Envelope(Struct, frozen=True):
    v: Any = UNSET
    id: Any = ""
    op: Any = "evaluate"
    deadline_ms: Any = UNSET
    explain: Any = "none"
    pack: Any = UNSET
    idempotency_key: Any = UNSET
    annotations: Raw | UnsetType = UNSET
    request: Raw | UnsetType = UNSET
    situation: Raw | UnsetType = UNSET
    evaluations: Raw | UnsetType = UNSET


_envelopes = msgspec.json.Decoder(_Envelope)
_encoder = msgspec.json.Encoder()


# ---------------------------------------------------------------- requests


def decode(frame: bytes, *, max_bytes: int, max_deadline_ms: int) -> Message:
    """Message in `frame`. Raises RequestError; `request_id` recovers the id for its reply."""
    if len(frame) > max_bytes:
        raise RequestError("too_large", f"the request has {len(frame)} bytes; the limit is {max_bytes}")
    envelope = _decode_json(frame, _envelopes)
    if envelope.v is UNSET:
        raise RequestError("bad_request", f"v: the protocol version is missing; this is {PROTOCOL_VERSION}")
    if envelope.v != PROTOCOL_VERSION or isinstance(envelope.v, bool):
        raise RequestError(
            "version_mismatch", f"v: this daemon speaks protocol version {PROTOCOL_VERSION} only"
        )
    _name(envelope.id, "id", empty=True)
    if envelope.op in ("status", "metrics"):
        return Inquire(id=envelope.id, op=envelope.op)
    if envelope.op != "evaluate":
        raise RequestError("bad_request", "op: must be evaluate, status or metrics")
    return _decode_evaluate(envelope, max_deadline_ms)


def request_id(frame: bytes, max_bytes: int) -> str:
    """The id inside a frame that could not be decoded, as far as it can be told; else an empty string."""
    if len(frame) > max_bytes:
        return ""
    try:
        found = _envelopes.decode(frame).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return found if isinstance(found, str) and len(found) <= MAX_NAME_CHARS else ""


def _decode_evaluate(envelope: _Envelope, max_deadline_ms: int) -> Evaluate:
    for field in ("idempotency_key", "evaluations"):
        if getattr(envelope, field) is not UNSET:
            raise RequestError("bad_request", f"{field}: is not supported by this version; leave it out")
    if envelope.explain not in ("none", "inline"):
        raise RequestError("bad_request", "explain: must be none or inline")
    if envelope.pack is not UNSET:
        _name(envelope.pack, "pack")
    deadline_ms = None if envelope.deadline_ms is UNSET else envelope.deadline_ms
    if deadline_ms is not None and not (type(deadline_ms) is int and 1 <= deadline_ms <= max_deadline_ms):
        raise RequestError("bad_request", f"deadline_ms: must be a whole number from 1 to {max_deadline_ms}")
    if (envelope.request is UNSET) == (envelope.situation is UNSET):
        raise RequestError("bad_request", "request: give either `request` or `situation`, and only one")
    annotations = Annotations()
    if isinstance(envelope.annotations, Raw):
        annotations = _convert(_decode_json(envelope.annotations), Annotations, "annotations")
    if isinstance(envelope.request, Raw):
        evaluation = evaluation_of(_decode_json(envelope.request), "request")
    else:
        assert isinstance(envelope.situation, Raw)  # noqa: S101
        evaluation = from_situation(_decode_json(envelope.situation))
    return Evaluate(
        id=envelope.id,
        evaluation=evaluation,
        explain=envelope.explain,
        deadline_ms=deadline_ms,
        pack=None if envelope.pack is UNSET else envelope.pack,
        annotations=annotations,
    )


def evaluation_of(raw: Json, where: str) -> Evaluation:
    """An AuthZEN evaluation from decoded JSON; unknown members are ignored. Raises RequestError."""
    _check(raw, where)
    evaluation: Evaluation = _convert(raw, Evaluation, where)
    for entity, field in ((evaluation.subject, "subject"), (evaluation.resource, "resource")):
        _name(entity.type, f"{where}.{field}.type")
        _name(entity.id, f"{where}.{field}.id")
    _name(evaluation.action.name, f"{where}.action.name")
    return evaluation


def from_situation(raw: Json) -> Evaluation:
    """The evaluation that an older, flat situation stands for (table in docs/protocol.md)."""
    _check(raw, "situation")
    if not isinstance(raw, dict):
        raise RequestError("bad_request", "situation: must be an object")
    rest = dict(raw)
    for field in ("actor_id", "action_type", "resource"):
        if field not in rest:
            raise RequestError("bad_request", f"situation.{field}: is missing")
        _name(rest[field], f"situation.{field}")
    subject_type, subject_id = _split(rest.pop("actor_id"), "user")
    resource_type, resource_id = _split(rest.pop("resource"), "resource")
    renamed = (("actor_role", "role"), ("t3_tensor", "trust"), ("identity_metrics", "identity"))
    properties = {new: rest.pop(old) for old, new in renamed if old in rest}
    return Evaluation(
        subject=Entity(type=subject_type, id=subject_id, properties=properties),
        action=Action(name=rest.pop("action_type")),
        resource=Entity(type=resource_type, id=resource_id),
        context=rest,
    )


def question_fields(raw: Json) -> dict[str, Json]:
    """`{"request": ..}` or `{"situation": ..}`: which of the two forms a JSON value is."""
    if isinstance(raw, dict) and not {"subject", "action"} & raw.keys():
        for wrapped in ("request", "situation"):
            if wrapped in raw:
                return {wrapped: raw[wrapped]}
        return {"situation": raw}
    return {"request": raw}


def evaluation_from(fields: dict[str, Json]) -> Evaluation:
    """The evaluation in the result of `question_fields`. Raises RequestError."""
    if "situation" in fields:
        return from_situation(fields["situation"])
    return evaluation_of(fields["request"], "request")


def _split(name: str, default_type: str) -> tuple[str, str]:
    kind, colon, rest = name.partition(":")
    return (kind, rest) if colon and kind and rest else (default_type, name)


# ---------------------------------------------------------------- replies


def decision_reply(
    request_id: str, decision: Decision, *, explained: bool, commit_ms: float, total_ms: float
) -> bytes:
    """The reply to an evaluation; `explained` shows classification and reasoning, otherwise null."""
    explanation = decision.explanation if explained else None
    model = decision.model
    context = {
        "decision_id": decision.id,
        "outcome": decision.outcome,
        "classification": explanation.classification if explanation else None,
        "risk": decision.risk,
        "reasoning": explanation.reasoning if explanation else None,
        "clauses": explanation.clauses if explanation else decision.floor.clauses,
        "confidence": decision.confidence,
        "probabilities": decision.probabilities,
        "tier": decision.tier,
        "floor": decision.floor.outcome,
        "obligations": decision.obligations,
        "precedents": (),
        "pack": decision.pack,
        "model": model and {"name": model.name, "sha256": model.sha256, "build": model.build},
        "timings_ms": timings_ms(decision.timings) | {"commit": commit_ms, "total": total_ms},
    }
    if decision.reason_code is not None:
        context["reason_code"] = decision.reason_code
    return _encoder.encode(
        {"v": PROTOCOL_VERSION, "id": request_id, "decision": decision.allow, "context": context}
    )


def timings_ms(timings: Timings) -> dict[str, float]:
    """Stage names and their milliseconds."""
    return {"queue": timings.queue_ms, "rules": timings.rules_ms, "score": timings.score_ms}


def error_reply(request_id: str, error: RequestError) -> bytes:
    """The reply to a request that got no decision."""
    body: dict[str, Json] = {"code": error.code, "message": error.message}
    if error.retry_after_ms is not None:
        body["retry_after_ms"] = error.retry_after_ms
    return _encoder.encode({"v": PROTOCOL_VERSION, "id": request_id, "error": body})


def reply(request_id: str, **members: Json) -> bytes:
    """Any other reply."""
    return _encoder.encode({"v": PROTOCOL_VERSION, "id": request_id} | members)


# ---------------------------------------------------------------- the client's side


def encode_request(request_id: str, op: str, fields: dict[str, Json]) -> bytes:
    """A request frame."""
    return _encoder.encode({"v": PROTOCOL_VERSION, "id": request_id, "op": op} | fields)


def decode_reply(frame: bytes) -> dict[str, Json]:
    """A reply as an object. Raises RequestError if it is an error reply."""
    answer: dict[str, Json] = msgspec.json.decode(frame, type=dict[str, Any])
    if error := answer.get("error"):
        raise RequestError(error["code"], error["message"], retry_after_ms=error.get("retry_after_ms"))
    return answer


# ---------------------------------------------------------------- checks


def _decode_json(data: bytes | Raw, decoder: Any = None) -> Any:
    try:
        return decoder.decode(data) if decoder else msgspec.json.decode(data)
    except msgspec.ValidationError as error:
        raise RequestError("bad_request", _told(error, "")) from error
    except msgspec.DecodeError as error:
        raise RequestError("bad_request", f"the request is not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise RequestError("bad_request", "the request is not valid UTF-8") from error
    except RecursionError as error:
        raise RequestError("bad_request", f"nested deeper than {MAX_DEPTH} levels") from error


def _convert(raw: Json, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise RequestError("bad_request", _told(error, where)) from error


def _told(error: msgspec.ValidationError, where: str) -> str:
    """msgspec's message with the path in front: `request.subject.id: expected ..`."""
    message, _, path = str(error).partition(" - at `$")
    place = where + path.rstrip("`")
    return f"{place.lstrip('.') or 'the request'}: {message[:1].lower()}{message[1:]}"


def _name(value: Json, where: str, *, empty: bool = False) -> None:
    if not isinstance(value, str):
        raise RequestError("bad_request", f"{where}: must be a string")
    if not value and not empty:
        raise RequestError("bad_request", f"{where}: must not be empty")
    if len(value) > MAX_NAME_CHARS:
        raise RequestError(
            "too_large", f"{where}: has {len(value)} characters; the limit is {MAX_NAME_CHARS}"
        )


def _check(raw: Json, where: str) -> None:
    """Bound depth, number of values and integers, without recursion."""
    stack: list[tuple[Json, str, int]] = [(raw, where, 0)]
    seen = 0
    while stack:
        value, path, depth = stack.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise RequestError("too_large", f"{where}: holds more than {MAX_VALUES} values")
        if isinstance(value, dict | list):
            if depth == MAX_DEPTH:
                raise RequestError("bad_request", f"{path}: nested deeper than {MAX_DEPTH} levels")
            if len(value) > MAX_VALUES:
                raise RequestError("too_large", f"{path}: holds more than {MAX_VALUES} values")
            items = value.items() if isinstance(value, dict) else enumerate(value)
            stack.extend((item, f"{path}.{str(key)[:40]}", depth + 1) for key, item in items)
        elif isinstance(value, int) and not MIN_INT <= value <= MAX_INT:
            raise RequestError("bad_request", f"{path}: the integer does not fit 64 bits")
