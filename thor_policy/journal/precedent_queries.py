"""Queries of precedents: the columns by which they are ranked, and candidates by words or by fields.

Owns the queries of `thor_policy.trace.precedents`. Invariant: each query reads an index and at most so many
rows as its caller allows; words are quoted, so that no character is an operator. Any thread or process, on
the connection of a `Reader.snapshot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from thor_policy.core.recall import Filters
from thor_policy.journal import schema, summaries
from thor_policy.journal.reader import COUNTED, OF_TESTS, Record, instant
from thor_policy.journal.trace_queries import Connection, rows

#: Citations of a decision are counted up to this number.
MOST_COUNTED = 100

_OF_PACK = (
    "(prompt_version = :pack OR substr(prompt_version, 1, length(:pack) + 1) IN (:pack || '@', :pack || '+'))"
)
_ROWS = f"""
SELECT d.seq, d.decision_id AS id, d.timestamp AS at, d.decision_type AS type, d.prompt_version AS pack,
    d.actor, d.action, d.entity, d.tier, coalesce(d.review_decision, d.decision) AS outcome, d.reviewed,
    d.decision_correct AS correct, d.outcome_status AS result, d.outcome_value AS value, d.judgment_call,
    d.trace_status = 'active' AND ({COUNTED}) AND (:tests OR NOT {OF_TESTS}) AS counts,
    (SELECT count(*) FROM (SELECT 1 FROM edges e WHERE e.target = d.decision_id AND e.type = 'CITES'
     LIMIT {MOST_COUNTED})) AS cited_by
FROM json_each(:seqs) j CROSS JOIN decisions d ON d.seq = j.value
"""


def of_seqs(connection: Connection, seqs: Sequence[int], *, tests: bool) -> dict[int, Record]:
    """What ranks these decisions, by number; `counts` is 0 for those that are no precedents.

    Those are overturned, superseded or under review, in quarantine, claims, and of tests unless `tests`.
    """
    matches = rows(connection, _ROWS, {"seqs": _json(seqs), "tests": tests})
    return {row["seq"]: row for row in matches}


def vectors_of(connection: Connection, seqs: Sequence[int]) -> dict[int, bytes]:
    """The vectors of these decisions, by number, as far as there are any."""
    matches = connection.execute(
        "SELECT v.seq, v.vector FROM json_each(?) j CROSS JOIN vectors v ON v.seq = j.value "
        "WHERE v.vector != x''",
        (_json(seqs),),
    )
    return dict(matches.fetchall())


def summaries_of(connection: Connection, seqs: Sequence[int]) -> dict[int, str]:
    """The summaries of these decisions, by number, as far as there are any."""
    matches = connection.execute(
        "SELECT s.seq, s.text FROM json_each(?) j CROSS JOIN summaries s ON s.seq = j.value", (_json(seqs),)
    )
    return dict(matches.fetchall())


def not_counted(connection: Connection, limit: int, *, tests: bool) -> list[int] | None:
    """The numbers of all decisions that are no precedents; None if there are more than `limit`."""
    of_tests = "" if tests else f" UNION ALL SELECT seq FROM decisions WHERE {OF_TESTS}"
    numbers = connection.execute(
        f"SELECT seq FROM decisions WHERE {schema.NOT_ACTIVE} UNION ALL "
        "SELECT seq FROM decisions WHERE lacks IS NOT NULL UNION ALL "
        f"SELECT seq FROM decisions WHERE claimed = 'report'{of_tests} LIMIT ?",
        (limit + 1,),
    ).fetchall()
    return None if len(numbers) > limit else [seq for (seq,) in numbers]


def with_words(connection: Connection, words: Sequence[str], limit: int) -> dict[str, list[int]]:
    """For each word the numbers of decisions whose summary has it, newest first, at most `limit`."""
    sql = "SELECT rowid FROM summaries_words WHERE summaries_words MATCH ? ORDER BY rowid DESC LIMIT ?"
    return {
        word: [seq for (seq,) in connection.execute(sql, (summaries.quoted([word]), limit))] for word in words
    }


def by_fields(connection: Connection, filters: Filters, action: str | None, limit: int) -> list[int]:
    """The numbers of the newest decisions that hold the filters and have this action."""
    where, values = conditions(filters)
    if action is not None:
        where, values = [*where, "action = :action"], values | {"action": action}
    condition = f"WHERE {' AND '.join(where)}" if where else ""
    numbers = connection.execute(
        f"SELECT seq FROM decisions {condition} ORDER BY seq DESC LIMIT :limit", values | {"limit": limit}
    )
    return [seq for (seq,) in numbers.fetchall()]


def conditions(filters: Filters) -> tuple[list[str], dict[str, Any]]:
    """The filters as conditions on columns of `decisions`, with their values."""
    columns = {
        "decision_type = :type": ("type", filters.type),
        "actor = :actor": ("actor", actor_of(filters)),
        "entity = :entity": ("entity", filters.entity),
        "timestamp >= :since": ("since", instant(filters.since, "filters.since")),
        "timestamp < :until": ("until", instant(filters.until, "filters.until")),
        _OF_PACK: ("pack", filters.pack),
    }
    given = {text: pair for text, pair in columns.items() if pair[1] is not None}
    return list(given), dict(given.values())


def actor_of(filters: Filters) -> str | None:
    """The actor in the form of the column; without a type it is a user."""
    actor = filters.actor
    return actor if actor is None or ":" in actor else f"user:{actor}"


def of_pack(version: str | None, pack: str) -> bool:
    """True if a version `name@version+digits` is of the pack of a filter, as `conditions` has it."""
    return version is not None and (version == pack or version.startswith((f"{pack}@", f"{pack}+")))


def holds(row: Mapping[str, Any], filters: Filters) -> bool:
    """True if a row of `of_seqs` holds the filters."""
    since = filters.since and instant(filters.since, "filters.since")
    until = filters.until and instant(filters.until, "filters.until")
    return (
        (filters.type is None or row["type"] == filters.type)
        and (filters.actor is None or row["actor"] == actor_of(filters))
        and (filters.entity is None or row["entity"] == filters.entity)
        and (filters.pack is None or of_pack(row["pack"], filters.pack))
        and (since is None or row["at"] >= since)
        and (until is None or row["at"] < until)
    )


def _json(numbers: Sequence[int]) -> str:
    return msgspec.json.encode(numbers).decode()
