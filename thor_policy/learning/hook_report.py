"""What hooks asked about in a span of time, what people made of it, and the rules that would spare questions.

Owns the figures of `thorpolicy hook report`. Invariant: a call counts as accepted only if its outcome was
recorded after the pack wanted a confirmation; a proposed rule was evaluated on every decision of the span
before it is offered, and none that changes a decision against a review is. Read-only on the journal; any
thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from msgspec import Struct

from thor_policy.core.requests import Json
from thor_policy.journal.reader import Reader, Record
from thor_policy.learning import patterns
from thor_policy.learning.corrections import is_corrected
from thor_policy.policy.pack import Pack

#: Most decisions that are read, the newest ones.
MOST_DECISIONS = patterns.MOST_DECISIONS
_PAGE = 1_000


class Figures(Struct, frozen=True, kw_only=True):
    """Calls of an agent. Every call is one of `allowed`, `questions` and `denied`, by what its pack decided.

    `observed` were only observed: their answers were not given to the agent. `accepted` are calls that the
    pack wanted confirmed and that ran, by people's consent or because they were observed. `reviewed` were
    reviewed; of those not allowed, `false_blocks` are those that the reviewers would have allowed.
    """

    agent: str
    calls: int
    allowed: int
    questions: int
    denied: int
    observed: int
    would_block: int
    accepted: int
    reviewed: int
    false_blocks: int
    failed: int


class FalseBlock(Struct, frozen=True, kw_only=True):
    """A call that was not allowed, and that a reviewer would have allowed."""

    decision_id: str
    agent: str
    tool: str
    outcome: str
    rules: tuple[str, ...]


class HookReport(Struct, frozen=True, kw_only=True):
    """The figures of a span. `complete` is False if older decisions were not read.

    `prompts_saved` are calls that nobody was asked about, `prompts_asked` those that somebody was or would
    have been asked about.
    """

    since: str
    complete: bool
    prompts_saved: int
    prompts_asked: int
    agents: tuple[Figures, ...]
    false_blocks: tuple[FalseBlock, ...]
    outcomes: dict[str, int]
    proposals: tuple[patterns.Pattern, ...]


def report(
    reader: Reader,
    pack: Pack,
    *,
    since: str,
    progress: Callable[[int], None] = lambda _: None,
) -> HookReport:
    """What hooks asked since an RFC 3339 time, with proposals for `pack`. Raises JournalError."""
    rows, complete = _rows(reader, since)
    by_agent: dict[str, list[Record]] = {}
    for row in rows:
        by_agent.setdefault(_hook_of(row).get("agent", ""), []).append(row)
    agents = tuple(_figures(agent, of_agent, pack) for agent, of_agent in sorted(by_agent.items()))
    accepted = {row["decision_id"] for row in rows if _is_accepted(row, pack)}
    similar = patterns.of_accepted(reader, pack, accepted, rows, progress) if rows else ()
    return HookReport(
        since=since,
        complete=complete,
        prompts_saved=sum(figures.allowed for figures in agents),
        prompts_asked=sum(figures.questions for figures in agents),
        agents=agents,
        false_blocks=tuple(_false_block(row) for row in rows if _is_false_block(row, pack)),
        outcomes=dict(Counter(row["decision"] for row in rows).most_common()),
        proposals=tuple(
            pattern for pattern in similar if pattern.proposal is None or pattern.proposal.against == 0
        ),
    )


def _rows(reader: Reader, since: str) -> tuple[list[Record], bool]:
    """The newest decisions that a hook asked for, and whether they are all."""
    rows: list[Record] = []
    before, looked_at = None, 0
    while looked_at < MOST_DECISIONS:
        page = reader.decisions(limit=_PAGE, before=before, since=since, counted=True, tests=False)
        rows += [row for row in page if _hook_of(row)]
        looked_at += len(page)
        if len(page) < _PAGE:
            return rows, True
        before = page[-1]["decision_id"]
    return rows, False


def _hook_of(row: Record) -> dict[str, Json]:
    """What a hook recorded with a decision; empty if no hook asked, or if it was erased."""
    situation = row["situation"]
    hook = (situation.get("context") or {}).get("hook") if isinstance(situation, dict) else None
    return hook if isinstance(hook, dict) and isinstance(hook.get("agent"), str) else {}


def _wants_confirmation(row: Record, pack: Pack) -> bool:
    """True where the outcome is neither an allow nor the strictest one: somebody is asked, or would be."""
    return not row["allow"] and row["tier"] != "fallback" and row["decision"] != pack.labels[-1]


def _is_accepted(row: Record, pack: Pack) -> bool:
    return _wants_confirmation(row, pack) and row["outcome_status"] is not None


def _is_false_block(row: Record, pack: Pack) -> bool:
    return not row["allow"] and is_corrected(row) and row["review_decision"] == pack.loosest


def _false_block(row: Record) -> FalseBlock:
    hook = _hook_of(row)
    return FalseBlock(
        decision_id=row["decision_id"],
        agent=hook["agent"],
        tool=str(hook.get("tool", "")),
        outcome=row["decision"],
        rules=tuple(row["clauses"] or ()),
    )


def _figures(agent: str, rows: list[Record], pack: Pack) -> Figures:
    observed = [row for row in rows if _hook_of(row).get("observe") is True]
    return Figures(
        agent=agent,
        calls=len(rows),
        allowed=sum(bool(row["allow"]) for row in rows),
        questions=sum(_wants_confirmation(row, pack) for row in rows),
        denied=sum(not row["allow"] and not _wants_confirmation(row, pack) for row in rows),
        observed=len(observed),
        would_block=sum(not row["allow"] for row in observed),
        accepted=sum(_is_accepted(row, pack) for row in rows),
        reviewed=sum(bool(row["reviewed"]) for row in rows),
        false_blocks=sum(_is_false_block(row, pack) for row in rows),
        failed=sum(row["outcome_status"] == "FAILURE" for row in rows),
    )
