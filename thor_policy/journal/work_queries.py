"""Queries of the graph of work: lists of nodes, the parts of a goal, a session, what the pulse counts.

Owns the queries behind `thorpolicy graph`. Invariant: each query reads an index and is bounded, so its time
depends on what it returns and not on the length of the journal; lists go by `seq`. Any thread or process, on
a reader of its own.

An item is a node, a recorded decision or a recorded outcome, all with the same columns (`ITEM`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from thor_policy.core import graph
from thor_policy.core.errors import JournalError
from thor_policy.journal.reader import ENDING_CHARS, Reader, Record, instant
from thor_policy.journal.schema import DOUBTFUL, ENDING, OF_WORK, SUPERSEDES
from thor_policy.journal.trace_queries import Connection, end_of_edge, rows


class Part(NamedTuple):
    """What a walk reads of an item: `at` is when it was recorded, `superseded_by` what took its place."""

    id: str
    seq: int
    at: str
    type: str
    status: str
    superseded_by: str | None


#: The columns of an item. `recorded`: it is no node. `superseded_by`: what took its place, if anything did.
#: `stated_status`: what a node itself says, superseded or not.
ITEM = (
    *("id", "seq", "at", "type", "title", "description", "status", "superseded_by", "confidence"),
    *("session", "agent", "metadata", "recorded", "stated_status", "actor_type", "role"),
)
#: Most ids in one query; SQLite allows 32,766.
_MANY = 500
#: Most links that `decisions` reads to find the recorded decisions of the work.
MOST_LINKS = 1_000

_SUPERSEDER = f"(SELECT source FROM edges WHERE target = n.id AND {SUPERSEDES} ORDER BY seq DESC LIMIT 1)"
_OF_NODE = f"""
n.id, n.seq, n.timestamp AS at, n.type, n.title, n.description,
iif({_SUPERSEDER} IS NULL, n.status, 'superseded') AS status, {_SUPERSEDER} AS superseded_by,
n.confidence, n.session, n.agent, n.metadata, 0 AS recorded,
n.status AS stated_status, n.actor_type, n.role"""
_NODE = f"SELECT {_OF_NODE} FROM nodes n"
#: A confidence is rounded down, so that one below 50 % is shown as such.
_DECISION = """
SELECT d.decision_id AS id, d.seq, d.timestamp AS at, 'decision' AS type,
       d.decision_type || ': ' || d.decision AS title, d.reasoning AS description, d.trace_status AS status,
       (SELECT "by" FROM trace_states s WHERE s.seq = d.status_seq) AS superseded_by,
       CAST(100 * d.confidence AS INTEGER) AS confidence, d.session, d.actor AS agent,
       NULL AS metadata, 1 AS recorded, NULL AS stated_status, NULL AS actor_type, NULL AS role
FROM decisions d"""
#: One that is pending is no outcome yet: its status says so.
_OUTCOME = """
SELECT o.id, o.seq, o.timestamp AS at, 'outcome' AS type, o.status AS title, o.note AS description,
       iif(o.status = 'PENDING', 'pending', 'active') AS status, NULL AS superseded_by, NULL AS confidence,
       NULL AS session, NULL AS agent, NULL AS metadata, 1 AS recorded,
       NULL AS stated_status, NULL AS actor_type, NULL AS role
FROM outcomes o"""
#: Decisions that count in figures: no claims, none in quarantine.
_COUNTS = "d.lacks IS NULL AND (d.claimed IS NULL OR d.claimed != 'report')"
_IS_SUPERSEDED = f"EXISTS (SELECT 1 FROM edges WHERE target = n.id AND {SUPERSEDES})"
_ACTIVE = f"n.status = 'active' AND NOT {_IS_SUPERSEDED}"
_OF_STATUS: dict[str, str] = {
    "active": _ACTIVE,
    "abandoned": f"n.status = 'abandoned' AND n.status != 'active' AND NOT {_IS_SUPERSEDED}",
}
#: Superseded nodes with the event by which they are: their newest successor's link, newest first.
_BY_LINK = f"""
SELECT {_OF_NODE}, e.seq AS ended
FROM edges e INDEXED BY edges_superseding CROSS JOIN nodes n ON n.id = e.target
WHERE e.{SUPERSEDES} AND NOT EXISTS (
    SELECT 1 FROM edges l WHERE l.target = e.target AND l.{SUPERSEDES} AND l.seq > e.seq
)"""
#: The same, found from the nodes of a session or an agent.
_BY_NODE = f"""
SELECT {_OF_NODE}, (SELECT max(seq) FROM edges WHERE target = n.id AND {SUPERSEDES}) AS ended FROM nodes n
WHERE {_IS_SUPERSEDED}"""
#: Those that say so themselves, and that no other node supersedes.
_AS_STATED = f"""
SELECT {_OF_NODE}, n.seq AS ended FROM nodes n
WHERE n.status = 'superseded' AND n.status != 'active' AND NOT {_IS_SUPERSEDED}"""
#: What a walk reads of each part: the columns of `Part`.
_PARTS = f"""
SELECT n.id, n.seq, n.timestamp, n.type, iif({_SUPERSEDER} IS NULL, n.status, 'superseded'), {_SUPERSEDER}
FROM json_each(:ids) j CROSS JOIN nodes n ON n.id = j.value
UNION ALL
SELECT d.decision_id, d.seq, d.timestamp, 'decision', d.trace_status,
       (SELECT "by" FROM trace_states s WHERE s.seq = d.status_seq)
FROM json_each(:ids) j CROSS JOIN decisions d ON d.decision_id = j.value
UNION ALL
SELECT o.id, o.seq, o.timestamp, 'outcome', iif(o.status = 'PENDING', 'pending', 'active'), NULL
FROM json_each(:ids) j CROSS JOIN outcomes o ON o.id = j.value
"""
#: The first links from each id. The index on `source` goes by `seq`, so a long list is not read whole.
_FIRST_LINKS = """
SELECT e.seq, e.source, e.type, e.target FROM json_each(:ids) j CROSS JOIN edges e ON e.seq IN (
    SELECT seq FROM edges WHERE source = j.value AND type IN (SELECT value FROM json_each(:types))
    ORDER BY seq LIMIT :most
)"""
_FIRST_OUTCOMES = """
UNION ALL
SELECT o.seq, o.decision_id, 'RESULTED_IN', o.id FROM json_each(:ids) j CROSS JOIN outcomes o ON o.seq IN (
    SELECT seq FROM outcomes WHERE decision_id = j.value AND claimed IS NULL ORDER BY seq LIMIT :most
)"""
#: The columns of a link. `stated`: somebody recorded it; others follow from a record, whose id they have.
LINK = (
    *("id", "source", "type", "target", "seq", "at", "weight", "rationale"),
    *("similarity", "how", "favourable", "stated"),
)
_LINK = (
    "id, source, type, target, seq, timestamp AS at, weight, rationale, similarity, how, favourable, "
    "1 AS stated"
)


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

    `since` and `until` are RFC 3339 wall times of the recording. Superseded nodes are in the order in which
    they were superseded, the newest first.
    """
    given = {"session": session, "agent": agent, "type": type}
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    values["limit"] = limit
    # the first one has the fewest nodes; the plus sign keeps the index of the others from being chosen
    names = [name for name in given if name in values]
    conditions = [f"{'+' if number else ''}n.{name} = :{name}" for number, name in enumerate(names)]
    bounds = {"since": (">=", instant(since, "since")), "until": ("<", instant(until, "until"))}
    span = [f"timestamp {sign} :{name}" for name, (sign, at) in bounds.items() if at is not None]
    if span:
        values |= {name: at for name, (_, at) in bounds.items() if at is not None}
        of_span = f"FROM nodes INDEXED BY nodes_timestamp WHERE {' AND '.join(span)}"
        conditions += [f"+n.{condition}" for condition in span]
        conditions.append(f"n.seq BETWEEN (SELECT min(seq) {of_span}) AND (SELECT max(seq) {of_span})")
    with reader.snapshot() as connection:
        if status == "superseded":
            return _superseded(connection, conditions, values, few=session is not None or agent is not None)
        if status is not None:
            conditions.append(_OF_STATUS[status])
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return rows(connection, f"{_NODE}{where} ORDER BY n.seq DESC LIMIT :limit", values)


def _superseded(
    connection: Connection, conditions: Sequence[str], values: dict[str, Any], *, few: bool
) -> list[Record]:
    """Superseded nodes under these conditions. `few`: the first of them leaves few nodes, so begin there."""
    as_given = "".join(f" AND {condition}" for condition in conditions)
    without_index = "".join(f" AND +{condition.lstrip('+')}" for condition in conditions)
    matches = [
        *rows(connection, f"{_AS_STATED}{without_index} ORDER BY n.seq DESC LIMIT :limit", values),
        *rows(
            connection,
            f"{_BY_NODE if few else _BY_LINK}{as_given if few else without_index} "
            "ORDER BY ended DESC LIMIT :limit",
            values,
        ),
    ]
    matches.sort(key=lambda node: int(node.pop("ended")), reverse=True)
    return matches[: values["limit"]]


def resolve(reader: Reader, id_or_end: str) -> str:
    """The id under which something is recorded, or the only node, else the only decision, whose id ends so.

    Raises JournalError.
    """
    with reader.snapshot() as connection:
        if end_of_edge(connection, id_or_end) is not None:
            return id_or_end
        if len(id_or_end) >= ENDING_CHARS:
            values = {"start": -len(id_or_end), "end": id_or_end, "last": id_or_end[-ENDING_CHARS:]}
            for column, table in (("id", "nodes"), ("decision_id", "decisions")):
                sql = (
                    f"SELECT {column} AS id FROM {table} WHERE {ENDING.format(column)} = :last "
                    f"AND substr({column}, :start) = :end LIMIT 2"
                )
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
                "SELECT id, decision_id AS source, 'RESULTED_IN' AS type, id AS target, seq, "
                "timestamp AS at, NULL AS weight, NULL AS rationale, NULL AS similarity, NULL AS how, "
                "NULL AS favourable, 0 AS stated FROM outcomes WHERE claimed IS NULL AND decision_id IN "
                f"({', '.join('?' * len(some))})",
                tuple(some),
            )
    return sorted(made, key=_seq)


def parts(connection: Connection, ids: Sequence[str]) -> dict[str, Part]:
    """What is recorded under these ids, as `items`, but with the columns that a walk needs."""
    by_id: dict[str, Part] = {}
    for some in _pages(ids):
        values = {"ids": msgspec.json.encode(some).decode()}
        by_id |= {row[0]: Part._make(row) for row in connection.execute(_PARTS, values)}
    return by_id


def first_links(
    connection: Connection, ids: Sequence[str], types: Sequence[str], most: int
) -> dict[str, list[tuple[str, str]]]:
    """The first `most` links of these types from each id: type and target, in order of recording."""
    links: dict[str, list[tuple[str, str]]] = {id: [] for id in ids}
    sql = _FIRST_LINKS + (_FIRST_OUTCOMES if "RESULTED_IN" in types else "")
    for some in _pages(ids):
        values = {"ids": msgspec.json.encode(some).decode(), "types": msgspec.json.encode(types).decode()}
        for _, source, type, target in sorted(connection.execute(sql, values | {"most": most})):
            links[source].append((type, target))
    return {id: list_[:most] for id, list_ in links.items()}


def links_by_id(connection: Connection, ids: Sequence[str]) -> dict[str, Record]:
    """The stated edges with these ids."""
    by_id: dict[str, Record] = {}
    for some in _pages(ids):
        sql = f"SELECT {_LINK} FROM edges WHERE id IN ({', '.join('?' * len(some))})"
        by_id |= {row["id"]: row for row in rows(connection, sql, tuple(some))}
    return by_id


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
