"""The sockets: every request in, every reply out, on the main thread.

Owns the ROUTER, the tickets of requests in flight and their deadlines. Invariant: each request that
arrives gets exactly one reply (or is counted as lost with its peer), and a decision is sent only after the
journal said that it is committed. Nothing here waits for the model or the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import logging
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import zmq
from msgspec.structs import replace

from thor_policy import __version__, wire
from thor_policy.config import Config
from thor_policy.core import Caller, Decision, Json, ModelInfo, PackInfo, Request
from thor_policy.errors import AlreadyRunning, ConfigError, RequestError
from thor_policy.policy import Explained, Unexplained
from thor_policy.worker import Outcome, Refused

log = logging.getLogger(__name__)

#: Frames above this drop the connection inside ZeroMQ; the limit with a reply is Config.max_request_bytes.
_MAX_FRAME_BYTES = 64 * 1024 * 1024
#: Requests read before replies and deadlines get their turn.
_READ_BURST = 64
#: How long an idle loop sleeps at most, in milliseconds.
_IDLE_MS = 1_000


class Fate(Protocol):
    """What the journal reports of an event (`journal.writer.Committed`)."""

    @property
    def ticket(self) -> int | None: ...
    @property
    def kind(self) -> str: ...
    @property
    def commit_ms(self) -> float: ...
    @property
    def error(self) -> str | None: ...


class Work(Protocol):
    """The engine thread, as far as the server needs it (`worker.Worker`)."""

    @property
    def alive(self) -> bool: ...
    @property
    def waiting(self) -> int: ...
    @property
    def mean_decision_ms(self) -> float: ...

    def submit(self, request: Request) -> None: ...


@dataclass
class _Pending:
    """One request in flight. It is answered when nothing it waits for is missing."""

    route: bytes
    framing: list[bytes]
    request_id: str
    received_ns: int
    deadline_ns: int
    wants_explanation: bool
    decision: Decision | None = None
    committed: bool = False
    commit_ms: float = 0.0
    awaits_explanation: bool = False


@dataclass
class Mailbox:
    """What other threads have to tell the main thread, and how they wake it."""

    items: deque[tuple[int, Outcome] | Fate] = field(default_factory=deque)
    wakeup_fd: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def put(self, *items: tuple[int, Outcome] | Fate) -> None:
        """Any thread; never blocks."""
        self.items.extend(items)
        os.eventfd_write(self.wakeup_fd, 1)

    def take(self) -> Iterator[tuple[int, Outcome] | Fate]:
        """Main thread: everything that has arrived."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wakeup_fd)
        while self.items:
            yield self.items.popleft()

    def close(self) -> None:
        os.close(self.wakeup_fd)


class Server:
    """Serves one endpoint, whose lock the caller holds (`endpoint_lock`).

    `describe` adds what other parts say of themselves to the status. Raises ConfigError if the endpoint
    cannot be opened.
    """

    def __init__(
        self,
        config: Config,
        *,
        mailbox: Mailbox,
        work: Work,
        pack: PackInfo,
        model: ModelInfo,
        describe: Callable[[], dict[str, Json]] = dict,
    ) -> None:
        self._config = config
        self._mailbox = mailbox
        self._work = work
        self._pack = pack
        self._model = model
        self._describe = describe
        self._started_at = time.time()
        self._tickets = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._deadlines: list[tuple[int, int]] = []
        self._stopping = False
        self.counters: Counter[str] = Counter()
        self._context = zmq.Context(io_threads=1)
        try:
            self._router = self._bind()
        except BaseException:
            self._context.destroy(linger=0)
            raise

    # ------------------------------------------------------------ the loop

    def run(self, *, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop` (or SIGTERM, SIGINT on the main thread), then drain and return."""
        with _signals(self.stop):
            poller = zmq.Poller()
            poller.register(self._router, zmq.POLLIN)
            poller.register(self._mailbox.wakeup_fd, zmq.POLLIN)
            ready()
            drained_by_ns: int | None = None
            while True:
                events = dict(poller.poll(self._wait_ms()))
                self._deliver()
                if self._router in events:
                    self._read()
                self._expire(time.monotonic_ns())
                if self._stopping:
                    drained_by_ns = drained_by_ns or time.monotonic_ns() + int(self._config.shutdown_s * 1e9)
                    if not self._pending or time.monotonic_ns() > drained_by_ns:
                        break
            self._refuse_all(RequestError("shutting_down", "the daemon stopped before it could answer"))

    def stop(self) -> None:
        """Ask the loop to drain and return; safe from any thread and from signal handlers."""
        self._stopping = True
        with contextlib.suppress(OSError):
            os.eventfd_write(self._mailbox.wakeup_fd, 1)

    def close(self) -> None:
        """Send what is queued and release the endpoint; safe to call twice."""
        if not self._context.closed:
            self._context.destroy(linger=1_000)
            self._config.socket_path.unlink(missing_ok=True)

    def _wait_ms(self) -> int:
        if not self._deadlines:
            return _IDLE_MS
        left_ms = (self._deadlines[0][0] - time.monotonic_ns()) // 1_000_000 + 1
        return max(0, min(_IDLE_MS, left_ms))

    # ------------------------------------------------------------ in

    def _read(self) -> None:
        for _ in range(_READ_BURST):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            received_ns = time.monotonic_ns()
            self.counters["received"] += 1
            route, *framing, body = frames
            envelope = [frame.bytes for frame in framing]
            if envelope not in ([], [b""]):
                error = RequestError("bad_request", "a request is one JSON frame")
                self._send(route.bytes, envelope[:1], wire.error_reply("", error))
                self.counters["refused_bad_request"] += 1
                continue
            self._admit(route.bytes, envelope, body, received_ns)

    def _admit(self, route: bytes, framing: list[bytes], frame: zmq.Frame, received_ns: int) -> None:
        data = frame.bytes
        try:
            message = wire.decode(
                data,
                max_bytes=self._config.max_request_bytes,
                max_deadline_ms=self._config.max_deadline_ms,
            )
            if isinstance(message, wire.Inquire):
                self._send(route, framing, self._answer(message))
                return
            self._check_admission(message)
        except RequestError as error:
            self._refuse(route, framing, wire.request_id(data, self._config.max_request_bytes), error)
            return
        deadline_ms = message.deadline_ms or self._config.deadline_ms
        ticket = next(self._tickets)
        pending = _Pending(
            route=route,
            framing=framing,
            request_id=message.id,
            received_ns=received_ns,
            deadline_ns=received_ns + deadline_ms * 1_000_000,
            wants_explanation=message.explain == "inline",
        )
        self._pending[ticket] = pending
        heapq.heappush(self._deadlines, (pending.deadline_ns, ticket))
        self._work.submit(
            Request(
                ticket=ticket,
                evaluation=message.evaluation,
                caller=_caller(frame),
                received_at=time.time(),
                received_ns=received_ns,
                deadline_ns=pending.deadline_ns,
                explain=message.explain,
                annotations=message.annotations,
            )
        )

    def _check_admission(self, message: wire.Evaluate) -> None:
        if self._stopping:
            raise RequestError("shutting_down", "the daemon is stopping")
        if message.pack is not None and message.pack != self._pack.name:
            raise RequestError(
                "not_found", f"pack: {message.pack[:64]!r} is not loaded; {self._pack.name} is"
            )
        if not self._work.alive:
            raise RequestError("unavailable", "the engine has stopped; the daemon must be restarted")
        if len(self._pending) >= self._config.max_in_flight:
            wait_ms = int(self._work.waiting * self._work.mean_decision_ms) + 1
            raise RequestError(
                "busy",
                f"{len(self._pending)} requests are in flight; the limit is {self._config.max_in_flight}",
                retry_after_ms=wait_ms,
            )

    def _answer(self, message: wire.Inquire) -> bytes:
        if message.op == "metrics":
            return wire.reply(message.id, metrics=dict(self.counters) | {"in_flight": len(self._pending)})
        return wire.reply(message.id, status=self.status())

    def status(self) -> dict[str, Json]:
        """The truth about each part, as plain JSON values."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": "stopping" if self._stopping else "serving" if self._work.alive else "failed",
            "uptime_s": round(time.time() - self._started_at, 1),
            "endpoint": self._config.endpoint,
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
            },
            "in_flight": len(self._pending),
            "max_in_flight": self._config.max_in_flight,
            "counters": dict(sorted(self.counters.items())),
            **self._describe(),
        }

    # ------------------------------------------------------------ out

    def _deliver(self) -> None:
        for item in self._mailbox.take():
            if isinstance(item, tuple):
                ticket, outcome = item
                if pending := self._pending.get(ticket):
                    self._note(ticket, pending, outcome)
            elif item.ticket is not None:
                self._note_fate(item.ticket, item)

    def _note(self, ticket: int, pending: _Pending, outcome: Outcome) -> None:
        """Hear from the engine thread."""
        if isinstance(outcome, Refused):
            self._fail(ticket, outcome.error)
        elif isinstance(outcome, Decision):
            pending.decision = outcome
            pending.awaits_explanation = pending.wants_explanation and outcome.explanation is None
        elif isinstance(outcome, Unexplained):
            pending.awaits_explanation = False
            self._reply_if_complete(ticket, pending)
        elif isinstance(outcome, Explained) and pending.decision is not None:
            pending.decision = replace(pending.decision, explanation=outcome.explanation)

    def _note_fate(self, ticket: int, fate: Fate) -> None:
        """Hear from the journal."""
        self.counters[f"{fate.kind}s_{'lost' if fate.error else 'recorded'}"] += 1
        pending = self._pending.get(ticket)
        if pending is None:
            if fate.kind == "decision":
                self.counters["decisions_late"] += 1
        elif fate.kind == "explanation":
            pending.awaits_explanation = False
            if fate.error and pending.decision is not None:
                pending.decision = replace(pending.decision, explanation=None)
            self._reply_if_complete(ticket, pending)
        elif fate.error == "disk_full":
            self._fail(ticket, RequestError("disk_full", "the decision could not be recorded: disk full"))
        elif fate.error:
            self._fail(ticket, RequestError("unavailable", "the decision could not be recorded"))
        else:
            pending.committed, pending.commit_ms = True, fate.commit_ms
            self._reply_if_complete(ticket, pending)

    def _reply_if_complete(self, ticket: int, pending: _Pending) -> None:
        if pending.committed and not pending.awaits_explanation:
            self._reply(ticket, pending, explained=pending.wants_explanation)

    def _reply(self, ticket: int, pending: _Pending, *, explained: bool) -> None:
        del self._pending[ticket]
        assert pending.decision is not None  # noqa: S101  committed, so the engine thread told of it
        total_ms = (time.monotonic_ns() - pending.received_ns) / 1e6
        frame = wire.decision_reply(
            pending.request_id,
            pending.decision,
            explained=explained,
            commit_ms=pending.commit_ms,
            total_ms=total_ms,
        )
        self.counters[f"served_{pending.decision.tier}"] += 1
        self._send(pending.route, pending.framing, frame)

    def _expire(self, now_ns: int) -> None:
        """Answer what is due: with the decision if it is committed, otherwise with `expired`."""
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, ticket = heapq.heappop(self._deadlines)
            pending = self._pending.get(ticket)
            if pending is None:
                continue
            if pending.committed:
                self.counters["explanations_late"] += 1
                self._reply(ticket, pending, explained=False)
            else:
                self._fail(ticket, RequestError("expired", "no decision was recorded before the deadline"))

    def _fail(self, ticket: int, error: RequestError) -> None:
        pending = self._pending.pop(ticket)
        self._refuse(pending.route, pending.framing, pending.request_id, error)

    def _refuse_all(self, error: RequestError) -> None:
        for ticket, pending in list(self._pending.items()):
            if pending.committed:
                self._reply(ticket, pending, explained=False)
            else:
                self._fail(ticket, error)

    def _refuse(self, route: bytes, framing: list[bytes], request_id: str, error: RequestError) -> None:
        self.counters[f"refused_{error.code}"] += 1
        self._send(route, framing, wire.error_reply(request_id, error))

    def _send(self, route: bytes, framing: list[bytes], frame: bytes) -> None:
        try:
            self._router.send_multipart([route, *framing, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.counters["replies_dropped"] += 1

    # ------------------------------------------------------------ sockets

    def _bind(self) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.set(zmq.LINGER, 1_000)
        router.set(zmq.MAXMSGSIZE, _MAX_FRAME_BYTES)
        router.set(zmq.ROUTER_MANDATORY, 1)
        router.set(zmq.SNDHWM, 10_000)
        router.set(zmq.RCVHWM, 10_000)
        path = self._config.socket_path
        try:
            old_mask = os.umask(0o177)
            try:
                router.bind(self._config.endpoint)
            finally:
                os.umask(old_mask)
            path.chmod(self._config.socket_mode)
        except (zmq.ZMQError, OSError) as error:
            raise ConfigError(f"cannot listen at endpoint {self._config.endpoint}: {error}") from error
        return router


def _caller(frame: zmq.Frame) -> Caller:
    """Who sent a frame, as the kernel vouches for it: `Peer-Address` is `localhost:UID:GID:PID` on ipc."""
    _, uid, gid, pid = str(frame.get("Peer-Address")).split(":")
    return Caller(transport="ipc", uid=int(uid), gid=int(gid), pid=int(pid))


@contextlib.contextmanager
def endpoint_lock(path: Path) -> Iterator[None]:
    """Hold the endpoint at `path`: binding an ipc path twice succeeds silently and steals it.

    Raises AlreadyRunning if another daemon holds it, ConfigError if its directory cannot be used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError(f"cannot use the socket directory {path.parent}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AlreadyRunning(
                f"the endpoint ipc://{path} is already served; stop that daemon, "
                "or choose another with --endpoint"
            ) from error
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `stop`; a second one ends the process at once.

    Off the main thread nothing happens: whoever runs there handles signals. A poll is retried after a
    signal, but `stop` makes the mailbox readable, so the loop wakes all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def handle(number: int, _frame: object) -> None:
        if seen:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        seen.append(number)
        stop()

    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
