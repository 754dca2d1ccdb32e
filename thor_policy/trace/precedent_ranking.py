"""The ranking of precedents, and what several have in common.

Owns the components of a score and the statistics. Invariant: each component is 0 to 1, a score is the sum of
the components times their weights, and equal candidates give the same order. Pure; any thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from operator import itemgetter, mul
from typing import Any, NamedTuple

from msgspec import structs

from thor_policy.core.recall import Ranked, Weights
from thor_policy.core.requests import Json

#: Days after which a precedent is half as recent.
HALF_LIFE_DAYS = 90.0
#: Citations that give half of the component `cited`.
HALF_CITED = 2
#: Precedents that `recent` lists, and most entries of each list of the statistics.
MOST_RECENT, MOST_LISTED = 3, 10


class Candidate(NamedTuple):
    """A decision that may be a precedent: its row, its cosine, and the share of the words that it has."""

    row: Mapping[str, Any]
    similarity: float | None
    words: float | None


def ranked(candidates: Sequence[Candidate], weights: Weights, k: int, *, now: float) -> list[Ranked]:
    """The best `k` candidates, best first; of equals the newest. `now` is Unix time. Without texts."""
    table = structs.astuple(weights)
    scored = []
    for candidate in candidates:
        components = _components(candidate, now)
        score = sum(map(mul, table, components))
        scored.append((-score, -candidate.row["seq"], candidate, components))
    scored.sort(key=itemgetter(0, 1))
    return [_ranked(candidate, -less, components) for less, _, candidate, components in scored[:k]]


def _components(candidate: Candidate, now: float) -> tuple[float, ...]:
    """The components of a score, in the order of the members of `Weights`."""
    row = candidate.row
    age_days = max(0.0, now - datetime.fromisoformat(row["at"]).timestamp()) / 86_400
    return (
        max(0.0, candidate.similarity or 0.0),
        candidate.words or 0.0,
        float(row["result"] == "SUCCESS"),
        float(bool(row["reviewed"])),
        float(bool(row["judgment_call"])),
        row["cited_by"] / (row["cited_by"] + HALF_CITED),
        0.5 ** (age_days / HALF_LIFE_DAYS),
    )


def _ranked(candidate: Candidate, score: float, components: tuple[float, ...]) -> Ranked:
    row, similarity = candidate.row, candidate.similarity
    ways = [name for name in ("similarity", "words") if getattr(candidate, name) is not None]
    return Ranked(
        id=row["id"],
        at=row["at"],
        type=row["type"],
        actor=row["actor"],
        action=row["action"],
        entity=row["entity"],
        pack=row["pack"],
        outcome=row["outcome"],
        score=round(score, 4),
        similarity=None if similarity is None else round(similarity, 4),
        components={
            name: round(value, 4) for name, value in zip(Weights.__struct_fields__, components, strict=True)
        },
        how="+".join(ways) or "fields",
        confirmed=bool(row["correct"]) if row["reviewed"] and row["correct"] is not None else None,
        judgment_call=bool(row["judgment_call"]),
        result=row["result"],
        value=row["value"],
        cited_by=row["cited_by"],
        text="",
    )


def statistics(precedents: Sequence[Ranked]) -> dict[str, Json]:
    """What precedents have in common: outcomes, how people judged them, how they turned out, by whom.

    `line` says it in one line. Averages are over those that have a value.
    """
    outcomes = dict(
        sorted(Counter(each.outcome for each in precedents).items(), key=lambda pair: (-pair[1], pair[0]))
    )
    judged = [each for each in precedents if each.confirmed is not None]
    values = [each.value for each in precedents if each.value is not None]
    results = Counter(each.result for each in precedents if each.result is not None)
    confirmed = sum(bool(each.confirmed) for each in judged)
    parts = [f"{count} {outcome}" for outcome, count in outcomes.items()]
    if judged:
        parts.append(f"{100 * confirmed / len(judged):.0f} % of {len(judged)} confirmed by people")
    if values:
        parts.append(f"average value {sum(values) / len(values):.4g}")
    if results:
        parts.append(f"{results['SUCCESS']} of {sum(results.values())} turned out well")
    return {
        "line": f"{len(precedents)} similar" + (": " + ", ".join(parts) if parts else ""),
        "count": len(precedents),
        "outcomes": outcomes,
        "reviewed": len(judged),
        "confirmed": confirmed,
        "values": len(values),
        "average_value": sum(values) / len(values) if values else None,
        "results": dict(results.most_common()),
        "by_agent": _groups(precedents, lambda each: each.actor or "unknown"),
        "patterns": [
            group
            for group in _groups(precedents, lambda each: f"{each.action or each.type}: {each.outcome}")
            if group["successes"]
        ],
        "recent": [
            {"id": each.id, "at": each.at, "outcome": each.outcome}
            for each in sorted(precedents, key=lambda each: (each.at, each.id), reverse=True)[:MOST_RECENT]
        ],
    }


def _groups(precedents: Sequence[Ranked], key: Any) -> list[dict[str, Json]]:
    """Groups by a key, those with most successes first: how many, how they turned out, their mean value."""
    members: dict[str, list[Ranked]] = {}
    for each in precedents:
        members.setdefault(key(each), []).append(each)
    groups: list[dict[str, Json]] = []
    for name, group in members.items():
        values = [each.value for each in group if each.value is not None]
        groups.append(
            {
                "name": name,
                "decisions": len(group),
                "successes": sum(each.result == "SUCCESS" for each in group),
                "failures": sum(each.result == "FAILURE" for each in group),
                "average_value": sum(values) / len(values) if values else None,
            }
        )
    groups.sort(key=lambda group: (-group["successes"], -group["decisions"], group["name"]))
    return groups[:MOST_LISTED]
