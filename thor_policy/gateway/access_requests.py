"""The Access Request and Approval profile over HTTP: request, follow and cancel a task.

Owns the profile's words for what the daemon keeps, and its problem types. Invariant: a request is bound to a
denial of the same caller and of the same subject, action and resource; nothing here approves anything. Pure;
any thread.
"""

from __future__ import annotations

from thor_policy.core.approvals import OPEN_STATES
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.gateway.problems import Problem, of_error

REQUESTS = "/access/v1/requests"
URN = "urn:openid:authzen:access-request:error:"
#: The HTTP status of each problem type of the profile.
_STATUS = {
    "not_requestable": 400,
    "invalid_denial_binding": 400,
    "expired_denial": 410,
    "duplicate_request": 409,
    "unknown_task": 404,
    "task_expired": 410,
    "invalid_task_state": 409,
}


def requested(body: dict[str, Json]) -> dict[str, Json]:
    """The record of the daemon's request `request_approval`. Raises Problem."""
    denial = _object(body, "denial")
    evaluation_id = denial.get("evaluation_id")
    if not isinstance(evaluation_id, str) or not evaluation_id:
        raise _problem("invalid_denial_binding", "denial.evaluation_id: must be that of the denial")
    names = {
        "subject": _entity(_object(body, "subject"), "subject"),
        "action": _text(_object(body, "action"), "name", "action"),
        "resource": _entity(_object(body, "resource"), "resource"),
    }
    record: dict[str, Json] = {"decision_id": evaluation_id, "question": names}
    wanted = body.get("requested_access")
    if wanted is not None:
        if not isinstance(wanted, dict):
            raise Problem(400, "bad_request", "requested_access: must be an object")
        if wanted.get("emergency") is True:
            record["urgency"] = "emergency"
    context = body.get("context")
    if context is not None and not isinstance(context, dict):
        raise Problem(400, "bad_request", "context: must be an object")
    reason = (context or {}).get("business_justification")
    if isinstance(reason, str) and reason:
        record["reason"] = reason
    return record


def problem_of(error: RequestError) -> Problem:
    """The reply to a refused operation on a task, in the words of the profile where it has some."""
    code = error.reason_code
    if code is None and error.code == "conflict":  # the same Idempotency-Key with another body
        code = "duplicate_request"
    return _problem(code, error.message) if code in _STATUS else of_error(error)


def task_reply(task: dict[str, Json], base_url: str) -> dict[str, Json]:
    """A task as the profile has it. `result` says what to ask again with, once it is approved."""
    place = f"{base_url}{REQUESTS}/{task['id']}"
    handle: dict[str, Json] = {
        "id": task["id"],
        "status": task["status"],
        "status_endpoint": place,
        "links": {"self": place},
    }
    if task["expires_at"] is not None:
        handle["expires_at"] = task["expires_at"]
    if task["status"] in (*OPEN_STATES, "approved"):
        handle["links"]["cancel"] = f"{place}/cancel"
    if task["missing"]:
        handle["progress"] = {"awaiting": task["missing"]}
    if (approval := task.get("approval")) is None:
        return {"task": handle}
    result = {"mode": "reevaluate", "approval": approval | {"approved_until": task["expires_at"]}}
    return {"task": handle, "result": result}


def with_endpoint(context: dict[str, Json], base_url: str) -> dict[str, Json]:
    """The context of a decision; of a denial that approvals can lift, with where to request them."""
    offer = context.get("access_request")
    if offer is None:
        return context
    return context | {
        "evaluation_id": offer["evaluation_id"],
        "reason": context.get("reason", "approval_required"),
        "access_request": offer | {"requestable": True, "endpoint": f"{base_url}{REQUESTS}"},
    }


def _problem(code: str | None, detail: str) -> Problem:
    assert code is not None  # noqa: S101  it is one of _STATUS
    return Problem(_STATUS[code], code, detail, type=f"{URN}{code}")


def _object(body: dict[str, Json], name: str) -> dict[str, Json]:
    value = body.get(name)
    if not isinstance(value, dict):
        raise Problem(400, "bad_request", f"{name}: must be an object")
    return value


def _entity(entity: dict[str, Json], name: str) -> str:
    return f"{_text(entity, 'type', name)}:{_text(entity, 'id', name)}"


def _text(holder: dict[str, Json], member: str, where: str) -> str:
    value = holder.get(member)
    if not isinstance(value, str) or not value:
        raise Problem(400, "bad_request", f"{where}.{member}: must be a string that is not empty")
    return value
