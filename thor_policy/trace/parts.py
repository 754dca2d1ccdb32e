"""The parts of goals and decisions: what edges lead to from each of them, the nearest first.

Owns the walk. Invariant: each part of a root is visited once, so a cycle ends; at most `most` parts of each
root are visited, by the first `most` + 1 links of each item. All roots are walked level by level together, so
the number of queries depends on the depth and not on the number of roots. Pure but for the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from thor_policy.core import graph
from thor_policy.journal import work_queries
from thor_policy.journal.trace_queries import Connection
from thor_policy.journal.work_queries import Part

#: The edge to what took the place of an item, which belongs to whatever the item belongs to.
REPLACED = "superseded by"


class Step(NamedTuple):
    """A part, `depth` edges from the root, and the last edge to it."""

    part: Part
    depth: int
    via: str
    source: str


class _Walk(Struct):
    """The walk from one root: the ids of the last level, all that was visited, and the steps so far."""

    level: list[str]
    visited: set[str]
    steps: list[Step]


def nearest(
    connection: Connection, roots: Sequence[str], *, types: Sequence[str] = graph.PARTS, most: int
) -> dict[str, list[Step]]:
    """What edges of these types lead to from each root: breadth first, in order of recording at each depth.

    What took the place of an item on the way is behind that item.
    """
    walks = {root: _Walk([root], {root}, []) for root in roots}
    parts: dict[str, Part] = {}
    links: dict[str, list[tuple[str, str]]] = {}
    depth = 0
    while running := [walk for walk in walks.values() if walk.level and len(walk.visited) <= most]:
        depth += 1
        sources = {id for walk in running for id in walk.level} - links.keys()
        links |= work_queries.first_links(connection, sorted(sources), types, most + 1)
        reached = [_reached(walk, links, parts, most) for walk in running]
        unknown = {id for targets in reached for id in targets} - parts.keys()
        parts |= work_queries.parts(connection, sorted(unknown))
        for walk, targets in zip(running, reached, strict=True):
            steps = [Step(parts[id], depth, *edge) for id, edge in targets.items() if id in parts]
            steps.sort(key=_seq)
            walk.level = [step.part.id for step in steps]
            walk.visited |= targets.keys()
            walk.steps += steps
    return {root: walk.steps for root, walk in walks.items()}


def _reached(
    walk: _Walk, links: dict[str, list[tuple[str, str]]], parts: dict[str, Part], most: int
) -> dict[str, tuple[str, str]]:
    """The ids one edge beyond a level that were not visited, each with its edge: type and source."""
    room = most + 1 - len(walk.visited)
    reached: dict[str, tuple[str, str]] = {}
    for source in walk.level:
        part = parts.get(source)
        after = [] if part is None or part.superseded_by is None else [(REPLACED, part.superseded_by)]
        for type, target in (*links[source], *after):
            if target not in walk.visited and target not in reached:
                if len(reached) >= room:
                    return reached
                reached[target] = (type, source)
    return reached


def _seq(step: Step) -> int:
    return step.part.seq
