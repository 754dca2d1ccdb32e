"""Timelines of the work: what was done in a session, and what belongs to a goal.

Owns the walk from a goal. Invariant: each item is visited once, the nearest first, so a cycle ends; at most
`most` items are visited. Any thread or process, on a reader of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from thor_policy.core import graph
from thor_policy.core.errors import JournalError
from thor_policy.journal import work_queries
from thor_policy.journal.reader import Reader, Record
from thor_policy.journal.trace_queries import Connection

#: Edges that a timeline follows: the parts, and what was blocked or rejected on the way.
_SHOWN: tuple[graph.EdgeType, ...] = (*graph.PARTS, "rejected", "blocks")


class Entry(Struct, frozen=True, kw_only=True):
    """An item (`work_queries.ITEM`), `depth` edges from the goal, and the edge by which it is reached."""

    item: Record
    depth: int = 0
    via: str | None = None
    source: str | None = None


class Timeline(Struct, frozen=True, kw_only=True):
    """Entries in order; `cut`: there are more, which the limit left out."""

    entries: tuple[Entry, ...]
    cut: bool


def by_session(reader: Reader, session: str, *, limit: int) -> Timeline:
    """The newest nodes and recorded decisions of a session, in order of recording."""
    with reader.snapshot() as connection:
        items = work_queries.of_session(connection, session, limit + 1)
    return Timeline(entries=tuple(Entry(item=item) for item in items[-limit:]), cut=len(items) > limit)


def by_goal(reader: Reader, goal: str, *, limit: int) -> Timeline:
    """A goal and what it leads to: breadth first, and in order of recording at each depth.

    Any node or recorded decision may take the place of the goal. Raises JournalError if nothing is recorded
    under the id.
    """
    with reader.snapshot() as connection:
        first = work_queries.items(connection, [goal]).get(goal)
        if first is None:
            raise JournalError(f"no node is recorded under the id {goal[:64]!r}")
        entries = [Entry(item=first), *walk(connection, goal, types=_SHOWN, most=limit)]
    return Timeline(entries=tuple(entries[:limit]), cut=len(entries) > limit)


def walk(
    connection: Connection, id: str, *, types: Sequence[str] = graph.PARTS, most: int
) -> Iterator[Entry]:
    """What edges of these types lead to from `id`, level by level; ends after `most` entries.

    What took the place of an item on the way is behind that item. A level is read when it is asked for.
    """
    visited, depth = {id}, 0
    level: dict[str, Record] = {id: {}}
    while level and len(visited) <= most:
        depth += 1
        reached: dict[str, Record] = {}
        for link in [*work_queries.links_from(connection, list(level), types), *_replacements(level)]:
            if link["target"] not in visited and len(visited) + len(reached) <= most:
                reached.setdefault(link["target"], link)
        visited |= reached.keys()
        level = work_queries.items(connection, list(reached))
        for far, item in sorted(level.items(), key=lambda pair: pair[1]["seq"]):
            yield Entry(item=item, depth=depth, via=reached[far]["type"], source=reached[far]["source"])


def _replacements(level: Mapping[str, Record]) -> list[Record]:
    """Links from the items of a level to what took their places."""
    return [
        {"source": id, "type": "superseded by", "target": item["superseded_by"]}
        for id, item in level.items()
        if item.get("superseded_by") is not None
    ]
