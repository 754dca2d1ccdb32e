"""One reviewer at work: what is shown next, and what a verdict, a skip, an undo leaves behind.

Owns the course of a session. Invariant: a decision is shown only once its reviewer holds the lease on it,
and every verdict is kept before the next decision is shown; nothing is held back to be written later. An
undo is a record of its own, for the chain is only ever appended to. Time is an argument. The reviewer's
thread.
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

#: How long a decision stays with a reviewer who does nothing, in seconds.
LEASE_S = 600


class Item(Struct, frozen=True, kw_only=True):
    """A decision as its reviewer sees it.

    `decision` is its row, `event` its event with body and private part (None if erased), `ratings` the
    standing verdicts that may be shown; `hidden` counts those that may not.
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
        """The outcomes that the model chose from, loosest first; empty where it was not asked."""
        return tuple(self.decision["probabilities"])


class ReviewQueue(Protocol):
    """Where decisions come from, and where verdicts go."""

    def load(self, decision_id: str) -> dict[str, Json]:
        """One decision with its event (`Reader.trace`)."""

    def row(self, decision_id: str) -> Mapping[str, Json]:
        """Its row of the table of decisions alone."""

    def reviews(self, decision_id: str) -> Sequence[Mapping[str, Json]]:
        """Every row of the table of reviews about it, each with the `outcome` that was served."""

    def record(self, record: records.Record) -> str:
        """Record something and return its id. Raises RequestError; `conflict` where another has the lease."""


Step = Literal["judged", "skipped", "delegated"]


class Done(Struct, frozen=True, kw_only=True):
    """One step of the session, for who wants to take it back."""

    step: Step
    place: int
    review_id: str | None = None
    verdict: str | None = None


class Session:
    """A reviewer going through a queue. `open` first; `item` is None at the end of the queue.

    Whatever the queue raises passes through, and nothing that was not kept counts as done.
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
        #: Decisions passed over because somebody else had them, or had judged them in the meantime.
        self.passed_over = 0

    def count(self, step: Step) -> int:
        """How often this was done and not taken back."""
        return sum(one.step == step for one in self.done)

    # ------------------------------------------------------------ where we are

    def open(self, place: int | None = None, *, direction: int = 1) -> Item | None:
        """Show the decision at `place` of the queue, or the next one that is free; None if there is none."""
        self._let_go()
        self.place = self.place if place is None else place
        while 0 <= self.place < len(self.picks):
            item = self._take(self.picks[self.place])
            if item is not None:
                self.item = item
                self._visited.add(self.place)
                return item
            self.passed_over += 1
            self.place += direction
        self.place = max(0, min(self.place, len(self.picks)))
        return None

    def back(self) -> Item | None:
        """Show the decision before this one, judged or not; the first has none before it."""
        if self.place == 0:
            return self.item
        return self.open(self.place - 1, direction=-1) or self.open(self.place)

    def find(self, text: str) -> Item | None:
        """Show the next decision whose question, reasoning or id holds `text`, in any case."""
        low = text.casefold()
        for step in range(1, len(self.picks) + 1):
            place = (self.place + step) % len(self.picks)
            row = self._queue.row(self.picks[place].decision_id)
            told = (row["situation"], row["reasoning"], row["actor"], row["entity"], row["decision_id"])
            if low in repr(told).casefold():
                return self.open(place)
        return None

    def close(self) -> None:
        """Give the decision that is shown to others; where that cannot be told, its lease runs out."""
        with suppress(ThorPolicyError):
            self._let_go()

    def _take(self, pick: Pick) -> Item | None:
        if self._settled(pick):
            return None
        if not self._lease(pick):
            return None
        found, ratings = self._queue.load(pick.decision_id), self._ratings(pick)
        shown = tuple(one for one in ratings if not pick.blind or one.reviewer == self.reviewer)
        return Item(
            pick=pick,
            decision=found["decision"],
            event=found["event"],
            ratings=shown,
            hidden=len(ratings) - len(shown),
        )

    def _lease(self, pick: Pick) -> bool:
        """Keep others away from a decision; False if somebody else has it, or has settled it meanwhile."""
        begun_s = self._clock()
        lease = records.Assignment(
            decision_id=pick.decision_id, reviewer=self.reviewer, type="lease", seconds=self._lease_s
        )
        try:
            self._queue.record(lease)
        except RequestError as error:
            if error.code in ("conflict", "not_found"):
                return False
            raise
        if self._settled(pick):  # in the moment before the lease was ours
            self._release(pick.decision_id)
            return False
        self._leased_s = begun_s
        return True

    def _settled(self, pick: Pick) -> bool:
        """True if others have done since what the queue wanted done."""
        if self.place in self._visited or pick.others is None:
            return False
        ratings = self._ratings(pick)
        others = [one for one in ratings if one.reviewer != self.reviewer]
        if pick.adjudicates:
            return not agreement.disagree(ratings)
        return len(others) > pick.others

    def _ratings(self, pick: Pick) -> list[Rating]:
        return agreement.standing(self._queue.reviews(pick.decision_id))

    def _let_go(self) -> None:
        item, self.item = self.item, None
        if item is not None:
            self._release(item.decision_id)

    def _release(self, decision_id: str) -> None:
        try:
            self._queue.record(
                records.Assignment(decision_id=decision_id, reviewer=self.reviewer, type="release")
            )
        except RequestError as error:
            if error.code != "conflict":  # the lease ran out and somebody else has it: nothing is ours
                raise

    # ------------------------------------------------------------ what is done

    def judge(
        self, verdict: records.Judgement, *, decision: str | None = None, reasoning: str | None = None
    ) -> str:
        """Keep a verdict on the decision that is shown, and show the next; returns the review's id.

        Raises RequestError: `bad_request` if the right outcome is the one that was served, `conflict` if the
        lease ran out and somebody else has taken the decision.
        """
        item = self._shown()
        if decision is not None and decision == item.decision["decision"]:
            raise RequestError("bad_request", f"decision: {decision} was served; accept it, or name another")
        if self._clock() - self._leased_s >= self._lease_s - 1 and not self._lease(item.pick):
            self.item = None  # and is somebody else's; `open` shows the next
            raise RequestError("conflict", "your time with this decision ran out and somebody else took it")
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
        self.item = None  # the verdict ended the lease
        self._note("judged", review_id=review_id, verdict=verdict)
        return review_id

    def skip(self) -> None:
        """Leave the decision that is shown to others, and show the next."""
        self._shown()
        self._let_go()
        self._note("skipped")

    def delegate(self, to: str) -> None:
        """Assign the decision that is shown to somebody else, and show the next."""
        item = self._shown()
        self._queue.record(
            records.Assignment(
                decision_id=item.decision_id, reviewer=to, type="assign", given_by=self.reviewer
            )
        )
        self._let_go()
        self._note("delegated")

    def undo(self) -> Done | None:
        """Take the last step back and show its decision again; None if there is nothing left to take back.

        A verdict is taken back by a record that says which one stands now: that of this reviewer before it,
        or of somebody else, or none. A delegated decision is unassigned.
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
        left = agreement.standing([row for row in rows if row["id"] != review_id])
        stands: Any = left[-1].verdict if left else None
        row = self._queue.row(decision_id)
        expected = row["expected_decision"]
        return records.Review(
            decision_id=decision_id,
            reviewer=self.reviewer,
            verdict="withdrawn",
            withdraws=review_id,
            stands=stands,
            decision=left[-1].decision if left else None,
            right=row["decision"] in expected.split("|") if expected and not left else None,
        )

    def _shown(self) -> Item:
        if self.item is None:
            raise RequestError("not_found", "no decision is shown")
        return self.item

    def _note(self, step: Step, **told: str) -> None:
        self.done.append(Done(step=step, place=self.place, **told))
        self._visited.add(self.place)
        self.open(self.place + 1)
