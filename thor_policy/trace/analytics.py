"""Analytics of the work: how decisions turned out, by agent and by type, and whether confidence was right.

Owns the figures. Invariant: each figure has its sample size, and a share has its Wilson interval at 95 %; the
newest `MOST` decisions are looked at, each with the nearest `MOST_PARTS` of its parts, and `cut` says that
there are more. Any thread or process, on a reader of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from thor_policy.journal import work_queries
from thor_policy.journal.reader import Reader, Record
from thor_policy.trace.parts import nearest

#: Decisions that are looked at, and parts of each.
MOST, MOST_PARTS = 1_000, 100
#: The normal quantile of 95 %.
_Z = 1.959964


class Share(Struct, frozen=True, kw_only=True):
    """`count` of `sample`; `share`, `low` and `high` (Wilson, 95 %) are None of an empty sample."""

    count: int
    sample: int
    share: float | None = None
    low: float | None = None
    high: float | None = None


class Group(Struct, frozen=True, kw_only=True):
    """The decisions of an agent or a type: how many, and which share of the known outcomes was a success."""

    name: str
    decisions: int
    success: Share


class Period(Struct, frozen=True, kw_only=True):
    """The decisions of a month (UTC, `2026-07`) with a stated confidence: its mean, with twice its error."""

    month: str
    sample: int
    mean: float
    margin: float | None


class Analytics(Struct, frozen=True, kw_only=True):
    """What became of the decisions.

    `quality`: shares of the decisions that have an outcome, that stand (neither superseded, overturned nor
    abandoned), and of the known outcomes that are successes. `brier` is the mean squared difference between
    confidence and success (0 is best, 0.25 is what a coin gets), of `judged` decisions that have both.
    """

    decisions: int
    cut: bool
    quality: dict[str, Share]
    judged: int
    brier: float | None
    by_agent: tuple[Group, ...]
    by_type: tuple[Group, ...]
    confidence: tuple[Period, ...]


class _Decision(Struct):
    item: Record
    has_outcome: bool
    succeeded: bool | None


def analytics(reader: Reader) -> Analytics:
    """The figures of the newest decisions of the work. Raises JournalError.

    A recorded outcome says SUCCESS or FAILURE. A node of the type outcome says `{"success": true}` or false
    in its metadata; without it, it is an outcome whose success is unknown. The last one that says it counts.
    """
    with reader.snapshot() as connection:
        items = work_queries.decisions(connection, MOST + 1)
        cut, items = len(items) > MOST, items[:MOST]
        parts = nearest(connection, [item["id"] for item in items], most=MOST_PARTS)
        outcomes = {step.part.id for steps in parts.values() for step in steps if step.part.type == "outcome"}
        known = work_queries.items(connection, sorted(outcomes))
    decisions = []
    for item in items:
        of_it = [known[step.part.id] for step in parts[item["id"]] if step.part.id in known]
        standing = [outcome for outcome in of_it if outcome["status"] == "active"]
        results = [result for outcome in standing if (result := _success(outcome)) is not None]
        decisions.append(_Decision(item, bool(standing), results[-1] if results else None))
    judged = [
        (decision.item["confidence"] / 100, decision.succeeded)
        for decision in decisions
        if decision.succeeded is not None and decision.item["confidence"] is not None
    ]
    return Analytics(
        decisions=len(decisions),
        cut=cut,
        quality={
            "with an outcome": share(sum(d.has_outcome for d in decisions), len(decisions)),
            "standing": share(
                sum(d.item["status"] in ("active", "under_review") for d in decisions), len(decisions)
            ),
            "successful": _successes(decisions),
        },
        judged=len(judged),
        brier=sum((sure - right) ** 2 for sure, right in judged) / len(judged) if judged else None,
        by_agent=_groups(decisions, lambda item: item["agent"] or "(none)"),
        by_type=_groups(decisions, _type_of),
        confidence=_periods(decisions),
    )


def share(count: int, sample: int) -> Share:
    """A share with its Wilson interval at 95 %."""
    if sample == 0:
        return Share(count=count, sample=sample)
    ratio, square = count / sample, _Z * _Z
    middle = (ratio + square / (2 * sample)) / (1 + square / sample)
    reach = _Z * math.sqrt(ratio * (1 - ratio) / sample + square / (4 * sample**2)) / (1 + square / sample)
    low, high = max(0.0, middle - reach), min(1.0, middle + reach)
    return Share(count=count, sample=sample, share=ratio, low=low, high=high)


def _success(outcome: Record) -> bool | None:
    if outcome["recorded"]:
        return {"SUCCESS": True, "FAILURE": False}.get(outcome["title"])
    stated = (outcome["metadata"] or {}).get("success")
    return stated if isinstance(stated, bool) else None


def _type_of(item: Record) -> str:
    """The type of a recorded decision; `work` for a node."""
    return str(item["title"]).partition(":")[0] if item["recorded"] else "work"


def _successes(decisions: Iterable[_Decision]) -> Share:
    results = [decision.succeeded for decision in decisions if decision.succeeded is not None]
    return share(sum(results), len(results))


def _groups(decisions: Sequence[_Decision], name_of: Callable[[Record], str]) -> tuple[Group, ...]:
    """Decisions by a name, those with the most first."""
    by_name: dict[str, list[_Decision]] = {}
    for decision in decisions:
        by_name.setdefault(name_of(decision.item), []).append(decision)
    groups = [
        Group(name=name, decisions=len(some), success=_successes(some)) for name, some in by_name.items()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.decisions, group.name)))


def _periods(decisions: Sequence[_Decision]) -> tuple[Period, ...]:
    by_month: dict[str, list[int]] = {}
    for decision in decisions:
        if decision.item["confidence"] is not None:
            by_month.setdefault(decision.item["at"][:7], []).append(decision.item["confidence"])
    return tuple(_period(month, values) for month, values in sorted(by_month.items()))


def _period(month: str, values: Sequence[int]) -> Period:
    mean, margin = sum(values) / len(values), None
    if len(values) > 1:
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        margin = 2 * math.sqrt(variance / len(values))
    return Period(month=month, sample=len(values), mean=mean, margin=margin)
