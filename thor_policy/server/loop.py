"""The main thread's loop: read, admit, deliver, expire.

Owns the ROUTER and the event publisher. Invariant: each request that arrives gets exactly one reply, or is
counted as lost with its peer. Nothing here waits for the model or the disk.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeAlias

import zmq

from thor_policy import __version__, trace, wire
from thor_policy.config import Config
from thor_policy.core import Caller, Json, ModelInfo, PackInfo, Request
from thor_policy.errors import DiskFull, RequestError
from thor_policy.policy import new_id
from thor_policy.server.endpoint import Mailbox, bind_publisher, bind_router, caller_of, stop_on_signals
from thor_policy.server.inflight import Answer, Batch, InFlight

log = logging.getLogger(__name__)

#: How long work on the journal, or a change of packs, may take before whoever asked is told so, in seconds.
UPKEEP_S = 3_600

#: Requests read before replies and deadlines get their turn.
_READ_BURST = 64
#: How long an idle loop sleeps at most, in milliseconds.
_IDLE_MS = 1_000

#: What a request may need: a question needs both, a record the journal alone.
Part: TypeAlias = Literal["journal", "engine"]


class Work(Protocol):
    """The engine thread, as far as the server needs it (`worker.Worker`)."""

    @property
    def waiting(self) -> int: ...
    @property
    def mean_decision_ms(self) -> float: ...

    def submit(self, request: Request) -> None: ...


class Recorder(Protocol):
    """Where records go to be kept (`journal.writer.Journal`)."""

    def write(self, record: trace.Record, *, record_id: str, at: float, caller: Caller, ticket: int) -> None:
        """Take a record that `caller` sent at Unix time `at`; returns at once and does not fail.

        Its fate, with `ticket`, comes to the mailbox: committed, or why not.
        """


class Tending(Protocol):
    """Who does long work on the journal (`clerk.Clerk`); the answer comes through the mailbox."""

    def submit(self, ticket: int, upkeep: trace.Upkeep, caller: Caller) -> None: ...


class Steering(Protocol):
    """Who changes what judges (`steward.Steward`); the answer comes through the mailbox."""

    def submit(self, ticket: int, control: trace.Control) -> None: ...

    def reload(self) -> None:
        """Read the packs anew from their directories; from a signal handler."""


@dataclass(frozen=True)
class _Asker:
    """Where a reply goes: the peer, the empty frame of a REQ socket, and the id to echo."""

    route: bytes
    framing: tuple[bytes, ...]
    request_id: str = ""


class Server:
    """Serves one endpoint, whose lock the caller holds (`endpoint_lock`).

    `pack` and `model` are those of the start. `describe` adds what other parts say of themselves to the
    status, and tells of the packs and the model that came after those; `find_pack` raises RequestError where
    no resident pack is called so; without a `steward` nothing can be changed. `refusal` says why a part can
    take nothing new, None while it can: without the engine only records are admitted, without the journal
    nothing. Raises ConfigError if the endpoint cannot be opened.
    """

    def __init__(
        self,
        config: Config,
        *,
        mailbox: Mailbox,
        work: Work,
        recorder: Recorder,
        clerk: Tending,
        pack: PackInfo,
        model: ModelInfo,
        describe: Callable[[], dict[str, Json]] = dict,
        refusal: Callable[[Part], RequestError | None] = lambda _: None,
        steward: Steering | None = None,
        find_pack: Callable[[str], object] | None = None,
    ) -> None:
        self._steward = steward
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
        self._in_flight = InFlight(publish=self._publish, counters=self.counters)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            self._router = bind_router(self._context, config)
            self._publisher = bind_publisher(self._context, config)
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

        Raises DiskFull, after the same drain, when the disk is full and the setting `on_full` is halt.
        """
        with stop_on_signals(self.stop, reload=self._steward.reload if self._steward else None):
            poller = zmq.Poller()
            poller.register(self._router, zmq.POLLIN)
            poller.register(self._mailbox.wakeup_fd, zmq.POLLIN)
            ready()
            drained_by_ns: int | None = None
            full: RequestError | None = None
            while True:
                events = dict(poller.poll(self._wait_ms()))
                self._deliver()
                if self._router in events:
                    self._read()
                now_ns = time.monotonic_ns()
                self._in_flight.expire(now_ns)
                if self._config.on_full == "halt" and not self._stopping:
                    found = self._refusal("journal")
                    if found is not None and found.code == "disk_full":
                        full, self._stopping = found, True
                stopping = self._stopping  # once: it may change at any moment
                turn(stopping, now_ns)
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
                self._in_flight.note(*item, now_ns)
            elif item.ticket is not None:
                self._in_flight.note_fate(item.ticket, item, now_ns)

    # ------------------------------------------------------------ in

    def _read(self) -> None:
        for _ in range(_READ_BURST):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self.counters["received"] += 1
            route, *framing, frame = frames
            asker = _Asker(route.bytes, tuple(one.bytes for one in framing))
            if asker.framing not in ((), (b"",)):
                asker = _Asker(asker.route, asker.framing[:1])
                self._refuse(asker, RequestError("bad_request", "a request is one JSON frame"))
                continue
            try:
                self._take(asker, frame, time.monotonic_ns())
            except Exception:  # no request may end the loop that serves all others
                log.exception("a request failed for a reason that no code foresaw")
                self._refuse(asker, RequestError("internal", "the request failed; the daemon's log says why"))

    def _take(self, asker: _Asker, frame: zmq.Frame, received_ns: int) -> None:
        data, limit = frame.bytes, self._config.max_request_bytes
        try:
            message = wire.decode(data, max_bytes=limit, max_deadline_ms=self._config.max_deadline_ms)
        except RequestError as error:
            self._refuse(_Asker(asker.route, asker.framing, wire.request_id(data, limit)), error)
            return
        asker = _Asker(asker.route, asker.framing, message.id)
        if isinstance(message, wire.Inquire):
            self._send(asker, self._tell(message))
            return
        caller, received_at = caller_of(frame), time.time()

        def submit(one: wire.Evaluate, answer: Answer) -> None:
            self._submit(one, answer, caller, received_ns, received_at)

        if isinstance(message, wire.EvaluateMany):
            Batch(message, submit=submit, done=lambda items: self._reply_many(asker, items)).start()
            return
        answer = partial(self._reply, asker)
        try:
            if isinstance(message, wire.Keep):
                self._record(message, answer, caller, received_ns, received_at)
            elif isinstance(message, wire.Tend):
                self._tend(message, answer, caller, received_ns)
            elif isinstance(message, wire.Steer):
                self._steer(message, answer, caller, received_ns)
            else:
                submit(message, answer)
        except RequestError as error:
            self._refuse(asker, error)

    def _submit(
        self, message: wire.Evaluate, answer: Answer, caller: Caller, received_ns: int, received_at: float
    ) -> None:
        deadline_ms = message.deadline_ms or self._config.deadline_ms
        self._check_admission(message, deadline_ms)
        deadline_ns = received_ns + deadline_ms * 1_000_000
        ticket = self._in_flight.admit(
            answer, received_ns=received_ns, deadline_ns=deadline_ns, explain=message.explain
        )
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
            )
        )

    def _record(
        self, message: wire.Keep, answer: Answer, caller: Caller, received_ns: int, received_at: float
    ) -> None:
        self._check_open(needs=("journal",))
        deadline_ms, record_id = message.deadline_ms or self._config.deadline_ms, new_id()
        ticket = self._in_flight.admit(
            answer,
            received_ns=received_ns,
            deadline_ns=received_ns + deadline_ms * 1_000_000,
            record_id=record_id,
        )
        self._recorder.write(
            message.record, record_id=record_id, at=received_at, caller=caller, ticket=ticket
        )

    def _tend(self, message: wire.Tend, answer: Answer, caller: Caller, received_ns: int) -> None:
        if caller.uid not in (0, os.geteuid()):
            raise RequestError("unauthorized", "op: upkeep is for the user that the daemon runs as, and root")
        self._check_open(needs=("journal",))
        deadline_ns = received_ns + UPKEEP_S * 1_000_000_000
        ticket = self._in_flight.admit(answer, received_ns=received_ns, deadline_ns=deadline_ns)
        self._clerk.submit(ticket, message.upkeep, caller)

    def _steer(self, message: wire.Steer, answer: Answer, caller: Caller, received_ns: int) -> None:
        if caller.uid not in (0, os.geteuid()):
            raise RequestError(
                "unauthorized", "op: control is for the user that the daemon runs as, and root"
            )
        self._check_open(needs=("journal", "engine"))
        if self._steward is None:
            raise RequestError("unavailable", "op: this server cannot change what judges")
        deadline_ns = received_ns + UPKEEP_S * 1_000_000_000
        ticket = self._in_flight.admit(answer, received_ns=received_ns, deadline_ns=deadline_ns)
        self._steward.submit(ticket, message.control)

    def _is_ours(self, pack: str) -> None:
        if pack != self._pack.name:
            raise RequestError("not_found", f"pack: {pack[:64]!r} is not loaded; {self._pack.name} is")

    def _check_admission(self, message: wire.Evaluate, deadline_ms: int) -> None:
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
        """Refuse any request while stopping, without the parts that it needs, and above the limit."""
        if self._stopping:
            raise RequestError("shutting_down", "the daemon is stopping")
        for part in needs:
            if (error := self._refusal(part)) is not None:
                raise error
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

    def _reply(self, asker: _Asker, answer: dict[str, Json] | RequestError) -> None:
        if isinstance(answer, RequestError):
            self._refuse(asker, answer)
        else:
            self._send(asker, wire.reply(asker.request_id, **answer))

    def _reply_many(self, asker: _Asker, items: Sequence[dict[str, Json]]) -> None:
        self._send(asker, wire.reply(asker.request_id, evaluations=items))

    def _refuse(self, asker: _Asker, error: RequestError) -> None:
        self.counters[f"refused_{error.code}"] += 1
        self._send(asker, wire.error_reply(asker.request_id, error))

    def _send(self, asker: _Asker, frame: bytes) -> None:
        try:
            self._router.send_multipart([asker.route, *asker.framing, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.counters["replies_dropped"] += 1

    def _publish(self, kind: str, decision_id: str, members: dict[str, Json]) -> None:
        try:
            self._publisher.send_multipart(wire.event(kind, decision_id, members), zmq.NOBLOCK)
        except zmq.Again:
            self.counters["events_dropped"] += 1

    def _tell(self, message: wire.Inquire) -> bytes:
        if message.op == "metrics":
            return wire.reply(message.id, metrics=dict(self.counters) | {"in_flight": len(self._in_flight)})
        return wire.reply(message.id, status=self.status())

    def status(self) -> dict[str, Json]:
        """The truth about each part, as plain JSON values."""
        described = self._describe()
        trouble = self._refusal("journal") or self._refusal("engine")
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": "stopping" if self._stopping else "refusing" if trouble else "serving",
            "trouble": trouble and trouble.message,
            "uptime_s": round(time.time() - self._started_at, 1),
            "endpoint": self._config.endpoint,
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
            "counters": dict(sorted(self.counters.items())),
            **described,
        }
