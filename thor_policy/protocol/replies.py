"""Replies and events as JSON, and the client's side of both.

Owns the members of every reply. Invariant: one JSON frame for each reply. Pure; any thread.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from thor_policy.core import strict_json
from thor_policy.core.decisions import Decision, Explanation, Timings
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.core.status import Status
from thor_policy.protocol.messages import HTTP_STATUS, PROTOCOL_VERSION


class _Reply(Struct, frozen=True):
    id: str = ""


_replies = msgspec.json.Decoder(_Reply)
_encoder = msgspec.json.Encoder()


# ---------------------------------------------------------------- replies


def decision_item(
    decision: Decision, *, explained: bool, commit_ms: float, total_ms: float
) -> dict[str, Json]:
    """`decision` and `context` of a reply; unless `explained`, classification and reasoning are null."""
    explanation = decision.explanation if explained else None
    model, scored = decision.model, decision.scored
    context: dict[str, Json] = {
        "decision_id": decision.id,
        "outcome": decision.outcome,
        "classification": explanation.classification if explanation else None,
        "risk": decision.risk,
        "reasoning": explanation.reasoning if explanation else None,
        "reasoning_source": explanation.source if explanation else None,
        "clauses": explanation.clauses if explanation else decision.floor.clauses,
        "confidence": decision.confidence,
        "probabilities": decision.probabilities,
        "tier": decision.tier,
        "floor": decision.floor.outcome,
        "rules": decision.floor.rules,
        "obligations": decision.obligations,
        "precedents": (),
        "pack": decision.pack,
        "model": model
        and {
            "name": model.name,
            "sha256": model.sha256,
            "build": model.build,
            "exact": model.exact,
            "adapter": model.adapter,
        },
        "tokens": scored
        and {
            "prefix": scored.prefix_tokens,
            "question": len(scored.suffix_tokens),
            "explanation": explanation.generated_tokens if explanation else 0,
        },
        "timings_ms": timings_ms(decision.timings) | {"commit": commit_ms, "total": total_ms},
    }
    if decision.original is not None:
        context["original_decision_id"] = decision.original
    if decision.reason_code is not None:
        context["reason_code"] = decision.reason_code
    if decision.floor.errors:
        context["rule_errors"] = decision.floor.errors
    if decision.floor.missing:
        context["fields_missing"] = decision.floor.missing
    if decision.floor.time_used is not None:
        context["time_used"] = decision.floor.time_used
    return {"decision": decision.allow, "context": context}


def error_item(error: RequestError) -> dict[str, Json]:
    """The reply to a failed item of a batch; its decision is never an allow."""
    body = {"status": HTTP_STATUS[error.code], "code": error.code, "message": error.message}
    return {"decision": False, "context": {"error": body}}


def explanation_item(explanation: Explanation) -> dict[str, Json]:
    """The members of an explanation that is published later."""
    return {
        "classification": explanation.classification,
        "clauses": explanation.clauses,
        "reasoning": explanation.reasoning,
        "reasoning_source": explanation.source,
        "truncated": explanation.truncated,
    }


def recorded_item(
    record_id: str, kind: str, seq: int, cited_by: dict[str, Json] | None = None
) -> dict[str, Json]:
    """The reply to a record: its id, and the kind and sequence number of its event in the journal.

    `cited_by` is there for a `trace_state`: how many decisions cite that decision, and which.
    """
    recorded: dict[str, Json] = {"id": record_id, "kind": kind, "seq": seq}
    return {"recorded": recorded if cited_by is None else recorded | {"cited_by": cited_by}}


def timings_ms(timings: Timings) -> dict[str, float]:
    """Milliseconds by stage name."""
    return {"queue": timings.queue_ms, "rules": timings.rules_ms, "score": timings.score_ms}


def encode_error(request_id: str, error: RequestError) -> bytes:
    """The reply to a request that was refused or failed."""
    body: dict[str, Json] = {"code": error.code, "message": error.message}
    if error.retry_after_ms is not None:
        body["retry_after_ms"] = error.retry_after_ms
    return _encoder.encode({"v": PROTOCOL_VERSION, "id": request_id, "error": body})


def encode_event(kind: str, decision_id: str, seq: int, number: int, members: dict[str, Json]) -> list[bytes]:
    """A message of the event stream: the kind, which subscribers filter by, and a JSON object.

    `seq` is its place in the journal. `number` counts the events of its kind since the daemon started, so a
    subscriber that missed some sees a gap.
    """
    head = {"v": PROTOCOL_VERSION, "decision_id": decision_id, "seq": seq, "number": number}
    return [kind.encode(), _encoder.encode(head | members)]


def encode_reply(request_id: str, **members: Json) -> bytes:
    """Any other reply, as a frame."""
    return _encoder.encode({"v": PROTOCOL_VERSION, "id": request_id} | members)


# ---------------------------------------------------------------- the client's side


def encode_request(request_id: str, op: str, fields: dict[str, Json]) -> bytes:
    """A request frame; a field may be a struct. Raises RequestError with the path of what JSON cannot say."""
    try:
        return strict_json.encode({"v": PROTOCOL_VERSION, "id": request_id, "op": op} | fields)
    except strict_json.JsonError as error:
        raise RequestError("bad_request", str(error)) from error


def decode_reply(frame: bytes) -> dict[str, Json]:
    """A reply as an object. Raises RequestError if it is an error reply."""
    reply: dict[str, Json] = msgspec.json.decode(frame, type=dict[str, Any])
    if error := reply.get("error"):
        raise RequestError(error["code"], error["message"], retry_after_ms=error.get("retry_after_ms"))
    return reply


def decode_status(reply: dict[str, Json]) -> Status:
    """The status in a reply. Raises RequestError `version_mismatch` if its members are not ours."""
    try:
        return msgspec.convert(reply.get("status"), Status)
    except msgspec.ValidationError as error:
        raise RequestError(
            "version_mismatch", f"status: the daemon is of another version than this client: {error}"
        ) from error


def reply_id(frame: bytes) -> str:
    """The request id in a reply frame; empty if it cannot be read."""
    try:
        return _replies.decode(frame).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
