"""The queues of a reviewer, read from the journal.

Owns which decisions are in a queue. Invariant: no reviewer is offered a decision that is assigned to, or
leased by, another one, or a second verdict on a decision that they judged. Reads the journal; records
go through the function that the caller hands in. The reviewer's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from thor_policy.core import records
from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Json
from thor_policy.journal import review_queries
from thor_policy.journal.reader import Reader, Record
from thor_policy.policy.pack import Pack
from thor_policy.policy.tightening import DOUBT
from thor_policy.review import agreement, ranking
from thor_policy.review.agreement import Rating, Report
from thor_policy.review.ranking import Pick
from thor_policy.review.session import Item
from thor_policy.telemetry import clocks
from thor_policy.telemetry.clocks import Instant

QueueName = Literal["unreviewed", "under_review", "doubts", "incorrect", "all", "disagreements", "mine"]
Order = Literal["priority", "newest"]

#: Number of the newest reviewed decisions searched for second verdicts and disagreements.
MOST_REVIEWED = 1_000


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
    """The clauses and outcomes of a pack, for decisions that exactly this version made.

    Texts of another version may differ, so its decisions get none. `pack` is None if it cannot be loaded.
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
    now: Instant | None = None,
    random_share: float = ranking.RANDOM_SHARE,
    second_share: float = ranking.SECOND_SHARE,
    verdicts: int = 2,
    **filters: Any,
) -> list[Pick]:
    """The decisions for this reviewer, in order; at most `ranking.WINDOW` of the newest.

    A `second_share` of all decisions gets `verdicts` verdicts, blind to each other. `now` is the
    present for leases. `filters` are those of `Reader.decisions`. Raises JournalError.

    Decisions under review come first in `unreviewed`, and `under_review` has no others. A review that is
    recorded after the change of state takes them out.
    """
    reopened = _reopened(reader, reviewer, now, filters) if queue in ("unreviewed", "under_review") else []
    if queue == "under_review":
        return reopened
    if queue in ("incorrect", "all"):
        filters = filters | ({"correct": False} if queue == "incorrect" else {})
        rows = reader.decisions(limit=ranking.WINDOW, **filters)
        free, _ = _available(reader, rows, reviewer, now)
        return _picks_of(free, "found wrong by a reviewer" if queue == "incorrect" else "newest first", None)
    if queue == "disagreements":
        reviewed, ratings = _reviewed(reader, filters)
        disputed = [row for row in reviewed if agreement.disagree(ratings[row["decision_id"]])]
        return [
            Pick(
                decision_id=row["decision_id"],
                why=_disagreement(ratings[row["decision_id"]]),
                adjudicates=True,
            )
            for row in _available(reader, disputed, reviewer, now)[0]
        ]
    if queue == "doubts":
        filters = filters | {"reason_code": DOUBT}
    rows = reader.decisions(limit=ranking.WINDOW, reviewed=False, **filters)
    free, mine = _available(reader, rows, reviewer, now)
    if queue == "mine":
        free = [row for row in free if row["decision_id"] in mine]
    first = {pick.decision_id for pick in reopened}
    if by == "newest":
        others = [row for row in free if row["decision_id"] not in first]
        return [*reopened, *_picks_of(others, "newest first", 0)]
    reviewed, ratings = _reviewed(reader, filters)
    again = [
        row
        for row in (reviewed if queue == "unreviewed" else [])
        if ranking.drawn(row["decision_id"], "second", second_share)
        and 0 < len(ratings[row["decision_id"]]) < verdicts
        and not any(
            rating.adjudicates or rating.reviewer == reviewer for rating in ratings[row["decision_id"]]
        )
    ]
    ranked = ranking.queue(
        [row for row in free if row["decision_id"] not in first],
        reviewed=reviewed[: ranking.COMPARED],
        again=[row for row in _available(reader, again, reviewer, now)[0] if row["decision_id"] not in first],
        verdicts=verdicts,
        mine=mine,
        random_share=random_share if queue == "unreviewed" else 0.0,
    )
    return [*reopened, *ranked]


def _reopened(reader: Reader, reviewer: str, now: Instant | None, filters: Mapping[str, Json]) -> list[Pick]:
    """The decisions under review without a review since, of the newest `MOST_REVIEWED`."""
    rows = reader.decisions(limit=MOST_REVIEWED, trace_status="under_review", **filters)
    waiting = [row for row in rows if (row["reviewed_seq"] or 0) < (row["status_seq"] or 0)]
    return _picks_of(_available(reader, waiting, reviewer, now)[0], "put under review", None)


def _picks_of(rows: Sequence[Record], why: str, others: int | None) -> list[Pick]:
    return [Pick(decision_id=row["decision_id"], why=why, others=others) for row in rows]


def _reviewed(reader: Reader, filters: Mapping[str, Json]) -> tuple[list[Record], dict[str, list[Rating]]]:
    """The newest reviewed decisions, and the standing verdicts on each by id."""
    rows = reader.decisions(limit=MOST_REVIEWED, reviewed=True, **filters)
    ratings: dict[str, list[Rating]] = {row["decision_id"]: [] for row in rows}
    for rating in agreement.standing(review_queries.reviews_of(reader, list(ratings))):
        ratings[rating.decision_id].append(rating)
    return rows, ratings


def _available(
    reader: Reader, rows: Sequence[Record], reviewer: str, now: Instant | None
) -> tuple[list[Record], frozenset[str]]:
    """The rows that no other reviewer holds, and the ids of those assigned to this reviewer."""
    ids = [row["decision_id"] for row in rows]
    claims = review_queries.claims(reader, ids, now=now or clocks.now())
    free = [
        row
        for row in rows
        if (claim := claims.get(row["decision_id"])) is None
        or (claim.holder in (None, reviewer) and claim.assignee in (None, reviewer))
    ]
    mine = {decision_id for decision_id, claim in claims.items() if claim.assignee == reviewer}
    return free, frozenset(mine)


def _disagreement(ratings: Sequence[Rating]) -> str:
    return "; ".join(
        f"{rating.reviewer or '(erased)'} says {rating.right}" for rating in ratings if not rating.adjudicates
    )
