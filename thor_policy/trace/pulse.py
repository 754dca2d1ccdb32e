"""The pulse of the work: what is being done, what was decided, what is missing, what is doubtful or stale.

Owns the figures and the line that sums them up. Invariant: at most `MOST` goals and `MOST` decisions are
looked at, the newest, each with the nearest `MOST_PARTS` of its parts; `cut` says that there are more. The
time is an argument. Any thread or process, on a reader of its own.
"""

from __future__ import annotations

from msgspec import Struct

from thor_policy.journal import events, work_queries
from thor_policy.journal.reader import Reader, Record
from thor_policy.trace.timeline import walk

#: Goals and decisions that are looked at, and parts of each.
MOST, MOST_PARTS = 100, 100
#: Days without anything new after which a goal is stale, unless the caller says otherwise.
STALE_DAYS = 7.0
_DAY_S = 86_400


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
        for goal in goals[:MOST]:
            covered, fresh = False, goal["at"] >= limit
            for entry in walk(connection, goal["id"], most=MOST_PARTS):
                part = entry.item
                covered = covered or (part["type"] in ("decision", "action") and _stands(part))
                fresh = fresh or part["at"] >= limit
                if covered and fresh:
                    break
            if not covered:
                uncovered.append(goal)
            if not fresh:
                stale.append(goal)
        for decision in decisions[:MOST]:
            if _stands(decision) and not any(
                entry.item["type"] == "outcome" and _stands(entry.item)
                for entry in walk(connection, decision["id"], most=MOST_PARTS)
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


def _stands(item: Record) -> bool:
    """True for what is neither superseded, overturned, abandoned nor pending."""
    return item["status"] in ("active", "under_review")


def _is_doubtful(item: Record) -> bool:
    return _stands(item) and item["confidence"] is not None and item["confidence"] < 50


def _count(items: list[Record], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
