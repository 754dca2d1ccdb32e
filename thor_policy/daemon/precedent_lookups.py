"""Precedents are looked up before a question reaches the rules.

Owns the questions that wait for their precedents. Invariant: each submitted request reaches the rules exactly
once, with its precedents, or after its budget without them and with a note; a request of a pack without the
section goes straight on. Whoever submits never waits: the recall thread or a timer hands over.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from thor_policy.core.errors import RequestError
from thor_policy.core.fair_queue import Lane
from thor_policy.core.precedents import Precedent
from thor_policy.core.requests import Request
from thor_policy.daemon.admission import RulesQueue
from thor_policy.daemon.recall_thread import URGENT, RecallThread
from thor_policy.policy.precedent_specs import PrecedentsSpec
from thor_policy.policy.residents import Residents
from thor_policy.trace.precedents import Recall

#: Part of the time to the deadline that a look-up may take at most.
_SHARE = 0.5


@dataclass(frozen=True)
class _Pending:
    """A request that waits for its precedents."""

    request: Request
    lane: Lane


class PrecedentLookups:
    """Takes the place of the rules' queue: `rules` gets requests when their precedents were looked up.

    `residents` gives the packs of now.
    """

    def __init__(self, rules: RulesQueue, residents: Callable[[], Residents], recall: RecallThread) -> None:
        self._rules, self._residents, self._recall = rules, residents, recall
        self._due = threading.Condition()
        self._pending: dict[int, _Pending] = {}
        #: When each look-up is given up: monotonic nanoseconds, ticket.
        self._deadlines: list[tuple[int, int]] = []
        self._stopping = False
        self._timer: threading.Thread | None = None
        #: Look-ups that ended in time, that were given up, and that failed; with those of the recall thread.
        self.counters = recall.counters
        self.counters.update(lookups=0, lookups_late=0, lookups_failed=0)

    def expected_ms(self, lane: Lane) -> int:
        """How long the rules of the requests before one in this lane will take, in milliseconds."""
        return self._rules.expected_ms(lane)

    def submit(self, request: Request, lane: Lane) -> None:
        """Look up the precedents of an admitted request, then queue it for the rules; returns at once."""
        residents = self._residents()
        try:
            if request.pack is not None:
                pack = residents.named(request.pack).pack
            else:
                judges = (each.pack for each in residents if each.pack.info.sha256 == request.judge)
                pack = next(judges, residents.active.pack)
        except RequestError:  # it was unloaded since; the rules thread says so
            self._rules.submit(request, lane)
            return
        spec = pack.manifest.precedents
        of_test = request.annotations.scenario_id is not None and not request.annotations.claimed
        if spec is None or of_test:  # what a suite proves must not depend on the journal
            self._rules.submit(request, lane)
            return
        request = replace(request, judge=pack.info.sha256)
        filters = spec.filters(pack.info, request.evaluation)
        ticket = request.ticket

        def work(recall: Recall) -> None:
            if ticket in self._pending:
                self._hand_over(
                    ticket,
                    recall.precedents(
                        request.evaluation, spec.k, spec.least_similarity, filters, now=request.received_at
                    ),
                    recall.problem and f"similarity was not compared: {recall.problem}",
                )

        def failed(error: Exception) -> None:
            self._give_up(ticket, f"the look-up failed: {error}", "lookups_failed")

        self._wait(request, lane, spec)
        try:
            self._recall.submit(work, failed, urgency=URGENT)
        except RequestError as error:
            failed(error)

    def drop(self, lane: Lane) -> list[Request]:
        """Take out the requests of a lane that no decision was begun for, and return them."""
        with self._due:
            own = [ticket for ticket, pending in self._pending.items() if pending.lane == lane]
            dropped = [self._pending.pop(ticket).request for ticket in own]
        return [*dropped, *self._rules.drop(lane)]

    def stop(self) -> None:
        """End the timer; requests that wait still are not handed over."""
        with self._due:
            self._stopping = True
            self._pending.clear()
            self._due.notify()
        if self._timer is not None:
            self._timer.join(1.0)

    # ------------------------------------------------------------ waiting

    def _wait(self, request: Request, lane: Lane, spec: PrecedentsSpec) -> None:
        now_ns = time.monotonic_ns()
        latest_ns = now_ns + int((request.deadline_ns - now_ns) * _SHARE)
        deadline_ns = min(latest_ns, now_ns + spec.budget_ms * 1_000_000)
        with self._due:
            self._pending[request.ticket] = _Pending(request, lane)
            heapq.heappush(self._deadlines, (deadline_ns, request.ticket))
            if self._timer is None:
                self._timer = threading.Thread(target=self._watch, name="lookups", daemon=True)
                self._timer.start()
            if self._deadlines[0][1] == request.ticket:
                self._due.notify()

    def _hand_over(self, ticket: int, precedents: tuple[Precedent, ...], note: str | None) -> None:
        """Queue a request for the rules with its precedents, unless that was done before."""
        with self._due:
            pending = self._pending.pop(ticket, None)
        if pending is not None:
            self.counters["lookups"] += 1
            request = replace(pending.request, precedents=precedents, precedents_note=note)
            self._rules.submit(request, pending.lane)

    def _give_up(self, ticket: int, note: str, counter: str) -> None:
        with self._due:
            pending = self._pending.pop(ticket, None)
        if pending is not None:
            self.counters[counter] += 1
            self._rules.submit(replace(pending.request, precedents_note=note[:200]), pending.lane)

    def _watch(self) -> None:
        """Give up look-ups whose time is over, until the stop."""
        while True:
            with self._due:
                while not self._stopping:
                    now_ns = time.monotonic_ns()
                    left_s = (self._deadlines[0][0] - now_ns) / 1e9 if self._deadlines else None
                    if left_s is not None and left_s <= 0:
                        break
                    self._due.wait(left_s)
                if self._stopping:
                    return
                _, ticket = heapq.heappop(self._deadlines)
            self._give_up(ticket, "none were looked up within the budget", "lookups_late")
