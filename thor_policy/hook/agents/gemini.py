"""Gemini CLI: BeforeTool, AfterTool, BeforeAgent.

Owns its contract (hooks reference, and the hook runner of 0.61.0). A hook that times out lets the tool run,
and so does exit status 2 without any text: a blocking status always comes with a reason. Timeouts are in
milliseconds. Version 0.61 knows an answer `ask`; older ones take it for an allow, so it is never printed.
Pure; one thread.
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

NAME, PROGRAM = "gemini", "gemini"
#: The first version whose hooks are on without an experimental setting.
LEAST_VERSION = (0, 26, 0)
CONTRACT = "the installed command ends with a text and exit 2; the hook's deadline is far below the timeout"
#: What install prints for the person.
NOTES: tuple[str, ...] = (
    "a hook that takes longer than its timeout lets the tool run; the deadline of a run is far below it",
    "hooks of a project run only in a trusted folder",
)
GATES = {"BeforeTool": True, "AfterTool": False, "BeforeAgent": False}
SETTINGS = {"user": ".gemini/settings.json", "project": ".gemini/settings.json"}
#: GEMINI_PROJECT_DIR is the folder of the call in 0.61, which says nothing new.
FOLDERS = ()

_PATH = {"absolute_path": "file_path", "dir_path": "path"}
TOOLS = {
    "run_shell_command": Tool("bash", "host", neutral={"is_background": False}),
    "read_file": Tool("read", "file", renamed=_PATH),
    "read_many_files": Tool("read", "folder", renamed={"include": "paths"}),
    "write_file": Tool("write", "file", renamed=_PATH),
    "replace": Tool("edit", "file", renamed=_PATH | {"instruction": "text"}),
    "glob": Tool("glob", "folder", renamed=_PATH, shown=("case_sensitive", "respect_git_ignore")),
    "grep_search": Tool("grep", "folder", renamed=_PATH | {"include": "glob"}),
    "search_file_content": Tool("grep", "folder", renamed=_PATH | {"include": "glob"}),
    "list_directory": Tool("ls", "folder", renamed=_PATH),
    "web_fetch": Tool("webfetch", "url"),
    "google_web_search": Tool("websearch", "target"),
}
INTERNAL = frozenset({"write_todos"})
_SILENT = frozenset({
    "SessionStart", "SessionEnd", "AfterAgent", "BeforeModel", "AfterModel", "BeforeToolSelection",
    "Notification", "PreCompress",
})  # fmt: skip


def read(event: Object, given_name: str) -> Event:
    """The event in what the agent wrote to standard input. Raises Fault."""
    name = name_of(event, given_name)
    session = text_or_empty(event, "session_id")
    if name in _SILENT:
        return Silent(name)
    if name == "BeforeAgent":
        return Prompt(name, session, text_or_empty(event, "prompt"), text_or_empty(event, "cwd"))
    if name == "AfterTool":
        response = event.get("tool_response", "")
        worked = not (isinstance(response, dict) and response.get("error"))
        raw = text_of(event, "tool_name")
        return Result(name, session, "", raw, event.get("tool_input"), worked, json.dumps(response))
    if name != "BeforeTool":
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
        transcript=text_or_empty(event, "transcript_path"),
        can_ask=False,
        given=given,
    )


def answer(event: str, verdict: Verdict, *, may_approve: bool = False) -> Output:
    """What the hook prints. Nothing here approves: an allow leaves the person's own prompt."""
    if verdict.kind == "fault":
        return Output(stderr=verdict.reason, status=2)
    if event == "BeforeTool" and verdict.kind in ("deny", "ask"):
        return Output(json.dumps({"decision": "deny", "reason": verdict.reason}))
    return Output("{}")


def entry(event: str, command: str, timeout_s: int, *, closed: bool) -> Object:
    """A group of the settings file for an event."""
    hook = {"name": "thor-policy", "type": "command", "command": command, "timeout": timeout_s * 1_000}
    return {"hooks": [hook]} if event == "BeforeAgent" else {"matcher": ".*", "hooks": [hook]}
