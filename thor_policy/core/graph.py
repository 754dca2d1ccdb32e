"""The vocabulary of traces: which nodes and edges exist, who writes them, and what each edge may connect.

Owns the tables `NODES` and `EDGES`, and the rules that need no look-up. Invariant: wire, journal and the docs
use these tables and no other list. An end is always the id of something recorded, so no name of a person can
be on the chain as the end of an edge. Pure; any thread.
"""

from __future__ import annotations

from itertools import product
from typing import Literal, TypeAlias

from msgspec import Struct

NodeType: TypeAlias = Literal[
    "decision",
    "actor",
    "policy_version",
    "source_data",
    "entity",
    "event",
    "outcome",
    "goal",
    "option",
    "action",
    "observation",
    "revisit",
]
EdgeType: TypeAlias = Literal[
    "DECIDED_BY",
    "APPROVED_BY",
    "COUNTERSIGNED_BY",
    "GOVERNED_BY",
    "APPLIES_TO",
    "CONSULTED",
    "CITES",
    "SUPERSEDED_BY",
    "OVERTURNED_BY",
    "TRIGGERED_BY",
    "RESULTED_IN",
    "leads_to",
    "chosen",
    "rejected",
    "requires",
    "blocks",
    "enables",
    "supersedes",
]
ActorType: TypeAlias = Literal["human", "automated_system", "committee"]
TraceStatus: TypeAlias = Literal["active", "under_review", "superseded", "overturned"]
#: What a node of the work is. A node that another one supersedes is shown as superseded, whatever it says.
WorkStatus: TypeAlias = Literal["active", "superseded", "abandoned"]

#: Who an actor is, by the `made_by` of a reported decision.
ACTOR_OF: dict[str, ActorType] = {
    "human": "human",
    "committee": "committee",
    "agent": "automated_system",
    "system": "automated_system",
}
#: The actor of every decision of a daemon; its role is the `tier` that decided.
DAEMON = "system:thor-policy"
#: The edge that each state makes to the decision that it names.
EDGE_OF_STATE: dict[str, EdgeType] = {"superseded": "SUPERSEDED_BY", "overturned": "OVERTURNED_BY"}
#: The states that a trace may go to from each state: superseded and overturned end, unless reviewed anew.
NEXT_STATES: dict[str, tuple[str, ...]] = {
    "active": ("under_review", "superseded", "overturned"),
    "under_review": ("active", "superseded", "overturned"),
    "superseded": ("under_review", "overturned"),
    "overturned": ("under_review",),
}
#: Most nodes that the search for a cycle of such edges visits; an edge behind which more lie is refused.
#: The journal thread searches, so who may only record gets a search that takes as long as writing the event.
MAX_WALK: dict[EdgeType, int] = {"SUPERSEDED_BY": 1_000, "OVERTURNED_BY": 1_000, "supersedes": 100}


class Node(Struct, frozen=True, kw_only=True):
    """A type of node: what it is, the ops that write it, or what it follows from."""

    meaning: str
    ops: tuple[str, ...] = ()
    follows_from: str = ""


class Edge(Struct, frozen=True, kw_only=True):
    """A type of edge: its allowed pairs of ends, the ops that state it, the columns that it follows from.

    `cause` is the end that comes first in a chain of causes and consequences; None: neither does.
    """

    meaning: str
    ends: frozenset[tuple[str, str]]
    ops: tuple[str, ...] = ()
    follows_from: str = ""
    cause: Literal["source", "target"] | None = None


WORK = ("goal", "decision", "option", "action", "outcome", "observation", "revisit")

NODES: dict[NodeType, Node] = {
    "decision": Node(
        meaning="a decision of the daemon, of another system or of people; or one in the graph of work",
        ops=("evaluate", "decision_report", "node"),
    ),
    "actor": Node(
        meaning="a human, an automated system or a committee, with its role at the time",
        ops=("approval", "node"),
        follows_from="`tier` and `actor` of the decision",
    ),
    "policy_version": Node(
        meaning="a pack, with the time from which and to which it was the active one",
        follows_from="`prompt_version` of the decision; `pack_activated` events",
    ),
    "source_data": Node(
        meaning="a value that was consulted: from which system, how fresh",
        ops=("consultation",),
        follows_from="`consulted` of the decision's event",
    ),
    "entity": Node(
        meaning="what a decision is about",
        ops=("node",),
        follows_from="`entity` of the decision",
    ),
    "event": Node(meaning="something that happened in the world", ops=("node",)),
    "outcome": Node(meaning="how a decision turned out", ops=("outcome", "node")),
    "goal": Node(meaning="what the work is for", ops=("node",)),
    "option": Node(meaning="one of the ways that were considered", ops=("node",)),
    "action": Node(meaning="what was done", ops=("node",)),
    "observation": Node(meaning="what was noticed", ops=("node",)),
    "revisit": Node(meaning="a reason to think again", ops=("node",)),
}


def _pairs(sources: tuple[str, ...], targets: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    return frozenset(product(sources, targets))


_DECISION = ("decision",)

EDGES: dict[EdgeType, Edge] = {
    "DECIDED_BY": Edge(
        meaning="who decided",
        ends=_pairs(_DECISION, ("actor",)),
        follows_from="`tier`, `actor`",
    ),
    "APPROVED_BY": Edge(
        meaning="who consented, at step 1",
        ends=_pairs(_DECISION, ("actor",)),
        ops=("approval", "approve"),
        follows_from="`approval_task`",
    ),
    "COUNTERSIGNED_BY": Edge(
        meaning="who consented after somebody else, at step 2 or later",
        ends=_pairs(_DECISION, ("actor",)),
        ops=("approval", "approve"),
        follows_from="`approval_task`",
    ),
    "GOVERNED_BY": Edge(
        meaning="the policy that applied",
        ends=_pairs(_DECISION, ("policy_version",)),
        follows_from="`prompt_version`",
    ),
    "APPLIES_TO": Edge(
        meaning="what or whom the decision is about",
        ends=_pairs(_DECISION, ("entity", "actor")),
        ops=("edge",),
        follows_from="`entity`",
    ),
    "CONSULTED": Edge(
        meaning="the data that it rests on",
        ends=_pairs(_DECISION, ("source_data",)),
        ops=("consultation", "edge"),
        follows_from="`consulted`, `session`",
    ),
    "CITES": Edge(
        meaning="a precedent: `similarity`, `how` it was found, `favourable` or not",
        ends=_pairs(_DECISION, _DECISION),
        ops=("edge",),
        cause="target",
    ),
    "SUPERSEDED_BY": Edge(
        meaning="a later decision takes its place",
        ends=_pairs(_DECISION, _DECISION),
        ops=("trace_state",),
        cause="source",
    ),
    "OVERTURNED_BY": Edge(
        meaning="a later decision says that it was wrong",
        ends=_pairs(_DECISION, _DECISION),
        ops=("trace_state",),
        cause="source",
    ),
    "TRIGGERED_BY": Edge(
        meaning="what made the decision, or the event, necessary",
        ends=_pairs(_DECISION, ("event", "decision", "actor")) | _pairs(("event",), ("event", "decision")),
        ops=("edge",),
        cause="target",
    ),
    "RESULTED_IN": Edge(
        meaning="what came of it",
        ends=_pairs(_DECISION, ("outcome", "event")),
        ops=("outcome", "edge"),
        cause="source",
    ),
    "leads_to": Edge(
        meaning="the first brings about the second", ends=_pairs(WORK, WORK), ops=("edge",), cause="source"
    ),
    "chosen": Edge(
        meaning="the option that was taken",
        ends=_pairs(("goal", "decision"), ("option",)),
        ops=("edge",),
        cause="source",
    ),
    "rejected": Edge(
        meaning="an option that was not taken",
        ends=_pairs(("goal", "decision"), ("option",)),
        ops=("edge",),
        cause="source",
    ),
    "requires": Edge(
        meaning="the first needs the second", ends=_pairs(WORK, WORK), ops=("edge",), cause="target"
    ),
    "blocks": Edge(
        meaning="the first keeps the second from happening",
        ends=_pairs(WORK, WORK),
        ops=("edge",),
        cause="source",
    ),
    "enables": Edge(
        meaning="the first makes the second possible", ends=_pairs(WORK, WORK), ops=("edge",), cause="source"
    ),
    "supersedes": Edge(
        meaning="the first, which is newer, takes the place of the second, of the same type",
        ends=frozenset((kind, kind) for kind in WORK),
        ops=("edge",),
        cause="target",
    ),
}
#: Edges from a node of the work to what belongs to it. What it blocks or rejects does not.
PARTS: tuple[EdgeType, ...] = ("leads_to", "chosen", "requires", "enables", "RESULTED_IN")
#: Fields of an edge that only these types have.
FIELDS_OF: dict[str, tuple[str, ...]] = {
    "similarity": ("CITES",),
    "how": ("CITES",),
    "favourable": ("CITES",),
}


def problem_of_edge(type: str, source: str, target: str) -> str | None:
    """The rule that an edge breaks by itself, whatever its ends are; None if it breaks none."""
    known = EDGES.get(type)  # type: ignore[call-overload]
    if known is None:
        return f"type: {type[:64]!r} is no type of edge; it must be one of {', '.join(EDGES)}"
    if "edge" not in known.ops:
        how = f"the op {known.ops[0]} states it" if known.ops else f"it follows from {known.follows_from}"
        return f"type: {type} is not for the op edge; {how}"
    if source == target:
        return f"target: is the source itself; no edge may be a loop ({type})"
    return None


def problem_of_ends(type: str, source: str, target: str) -> str | None:
    """The rule that an edge breaks with ends of these types; None if it breaks none."""
    ends = EDGES[type].ends  # type: ignore[index]
    if (source, target) in ends:
        return None
    allowed = ", ".join(sorted(f"{first} to {second}" for first, second in ends))
    return f"type: {type} cannot lead from {source} to {target}; it leads from {allowed}"


def problem_of_node(type: str) -> str | None:
    """Why a node of this type cannot be stated by the op `node`; None if it can."""
    known = NODES.get(type)  # type: ignore[call-overload]
    if known is None:
        return f"type: {type[:64]!r} is no type of node; it must be one of {', '.join(NODES)}"
    if "node" not in known.ops:
        how = f"the op {known.ops[0]} states it" if known.ops else f"it follows from {known.follows_from}"
        return f"type: {type} is not for the op node; {how}"
    return None
