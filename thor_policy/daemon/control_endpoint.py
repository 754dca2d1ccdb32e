"""The control endpoint: status and metrics, behind nothing.

Owns a socket beside that of the requests, a thread that serves it, and the snapshot that both sockets send.
Invariant: whatever else the daemon does, an answer waits for no other thread, and is about a second old at
most; however often it is wanted, the parts are asked about once a second. Own thread; `Snapshot` is for any
thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

import msgspec
import zmq

from thor_policy.config import Config
from thor_policy.core.errors import RequestError
from thor_policy.core.status import Status
from thor_policy.daemon.peers import Identity, Peers, Received
from thor_policy.daemon.relays import Relays
from thor_policy.daemon.shares import TokenBucket
from thor_policy.daemon.sockets import bind, open_router
from thor_policy.protocol.messages import StatusRequest
from thor_policy.protocol.replies import encode_error, encode_reply
from thor_policy.protocol.requests import decode_request, recover_request_id
from thor_policy.security.roles import authorise
from thor_policy.telemetry import logs
from thor_policy.telemetry.metrics import Families, as_json

log = logging.getLogger(__name__)

#: Snapshots made a second, and how many more may be made after a quiet time: people who look just after
#: they did something see what they did.
_A_SECOND, _AT_ONCE = 1, 20
#: Requests read at a time, and how long the thread rests after that many, in seconds: a flood leaves the
#: processor to the others.
_BURST, _REST_S = 64, 0.002


class Snapshot:
    """The newest status and metrics, as JSON. `describe` and `measure` may be called on any thread."""

    def __init__(self, describe: Callable[[], Status], measure: Callable[[Status], Families]) -> None:
        self._describe = describe
        self._measure = measure
        self._lock = threading.Lock()
        self._bucket = TokenBucket(_A_SECOND, _AT_ONCE, time.monotonic_ns())
        self._status: Status | None = None
        self._encoded: dict[str, msgspec.Raw] = {}

    def reply(self, message: StatusRequest) -> bytes:
        """The reply to `status` or `metrics`."""
        return encode_reply(message.id, **{message.op: self._part(message.op)})

    def _part(self, op: str) -> msgspec.Raw:
        with self._lock:
            status = self._renewed()
            if op not in self._encoded:
                part = as_json(self._measure(status)) if op == "metrics" else status
                self._encoded[op] = msgspec.Raw(msgspec.json.encode(part))
            return self._encoded[op]

    def _renewed(self) -> Status:
        """The status, made anew if there is none or another may be made."""
        if self._status is None or not self._bucket.wait_ms(1, time.monotonic_ns()):
            self._bucket.take(1)
            self._status = self._describe()
            self._encoded.clear()
        return self._status


class ControlEndpoint:
    """Serves `snapshot` at `config.control_endpoint` from `start` to `stop`."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        config: Config,
        *,
        identify: Callable[[zmq.Frame], Identity | None],
        snapshot: Snapshot,
        on_message: Callable[[int, str, int], None],
        close_connection: Callable[[int, str], None],
    ) -> None:
        self._config = config
        self._snapshot = snapshot
        self.counters: Counter[str] = Counter()
        self.router = open_router(context, config)
        self._peers = Peers(
            self.router,
            identify,
            counters=self.counters,
            on_message=on_message,
            close_connection=close_connection,
        )
        self._relays = Relays(config.max_request_bytes, self.counters)
        self._limit = logs.Limit()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def bind(self) -> None:
        """Accept connections from now on. Raises ConfigError."""
        bind(self.router, self._config.control_endpoint, self._config.control_path, self._config.socket_mode)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer nothing more; the socket is closed with its context."""
        self._ended = True
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        while not self._ended:
            if not self.router.poll(100):
                continue
            answered = 0
            for received in self._peers.receive(_BURST, time.monotonic_ns):
                self._answer(received)
                answered += 1
            if answered == _BURST:
                time.sleep(_REST_S)

    def _answer(self, received: Received) -> None:
        """Reply to one message; no message may end the thread."""
        sender = received.sender
        try:
            reply = self._reply(received)
        except RequestError as error:
            self.counters[f"refused_{error.code}"] += 1
            reply = encode_error(
                recover_request_id(received.frame.bytes, self._config.max_request_bytes), error
            )
        except Exception:
            self.counters["refused_internal"] += 1
            if (unlogged := self._limit.admit(time.monotonic_ns())) is not None:
                log.exception("the status failed", extra=logs.fields(unlogged=unlogged or None))
            reply = encode_error("", RequestError("internal", "the status failed; the daemon's log says why"))
        sender.peers.send(sender, reply)

    def _reply(self, received: Received) -> bytes:
        received = self._relays.attribute(received)
        if received.fault is not None:
            raise received.fault
        identity = received.sender.identity
        message = decode_request(
            received.frame.bytes,
            max_bytes=self._config.max_request_bytes,
            max_deadline_ms=self._config.max_deadline_ms,
            authorise=lambda op: authorise(op, identity.caller, identity.roles),
            relayed=identity.caller.on_behalf_of is not None,
        )
        if not isinstance(message, StatusRequest):
            raise RequestError(
                "bad_request",
                f"op: this endpoint answers status and metrics; send all else to {self._config.endpoint}",
            )
        return self._snapshot.reply(message)
