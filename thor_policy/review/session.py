"""One reviewer's session: which decision is shown next, and what a verdict, a skip or an undo records.

Owns the course of a session. Invariant: a decision is shown only after its reviewer got the lease on it, and
every verdict is recorded before the next decision is shown. An undo is a record of its own, because the chain
is append-only. Time is an argument. The reviewer's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Protocol

from msgspec import Struct

from thor_policy.core import records
from thor_policy.core.errors import RequestError, ThorPolicyError
from thor_policy.core.requests import Json
from thor_policy.review import agreement
from thor_policy.review.agreement import Rating
from thor_policy.review.ranking import Pick

#: Seconds for which a decision is reserved for a reviewer who does nothing.
LEASE_S = 600


class Item(Struct, frozen=True, kw_only=True):
    """A decision as its reviewer sees it.

    `decision` is its row. `event` is its event with body and private part (None if erased). `ratings` are the
    standing verdicts that may be shown; `hidden` counts the others.
    """

    pick: Pick
    decision: Mapping[str, Json]
    event: Mapping[str, Json]
    ratings: tuple[Rating, ...] = ()
    hidden: int = 0

    @property
    def decision_id(self) -> str:
        return self.pick.decision_id

    @property
    def labels(self) -> tuple[str, ...]:
        """The outcomes that the model chose from, loosest first; empty if it was not asked."""
        return tuple(self.decision["probabilities"])


class ReviewQueue(Protocol):
    """The source of decisions, and the receiver of verdicts."""

    def load(self, decision_id: str) -> dict[str, Json]:
        """One decision with its event (`Reader.trace`)."""

    def row(self, decision_id: str) -> Mapping[str, Json]:
        """Its row of the table of decisions alone."""

    def reviews(self, decision_id: str) -> Sequence[Mapping[str, Json]]:
        """Every row of the table of reviews on it, with the `outcome` that was served."""

    def record(self, record: records.Record) -> str:
        """Record something and return its id. Raises RequestError: `conflict` if another holds the lease."""


Step = Literal["judged", "skipped", "delegated"]


class Done(Struct, frozen=True, kw_only=True):
    """One step of the session, as `undo` needs it."""

    step: Step
    place: int
    review_id: str | None = None
    verdict: str | None = None


class Session:
    """A reviewer working through a queue. Call `open` first; `item` is None at the end of the queue.

    Errors of the queue are passed on, and a step counts as done only if it was recorded.
    """

    def __init__(
        self,
        picks: Sequence[Pick],
        queue: ReviewQueue,
        reviewer: str,
        *,
        lease_s: int = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.picks, self.reviewer = list(picks), reviewer
        self._queue, self._lease_s, self._clock = queue, lease_s, clock
        self._leased_s = 0.0
        self._visited: set[int] = set()
        self.place = 0
        self.item: Item | None = None
        self.done: list[Done] = []
        #: Number of decisions that another reviewer had leased, or had judged in the meantime.
        self.passed_over = 0

    def count(self, step: Step) -> int:
        """How often this step was done and not undone."""
        return sum(done.step == step for done in self.done)

    # ------------------------------------------------------------ moving through the queue

    def open(self, place: int | None = None, *, direction: int = 1) -> Item | None:
        """Show the decision at `place` of the queue, or the next free one; None if there is none."""
        self._release_shown()
        self.place = self.place if place is None else place
        while 0 <= self.place < len(self.picks):
            item = self._lease_and_load(self.picks[self.place])
            if item is not None:
                self.item = item
                self._visited.add(self.place)
                return item
            self.passed_over += 1
            self.place += direction
        self.place = max(0, min(self.place, len(self.picks)))
        return None

    def back(self) -> Item | None:
        """Show the previous decision, judged or not; at the first place, the first."""
        if self.place == 0:
            return self.item
        return self.open(self.place - 1, direction=-1) or self.open(self.place)

    def find(self, text: str) -> Item | None:
        """Show the next decision whose question, reasoning or id contains `text`; capitals do not count."""
        pattern = text.casefold()
        for step in range(1, len(self.picks) + 1):
            place = (self.place + step) % len(self.picks)
            row = self._queue.row(self.picks[place].decision_id)
            fields = (row["situation"], row["reasoning"], row["actor"], row["entity"], row["decision_id"])
            if pattern in repr(fields).casefold():
                return self.open(place)
        return None

    def close(self) -> None:
        """Release the decision that is shown; if that cannot be recorded, its lease expires."""
        with suppress(ThorPolicyError):
            self._release_shown()

    def _lease_and_load(self, pick: Pick) -> Item | None:
        if self._settled(pick):
            return None
        if not self._lease(pick):
            return None
        loaded, ratings = self._queue.load(pick.decision_id), self._ratings(pick)
        shown = tuple(rating for rating in ratings if not pick.blind or rating.reviewer == self.reviewer)
        return Item(
            pick=pick,
            decision=loaded["decision"],
            event=loaded["event"],
            ratings=shown,
            hidden=len(ratings) - len(shown),
        )

    def _lease(self, pick: Pick) -> bool:
        """Lease a decision; False if another reviewer holds it, or has judged it in the meantime."""
        lease_start_s = self._clock()
        lease = records.Assignment(
            decision_id=pick.decision_id, reviewer=self.reviewer, type="lease", seconds=self._lease_s
        )
        try:
            self._queue.record(lease)
        except RequestError as error:
            if error.code in ("conflict", "not_found"):
                return False
            raise
        if self._settled(pick):  # judged just before this lease began
            self._release(pick.decision_id)
            return False
        self._leased_s = lease_start_s
        return True

    def _settled(self, pick: Pick) -> bool:
        """True if other reviewers have given the verdicts that the queue wanted."""
        if self.place in self._visited or pick.others is None:
            return False
        ratings = self._ratings(pick)
        others = [rating for rating in ratings if rating.reviewer != self.reviewer]
        if pick.adjudicates:
            return not agreement.disagree(ratings)
        return len(others) > pick.others

    def _ratings(self, pick: Pick) -> list[Rating]:
        return agreement.standing(self._queue.reviews(pick.decision_id))

    def _release_shown(self) -> None:
        item, self.item = self.item, None
        if item is not None:
            self._release(item.decision_id)

    def _release(self, decision_id: str) -> None:
        try:
            self._queue.record(
                records.Assignment(decision_id=decision_id, reviewer=self.reviewer, type="release")
            )
        except RequestError as error:
            if error.code != "conflict":  # the lease expired and another reviewer holds the decision
                raise

    # ------------------------------------------------------------ verdicts and other steps

    def judge(
        self, verdict: records.Judgement, *, decision: str | None = None, reasoning: str | None = None
    ) -> str:
        """Record a verdict on the decision that is shown, show the next, and return the review's id.

        Raises RequestError: `bad_request` if `decision` is the outcome that was served, `conflict` if the
        lease expired and another reviewer took the decision.
        """
        item = self._current_item()
        if decision is not None and decision == item.decision["decision"]:
            raise RequestError("bad_request", f"decision: {decision} was served; accept it, or name another")
        if self._clock() - self._leased_s >= self._lease_s - 1 and not self._lease(item.pick):
            self.item = None  # `open` shows the next one
            raise RequestError("conflict", "your lease on this decision expired and another reviewer took it")
        review_id = self._queue.record(
            records.Review(
                decision_id=item.decision_id,
                reviewer=self.reviewer,
                verdict=verdict,
                decision=decision or None,
                reasoning=reasoning or None,
                blind=item.pick.blind,
                adjudicates=item.pick.adjudicates,
                sampled=item.pick.sampled,
            )
        )
        self.item = None  # a verdict ends the lease
        self._finish("judged", review_id=review_id, verdict=verdict)
        return review_id

    def skip(self) -> None:
        """Release the decision that is shown, and show the next."""
        self._current_item()
        self._release_shown()
        self._finish("skipped")

    def delegate(self, to: str) -> None:
        """Assign the decision that is shown to another reviewer, and show the next."""
        item = self._current_item()
        self._queue.record(
            records.Assignment(
                decision_id=item.decision_id, reviewer=to, type="assign", given_by=self.reviewer
            )
        )
        self._release_shown()
        self._finish("delegated")

    def undo(self) -> Done | None:
        """Undo the last step and show its decision again; None if there is nothing to undo.

        A verdict is withdrawn by a record that says which verdict stands now: an earlier one of this
        reviewer, another reviewer's, or none. A delegated decision is unassigned.
        """
        if not self.done:
            return None
        last = self.done[-1]
        pick = self.picks[last.place]
        if last.step == "judged":
            self._queue.record(self._withdrawal(pick.decision_id, last.review_id))
        elif last.step == "delegated":
            self._queue.record(
                records.Assignment(decision_id=pick.decision_id, reviewer=self.reviewer, type="unassign")
            )
        self.done.pop()
        self.open(last.place)
        return last

    def _withdrawal(self, decision_id: str, review_id: str | None) -> records.Review:
        rows = self._queue.reviews(decision_id)
        standing = agreement.standing([row for row in rows if row["id"] != review_id])
        stands: Any = standing[-1].verdict if standing else None
        row = self._queue.row(decision_id)
        expected = row["expected_decision"]
        return records.Review(
            decision_id=decision_id,
            reviewer=self.reviewer,
            verdict="withdrawn",
            withdraws=review_id,
            stands=stands,
            decision=standing[-1].decision if standing else None,
            right=row["decision"] in expected.split("|") if expected and not standing else None,
        )

    def _current_item(self) -> Item:
        if self.item is None:
            raise RequestError("not_found", "no decision is shown")
        return self.item

    def _finish(self, step: Step, **review: str) -> None:
        self.done.append(Done(step=step, place=self.place, **review))
        self._visited.add(self.place)
        self.open(self.place + 1)
