"""Claude Code: PreToolUse, PermissionRequest, PostToolUse, UserPromptSubmit.

Owns its contract (hooks reference of 2.1.295). Without `"onFailure": "block"` a hook that crashes, times out
or exits with another status than 0 and 2 lets the tool run. An answer `allow` would skip the person's own
prompt, so it is printed only with --may-approve. Pure; one thread.
"""

from __future__ import annotations

import json

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
    name_of,
    object_of,
    printable,
    text_of,
    text_or_empty,
)
from thor_policy.hook.tools import Tool, described

NAME, PROGRAM = "claude", "claude"
#: The first version whose hooks can block when they fail.
LEAST_VERSION = (2, 1, 295)
CONTRACT = "onFailure: block; exit status 2 blocks"
#: What install prints for the person.
NOTES: tuple[str, ...] = ()
#: Events that install writes, in this order, and whether they gate.
GATES = {"PreToolUse": True, "PermissionRequest": True, "PostToolUse": False, "PostToolUseFailure": False,
         "UserPromptSubmit": False}  # fmt: skip
#: The settings file of a user and of a project, below the home folder and below the project.
SETTINGS = {"user": ".claude/settings.json", "project": ".claude/settings.json"}
#: The variable with the root of the project.
FOLDERS = ("CLAUDE_PROJECT_DIR",)

_SEARCH = ("output_mode", "-n", "-i", "-A", "-B", "-C", "head_limit", "multiline", "type")
TOOLS = {
    "Bash": Tool("bash", "host", neutral={"run_in_background": False, "dangerouslyDisableSandbox": False}),
    "Read": Tool("read", "file"),
    "Write": Tool("write", "file"),
    "Edit": Tool("edit", "file"),
    "MultiEdit": Tool("multiedit", "file"),
    "Glob": Tool("glob", "folder"),
    "Grep": Tool("grep", "folder", shown=_SEARCH),
    "LS": Tool("ls", "folder"),
    "WebFetch": Tool("webfetch", "url"),
    "WebSearch": Tool("websearch", "target"),
}
#: Tools that act on the session alone: they are not asked about.
INTERNAL = frozenset({"TodoWrite", "AskUserQuestion", "EnterPlanMode", "ExitPlanMode"})
_SILENT = frozenset({"SessionStart", "SessionEnd", "Stop", "SubagentStop", "Notification", "PreCompact"})


def read(event: Object, given_name: str) -> Event:
    """The event in what the agent wrote to standard input. Raises Fault."""
    name = name_of(event, given_name)
    session = text_or_empty(event, "session_id")
    if name in _SILENT:
        return Silent(name)
    if name == "UserPromptSubmit":
        return Prompt(name, session, text_or_empty(event, "prompt"), text_or_empty(event, "cwd"))
    if name in ("PostToolUse", "PostToolUseFailure"):
        response = event.get("tool_response", event.get("error", ""))
        worked = name == "PostToolUse" and not (
            isinstance(response, dict) and response.get("is_error") is True
        )
        output = response if isinstance(response, str) else json.dumps(response)
        use = text_or_empty(event, "tool_use_id")
        return Result(
            name, session, use, text_of(event, "tool_name"), event.get("tool_input"), worked, output
        )
    if name not in ("PreToolUse", "PermissionRequest"):
        raise Fault(f"event: {printable(name, 60)} is not known to this version of the hook")
    raw = text_of(event, "tool_name")
    if raw in INTERNAL:
        return Silent(name)
    given, cwd = object_of(event, "tool_input"), text_of(event, "cwd")
    question = described(TOOLS, raw, given, cwd)
    return Call(
        event=name,
        tool=question.tool,
        raw_tool=raw,
        arguments=question.arguments,
        resource=question.resource,
        shown=question.shown,
        session=text_of(event, "session_id"),
        cwd=cwd,
        use=text_or_empty(event, "tool_use_id"),
        transcript=text_or_empty(event, "transcript_path"),
        given=given,
    )


def answer(event: str, verdict: Verdict, *, may_approve: bool = False) -> Output:
    """What the hook prints. A fault is exit status 2, which blocks in every version."""
    if verdict.kind == "fault":
        return Output(stderr=verdict.reason, status=2)
    if event == "PermissionRequest":
        return _permission(verdict, may_approve)
    if event != "PreToolUse" or (verdict.kind == "allow" and not may_approve):
        return Output()
    fields = {"hookEventName": event, "permissionDecision": verdict.kind}
    if verdict.reason:
        fields["permissionDecisionReason"] = verdict.reason
    return Output(json.dumps({"hookSpecificOutput": fields}))


def _permission(verdict: Verdict, may_approve: bool) -> Output:
    """The person is about to be asked: a denial ends that, and silence leaves it to the person."""
    if verdict.kind == "ask" or (verdict.kind == "allow" and not may_approve):
        return Output()
    decision: Object = {"behavior": verdict.kind}
    if verdict.kind == "deny":
        decision["message"] = verdict.reason
    fields = {"hookEventName": "PermissionRequest", "decision": decision}
    return Output(json.dumps({"hookSpecificOutput": fields}))


def entry(event: str, command: str, timeout_s: int, *, closed: bool) -> Object:
    """A group of the settings file for an event."""
    hook: Object = {"type": "command", "command": command, "timeout": timeout_s}
    if closed:
        hook["onFailure"] = "block"
    return {"hooks": [hook]} if event == "UserPromptSubmit" else {"matcher": "*", "hooks": [hook]}
