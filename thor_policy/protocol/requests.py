"""The wire format, protocol version 1: one JSON frame in, one JSON frame out.

Owns JSON on the sockets and the mapping of the older flat situation; no other room knows of either.
Invariant: whatever bytes arrive, the result is a typed message or a RequestError that names the field and
the limit. Everything inside a request is hostile text. Pure; called by the main thread and by clients.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from thor_policy.core import records
from thor_policy.core.errors import ErrorCode, RequestError
from thor_policy.core.requests import Action, Annotations, Entity, Evaluation, Explain, Json
from thor_policy.protocol.messages import (
    OPS,
    PROTOCOL_VERSION,
    ControlRequest,
    EvaluateBatchRequest,
    EvaluateRequest,
    Idempotency,
    MaintenanceRequest,
    Message,
    RecordRequest,
    Semantic,
    StatusRequest,
)

#: Objects and lists inside one another, counted from `request` or `record`.
MAX_DEPTH = 8
#: Values (of any kind) in one request or record.
MAX_VALUES = 1024
#: Evaluations in one batch.
MAX_EVALUATIONS = 64
#: Characters of an id, a type or an action's name.
MAX_NAME_CHARS = 256
#: Bounds of the integers that rules, SQLite and other languages can hold.
MIN_INT, MAX_INT = -(2**63), 2**63 - 1


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
    options: Raw | UnsetType = UNSET
    record: Raw | UnsetType = UNSET


_Time = Annotated[datetime, Meta(tz=True)]
#: How msgspec words what is wrong, and where: the place comes last, behind what may be hostile text.
_TOLD = re.compile(r"(.*?)(?: - at `\$([^`]*)`)?", re.DOTALL)
#: How it words a value outside the bounds of its type, and how this room says so.
_BOUND = re.compile(r"expected `(?:int|float|(str|array))` (?:of length )?([<>]=) (\d+)(?:\.0)?")
_BOUND_TOLD: dict[tuple[str | None, str], tuple[ErrorCode, str]] = {
    ("str", ">="): ("bad_request", "must not be empty"),
    ("str", "<="): ("too_large", "has more than {} characters"),
    ("array", "<="): ("too_large", "holds more than {} items"),
    (None, ">="): ("bad_request", "must be at least {}"),
    (None, "<="): ("bad_request", "must be at most {}"),
}
_envelopes = msgspec.json.Decoder(_Envelope)


# ---------------------------------------------------------------- requests


def decode_request(
    frame: bytes,
    *,
    max_bytes: int,
    max_deadline_ms: int,
    authorise: Callable[[str], None] = lambda op: None,
) -> Message:
    """Message in `frame`. Raises RequestError; `request_id` recovers the id for its reply.

    `authorise` hears of the op before anything else of the request is looked at, and may raise.
    """
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
    if envelope.op not in OPS:
        raise RequestError("bad_request", f"op: must be one of {', '.join(OPS)}")
    authorise(envelope.op)
    if envelope.op in ("status", "metrics"):
        return StatusRequest(id=envelope.id, op=envelope.op)
    if envelope.idempotency_key is not UNSET:
        _name(envelope.idempotency_key, "idempotency_key")
        if envelope.op in ("maintenance", "control"):
            raise RequestError(
                "bad_request", "idempotency_key: goes with questions and records only; leave it out"
            )
    deadline_ms = None if envelope.deadline_ms is UNSET else envelope.deadline_ms
    if deadline_ms is not None and not (type(deadline_ms) is int and 1 <= deadline_ms <= max_deadline_ms):
        raise RequestError("bad_request", f"deadline_ms: must be a whole number from 1 to {max_deadline_ms}")
    if envelope.op == "evaluate":
        return _decode_evaluate(envelope, deadline_ms)
    if envelope.op == "maintenance":
        return MaintenanceRequest(id=envelope.id, maintenance=_decode_maintenance(envelope))
    if envelope.op == "control":
        return ControlRequest(id=envelope.id, control=_decode_control(envelope))
    record = _decode_record(envelope)
    once = _idempotency(envelope, record)
    return RecordRequest(id=envelope.id, record=record, deadline_ms=deadline_ms, idempotency=once)


def recover_request_id(frame: bytes, max_bytes: int) -> str:
    """The id inside a frame that could not be decoded, as far as it can be told; else an empty string."""
    if len(frame) > max_bytes:
        return ""
    try:
        found = _envelopes.decode(frame).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return found if isinstance(found, str) and len(found) <= MAX_NAME_CHARS else ""


def _decode_evaluate(envelope: _Envelope, deadline_ms: int | None) -> EvaluateRequest | EvaluateBatchRequest:
    if envelope.explain not in get_args(Explain):
        raise RequestError("bad_request", f"explain: must be one of {', '.join(get_args(Explain))}")
    if envelope.pack is not UNSET:
        _name(envelope.pack, "pack")
    annotations = Annotations()
    if isinstance(envelope.annotations, Raw):
        told = _decode_json(envelope.annotations, where="annotations")
        annotations = _convert(told, Annotations, "annotations")

    pack = None if envelope.pack is UNSET else envelope.pack

    def asked(evaluation: Evaluation, number: int | None = None) -> EvaluateRequest:
        return EvaluateRequest(
            id=envelope.id,
            evaluation=evaluation,
            explain=envelope.explain,
            deadline_ms=deadline_ms,
            pack=pack,
            annotations=annotations,
            idempotency=_idempotency(envelope, [evaluation, annotations, pack], number),
        )

    if isinstance(envelope.evaluations, Raw):
        many = _decode_many(envelope, _decode_json(envelope.evaluations, where="evaluations"), asked)
        if many is not None:
            return many
    if (envelope.request is UNSET) == (envelope.situation is UNSET):
        raise RequestError("bad_request", "request: give either `request` or `situation`, and only one")
    if isinstance(envelope.request, Raw):
        return asked(evaluation_of(_decode_json(envelope.request, where="request"), "request"))
    assert isinstance(envelope.situation, Raw)  # noqa: S101
    return asked(from_situation(_decode_json(envelope.situation, where="situation")))


def _decode_many(
    envelope: _Envelope, items: Json, asked: Callable[[Evaluation, int], EvaluateRequest]
) -> EvaluateBatchRequest | None:
    """The batch of an envelope, `request` giving defaults; None if it is empty: a single question."""
    if not isinstance(items, list):
        raise RequestError("bad_request", "evaluations: must be an array")
    if len(items) > MAX_EVALUATIONS:
        raise RequestError(
            "too_large", f"evaluations: holds {len(items)} items; the limit is {MAX_EVALUATIONS}"
        )
    if envelope.situation is not UNSET:
        raise RequestError(
            "bad_request", "situation: cannot go with `evaluations`; give `request`, or neither"
        )
    options = _decode_json(envelope.options, where="options") if isinstance(envelope.options, Raw) else {}
    semantic: Any = options.get("evaluations_semantic", "execute_all") if isinstance(options, dict) else 0
    if semantic not in get_args(Semantic):
        raise RequestError(
            "bad_request", f"options.evaluations_semantic: must be one of {', '.join(get_args(Semantic))}"
        )
    if not items:
        return None
    defaults = _decode_json(envelope.request, where="request") if isinstance(envelope.request, Raw) else {}
    if not isinstance(defaults, dict):
        raise RequestError("bad_request", "request: must be an object")
    decoded: list[EvaluateRequest | RequestError] = []
    for number, item in enumerate(items):
        where = f"evaluations.{number}"
        try:
            if not isinstance(item, dict):
                raise RequestError("bad_request", f"{where}: must be an object")
            decoded.append(asked(evaluation_of(defaults | item, where), number))
        except RequestError as error:
            decoded.append(error)
    return EvaluateBatchRequest(id=envelope.id, items=tuple(decoded), semantic=semantic)


def _idempotency(envelope: _Envelope, content: Any, number: int | None = None) -> Idempotency | None:
    """The key of an envelope, and the digest of what it asks; each item of a batch has a key of its own."""
    if envelope.idempotency_key is UNSET:
        return None
    told = msgspec.json.encode([envelope.op, content], order="deterministic")
    key = msgspec.json.encode([envelope.idempotency_key, number]).decode()
    return Idempotency(key=key, content=hashlib.sha256(told).hexdigest())


def _decode_maintenance(envelope: _Envelope) -> records.Maintenance:
    maintenance: records.Maintenance = _convert(_record_member(envelope), records.Maintenance, "record")
    needed = {
        "erase": "actor",
        "archive": "before",
        "calibrate": "calibration",
        "counterfactual": "counterfactuals",
        "promote": "promotion",
    }.get(maintenance.task)
    if needed is not None and getattr(maintenance, needed) is None:
        raise RequestError(
            "bad_request", f"record.{needed}: is missing; the task {maintenance.task} needs it"
        )
    if maintenance.task == "erase" and not _split(maintenance.actor or "", "user")[1].strip():
        raise RequestError("bad_request", "record.actor: must name somebody, as `user:alice`")
    if maintenance.task == "archive" and not _is_time(maintenance.before or ""):
        raise RequestError(
            "bad_request", "record.before: must be an RFC 3339 time such as 2026-05-13T10:00:00Z"
        )
    if (told := maintenance.promotion) is not None and (told.key is None) != (told.signature is None):
        raise RequestError("bad_request", "record.promotion.signature: goes with key; give both, or neither")
    return maintenance


def _decode_control(envelope: _Envelope) -> records.Control:
    control: records.Control = _convert(_record_member(envelope), records.Control, "record")
    needed = {"adapter": "adapter"}.get(control.task, "pack")
    if control.task != "reload" and getattr(control, needed) is None:
        raise RequestError("bad_request", f"record.{needed}: is missing; the task {control.task} needs it")
    return control


def _record_member(envelope: _Envelope) -> Json:
    if not isinstance(envelope.record, Raw):
        raise RequestError("bad_request", f"record: is missing; the op {envelope.op} needs one")
    raw = _decode_json(envelope.record, where="record")
    _check(raw, "record")
    return raw


def _decode_record(envelope: _Envelope) -> records.Record:
    record: records.Record = _convert(_record_member(envelope), records.RECORDS[envelope.op], "record")
    if isinstance(record, records.Consultation):
        if record.decision_id is None and record.session is None:
            raise RequestError("bad_request", "record.decision_id: is missing; give it, or `session`")
        if record.fresh_at is not None and not _is_time(record.fresh_at):
            raise RequestError(
                "bad_request", "record.fresh_at: must be an RFC 3339 time such as 2026-05-13T10:00:00Z"
            )
    if isinstance(record, records.Review) and record.verdict == "withdrawn" and record.withdraws is None:
        raise RequestError("bad_request", "record.withdraws: is missing; the verdict withdrawn needs it")
    if isinstance(record, records.Assignment) and record.type == "lease" and record.seconds is None:
        raise RequestError("bad_request", "record.seconds: is missing; a lease needs it")
    return record


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
    """The evaluation that an older, flat situation stands for (table in docs/reference/protocol.md)."""
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


# ---------------------------------------------------------------- checks


def _decode_json(data: bytes | Raw, decoder: Any = None, *, where: str = "") -> Any:
    try:
        return decoder.decode(data) if decoder else msgspec.json.decode(data)
    except msgspec.ValidationError as error:
        raise RequestError("bad_request", ": ".join(_told(error, where))) from error
    except msgspec.DecodeError as error:
        raise RequestError("bad_request", f"the request is not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise RequestError("bad_request", "the request is not valid UTF-8") from error
    except RecursionError as error:
        raise RequestError(
            "bad_request", f"{where or 'the request'}: nested deeper than {MAX_DEPTH} levels"
        ) from error


def _convert(raw: Json, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        place, problem = _told(error, where)
        code: ErrorCode = "bad_request"
        if bound := _BOUND.fullmatch(problem):
            code, problem = _BOUND_TOLD[bound[1], bound[2]]
            problem = problem.format(bound[3])
        elif problem.startswith("invalid enum value"):
            problem = f"must be one of {', '.join(_choices(kind, place.removeprefix(f'{where}.')))}"
        raise RequestError(code, f"{place}: {problem}") from error


def _told(error: msgspec.ValidationError, where: str) -> tuple[str, str]:
    """Where and what, from msgspec's message: `request.subject.id` and `expected ..`."""
    found = _TOLD.fullmatch(str(error))
    assert found is not None  # noqa: S101  any text matches
    message, path = found[1], found[2] or ""
    return f"{where}{path}".lstrip(".") or "the request", f"{message[:1].lower()}{message[1:]}"


def _choices(kind: Any, place: str) -> list[str]:
    """The strings that a field of literals admits, be it optional or inside other structs."""
    parts: list[Any] = []
    for field in place.split("."):
        parts = _leaves(get_type_hints(kind)[field.partition("[")[0]])
        kind = next((one for one in parts if isinstance(one, type) and issubclass(one, Struct)), kind)
    return [one for one in parts if isinstance(one, str)]


def _leaves(hint: Any) -> list[Any]:
    """What a type is made of, taken apart to the end."""
    return [leaf for part in get_args(hint) for leaf in _leaves(part)] or [hint]


def _is_time(text: str) -> bool:
    """True for an RFC 3339 time that can be said in UTC."""
    try:
        msgspec.convert(text, _Time).astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        return False
    return True


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
