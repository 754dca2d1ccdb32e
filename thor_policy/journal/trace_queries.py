"""Queries of traces: the edges of a decision, the records behind them, chains, and the traces of an entity.

Owns the queries of `thor_policy.trace`. Invariant: each query reads an index, so its time depends on what it
returns and not on the length of the journal; and what was recorded at `until` or later is not in its result.
Any thread or process, on the connection of a `Reader.snapshot`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from thor_policy.core import graph
from thor_policy.journal.projections import JSON_COLUMNS
from thor_policy.journal.reader import Reader, Record
from thor_policy.journal.schema import NOT_ACTIVE, OF_ENTITY

Connection: TypeAlias = sqlite3.Connection

#: After every timestamp: nothing is left out.
EVER = "~"

#: Most edges to one decision or node that are read.
MOST_INCOMING = 1_000

_EDGE = "source, type, target, seq, timestamp, id"
_OUTGOING = f"SELECT {_EDGE} FROM trace_edges WHERE source = :id AND timestamp < :until ORDER BY seq"
#: Edges to a decision or a node. Those to actors, versions and derived entities are not asked for.
_INCOMING = f"""
SELECT {_EDGE} FROM edges WHERE target = :id AND timestamp < :until
UNION ALL SELECT decision_id, iif(status = 'superseded', 'SUPERSEDED_BY', 'OVERTURNED_BY'), "by",
       seq, timestamp, id
FROM trace_states WHERE "by" = :id AND timestamp < :until
UNION ALL SELECT decision_id, 'RESULTED_IN', id, seq, timestamp, id
FROM outcomes WHERE id = :id AND claimed IS NULL AND timestamp < :until
ORDER BY seq LIMIT {MOST_INCOMING}
"""
_ENDS = {
    "decision": """
SELECT decision_id AS id, seq, timestamp, decision_type, decision AS outcome, entity, actor, tier, (
    SELECT status FROM trace_states s WHERE s.decision_id = d.decision_id AND s.timestamp < :until
    ORDER BY seq DESC LIMIT 1
) AS trace_status FROM decisions d WHERE decision_id = :id AND timestamp < :until
""",
    "node": """
SELECT *, (
    SELECT source FROM edges e WHERE e.target = n.id AND e.type = 'supersedes' AND e.timestamp < :until
    ORDER BY seq DESC LIMIT 1
) AS superseded_by FROM nodes n WHERE id = :id AND timestamp < :until
""",
    "source_data": "SELECT * FROM consultations WHERE id = :id AND timestamp < :until",
    "outcome": "SELECT * FROM outcomes WHERE id = :id AND timestamp < :until",
}
_SUCCESSORS = """
WITH RECURSIVE chain (id, depth) AS (
    SELECT :id, 0
    UNION ALL
    SELECT s."by", depth + 1 FROM chain c JOIN trace_states s ON s.seq = (
        SELECT max(seq) FROM trace_states WHERE decision_id = c.id AND timestamp < :until
    ) WHERE s."by" IS NOT NULL AND depth < :limit
)
SELECT d.decision_id AS id, c.depth, d.seq, d.timestamp, d.decision AS outcome, d.decision_type
FROM chain c JOIN decisions d ON d.decision_id = c.id WHERE c.depth > 0 ORDER BY c.depth
"""
_OF_STATED_ENTITY = f"""
SELECT d.* FROM nodes n JOIN edges e ON e.target = n.id AND e.type = 'APPLIES_TO'
JOIN decisions d ON d.decision_id = e.source WHERE n.{OF_ENTITY} AND n.title = :entity AND d.seq < :before
"""


def outgoing(connection: Connection, id: str, until: str = EVER) -> list[Record]:
    """The edges from a decision or a node, in order of recording: columns of the view `trace_edges`."""
    return rows(connection, _OUTGOING, {"id": id, "until": until})


def incoming(connection: Connection, id: str, until: str = EVER) -> list[Record]:
    """The first `MOST_INCOMING` edges that somebody stated to a decision or a node, in order of recording."""
    return rows(connection, _INCOMING, {"id": id, "until": until})


def newest_ids(connection: Connection, limit: int) -> list[str]:
    """The ids of the newest decisions, newest first."""
    sql = "SELECT decision_id FROM decisions ORDER BY seq DESC LIMIT ?"
    return [id for (id,) in connection.execute(sql, (limit,))]


def end_of_edge(connection: Connection, id: str, until: str = EVER) -> tuple[str, Record] | None:
    """The type and the row of what is recorded under an id; None if nothing is, or only later."""
    for type_, sql in _ENDS.items():
        if matches := rows(connection, sql, {"id": id, "until": until}):
            row = matches[0]
            return (row["type"] if type_ == "node" else type_), row
    return None


def about(connection: Connection, table: str, decision_id: str, until: str = EVER) -> list[Record]:
    """The rows of a table of records about a decision, in order of recording."""
    return rows(
        connection,
        f"SELECT * FROM {table} WHERE decision_id = :id AND timestamp < :until ORDER BY seq",
        {"id": decision_id, "until": until},
    )


def approvals_of(connection: Connection, decision: Mapping[str, Any], until: str = EVER) -> list[Record]:
    """The verdicts about a decision, and those of the task that lifted it, in order of recording."""
    return rows(
        connection,
        "SELECT * FROM approvals WHERE decision_id = :id AND timestamp < :until UNION "
        "SELECT * FROM approvals WHERE task = :task AND timestamp < :until ORDER BY seq",
        {"id": decision["decision_id"], "task": decision["approval_task"], "until": until},
    )


def stated_edge(connection: Connection, id: str) -> Record:
    """What an edge of the table `edges` says beside its ends."""
    matches = rows(
        connection,
        "SELECT weight, rationale, similarity, how, favourable FROM edges WHERE id = :id",
        {"id": id},
    )
    stated = {name: value for row in matches for name, value in row.items() if value is not None}
    if "favourable" in stated:
        stated["favourable"] = bool(stated["favourable"])
    return stated


def successors(connection: Connection, decision_id: str, *, limit: int, until: str = EVER) -> list[Record]:
    """The decisions that took the place of a decision, one after the other; at most `limit`."""
    return rows(connection, _SUCCESSORS, {"id": decision_id, "limit": limit, "until": until})


def citing(connection: Connection, decision_id: str, *, limit: int, until: str = EVER) -> list[str]:
    """The decisions that cite a decision, in order of recording; at most `limit`."""
    cursor = connection.execute(
        "SELECT source FROM edges WHERE target = ? AND type = 'CITES' AND timestamp < ? ORDER BY seq",
        (decision_id, until),
    )
    sources: dict[str, None] = {}
    for (source,) in cursor:
        sources[source] = None
        if len(sources) == limit:
            break
    return list(sources)


def policy_period(
    connection: Connection, version: str, seq: int, until: str = EVER
) -> tuple[str | None, str | None]:
    """From when to when a pack was the active one around the event `seq`; None, None if it was not.

    `version` is `prompt_version` of a decision. The second time is None while the pack is active.
    """
    name, sha = version.partition("@")[0], version.rpartition("+")[2]
    newest = rows(
        connection,
        "SELECT name, sha256 FROM packs WHERE seq < :seq ORDER BY seq DESC LIMIT 1",
        {"seq": seq},
    )
    if not newest or newest[0]["name"] != name or not newest[0]["sha256"].startswith(sha):
        return None, None
    values = {"seq": seq, "sha256": newest[0]["sha256"], "until": until}
    ((first, last),) = connection.execute(  # a daemon that starts again activates the same pack again
        "SELECT (SELECT timestamp FROM packs WHERE seq > coalesce("
        "(SELECT max(seq) FROM packs WHERE seq < :seq AND sha256 != :sha256), 0) ORDER BY seq LIMIT 1), "
        "(SELECT timestamp FROM packs WHERE seq > :seq AND sha256 != :sha256 AND timestamp < :until "
        "ORDER BY seq LIMIT 1)",
        values,
    )
    return first, last


def traces(
    reader: Reader,
    *,
    entity: str | None = None,
    status: graph.TraceStatus | None = None,
    limit: int = 20,
    before: str | None = None,
) -> list[Record]:
    """Rows of decisions, newest first: those about an entity, those with a state, or all.

    A decision is about its own `entity`, and about each entity that an edge `APPLIES_TO` states. `before` is
    the id of the last decision of the previous page. Raises JournalError.
    """
    page = reader.decisions(limit=limit, before=before, entity=entity, trace_status=status)
    if entity is None:
        return page
    values: dict[str, Any] = {"entity": entity, "limit": limit, "status": status, "before": 2**62}
    sql = _OF_STATED_ENTITY
    if status is not None:
        sql += f" AND d.trace_status = :status{'' if status == 'active' else f' AND d.{NOT_ACTIVE}'}"
    with reader.snapshot() as connection:
        if before is not None:
            matches = rows(connection, "SELECT seq FROM decisions WHERE decision_id = ?", (before,))
            values["before"] = matches[0]["seq"] if matches else 0
        stated = rows(connection, f"{sql} ORDER BY d.seq DESC LIMIT :limit", values)
    by_seq = {row["seq"]: row for row in (*page, *stated)}
    return [by_seq[seq] for seq in sorted(by_seq, reverse=True)[:limit]]


def rows(connection: Connection, sql: str, values: Mapping[str, Any] | tuple[Any, ...]) -> list[Record]:
    """The rows of a query as records, their JSON columns decoded."""
    cursor = connection.execute(sql, values)
    names = [column[0] for column in cursor.description]
    records = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    for record in records:
        for column in JSON_COLUMNS & record.keys():
            if record[column] is not None:
                record[column] = msgspec.json.decode(record[column])
    return records
