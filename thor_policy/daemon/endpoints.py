"""The sockets of a daemon, from the first to the last: opened, watched, bound, closed.

Owns the ZeroMQ contexts and all that stands on them. Invariant: no socket is bound before its connections are
watched, and if one cannot be bound, none stays. Main thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import zmq

from thor_policy.config import Config
from thor_policy.core.status import sum_of
from thor_policy.daemon.connections import Connections, connection_limit, raise_file_limit
from thor_policy.daemon.control_endpoint import ControlEndpoint, Snapshot
from thor_policy.daemon.peers import Identity, Peers
from thor_policy.daemon.sockets import bind, open_publisher, open_router
from thor_policy.daemon.tcp_listener import TcpListener
from thor_policy.security.curve_keys import KeyHolder


class Endpoints:
    """Serves the endpoints of `config`: requests over ipc and tcp, events, control.

    `identify` says who sent a frame over ipc, `snapshot` is what the control endpoint sends, `on_closed` gets
    the inode of each connection that ended and could send requests, on another thread. Raises ConfigError.
    """

    def __init__(
        self,
        config: Config,
        *,
        identify: Callable[[zmq.Frame], Identity | None],
        snapshot: Snapshot,
        counters: Counter[str],
        on_closed: Callable[[int], None],
    ) -> None:
        self._config = config
        self._counters = counters
        self._connection_counters: Counter[str] = Counter()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        #: Of the tcp listener, whose handshakes wait for the main thread: those over ipc must not.
        self._tcp_context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            self._connections = Connections(
                capacity=connection_limit(config.max_connections, raise_file_limit()),
                headroom_bytes=config.traffic_memory_mb * 2**20,
                counters=self._connection_counters,
                on_closed=on_closed,
            )
            self._open(identify, snapshot)
            self._bind()
        except BaseException:
            self._destroy(linger_ms=0)
            raise
        self._connections.start()
        self._control.start()

    def _open(self, identify: Callable[[zmq.Frame], Identity | None], snapshot: Snapshot) -> None:
        config, connections = self._config, self._connections
        self._publisher = open_publisher(self._context)
        self._publisher_number = connections.watch(self._publisher, asks=False)
        self._control = ControlEndpoint(
            self._context,
            config,
            identify=identify,
            snapshot=snapshot,
            on_message=connections.note_message,
            close_connection=connections.close,
        )
        connections.watch(self._control.router, asks=True)
        #: The peers that send requests, by transport.
        self.peers = [self._peers(open_router(self._context, config), identify)]
        self._tcp = TcpListener(self._tcp_context, config, self._counters) if config.tcp_endpoint else None
        if self._tcp is not None:
            self.peers.append(self._peers(self._tcp.router, self._tcp.identify, handshakes=True))

    def _peers(
        self,
        router: zmq.Socket[bytes],
        identify: Callable[[zmq.Frame], Identity | None],
        *,
        handshakes: bool = False,
    ) -> Peers:
        self._connections.watch(router, asks=True, bars=True, handshakes=handshakes)
        return Peers(
            router,
            identify,
            counters=self._counters,
            on_message=self._connections.note_message,
            close_connection=self._connections.close,
        )

    def _bind(self) -> None:
        config = self._config
        bind(self.peers[0].router, config.endpoint, config.socket_path, config.socket_mode)
        bind(self._publisher, config.events_endpoint, config.events_path, config.socket_mode)
        self._control.bind()
        if self._tcp is not None:
            self._tcp.bind()

    def poller(self, *others: int) -> zmq.Poller:
        """Polls the sockets that requests come to, and these file descriptors.

        The publisher is never readable: polled, it forgets subscribers that have left, which it does in calls
        alone.
        """
        poller = zmq.Poller()
        poller.register(self._publisher, zmq.POLLIN)
        for peers in self.peers:
            poller.register(peers.router, zmq.POLLIN)
        if self._tcp is not None:
            poller.register(self._tcp.handshakes, zmq.POLLIN)
        for descriptor in others:
            poller.register(descriptor, zmq.POLLIN)
        return poller

    def answer_handshakes(self) -> None:
        """Answer the handshakes over tcp that wait."""
        if self._tcp is not None:
            self._tcp.turn()

    def admits(self, holder: KeyHolder | None) -> bool:
        """False once the key of a caller over tcp was revoked."""
        return self._tcp is None or holder is None or self._tcp.admits(holder)

    def bar(self, sender: str, until_ns: int) -> None:
        """Keep a caller away from the endpoints of requests until this time, in monotonic nanoseconds."""
        self._connections.bar(sender, until_ns)
        if self._tcp is not None:
            self._tcp.bar(sender, until_ns)

    @property
    def has_subscribers(self) -> bool:
        """Whether anybody is connected to the endpoint of events."""
        return self._connections.open_to(self._publisher_number) > 0

    def publish(self, message: list[bytes]) -> None:
        """Send an event to whoever subscribed; one that reads too slowly misses it."""
        self._publisher.send_multipart(message, zmq.NOBLOCK)

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return self._connections.open

    @property
    def counters(self) -> Counter[str]:
        """What became of messages and connections on other threads, by name. Any thread."""
        return sum_of(self._connection_counters, self._control.counters)

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._context.closed

    def _destroy(self, *, linger_ms: int) -> None:
        self._context.destroy(linger=linger_ms)
        self._tcp_context.destroy(linger=linger_ms)

    def close(self) -> None:
        """Send what is queued, within a second, and release the endpoints."""
        self._control.stop()
        self._connections.stop()
        self._destroy(linger_ms=1_000)
        for path in (self._config.socket_path, self._config.events_path, self._config.control_path):
            path.unlink(missing_ok=True)
