"""The import of a graph that `export --format json` made: what of it is new, known, or in conflict.

Owns the reading of the file and its comparison with the journal. Invariant: a plan with a problem is not
carried out, so an import records all that is missing or nothing; a second import of a file finds everything
known. The file is hostile: its size is bounded before it is read, and each value by the types of records. Any
thread or process, on a reader of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, to_builtins

from thor_policy.core import graph, strict_json
from thor_policy.core.errors import ConfigError
from thor_policy.core.records import MAX_IMPORTED, Edge, GraphImport, ImportedEdge, ImportedNode, Node
from thor_policy.core.requests import Json
from thor_policy.journal import work_queries
from thor_policy.journal.reader import Reader, Record
from thor_policy.trace.interchange import FORMAT

#: Most bytes of a file; 10,000 nodes with all their columns are some 10 MB.
MOST_BYTES = 64 * 2**20
#: Bytes of one request that a page of nodes and edges leaves to the rest of it.
_HEAD_BYTES = 1_024
_OF_NODE = (
    *("type", "title", "description", "status", "confidence", "session", "metadata", "actor_type"),
    *("role", "agent"),
)
_OF_EDGE = ("source", "target", "type", "weight", "rationale", "similarity", "how", "favourable")
#: Columns that an erasure empties: where one is empty in the journal, it may have been something else.
_ERASABLE = frozenset({"title", "description", "metadata", "role", "agent", "rationale"})


class Problem(Struct, frozen=True):
    """What keeps a file from being imported: the id, and why."""

    id: str
    why: str


class Plan(Struct, frozen=True, kw_only=True):
    """What an import would do. `left_out`: recorded decisions, and links that follow from them."""

    nodes: tuple[ImportedNode, ...]
    edges: tuple[ImportedEdge, ...]
    known: int
    left_out: int
    problems: tuple[Problem, ...]


def read_file(path: Path) -> dict[str, Json]:
    """The members of a file. Raises ConfigError, which names what is wrong."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{path}: has more than {MOST_BYTES:,} bytes; export the graph in parts")
    try:
        read = strict_json.decode(text)
    except strict_json.JsonError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(read, dict) or read.get("format") != FORMAT:
        raise ConfigError(f"{path}: format: must be {FORMAT!r}, as `graph export --format json` writes it")
    for name in ("items", "edges"):
        members = read.get(name)
        if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
            raise ConfigError(f"{path}: {name}: must be a list of objects")
    return read


def as_members(nodes: Sequence[ImportedNode], edges: Sequence[ImportedEdge]) -> dict[str, Json]:
    """Nodes and edges as the members of a file."""
    items = [{"id": kept.id, **to_builtins(kept.node), "stated_status": kept.node.status} for kept in nodes]
    links = [{"id": kept.id, **to_builtins(kept.edge), "stated": 1} for kept in edges]
    return {"items": items, "edges": links}


def plan(reader: Reader, members: Mapping[str, Json]) -> Plan:
    """What of a file (`read_file`) is to be recorded. Raises JournalError."""
    problems: list[Problem] = []
    items = [item for item in members["items"] if not item.get("recorded")]
    links = [link for link in members["edges"] if link.get("stated")]
    left_out = len(members["items"]) - len(items) + len(members["edges"]) - len(links)
    nodes = _converted(items, _node, problems)
    edges = _converted(links, _edge, problems)
    known = 0
    new_nodes, new_edges = [], []
    with reader.snapshot() as connection:
        there = work_queries.items(connection, list(nodes))
        links_there = work_queries.links_by_id(connection, list(edges))
        ends = {end for edge in edges.values() for end in (edge.source, edge.target)}
        recorded = work_queries.parts(connection, sorted(ends))
    for id, node in nodes.items():
        if id not in there:
            new_nodes.append(ImportedNode(id=id, node=node))
        elif (differs := _difference(_as_recorded(there[id]), node, _OF_NODE)) is not None:
            problems.append(Problem(id, f"{differs}: differs from what is recorded under this id"))
        else:
            known += 1
    for id, edge in edges.items():
        types = [_type_of(end, nodes, recorded) for end in (edge.source, edge.target)]
        missing = [end for end in (edge.source, edge.target) if end not in nodes and end not in recorded]
        if id in links_there:
            if (differs := _difference(links_there[id], edge, _OF_EDGE)) is not None:
                problems.append(Problem(id, f"{differs}: differs from what is recorded under this id"))
            else:
                known += 1
        elif missing:
            problems.append(Problem(id, f"{missing[0][:64]!r} is neither in the file nor recorded here"))
        elif (problem := graph.problem_of_ends(edge.type, *types)) is not None:
            problems.append(Problem(id, problem))
        else:
            new_edges.append(ImportedEdge(id=id, edge=edge))
    return Plan(
        nodes=tuple(new_nodes),
        edges=tuple(new_edges),
        known=known,
        left_out=left_out,
        problems=tuple(problems),
    )


def pages(nodes: Sequence[ImportedNode], edges: Sequence[ImportedEdge], most: int) -> Iterator[GraphImport]:
    """Nodes, then edges, in pages whose JSON has at most `most` bytes, unless one of them alone has more."""
    for field, kept in (("nodes", nodes), ("edges", edges)):
        page: list[Any] = []
        size = _HEAD_BYTES
        for record in kept:
            more = len(msgspec.json.encode(record)) + 1
            if page and (size + more > most or len(page) == MAX_IMPORTED):
                yield GraphImport(**{field: tuple(page)})
                page, size = [], _HEAD_BYTES
            page.append(record)
            size += more
        if page:
            yield GraphImport(**{field: tuple(page)})


def _converted(members: Sequence[Record], convert: Any, problems: list[Problem]) -> dict[str, Any]:
    """The records of a list by id; what cannot be one is a problem."""
    records: dict[str, Any] = {}
    for number, member in enumerate(members):
        id = member.get("id")
        name = id if isinstance(id, str) and id else f"number {number}"
        try:
            kept = convert(member)
        except msgspec.ValidationError as error:
            problems.append(Problem(name, str(error)))
            continue
        if records.setdefault(kept.id, kept) is not kept:
            problems.append(Problem(name, "is there twice"))
    return {id: kept.node if isinstance(kept, ImportedNode) else kept.edge for id, kept in records.items()}


def _node(member: Record) -> ImportedNode:
    if member.get("title") is None:
        raise msgspec.ValidationError("title: was erased; take the node and its links out of the file")
    status = member.get("stated_status") or "active"
    raw = {name: member.get(name) for name in _OF_NODE if member.get(name) is not None} | {"status": status}
    kept = msgspec.convert({"id": member.get("id"), "node": raw}, ImportedNode)
    if (problem := graph.problem_of_node(kept.node.type)) is not None:
        raise msgspec.ValidationError(problem)
    return kept


def _edge(member: Record) -> ImportedEdge:
    raw = {name: member.get(name) for name in _OF_EDGE if member.get(name) is not None}
    if isinstance(raw.get("favourable"), int):
        raw["favourable"] = bool(raw["favourable"])
    kept = msgspec.convert({"id": member.get("id"), "edge": raw}, ImportedEdge)
    if (problem := graph.problem_of_edge(kept.edge.type, kept.edge.source, kept.edge.target)) is not None:
        raise msgspec.ValidationError(problem)
    return kept


def _type_of(end: str, nodes: Mapping[str, Node], recorded: Mapping[str, work_queries.Part]) -> str:
    if end in nodes:
        return nodes[end].type
    return recorded[end].type if end in recorded else ""


def _as_recorded(item: Record) -> Record:
    """A node as it was stated. A recorded decision is none, so it differs by its type."""
    if item["recorded"]:
        return item | {"type": f"recorded {item['type']}"}
    return item | {"status": item["stated_status"]}


def _difference(there: Record, record: Node | Edge, columns: Sequence[str]) -> str | None:
    """The first column in which what is recorded differs; None if none does."""
    for name in columns:
        old, new = there[name], getattr(record, name)
        if old is None and (name in _ERASABLE or new in (None, {})):
            continue
        if old != new:
            return name
    return None
