"""From a message to the questions about it: a mapping by the AuthZEN binding for MCP (COAZ-MCP, draft 1).

Owns the form of a mapping (`evaluation` or `evaluations`; strings that begin with `$` are expressions, `$$`
is a dollar sign), and what a mapping may not say. Invariant: each question is about the subject of the
token, whoever wrote the mapping, and the members of `context` that belong to the daemon or to the proxy are
never taken from a mapping. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from thor_policy.core import strict_json
from thor_policy.core.requests import Json
from thor_policy.policy.mapped_values import ABSENT, Absent, Expression, MappingError, Value

#: The member of a tool's input schema that has its mapping.
MEMBER = "x-authzen-mapping"
#: Most bytes of a mapping as JSON, and most questions that it asks.
MAX_BYTES, MAX_QUESTIONS = 16_384, 16
#: Deepest nesting of objects and lists in a mapping.
MAX_DEPTH = 8
#: Members of `context` that no mapping sets: they lift outcomes, or are set by the proxy.
RESERVED = ("approval", "supported_obligations", "mcp")
_ENTITIES = ("subject", "action", "resource")
#: The members of each entity; others belong into `properties`.
_MEMBERS = {"subject": ("type", "id"), "action": ("name",), "resource": ("type", "id")}


class Template:
    """A checked mapping: `questions` gives what to ask. Raises MappingError if it is malformed."""

    def __init__(self, mapping: Json) -> None:
        if not isinstance(mapping, dict) or len(mapping) != 1:
            raise MappingError("the mapping must be an object with one member: evaluation or evaluations")
        try:
            size = len(strict_json.encode(mapping))
        except strict_json.JsonError as error:
            raise MappingError(f"the mapping {error}") from error
        if size > MAX_BYTES:
            raise MappingError(f"the mapping has {size} bytes; the limit is {MAX_BYTES}")
        ((envelope, body),) = mapping.items()
        if envelope == "evaluation":
            questions = [_checked(body, envelope, (*_ENTITIES, "context"))]
        elif envelope == "evaluations":
            questions = list(_merged(body))
        else:
            raise MappingError(
                f"the mapping has the member {envelope!r:.40}; write evaluation or evaluations"
            )
        self._templates: list[dict[str, Any]] = [_parsed(question, "", 0) for question in questions]

    def questions(self, params: Mapping[str, Json], token: Mapping[str, Json]) -> list[dict[str, Json]]:
        """The questions about a message; all of them must be allowed. Raises MappingError."""
        return [
            _question({name: _resolved(part, params, token) for name, part in template.items()}, token)
            for template in self._templates
        ]


def _checked(body: Json, place: str, members: tuple[str, ...]) -> dict[str, Json]:
    if not isinstance(body, dict):
        raise MappingError(f"{place} must be an object")
    if unknown := [name for name in body if name not in members]:
        raise MappingError(f"{place} has the member {unknown[0]!r:.40}; write {', '.join(members)}")
    for name in _ENTITIES:
        entity = body.get(name, {})
        if isinstance(entity, dict) and (
            more := [m for m in entity if m not in (*_MEMBERS[name], "properties")]
        ):
            raise MappingError(f"{place}.{name} has the member {more[0]!r:.40}; put it into properties")
    return body


def _merged(body: Json) -> Iterator[dict[str, Json]]:
    """The questions of an `evaluations` mapping, each with the defaults above it, by AuthZEN's rule."""
    shared = _checked(body, "evaluations", (*_ENTITIES, "context", "evaluations"))
    entries = shared.get("evaluations")
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_QUESTIONS:
        raise MappingError(f"evaluations.evaluations must be a list of 1 to {MAX_QUESTIONS} objects")
    defaults = {name: value for name, value in shared.items() if name != "evaluations"}
    for number, entry in enumerate(entries):
        place = f"evaluations.evaluations[{number}]"
        if isinstance(entry, dict) and "subject" in entry:
            raise MappingError(f"{place} has a subject; the one above holds for all of them")
        yield defaults | _checked(entry, place, ("action", "resource", "context"))


# ---------------------------------------------------------------- values


def _parsed(value: Json, place: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise MappingError(f"{place} is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return {
            name: _parsed(part, strict_json.within(place, name), depth + 1) for name, part in value.items()
        }
    if isinstance(value, list):
        return [_parsed(part, strict_json.within(place, at), depth + 1) for at, part in enumerate(value)]
    if isinstance(value, str) and value.startswith("$"):
        return value[1:] if value.startswith("$$") else Expression(value[1:])
    return value


def _resolved(template: Any, params: Mapping[str, Json], token: Mapping[str, Json]) -> Value:
    if isinstance(template, Expression):
        return template.value(params, token)
    if isinstance(template, dict):
        members = {name: _resolved(part, params, token) for name, part in template.items()}
        return {name: value for name, value in members.items() if not isinstance(value, Absent)}
    if isinstance(template, list):
        items = [_resolved(part, params, token) for part in template]
        return [item for item in items if item is not ABSENT]
    return template


def _question(resolved: dict[str, Json], token: Mapping[str, Json]) -> dict[str, Json]:
    subject = {"type": "identity", "id": token["sub"]} | _entity(resolved, "subject", required=False)
    if subject["id"] != token["sub"]:
        raise MappingError("subject.id is not the subject of the token; write $token.sub, or leave it out")
    question: dict[str, Json] = {"subject": subject}
    for name in ("action", "resource"):
        question[name] = _entity(resolved, name, required=True)
    for name in _ENTITIES:
        for member in _MEMBERS[name]:
            value = question[name].get(member)
            if not isinstance(value, str) or not value:
                raise MappingError(f"{name}.{member} must be a text that is not empty")
            if "\0" in value:
                raise MappingError(f"{name}.{member} holds NUL")
        if not isinstance(question[name].get("properties", {}), dict):
            raise MappingError(f"{name}.properties must be an object")
    context = resolved.get("context", {})
    context = {} if context is ABSENT else context
    if not isinstance(context, dict):
        raise MappingError("context must be an object")
    question["context"] = {name: value for name, value in context.items() if name not in RESERVED}
    return question


def _entity(resolved: dict[str, Json], name: str, *, required: bool) -> dict[str, Json]:
    value = resolved.get(name)
    if (value is None or value is ABSENT) and not required:
        return {}
    if not isinstance(value, dict):
        raise MappingError(f"{name} must be an object")
    return {member: part for member, part in value.items() if part is not None}
