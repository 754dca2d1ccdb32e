"""The graph of traces as nodes and edges: the newest decisions, or what is near one, with what they rest on.

Owns which items and edges belong to an export of traces, and the ids of what has no record of its own: an
actor, a policy version, an entity of a decision (`actor/user:alice`), so that an actor and an entity of the
same name are two items. Invariant: that of `work_graph`. Any thread or process, on a reader of its own.
"""

from __future__ import annotations

from thor_policy.core import graph
from thor_policy.core.errors import JournalError
from thor_policy.journal import trace_queries, work_queries
from thor_policy.journal.reader import Reader, Record
from thor_policy.journal.trace_queries import Connection
from thor_policy.trace.nodes import Node, node_of
from thor_policy.trace.work_graph import MOST, GraphView

#: Decisions of an export, unless the caller says otherwise.
DECISIONS = 200
#: What edges of these types lead to, where no record has its id.
_DERIVED = {
    "DECIDED_BY": "actor",
    "APPROVED_BY": "actor",
    "COUNTERSIGNED_BY": "actor",
    "GOVERNED_BY": "policy_version",
    "APPLIES_TO": "entity",
}


def newest(reader: Reader, *, decisions: int = DECISIONS, most: int = MOST) -> GraphView:
    """The newest decisions, with everything that an edge from them leads to. Raises JournalError."""
    with reader.snapshot() as connection:
        ids = trace_queries.newest_ids(connection, decisions + 1)
        made = _Made(connection, most)
        for id in reversed(ids[:decisions]):
            made.add_recorded(id)
        for id in reversed(ids[:decisions]):
            made.add_edges(trace_queries.outgoing(connection, id))
        return made.view(cut=len(ids) > decisions)


def around(reader: Reader, id: str, *, depth: int, most: int = MOST) -> GraphView:
    """What is at most `depth` edges away from a decision or a node, either way. Raises JournalError."""
    with reader.snapshot() as connection:
        if trace_queries.end_of_edge(connection, id) is None:
            raise JournalError(f"nothing is recorded under the id {id[:64]!r}")
        made = _Made(connection, most)
        made.add_recorded(id)
        level = [id]
        for _ in range(depth):
            before = set(made.items)
            for near in level:
                made.add_edges(trace_queries.outgoing(connection, near))
                made.add_edges(trace_queries.incoming(connection, near))
            level = [near for near in made.items if near not in before and not made.is_derived(near)]
        return made.view(cut=False)


class _Made:
    """Items and edges so far, at most `most` items."""

    def __init__(self, connection: Connection, most: int) -> None:
        self.items: dict[str, Record] = {}
        self._edges: dict[tuple[str, str, str, int], Record] = {}
        self._connection, self._most, self._cut = connection, most, False

    def is_derived(self, id: str) -> bool:
        return id.partition("/")[0] in _DERIVED.values()

    def add_recorded(self, id: str) -> bool:
        """Add what is recorded under an id; False if nothing is, or if there is no room for it."""
        return id in self.items or self._keep(id, _recorded(self._connection, id))

    def add_edges(self, edges: list[Record]) -> None:
        """Add edges (`trace_queries.outgoing`), with their ends."""
        for edge in edges:
            source, target, type_ = edge["source"], edge["target"], edge["type"]
            if target is None or not self.add_recorded(source):  # the name of an actor may be erased
                continue
            derived = _DERIVED.get(type_)
            if derived is not None and not (edge["id"] is not None and type_ == "APPLIES_TO"):
                end = _derived(derived, target, edge)
                target = end["id"]
                if target not in self.items and not self._keep(target, end):
                    continue
            elif not self.add_recorded(target):
                continue
            stated = trace_queries.stated_edge(self._connection, edge["id"]) if edge["id"] else {}
            made = dict.fromkeys(work_queries.LINK) | stated
            made |= {"id": edge["id"], "source": source, "type": type_, "target": target, "seq": edge["seq"]}
            made |= {"at": edge["timestamp"], "stated": int(bool(stated) or type_ in _STATED)}
            self._edges.setdefault((source, type_, target, edge["seq"]), made)

    def view(self, *, cut: bool) -> GraphView:
        return GraphView(
            of="traces",
            items=tuple(sorted(self.items.values(), key=_seq)),
            edges=tuple(sorted(self._edges.values(), key=_seq)),
            cut=cut or self._cut,
        )

    def _keep(self, id: str, item: Record | None) -> bool:
        if item is None:
            return False
        if len(self.items) >= self._most:
            self._cut = True
            return False
        self.items[id] = item
        return True


#: Types of edges that only a record of their own states.
_STATED = frozenset(
    name for name, edge in graph.EDGES.items() if edge.ops == ("edge",) and not edge.follows_from
)


def _recorded(connection: Connection, id: str) -> Record | None:
    known: Record | None = work_queries.items(connection, [id]).get(id)
    if known is not None:
        return known
    end = trace_queries.end_of_edge(connection, id)
    return None if end is None else _item(node_of(connection, id, trace_queries.EVER), seq=end[1]["seq"])


def _derived(type_: str, name: str, edge: Record) -> Record:
    return _item(Node(type=type_, id=f"{type_}/{name}", name=name, at=edge["timestamp"]), seq=edge["seq"])


def _item(node: Node, *, seq: int) -> Record:
    """A node of a trace with the columns of an item."""
    return dict.fromkeys(work_queries.ITEM) | {
        "id": node.id,
        "seq": seq,
        "at": node.at,
        "type": node.type,
        "title": node.name,
        "status": "active",
        "metadata": node.details or None,
        "recorded": 1,
    }


def _seq(record: Record) -> int:
    return int(record["seq"])
