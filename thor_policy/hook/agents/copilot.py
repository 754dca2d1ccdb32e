"""GitHub Copilot CLI: preToolUse, postToolUse, postToolUseFailure, userPromptSubmitted.

Owns its contract (hooks reference, camelCase names). An event does not name itself, so the command line does.
A command hook that exits with another status than 0 denies; one that times out lets the tool run, and so does
output that is not JSON. The hook's own deadline is far below the timeout. Pure; one thread.
"""

from __future__ import annotations

import json

from thor_policy.hook import strict
from thor_policy.hook.calls import (
    Call,
    Event,
    Fault,
    Object,
    Output,
    Prompt,
    Result,
    Silent,
    Verdict,
    digest,
    name_of,
    printable,
    shortened,
    text_of,
    text_or_empty,
)
from thor_policy.hook.tools import Tool, described, files_of_patch

NAME, PROGRAM = "copilot", "copilot"
#: The first version whose preToolUse hooks are documented to deny when they fail.
LEAST_VERSION = (1, 0, 0)
CONTRACT = "a command hook that fails denies; the hook's deadline is far below the timeout"
#: What install prints for the person.
NOTES: tuple[str, ...] = (
    "a hook that takes longer than its timeout lets the tool run; the deadline of a run is far below it",
    "as cloud agent Copilot cannot ask anybody: what needs a confirmation is denied",
)
GATES = {"preToolUse": True, "postToolUse": False, "postToolUseFailure": False, "userPromptSubmitted": False}
#: A file of its own: Copilot reads every JSON file in the folder.
SETTINGS = {"user": ".copilot/hooks/thor-policy.json", "project": ".github/hooks/thor-policy.json"}
FOLDERS = ()

_EDIT = {"old_str": "old_string", "new_str": "new_string", "file_text": "content"}
TOOLS = {
    "bash": Tool("bash", "host", neutral={"async": False}, shown=("mode", "initial_wait")),
    "view": Tool("view", "file", shown=("view_range",)),
    "create": Tool("write", "file", renamed=_EDIT),
    "edit": Tool("edit", "file", renamed=_EDIT),
    "apply_patch": Tool("file.edit", "file"),
    "grep": Tool("grep", "folder", shown=("output_mode", "-n", "-i", "-A", "-B", "-C", "head_limit", "type")),
    "rg": Tool("grep", "folder", shown=("output_mode", "-n", "-i", "-A", "-B", "-C", "head_limit", "type")),
    "glob": Tool("glob", "folder"),
    "web_fetch": Tool("webfetch", "url"),
    "web_search": Tool("websearch", "target"),
}
INTERNAL = frozenset({"report_intent", "update_todo", "ask_user"})
_SILENT = frozenset({
    "sessionStart", "sessionEnd", "agentStop", "subagentStart", "subagentStop", "errorOccurred", "preCompact",
    "notification",
})  # fmt: skip


def read(event: Object, given_name: str) -> Event:
    """The event in what the agent wrote to standard input. Raises Fault."""
    name = name_of(event, given_name)
    cwd = text_or_empty(event, "cwd")
    # Versions before 1.0 name no session: then the folder stands for it.
    session = text_or_empty(event, "sessionId") or f"folder-{digest(cwd)[:16]}"
    if name in _SILENT:
        return Silent(name)
    if name == "userPromptSubmitted":
        return Prompt(name, session, text_or_empty(event, "prompt"), cwd)
    if name in ("postToolUse", "postToolUseFailure"):
        result = event.get("toolResult")
        kind = result.get("resultType", "success") if isinstance(result, dict) else "success"
        output = result.get("textResultForLlm", "") if isinstance(result, dict) else event.get("error", "")
        worked = name == "postToolUse" and kind == "success"
        raw = text_of(event, "toolName")
        return Result(name, session, "", raw, _arguments(event), worked, str(output))
    if name != "preToolUse":
        raise Fault(f"event: {printable(name, 60)} is not known to this version of the hook")
    raw = text_of(event, "toolName")
    if raw in INTERNAL:
        return Silent(name)
    given = _arguments(event)
    if not cwd:
        raise Fault("event: cwd is missing, or is not a text")
    patch = given.get("input", given.get("patch")) if raw == "apply_patch" else None
    readable = (
        {"paths": files_of_patch(patch), "content": shortened(patch)} if isinstance(patch, str) else given
    )
    question = described(TOOLS, raw, readable, cwd)
    return Call(
        event=name,
        tool=question.tool,
        raw_tool=raw,
        arguments=question.arguments,
        resource=question.resource,
        shown=question.shown,
        session=session,
        cwd=cwd,
        given=given,
    )


def _arguments(event: Object) -> Object:
    """The arguments of a tool, which come as an object or as the text of one. Raises Fault."""
    given = event.get("toolArgs")
    if isinstance(given, str):
        return strict.decode(given.encode("utf-8", "surrogatepass"), "event: toolArgs")
    if not isinstance(given, dict):
        raise Fault("event: toolArgs is missing, or is not an object")
    return given


def answer(event: str, verdict: Verdict, *, may_approve: bool = False) -> Output:
    """What the hook prints. An empty object is Copilot's own flow; a fault denies by its status too."""
    if event != "preToolUse" or (verdict.kind == "allow" and not may_approve):
        return Output("{}") if verdict.kind != "fault" else Output(stderr=verdict.reason, status=2)
    kind = "deny" if verdict.kind == "fault" else verdict.kind
    fields = {"permissionDecision": kind} | (
        {"permissionDecisionReason": verdict.reason} if verdict.reason else {}
    )
    if verdict.kind == "fault":
        return Output(json.dumps(fields), verdict.reason, 2)
    return Output(json.dumps(fields))


def entry(event: str, command: str, timeout_s: int, *, closed: bool) -> Object:
    """An entry of the hooks file for an event."""
    return {"type": "command", "bash": command, "timeoutSec": timeout_s}
