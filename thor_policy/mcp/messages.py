"""JSON-RPC lines of a client and of a server, read strictly.

Owns what a line is: a request, a notification, a response, or a fault with the error that answers it.
Invariant: a message of a client has one reading only. What a server's parser may read differently is a
fault: a member that is there twice or in two spellings of its letters, an unknown member of the envelope,
NUL, a batch. Pure; any thread.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from thor_policy.core import strict_json
from thor_policy.core.requests import Json

#: Codes of JSON-RPC 2.0, and the code of a denial by the AuthZEN binding for MCP.
PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = (
    *(-32700, -32600, -32601),
    *(-32602, -32603),
)
DENIED = -32001
#: Longest id that is a text, and longest name of a method, in characters.
MAX_ID_CHARS, MAX_METHOD_CHARS = 256, 256
#: Deepest nesting of a message.
MAX_DEPTH = 64
_ENVELOPE = frozenset(("jsonrpc", "id", "method", "params", "result", "error"))

Id: TypeAlias = int | str


class Request(Struct, frozen=True, kw_only=True):
    """A message with `method` and `id`: it is answered."""

    id: Id
    method: str
    params: dict[str, Json]


class Notification(Struct, frozen=True, kw_only=True):
    """A message with `method` and without `id`."""

    method: str
    params: dict[str, Json]


class Response(Struct, frozen=True, kw_only=True):
    """The answer to a request of the other side. `result` is None for an error, `error_text` its message."""

    id: Id | None
    result: Json
    is_error: bool
    error_text: str = ""


class Fault(Struct, frozen=True, kw_only=True):
    """A line that is none of these. `id` is null where it could not be read."""

    code: int
    message: str
    id: Id | None = None


Message: TypeAlias = Request | Notification | Response | Fault


def from_client(line: bytes) -> tuple[Message, bytes]:
    """The message of a client's line, and the line to forward: written anew from what was read."""
    try:
        value = strict_json.decode(line)
    except strict_json.JsonError as error:
        code = INVALID_REQUEST if error.place else PARSE_ERROR
        return Fault(code=code, message=f"the line {error}"), b""
    message = _message(value)
    if isinstance(message, Fault):
        return message, b""
    if problem := _two_readings(value):
        return Fault(code=INVALID_REQUEST, message=problem, id=getattr(message, "id", None)), b""
    return message, strict_json.encode(value) + b"\n"


def from_server(line: bytes) -> Message:
    """The message of a server's line, which is forwarded as it is: integers may have any size in it."""
    try:
        value = strict_json.parse(line)
    except strict_json.JsonError as error:
        return Fault(code=PARSE_ERROR, message=f"the line {error}")
    return _message(value)


def _message(value: Json) -> Message:
    if isinstance(value, list):
        return _invalid("batches are not forwarded: send one message a line")
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        return _invalid('the line must be an object with "jsonrpc": "2.0"')
    id_ = value.get("id")
    known_id = id_ if _is_id(id_) else None
    if unknown := [name for name in value if name not in _ENVELOPE]:
        return _invalid(
            f"the message has the member {unknown[0]!r:.40}, which JSON-RPC does not know", known_id
        )
    if "id" in value and known_id is None and not ("error" in value and id_ is None):
        return _invalid(f"the id must be an integer or a text of at most {MAX_ID_CHARS} characters")
    if "method" not in value:
        if "id" not in value or ("result" in value) == ("error" in value):
            return _invalid("a response has an id, and either result or error", known_id)
        error = value.get("error")
        text = error.get("message") if isinstance(error, dict) else None
        return Response(
            id=known_id,
            result=value.get("result"),
            is_error="error" in value,
            error_text=text if isinstance(text, str) else "",
        )
    method, params = value["method"], value.get("params", {})
    if "result" in value or "error" in value:
        return _invalid("the message is a request and a response", known_id)
    if not isinstance(method, str) or not 1 <= len(method) <= MAX_METHOD_CHARS:
        return _invalid(f"the method must be a text of 1 to {MAX_METHOD_CHARS} characters", known_id)
    if not isinstance(params, dict):
        return _invalid("params must be an object", known_id)
    if known_id is None:
        return Notification(method=method, params=params)
    return Request(id=known_id, method=method, params=params)


def _invalid(message: str, id_: Id | None = None) -> Fault:
    return Fault(code=INVALID_REQUEST, message=message, id=id_)


def _is_id(value: Json) -> bool:
    return type(value) is int or (isinstance(value, str) and len(value) <= MAX_ID_CHARS)


def _two_readings(value: Json) -> str | None:
    """What parsers of other languages may read differently: NUL, or names that differ by case only."""
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Json] = []
        for part in level:
            if isinstance(part, dict):
                if len({name.casefold() for name in part}) != len(part):
                    return "an object has two members whose names differ by case only"
                if any("\0" in name for name in part):
                    return "the name of a member holds NUL"
                below.extend(part.values())
            elif isinstance(part, list):
                below.extend(part)
            elif isinstance(part, str) and "\0" in part:
                return "a text holds NUL"
        if not below:
            return None
        level = below
    return f"the message is nested deeper than {MAX_DEPTH} levels"


# ---------------------------------------------------------------- writing


def error_line(id_: Id | None, code: int, message: str, data: Json = None) -> bytes:
    """An error response as a line."""
    error: dict[str, Json] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return strict_json.encode({"jsonrpc": "2.0", "id": id_, "error": error}) + b"\n"


def request_line(id_: Id, method: str, params: dict[str, Json]) -> bytes:
    """A request of our own as a line."""
    return strict_json.encode({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}) + b"\n"


def canonical(value: Json) -> bytes:
    """JSON with the members of each object sorted: two spellings of a value have one digest.

    Raises JsonError.
    """
    return strict_json.encode(_sorted(value))


def _sorted(value: Json) -> Json:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(part) for part in value] if isinstance(value, list) else value
