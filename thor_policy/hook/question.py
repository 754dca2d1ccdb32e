"""The question about a tool call, and what the daemon's reply to it means.

Owns the members of the question and the reading of replies. Invariant: the question holds the user's text and
the call, and nothing that the agent wrote beside its call; a reply that is not plainly an allow is none. Pure
but for `workspace_of` and `transcript_of`, which look at folders and at the transcript. One thread.
"""

from __future__ import annotations

import os
from typing import Any

from thor_policy.hook import strict
from thor_policy.hook.calls import (
    MAX_TASK_CHARS,
    Call,
    Fault,
    Object,
    Result,
    Verdict,
    digest,
    printable,
    sha256,
)

#: Bytes at the end of a transcript that its digest covers.
TRANSCRIPT_BYTES = 262_144
#: Most clauses that a reason names.
_MOST_CLAUSES = 8
#: Longest session, tool-use id and version that is recorded.
_MAX_ID_CHARS = 200


def key_of(session: str, use: str, raw_tool: str, given: Any) -> str:
    """The key of a call: equal before and after it runs. The id of the agent is enough where there is one."""
    parts = [session, use] if use.startswith(("toolu_", "call_")) else [session, use, raw_tool, given]
    return digest(strict.key_of(parts))


def key_of_call(call: Call) -> str:
    return key_of(call.session, call.use, call.raw_tool, call.given)


def key_of_result(result: Result) -> str:
    return key_of(result.session, result.use, result.raw_tool, result.given)


def workspace_of(cwd: str, folders: tuple[str, ...]) -> str:
    """The folder inside which a call is free: where it runs, if that is plainly inside the project.

    Empty where the call runs outside the project, or below a hidden folder of it: there a relative path is
    not what it seems, and the rules ask for confirmation. Empty too where the project is
    not known, because an agent may choose the folder of a call.
    """
    if not cwd.startswith("/"):
        return ""
    here = os.path.realpath(cwd)
    roots = [os.path.realpath(folder) for folder in folders if folder.startswith("/")]
    for root in roots:
        inside = here[len(root) :] if here == root or here.startswith(root.rstrip("/") + "/") else None
        if inside is not None and not any(part.startswith(".") for part in inside.split("/")):
            return here
    return ""


def transcript_of(path: str) -> Object | None:
    """Length and digest of the end of a transcript; None if there is none that can be read."""
    if not path:
        return None
    try:
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            size = os.fstat(opened).st_size
            start = max(0, size - TRANSCRIPT_BYTES)
            data = os.pread(opened, size - start, start)
        finally:
            os.close(opened)
    except OSError:
        return None
    return {"bytes": size, "from": start, "sha256": sha256(data).hexdigest()}


def question_of(call: Call, *, agent: str, task: str, version: str, workspace: str, observe: bool,
                transcript: Object | None, approval: str, principal: str) -> Object:  # fmt: skip
    """The question of a call, in the words of AuthZEN.

    `hook` holds what rules do not read: which agent asked, in which session, about which of its calls.
    """
    hook: Object = {
        "agent": agent,
        "agent_version": printable(version or call.version, _MAX_ID_CHARS),
        "session": printable(call.session, _MAX_ID_CHARS),
        "tool_use_id": printable(call.use, _MAX_ID_CHARS),
        "event": call.event,
        "tool": printable(call.raw_tool, _MAX_ID_CHARS),
        "observe": observe,
    }
    if call.shown:
        hook["shown"] = call.shown
    if transcript is not None:
        hook["transcript"] = transcript
    context: Object = {
        "task": task[:MAX_TASK_CHARS],
        "origin": "principal",
        "workspace": workspace,
        "hook": hook,
    }
    if approval:
        context["approval"] = {"id": approval}
    properties: Object = {"tools": [call.tool]} | ({"principal": principal} if principal else {})
    return {
        "subject": {"type": "agent", "id": agent, "properties": properties},
        "action": {"name": call.tool, "properties": call.arguments},
        "resource": {"type": call.resource[0], "id": call.resource[1]},
        "context": context,
    }


# ---------------------------------------------------------------- replies


class Decision:
    """A decision of the daemon, as the reply has it."""

    def __init__(self, reply: Object) -> None:
        context = reply.get("context")
        allow = reply.get("decision")
        if not isinstance(allow, bool) or not isinstance(context, dict):
            raise Fault("the reply of the daemon has no decision")
        self.id, self.outcome = context.get("decision_id"), context.get("outcome")
        if not isinstance(self.id, str) or not self.id or not isinstance(self.outcome, str):
            raise Fault("the reply of the daemon names no decision")
        self.allow = allow
        self._context: Object = context

    @property
    def requestable(self) -> bool:
        """True where people with a name can lift the outcome: `request_approval` begins that."""
        return not self.allow and isinstance(self._context.get("access_request"), dict)

    @property
    def confirmable(self) -> bool:
        """True where the person at the agent may confirm: all obligations are of the kind `confirmation`."""
        obligations = self._context.get("obligations")
        if self.allow or not isinstance(obligations, list) or not obligations:
            return False
        return all(
            isinstance(item, dict)
            and isinstance(item.get("properties"), dict)
            and item["properties"].get("kind") == "confirmation"
            for item in obligations
        )

    @property
    def approvers(self) -> str:
        """Who has to approve, in words."""
        template = self._context.get("access_request", {}).get("template")
        ways = template.get("approvers") if isinstance(template, dict) else None
        if not isinstance(ways, list):
            return "somebody who may approve"
        texts = [" and ".join(str(step) for step in way) for way in ways if isinstance(way, list)]
        return printable(" or ".join(texts), 200) or "somebody who may approve"

    def reason(self) -> str:
        """Why, in a sentence, with the clauses and the decision id."""
        text = self._context.get("reasoning")
        because = text if isinstance(text, str) and text else f"The outcome is {self.outcome}."
        code = self._context.get("reason_code")
        clauses = [clause for clause in self._context.get("clauses") or [] if isinstance(clause, str)]
        about = [f"{', '.join(clauses[:_MOST_CLAUSES])}"] if clauses else []
        about += [f"reason code {code}"] if isinstance(code, str) else []
        about.append(f"decision {self.id}")
        return printable(f"thor-policy: {printable(because, 600)} [{'; '.join(about)}]")

    @property
    def approval_code(self) -> str:
        """Why the approval that the question came with did not help; empty if it did or was not there."""
        approval = self._context.get("approval")
        code = approval.get("reason_code") if isinstance(approval, dict) else None
        return code if isinstance(code, str) else ""


def reply_of(frame: bytes, request_id: str) -> Object:
    """The reply to a request. Raises Fault for an error reply, and for what is no reply to this request."""
    reply = strict.decode(frame, "the reply of the daemon")
    if reply.get("v") != 1 or reply.get("id") != request_id:
        raise Fault("the reply of the daemon is to another request, or of another protocol version")
    error = reply.get("error")
    if error is not None:
        code, message = (error.get("code"), error.get("message")) if isinstance(error, dict) else ("", "")
        raise Fault(printable(f"the daemon refused the question: {code}: {message}", 600))
    return reply


def verdict_of(decision: Decision, *, can_ask: bool, task: str = "") -> Verdict:
    """What the agent is answered. `task` is the approval that was requested for this call, if any."""
    reason = decision.reason()
    if decision.allow:
        return Verdict("allow", reason)
    if decision.requestable:
        how = f"Approval {task} is requested from {decision.approvers}: `thorpolicy approvals show {task}`. "
        how = how if task else f"It needs approval: `thorpolicy approvals request {decision.id}`. "
        return Verdict("deny", printable(f"{reason} {how}Then make the same call again."))
    if decision.confirmable and can_ask:
        return Verdict("ask", reason)
    if decision.confirmable:
        how = "It needs the person's confirmation, and the agent cannot ask here: let the person run it."
        return Verdict("deny", printable(f"{reason} {how}"))
    return Verdict("deny", reason)
