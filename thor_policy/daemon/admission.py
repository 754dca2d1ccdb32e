"""Who may enter: state, room and deadline of each request, and the work that an admitted one asks for.

Owns the checks that a request passes before it gets a ticket. Invariant: what is admitted has a ticket
and a deadline; what is not raises RequestError, and nothing of it is kept. No socket. Main thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.approvals import Person
from thor_policy.core.decisions import Governing
from thor_policy.core.errors import RequestError, shutting_down
from thor_policy.core.fair_queue import Lane
from thor_policy.core.idempotency import Mark
from thor_policy.core.ids import new_id
from thor_policy.core.requests import Annotations, Caller, Claimed, Json, Request, Role, Together
from thor_policy.core.results import PriorRecord
from thor_policy.daemon.inflight import Answer, InFlight
from thor_policy.daemon.quota import JournalQuota
from thor_policy.daemon.shares import check_in_time
from thor_policy.journal.events import Bounds
from thor_policy.protocol.messages import EvaluateRequest, RecordRequest
from thor_policy.protocol.replies import decision_item, recorded_item, task_item
from thor_policy.security.roles import PacksFor, claimed

#: How long a job (maintenance, a change of packs) may take before its sender gets `expired`, in seconds.
JOB_TIMEOUT_S = 3_600

#: What a request may need: a question needs both, a record the journal alone.
Part: TypeAlias = Literal["journal", "engine"]


class RulesQueue(Protocol):
    """Where requests are decided (`daemon.rules_thread`)."""

    def expected_ms(self, lane: Lane) -> int:
        """How long the rules of the requests before one in this lane will take, in milliseconds."""

    def submit(self, request: Request, lane: Lane) -> None: ...

    def drop(self, lane: Lane) -> list[Request]:
        """Take out the requests of a lane that no decision was begun for, and return them."""


class Recorder(Protocol):
    """Where records are kept (`journal.writer`)."""

    def write(
        self,
        record: records.Record,
        *,
        record_id: str,
        at: float,
        caller: Caller,
        ticket: int,
        idempotency: str | None,
        claimed: Claimed,
        governing: Governing | None,
        person: Person | None,
        recorder: Person | None,
        bounds: Bounds | None,
    ) -> None:
        """Take a record that `caller` sent at Unix time `at`; returns at once and does not fail.

        What became of it comes to the mailbox with `ticket`: committed, or why not.
        """

    def mark(self, caller: Caller, key: str, content: str) -> Mark:
        """The mark under which a request of `caller` with an idempotency key is recorded; any thread."""

    def recall(self, digest: str, on_lookup: Callable[[PriorRecord | RequestError | None], None]) -> None:
        """Look up what was recorded for an idempotency key; returns at once, any thread calls `on_lookup`."""


class Arrival(Struct, frozen=True):
    """Who sent a request, whose share it takes, and when: Unix time in seconds, and monotonic nanoseconds."""

    caller: Caller
    lane: Lane
    received_at: float
    received_ns: int
    roles: Collection[Role]


class Admission:
    """Admits requests to `in_flight`. `refusal` says why a part can take nothing new, None while it can.

    `find_pack` gets the name of a pack and the names of those that the caller may name besides the active one
    (None: any); it raises RequestError where no resident pack has that name, or the caller may not name it.
    """

    def __init__(
        self,
        config: Config,
        in_flight: InFlight,
        rules: RulesQueue,
        *,
        refusal: Callable[[Part], RequestError | None],
        find_pack: Callable[[str, Collection[str] | None], object],
        quota: JournalQuota,
    ) -> None:
        #: Replaced as a whole when settings are read again.
        self.config = config
        self.packs_for = PacksFor(config.packs_for)
        #: True once the daemon is to stop: nothing is admitted any more. Any thread may set it.
        self.stopping = False
        self.refusal = refusal
        self._in_flight = in_flight
        self._rules = rules
        self._find_pack = find_pack
        self._quota = quota

    def question(
        self,
        message: EvaluateRequest,
        answer: Answer,
        arrival: Arrival,
        together: Together | None = None,
    ) -> Request:
        """The admitted request of a question; `answer` gets its reply."""
        if message.idempotency is None:
            self.check_question(message, arrival)
        else:  # what was recorded is sent again even where nothing new would be decided
            self._check_open("journal")
        self._check_room(arrival.lane)
        deadline_ns = arrival.received_ns + self._deadline_ms(message) * 1_000_000
        return Request(
            ticket=self._in_flight.admit(
                answer,
                received_ns=arrival.received_ns,
                deadline_ns=deadline_ns,
                lane=arrival.lane,
                explain=message.explain,
            ),
            evaluation=message.evaluation,
            caller=arrival.caller,
            received_at=arrival.received_at,
            received_ns=arrival.received_ns,
            deadline_ns=deadline_ns,
            explain=message.explain,
            enrich=message.enrich,
            annotations=self._annotations(message, arrival),
            pack=message.pack,
            together=together,
        )

    def record(self, message: RecordRequest, answer: Answer, arrival: Arrival) -> tuple[int, str]:
        """The ticket of a record, and its new id."""
        self._check_open("journal")
        self._check_quota(arrival)
        self._check_room(arrival.lane)
        record_id = new_id()
        deadline_ns = arrival.received_ns + self._deadline_ms(message) * 1_000_000
        ticket = self._in_flight.admit(
            answer,
            received_ns=arrival.received_ns,
            deadline_ns=deadline_ns,
            lane=arrival.lane,
            record_id=record_id,
        )
        return ticket, record_id

    def job(self, answer: Answer, arrival: Arrival, *needs: Part) -> int:
        """The ticket of a job that needs these parts."""
        self._check_open(*needs)
        self._check_room(arrival.lane)
        deadline_ns = arrival.received_ns + JOB_TIMEOUT_S * 1_000_000_000
        return self._in_flight.admit(
            answer, received_ns=arrival.received_ns, deadline_ns=deadline_ns, lane=arrival.lane
        )

    def claimed(self, statement: str, arrival: Arrival) -> Claimed:
        """Whether a statement in a request is only a claim of its caller."""
        return claimed(statement, arrival.roles, self.config.count_from)

    def _annotations(self, message: EvaluateRequest, arrival: Arrival) -> Annotations:
        if message.annotations == Annotations():
            return message.annotations
        return replace(message.annotations, claimed=self.claimed("annotations", arrival) != "no")

    def check_pack(self, name: str | None, arrival: Arrival) -> None:
        """Refuse a pack that is not resident, or that the caller may not name."""
        if name is not None:
            self._find_pack(name, self.packs_for.of(arrival.caller, arrival.roles))

    def check_question(self, message: EvaluateRequest, arrival: Arrival) -> None:
        """Refuse a question that cannot be decided, or that would wait past its deadline."""
        self.check_pack(message.pack, arrival)
        self._check_open("journal", "engine")
        self._check_quota(arrival)
        check_in_time(self._rules.expected_ms(arrival.lane), self._deadline_ms(message))

    def _deadline_ms(self, message: EvaluateRequest | RecordRequest) -> int:
        return message.deadline_ms or self.config.deadline_ms

    def _check_open(self, *needs: Part) -> None:
        """Refuse any request while stopping, and while a part that it needs takes nothing."""
        if self.stopping:
            raise shutting_down()
        for part in needs:
            if (error := self.refusal(part)) is not None:
                raise error

    def _check_quota(self, arrival: Arrival) -> None:
        """Refuse a caller that has used its journal quota."""
        self._quota.check(arrival.caller.who, self.config.journal_quota_mb, arrival.received_ns)

    def _check_room(self, lane: Lane) -> None:
        """Refuse a request of a caller, or of a connection, that holds its part of the places in flight."""
        places, most = self._in_flight.places, self.config.max_in_flight
        if not places.has_place(lane, most):
            raise RequestError(
                "busy",
                f"{places.held(lane.share)} requests of {lane.share} are in flight, {places.total} in all; "
                f"the limit is {most} in all, and as many for each caller as are free (max_in_flight)",
                retry_after_ms=self._rules.expected_ms(lane) + 1,
            )


class Work(Protocol):
    """What an admitted request asks for, done at most once for each idempotency key."""

    def begin(self, idempotency: str | None) -> None:
        """Do it, recorded under this idempotency mark. Raises RequestError."""

    def repeat(self, prior: PriorRecord) -> dict[str, Json]:
        """The reply, made of what was recorded before."""


class Question(Struct, frozen=True):
    """An admitted question, to be decided by `rules`, and the model if they leave it the answer."""

    admission: Admission
    rules: RulesQueue
    message: EvaluateRequest
    request: Request
    arrival: Arrival

    def begin(self, idempotency: str | None) -> None:
        if idempotency is None:
            self.rules.submit(self.request, self.arrival.lane)
            return
        self.admission.check_question(self.message, self.arrival)  # time has passed since it was admitted
        self.rules.submit(replace(self.request, idempotency=idempotency), self.arrival.lane)

    def repeat(self, prior: PriorRecord) -> dict[str, Json]:
        assert prior.decision is not None  # noqa: S101  the digest of its content says that it was a question
        total_ms = (time.monotonic_ns() - self.request.received_ns) / 1e6
        explained = self.request.explain == "inline"
        return decision_item(prior.decision, explained=explained, commit_ms=0.0, total_ms=total_ms)


@dataclass(frozen=True)
class Record:
    """An admitted record, to be kept by `recorder` under `record_id`.

    `governing` is the pack that governs it, if it reports a decision. `signers` are who gives a verdict on a
    task of approvals, and who records it; `bounds` limit the open tasks.
    """

    recorder: Recorder
    record: records.Record
    record_id: str
    ticket: int
    arrival: Arrival
    claimed: Claimed
    governing: Governing | None
    signers: tuple[Person | None, Person | None] = (None, None)
    bounds: Bounds | None = None

    def begin(self, idempotency: str | None) -> None:
        self.recorder.write(
            self.record,
            record_id=self.record_id,
            at=self.arrival.received_at,
            caller=self.arrival.caller,
            ticket=self.ticket,
            idempotency=idempotency,
            claimed=self.claimed,
            governing=self.governing,
            person=self.signers[0],
            recorder=self.signers[1],
            bounds=self.bounds,
        )

    def repeat(self, prior: PriorRecord) -> dict[str, Json]:
        more = (
            {}
            if prior.task is None or prior.moment is None
            else {"task": task_item(prior.task, prior.moment)}
        )
        return recorded_item(prior.id, prior.kind, prior.seq, more)
