"""The main thread's loop: read, admit, deliver, expire.

Owns the ROUTERs and the event publisher. Invariant: each request that arrives gets exactly one reply, or
is counted as lost with its peer or its key; what its caller may not do is refused before anything else
happens to it. Nothing here waits for the model or the disk.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, TypeAlias

import zmq

from thor_policy import __version__
from thor_policy.config import LIVE_SETTINGS, Config, with_live_settings
from thor_policy.core import records
from thor_policy.core.decisions import ModelInfo, PackInfo, PriorRecord
from thor_policy.core.errors import ConfigError, DiskFull, RequestError, Stalled
from thor_policy.core.ids import new_id
from thor_policy.core.requests import Caller, Json, Request, Role
from thor_policy.core.results import Refused
from thor_policy.daemon.batches import Batch
from thor_policy.daemon.idempotency import IdempotencyKeys, Keyed, KeyLookup, digest_of
from thor_policy.daemon.inflight import Answer, InFlight
from thor_policy.daemon.sockets import Mailbox, bind_publisher, bind_router, caller_of, stop_on_signals
from thor_policy.daemon.tcp_listener import TcpListener
from thor_policy.protocol.messages import (
    ControlRequest,
    EvaluateBatchRequest,
    EvaluateRequest,
    Idempotency,
    MaintenanceRequest,
    RecordRequest,
    StatusRequest,
    op_of,
)
from thor_policy.protocol.replies import (
    decision_item,
    encode_error,
    encode_event,
    encode_reply,
    recorded_item,
)
from thor_policy.protocol.requests import decode_request, recover_request_id
from thor_policy.security.curve_keys import KeyHolder
from thor_policy.security.roles import Roles, authorise
from thor_policy.telemetry import logs
from thor_policy.telemetry.metrics import Families, Metrics, as_json

log = logging.getLogger(__name__)

#: How long work on the journal, or a change of packs, may take before whoever asked is told so, in seconds.
JOB_TIMEOUT_S = 3_600

#: Requests read before replies and deadlines get their turn.
_READ_BURST = 64
#: How long an idle loop sleeps at most, in milliseconds.
_IDLE_MS = 1_000

#: What a request may need: a question needs both, a record the journal alone.
Part: TypeAlias = Literal["journal", "engine"]


class EngineQueue(Protocol):
    """The engine thread, as far as the server needs it (`worker.Worker`)."""

    @property
    def waiting(self) -> int: ...
    @property
    def mean_decision_ms(self) -> float: ...

    def submit(self, request: Request) -> None: ...


class Recorder(Protocol):
    """Where records go to be kept (`journal.writer.Journal`)."""

    def write(
        self,
        record: records.Record,
        *,
        record_id: str,
        at: float,
        caller: Caller,
        ticket: int,
        idempotency: str | None,
    ) -> None:
        """Take a record that `caller` sent at Unix time `at`; returns at once and does not fail.

        Its fate, with `ticket`, comes to the mailbox: committed, or why not.
        """

    def recall(self, digest: str, tell: Callable[[PriorRecord | RequestError | None], None]) -> None:
        """Look up what was recorded for an idempotency key; returns at once, `tell` hears on any thread."""


class MaintenanceQueue(Protocol):
    """Who does long work on the journal (`clerk.Clerk`); the answer comes through the mailbox."""

    def submit(self, ticket: int, maintenance: records.Maintenance, caller: Caller) -> None: ...


class PackChanges(Protocol):
    """Who changes what judges (`steward.Steward`); the answer comes through the mailbox."""

    def submit(self, ticket: int, control: records.Control) -> None: ...

    def reload(self) -> None:
        """Read the packs anew from their directories; from a signal handler."""


@dataclass(frozen=True)
class _Sender:
    """Who asked, and where the reply goes: the peer, the empty frame of a REQ socket, and the id to echo.

    `holder` is the key of a caller over tcp; `op` and `received_ns` are for the log.
    """

    router: zmq.Socket[bytes]
    route: bytes
    framing: tuple[bytes, ...]
    caller: Caller
    roles: Collection[Role]
    holder: KeyHolder | None = None
    request_id: str = ""
    op: str | None = None
    received_ns: int = 0


class Server:
    """Serves one endpoint, whose lock the caller holds (`endpoint_lock`).

    `pack` and `model` are those of the start. `describe` adds what other parts say of themselves to the
    status, and tells of the packs and the model that came after those; `find_pack` raises RequestError where
    no resident pack is called so; without a `steward` nothing can be changed; `reread` reads the settings
    anew. `refusal` says why a part can take nothing new, None while it can: without the engine only records
    are admitted, without the journal nothing. Raises ConfigError if the endpoint cannot be opened.
    """

    def __init__(
        self,
        config: Config,
        *,
        mailbox: Mailbox,
        work: EngineQueue,
        recorder: Recorder,
        clerk: MaintenanceQueue,
        pack: PackInfo,
        model: ModelInfo,
        describe: Callable[[], dict[str, Json]] = dict,
        refusal: Callable[[Part], RequestError | None] = lambda _: None,
        steward: PackChanges | None = None,
        find_pack: Callable[[str], object] | None = None,
        reread: Callable[[], Config] | None = None,
    ) -> None:
        self._steward = steward
        self._reread = reread
        self._renewal_due = False
        #: What came of reading the settings anew, if that was ever asked for.
        self._renewal: dict[str, Json] | None = None
        self._find_pack = find_pack or self._is_ours
        self._config = config
        self._mailbox = mailbox
        self._work = work
        self._recorder = recorder
        self._clerk = clerk
        self._pack = pack
        self._model = model
        self._describe = describe
        self._refusal = refusal
        self._started_at = time.time()
        self._stopping = False
        self.counters: Counter[str] = Counter()
        self._roles = Roles(config.roles)
        self._metrics = Metrics()
        #: By what is logged, so that a flood of one hides no other.
        self._limits: defaultdict[str, logs.Limit] = defaultdict(logs.Limit)
        self._in_flight = InFlight(publish=self._publish, counters=self.counters, metrics=self._metrics)
        self._once = IdempotencyKeys(self._in_flight, recall=self._recall, counters=self.counters)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            self._router = bind_router(self._context, config)
            self._publisher = bind_publisher(self._context, config)
            self._gate = TcpListener(self._context, config, self.counters) if config.tcp_endpoint else None
        except BaseException:
            self._context.destroy(linger=0)
            raise

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
            poller = zmq.Poller()
            poller.register(self._router, zmq.POLLIN)
            poller.register(self._mailbox.wakeup_fd, zmq.POLLIN)
            for socket in (self._gate.router, *self._gate.sockets) if self._gate else ():
                poller.register(socket, zmq.POLLIN)
            ready()
            drained_by_ns: int | None = None
            full: RequestError | None = None
            while True:
                events = dict(poller.poll(self._wait_ms()))
                if self._renewal_due:
                    self._renew()
                self._deliver()
                if self._router in events:
                    self._read(self._router)
                if self._gate is not None:
                    if not events.keys().isdisjoint(self._gate.sockets):
                        self._gate.turn()
                    if self._gate.router in events:
                        self._read(self._gate.router)
                now_ns = time.monotonic_ns()
                self._in_flight.expire(now_ns)
                if self._config.on_full == "halt" and not self._stopping:
                    found = self._refusal("journal")
                    if found is not None and found.code == "disk_full":
                        full, self._stopping = found, True
                stopping = self._stopping  # once: it may change at any moment
                try:
                    turn(stopping, now_ns)
                except Stalled as stalled:
                    self._in_flight.refuse_all(RequestError("unavailable", str(stalled)), now_ns)
                    raise
                if stopping:
                    drained_by_ns = drained_by_ns or time.monotonic_ns() + int(self._config.shutdown_s * 1e9)
                    if not self._in_flight or time.monotonic_ns() > drained_by_ns:
                        break
            late = RequestError("shutting_down", "the daemon stopped before it could answer")
            self._in_flight.refuse_all(late, time.monotonic_ns())
        if full is not None and full.code == "disk_full":
            raise DiskFull(f"on_full is halt: {full}")

    def stop(self) -> None:
        """Ask the loop to drain and return; safe from any thread and from signal handlers."""
        self._stopping = True
        self._mailbox.put()

    def reload(self) -> None:
        """Ask for packs and settings to be read anew; safe from any thread and from signal handlers."""
        if self._steward is not None:
            self._steward.reload()
        self._renewal_due = True
        self._mailbox.put()

    def _renew(self) -> None:
        """Take those settings that need no restart; if they cannot be read, all stay as they were."""
        self._renewal_due = False
        if self._reread is None:
            return
        before = self._config
        try:
            config, others = with_live_settings(before, self._reread())
            roles = Roles(config.roles)
        except ConfigError as error:
            self._renewal = {"refused": str(error), "changed": [], "need_restart": []}
            log.error("the settings stay as they were: %s", error)
            return
        self._config, self._roles = config, roles
        logs.set_level(config.log_level)
        taken = [name for name in LIVE_SETTINGS if getattr(before, name) != getattr(config, name)]
        self._renewal = {"refused": None, "changed": taken, "need_restart": list(others)}
        log.info("settings read anew: %s", ", ".join(taken) or "none changed")
        if others:
            log.warning("these settings changed, and need a restart: %s", ", ".join(others))

    def close(self) -> None:
        """Send what is queued and release the endpoint; safe to call twice."""
        if not self._context.closed:
            self._deliver()
            self._context.destroy(linger=1_000)
            self._config.socket_path.unlink(missing_ok=True)
            self._config.events_path.unlink(missing_ok=True)

    def _wait_ms(self) -> int:
        due_ns = self._in_flight.next_deadline_ns
        if due_ns is None:
            return _IDLE_MS
        return max(0, min(_IDLE_MS, (due_ns - time.monotonic_ns()) // 1_000_000 + 1))

    def _deliver(self) -> None:
        now_ns = time.monotonic_ns()
        for item in self._mailbox.take():
            if isinstance(item, tuple):
                ticket, outcome = item
                if isinstance(outcome, KeyLookup):
                    self._once.recalled(ticket, outcome.found)
                    continue
                self._in_flight.note(ticket, outcome, now_ns)
                if isinstance(outcome, Refused):
                    self._once.ended(ticket)
            elif item.ticket is not None:
                self._in_flight.note_fate(item.ticket, item, now_ns)
                if item.kind != "explanation":
                    self._once.ended(item.ticket)

    # ------------------------------------------------------------ in

    def _read(self, router: zmq.Socket[bytes]) -> None:
        for _ in range(_READ_BURST):
            try:
                frames = router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self.counters["received"] += 1
            route, *framing, frame = frames
            asker = self._asker(
                router, route.bytes, tuple(one.bytes for one in framing), frame, time.monotonic_ns()
            )
            if asker is None:
                self.counters["requests_of_revoked_keys"] += 1
                continue
            if asker.framing not in ((), (b"",)):
                asker = replace(asker, framing=asker.framing[:1])
                self._refuse(asker, RequestError("bad_request", "a request is one JSON frame"))
                continue
            if asker.holder is not None and not route.bytes.startswith(b"\0"):
                told = "over tcp a socket sets no routing id of its own: another key could take it over"
                self._refuse(asker, RequestError("bad_request", told))
                continue
            try:
                self._take(asker, frame, asker.received_ns)
            except Exception:  # no request may end the loop that serves all others
                if (unlogged := self._limits["fault"].admit(time.monotonic_ns())) is not None:
                    extra = logs.fields(unlogged=unlogged or None)
                    log.exception("a request failed for a reason that no code foresaw", extra=extra)
                self._refuse(asker, RequestError("internal", "the request failed; the daemon's log says why"))

    def _asker(
        self,
        router: zmq.Socket[bytes],
        route: bytes,
        framing: tuple[bytes, ...],
        frame: zmq.Frame,
        received_ns: int,
    ) -> _Sender | None:
        """Who sent a frame, as the kernel or the handshake vouches for it; None if the key was revoked."""
        if self._gate is None or router is not self._gate.router:
            caller = caller_of(frame)
            roles = self._roles.of(caller)
            return _Sender(router, route, framing, caller, roles, received_ns=received_ns)
        holder = self._gate.holder_of(frame)
        if holder is None:
            return None
        caller = Caller(transport="tcp", key=holder.name)
        return _Sender(router, route, framing, caller, holder.roles, holder, received_ns=received_ns)

    def _take(self, asker: _Sender, frame: zmq.Frame, received_ns: int) -> None:
        data, limit, caller = frame.bytes, self._config.max_request_bytes, asker.caller
        try:
            message = decode_request(
                data,
                max_bytes=limit,
                max_deadline_ms=self._config.max_deadline_ms,
                authorise=lambda op: authorise(op, caller, asker.roles),
            )
        except RequestError as error:
            self._refuse(replace(asker, request_id=recover_request_id(data, limit)), error)
            return
        received_at = time.time()
        asker = replace(asker, request_id=message.id, op=op_of(message))
        if isinstance(message, StatusRequest):
            self._send(asker, self._tell(message))
            return

        def submit(one: EvaluateRequest, answer: Answer) -> None:
            self._submit(one, answer, caller, received_ns, received_at)

        if isinstance(message, EvaluateBatchRequest):
            Batch(message, submit=submit, done=lambda items: self._reply_many(asker, items)).start()
            return
        answer = partial(self._reply, asker)
        try:
            if isinstance(message, RecordRequest):
                self._record(message, answer, caller, received_ns, received_at)
            elif isinstance(message, MaintenanceRequest):
                self._tend(message, answer, caller, received_ns)
            elif isinstance(message, ControlRequest):
                self._steer(message, answer, received_ns)
            else:
                submit(message, answer)
        except RequestError as error:
            self._refuse(asker, error)

    def _submit(
        self, message: EvaluateRequest, answer: Answer, caller: Caller, received_ns: int, received_at: float
    ) -> None:
        deadline_ms = message.deadline_ms or self._config.deadline_ms
        if message.idempotency is None:
            self._check_admission(message, deadline_ms)
        else:  # what was recorded is told again even where nothing new would be decided
            self._check_open(needs=("journal",))
        self._check_room()
        deadline_ns = received_ns + deadline_ms * 1_000_000
        ticket = self._in_flight.admit(
            answer, received_ns=received_ns, deadline_ns=deadline_ns, explain=message.explain
        )

        def start(idempotency: str | None) -> None:
            if idempotency is not None:
                self._check_admission(message, deadline_ms)
            self._work.submit(
                Request(
                    ticket=ticket,
                    evaluation=message.evaluation,
                    caller=caller,
                    received_at=received_at,
                    received_ns=received_ns,
                    deadline_ns=deadline_ns,
                    explain=message.explain,
                    annotations=message.annotations,
                    pack=message.pack,
                    idempotency=idempotency,
                )
            )

        def retell(found: PriorRecord) -> dict[str, Json]:
            assert found.decision is not None  # noqa: S101  the digest of its content says that it was a question
            total_ms = (time.monotonic_ns() - received_ns) / 1e6
            inline = message.explain == "inline"
            return decision_item(found.decision, explained=inline, commit_ms=0.0, total_ms=total_ms)

        self._begin(ticket, caller, message.idempotency, start, retell)

    def _record(
        self, message: RecordRequest, answer: Answer, caller: Caller, received_ns: int, received_at: float
    ) -> None:
        self._check_open(needs=("journal",))
        self._check_room()
        deadline_ms, record_id = message.deadline_ms or self._config.deadline_ms, new_id()
        ticket = self._in_flight.admit(
            answer,
            received_ns=received_ns,
            deadline_ns=received_ns + deadline_ms * 1_000_000,
            record_id=record_id,
        )

        def start(idempotency: str | None) -> None:
            self._recorder.write(
                message.record,
                record_id=record_id,
                at=received_at,
                caller=caller,
                ticket=ticket,
                idempotency=idempotency,
            )

        def retell(found: PriorRecord) -> dict[str, Json]:
            return recorded_item(found.id, found.kind, found.seq)

        self._begin(ticket, caller, message.idempotency, start, retell)

    def _begin(
        self,
        ticket: int,
        caller: Caller,
        asked: Idempotency | None,
        start: Callable[[str | None], None],
        retell: Callable[[PriorRecord], dict[str, Json]],
    ) -> None:
        """Do what a request asks for: at once, or if it has a key, unless that was done before."""
        if asked is None:
            start(None)
            return
        digest = digest_of(caller, asked.key)
        begin = partial(start, f"{digest}-{asked.content}")
        self._once.enter(Keyed(ticket, digest, asked.content, begin, retell))

    def _recall(self, digest: str, ticket: int) -> None:
        self._recorder.recall(digest, lambda found: self._mailbox.put((ticket, KeyLookup(found))))

    def _tend(self, message: MaintenanceRequest, answer: Answer, caller: Caller, received_ns: int) -> None:
        self._check_open(needs=("journal",))
        self._check_room()
        deadline_ns = received_ns + JOB_TIMEOUT_S * 1_000_000_000
        ticket = self._in_flight.admit(answer, received_ns=received_ns, deadline_ns=deadline_ns)
        self._clerk.submit(ticket, message.maintenance, caller)

    def _steer(self, message: ControlRequest, answer: Answer, received_ns: int) -> None:
        self._check_open(needs=("journal", "engine"))
        self._check_room()
        if self._steward is None:
            raise RequestError("unavailable", "op: this server cannot change what judges")
        deadline_ns = received_ns + JOB_TIMEOUT_S * 1_000_000_000
        ticket = self._in_flight.admit(answer, received_ns=received_ns, deadline_ns=deadline_ns)
        self._steward.submit(ticket, message.control)

    def _is_ours(self, pack: str) -> None:
        if pack != self._pack.name:
            raise RequestError("not_found", f"pack: {pack[:64]!r} is not loaded; {self._pack.name} is")

    def _check_admission(self, message: EvaluateRequest, deadline_ms: int) -> None:
        """Refuse what cannot be served, and what would wait past its deadline anyway."""
        if message.pack is not None:
            self._find_pack(message.pack)
        self._check_open(needs=("journal", "engine"))
        expected_ms = self._expected_ms
        if expected_ms > deadline_ms:
            raise RequestError(
                "busy",
                f"the requests before it take about {expected_ms} ms; its deadline is {deadline_ms} ms",
                retry_after_ms=expected_ms - deadline_ms + 1,
            )

    def _check_open(self, *, needs: Sequence[Part]) -> None:
        """Refuse any request while stopping, and without the parts that it needs."""
        if self._stopping:
            raise RequestError("shutting_down", "the daemon is stopping")
        for part in needs:
            if (error := self._refusal(part)) is not None:
                raise error

    def _check_room(self) -> None:
        """Refuse any request above the limit."""
        if len(self._in_flight) >= self._config.max_in_flight:
            raise RequestError(
                "busy",
                f"{len(self._in_flight)} requests are in flight; the limit is {self._config.max_in_flight}",
                retry_after_ms=self._expected_ms + 1,
            )

    @property
    def _expected_ms(self) -> int:
        """How long the questions that wait for the engine are going to take."""
        return int(self._work.waiting * self._work.mean_decision_ms)

    # ------------------------------------------------------------ out

    def _reply(self, asker: _Sender, answer: dict[str, Json] | RequestError) -> None:
        if isinstance(answer, RequestError):
            self._refuse(asker, answer)
        else:
            self._log_decision(asker, answer)
            self._send(asker, encode_reply(asker.request_id, **answer))

    def _reply_many(self, asker: _Sender, items: Sequence[dict[str, Json]]) -> None:
        for item in items:
            if "error" in item["context"]:
                code, message = (item["context"]["error"][member] for member in ("code", "message"))
                self._count_refusal(asker, code, message)
            else:
                self._log_decision(asker, item)
        self._send(asker, encode_reply(asker.request_id, evaluations=items))

    def _refuse(self, asker: _Sender, error: RequestError) -> None:
        self._count_refusal(asker, error.code, error.message)
        self._send(asker, encode_error(asker.request_id, error))

    def _count_refusal(self, asker: _Sender, code: str, message: str) -> None:
        self.counters[f"refused_{code}"] += 1
        text = message if logs.is_verbose() else None  # it may repeat what the request says
        self._log_bounded(asker, "refused", code=code, text=text)

    def _log_decision(self, asker: _Sender, item: dict[str, Json]) -> None:
        """A line for a decision that the model failed to give; at level debug for any other too."""
        decided = item.get("context")  # of a record there is none
        if decided is None:
            return
        if decided["tier"] == "fallback":
            code, decision_id = decided["reason_code"], decided["decision_id"]
            self._log_bounded(asker, "decided without the model", code=code, decision_id=decision_id)
        elif log.isEnabledFor(logging.DEBUG):
            told = {name: decided[name] for name in ("decision_id", "outcome", "tier")}
            log.debug("decided", extra=logs.fields(**told, **_of(asker)))

    def _log_bounded(self, asker: _Sender, message: str, *, code: str, **told: str | None) -> None:
        unlogged = self._limits[code].admit(time.monotonic_ns())
        if unlogged is None:
            self.counters["unlogged"] += 1
        else:
            extra = logs.fields(code=code, **told, **_of(asker), unlogged=unlogged or None)
            log.warning("%s", message, extra=extra)

    def _send(self, asker: _Sender, frame: bytes) -> None:
        if self._gate is not None and asker.holder is not None and not self._gate.admits(asker.holder):
            self.counters["replies_to_revoked_keys"] += 1  # not sent
            return
        try:
            asker.router.send_multipart([asker.route, *asker.framing, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.counters["replies_dropped"] += 1

    def _publish(self, kind: str, decision_id: str, members: dict[str, Json]) -> None:
        try:
            self._publisher.send_multipart(encode_event(kind, decision_id, members), zmq.NOBLOCK)
        except zmq.Again:
            self.counters["events_dropped"] += 1

    def _tell(self, message: StatusRequest) -> bytes:
        if message.op == "metrics":
            return encode_reply(message.id, metrics=as_json(self.measured()))
        return encode_reply(message.id, status=self.status())

    def measured(self) -> Families:
        """Everything that the daemon measures. Any thread."""
        return self._metrics.families(self.status())

    def status(self) -> dict[str, Json]:
        """The truth about each part, as plain JSON values. Any thread."""
        described = self._describe()
        trouble = self._refusal("journal") or self._refusal("engine")
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": "stopping" if self._stopping else "refusing" if trouble else "serving",
            "trouble": trouble and trouble.message,
            "uptime_s": round(time.time() - self._started_at, 1),
            "endpoint": self._config.endpoint,
            "tcp_endpoint": self._config.tcp_endpoint or None,
            "events_endpoint": self._config.events_endpoint,
            "pack": {
                "name": self._pack.name,
                "version": self._pack.version,
                "sha256": self._pack.sha256,
            },
            "model": {
                "name": self._model.name,
                "sha256": self._model.sha256,
                "quantisation": self._model.quantisation,
                "device": self._model.device,
                "build": self._model.build,
                "exact": self._model.exact,
                **described.pop("model", {}),
            },
            "in_flight": len(self._in_flight),
            "max_in_flight": self._config.max_in_flight,
            "settings": self._renewal,
            "counters": dict(sorted(self.counters.items())),
            **described,
        }


def _of(asker: _Sender) -> dict[str, Json]:
    """What the log says of a request."""
    ms = (time.monotonic_ns() - asker.received_ns) / 1e6
    caller = asker.caller
    return {"op": asker.op, "uid": caller.uid, "key": caller.key, "ms": round(ms, 3)}
