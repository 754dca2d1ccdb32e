"""Queries of impact: the decisions under a pack, and those that rest on given ones.

Owns the queries of `thor_policy.trace.impact`. Invariant: each query reads an index or a range of events, and
at most so many rows as its caller allows. Any thread or process, on the connection of a `Reader.snapshot`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from thor_policy.core.errors import JournalError
from thor_policy.journal.reader import COUNTED, Record
from thor_policy.journal.trace_queries import Connection, rows

#: Rows of one page of a range of events.
_PAGE = 1_000
_DIGEST = re.compile(r"[0-9a-f]{12,64}")

_SHOWN = f"""
d.decision_id AS id, d.seq, d.timestamp AS at, d.decision_type AS type, d.decision AS outcome,
d.trace_status AS status, d.entity, ({COUNTED}) AS counted
"""
_RESTING = """
SELECT e.seq, e.source, 'CITES', e.target
FROM json_each(:ids) j CROSS JOIN edges e ON e.target = j.value WHERE e.type = 'CITES'
UNION ALL
SELECT s.seq, s."by", 'SUPERSEDED_BY', s.decision_id
FROM json_each(:ids) j CROSS JOIN trace_states s ON s.decision_id = j.value
WHERE s.status = 'superseded' LIMIT :limit
"""


def resting(connection: Connection, ids: Sequence[str], limit: int) -> list[tuple[int, str, str, str]]:
    """What rests on these decisions by one edge: its event, the id, the edge, and on what; in order.

    A decision that cites another rests on it, and so does the one that took its place. At most `limit`.
    """
    return sorted(connection.execute(_RESTING, {"ids": _json(ids), "limit": limit}))


def shown(connection: Connection, ids: Sequence[str]) -> dict[str, Record]:
    """What a list shows of these decisions, by id; `counted` is 0 for claims and traces in quarantine."""
    sql = f"SELECT {_SHOWN} FROM json_each(?) j CROSS JOIN decisions d ON d.decision_id = j.value"
    return {row["id"]: row for row in rows(connection, sql, (_json(ids),))}


def under_pack(connection: Connection, pack: str, *, limit: int, most_read: int) -> tuple[list[Record], bool]:
    """The newest decisions that a pack governed, as in `shown`, at most `limit`; and whether they are all.

    `pack` is NAME@VERSION, or at least 12 digits of its sha256. Only the times are read in which it was the
    active pack, or all where it never was; at most `most_read` decisions. Raises JournalError.
    """
    condition = _condition(pack)
    version = "name || '@' || version || '+' || substr(sha256, 1, 12)"
    periods = connection.execute(
        f"SELECT seq, lead(seq, 1, 9223372036854775807) OVER (ORDER BY seq), "
        f"{condition.format(version=version)} FROM packs ORDER BY seq DESC",
        {"pack": pack},
    ).fetchall()
    ranges = [(first, end) for first, end, matches in periods if matches] or [(0, 2**63 - 1)]
    decisions: list[Record] = []
    read = 0
    for first, end in ranges:
        before = end
        while True:
            page = rows(
                connection,
                f"SELECT {_SHOWN}, {condition.format(version='d.prompt_version')} AS matches "
                "FROM decisions d WHERE seq >= :first AND seq < :before ORDER BY seq DESC LIMIT :page",
                {"pack": pack, "first": first, "before": before, "page": _PAGE},
            )
            decisions += [row for row in page if row.pop("matches")]
            read += len(page)
            if len(decisions) > limit:
                return decisions[:limit], False
            if len(page) < _PAGE:
                break
            if read >= most_read:
                return decisions, False
            before = page[-1]["seq"]
    return decisions, True


def active_citing(connection: Connection, decision_id: str, limit: int) -> list[str]:
    """The active decisions that cite a decision, in order of citing, at most `limit`."""
    matches = connection.execute(
        "SELECT e.source FROM edges e JOIN decisions d ON d.decision_id = e.source WHERE e.target = ? "
        "AND e.type = 'CITES' AND d.trace_status = 'active' GROUP BY e.source ORDER BY min(e.seq) LIMIT ?",
        (decision_id, limit),
    ).fetchall()
    return [source for (source,) in matches]


def _condition(pack: str) -> str:
    """The condition on a version `name@version+digits` for the parameter `pack`."""
    if "@" in pack:
        return "({version} = :pack OR substr({version}, 1, length(:pack) + 1) = :pack || '+')"
    if _DIGEST.fullmatch(pack):
        return "(substr({version}, -12) = substr(:pack, 1, 12))"
    raise JournalError(
        f"pack: {pack[:64]!r} is neither NAME@VERSION nor 12 to 64 hex digits of a sha256; "
        "`thorpolicy stats --by pack` lists what decisions were made under"
    )


def _json(ids: Sequence[str]) -> str:
    return msgspec.json.encode(ids).decode()
