"""Cursor: beforeShellExecution, beforeMCPExecution, preToolUse and the events after them.

Owns its contract (hooks of 2.4 and later). With `failClosed` a hook that fails, or prints anything but
JSON, blocks. A command has two events: preToolUse, and then beforeShellExecution. Both are asked about,
because each version sends at least one of them. At preToolUse Cursor shows no question to the person: what
a person can lift is denied there, but for commands and MCP tools, whose own event asks. Pure; one thread.
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
    name_of,
    object_of,
    printable,
    text_of,
    text_or_empty,
)
from thor_policy.hook.tools import Tool, described

NAME, PROGRAM = "cursor", "cursor"
LEAST_VERSION = (2, 4, 0)
CONTRACT = "failClosed: true; exit status 2 blocks"
#: What install prints for the person.
NOTES: tuple[str, ...] = ()
GATES = {"beforeShellExecution": True, "beforeMCPExecution": True, "preToolUse": True,
         "postToolUse": False, "postToolUseFailure": False, "afterShellExecution": False,
         "afterMCPExecution": False, "beforeSubmitPrompt": False}  # fmt: skip
SETTINGS = {"user": ".cursor/hooks.json", "project": ".cursor/hooks.json"}
FOLDERS = ("CURSOR_PROJECT_DIR",)

_PATH = {"target_file": "file_path", "path": "file_path", "contents": "content"}
TOOLS = {
    "Shell": Tool("bash", "host", neutral={"is_background": False}),
    "Read": Tool("read", "file", renamed=_PATH),
    "Write": Tool("write", "file", renamed=_PATH),
    "Edit": Tool("edit", "file", renamed=_PATH),
    "StrReplace": Tool("edit", "file", renamed=_PATH),
    "Delete": Tool("file.delete", "file", renamed=_PATH),
    "Grep": Tool("grep", "folder", shown=("output_mode", "-n", "-i", "-A", "-B", "-C", "head_limit", "type")),
    "Glob": Tool("glob", "folder"),
    "LS": Tool("ls", "folder"),
    "WebFetch": Tool("webfetch", "url"),
    "WebSearch": Tool("websearch", "target"),
}
INTERNAL = frozenset({"TodoWrite"})
_SILENT = frozenset({
    "sessionStart", "sessionEnd", "stop", "subagentStop", "preCompact", "afterFileEdit",
    "afterAgentResponse", "afterAgentThought",
})  # fmt: skip


def read(event: Object, given_name: str) -> Event:
    """The event in what the agent wrote to standard input. Raises Fault."""
    name = name_of(event, given_name)
    session = text_or_empty(event, "conversation_id")
    given: Object
    if name in _SILENT:
        return Silent(name)
    if name == "beforeSubmitPrompt":
        return Prompt(name, session, text_or_empty(event, "prompt"), "")  # each event has the roots
    if name in ("postToolUse", "postToolUseFailure"):
        raw, given = text_of(event, "tool_name"), object_of(event, "tool_input")
        output = event.get("tool_output", event.get("error_message", ""))
        return Result(name, session, _turn(event), raw, given, name == "postToolUse", str(output))
    if name == "afterShellExecution":
        given = {"command": text_of(event, "command")}
        return Result(name, session, _turn(event), "Shell", given, None, text_or_empty(event, "output"))
    if name == "afterMCPExecution":
        raw, given = text_of(event, "tool_name"), _arguments(event)
        return Result(name, session, _turn(event), raw, given, True, text_or_empty(event, "result_json"))
    if name == "beforeShellExecution":
        raw, given = "Shell", {"command": text_of(event, "command")}
    elif name == "beforeMCPExecution":
        raw, given = text_of(event, "tool_name"), _arguments(event)
    elif name == "preToolUse":
        raw, given = text_of(event, "tool_name"), object_of(event, "tool_input")
    else:
        raise Fault(f"event: {printable(name, 60)} is not known to this version of the hook")
    if raw in INTERNAL:
        return Silent(name)
    roots = event.get("workspace_roots") or []
    if not isinstance(roots, list) or not all(isinstance(root, str) for root in roots):
        raise Fault("event: workspace_roots is not a list of texts")
    cwd = text_or_empty(event, "cwd") or (roots[0] if roots else "")
    if name != "beforeMCPExecution" and not cwd:
        raise Fault("event: cwd and workspace_roots are missing")
    question = described(TOOLS if name != "beforeMCPExecution" else {}, raw, given, cwd)
    return Call(
        event=name,
        tool=question.tool,
        raw_tool=raw,
        arguments=question.arguments,
        resource=question.resource,
        shown=question.shown,
        session=text_of(event, "conversation_id"),
        cwd=cwd,
        use=_turn(event),
        folders=tuple(roots),
        transcript=text_or_empty(event, "transcript_path"),
        version=text_or_empty(event, "cursor_version"),
        can_ask=name != "preToolUse" or raw == "Shell" or raw.startswith("MCP:"),
        given=given,
    )


def _turn(event: Object) -> str:
    return text_or_empty(event, "generation_id")


def _arguments(event: Object) -> Object:
    """The input of an MCP tool, which comes as an object or as the text of one."""
    given = event.get("tool_input")
    if isinstance(given, str):
        return strict.decode(given.encode("utf-8", "surrogatepass"), "event: tool_input")
    return object_of(event, "tool_input")


def answer(event: str, verdict: Verdict, *, may_approve: bool = False) -> Output:
    """What the hook prints. Its allow is the silent form: Cursor's own rules still apply."""
    if event == "beforeSubmitPrompt" and verdict.kind != "fault":
        return Output(json.dumps({"continue": True}))
    if verdict.kind == "allow":
        return Output(json.dumps({"permission": "allow"}) if GATES.get(event) else "{}")
    kind = "ask" if verdict.kind == "ask" else "deny"
    fields = {"permission": kind, "user_message": verdict.reason, "agent_message": verdict.reason}
    if verdict.kind == "fault":
        return Output(json.dumps(fields), verdict.reason, 2)
    return Output(json.dumps(fields))


def entry(event: str, command: str, timeout_s: int, *, closed: bool) -> Object:
    """An entry of hooks.json for an event."""
    made: Object = {"command": command, "timeout": timeout_s}
    return made | {"failClosed": True} if closed else made
