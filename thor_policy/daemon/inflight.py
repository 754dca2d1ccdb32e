"""Requests in flight: what each still waits for, and when it is answered.

Owns tickets and deadlines. Invariant: each ticket is answered exactly once, with a decision or a record's
id only after the journal said that it is committed. No socket, no clock: outcomes, commits and times come
in as arguments. Main thread.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.core.decisions import Decision
from thor_policy.core.errors import RequestError
from thor_policy.core.fair_queue import OWN, Lane
from thor_policy.core.requests import Explain, Json
from thor_policy.core.results import Committed, EngineResult, Explained, JobDone, Refused, Unexplained
from thor_policy.daemon.shares import Places
from thor_policy.protocol.messages import HTTP_STATUS
from thor_policy.protocol.replies import decision_item, explanation_item, more_of, recorded_item, task_item
from thor_policy.telemetry.metrics import Metrics
from thor_policy.telemetry.span_mapping import Served

#: Takes the answer to one request: `decision` and `context`, or `recorded`, or why there is none.
Answer: TypeAlias = Callable[[dict[str, Json] | RequestError], None]
#: Takes what was recorded: kind, decision id, its sequence number in the journal, and what gives the members
#: of the event, if somebody wants them.
Publish: TypeAlias = Callable[[str, str, int, Callable[[], dict[str, Json]]], None]


class _Pending(Struct):
    """One request in flight. It is answered when nothing it waits for is missing.

    A record (with `record_id`) waits for its commit alone, a job that is recorded with its answer `held`; the
    members below are those of a question.
    """

    answer: Answer
    received_ns: int
    lane: Lane
    record_id: str | None = None
    held: dict[str, Json] | None = None
    explain: Explain = "none"
    decision: Decision | None = None
    committed: bool = False
    commit_ms: float = 0.0
    awaits_explanation: bool = False


class InFlight:
    """All requests that were admitted and not answered; `counters` gets every loss by name,
    `metrics` the times. `on_served` takes each recorded decision after its reply was handed over."""

    def __init__(
        self,
        *,
        publish: Publish,
        counters: Counter[str],
        metrics: Metrics,
        on_served: Callable[[Served], None] | None = None,
    ) -> None:
        self._on_served = on_served
        self._publish = publish
        self._counters = counters
        self._metrics = metrics
        self._tickets = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._deadlines: list[tuple[int, int]] = []
        self._unrecorded: dict[tuple[int, str], Decision | Explained] = {}
        #: Who holds how many of the places in flight.
        self.places = Places()

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, ticket: int) -> bool:
        """True while the ticket is not answered."""
        return ticket in self._pending

    @property
    def next_deadline_ns(self) -> int | None:
        """When `expire` next has something to do, monotonic nanoseconds."""
        return self._deadlines[0][0] if self._deadlines else None

    def admit(
        self,
        answer: Answer,
        *,
        received_ns: int,
        deadline_ns: int,
        lane: Lane = OWN,
        explain: Explain = "none",
        record_id: str | None = None,
    ) -> int:
        """A ticket for a question, or for the record `record_id`, whose answer goes to `answer`."""
        ticket = next(self._tickets)
        self._pending[ticket] = _Pending(
            answer=answer, received_ns=received_ns, lane=lane, explain=explain, record_id=record_id
        )
        self.places.take(lane)
        heapq.heappush(self._deadlines, (deadline_ns, ticket))
        return ticket

    def settle(self, ticket: int, answer: dict[str, Json] | RequestError) -> None:
        """Answer a ticket, unless it is answered, with what is recorded already, or never will be."""
        if ticket in self._pending:
            self._answer(ticket, answer)

    def on_outcome(self, ticket: int, outcome: EngineResult | JobDone, now_ns: int) -> None:
        """Take a result of the engine thread, which comes before its commit, or of a job."""
        pending = self._pending.get(ticket)
        if isinstance(outcome, Decision):
            self._unrecorded[ticket, "decision"] = outcome
        elif isinstance(outcome, Explained):
            self._unrecorded[ticket, "explanation"] = outcome
        if pending is None:
            return
        if isinstance(outcome, Refused):
            self._answer(ticket, outcome.error)
        elif isinstance(outcome, JobDone):
            if outcome.record is None or isinstance(outcome.answer, RequestError):
                self._answer(ticket, outcome.answer)
            else:
                pending.held = outcome.answer
                outcome.record()
        elif isinstance(outcome, Decision):
            pending.decision = outcome
            pending.awaits_explanation = pending.explain == "inline" and outcome.explanation is None
        elif isinstance(outcome, Unexplained):
            pending.awaits_explanation = False
            self._answer_if_complete(ticket, pending, now_ns)

    def on_commit(self, ticket: int, commit: Committed, now_ns: int) -> None:
        """Take from the journal that an event is on disk, or that it never will be."""
        kinds = f"{commit.kind}es" if commit.kind == "search" else f"{commit.kind}s"
        if commit.error is None:
            self._counters[f"{kinds}_recorded"] += 1
        elif HTTP_STATUS[commit.error] >= 500:  # below that the request was at fault, and nothing is lost
            self._counters[f"{kinds}_lost"] += 1
        recorded = self._unrecorded.pop((ticket, commit.kind), None)
        if commit.error is None and recorded is not None:
            self._measure_recorded(recorded, commit)
            self._publish_recorded(recorded, commit)
        if commit.error is None:
            self.publish_task(commit)
        pending = self._pending.get(ticket)
        if pending is None:
            if commit.kind != "explanation":  # which nobody need wait for
                self._counters[f"{kinds}_late"] += 1
            if self._on_served is not None and commit.error is None and isinstance(recorded, Decision):
                self._on_served(Served(recorded, commit.commit_ms, None))
        elif commit.kind == "explanation":
            pending.awaits_explanation = False
            if commit.error is None and pending.decision and isinstance(recorded, Explained):
                pending.decision = replace(pending.decision, explanation=recorded.explanation)
            self._answer_if_complete(ticket, pending, now_ns)
        elif commit.error is not None:
            why = "the disk is full" if commit.error == "disk_full" else "the journal failed"
            self._answer(
                ticket,
                RequestError(
                    commit.error,
                    commit.message or f"it could not be recorded: {why}",
                    reason_code=commit.reason_code,
                ),
            )
        elif pending.held is not None:
            self._answer(ticket, pending.held)
        elif pending.record_id is not None:
            self._answer(ticket, recorded_item(pending.record_id, commit.kind, commit.seq, more_of(commit)))
        else:
            pending.committed, pending.commit_ms = True, commit.commit_ms
            self._answer_if_complete(ticket, pending, now_ns)

    def expire(self, now_ns: int) -> None:
        """Answer what is due: with the decision if it is committed, otherwise with `expired`."""
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, ticket = heapq.heappop(self._deadlines)
            pending = self._pending.get(ticket)
            if pending is None:
                continue
            if pending.committed:
                self._counters["explanations_late"] += 1
                self._answer_decision(ticket, pending, now_ns)
            else:
                message = "no decision was recorded before the deadline"
                if pending.record_id is not None:
                    message = f"{pending.record_id} was not committed before the deadline; it may be yet"
                self._answer(ticket, RequestError("expired", message))

    def refuse_all(self, error: RequestError, now_ns: int) -> None:
        """Answer everything at once: with what is committed, otherwise with `error`."""
        for ticket, pending in list(self._pending.items()):
            if pending.committed:
                self._answer_decision(ticket, pending, now_ns)
            else:
                self._answer(ticket, error)

    def _answer_if_complete(self, ticket: int, pending: _Pending, now_ns: int) -> None:
        if pending.committed and not pending.awaits_explanation:
            self._answer_decision(ticket, pending, now_ns)

    def _answer_decision(self, ticket: int, pending: _Pending, now_ns: int) -> None:
        assert pending.decision is not None  # noqa: S101  committed, so the engine thread reported it before
        self._counters[f"served_{pending.decision.tier}"] += 1
        inline, total_ms = pending.explain == "inline", (now_ns - pending.received_ns) / 1e6
        self._metrics.served(pending.decision, pending.commit_ms, total_ms, waited=inline)
        item = decision_item(
            pending.decision, explained=inline, commit_ms=pending.commit_ms, total_ms=total_ms
        )
        self._answer(ticket, item)
        if self._on_served is not None:
            self._on_served(Served(pending.decision, pending.commit_ms, total_ms))

    def _answer(self, ticket: int, answer: dict[str, Json] | RequestError) -> None:
        pending = self._pending.pop(ticket)
        self.places.give_back(pending.lane)
        pending.answer(answer)

    def _measure_recorded(self, recorded: Decision | Explained, commit: Committed) -> None:
        if isinstance(recorded, Decision):
            self._metrics.decided(recorded, commit.commit_ms)
        else:
            self._metrics.explained(recorded.explanation.explain_ms)

    def publish_task(self, commit: Committed) -> None:
        """Publish what became of a task of approvals, if the event changed one."""
        if commit.task is not None and commit.moment is not None:
            members = partial(task_item, commit.task, commit.moment)
            self._publish("approval", commit.task.decision_id, commit.seq, members)

    def _publish_recorded(self, recorded: Decision | Explained, commit: Committed) -> None:
        if isinstance(recorded, Decision):
            taken_ms = commit.commit_ms
            members = partial(decision_item, recorded, explained=True, commit_ms=taken_ms, total_ms=taken_ms)
            self._publish("decision", recorded.id, commit.seq, members)
        else:
            members = partial(explanation_item, recorded.explanation)
            self._publish("explanation", recorded.decision_id, commit.seq, members)
