"""The pulse of the work: what is being done, what was decided, what is missing, what is doubtful or stale.

Owns the figures and the line that sums them up. Invariant: at most `MOST` goals and `MOST` decisions are
looked at, the newest, each with the nearest `MOST_PARTS` of its parts; `cut` says that there are more. The
time is an argument. Any thread or process, on a reader of its own.
"""

from __future__ import annotations

from msgspec import Struct

from thor_policy.journal import events, work_queries
from thor_policy.journal.reader import Reader, Record
from thor_policy.trace.parts import nearest

#: Goals and decisions that are looked at, and parts of each.
MOST, MOST_PARTS = 100, 100
#: Days without anything new after which a goal is stale, unless the caller says otherwise.
STALE_DAYS = 7.0
_DAY_S = 86_400
#: States of what is neither superseded, overturned, abandoned nor pending.
_STANDING = frozenset({"active", "under_review"})


class Pulse(Struct, frozen=True, kw_only=True):
    """The state of the work at `at`; the lists are items (`work_queries.ITEM`), newest first.

    `goals` are the active goals, `uncovered` those without a decision or an action that stands among their
    parts, `stale` those of which nothing was recorded for `stale_days` days. `decisions` are the newest ones,
    `open` those that stand and have no outcome. `doubtful` is active and has a confidence below 50 %.
    """

    at: str
    stale_days: float
    summary: str
    goals: tuple[Record, ...]
    decisions: tuple[Record, ...]
    uncovered: tuple[Record, ...]
    open: tuple[Record, ...]
    doubtful: tuple[Record, ...]
    stale: tuple[Record, ...]
    cut: bool


def pulse(reader: Reader, *, now: float, stale_days: float = STALE_DAYS) -> Pulse:
    """The pulse at `now`, in Unix seconds, by the recorded wall times. Raises JournalError."""
    limit = events.timestamp(now - stale_days * _DAY_S)
    uncovered, stale, open_ = [], [], []
    with reader.snapshot() as connection:
        goals = work_queries.active_goals(connection, MOST + 1)
        decisions = work_queries.decisions(connection, MOST + 1)
        doubtful = work_queries.doubtful(connection, MOST + 1)
        cut = max(map(len, (goals, decisions, doubtful))) > MOST
        roots = [item["id"] for item in (*goals[:MOST], *decisions[:MOST])]
        parts = nearest(connection, roots, most=MOST_PARTS)
    for goal in goals[:MOST]:
        steps = parts[goal["id"]]
        if not any(part.type in ("decision", "action") and part.status in _STANDING for part, *_ in steps):
            uncovered.append(goal)
        if goal["at"] < limit and not any(part.at >= limit for part, *_ in steps):
            stale.append(goal)
    for decision in decisions[:MOST]:
        steps = parts[decision["id"]]
        if decision["status"] in _STANDING and not any(
            part.type == "outcome" and part.status in _STANDING for part, *_ in steps
        ):
            open_.append(decision)
    doubtful += [item for item in decisions if item["recorded"] and _is_doubtful(item)]
    doubtful.sort(key=lambda item: -item["seq"])
    return Pulse(
        at=events.timestamp(now),
        stale_days=stale_days,
        summary=(
            f"{_count(goals[:MOST], 'active goal')} ({len(uncovered)} without a decision or action, "
            f"{len(stale)} stale for {stale_days:g} days), {_count(decisions[:MOST], 'decision')} "
            f"({len(open_)} without an outcome), {len(doubtful[:MOST])} below 50 % confidence"
        ),
        goals=tuple(goals[:MOST]),
        decisions=tuple(decisions[:MOST]),
        uncovered=tuple(uncovered),
        open=tuple(open_),
        doubtful=tuple(doubtful[:MOST]),
        stale=tuple(stale),
        cut=cut,
    )


def _is_doubtful(item: Record) -> bool:
    return item["status"] in _STANDING and item["confidence"] is not None and item["confidence"] < 50


def _count(items: list[Record], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
