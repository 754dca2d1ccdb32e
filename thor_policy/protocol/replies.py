"""Replies and events as JSON, and the client's side of both.

Owns the members of every reply. Invariant: one JSON frame for each reply. Pure; any thread.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from thor_policy.core import strict_json
from thor_policy.core.approvals import OPEN_STATES, Moment, Task
from thor_policy.core.decisions import Decision, Explanation, Timings
from thor_policy.core.errors import RequestError
from thor_policy.core.lifting import Offer
from thor_policy.core.requests import Json
from thor_policy.core.results import Committed
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
        "precedents": tuple(each.id for each in decision.precedents),
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
    if decision.trial is not None and decision.trial.arm == "canary":
        context["canary"] = decision.trial.id
    if decision.offer is not None:
        context["access_request"] = access_request(decision, decision.offer)
    if decision.use is not None:
        context["approval"] = {"id": decision.use.task, "lifted": decision.use.lifts} | (
            {} if decision.use.code is None else {"reason_code": decision.use.code}
        )
    if decision.floor.errors:
        context["rule_errors"] = decision.floor.errors
    if decision.floor.missing:
        context["fields_missing"] = decision.floor.missing
    if decision.floor.time_used is not None:
        context["time_used"] = decision.floor.time_used
    return {"decision": decision.allow, "context": context}


def access_request(decision: Decision, offer: Offer) -> dict[str, Json]:
    """How to request the approvals that can lift a decision (OpenID Access Request and Approval Profile)."""
    lifted_by = offer.lifted_by
    until = datetime.fromtimestamp(decision.at + lifted_by.request_within_s, UTC)
    return {
        "evaluation_id": decision.id,
        "expires_at": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "template": {
            "requested_access": {"outcome": decision.outcome},
            "approvers": [[str(step) for step in chain] for chain in lifted_by.chains("normal")],
            "denial": {"evaluation_id": decision.id},
        },
    }


def task_item(task: Task, now: Moment) -> dict[str, Json]:
    """A task as replies and events show it. `approval` is what a question is asked again with."""
    state = task.state(now)
    expires = datetime.fromtimestamp(now.at + task.expires_in_s(now), UTC)
    item: dict[str, Json] = {
        "id": task.id,
        "status": state,
        "evaluation_id": task.decision_id,
        "outcome": task.outcome,
        "pack": task.pack,
        "urgency": task.urgency,
        "subject": task.subject,
        "action": task.action,
        "resource": task.resource,
        "reason": task.reason,
        "requested_by": task.requested_by,
        "requested_at": task.requested_at,
        "expires_at": expires.strftime("%Y-%m-%dT%H:%M:%SZ") if state in _LIVE else None,
        "missing": task.missing() if state in OPEN_STATES else [],
        "binds": task.offer.binds,
        "verdicts": [
            {
                "approver": verdict.name,
                "verdict": "approved" if verdict.approves else "rejected",
                "roles": verdict.roles,
                "groups": verdict.groups,
                "at": verdict.at,
                **{
                    name: value
                    for name in ("channel", "evidence", "recorded_by", "comment")
                    if (value := getattr(verdict, name)) is not None
                },
            }
            for verdict in task.verdicts
        ],
        "used_by": task.used_by,
    }
    if state == "approved" and not task.is_spent:
        item["approval"] = {"id": task.id}
    return item


#: States in which a task can still expire.
_LIVE = (*OPEN_STATES, "approved")


def error_item(error: RequestError) -> dict[str, Json]:
    """The reply to a failed item of a batch; its decision is never an allow."""
    body: dict[str, Json] = {
        "status": HTTP_STATUS[error.code],
        "code": error.code,
        "message": error.message,
    }
    if error.retry_after_ms is not None:
        body["retry_after_ms"] = error.retry_after_ms
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
    record_id: str, kind: str, seq: int, more: dict[str, Json] | None = None
) -> dict[str, Json]:
    """The reply to a record: its id, and the kind and sequence number of its event in the journal.

    `more` has `cited_by` for a `trace_state` (how many decisions cite that decision, and which), and `task`
    for a change of a task of approvals (what it is then).
    """
    return {"recorded": {"id": record_id, "kind": kind, "seq": seq} | (more or {})}


def more_of(commit: Committed) -> dict[str, Json]:
    """What the reply to a record says beside its id."""
    if commit.task is not None and commit.moment is not None:
        return {"task": task_item(commit.task, commit.moment)}
    return {} if commit.cited_by is None else {"cited_by": commit.cited_by}


def timings_ms(timings: Timings) -> dict[str, float]:
    """Milliseconds by stage name."""
    return {"queue": timings.queue_ms, "rules": timings.rules_ms, "score": timings.score_ms}


def encode_error(request_id: str, error: RequestError) -> bytes:
    """The reply to a request that was refused or failed."""
    body: dict[str, Json] = {"code": error.code, "message": error.message}
    if error.retry_after_ms is not None:
        body["retry_after_ms"] = error.retry_after_ms
    if error.reason_code is not None:
        body["reason_code"] = error.reason_code
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
        raise RequestError(
            error["code"],
            error["message"],
            retry_after_ms=error.get("retry_after_ms"),
            reason_code=error.get("reason_code"),
        )
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
