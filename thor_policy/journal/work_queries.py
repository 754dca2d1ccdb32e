"""Queries of the graph of work: lists of nodes, the parts of a goal, a session, what the pulse counts.

Owns the queries behind `thorpolicy graph`. Invariant: each query reads an index and is bounded, so its time
depends on what it returns and not on the length of the journal; lists go by `seq`. Any thread or process, on
a reader of its own.

An item is a node, a recorded decision or a recorded outcome, all with the same columns (`ITEM`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from thor_policy.core import graph
from thor_policy.core.errors import JournalError
from thor_policy.journal.reader import ENDING_CHARS, Reader, Record, instant
from thor_policy.journal.schema import DOUBTFUL, OF_WORK, SUPERSEDES
from thor_policy.journal.trace_queries import Connection, end_of_edge, rows

#: The columns of an item. `recorded`: it is no node. `superseded_by`: what took its place, if anything did.
ITEM = (
    *("id", "seq", "at", "type", "title", "description", "status", "superseded_by", "confidence"),
    *("session", "agent", "metadata", "recorded"),
)
#: Most ids in one query; SQLite allows 32,766.
_MANY = 500
#: Most links that `decisions` reads to find the recorded decisions of the work.
MOST_LINKS = 1_000

_SUPERSEDER = f"(SELECT source FROM edges WHERE target = n.id AND {SUPERSEDES} ORDER BY seq DESC LIMIT 1)"
_NODE = f"""
SELECT n.id, n.seq, n.timestamp AS at, n.type, n.title, n.description,
       iif({_SUPERSEDER} IS NULL, n.status, 'superseded') AS status, {_SUPERSEDER} AS superseded_by,
       n.confidence, n.session, n.agent, n.metadata, 0 AS recorded
FROM nodes n"""
#: A confidence is rounded down, so that one below 50 % is shown as such.
_DECISION = """
SELECT d.decision_id AS id, d.seq, d.timestamp AS at, 'decision' AS type,
       d.decision_type || ': ' || d.decision AS title, d.reasoning AS description, d.trace_status AS status,
       (SELECT "by" FROM trace_states s WHERE s.seq = d.status_seq) AS superseded_by,
       CAST(100 * d.confidence AS INTEGER) AS confidence, d.session, d.actor AS agent,
       NULL AS metadata, 1 AS recorded
FROM decisions d"""
#: One that is pending is no outcome yet: its status says so.
_OUTCOME = """
SELECT o.id, o.seq, o.timestamp AS at, 'outcome' AS type, o.status AS title, o.note AS description,
       iif(o.status = 'PENDING', 'pending', 'active') AS status, NULL AS superseded_by, NULL AS confidence,
       NULL AS session, NULL AS agent, NULL AS metadata, 1 AS recorded
FROM outcomes o"""
#: Decisions that count in figures: no claims, none in quarantine.
_COUNTS = "d.lacks IS NULL AND (d.claimed IS NULL OR d.claimed != 'report')"
_IS_SUPERSEDED = f"EXISTS (SELECT 1 FROM edges WHERE target = n.id AND {SUPERSEDES})"
_ACTIVE = f"n.status = 'active' AND NOT {_IS_SUPERSEDED}"
_OF_STATUS: dict[str, str] = {
    "active": _ACTIVE,
    "abandoned": f"n.status = 'abandoned' AND n.status != 'active' AND NOT {_IS_SUPERSEDED}",
    "superseded": "n.seq IN (SELECT seq FROM nodes WHERE status = 'superseded' AND status != 'active' UNION "
    f"SELECT m.seq FROM edges JOIN nodes m ON m.id = target WHERE edges.{SUPERSEDES})",
}
_LINK = "source, type, target, seq, timestamp AS at, weight, rationale"


def nodes(
    reader: Reader,
    *,
    type: graph.NodeType | None = None,
    status: graph.WorkStatus | None = None,
    session: str | None = None,
    agent: str | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int = 20,
) -> list[Record]:
    """Nodes as items, newest first, that match every given filter. Raises JournalError.

    `since` and `until` are RFC 3339 wall times of the recording. The list of superseded nodes takes time for
    each superseded node, not only for those of the page.
    """
    given = {"session": session, "agent": agent, "type": type}
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    # the first one has the fewest nodes; the plus sign keeps the index of the others from being chosen
    conditions = [f"{'+' if number else ''}n.{name} = :{name}" for number, name in enumerate(values)]
    if status is not None:
        conditions.append(_OF_STATUS[status])
    bounds = {"since": (">=", instant(since, "since")), "until": ("<", instant(until, "until"))}
    span = [f"timestamp {sign} :{name}" for name, (sign, at) in bounds.items() if at is not None]
    if span:
        values |= {name: at for name, (_, at) in bounds.items() if at is not None}
        of_span = f"FROM nodes INDEXED BY nodes_timestamp WHERE {' AND '.join(span)}"
        conditions += [f"+n.{condition}" for condition in span]
        conditions.append(f"n.seq BETWEEN (SELECT min(seq) {of_span}) AND (SELECT max(seq) {of_span})")
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    with reader.snapshot() as connection:
        return rows(connection, f"{_NODE}{where} ORDER BY n.seq DESC LIMIT :limit", values | {"limit": limit})


def resolve(reader: Reader, id_or_end: str) -> str:
    """The id under which something is recorded, or the only node, else the only decision, whose id ends so.

    Raises JournalError.
    """
    with reader.snapshot() as connection:
        if end_of_edge(connection, id_or_end) is not None:
            return id_or_end
        if len(id_or_end) >= ENDING_CHARS:
            values = {"start": -len(id_or_end), "end": id_or_end}
            for column, table in (("id", "nodes"), ("decision_id", "decisions")):
                sql = f"SELECT {column} AS id FROM {table} WHERE substr({column}, :start) = :end LIMIT 2"
                matches = rows(connection, sql, values)
                if len(matches) > 1:
                    raise JournalError(f"several {table} end in {id_or_end!r}; give the whole id")
                if matches:
                    return str(matches[0]["id"])
    raise JournalError(f"there is no node and no decision {id_or_end[:64]!r} in {reader.path}")


def items(connection: Connection, ids: Sequence[str]) -> dict[str, Record]:
    """What is recorded under these ids, as items; an id without a node, decision or outcome is left out."""
    by_id: dict[str, Record] = {}
    for some in _pages(ids):
        marks = ", ".join("?" * len(some))
        for sql, column in ((_NODE, "n.id"), (_DECISION, "d.decision_id"), (_OUTCOME, "o.id")):
            matches = rows(connection, f"{sql} WHERE {column} IN ({marks})", tuple(some))
            by_id |= {row["id"]: row for row in matches}
    return by_id


def links_from(connection: Connection, ids: Sequence[str], types: Sequence[str] = ()) -> list[Record]:
    """The stated edges from these ids, and those to outcomes, in order of recording; `types`: only these."""
    made = _links(connection, "source", ids, types)
    if not types or "RESULTED_IN" in types:
        for some in _pages(ids):
            made += rows(
                connection,
                "SELECT decision_id AS source, 'RESULTED_IN' AS type, id AS target, seq, timestamp AS at, "
                "NULL AS weight, NULL AS rationale FROM outcomes WHERE claimed IS NULL AND decision_id IN "
                f"({', '.join('?' * len(some))})",
                tuple(some),
            )
    return sorted(made, key=_seq)


def links_to(connection: Connection, ids: Sequence[str], types: Sequence[str] = ()) -> list[Record]:
    """The stated edges to these ids, in order of recording."""
    return sorted(_links(connection, "target", ids, types), key=_seq)


def of_session(connection: Connection, session: str, limit: int) -> list[Record]:
    """The newest nodes and recorded decisions of a session, at most `limit`, in order of recording."""
    values = {"session": session, "limit": limit}
    newest = [
        *rows(connection, f"{_NODE} WHERE n.session = :session ORDER BY n.seq DESC LIMIT :limit", values),
        *rows(connection, f"{_DECISION} WHERE d.session = :session ORDER BY d.seq DESC LIMIT :limit", values),
    ]
    return sorted(newest, key=_seq)[-limit:]


def active_goals(connection: Connection, limit: int) -> list[Record]:
    """The newest goals that are neither abandoned nor superseded, newest first."""
    sql = f"{_NODE} WHERE n.type = 'goal' AND {_ACTIVE} ORDER BY n.seq DESC LIMIT :limit"
    return rows(connection, sql, {"limit": limit})


def decisions(connection: Connection, limit: int) -> list[Record]:
    """The newest decisions of the work, newest first: nodes, and recorded ones that links of work end at.

    The newest `MOST_LINKS` links are looked at. Recorded decisions count as they do in figures: no claims,
    none in quarantine.
    """
    nodes = f"{_NODE} WHERE n.type = 'decision' ORDER BY n.seq DESC LIMIT :limit"
    newest = f"SELECT source, target FROM edges WHERE {OF_WORK} ORDER BY seq DESC LIMIT {MOST_LINKS}"
    linked = (
        f"WITH newest AS MATERIALIZED ({newest}) {_DECISION} WHERE d.decision_id IN (SELECT source FROM "
        f"newest UNION SELECT target FROM newest) AND {_COUNTS} ORDER BY +d.seq DESC LIMIT :limit"
    )
    values = {"limit": limit}
    both = [*rows(connection, nodes, values), *rows(connection, linked, values)]
    return sorted(both, key=_seq, reverse=True)[:limit]


def doubtful(connection: Connection, limit: int) -> list[Record]:
    """The newest active nodes whose confidence is below 50 %, newest first."""
    sql = f"{_NODE} WHERE n.{DOUBTFUL} AND {_ACTIVE} ORDER BY n.seq DESC LIMIT :limit"
    return rows(connection, sql, {"limit": limit})


def newest(connection: Connection, limit: int) -> list[Record]:
    """The newest nodes of the work, in order of recording, at most `limit`."""
    types = ", ".join(f"'{type}'" for type in graph.WORK)
    sql = f"{_NODE} WHERE +n.type IN ({types}) ORDER BY n.seq DESC LIMIT :limit"
    return rows(connection, sql, {"limit": limit})[::-1]


def _links(connection: Connection, end: str, ids: Sequence[str], types: Sequence[str]) -> list[Record]:
    only = f" AND type IN ({', '.join('?' * len(types))})" if types else ""
    made: list[Record] = []
    for some in _pages(ids):
        sql = f"SELECT {_LINK} FROM edges WHERE {end} IN ({', '.join('?' * len(some))}){only}"
        made += rows(connection, sql, (*some, *types))
    return made


def _pages(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _MANY):
        yield ids[start : start + _MANY]


def _seq(record: Record) -> int:
    return int(record["seq"])
