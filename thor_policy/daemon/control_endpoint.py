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

from thor_policy.config import Config
from thor_policy.core.errors import RequestError
from thor_policy.core.status import Status
from thor_policy.daemon.connection import Connection, Listener
from thor_policy.daemon.connections import Connections
from thor_policy.daemon.peers import Identity, Received, bounds_of, received
from thor_policy.daemon.relays import Relays
from thor_policy.daemon.shares import TokenBucket
from thor_policy.daemon.sockets import REQUESTS, bind
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
#: Requests read at a time, for how long in nanoseconds, and how long the thread rests after that many, in
#: seconds: a flood leaves the processor to the others.
_BURST, _BURST_NS, _REST_S = 64, 10_000_000, 0.002


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
        config: Config,
        connections: Connections,
        *,
        identify: Callable[[Connection], Identity],
        snapshot: Snapshot,
        counters: Counter[str],
    ) -> None:
        self._config = config
        self._snapshot = snapshot
        self._identify = identify
        self.connections = connections
        self.counters = counters
        self._relays = Relays(config.max_request_bytes, self.counters)
        self._limit = logs.Limit()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def bind(self) -> None:
        """Accept connections from now on. Raises ConfigError."""
        opened = bind(self._config.control_path, self._config.socket_mode)
        self.connections.listen(Listener(opened, *REQUESTS, bounds_of(self._config.max_request_bytes)))

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer nothing more, and close the socket."""
        self._ended = True
        if self._thread.is_alive():
            self._thread.join(5)
        self.connections.close(linger_s=0.1)

    def _run(self) -> None:
        while not self._ended:
            self.connections.poll(100)
            answered, until_ns = 0, time.monotonic_ns() + _BURST_NS
            for connection, incoming in self.connections.receive(_BURST, until_ns):
                message = received(connection, incoming, self._identify, self.counters)
                if message is not None:
                    self._answer(message)
                    answered += 1
            self.connections.flush()
            self.connections.take_ended()  # nothing waits here for more than a turn
            if answered == _BURST:
                time.sleep(_REST_S)

    def _answer(self, message: Received) -> None:
        """Reply to one message; no message may end the thread."""
        sender = message.sender
        try:
            reply = self._reply(message)
        except RequestError as error:
            self.counters[f"refused_{error.code}"] += 1
            reply = encode_error(recover_request_id(message.frame, self._config.max_request_bytes), error)
        except Exception:
            self.counters["refused_internal"] += 1
            if (unlogged := self._limit.admit(time.monotonic_ns())) is not None:
                log.exception("the status failed", extra=logs.fields(unlogged=unlogged or None))
            reply = encode_error("", RequestError("internal", "the status failed; the daemon's log says why"))
        if not self.connections.send(sender.connection, sender.reply(reply)):
            self.counters["replies_dropped"] += 1

    def _reply(self, message: Received) -> bytes:
        message = self._relays.attribute(message)
        if message.fault is not None:
            raise message.fault
        identity = message.sender.identity
        request = decode_request(
            message.frame,
            max_bytes=self._config.max_request_bytes,
            max_deadline_ms=self._config.max_deadline_ms,
            authorise=lambda op: authorise(op, identity.caller, identity.roles),
            relayed=identity.caller.on_behalf_of is not None,
        )
        if not isinstance(request, StatusRequest):
            raise RequestError(
                "bad_request",
                f"op: this endpoint answers status and metrics; send all else to {self._config.endpoint}",
            )
        return self._snapshot.reply(request)
