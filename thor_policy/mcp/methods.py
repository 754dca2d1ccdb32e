"""The methods of the Model Context Protocol by version, and the question that each is.

Owns the tables of methods and the default mappings of the AuthZEN binding for MCP (COAZ-MCP, draft 1).
Invariant: a method that is in no table has no question, and is denied. Pure; any thread.

Beyond the draft, `resources/templates/list`, `server/discover` and `subscriptions/listen` have a question
of the same form: the draft would deny them, and the clients of their versions need them. None of them
passes unasked.
"""

from __future__ import annotations

from typing import Any

from thor_policy.core.requests import Json

#: Versions that are known, oldest first. From `LATEST_WITH_HANDSHAKE` on there is no `initialize`.
VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
LATEST_WITH_HANDSHAKE, STATELESS = "2025-11-25", "2026-07-28"
#: The member of `params._meta` by which a request without handshake names its version.
VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
#: Requests that are forwarded without a question, as the draft demands.
PASSED = ("ping",)

_WHO: dict[str, Any] = {
    "subject": {"type": "identity", "id": "$token.sub"},
    "context": {"agent": "$token.?client_id"},
}


def _on_server(action: str, **context: str) -> Json:
    return _mapping(action, {"type": "mcp_server", "id": "$token.aud"}, context)


def _on_item(action: str, kind: str, id_: str) -> Json:
    return _mapping(action, {"type": kind, "id": id_}, {})


def _mapping(action: str, resource: dict[str, str], context: dict[str, str]) -> Json:
    question = {**_WHO, "action": {"name": action}, "resource": resource}
    return {"evaluation": question | {"context": _WHO["context"] | context}}


_IS_PROMPT = "params.ref.type == 'ref/prompt'"
_COMMON: dict[str, Json] = {
    "completion/complete": _on_item(
        "completion/complete",
        f"${_IS_PROMPT} ? 'prompt' : 'resource'",
        f"${_IS_PROMPT} ? params.ref.name : params.ref.uri",
    ),
    "prompts/get": _on_item("prompts/get", "prompt", "$params.name"),
    "prompts/list": _on_server("prompts/list"),
    "resources/list": _on_server("resources/list"),
    "resources/read": _on_item("resources/read", "resource", "$params.uri"),
    "resources/templates/list": _on_server("resources/templates/list"),
    "tools/call": _on_item("tools/call", "tool", "$params.name"),
    "tools/list": _on_server("tools/list"),
}
_HANDSHAKE: dict[str, Json] = _COMMON | {
    "initialize": _on_server("initialize", protocol_version="$params.protocolVersion"),
    "logging/setLevel": _on_server("logging/setLevel", level="$params.level"),
    "resources/subscribe": _on_item("resources/subscribe", "resource", "$params.uri"),
    "resources/unsubscribe": _on_item("resources/unsubscribe", "resource", "$params.uri"),
}
_TASKS: dict[str, Json] = {
    "tasks/list": _on_server("tasks/list"),
    **{
        name: _on_item(name, "task", "$params.taskId")
        for name in ("tasks/get", "tasks/result", "tasks/cancel")
    },
}
_STATELESS: dict[str, Json] = _COMMON | {
    "server/discover": _on_server("server/discover"),
    "subscriptions/listen": _on_server("subscriptions/listen"),
}
#: The default mapping of each method, by version.
DEFAULTS: dict[str, dict[str, Json]] = {
    **dict.fromkeys(("2024-11-05", "2025-03-26", "2025-06-18"), _HANDSHAKE),
    LATEST_WITH_HANDSHAKE: _HANDSHAKE | _TASKS,
    STATELESS: _STATELESS,
}
#: Before a version is agreed on: what a client may begin with.
BEGINNING: dict[str, Json] = {
    name: mapping
    for name, mapping in (_HANDSHAKE | _STATELESS).items()
    if name in ("initialize", "server/discover")
}
#: Methods that act or read; the others list, agree on something, or complete a text.
ACTING = (
    *("tools/call", "resources/read", "prompts/get", "resources/subscribe", "subscriptions/listen"),
    *("tasks/get", "tasks/result", "tasks/cancel"),
)
#: Requests that a server may send to its client. The binding leaves them out: the client decides on them.
FROM_SERVER = ("ping", "roots/list", "sampling/createMessage", "elicitation/create")


def table(version: str | None) -> dict[str, Json]:
    """The default mappings of a version; those to begin with for None, none for an unknown version."""
    return BEGINNING if version is None else DEFAULTS.get(version, {})


def version_of(params: dict[str, Json]) -> str | None:
    """The version that a request without handshake names, if it names one."""
    meta = params.get("_meta")
    version = meta.get(VERSION_KEY) if isinstance(meta, dict) else None
    return version if isinstance(version, str) else None
