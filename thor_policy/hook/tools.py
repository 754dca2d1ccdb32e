"""Tools of coding agents in the vocabulary of packs.

Their names, their arguments, the resource that they use.

Owns what the agents' files share. Invariant: an argument is renamed or shortened only where the pack
`agent-tools` reads it by another name or not at all; a tool or an argument that is not known here reaches
the rules as the agent gave it. Pure; any thread.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from thor_policy.hook.calls import Fault, Object, shortened

#: Arguments whose text is the content of a file: shortened, because no rule reads it.
_CONTENTS = frozenset({"content", "text", "old", "new", "old_string", "new_string"})
#: What an argument that only changes how a result is shown may be.
_MAX_SHOWN_CHARS = 60
#: Lines of a patch that name a file.
_PATHS = ("*** Add File: ", "*** Update File: ", "*** Delete File: ", "*** Move to: ")
#: Most characters of an id of a resource (protocol, limits).
MAX_ID_CHARS = 256


class Tool(NamedTuple):
    """A tool: its name in the vocabulary, its kind, and what its arguments are called there.

    `renamed` maps an argument of the agent to that of the pack. `shown` are arguments that change only how a
    result is shown. `neutral` are arguments with the value that changes nothing.
    """

    name: str
    kind: str
    renamed: Object = {}
    shown: tuple[str, ...] = ()
    neutral: Object = {}


class Question(NamedTuple):
    """The parts of a question that come from the tool."""

    tool: str
    arguments: Object
    resource: tuple[str, str]
    shown: Object


def described(tools: dict[str, Tool], raw: str, given: Object, cwd: str) -> Question:
    """A call in the vocabulary of packs.

    An unknown tool keeps its name: the vocabulary then says what to do.
    """
    tool = tools.get(raw)
    if tool is None:
        return Question(raw, dict(given), ("target", identifier(raw)), {})
    arguments: Object = {}
    shown: Object = {}
    for name, value in given.items():
        if name in tool.neutral and value == tool.neutral[name] and type(value) is type(tool.neutral[name]):
            continue
        if name in tool.shown and _only_shows(value):
            shown[name] = value
            continue
        to = str(tool.renamed.get(name, name))
        if to in arguments or (to != name and to in given):
            raise Fault(f"event: two arguments of {raw} mean {to}")
        arguments[to] = _content(value) if to in _CONTENTS or to == "edits" else value
    return Question(tool.name, arguments, _resource(tool.kind, arguments, cwd), shown)


def _resource(kind: str, arguments: Object, cwd: str) -> tuple[str, str]:
    if kind in ("file", "folder"):
        paths = arguments.get("paths")
        named = paths[0] if isinstance(paths, list) and paths else cwd if kind == "folder" else None
        path = arguments.get("file_path", arguments.get("path", named))
        if not isinstance(path, str) or not path:
            raise Fault("event: the path of the file is missing, or is not a text")
        return kind, identifier(path)
    if kind == "url":
        url = arguments.get("url")
        # A part of the address is enough: the whole one is an argument, which the rules read too.
        return "url", shortened(url, 140) if isinstance(url, str) and url else "unknown"
    return ("host", "local") if kind == "host" else ("target", kind)


def identifier(text: str) -> str:
    """A text as the id of a resource.

    Raises Fault if it is too long: a part of it would be another resource.
    """
    if len(text) > MAX_ID_CHARS:
        raise Fault(f"event: a path, address or name has {len(text)} characters; the limit is {MAX_ID_CHARS}")
    return text


def _content(value: Any) -> Any:
    """A value with its texts shortened; lists and objects keep their form."""
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, list):
        return [_content(item) for item in value]
    if isinstance(value, dict):
        return {name: _content(item) if name in _CONTENTS else item for name, item in value.items()}
    return value


def _only_shows(value: Any) -> bool:
    """True for a number, a truth value, or a short word."""
    if isinstance(value, str):
        return len(value) <= _MAX_SHOWN_CHARS and all(char.isalnum() or char in "_-.,+" for char in value)
    return isinstance(value, bool | int | float)


def files_of_patch(patch: str) -> list[str]:
    """The files that a patch adds, changes, deletes or moves to. Raises Fault if it names none."""
    paths = [
        line[len(start) :].strip()
        for line in patch.splitlines()
        for start in _PATHS
        if line.startswith(start)
    ]
    if not paths or not all(paths):
        raise Fault("event: the patch names no file")
    return list(dict.fromkeys(paths))
