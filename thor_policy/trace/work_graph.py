"""The graph of work as nodes and edges: the whole of it, or what is near a node.

Owns which items and edges belong to an export. Invariant: both ends of each edge are among the items, and
there are at most `most` items; `cut` says that there are more. Any thread or process, on a reader of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from thor_policy.core.errors import JournalError
from thor_policy.journal import work_queries
from thor_policy.journal.reader import Reader, Record
from thor_policy.journal.trace_queries import Connection

#: Most items of an export.
MOST = 10_000


class GraphView(Struct, frozen=True, kw_only=True):
    """Items (`work_queries.ITEM`) and edges (`work_queries.LINK`) in order of recording.

    `of` says of what: `work` or `traces`.
    """

    of: str = "work"
    items: tuple[Record, ...]
    edges: tuple[Record, ...]
    cut: bool


def whole(reader: Reader, *, most: int = MOST) -> GraphView:
    """The newest nodes of the work, with the recorded decisions and outcomes that their edges lead to."""
    with reader.snapshot() as connection:
        nodes = work_queries.newest(connection, most + 1)
        items = {node["id"]: node for node in nodes[-most:]}
        far = _unseen(_edges(connection, list(items)), items)
        beside = [item for item in work_queries.items(connection, far).values() if item["recorded"]]
        items |= {item["id"]: item for item in beside[: most - len(items)]}
        beyond = len(nodes) > most or len(items) < len(nodes) + len(beside)
        return _made(connection, items, cut=beyond)


def around(reader: Reader, id: str, *, depth: int, most: int = MOST) -> GraphView:
    """What is at most `depth` edges away from a node, in either direction. Raises JournalError."""
    with reader.snapshot() as connection:
        items = work_queries.items(connection, [id])
        if not items:
            raise JournalError(f"no node is recorded under the id {id[:64]!r}")
        level = [id]
        cut = False
        for _ in range(depth):
            reached = work_queries.items(connection, _unseen(_edges(connection, level), items))
            level = list(reached)[: most - len(items)]
            cut = cut or len(level) < len(reached)
            items |= {near: reached[near] for near in level}
        return _made(connection, items, cut=cut)


def _edges(connection: Connection, ids: Sequence[str]) -> list[Record]:
    return [*work_queries.links_from(connection, ids), *work_queries.links_to(connection, ids)]


def _unseen(edges: Iterable[Record], items: dict[str, Record]) -> list[str]:
    ends = (edge[end] for edge in edges for end in ("source", "target"))
    return list(dict.fromkeys(end for end in ends if end not in items))


def _made(connection: Connection, items: dict[str, Record], *, cut: bool) -> GraphView:
    edges = [edge for edge in work_queries.links_from(connection, list(items)) if edge["target"] in items]
    return GraphView(
        items=tuple(sorted(items.values(), key=lambda item: item["seq"])), edges=tuple(edges), cut=cut
    )
