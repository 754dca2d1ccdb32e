"""The nodes and links of a trace, made from the rows and events that the journal keeps.

Owns what each type of node shows. Invariant: a node shows recorded values only; a name that was erased is
None. Pure but for the queries, on the connection of a `Reader.snapshot`. Any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from thor_policy.core import graph
from thor_policy.core.requests import Json
from thor_policy.journal import trace_queries
from thor_policy.journal.reader import Record
from thor_policy.journal.trace_queries import Connection

#: Columns of a row that every node or link has a field for, or that tell nothing to a reader.
_PLAIN = frozenset(
    {"id", "seq", "timestamp", "type", "title", "caller_uid", "decision_id", "session", "claimed", "entity"}
)


class Node(Struct, frozen=True, kw_only=True):
    """A node: `id` is None for a value in the event of the decision; `at` is when it was recorded."""

    type: str
    id: str | None
    name: str | None = None
    at: str | None = None
    details: dict[str, Json] = {}


class Link(Struct, frozen=True, kw_only=True):
    """An edge from the decision to a node, with what it says; `stated` by a record, or from columns."""

    type: str
    node: Node
    at: str
    stated: bool = False
    details: dict[str, Json] = {}


class Step(Struct, frozen=True, kw_only=True):
    """One edge of a chain, `depth` edges from the decision; `node` is its far end."""

    depth: int
    type: str
    source: str
    target: str
    at: str
    node: Node


def links(
    connection: Connection,
    decision: Mapping[str, Json],
    consulted: list[dict[str, Json]],
    until: str,
) -> list[Link]:
    """Every edge from a decision; `decision` is its row, `consulted` the list of that name in its event."""
    about = {
        table: {
            row["id"]: row for row in trace_queries.about(connection, table, decision["decision_id"], until)
        }
        for table in ("consultations", "outcomes", "trace_states")
    }
    approvals = {row["id"]: row for row in trace_queries.approvals_of(connection, decision, until)}
    made = []
    for edge in trace_queries.outgoing(connection, decision["decision_id"], until):
        type_, record_id = edge["type"], edge["id"]
        details: dict[str, Json] = {}
        if type_ == "DECIDED_BY":
            node = decider(decision)
        elif type_ == "GOVERNED_BY":
            node = policy_version(connection, decision, until)
        elif type_ == "APPLIES_TO" and record_id is None:
            node = Node(type="entity", id=edge["target"], name=edge["target"])
        elif type_ in ("APPROVED_BY", "COUNTERSIGNED_BY"):
            row = approvals[record_id]
            node = Node(
                type="actor",
                id=row["approver"],
                name=row["approver"],
                at=row["timestamp"],
                details=_details({"actor_type": "human", "role": row["role"]}),
            )
            shown = ("step", "channel", "evidence", "recorded_by", "task", "comment")
            details = _details({name: row[name] for name in shown})
        else:
            node = node_of(connection, edge["target"], until)
            if type_ in graph.EDGE_OF_STATE.values():
                details = _details({"because": about["trace_states"][record_id]["because"]})
            elif record_id is not None:
                details = trace_queries.stated_edge(connection, record_id)
        made.append(
            Link(
                type=type_,
                node=node,
                at=edge["timestamp"],
                stated=record_id is not None,
                details=details,
            )
        )
    at = decision["timestamp"]
    made += [Link(type="CONSULTED", node=_of_source(value, at), at=at) for value in consulted]
    return made


def node_of(connection: Connection, id: str, until: str) -> Node:
    """The node with an id; `unknown` if nothing is recorded under it, which an earlier version allowed."""
    end = trace_queries.end_of_edge(connection, id, until)
    if end is None:
        return Node(type="unknown", id=id)
    type_, row = end
    name = row.get("title") or row.get("system") or row.get("outcome")
    if type_ == "decision" and "decision_type" in row:
        row = row | {"trace_status": row["trace_status"] or "active"}
        details = {key: row[key] for key in ("decision_type", "entity", "tier", "trace_status")}
    else:
        details = {key: value for key, value in row.items() if key not in _PLAIN}
        if row.get("superseded_by") is not None:
            details["status"] = "superseded"
    if type_ == "source_data":
        details = {"element": row["entity"], "value": details.pop("answer"), **details}
        details.pop("system")
    if type_ == "outcome" and "title" not in row:
        name = details.pop("status")
    return Node(type=type_, id=id, name=name, at=row["timestamp"], details=_details(details))


def decider(decision: Mapping[str, Json]) -> Node:
    """Who decided: the daemon in the role of a tier, or whom a report names."""
    tier, at = decision["tier"], decision["timestamp"]
    actor_type = graph.ACTOR_OF.get(tier)
    if actor_type is None:
        details: dict[str, Json] = {"actor_type": "automated_system", "role": tier}
        return Node(type="actor", id=graph.DAEMON, name="thor-policy", at=at, details=details)
    actor = decision["actor"]
    name = actor and actor.partition(":")[2]
    return Node(type="actor", id=actor, name=name, at=at, details={"actor_type": actor_type, "role": tier})


def policy_version(connection: Connection, decision: Mapping[str, Json], until: str) -> Node:
    """The pack that governed a decision, with the time in which it was the active one."""
    version = decision["prompt_version"]
    first, last = trace_queries.policy_period(connection, version, decision["seq"], until)
    details = _details({"effective_from": first, "effective_to": last})
    return Node(type="policy_version", id=version, name=version, details=details)


def _of_source(value: dict[str, Json], at: str) -> Node:
    """A value that the daemon itself consulted."""
    name = ".".join(str(value[key]) for key in ("source", "element") if value.get(key))
    rest = {key: item for key, item in value.items() if key != "source"}
    return Node(type="source_data", id=None, name=name or None, at=at, details=_details(rest))


def _details(values: Mapping[str, Any]) -> dict[str, Json]:
    return {name: value for name, value in values.items() if value not in (None, {}, [])}


def brief(record: Record) -> Node:
    """A decision of a chain of successors as a node."""
    details = _details({"decision_type": record["decision_type"]})
    return Node(
        type="decision", id=record["id"], name=record["outcome"], at=record["timestamp"], details=details
    )
