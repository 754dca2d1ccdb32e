"""Chains: what led to a decision, and what it led to, edge by edge.

Owns the walk. Invariant: each node is visited once, so a cycle ends, and at most `MOST_STEPS` edges are
followed, the nearest first. On the connection of a `Reader.snapshot`; any thread.
"""

from __future__ import annotations

from typing import Literal

from thor_policy.core import graph
from thor_policy.journal import trace_queries
from thor_policy.journal.reader import Record
from thor_policy.journal.trace_queries import Connection
from thor_policy.trace.nodes import Step, node_of

#: Most edges of one chain, and the depth that `thorpolicy trace` accepts at most.
MOST_STEPS, MOST_DEPTH = 1_000, 1_000

Direction = Literal["causes", "consequences"]


def chain(
    connection: Connection,
    id: str,
    direction: Direction,
    *,
    depth: int,
    until: str = trace_queries.EVER,
) -> list[Step]:
    """The edges to the causes of a node, or to its consequences, up to `depth` edges away."""
    steps: list[Step] = []
    visited, level = {id}, [id]
    for distance in range(1, depth + 1):
        following: list[str] = []
        for near in level:
            for edge in _edges(connection, near, direction, until):
                far = edge["target"] if edge["source"] == near else edge["source"]
                if far in visited or len(steps) >= MOST_STEPS:
                    continue
                visited.add(far)
                following.append(far)
                steps.append(
                    Step(
                        depth=distance,
                        type=edge["type"],
                        source=edge["source"],
                        target=edge["target"],
                        at=edge["timestamp"],
                        node=node_of(connection, far, until),
                    )
                )
        if not following:
            break
        level = following
    return steps


def _edges(connection: Connection, id: str, direction: Direction, until: str) -> list[Record]:
    """The edges of a node whose far end is a cause of it, or a consequence."""
    far_end = {"source": "consequences", "target": "causes"}  # of an edge that begins at the node
    causes = {name: edge.cause for name, edge in graph.EDGES.items()}
    leaving = trace_queries.outgoing(connection, id, until)
    arriving = trace_queries.incoming(connection, id, until)
    return [
        *(edge for edge in leaving if far_end.get(causes.get(edge["type"]) or "") == direction),
        *(
            edge
            for edge in arriving
            if (cause := causes.get(edge["type"])) is not None and far_end[cause] != direction
        ),
    ]
