"""The wire format, protocol version 1: one JSON frame in, one JSON frame out.

Owns the decoding of requests and the mapping of the older flat situation; no other package does either.
Invariant: any bytes give a typed message, or a RequestError that names the field and the limit. Null for an
optional member gives the message that its absence gives. Everything in a request is hostile text. Pure;
called by the main thread and by clients.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Struct
from msgspec.structs import replace

from thor_policy.core import graph, records, strict_json, trace_context
from thor_policy.core.decisions import ConfidenceLevel
from thor_policy.core.errors import ErrorCode, RequestError
from thor_policy.core.recall import SimilarQuery
from thor_policy.core.requests import (
    RISKS,
    Action,
    Annotations,
    Enrich,
    Entity,
    Evaluation,
    Explain,
    Json,
    is_time,
)
from thor_policy.core.searches import Search, Target
from thor_policy.core.sources import Push
from thor_policy.core.traces import REQUIREMENTS, cure_of
from thor_policy.protocol.messages import (
    OPS,
    PROTOCOL_VERSION,
    ApprovalsRequest,
    Behalf,
    ControlRequest,
    EvaluateBatchRequest,
    EvaluateRequest,
    Idempotency,
    MaintenanceRequest,
    Message,
    PushRequest,
    RecordRequest,
    SearchRequest,
    Semantic,
    SimilarRequest,
    StatusRequest,
)
from thor_policy.protocol.texts import DEFAULT_LIMITS, TextCheck, TextLimits

#: Deepest nesting of objects and lists, counted from `request` or `record`.
MAX_DEPTH = 8
#: Most values (of any kind) in one request or record.
MAX_VALUES = 1024
#: Most evaluations in one batch.
MAX_EVALUATIONS = 64
#: Most bytes of a path, and of a name in it (PATH_MAX without its NUL, and NAME_MAX of Linux).
MAX_PATH_BYTES, MAX_PART_BYTES = 4_095, 255
#: Most characters of an id, a type or an action's name.
MAX_NAME_CHARS = 256
_EXPLAIN, _ENRICH = get_args(Explain), get_args(Enrich)


class _Envelope(Struct, frozen=True, rename={"as_": "as"}):
    v: Any = UNSET
    id: Any = ""
    op: Any = "evaluate"
    deadline_ms: Any = UNSET
    explain: Any = "none"
    enrich: Any = "auto"
    pack: Any = UNSET
    idempotency_key: Any = UNSET
    annotations: Any = UNSET
    traceparent: Any = UNSET
    request: Any = UNSET
    situation: Any = UNSET
    evaluations: Any = UNSET
    options: Any = UNSET
    record: Any = UNSET
    as_: Any = UNSET
    target: Any = UNSET
    page: Any = UNSET


#: An error message of msgspec: the problem, and its place at the end, after text that may be hostile.
_PROBLEM_AT_PLACE = re.compile(r"(.*?)(?: - at `\$([^`]*)`)?", re.DOTALL)
#: A problem of msgspec with a value outside the bounds of its type; below, our code and message for it.
_BOUND = re.compile(r"expected `(?:int|float|(str|array))` (?:of length )?([<>]=) (\d+)(?:\.0)?")
_BOUND_ERRORS: dict[tuple[str | None, str], tuple[ErrorCode, str]] = {
    ("str", ">="): ("bad_request", "must not be empty"),
    ("str", "<="): ("too_large", "has more than {} characters"),
    ("array", "<="): ("too_large", "holds more than {} items"),
    (None, ">="): ("bad_request", "must be at least {}"),
    (None, "<="): ("bad_request", "must be at most {}"),
}


class _Head(Struct, frozen=True):
    id: Any = ""


_heads = msgspec.json.Decoder(_Head)


class _Relayed(Struct, frozen=True, rename={"as_": "as"}):
    as_: Any = None


_relayed = msgspec.json.Decoder(_Relayed)


# ---------------------------------------------------------------- requests


def decode_request(
    frame: bytes,
    *,
    max_bytes: int,
    max_deadline_ms: int,
    texts: TextLimits = DEFAULT_LIMITS,
    authorise: Callable[[str], None] = lambda op: None,
    relayed: bool = False,
) -> Message:
    """Decode the message in `frame`. Raises RequestError; `recover_request_id` gives the id for the reply.

    `relayed`: its member `as` was read by `behalf_in` and allowed; otherwise it may have none.

    `authorise` is called with the op before the members of the request are checked, and may raise. `texts`
    bounds the texts of questions; those of records are bounded by their types.
    """
    if len(frame) > max_bytes:
        raise RequestError("too_large", f"the request has {len(frame)} bytes; the limit is {max_bytes}")
    raw = _decode_json(frame)
    envelope: _Envelope = _convert(_without_nulls(raw) if isinstance(raw, dict) else raw, _Envelope, "")
    if envelope.v is UNSET:
        raise RequestError("bad_request", f"v: the protocol version is missing; this is {PROTOCOL_VERSION}")
    if envelope.v != PROTOCOL_VERSION or isinstance(envelope.v, bool):
        raise RequestError(
            "version_mismatch", f"v: this daemon speaks protocol version {PROTOCOL_VERSION} only"
        )
    _check_name(envelope.id, "id", empty=True)
    if envelope.op not in OPS:
        raise RequestError("bad_request", f"op: must be one of {', '.join(OPS)}")
    if envelope.as_ is not UNSET and not relayed:
        raise RequestError(
            "unauthorized",
            "as: needs the role relay, which this caller does not have; see the setting `roles`",
        )
    authorise(envelope.op)
    if envelope.op in ("status", "metrics"):
        return StatusRequest(id=envelope.id, op=envelope.op)
    if envelope.idempotency_key is not UNSET:
        _check_name(envelope.idempotency_key, "idempotency_key")
        if envelope.op in ("approvals", "search", "similar", "push", "maintenance", "control"):
            raise RequestError(
                "bad_request", "idempotency_key: is only for questions and records; leave it out"
            )
    deadline_ms = None if envelope.deadline_ms is UNSET else envelope.deadline_ms
    if deadline_ms is not None and not (type(deadline_ms) is int and 1 <= deadline_ms <= max_deadline_ms):
        raise RequestError("bad_request", f"deadline_ms: must be a whole number from 1 to {max_deadline_ms}")
    if envelope.op == "evaluate":
        return _decode_evaluate(envelope, deadline_ms, TextCheck(frame, texts))
    if envelope.op == "search":
        return _decode_search(envelope, TextCheck(frame, texts))
    if envelope.op == "approvals":
        raw = {} if envelope.record is UNSET else _record_member(envelope)
        return ApprovalsRequest(id=envelope.id, query=_convert(raw, records.ApprovalQuery, "record"))
    if envelope.op == "similar":
        return SimilarRequest(id=envelope.id, query=_decode_similar(envelope, TextCheck(frame, texts)))
    if envelope.op == "push":
        return PushRequest(id=envelope.id, push=_decode_push(envelope))
    if envelope.op == "maintenance":
        return MaintenanceRequest(id=envelope.id, maintenance=_decode_maintenance(envelope))
    if envelope.op == "control":
        return ControlRequest(id=envelope.id, control=_decode_control(envelope))
    record = _decode_record(envelope)
    return RecordRequest(
        id=envelope.id,
        record=record,
        deadline_ms=deadline_ms,
        idempotency=_idempotency(envelope, record),
    )


def behalf_in(frame: bytes, max_bytes: int) -> Behalf | None:
    """Whose request a frame is, where a relay sends it; None if it does not say so, or cannot be read.

    Raises RequestError. The rest of the frame is not checked.
    """
    if len(frame) > max_bytes:
        return None
    try:
        raw = _relayed.decode(frame).as_
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if raw is None:
        return None
    _check_limits(raw, "as")
    behalf: Behalf = _convert(raw, Behalf, "as")
    return behalf


def recover_request_id(frame: bytes, max_bytes: int) -> str:
    """The request id in a frame that could not be decoded; empty if it cannot be read."""
    if len(frame) > max_bytes:
        return ""
    try:
        request_id = _heads.decode(frame).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return request_id if isinstance(request_id, str) and len(request_id) <= MAX_NAME_CHARS else ""


def _decode_evaluate(
    envelope: _Envelope, deadline_ms: int | None, texts: TextCheck
) -> EvaluateRequest | EvaluateBatchRequest:
    if envelope.explain not in _EXPLAIN:
        raise RequestError("bad_request", f"explain: must be one of {', '.join(_EXPLAIN)}")
    if envelope.enrich not in _ENRICH:
        raise RequestError("bad_request", f"enrich: must be one of {', '.join(_ENRICH)}")
    if envelope.pack is not UNSET:
        _check_name(envelope.pack, "pack")
    annotations = Annotations()
    if envelope.annotations is not UNSET:
        _check_limits(envelope.annotations, "annotations")
        texts.check(envelope.annotations, "annotations")
        annotations = _convert(envelope.annotations, Annotations, "annotations")
    stated = annotations  # a request that is sent again may belong to another trace
    if envelope.traceparent is not UNSET:
        annotations = _with_trace(annotations, envelope.traceparent)

    pack = None if envelope.pack is UNSET else envelope.pack
    if envelope.request is not UNSET:
        texts.check(envelope.request, "request", pack=pack)
    if envelope.situation is not UNSET:
        texts.check(envelope.situation, "situation", root="context", pack=pack)

    def to_request(evaluation: Evaluation, number: int | None = None) -> EvaluateRequest:
        return EvaluateRequest(
            id=envelope.id,
            evaluation=evaluation,
            explain=envelope.explain,
            enrich=envelope.enrich,
            deadline_ms=deadline_ms,
            pack=pack,
            annotations=annotations,
            idempotency=_idempotency(envelope, [evaluation, stated, pack], number),
        )

    if envelope.evaluations is not UNSET:
        check = partial(texts.check, pack=pack)
        batch = _decode_batch(envelope, envelope.evaluations, check, to_request)
        if batch is not None:
            return batch
    if (envelope.request is UNSET) == (envelope.situation is UNSET):
        raise RequestError("bad_request", "request: give either `request` or `situation`, and only one")
    if envelope.request is not UNSET:
        return to_request(evaluation_of(envelope.request, "request"))
    return to_request(from_situation(envelope.situation))


def _with_trace(annotations: Annotations, traceparent: Json) -> Annotations:
    """The annotations with the tag of the caller's trace. Raises RequestError."""
    if trace_context.parse(traceparent) is None:
        raise RequestError(
            "bad_request",
            "traceparent: must be 00-TRACE-SPAN-FLAGS of W3C Trace Context in lower-case hex, with ids that "
            "are not zero; or leave it out",
        )
    tags = (*annotations.tags, f"{trace_context.TAG}{traceparent}")
    return msgspec.structs.replace(annotations, tags=tags)


def _decode_batch(
    envelope: _Envelope,
    items: Json,
    check: Callable[[Json, str], None],
    to_request: Callable[[Evaluation, int], EvaluateRequest],
) -> EvaluateBatchRequest | None:
    """The batch of an envelope; `request` has the defaults. None for an empty batch: a single question.

    `check` raises RequestError for an item with a text out of bounds.
    """
    if not isinstance(items, list):
        raise RequestError("bad_request", "evaluations: must be an array")
    if len(items) > MAX_EVALUATIONS:
        raise RequestError(
            "too_large", f"evaluations: holds {len(items)} items; the limit is {MAX_EVALUATIONS}"
        )
    if envelope.situation is not UNSET:
        raise RequestError(
            "bad_request", "situation: cannot be used with `evaluations`; give `request`, or neither"
        )
    options = {} if envelope.options is UNSET else envelope.options
    semantic: Any = 0
    if isinstance(options, dict):
        semantic = _without_nulls(options).get("evaluations_semantic", "execute_all")
    if semantic not in get_args(Semantic):
        raise RequestError(
            "bad_request", f"options.evaluations_semantic: must be one of {', '.join(get_args(Semantic))}"
        )
    if not items:
        return None
    defaults = {} if envelope.request is UNSET else envelope.request
    if not isinstance(defaults, dict):
        raise RequestError("bad_request", "request: must be an object")
    decoded: list[EvaluateRequest | RequestError] = []
    for number, item in enumerate(items):
        where = f"evaluations.{number}"
        try:
            if not isinstance(item, dict):
                raise RequestError("bad_request", f"{where}: must be an object")
            _check_integers(item, where)
            check(item, where)
            decoded.append(to_request(evaluation_of(defaults | _without_nulls(item), where), number))
        except RequestError as error:
            decoded.append(error)
    return EvaluateBatchRequest(id=envelope.id, items=tuple(decoded), semantic=semantic)


#: What stands at the target of a search until a candidate takes its place.
_OPEN = "any"


class _PageOptions(Struct, frozen=True):
    limit: Annotated[int, Meta(ge=0)] | None = None
    token: Annotated[str, Meta(max_length=4_096)] | None = None


def _decode_search(envelope: _Envelope, texts: TextCheck) -> SearchRequest:
    """A search: `request` is a question, whose target's own id or name is not read."""
    if envelope.target not in get_args(Target):
        raise RequestError("bad_request", f"target: must be one of {', '.join(get_args(Target))}")
    if envelope.pack is not UNSET:
        _check_name(envelope.pack, "pack")
    pack = None if envelope.pack is UNSET else envelope.pack
    if not isinstance(envelope.request, dict):
        raise RequestError("bad_request", "request: must be an object")
    raw, target = dict(envelope.request), envelope.target
    if target == "action":
        raw["action"] = {"name": _OPEN}
    elif isinstance(raw.get(target), dict):
        raw[target] = raw[target] | {"id": _OPEN}
    texts.check(raw, "request", pack=pack)
    page: _PageOptions = _convert({} if envelope.page is UNSET else envelope.page, _PageOptions, "page")
    search = Search(
        target=target,
        evaluation=evaluation_of(raw, "request"),
        limit=page.limit,
        token=page.token or None,
    )
    return SearchRequest(id=envelope.id, search=search, pack=pack)


def _idempotency(envelope: _Envelope, content: Any, number: int | None = None) -> Idempotency | None:
    """The idempotency key of an envelope with the digest of its content; each item of a batch has its own."""
    if envelope.idempotency_key is UNSET:
        return None
    payload = msgspec.json.encode([envelope.op, content], order="deterministic")
    key = msgspec.json.encode([envelope.idempotency_key, number]).decode()
    return Idempotency(key=key, content=hashlib.sha256(payload).hexdigest())


def _decode_maintenance(envelope: _Envelope) -> records.Maintenance:
    maintenance: records.Maintenance = _convert(_record_member(envelope), records.Maintenance, "record")
    needed = {
        "erase": "actor",
        "archive": "before",
        "calibrate": "calibration",
        "counterfactual": "counterfactuals",
        "promote": "promotion",
        "shipped": "shipped",
        "unship": "sink",
        "import_graph": "graph",
    }.get(maintenance.task)
    if needed is not None and getattr(maintenance, needed) is None:
        raise RequestError(
            "bad_request", f"record.{needed}: is missing; the task {maintenance.task} needs it"
        )
    if maintenance.task == "erase" and not _split(maintenance.actor or "", "user")[1].strip():
        raise RequestError("bad_request", "record.actor: must name an actor, such as `user:alice`")
    if maintenance.task == "archive" and not is_time(maintenance.before or ""):
        raise RequestError(
            "bad_request", "record.before: must be an RFC 3339 time such as 2026-05-13T10:00:00Z"
        )
    if maintenance.graph is not None:
        _check_import(maintenance.graph)
    promotion = maintenance.promotion
    if promotion is not None and (promotion.key is None) != (promotion.signature is None):
        raise RequestError("bad_request", "record.promotion.signature: needs key; give both, or neither")
    return maintenance


def _decode_similar(envelope: _Envelope, texts: TextCheck) -> SimilarQuery:
    """A query of precedents; its question has either form, `question` or `situation`."""
    raw = _record_member(envelope)
    if not isinstance(raw, dict):
        raise RequestError("bad_request", "record: must be an object")
    members, question = dict(raw), None
    texts.check(members.get("text"), "record.text")
    if (stated := members.pop("question", None)) is not None:
        texts.check(stated, "record.question")
        question = evaluation_of(stated, "record.question")
    if (situation := members.pop("situation", None)) is not None:
        if question is not None:
            raise RequestError("bad_request", "record: give one of id, question, situation and text")
        texts.check(situation, "record.situation", root="context")
        question = from_situation(situation)
    query: SimilarQuery = replace(_convert(members, SimilarQuery, "record"), question=question)
    if sum(part is not None for part in (query.id, query.question, query.text)) != 1:
        raise RequestError("bad_request", "record: give one of id, question, situation and text")
    for name in ("since", "until"):
        _check_time(getattr(query.filters, name), f"record.filters.{name}")
    return query


def _decode_push(envelope: _Envelope) -> Push:
    push: Push = _convert(_record_member(envelope), Push, "record")
    if push.fresh_at is not None and not is_time(push.fresh_at):
        raise RequestError(
            "bad_request", "record.fresh_at: must be an RFC 3339 time such as 2026-05-13T10:00:00Z"
        )
    return push


def _decode_control(envelope: _Envelope) -> records.Control:
    control: records.Control = _convert(_record_member(envelope), records.Control, "record")
    needed = {"adapter": "adapter", "canary": "canary"}.get(control.task, "pack")
    if control.task != "reload" and getattr(control, needed) is None:
        raise RequestError("bad_request", f"record.{needed}: is missing; the task {control.task} needs it")
    for field in ("pack", "adapter"):
        _check_place(getattr(control, field) or "", f"record.{field}")
    if control.canary is not None:
        _check_canary(control.canary)
    return control


def _check_canary(change: records.CanaryChange) -> None:
    """Refuse a change of the canary that lacks what it needs. Raises RequestError."""
    if change.change in ("start", "share") and change.share is None:
        raise RequestError("bad_request", f"record.canary.share: is missing; {change.change} needs it")
    if change.change == "start" and not change.candidates:
        raise RequestError("bad_request", "record.canary.candidates: is empty; start needs a pack or adapter")
    if change.change == "start" and len(change.candidates) > 1 and not change.choose:
        raise RequestError(
            "bad_request",
            f"record.canary.candidates: has {len(change.candidates)}, and only one can be on trial: name "
            "one, or choose by their record (`choose`)",
        )
    for number, candidate in enumerate(change.candidates):
        for field in ("pack", "model", "adapter"):
            _check_place(getattr(candidate, field) or "", f"record.canary.candidates[{number}].{field}")


def _record_member(envelope: _Envelope) -> Json:
    if envelope.record is UNSET:
        raise RequestError("bad_request", f"record: is missing; the op {envelope.op} needs one")
    _check_limits(envelope.record, "record")
    _check_texts_of_record(envelope.record)
    return envelope.record


def _check_texts_of_record(record: Json) -> None:
    """Check the texts that no type bounds: those in `context`, `value` and `metadata` of a record."""
    stack: list[tuple[Json, str]] = [(record, "record")]
    while stack:
        value, place = stack.pop()
        if isinstance(value, str) and len(value) > records.MAX_TEXT_CHARS:
            raise RequestError("too_large", f"{place}: has more than {records.MAX_TEXT_CHARS} characters")
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            stack.extend((item, strict_json.within(place, name)) for name, item in items)


def _decode_record(envelope: _Envelope) -> records.Record:
    record: records.Record = _convert(_record_member(envelope), records.RECORDS[envelope.op], "record")
    if isinstance(record, records.Consultation):
        if record.decision_id is None and record.session is None:
            raise RequestError("bad_request", "record.decision_id: is missing; give it, or `session`")
        _check_time(record.fresh_at, "record.fresh_at")
    if isinstance(record, records.DecisionReport):
        if record.agent is not None and record.made_by == "human":
            raise RequestError(
                "bad_request",
                "record.agent: the kernel or a key says which person decided; leave it out for made_by human",
            )
        if record.agent is None and record.made_by != "human":
            raise RequestError(
                "bad_request", "record.agent: is missing; only a decision of made_by human has none"
            )
        _check_time(record.timestamp_decision, "record.timestamp_decision")
    if isinstance(record, records.Supplement):
        _check_supplement(record)
    if isinstance(record, records.Review) and record.verdict == "withdrawn" and record.withdraws is None:
        raise RequestError("bad_request", "record.withdraws: is missing; the verdict withdrawn needs it")
    if isinstance(record, records.Assignment) and record.type == "lease" and record.seconds is None:
        raise RequestError("bad_request", "record.seconds: is missing; a lease needs it")
    if (problem := _problem_in_graph(record)) is not None:
        raise RequestError("bad_request", f"record.{problem}")
    return record


def _check_import(graph_import: records.GraphImport) -> None:
    kept: list[tuple[str, records.Record]] = [
        *((f"nodes[{number}].node", node.node) for number, node in enumerate(graph_import.nodes)),
        *((f"edges[{number}].edge", edge.edge) for number, edge in enumerate(graph_import.edges)),
    ]
    for place, record in kept:
        problem = _problem_in_graph(record)
        if problem is None and isinstance(record, records.Node) and record.supersedes is not None:
            problem = "supersedes: is for the op node; an import has an edge of the type supersedes"
        if problem is not None:
            raise RequestError("bad_request", f"record.graph.{place}.{problem}")


def _check_time(text: str | None, where: str) -> None:
    if text is not None and not is_time(text):
        raise RequestError("bad_request", f"{where}: must be an RFC 3339 time such as 2026-05-13T10:00:00Z")


def _check_supplement(record: records.Supplement) -> None:
    """Refuse a value that would complete no trace."""
    for name, value in record.values.items():
        where = strict_json.within("record.values", name)
        if cure_of(name) != "supplement" or name not in REQUIREMENTS:
            known = ", ".join(known for known in REQUIREMENTS if cure_of(known) == "supplement")
            raise RequestError("bad_request", f"{where}: a supplement can have {known}")
        if name == "confidence":
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise RequestError("bad_request", f"{where}: must be a number from 0 to 1")
        elif not isinstance(value, str) or not value.strip():
            raise RequestError("bad_request", f"{where}: must be a text that is not empty")
        elif name == "timestamp_decision":
            _check_time(value, where)
        elif (choices := _CHOICES.get(name)) and value not in choices:
            raise RequestError("bad_request", f"{where}: must be one of {', '.join(choices)}")


#: The values that a member of a supplement can have.
_CHOICES: dict[str, tuple[str, ...]] = {"risk": RISKS, "confidence_level": get_args(ConfidenceLevel)}


def _problem_in_graph(record: records.Record) -> str | None:
    """The rule of `core.graph` that a node, an edge or a state of a trace breaks; None if it breaks none."""
    if isinstance(record, records.Node):
        for field in ("actor_type", "role"):
            if getattr(record, field) is not None and record.type != "actor":
                return f"{field}: is for nodes of the type actor only; leave it out"
        if record.type == "actor" and record.actor_type is None:
            return "actor_type: is missing; a node of the type actor needs it"
        if record.rationale is not None and record.supersedes is None:
            return "rationale: says why a node supersedes another; leave it out, or give supersedes too"
        return graph.problem_of_node(record.type)
    if isinstance(record, records.Edge):
        for field, types in graph.FIELDS_OF.items():
            if getattr(record, field) is not None and record.type not in types:
                return f"{field}: is for edges of the type {', '.join(types)} only; leave it out"
        return graph.problem_of_edge(record.type, record.source, record.target)
    if isinstance(record, records.TraceState):
        edge = graph.EDGE_OF_STATE.get(record.status)
        if edge is not None and record.by is None:
            return f"by: is missing; the status {record.status} needs the decision that made it so"
        if edge is None and record.by is not None:
            return f"by: is for the statuses {' and '.join(graph.EDGE_OF_STATE)} only; leave it out"
        if record.by == record.decision_id:
            return f"by: is the decision itself; no edge may be a loop ({edge})"
    return None


def evaluation_of(raw: Json, where: str) -> Evaluation:
    """An AuthZEN evaluation from decoded JSON; unknown members are ignored. Raises RequestError."""
    _check_limits(raw, where)
    evaluation: Evaluation = _convert(raw, Evaluation, where)
    for entity, field in ((evaluation.subject, "subject"), (evaluation.resource, "resource")):
        _check_name(entity.type, f"{where}.{field}.type")
        _check_name(entity.id, f"{where}.{field}.id")
    _check_name(evaluation.action.name, f"{where}.action.name")
    return evaluation


def from_situation(raw: Json) -> Evaluation:
    """The evaluation for a flat situation (table in docs/reference/protocol.md). Raises RequestError."""
    _check_limits(raw, "situation")
    if not isinstance(raw, dict):
        raise RequestError("bad_request", "situation: must be an object")
    rest = dict(raw)
    for field in ("actor_id", "action_type", "resource"):
        if field not in rest:
            raise RequestError("bad_request", f"situation.{field}: is missing")
        _check_name(rest[field], f"situation.{field}")
    subject_type, subject_id = _split(rest.pop("actor_id"), "user")
    resource_type, resource_id = _split(rest.pop("resource"), "resource")
    renamed = (("actor_role", "role"), ("t3_tensor", "trust"), ("identity_metrics", "identity"))
    properties = {new: rest.pop(old) for old, new in renamed if old in rest}
    return Evaluation(
        subject=Entity(type=subject_type, id=subject_id, properties=_without_nulls(properties)),
        action=Action(name=rest.pop("action_type")),
        resource=Entity(type=resource_type, id=resource_id),
        context=rest,
    )


def question_fields(raw: Json) -> dict[str, Json]:
    """`{"request": ..}` or `{"situation": ..}`, by the form of a JSON value."""
    if isinstance(raw, dict) and not {"subject", "action"} & raw.keys():
        for wrapped in ("request", "situation"):
            if raw.get(wrapped) is not None:
                return {wrapped: raw[wrapped]}
        return {"situation": raw}
    return {"request": raw}


def evaluation_from(fields: dict[str, Json]) -> Evaluation:
    """The evaluation in the result of `question_fields`, which may be no JSON yet. Raises RequestError."""
    try:
        strict_json.check(fields)
    except strict_json.JsonError as error:
        raise RequestError("bad_request", str(error)) from error
    if "situation" in fields:
        return from_situation(fields["situation"])
    return evaluation_of(fields["request"], "request")


def _split(name: str, default_type: str) -> tuple[str, str]:
    kind, colon, rest = name.partition(":")
    return (kind, rest) if colon and kind and rest else (default_type, name)


# ---------------------------------------------------------------- checks


def _decode_json(frame: bytes) -> Json:
    """The value of a frame; integers in the items of a batch are not checked yet. Raises RequestError."""
    try:
        raw = strict_json.parse(frame)
    except strict_json.TooDeep as error:
        raise RequestError("bad_request", f"the request: nested deeper than {MAX_DEPTH} levels") from error
    except strict_json.JsonError as error:
        raise RequestError("bad_request", str(error) if error.place else f"the request {error}") from error
    if strict_json.may_hold_large_integers(frame):
        is_batch = isinstance(raw, dict) and "evaluations" in raw and raw.get("op") in (None, "evaluate")
        _check_integers(raw | {"evaluations": None} if is_batch else raw, "")
    return raw


def _check_integers(raw: Json, where: str) -> None:
    try:
        strict_json.check_integers(raw, where)
    except strict_json.JsonError as error:
        raise RequestError("bad_request", str(error)) from error


def _convert(raw: Json, kind: Any, where: str) -> Any:
    """The struct `kind` of a decoded object. Raises RequestError."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError:  # perhaps only since null stands for an optional member
        raw = _without_optional_nulls(raw, kind)
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        place, problem = _place_and_problem(error, where)
        code: ErrorCode = "bad_request"
        if bound := _BOUND.fullmatch(problem):
            code, problem = _BOUND_ERRORS[bound[1], bound[2]]
            problem = problem.format(bound[3])
        elif problem.startswith("invalid enum value"):
            problem = f"must be one of {', '.join(_choices(kind, place.removeprefix(f'{where}.')))}"
        raise RequestError(code, f"{place}: {problem}") from error


def _without_nulls(members: dict[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in members.items() if value is not None}


def _without_optional_nulls(raw: Json, kind: Any) -> Json:
    """A decoded object without null for members that the struct `kind` does not require, nor those in it."""
    if isinstance(raw, list):
        return [_without_optional_nulls(item, kind) for item in raw]
    if not isinstance(raw, dict):
        return raw
    kept = dict(raw)
    for field in msgspec.structs.fields(kind):
        value = raw.get(field.name)
        nested = _struct_in(field.type)
        if value is None and not field.required:
            kept.pop(field.name, None)
        elif value is not None and nested is not None:
            kept[field.name] = _without_optional_nulls(value, nested)
    return kept


def _struct_in(hint: Any) -> Any:
    """The struct that a type hint contains, at any depth; None if it contains none."""
    return next((part for part in _leaves(hint) if isinstance(part, type) and issubclass(part, Struct)), None)


def _place_and_problem(error: msgspec.ValidationError, where: str) -> tuple[str, str]:
    """Place and problem from msgspec's message: `request.subject.id` and `expected ..`."""
    match = _PROBLEM_AT_PLACE.fullmatch(str(error))
    assert match is not None  # noqa: S101  any text matches
    message, path = match[1], match[2] or ""
    return f"{where}{path}".lstrip(".") or "the request", f"{message[:1].lower()}{message[1:]}"


def _choices(kind: Any, place: str) -> list[str]:
    """The values of a field of literals, which may be optional or in nested structs."""
    parts: list[Any] = []
    for field in place.split("."):
        parts = _leaves(get_type_hints(kind)[field.partition("[")[0]])
        kind = _struct_in(get_type_hints(kind)[field.partition("[")[0]]) or kind
    return [part for part in parts if isinstance(part, str)]


def _leaves(hint: Any) -> list[Any]:
    """The types and literals that a type hint consists of, at any depth."""
    return [leaf for part in get_args(hint) for leaf in _leaves(part)] or [hint]


def _check_name(value: Json, where: str, *, empty: bool = False) -> None:
    if not isinstance(value, str):
        raise RequestError("bad_request", f"{where}: must be a string")
    if not value and not empty:
        raise RequestError("bad_request", f"{where}: must not be empty")
    if len(value) > MAX_NAME_CHARS:
        raise RequestError(
            "too_large", f"{where}: has {len(value)} characters; the limit is {MAX_NAME_CHARS}"
        )


def _check_place(place: str, where: str) -> None:
    """Refuse a name or path that no file can have. Raises RequestError."""
    if unfit := next((char for char in place if unicodedata.category(char) in ("Cc", "Cs")), None):
        raise RequestError(
            "bad_request",
            f"{where}: has the control character U+{ord(unfit):04X}; no name or path may have one",
        )
    size = len(place.encode())
    if size > MAX_PATH_BYTES:
        raise RequestError(
            "bad_request",
            f"{where}: has {size} bytes; the limit of a path is {MAX_PATH_BYTES}: move the folder",
        )
    longest = max(len(part.encode()) for part in place.split("/"))
    if longest > MAX_PART_BYTES:
        raise RequestError(
            "bad_request",
            f"{where}: has {longest} bytes between two slashes; a file name has at most {MAX_PART_BYTES}: "
            "give the name of a resident or shipped pack or of an adapter, or the path of one",
        )


def _check_limits(raw: Json, where: str) -> None:
    """Check depth and number of values, without recursion."""
    if _is_small(raw):
        return
    stack: list[tuple[Json, str, int]] = [(raw, where, 0)]
    seen = 0
    while stack:
        value, path, depth = stack.pop()
        seen += 1
        if seen > MAX_VALUES:
            break
        if isinstance(value, dict | list):
            if depth == MAX_DEPTH:
                raise RequestError("bad_request", f"{path}: nested deeper than {MAX_DEPTH} levels")
            if len(value) > MAX_VALUES:
                raise RequestError("too_large", f"{path}: holds more than {MAX_VALUES} values")
            items = value.items() if isinstance(value, dict) else enumerate(value)
            stack.extend((item, strict_json.within(path, key), depth + 1) for key, item in items)
    raise RequestError("too_large", f"{where}: holds more than {MAX_VALUES} values")


def _is_small(raw: Json) -> bool:
    level: list[Any] = [[raw]]
    seen = 0
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for parts in level:
            seen += len(parts)
            if seen > MAX_VALUES:
                return False
            for part in parts.values() if type(parts) is dict else parts:
                if type(part) is dict or type(part) is list:
                    below.append(part)
        level = below
    return not level
