"""Codex: PreToolUse, PermissionRequest, PostToolUse, UserPromptSubmit.

Owns its contract (schemas of 0.124 and later). An answer `ask` is rejected and the command then runs, so
what a person can lift is denied, with the way to get it approved. A hook that fails lets the command run:
the installed command turns every failure into exit status 2 with a text. Pure; one thread.
"""

from __future__ import annotations

import json
from typing import Any

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
    shortened,
    text_of,
    text_or_empty,
)
from thor_policy.hook.tools import Tool, described, files_of_patch

NAME, PROGRAM = "codex", "codex"
LEAST_VERSION = (0, 124, 0)
CONTRACT = "the installed command ends with || exit 2"
#: What install prints for the person.
NOTES: tuple[str, ...] = (
    "Codex runs a hook only after you trusted it: start codex, enter /hooks, trust those of thor-policy",
    "a hook that takes longer than its timeout lets the command run; the deadline of a run is far below it",
)
GATES = {"PreToolUse": True, "PermissionRequest": True, "PostToolUse": False, "UserPromptSubmit": False}
SETTINGS = {"user": ".codex/hooks.json", "project": ".codex/hooks.json"}
FOLDERS = ()

TOOLS = {
    "Bash": Tool("bash", "host", renamed={"cmd": "command"}),
    "shell": Tool("bash", "host", renamed={"cmd": "command"}),
    "exec_command": Tool("bash", "host", renamed={"cmd": "command"}),
    "apply_patch": Tool("file.edit", "file"),
}
INTERNAL = frozenset({"update_plan"})
_SILENT = frozenset(
    {"SessionStart", "SessionEnd", "Stop", "SubagentStart", "SubagentStop", "PreCompact", "PostCompact"}
)


def read(event: Object, given_name: str) -> Event:
    """The event in what the agent wrote to standard input. Raises Fault."""
    name = name_of(event, given_name)
    session = text_or_empty(event, "session_id")
    if name in _SILENT:
        return Silent(name)
    if name == "UserPromptSubmit":
        return Prompt(name, session, text_or_empty(event, "prompt"), text_or_empty(event, "cwd"))
    if name == "PostToolUse":
        response = event.get("tool_response", "")
        output = response if isinstance(response, str) else json.dumps(response)
        use, raw = text_or_empty(event, "tool_use_id"), text_of(event, "tool_name")
        return Result(name, session, use, raw, event.get("tool_input"), _worked(response), output)
    if name not in ("PreToolUse", "PermissionRequest"):
        raise Fault(f"event: {printable(name, 60)} is not known to this version of the hook")
    raw = text_of(event, "tool_name")
    if raw in INTERNAL:
        return Silent(name)
    given, cwd = object_of(event, "tool_input"), text_of(event, "cwd")
    question = described(TOOLS, raw, _as_text(raw, given), cwd)
    return Call(
        event=name,
        tool=question.tool,
        raw_tool=raw,
        arguments=question.arguments,
        resource=question.resource,
        session=text_of(event, "session_id"),
        cwd=cwd,
        use=text_or_empty(event, "tool_use_id"),
        transcript=text_or_empty(event, "transcript_path"),
        can_ask=name == "PermissionRequest",  # the agent is about to ask
        given=given,
    )


def _worked(response: Any) -> bool | None:
    """Whether the tool worked; of a command Codex gives the output alone."""
    status = response.get("exit_code") if isinstance(response, dict) else None
    return status == 0 if isinstance(status, int) else None


def _as_text(raw: str, given: Object) -> Object:
    """The input with its command as a text, or with the files of a patch."""
    if raw == "apply_patch":
        patch = given.get("command", given.get("input", given.get("patch")))
        if not isinstance(patch, str):
            raise Fault("event: the patch is missing, or is not a text")
        return {"paths": files_of_patch(patch), "content": shortened(patch)}
    name = "command" if "command" in given else "cmd"
    words = given.get(name)
    if not isinstance(words, list):
        return given
    if not all(isinstance(word, str) for word in words):
        raise Fault("event: the command is neither a text nor a list of texts")
    if len(words) == 3 and words[0].rsplit("/", 1)[-1] in ("bash", "sh", "zsh") and words[1] in ("-c", "-lc"):
        return given | {name: words[2]}
    return given | {name: " ".join(_quoted(word) for word in words)}


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\"'\"'") + "'"


def answer(event: str, verdict: Verdict, *, may_approve: bool = False) -> Output:
    """What the hook prints.

    `{}`, or the denial and nothing else. A fault is exit status 2 with its reason.
    """
    if verdict.kind == "fault":
        return Output(stderr=verdict.reason, status=2)
    if event == "PermissionRequest" and (verdict.kind == "deny" or (verdict.kind == "allow" and may_approve)):
        decision = {"behavior": verdict.kind} | (
            {"message": verdict.reason} if verdict.kind == "deny" else {}
        )
        fields: Object = {"hookEventName": event, "decision": decision}
        return Output(json.dumps({"hookSpecificOutput": fields}))
    if event == "PreToolUse" and verdict.kind in ("deny", "ask"):
        fields = {
            "hookEventName": event,
            "permissionDecision": "deny",
            "permissionDecisionReason": verdict.reason,
        }
        return Output(json.dumps({"hookSpecificOutput": fields}))
    return Output("{}")


def entry(event: str, command: str, timeout_s: int, *, closed: bool) -> Object:
    """A group of hooks.json for an event."""
    hook = {"type": "command", "command": command, "timeout": timeout_s}
    return {"hooks": [hook]} if event == "UserPromptSubmit" else {"matcher": "*", "hooks": [hook]}
