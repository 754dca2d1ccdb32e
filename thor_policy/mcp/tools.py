"""The tools that a server lists: their mappings, their digests, and what has changed since the first listing.

Owns what is learned of a server. All of it is the server's own claim: a mapping can add questions about a
call, and nothing in a listing lets a call through. Invariant: a tool that is listed in two forms, or in
another form than the first time, is marked, and stays marked. Belongs to the proxy's lock; any thread may
read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from msgspec import Struct

from thor_policy.core import strict_json
from thor_policy.core.requests import Json
from thor_policy.mcp.mapping import MEMBER, Template
from thor_policy.mcp.messages import canonical
from thor_policy.policy.mapped_values import MappingError

#: Most tools of a server, most pages of a listing, and longest name in characters.
MAX_TOOLS, MAX_PAGES, MAX_NAME_CHARS = 2_048, 64, 256
_NOT_STRICT = "the tool's description is no strict JSON"


class Tool(Struct, frozen=True, kw_only=True):
    """A tool as it was first listed.

    `mapping` is the server's, `fault` why it cannot be used. `arguments` are the names that its schema
    declares.
    """

    name: str
    sha256: str
    mapping: Template | None = None
    fault: str | None = None
    arguments: tuple[str, ...] = ()


class Listing:
    """The tools of one server, as far as its listings were seen."""

    def __init__(self) -> None:
        self._tools: dict[str, Tool] = {}
        self._changed: dict[str, str] = {}
        #: A whole listing was seen, and the server has not said since that it changed.
        self.is_current = False

    def get(self, name: str) -> Tool | None:
        return self._tools.get(name)

    def changed(self, name: str) -> str | None:
        """The digest of another form in which a tool was listed; None if there is none."""
        return self._changed.get(name)

    @property
    def sha256(self) -> str:
        """The digest of all tools as first listed: of their names and digests, sorted."""
        lines = "".join(f"{name}\0{tool.sha256}\n" for name, tool in sorted(self._tools.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def learn(self, result: Json) -> list[str]:
        """Learn a page of a listing; the notes for the operator: what is new, has changed, or is left out."""
        tools = result.get("tools") if isinstance(result, dict) else None
        if not isinstance(tools, list):
            return ["the answer to tools/list has no list of tools"]
        return [note for item in tools for note in self._learn(item)]

    def _learn(self, item: Json) -> Iterator[str]:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARS:
            yield f"a tool without a name of 1 to {MAX_NAME_CHARS} characters is left out"
            return
        tool = _tool(name, item)
        known = self._tools.get(name)
        if known is None:
            if len(self._tools) >= MAX_TOOLS:
                yield f"the tool {name!r} is left out: the server lists more than {MAX_TOOLS}"
                return
            self._tools[name] = tool
            if tool.fault:
                yield f"the mapping of the tool {name!r} cannot be used: {tool.fault}"
        elif tool.sha256 != known.sha256 and self._changed.get(name) != tool.sha256:
            self._changed[name] = tool.sha256
            yield f"the tool {name!r} has changed: {known.sha256[:12]} is now {tool.sha256[:12]}"


def _tool(name: str, item: dict[str, Json]) -> Tool:
    try:
        digest = hashlib.sha256(canonical(item)).hexdigest()
    except strict_json.JsonError:
        return Tool(name=name, sha256=hashlib.sha256(_NOT_STRICT.encode()).hexdigest(), fault=_NOT_STRICT)
    schema = item.get("inputSchema")
    schema = schema if isinstance(schema, dict) else {}
    properties = schema.get("properties")
    arguments = tuple(properties) if isinstance(properties, dict) else ()
    if MEMBER not in schema:
        return Tool(name=name, sha256=digest, arguments=arguments)
    try:
        return Tool(name=name, sha256=digest, mapping=Template(schema[MEMBER]), arguments=arguments)
    except MappingError as error:
        return Tool(name=name, sha256=digest, fault=str(error), arguments=arguments)
