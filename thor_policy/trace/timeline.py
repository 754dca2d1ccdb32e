"""Timelines of the work: what was done in a session, and what belongs to a goal.

Owns what a timeline shows of a goal (`parts.nearest` walks). Invariant: a timeline has each item once, and at
most `limit` items. Any thread or process, on a reader of its own.
"""

from __future__ import annotations

from msgspec import Struct

from thor_policy.core import graph
from thor_policy.core.errors import JournalError
from thor_policy.journal import work_queries
from thor_policy.journal.reader import Reader, Record
from thor_policy.trace.parts import nearest

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
        steps = nearest(connection, [goal], types=_SHOWN, most=limit)[goal]
        items = work_queries.items(connection, [step.part.id for step in steps])
        entries = [Entry(item=first)]
        entries += [
            Entry(item=items[step.part.id], depth=step.depth, via=step.via, source=step.source)
            for step in steps
        ]
    return Timeline(entries=tuple(entries[:limit]), cut=len(entries) > limit)
