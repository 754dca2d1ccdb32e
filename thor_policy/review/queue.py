"""What the journal has for a reviewer: the queues, and decisions one at a time.

Owns the choice of what belongs into a queue. Invariant: nobody is offered what is assigned to, or held
by, somebody else, nor a second verdict on what they judged themselves. Reads the journal; writes go
through the function that is handed in. One thread, the reviewer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from thor_policy.core import records
from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Json
from thor_policy.journal import review_queries
from thor_policy.journal.reader import Reader, Record
from thor_policy.policy.pack import Pack
from thor_policy.review import agreement, ranking
from thor_policy.review.agreement import Rating, Report
from thor_policy.review.ranking import Pick
from thor_policy.review.session import Item

QueueName = Literal["unreviewed", "incorrect", "all", "disagreements", "mine"]
Order = Literal["priority", "newest"]

#: Reviewed decisions among which second verdicts and disagreements are looked for.
LOOKED_BACK = 1_000


class JournalQueue:
    """The `ReviewQueue` of a session, at an open reader; `record` hands a record over and returns its id."""

    def __init__(self, reader: Reader, record: Callable[[records.Record], str]) -> None:
        self._reader = reader
        self.record = record

    def load(self, decision_id: str) -> Record:
        return self._reader.trace(decision_id)

    def row(self, decision_id: str) -> Record:
        row = self._reader.get(decision_id)
        if row is None:
            raise JournalError(f"there is no decision {decision_id[:64]!r} in {self._reader.path}")
        return row

    def reviews(self, decision_id: str) -> list[Record]:
        return review_queries.reviews_of(self._reader, [decision_id])

    def report(self, since: str | None = None) -> Report:
        """All figures of the reviews, or of those since an RFC 3339 time."""
        return agreement.report(review_queries.reviews(self._reader, since=since))

    def assign(self, picks: Sequence[Pick], *, to: str, by: str) -> None:
        """Assign decisions to the reviewer `to`; `by` is who does it."""
        for pick in picks:
            self.record(
                records.Assignment(decision_id=pick.decision_id, reviewer=to, type="assign", given_by=by)
            )


class PackTexts:
    """The clauses and outcomes of a pack, for decisions that this very version of it made.

    Another version's texts may differ, so a decision of another one gets none; `pack` is None where the
    pack cannot be loaded.
    """

    def __init__(self, pack: Pack | None) -> None:
        self._pack = pack

    def clauses(self, item: Item) -> Mapping[str, str]:
        """Texts of clauses by id."""
        pack = self._of(item)
        return pack.clauses if pack is not None else {}

    def labels(self, item: Item) -> Sequence[str]:
        """The outcomes to choose from, loosest first; empty where neither decision nor pack names them."""
        pack = self._of(item)
        return item.labels or (tuple(pack.labels) if pack is not None else ())

    def _of(self, item: Item) -> Pack | None:
        version: Json = item.decision["prompt_version"]
        pack = self._pack
        return pack if pack is not None and (version or "").endswith(f"+{pack.info.sha256[:12]}") else None


def picks(
    reader: Reader,
    reviewer: str,
    *,
    queue: QueueName = "unreviewed",
    by: Order = "priority",
    at: float | None = None,
    random_share: float = ranking.RANDOM_SHARE,
    second_share: float = ranking.SECOND_SHARE,
    verdicts: int = 2,
    **filters: Any,
) -> list[Pick]:
    """The decisions that this reviewer should look at, in order; at most `order.WINDOW` of the newest.

    The `second_share` of all decisions gets `verdicts` blind to one another. `filters` are those of
    `Reader.decisions`. Raises JournalError.
    """
    if queue in ("incorrect", "all"):
        filters = filters | ({"correct": False} if queue == "incorrect" else {})
        rows = reader.decisions(limit=ranking.WINDOW, **filters)
        free, _ = _free(reader, rows, reviewer, at)
        return _plain(free, "one that was found wrong" if queue == "incorrect" else "the newest first", None)
    if queue == "disagreements":
        judged, ratings = _judged(reader, filters)
        open_ones = [row for row in judged if agreement.disagree(ratings[row["decision_id"]])]
        return [
            Pick(decision_id=row["decision_id"], why=_told(ratings[row["decision_id"]]), adjudicates=True)
            for row in _free(reader, open_ones, reviewer, at)[0]
        ]
    rows = reader.decisions(limit=ranking.WINDOW, reviewed=False, **filters)
    free, mine = _free(reader, rows, reviewer, at)
    if queue == "mine":
        free = [row for row in free if row["decision_id"] in mine]
    if by == "newest":
        return _plain(free, "the newest first", 0)
    judged, ratings = _judged(reader, filters)
    again = [
        row
        for row in ([] if queue == "mine" else judged)
        if ranking.drawn(row["decision_id"], "second", second_share)
        and 0 < len(ratings[row["decision_id"]]) < verdicts
        and not any(one.adjudicates or one.reviewer == reviewer for one in ratings[row["decision_id"]])
    ]
    return ranking.queue(
        free,
        reviewed=judged[: ranking.COMPARED],
        again=_free(reader, again, reviewer, at)[0],
        verdicts=verdicts,
        mine=mine,
        random_share=0.0 if queue == "mine" else random_share,
    )


def _plain(rows: Sequence[Record], why: str, others: int | None) -> list[Pick]:
    return [Pick(decision_id=row["decision_id"], why=why, others=others) for row in rows]


def _judged(reader: Reader, filters: Mapping[str, Json]) -> tuple[list[Record], dict[str, list[Rating]]]:
    rows = reader.decisions(limit=LOOKED_BACK, reviewed=True, **filters)
    ratings: dict[str, list[Rating]] = {row["decision_id"]: [] for row in rows}
    for one in agreement.standing(review_queries.reviews_of(reader, list(ratings))):
        ratings[one.decision_id].append(one)
    return rows, ratings


def _free(
    reader: Reader, rows: Sequence[Record], reviewer: str, at: float | None
) -> tuple[list[Record], frozenset[str]]:
    """The rows that nobody else has, and the ids of those assigned to this reviewer."""
    ids = [row["decision_id"] for row in rows]
    claims = review_queries.claims(reader, ids, at=time.time() if at is None else at)
    free = [
        row
        for row in rows
        if (claim := claims.get(row["decision_id"])) is None
        or (claim.holder in (None, reviewer) and claim.assignee in (None, reviewer))
    ]
    mine = {one for one, claim in claims.items() if claim.assignee == reviewer}
    return free, frozenset(mine)


def _told(ratings: Sequence[Rating]) -> str:
    sides = [f"{one.reviewer or '(erased)'} says {one.right}" for one in ratings if not one.adjudicates]
    return "; ".join(sides)
