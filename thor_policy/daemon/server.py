"""The main thread: every request in, every reply out.

Owns the way of a request through the daemon, and the events. Invariant: each request that arrives gets
exactly one reply, or is counted as lost with its peer or its key; what its caller may not do is refused
before anything else happens to it. Nothing here waits for the model or the disk.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Protocol

from msgspec import structs

from thor_policy import __version__
from thor_policy.config import LIVE_SETTINGS, Config, with_live_settings
from thor_policy.core import records
from thor_policy.core.approvals import Person
from thor_policy.core.decisions import Governing
from thor_policy.core.errors import ConfigError, DiskFull, RequestError, Stalled
from thor_policy.core.fair_queue import Lane
from thor_policy.core.recall import SimilarQuery
from thor_policy.core.requests import Caller, Json, Role, Together
from thor_policy.core.results import JobDone, KeyLookup, PriorRecord, Refused
from thor_policy.core.sources import Push
from thor_policy.core.status import PartsStatus, ReloadStatus, Status, sum_of
from thor_policy.core.trace_context import parent_in
from thor_policy.daemon.admission import (
    Admission,
    Arrival,
    Part,
    Question,
    Record,
    Recorder,
    RulesQueue,
    Work,
)
from thor_policy.daemon.batches import Batch
from thor_policy.daemon.contention import Contention
from thor_policy.daemon.control_endpoint import Snapshot
from thor_policy.daemon.endpoints import Endpoints
from thor_policy.daemon.idempotency import IdempotencyKeys, Keyed
from thor_policy.daemon.inbox import Inbox
from thor_policy.daemon.inflight import Answer, InFlight
from thor_policy.daemon.peers import Received, Sender
from thor_policy.daemon.quota import JournalQuota
from thor_policy.daemon.relays import Relays
from thor_policy.daemon.shares import Refusals
from thor_policy.daemon.sockets import Mailbox, stop_on_signals
from thor_policy.journal.events import Bounds
from thor_policy.protocol.messages import (
    ApprovalsRequest,
    EvaluateBatchRequest,
    EvaluateRequest,
    Idempotency,
    MaintenanceRequest,
    Message,
    PushRequest,
    RecordRequest,
    SearchRequest,
    SimilarRequest,
    StatusRequest,
    op_of,
)
from thor_policy.protocol.replies import encode_error, encode_event, encode_reply
from thor_policy.protocol.requests import decode_request, recover_request_id
from thor_policy.protocol.texts import TextLimits
from thor_policy.security.people import People
from thor_policy.security.roles import PacksFor, Roles, authorise
from thor_policy.telemetry import clocks, logs
from thor_policy.telemetry.metrics import Families, Metrics
from thor_policy.telemetry.span_mapping import Served

log = logging.getLogger(__name__)

#: Requests read, and the time spent on reading and on handling them in nanoseconds, before replies and
#: deadlines get their turn. What was read waits until the reading ends, and refusing takes time.
_READ_BURST, _READ_NS, _HANDLE_NS = 64, 2_000_000, 5_000_000
#: Time spent on refusing what exceeds a share, in nanoseconds, after which the loop rests as long, and the
#: longest such rest, in seconds.
_REFUSING_NS, _REST_S = 500_000, 0.002
#: How long an idle loop sleeps at most, in milliseconds.
_IDLE_MS = 1_000


class MaintenanceQueue(Protocol):
    """The thread for work on the journal (`daemon.maintenance_thread`); answers come through the mailbox."""

    def submit(self, ticket: int, maintenance: records.Maintenance, caller: Caller) -> None: ...


class PackChanges(Protocol):
    """The thread that changes packs (`daemon.pack_manager`); answers come through the mailbox."""

    def submit(self, ticket: int, control: records.Control, caller: Caller) -> None: ...

    def reload(self) -> None:
        """Load again the packs that changed on disk; from a signal handler too."""


class TakePush(Protocol):
    """Keeps the values that `caller` pushed at Unix time `at`; returns at once. Raises RequestError."""

    def __call__(self, push: Push, caller: Caller, *, at: float, now_ns: int) -> None: ...


class FindTasks(Protocol):
    """Looks up tasks of approvals that a caller may see; `on_done` gets the answer on any thread."""

    def __call__(
        self,
        query: records.ApprovalQuery,
        caller: Caller,
        roles: Collection[Role],
        on_done: Callable[[JobDone], None],
    ) -> None: ...


class FindSimilar(Protocol):
    """Searches for precedents; `on_done` gets the answer on any thread. Raises RequestError if it is busy."""

    def __call__(self, query: SimilarQuery, on_done: Callable[[JobDone], None]) -> None: ...


class Spans(Protocol):
    """Takes decisions whose replies were handed over, to make spans of them; it never waits."""

    counters: Counter[str]

    def offer(self, served: Served) -> None: ...


class Search(Protocol):
    """Searches; the answer comes to the mailbox. Raises RequestError where it cannot begin."""

    def __call__(self, message: SearchRequest, caller: Caller, ticket: int, *, at: float) -> None: ...


class Server:
    """Serves one endpoint, whose lock the caller holds (`endpoint_lock`).

    `describe` says how the other parts are. `find_pack` is that of `Admission`; `long_texts` gives the limits
    of texts that a pack states. Without `pack_changes` no pack can be changed, without `push` no value
    pushed, without `approvals` no task is found, without `similar` no precedent, without `search` nothing is
    searched. `reread` reads the settings again. `refusal` says why a part can take nothing new, None while it
    can: without the engine only records are admitted, without the journal nothing. Raises ConfigError if the
    endpoint cannot be opened.
    """

    def __init__(
        self,
        config: Config,
        *,
        mailbox: Mailbox,
        rules: RulesQueue,
        recorder: Recorder,
        maintenance: MaintenanceQueue,
        describe: Callable[[], PartsStatus],
        find_pack: Callable[[str, Collection[str] | None], object] = lambda name, listed: None,
        long_texts: Callable[[str | None], Mapping[str, int]] = lambda _: {},
        govern: Callable[[str], Governing | None] = lambda _: None,
        refusal: Callable[[Part], RequestError | None] = lambda _: None,
        pack_changes: PackChanges | None = None,
        push: TakePush | None = None,
        approvals: FindTasks | None = None,
        similar: FindSimilar | None = None,
        search: Search | None = None,
        spans: Spans | None = None,
        contention: Contention | None = None,
        reread: Callable[[], Config] | None = None,
    ) -> None:
        self._config = config
        self._mailbox = mailbox
        self._rules = rules
        self._recorder = recorder
        self._maintenance = maintenance
        self._describe = describe
        self._pack_changes = pack_changes
        self._push = push
        self._approvals = approvals
        self._similar = similar
        self._search = search
        self._people = People(config.people)
        self._long_texts = long_texts
        self._govern = govern
        self._reread = reread
        self._reload_due = False
        self._reload_status: ReloadStatus | None = None
        #: Why the daemon halts, where a full disk is to halt it.
        self._halted_by: RequestError | None = None
        self._started_ns = clocks.boot_ns()
        self.counters: Counter[str] = Counter()
        self._roles = Roles(config.roles)
        self._metrics = Metrics()
        #: By what is logged, so that a flood of one message hides no other.
        self._limits: defaultdict[str, logs.Limit] = defaultdict(logs.Limit)
        self._spans = spans
        self._in_flight = InFlight(
            publish=self._publish,
            counters=self.counters,
            metrics=self._metrics,
            on_served=None if spans is None else spans.offer,
        )
        self._quota = JournalQuota(self.counters)
        self._admission = Admission(
            config, self._in_flight, rules, refusal=refusal, find_pack=find_pack, quota=self._quota
        )
        self._keys = IdempotencyKeys(self._in_flight, recall=self._recall, counters=self.counters)
        self._inbox = Inbox(config)
        self._batches = itertools.count(1)
        self._refusals = Refusals()
        self._contention = contention
        self._relays = Relays(config.max_request_bytes, self.counters)
        self._published: Counter[str] = Counter()
        self._snapshot = Snapshot(self.status, self._metrics.families)
        self._endpoints = Endpoints(
            config,
            roles=lambda: self._roles,
            snapshot=self._snapshot,
            counters=self.counters,
        )
        self._endpoints.watch(mailbox.wakeup_fd)
        self._endpoints.start()

    # ------------------------------------------------------------ the loop

    def run(
        self,
        *,
        ready: Callable[[], None] = lambda: None,
        turn: Callable[[bool, int], None] = lambda stopping, now_ns: None,
    ) -> None:
        """Serve until `stop` (or SIGTERM, SIGINT on the main thread), then drain and return.

        `turn` is called at each turn of the loop, at least once a second: whether the server is stopping,
        and the time in monotonic nanoseconds.

        Raises DiskFull, after the same drain, when the disk is full and the setting `on_full` is halt;
        Stalled, after refusing what is in flight, when `turn` does.
        """
        with stop_on_signals(self.stop, reload=self.reload):
            ready()
            while not self._serve(turn):
                pass
            self._drain(turn)
        if self._halted_by is not None:
            raise DiskFull(f"on_full is halt: {self._halted_by}")

    def stop(self) -> None:
        """Ask the loop to drain and return; safe from any thread and from signal handlers."""
        self._admission.stopping = True
        self._mailbox.put()

    def reload(self) -> None:
        """Ask for packs and settings to be read again; safe from any thread and from signal handlers."""
        if self._pack_changes is not None:
            self._pack_changes.reload()
        self._reload_due = True
        self._mailbox.put()

    def close(self) -> None:
        """Send what is queued and release the endpoint; safe to call twice."""
        if not self._endpoints.closed:
            self._deliver()
            self._endpoints.close()

    def _serve(self, turn: Callable[[bool, int], None]) -> bool:
        """One turn: deliver what other threads report, read what clients send, answer what is due.

        Returns whether the server is to stop.
        """
        self._endpoints.poll(self._wait_ms())
        if self._reload_due:
            self._reload_settings()
        self._deliver()
        self._endpoints.flush()
        self._read()
        for lane in self._endpoints.take_ended():
            self._drop_waiting(lane)
        self._inbox.handle(self._take, for_ns=_HANDLE_NS)
        now_ns = time.monotonic_ns()
        if self._contention is not None:
            self._contention.turn(now_ns, len(self._in_flight))
        self._in_flight.expire(now_ns)
        if self._config.on_full == "halt" and not self._admission.stopping:
            error = self._admission.refusal("journal")
            if error is not None and error.code == "disk_full":
                self._halted_by, self._admission.stopping = error, True
        stopping = self._admission.stopping  # read once: it may change at any moment
        try:
            turn(stopping, now_ns)
        except Stalled as stalled:
            self._in_flight.refuse_all(RequestError("unavailable", str(stalled)), now_ns)
            self._endpoints.flush()
            raise
        return stopping

    def _drain(self, turn: Callable[[bool, int], None]) -> None:
        """Go on until everything in flight is answered, at most `shutdown_s` seconds; refuse the rest."""
        drained_by_ns = time.monotonic_ns() + int(self._config.shutdown_s * 1e9)
        while self._in_flight and time.monotonic_ns() <= drained_by_ns:
            self._serve(turn)
        late = RequestError("shutting_down", "the daemon stopped before it could answer")
        self._in_flight.refuse_all(late, time.monotonic_ns())
        self._endpoints.flush()

    def _wait_ms(self) -> int:
        if self._inbox:
            return 0
        due_ns = self._in_flight.next_deadline_ns
        if due_ns is None:
            return _IDLE_MS
        return max(0, min(_IDLE_MS, (due_ns - time.monotonic_ns()) // 1_000_000 + 1))

    def _reload_settings(self) -> None:
        """Take those settings that need no restart; if they cannot be read, all stay as they were."""
        self._reload_due = False
        if self._reread is None:
            return
        before = self._config
        try:
            config, others = with_live_settings(before, self._reread())
            roles, packs_for = Roles(config.roles), PacksFor(config.packs_for)
            people = People(config.people)
        except ConfigError as error:
            self._reload_status = ReloadStatus(refused=str(error))
            log.error("the settings stay as they were: %s", error)
            return
        self._config, self._roles, self._people = config, roles, people
        self._admission.config, self._admission.packs_for = config, packs_for
        self._inbox.reload(config)
        logs.set_level(config.log_level)
        changed = tuple(name for name in LIVE_SETTINGS if getattr(before, name) != getattr(config, name))
        self._reload_status = ReloadStatus(refused=None, changed=changed, need_restart=tuple(others))
        log.info("settings read anew: %s", ", ".join(changed) or "none changed")
        if others:
            log.warning("these settings changed, and need a restart: %s", ", ".join(others))

    def _deliver(self) -> None:
        """Hand over what other threads reported."""
        now_ns = time.monotonic_ns()
        for item in self._mailbox.take():
            if isinstance(item, tuple):
                ticket, report = item
                if isinstance(report, KeyLookup):
                    self._keys.recalled(ticket, report.prior)
                    continue
                self._in_flight.on_outcome(ticket, report, now_ns)
                if isinstance(report, Refused):
                    self._keys.ended(ticket)
            else:
                self._quota.charge(item.sender, item.size, self._config.journal_quota_mb, now_ns)
                if item.ticket is None:
                    self._in_flight.publish_task(item)
                else:
                    self._in_flight.on_commit(item.ticket, item, now_ns)
                    if item.kind != "explanation":
                        self._keys.ended(item.ticket)

    # ------------------------------------------------------------ in

    def _read(self) -> None:
        """Take in what has arrived; what exceeds its caller's share is refused before it is decoded.

        After such refusals the loop rests for as long as they took, so that a flood of them leaves the
        processor to the other threads.
        """
        refusing_ns, until_ns = 0, time.monotonic_ns() + _READ_NS
        for received in map(self._relays.attribute, self._endpoints.receive(_READ_BURST, until_ns)):
            if self._contention is not None:
                self._contention.note(received.sender.lane.share, received.sender.received_ns)
            error = self._barred(received.sender) or self._inbox.put(received)
            if error is not None:
                self._refuse_unread(received, error)
                now_ns = time.monotonic_ns()
                refusing_ns += now_ns - received.sender.received_ns
        if refusing_ns > _REFUSING_NS:
            self._endpoints.flush()
            time.sleep(min(refusing_ns / 1e9, _REST_S))

    def _drop_waiting(self, ended: Lane) -> None:
        """Drop what still waits of a connection that ended: whoever asks next is not behind it."""
        lanes, dropped = self._inbox.drop(ended)
        requests = [request for lane in lanes for request in self._rules.drop(lane)]
        for request in requests:
            gone = RequestError("unavailable", "its connection was closed before it was decided")
            self._in_flight.settle(request.ticket, gone)
            self._keys.ended(request.ticket)
        self.counters["requests_of_closed_connections"] += dropped + len(requests)

    def _refuse_unread(self, received: Received, error: RequestError) -> None:
        """Refuse a message without decoding more of it than its id."""
        request_id = recover_request_id(received.frame, self._config.max_request_bytes)
        self._refuse(structs.replace(received.sender, request_id=request_id), error)

    def _take(self, received: Received) -> None:
        """Decode a message and handle it; no message may end the loop that serves all others."""
        sender, frame = received.sender, received.frame
        limit_bytes, identity = self._config.max_request_bytes, sender.identity
        try:
            message = decode_request(
                frame,
                max_bytes=limit_bytes,
                max_deadline_ms=self._config.max_deadline_ms,
                texts=TextLimits(self._config.max_text_chars, self._long_texts),
                authorise=lambda op: authorise(op, identity.caller, identity.roles),
                relayed=identity.caller.on_behalf_of is not None,
            )
        except RequestError as error:
            self._refuse(structs.replace(sender, request_id=recover_request_id(frame, limit_bytes)), error)
            return
        except Exception:
            self._refuse_fault(sender)
            return
        op, trace_id = op_of(message), _trace_of(message)
        sender = structs.replace(sender, request_id=message.id, op=op, trace_id=trace_id)
        try:
            now = time.time()
            arrival = Arrival(sender.caller, sender.lane, now, sender.received_ns, identity.roles)
            self._handle(sender, message, arrival)
        except RequestError as error:
            self._refuse(sender, error)
        except Exception:
            self._refuse_fault(sender)

    def _handle(self, sender: Sender, message: Message, arrival: Arrival) -> None:
        """Answer a message at once, or admit it. Raises RequestError."""
        answer = partial(self._reply, sender)
        if isinstance(message, StatusRequest):
            self._send(sender, self._snapshot.reply(message))
        elif isinstance(message, EvaluateRequest):
            self._submit(message, answer, arrival)
        elif isinstance(message, EvaluateBatchRequest):
            self._inbox.charge_items(arrival.lane, len(message.items) - 1, arrival.received_ns)
            submit = partial(self._submit, arrival=arrival, together=self._together(message))
            refused = partial(self._spaced, sender, parts=len(message.items))
            Batch(message, submit=submit, refused=refused, done=partial(self._reply_many, sender)).start()
        elif isinstance(message, RecordRequest):
            signers = self._signers(message.record, arrival.caller)  # may refuse: nothing is admitted yet
            ticket, record_id = self._admission.record(message, answer, arrival)
            claimed = self._admission.claimed(op_of(message), arrival)
            report = message.record if isinstance(message.record, records.DecisionReport) else None
            record = Record(
                self._recorder,
                message.record,
                record_id,
                ticket,
                arrival,
                claimed,
                governing=self._govern(report.type) if report else None,
                signers=signers,
                bounds=self._bounds,
            )
            self._begin(ticket, arrival.caller, message.idempotency, record)
        elif isinstance(message, ApprovalsRequest):
            if self._approvals is None:
                raise RequestError("unavailable", "op: this server keeps no approvals")
            ticket = self._admission.job(answer, arrival, "journal")
            on_done = partial(self._report, ticket)
            self._approvals(message.query, arrival.caller, arrival.roles, on_done)
        elif isinstance(message, SimilarRequest):
            if self._similar is None:
                raise RequestError("unavailable", "op: this server finds no precedents")
            ticket = self._admission.job(answer, arrival, "journal")
            try:
                self._similar(message.query, partial(self._report, ticket))
            except RequestError as error:  # it was not queued: its ticket ends with the refusal
                self._in_flight.settle(ticket, error)
                raise
        elif isinstance(message, SearchRequest):
            if self._search is None:
                raise RequestError("unavailable", "op: this server searches nothing")
            self._admission.check_pack(message.pack, arrival)
            ticket = self._admission.job(answer, arrival, "journal")
            try:
                self._search(message, arrival.caller, ticket, at=arrival.received_at)
            except RequestError as error:
                self._in_flight.settle(ticket, error)
        elif isinstance(message, MaintenanceRequest):
            authorise("maintenance", arrival.caller, arrival.roles, task=message.maintenance.task)
            ticket = self._admission.job(answer, arrival, "journal")
            self._maintenance.submit(ticket, message.maintenance, arrival.caller)
        elif isinstance(message, PushRequest):
            if self._push is None:
                raise RequestError("unavailable", "op: this server takes no pushed values")
            self._push(message.push, arrival.caller, at=arrival.received_at, now_ns=arrival.received_ns)
            self._send(sender, encode_reply(message.id, pushed={"ttl_s": message.push.ttl_s}))
        elif self._pack_changes is None:
            raise RequestError("unavailable", "op: this server cannot change packs")
        else:
            ticket = self._admission.job(answer, arrival, "journal", "engine")
            self._pack_changes.submit(ticket, message.control, arrival.caller)

    def _report(self, ticket: int, done: JobDone) -> None:
        self._mailbox.put((ticket, done))

    @property
    def _bounds(self) -> Bounds:
        config = self._config
        return Bounds(
            of_caller=config.approvals_per_caller,
            of_subject=config.approvals_per_subject,
            in_all=config.max_approvals,
        )

    def _signers(self, record: records.Record, caller: Caller) -> tuple[Person | None, Person | None]:
        """Who gives a verdict, and who records it for somebody else. Raises RequestError."""
        if not isinstance(record, records.Approve | records.Deny):
            return None, None
        consent = record.consent if isinstance(record, records.Approve) else None
        return self._people.signers(caller, consent_of=None if consent is None else consent.approver)

    def _together(self, message: EvaluateBatchRequest) -> Together | None:
        """The mark of a batch whose questions are decided at once; None where one waits for another."""
        size = sum(isinstance(item, EvaluateRequest) for item in message.items)
        return Together(next(self._batches), size) if message.semantic == "execute_all" and size > 1 else None

    def _submit(
        self,
        message: EvaluateRequest,
        answer: Answer,
        arrival: Arrival,
        together: Together | None = None,
    ) -> None:
        request = self._admission.question(message, answer, arrival, together)
        question = Question(self._admission, self._rules, message, request, arrival)
        self._begin(request.ticket, arrival.caller, message.idempotency, question)

    def _begin(self, ticket: int, caller: Caller, idempotency: Idempotency | None, work: Work) -> None:
        """Begin the work of a request: at once, or if it has a key, unless that was done before."""
        if idempotency is None:
            work.begin(None)
        else:
            mark = self._recorder.mark(caller, idempotency.key, idempotency.content)
            self._keys.enter(Keyed(ticket, mark, work))

    def _recall(self, digest: str, ticket: int) -> None:
        def on_lookup(prior: PriorRecord | RequestError | None) -> None:
            self._mailbox.put((ticket, KeyLookup(prior)))

        self._recorder.recall(digest, on_lookup)

    # ------------------------------------------------------------ out

    def _reply(self, sender: Sender, answer: dict[str, Json] | RequestError) -> None:
        if isinstance(answer, RequestError):
            self._refuse(sender, answer)
        else:
            self._log_decision(sender, answer)
            self._send(sender, encode_reply(sender.request_id, **answer))

    def _reply_many(self, sender: Sender, items: Sequence[dict[str, Json]]) -> None:
        for item in items:
            if "error" in item["context"]:
                code, message = (item["context"]["error"][member] for member in ("code", "message"))
                self._count_refusal(sender, code, message)
            else:
                self._log_decision(sender, item)
        self._send(sender, encode_reply(sender.request_id, evaluations=items))

    def _refuse(self, sender: Sender, error: RequestError) -> None:
        self._count_refusal(sender, error.code, error.message)
        self._send(sender, encode_error(sender.request_id, self._spaced(sender, error)))

    def _barred(self, sender: Sender) -> RequestError | None:
        """Why nothing of this caller is taken now: it is barred. Its connection may be that of a relay."""
        left_ms = self._refusals.barred_ms(sender.lane.share, sender.received_ns)
        if not left_ms:
            return None
        message = f"{sender.lane.share} did not wait after `busy`, and is barred; wait for retry_after_ms"
        return RequestError("busy", message, retry_after_ms=left_ms)

    def _spaced(self, sender: Sender, error: RequestError, parts: int = 1) -> RequestError:
        """The refusal of a caller, if it is to wait with its turn; one that does not wait is barred.

        `parts` is how many requests the message has.
        """
        if error.code != "busy":
            return error
        now_ns, share = time.monotonic_ns(), sender.lane.share
        size_bytes, least_ms = sender.size_bytes / parts, error.retry_after_ms or 0
        wait_ms = self._refusals.wait_ms(share, now_ns, least_ms, size_bytes, parts)
        if (seconds := self._refusals.bar_s(share, now_ns)) is not None:
            self.counters["callers_barred"] += 1
            log.warning("%s does not wait after `busy`, and is barred for %g s", share, seconds)
            if sender.caller.on_behalf_of is None:  # a relay is not barred for those that it speaks for
                self._endpoints.bar(share, now_ns + int(seconds * 1e9))
        return RequestError("busy", error.message, retry_after_ms=wait_ms)

    def _refuse_fault(self, sender: Sender) -> None:
        """Log the exception that is being handled, and refuse the request that it belongs to."""
        if (unlogged := self._limits["fault"].admit(time.monotonic_ns())) is not None:
            extra = logs.fields(unlogged=unlogged or None)
            log.exception("a request failed with an unexpected error", extra=extra)
        self._refuse(sender, RequestError("internal", "the request failed; the daemon's log says why"))

    def _count_refusal(self, sender: Sender, code: str, message: str) -> None:
        self.counters[f"refused_{code}"] += 1
        text = message if logs.is_verbose() else None  # it may repeat what the request says
        self._log_bounded(sender, "refused", code=code, text=text)

    def _log_decision(self, sender: Sender, item: dict[str, Json]) -> None:
        """A line for a decision that the model failed to give; at level debug for any other too."""
        context = item.get("context")  # the answer to a record has none
        if context is None:
            return
        if context["tier"] == "fallback":
            code, decision_id = context["reason_code"], context["decision_id"]
            self._log_bounded(sender, "decided without the model", code=code, decision_id=decision_id)
        elif log.isEnabledFor(logging.DEBUG):
            members = {name: context[name] for name in ("decision_id", "outcome", "tier")}
            log.debug("decided", extra=logs.fields(**members, **_of(sender)))

    def _log_bounded(self, sender: Sender, message: str, *, code: str, **members: str | None) -> None:
        unlogged = self._limits[code].admit(time.monotonic_ns())
        if unlogged is None:
            self.counters["unlogged"] += 1
        else:
            extra = logs.fields(code=code, **members, **_of(sender), unlogged=unlogged or None)
            log.warning("%s", message, extra=extra)

    def _send(self, sender: Sender, frame: bytes) -> None:
        self._endpoints.send(sender, frame)

    def _publish(self, kind: str, decision_id: str, seq: int, members: Callable[[], dict[str, Json]]) -> None:
        self._published[kind] += 1  # whether or not somebody listens: a subscriber sees its gap by it
        if self._endpoints.has_subscribers:
            event = encode_event(kind, decision_id, seq, self._published[kind], members())
            self._endpoints.publish(event)

    def _all_counters(self) -> Counter[str]:
        spans = () if self._spans is None else (self._spans.counters,)
        return sum_of(self.counters, self._endpoints.counters, *spans)

    def measured(self) -> Families:
        """Everything that the daemon measures. Any thread."""
        return self._metrics.families(self.status())

    def status(self) -> Status:
        """The truth about each part. Any thread."""
        trouble = self._admission.refusal("journal") or self._admission.refusal("engine")
        stopping = self._admission.stopping
        return Status(
            version=__version__,
            pid=os.getpid(),
            state="stopping" if stopping else "refusing" if trouble else "serving",
            trouble=trouble.message if trouble else None,
            uptime_s=round((clocks.boot_ns() - self._started_ns) / 1e9, 1),
            endpoint=self._config.endpoint,
            tcp_endpoint=self._config.tcp_endpoint or None,
            events_endpoint=self._config.events_endpoint,
            control_endpoint=self._config.control_endpoint,
            connections=self._endpoints.connections,
            in_flight=len(self._in_flight),
            max_in_flight=self._config.max_in_flight,
            settings=self._reload_status,
            counters=dict(sorted(self._all_counters().items())),
            **structs.asdict(self._describe()),
        )


def _of(sender: Sender) -> dict[str, Json]:
    """What the log says of a request."""
    ms = (time.monotonic_ns() - sender.received_ns) / 1e6
    caller = sender.caller
    return {
        "op": sender.op,
        "uid": caller.uid,
        "key": caller.key,
        "for": caller.on_behalf_of,
        "ms": round(ms, 3),
        "trace_id": sender.trace_id,
    }


def _trace_of(message: Message) -> str | None:
    """The trace of the caller that a question belongs to, as log lines show it: 32 hex digits."""
    if isinstance(message, EvaluateBatchRequest):
        questions = [item for item in message.items if isinstance(item, EvaluateRequest)]
        return _trace_of(questions[0]) if questions else None
    if not isinstance(message, EvaluateRequest) or not message.annotations.tags:
        return None
    parent = parent_in(message.annotations.tags)
    return None if parent is None else f"{parent.trace_id:032x}"
