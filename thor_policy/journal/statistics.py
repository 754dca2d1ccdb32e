"""Statistics of decisions: counts, accuracy and latency, by actor, model, pack, confidence and hour.

Owns the aggregating queries. Invariant: each call reads one snapshot of the decisions since a time, so the
figures of one call agree. `since` and hours are wall time as it was recorded. With `tests` false a call
leaves out decisions of tests. Claims count only in `claims`. Decisions that an approval lifted are counted,
but not in accuracy and confidence, which are those of rules and model. Any thread or process.
"""

from __future__ import annotations

from typing import Any

from thor_policy.core.requests import Json
from thor_policy.journal.reader import COUNTED, NOT_LIFTED, OF_TESTS, Reader, Record, instant

#: Dimensions of a breakdown, and the column of each.
DIMENSIONS = {"actor": "actor", "model": "model_name", "pack": "prompt_version", "type": "decision_type"}
#: Lower bounds of the confidence buckets.
BUCKETS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
#: The decisions with a known right outcome, and the right ones. What an approval lifted is neither.
_JUDGED = (
    f"count(decision_correct) FILTER (WHERE {NOT_LIFTED}), sum(decision_correct) FILTER (WHERE {NOT_LIFTED})"
)
#: Most rows of a breakdown.
MOST_ROWS = 50


def statistics(reader: Reader, *, since: str | None = None, tests: bool = True) -> Record:
    """Counts by outcome, tier and risk, accuracy where it is known, recorded outcomes, and latency in ms.

    `lifted` counts the decisions whose outcome an approval lifted.
    """
    where, values = _window(since, tests)
    with reader.snapshot() as connection:
        rows = connection.execute(
            f"SELECT decision, tier, risk_level, count(*), {_JUDGED}, "
            "sum(reviewed), count(outcome_status), sum(outcome_status = 'SUCCESS'), "
            "sum(outcome_status = 'FAILURE'), sum(outcome_value), min(seq), max(seq), count(approval_task) "
            f"FROM decisions INDEXED BY decisions_timestamp {where} GROUP BY 1, 2, 3",
            values,
        ).fetchall()
        score = connection.execute(
            f"SELECT score_ms FROM decisions INDEXED BY decisions_timestamp {where} AND tier = 'model'",
            values,
        ).fetchall()
        ends = [min((row[11] for row in rows), default=0), max((row[12] for row in rows), default=0)]
        at = dict(connection.execute("SELECT seq, timestamp FROM decisions WHERE seq IN (?, ?)", ends))
    known = sum(row[7] for row in rows)
    won, lost = (sum(row[index] or 0 for row in rows) for index in (8, 9))
    return {
        "decisions": sum(row[3] for row in rows),
        "first": at.get(ends[0]),
        "last": at.get(ends[1]),
        "outcomes": _counts(rows, 0),
        "tiers": _counts(rows, 1),
        "risks": _counts(rows, 2),
        "expected": sum(row[4] for row in rows),
        "correct": sum(row[5] or 0 for row in rows),
        "reviewed": sum(row[6] or 0 for row in rows),
        "lifted": sum(row[13] for row in rows),
        "turned_out": {"SUCCESS": won, "FAILURE": lost, "PENDING": known - won - lost} if known else {},
        "value": sum(row[10] or 0 for row in rows) if known else None,
        "score_ms": percentiles([row[0] for row in score]),
    }


def breakdown(reader: Reader, by: str, *, since: str | None = None, tests: bool = True) -> list[Record]:
    """One record for each value of a dimension (`DIMENSIONS`), most decisions first, at most `MOST_ROWS`."""
    column = DIMENSIONS[by]
    where, values = _window(since, tests)
    with reader.snapshot() as connection:
        rows = connection.execute(
            f"SELECT {column}, count(*), sum(allow), {_JUDGED}, "
            "sum(outcome_status = 'SUCCESS'), sum(outcome_status = 'FAILURE'), "
            "sum(outcome_status = 'PENDING'), avg(outcome_value), sum(outcome_value), avg(latency_ms), "
            "sum(input_tokens), sum(output_tokens), avg(confidence) "
            f"FROM decisions INDEXED BY decisions_timestamp {where} GROUP BY 1 ORDER BY 2 DESC LIMIT ?",
            (*values, MOST_ROWS),
        ).fetchall()
    names = (
        *("total", "allowed", "expected", "correct", "successful", "failed", "pending"),
        *("average_value", "total_value", "average_latency_ms", "input_tokens", "output_tokens"),
        "average_confidence",
    )
    records = []
    for row in rows:
        record = {by: row[0]} | dict(zip(names, row[1:], strict=True))
        for name in ("allowed", "correct", "successful", "failed", "pending"):
            record[name] = record[name] or 0
        ended = record["successful"] + record["failed"]
        record["success_rate"] = record["successful"] / ended if ended else None
        records.append(record)
    return records


def latency(reader: Reader, *, since: str | None = None, tests: bool = True) -> list[Record]:
    """p50, p90 and p99 of the latency in ms of each model."""
    where, values = _window(since, tests)
    with reader.snapshot() as connection:
        rows = connection.execute(
            "SELECT model_name, latency_ms FROM decisions INDEXED BY decisions_timestamp "
            f"{where} AND model_name IS NOT NULL AND latency_ms IS NOT NULL",
            values,
        ).fetchall()
    by_model: dict[str, list[float]] = {}
    for model, took_ms in rows:
        by_model.setdefault(model, []).append(took_ms)
    return [
        {"model": model, "decisions": len(took), **(percentiles(took) or {})}
        for model, took in sorted(by_model.items(), key=lambda item: -len(item[1]))
    ]


def confidence(reader: Reader, *, since: str | None = None, tests: bool = True) -> list[Record]:
    """For each bucket of confidence: the number of decisions, of judged ones, and of right ones."""
    where, values = _window(since, tests)
    cases = " ".join(f"WHEN confidence >= {low} THEN {low}" for low in reversed(BUCKETS))
    with reader.snapshot() as connection:
        rows = connection.execute(
            f"SELECT CASE {cases} END, count(*), {_JUDGED}, "
            "avg(confidence) FROM decisions INDEXED BY decisions_timestamp "
            f"{where} AND confidence IS NOT NULL AND {NOT_LIFTED} GROUP BY 1 ORDER BY 1",
            values,
        ).fetchall()
    return [
        {"from": low, "decisions": count, "judged": judged, "correct": correct or 0, "confidence": mean}
        for low, count, judged, correct, mean in rows
    ]


def hourly(reader: Reader, *, since: str | None = None, tests: bool = True) -> list[tuple[str, int]]:
    """The number of decisions in each hour that has any, oldest first: (`2026-07-01T12`, count)."""
    where, values = _window(since, tests)
    with reader.snapshot() as connection:
        return connection.execute(
            f"SELECT substr(timestamp, 1, 13), count(*) FROM decisions {where} GROUP BY 1 ORDER BY 1", values
        ).fetchall()


def percentiles(took_ms: list[float]) -> dict[str, float] | None:
    """p50, p90 and p99 (nearest rank); None if the list is empty."""
    if not took_ms:
        return None
    ordered = sorted(took_ms)
    return {f"p{p}": ordered[(len(ordered) * p - 1) // 100] for p in (50, 90, 99)}


def count_of_tests(reader: Reader, *, since: str | None = None) -> int:
    """The number of decisions that answered a question of `test` or `invariance`."""
    where, values = _window(since, tests=True)
    with reader.snapshot() as connection:
        counted = connection.execute(f"SELECT count(*) FROM decisions {where} AND {OF_TESTS}", values)
        return int(counted.fetchone()[0])


def claims(reader: Reader, *, since: str | None = None) -> dict[str, int]:
    """What callers stated without a role that lets it count, by kind.

    `exceptions` are among the `reports`.
    """
    at = (instant(since, "since") or "",)
    with reader.snapshot() as connection:
        row = connection.execute(
            "SELECT sum(claimed = 'annotations'), sum(claimed = 'report'), "
            "sum(claimed = 'report' AND is_exception) FROM decisions WHERE timestamp >= ?",
            at,
        ).fetchone()
        (outcomes,) = connection.execute(
            "SELECT count(*) FROM outcomes WHERE timestamp >= ? AND claimed", at
        ).fetchone()
    annotations, reports, exceptions = (count or 0 for count in row)
    return {
        "annotations": annotations,
        "outcomes": outcomes,
        "reports": reports,
        "exceptions": exceptions,
    }


def quarantined(reader: Reader, *, since: str | None = None) -> int:
    """The number of decisions that count nowhere because their trace lacks what its type requires."""
    with reader.snapshot() as connection:
        counted = connection.execute(
            "SELECT count(*) FROM decisions WHERE lacks IS NOT NULL AND +timestamp >= ?",
            (instant(since, "since") or "",),
        )
        return int(counted.fetchone()[0])


def _window(since: str | None, tests: bool) -> tuple[str, list[Any]]:
    without = "" if tests else f" AND NOT {OF_TESTS}"
    return f"WHERE timestamp >= ? AND {COUNTED}{without}", [instant(since, "since") or ""]


def _counts(rows: list[tuple[Json, ...]], column: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        if row[column] is not None:  # a reported decision may have no risk
            counts[row[column]] = counts.get(row[column], 0) + row[3]
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
