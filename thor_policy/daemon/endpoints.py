"""The sockets of a daemon, from the first to the last: bound, served, closed.

Owns the connections of the main thread, over ipc and tcp, and the control endpoint beside them. Invariant: if
a socket cannot be bound, none stays; who sends is what the kernel says or a key proves. Main thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from thor_policy.config import Config
from thor_policy.core.fair_queue import Lane
from thor_policy.core.requests import Caller
from thor_policy.core.status import sum_of
from thor_policy.daemon.connection import Connection, Listener
from thor_policy.daemon.connections import Connections, connection_limit, raise_file_limit
from thor_policy.daemon.control_endpoint import ControlEndpoint, Snapshot
from thor_policy.daemon.peers import Identity, Received, Sender, bounds_of, received
from thor_policy.daemon.sockets import REQUESTS, bind, subscriptions
from thor_policy.daemon.tcp_listener import TcpListener
from thor_policy.security.curve_keys import KeyHolder
from thor_policy.security.roles import Roles

#: The part of all connections that those to the control endpoint may be, and the least that they may be.
_CONTROL_PART, _CONTROL_LEAST = 8, 4


class Endpoints:
    """Serves the endpoints of `config`: requests over ipc and tcp, events, control.

    `roles` gives those of now, `snapshot` is what the control endpoint sends. Raises ConfigError.
    """

    def __init__(
        self, config: Config, *, roles: Callable[[], Roles], snapshot: Snapshot, counters: Counter[str]
    ) -> None:
        self._config = config
        self._roles = roles
        self._counters = counters
        self._connection_counters: Counter[str] = Counter()
        limit = connection_limit(config.max_connections, raise_file_limit())
        control_limit = max(_CONTROL_LEAST, limit // _CONTROL_PART)
        headroom_bytes = config.traffic_memory_mb * 2**20
        self._connections = Connections(
            capacity=limit - control_limit,
            headroom_bytes=headroom_bytes,
            counters=self._connection_counters,
        )
        control_counters: Counter[str] = Counter()  # another thread's
        self._control = ControlEndpoint(
            config,
            Connections(
                capacity=control_limit,
                headroom_bytes=headroom_bytes // _CONTROL_PART,
                counters=control_counters,
            ),
            identify=self._of_kernel,
            snapshot=snapshot,
            counters=control_counters,
        )
        self._tcp: TcpListener | None = None
        self.closed = False
        try:
            self._bind()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Answer at the control endpoint."""
        self._control.start()

    def _bind(self) -> None:
        config, mode = self._config, self._config.socket_mode
        bounds = bounds_of(config.max_request_bytes)
        if config.tcp_endpoint:
            self._tcp = TcpListener(config, bounds, self._counters)
        requests = Listener(bind(config.socket_path, mode), *REQUESTS, bounds, bars=True)
        self._connections.listen(requests)
        self._connections.listen(subscriptions(bind(config.events_path, mode)))
        self._control.bind()
        if self._tcp is not None:
            self._connections.listen(self._tcp.bind())

    def _identify(self, connection: Connection) -> Identity | None:
        """Who sends by a connection; None once its key was revoked."""
        if connection.caller is None and self._tcp is not None:
            return self._tcp.identify(connection.session.mechanism)
        return self._of_kernel(connection)

    def _of_kernel(self, connection: Connection) -> Identity:
        caller = connection.caller or Caller(transport="tcp")  # nobody, who has no role
        return Identity(caller, self._roles().of(caller))

    # ------------------------------------------------------------ messages

    def watch(self, descriptor: int) -> None:
        """End a `poll` early when this descriptor is readable."""
        self._connections.watch(descriptor)

    def poll(self, timeout_ms: float) -> None:
        """Send what was queued, and wait until something arrives, at most so long."""
        self._connections.flush()
        self._connections.poll(timeout_ms)

    def receive(self, most: int, until_ns: int) -> Iterator[Received]:
        """Messages that have arrived, `most` at most and until then (monotonic): the callers in turn."""
        for connection, incoming in self._connections.receive(most, until_ns):
            message = received(connection, incoming, self._identify, self._counters)
            if message is not None:
                yield message

    def send(self, sender: Sender, frame: bytes) -> None:
        """Queue a reply; one whose connection has ended is dropped, and counted."""
        if not self._admits(sender.identity.holder):
            self._counters["replies_to_revoked_keys"] += 1
        elif not self._connections.send(sender.connection, sender.reply(frame)):
            self._counters["replies_dropped"] += 1

    def flush(self) -> None:
        """Send what was queued, as much as the kernel takes."""
        self._connections.flush()

    def publish(self, message: Sequence[bytes]) -> None:
        """Queue an event for whoever subscribed; one that reads too slowly misses it."""
        self._connections.publish(message)

    def take_ended(self) -> list[Lane]:
        """The lanes of connections that sent something and have ended since this was last called."""
        return self._connections.take_ended()

    def bar(self, sender: str, until_ns: int) -> None:
        """Keep a caller away from the endpoints of requests until this time, in monotonic nanoseconds."""
        self._connections.bar(sender, until_ns)
        if self._tcp is not None:
            self._tcp.bar(sender, until_ns)

    def _admits(self, holder: KeyHolder | None) -> bool:
        """False once the key of a caller over tcp was revoked."""
        return self._tcp is None or holder is None or self._tcp.admits(holder)

    # ------------------------------------------------------------ accounts, and the end

    @property
    def has_subscribers(self) -> bool:
        """Whether anybody has subscribed to events."""
        return self._connections.has_subscribers

    @property
    def connections(self) -> int:
        """Connections that are open now. Any thread."""
        return self._connections.open + self._control.connections.open

    @property
    def counters(self) -> Counter[str]:
        """What became of messages and connections, by name. Any thread."""
        return sum_of(self._connection_counters, self._control.counters)

    def close(self) -> None:
        """Send what is queued, within a second, and release the endpoints."""
        self.closed = True
        self._control.stop()
        self._connections.close(linger_s=1)
        for path in (self._config.socket_path, self._config.events_path, self._config.control_path):
            path.unlink(missing_ok=True)
