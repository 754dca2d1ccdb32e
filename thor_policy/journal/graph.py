"""The rules of the graph that need a look-up: whether ends exist, have the right types, or close a cycle.

Owns these checks and what a batch adds to the graph before its commit. Invariant: an edge or a state is
checked by the one writer, against everything recorded before it, so two clients cannot make a cycle together.
The search for a cycle visits a bounded number of nodes. Called by the journal's thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from msgspec import Struct, field

from thor_policy.core import graph
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.journal.events import Event

#: Kinds of event that are checked here.
CHECKED = frozenset({"node", "edge", "trace_state"})
#: The type of the node that each kind of event adds, beside `node`.
_NODE_OF_KIND = {"consultation": "source_data", "outcome": "outcome"}
#: Kinds of event that `Uncommitted.note` takes; decisions are noted by the batch itself.
KINDS = CHECKED | frozenset(_NODE_OF_KIND)
#: Most ids in the list of decisions that cited an overturned one; the count is always the whole.
MOST_CITING = 1_000

_TYPE_OF = """
SELECT 'decision', 1 FROM decisions WHERE decision_id = :id
UNION ALL SELECT type, 0 FROM nodes WHERE id = :id
UNION ALL SELECT 'source_data', 0 FROM consultations WHERE id = :id
UNION ALL SELECT 'outcome', 0 FROM outcomes WHERE id = :id
LIMIT 1
"""
#: Where the edges lead to that must have no cycle, and one of those that lead to a node.
_SUPERSEDED = (
    "SELECT target FROM edges WHERE source = ? AND type = 'supersedes'",
    "SELECT 1 FROM edges WHERE target = ? AND type = 'supersedes' LIMIT 1",
)
_SUCCESSORS = (
    'SELECT "by" FROM trace_states WHERE decision_id = ? AND "by" IS NOT NULL',
    'SELECT 1 FROM trace_states WHERE "by" = ? LIMIT 1',
)


class _Edges(Struct):
    """Edges of one kind that are not committed yet."""

    targets: dict[str, list[str]] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)

    def add(self, source: str, target: str) -> None:
        self.targets.setdefault(source, []).append(target)
        self.reached.add(target)


class Uncommitted(Struct):
    """What the events of a batch add: decisions, types of other nodes by id, states, edges by source."""

    traces: dict[str, str | None]
    types: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    successors: _Edges = field(default_factory=_Edges)
    superseded: _Edges = field(default_factory=_Edges)

    @contextmanager
    def supposing(self, event: Event) -> Iterator[None]:
        """Add a node for a while, to check what is to be recorded along with it."""
        body: Any = event.body
        self.types[body["id"]] = body["type"]
        try:
            yield
        finally:
            del self.types[body["id"]]

    def note(self, event: Event) -> None:
        """Add what an event says that is not committed yet."""
        body: Any = event.body
        if event.kind in _NODE_OF_KIND:
            self.types[body["id"]] = _NODE_OF_KIND[event.kind]
        elif event.kind == "node":
            self.types[body["id"]] = body["type"]
        elif event.kind == "edge" and body["type"] == "supersedes":
            self.superseded.add(body["source"], body["target"])
        elif event.kind == "trace_state":
            self.states[event.subject_id] = body["status"]
            if "by" in body:
                self.successors.add(event.subject_id, body["by"])


def problem_of(connection: sqlite3.Connection, uncommitted: Uncommitted, event: Event) -> RequestError | None:
    """The rule that an event breaks: a node, an edge, or a state of a trace; None if it breaks none."""
    body: Any = event.body
    if event.kind == "node":
        problem = graph.problem_of_node(body["type"])
        return None if problem is None else RequestError("bad_request", problem)
    if event.kind == "edge":
        return _problem_of_edge(connection, uncommitted, body["type"], body["source"], body["target"])
    return _problem_of_state(connection, uncommitted, event.subject_id, body["status"], body.get("by"))


def _problem_of_edge(
    connection: sqlite3.Connection, uncommitted: Uncommitted, type: str, source: str, target: str
) -> RequestError | None:
    if (problem := graph.problem_of_edge(type, source, target)) is not None:
        return RequestError("bad_request", problem)
    types = []
    for name, id in (("source", source), ("target", target)):
        known = _type_of(connection, uncommitted, id)
        if known is None:
            return RequestError("not_found", f"{name}: nothing is recorded under the id {id[:64]!r}")
        types.append(known)
    (source_type, _), (target_type, is_trace) = types
    if (problem := graph.problem_of_ends(type, source_type, target_type)) is not None:
        return RequestError("bad_request", problem)
    if type != "supersedes":
        return None
    if is_trace:
        return RequestError(
            "bad_request", "target: is a recorded decision; the op trace_state supersedes it (role review)"
        )
    return _cycle(
        connection, _SUPERSEDED, uncommitted.superseded, start=target, end=source, type="supersedes"
    )


def _problem_of_state(
    connection: sqlite3.Connection, uncommitted: Uncommitted, decision_id: str, status: str, by: str | None
) -> RequestError | None:
    """Why a recorded decision cannot get this state."""
    row = connection.execute(
        "SELECT trace_status FROM decisions WHERE decision_id = ?", (decision_id,)
    ).fetchone()
    now = uncommitted.states.get(decision_id, row[0] if row else "active")
    if status not in graph.NEXT_STATES[now]:
        return RequestError(
            "conflict",
            f"status: the decision is {now}; from there it can only be {' or '.join(graph.NEXT_STATES[now])}",
        )
    edge = graph.EDGE_OF_STATE.get(status)
    if (edge is None) != (by is None):
        return RequestError("bad_request", f"by: does not fit the status {status}")
    if edge is None or by is None:
        return None
    if by == decision_id:
        return RequestError("bad_request", f"by: is the decision itself; no edge may be a loop ({edge})")
    known = _type_of(connection, uncommitted, by)
    if known is None or not known[1]:
        return RequestError("not_found", f"by: there is no decision {by[:64]!r}")
    return _cycle(connection, _SUCCESSORS, uncommitted.successors, start=by, end=decision_id, type=edge)


def _type_of(connection: sqlite3.Connection, uncommitted: Uncommitted, id: str) -> tuple[str, bool] | None:
    """The type of what is recorded under an id, and whether it is a trace; None: nothing is."""
    if id in uncommitted.traces:
        return "decision", True
    if id in uncommitted.types:
        return uncommitted.types[id], False
    row = connection.execute(_TYPE_OF, {"id": id}).fetchone()
    return None if row is None else (row[0], bool(row[1]))


def _cycle(
    connection: sqlite3.Connection,
    sql: tuple[str, str],
    uncommitted: _Edges,
    *,
    start: str,
    end: str,
    type: graph.EdgeType,
) -> RequestError | None:
    """Why an edge from `end` to `start` may not be: `start` leads to `end` already, or to too many nodes."""
    leading, arriving = sql
    if end not in uncommitted.reached and connection.execute(arriving, (end,)).fetchone() is None:
        return None  # nothing leads to it, so `start` does not
    visited, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        if node == end:
            return RequestError("conflict", f"type: this edge would close a cycle of {type}")
        if len(visited) > graph.MAX_WALK[type]:
            return RequestError(
                "too_large", f"type: more than {graph.MAX_WALK[type]} nodes lie behind this edge by {type}"
            )
        following = [row[0] for row in connection.execute(leading, (node,))]
        following += uncommitted.targets.get(node, [])
        new = set(following) - visited
        visited |= new
        waiting += new
    return None


def known_ids(
    connection: sqlite3.Connection, nodes: Sequence[str], edges: Sequence[str]
) -> tuple[set[str], set[str]]:
    """Those of the ids of nodes, and of those of edges, under which something is recorded."""
    is_edge = "SELECT 1 FROM edges WHERE id = ?"
    return (
        {id for id in nodes if connection.execute(_TYPE_OF, {"id": id}).fetchone() is not None},
        {id for id in edges if connection.execute(is_edge, (id,)).fetchone() is not None},
    )


def cited_by(connection: sqlite3.Connection, decision_id: str) -> dict[str, Json]:
    """The decisions that cite a decision: their `count`, and the `ids` of the first `MOST_CITING`."""
    (count,) = connection.execute(
        "SELECT count(DISTINCT source) FROM edges WHERE target = ? AND type = 'CITES'", (decision_id,)
    ).fetchone()
    rows = connection.execute(
        "SELECT source FROM edges WHERE target = ? AND type = 'CITES' "
        "GROUP BY source ORDER BY min(seq) LIMIT ?",
        (decision_id, MOST_CITING),
    )
    return {"count": count, "ids": [source for (source,) in rows]}
