"""Pages of approvals: the tasks, one of them, and the verdicts on it.

Owns how a verdict is sent. Invariant: the daemon says which tasks a visitor sees and who approves; nothing of
this is read from the journal. The event loop's thread.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import get_args

from starlette.responses import Response

from thor_policy.core import records
from thor_policy.core.approvals import OPEN_STATES, State
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.gateway.problems import Problem, of_error
from thor_policy.web.visits import Visit, go_to

STATES: tuple[State, ...] = get_args(State)
#: Tasks of one page: the most of one reply.
_MOST = 200
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))


async def tasks(visit: Visit) -> Response:
    """The open tasks, or those of every state; of an htmx request the list alone."""
    every = visit.query.get("all") == "yes"
    query = records.ApprovalQuery(states=STATES if every else OPEN_STATES, limit=_MOST)
    reply = await visit.call("approvals", record=query)
    part = any(name == b"hx-request" for name, _ in visit.scope["headers"])
    return visit.page(
        "_tasks.html" if part else "approvals.html",
        tasks=reply["tasks"],
        every=every,
        ago=lambda text: _duration(time.time() - _seconds(text)),
    )


async def task(visit: Visit, problem: str = "") -> Response:
    """One task, with the forms of a verdict."""
    reply = await visit.call("approvals", record=records.ApprovalQuery(id=visit.path["id"][:256]))
    item = reply["task"]
    left = None if item["expires_at"] is None else _duration(_seconds(item["expires_at"]) - time.time())
    return visit.page(
        "approval.html",
        status=409 if problem else 200,
        task=item,
        problem=problem,
        left=left,
        open=item["status"] in OPEN_STATES,
    )


async def judge(visit: Visit) -> Response:
    """POST: approve, deny or cancel a task."""
    form = await visit.form()
    task_id, comment = visit.path["id"][:256], form.get("comment", "").strip() or None
    changes: dict[str, records.Approve | records.Deny | records.Cancel] = {
        "approve": records.Approve(task=task_id, comment=comment),
        "deny": records.Deny(task=task_id, comment=comment),
        "cancel": records.Cancel(task=task_id, reason=comment),
    }
    change = changes.get(form.get("verdict", ""))
    if change is None:
        raise Problem(400, "bad_request", f"verdict: must be one of {', '.join(changes)}")
    try:
        await visit.record(change)
    except RequestError as error:
        if error.code in ("unauthorized", "not_found"):
            raise of_error(error) from error
        return await task(visit, error.message)
    return go_to(f"/approvals/{visit.path['id']}")


def _duration(seconds: float) -> str:
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def _seconds(text: Json) -> float:
    return datetime.fromisoformat(text).timestamp()
