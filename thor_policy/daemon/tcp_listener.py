"""The tcp listener: only for callers that hold a key.

Owns the tcp ROUTER, the handler that ZeroMQ asks about each handshake (ZAP, RFC 27) and the count of
those that failed. Invariant: without CURVE and a key that the ring knows at that moment nothing gets
through, and whatever does not is counted. Nothing here blocks. Main thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import zmq
from zmq.auth import Authenticator

from thor_policy.config import Config
from thor_policy.core.errors import ConfigError
from thor_policy.daemon.sockets import limit
from thor_policy.security.curve_keys import KeyHolder, KeyPair, KeyRing, Keys
from thor_policy.security.roles import PacksFor, Roles

#: ZAP domain of the tcp ROUTER.
_DOMAIN = "tcp"
#: How long a peer may take to show its key, in milliseconds.
_HANDSHAKE_MS = 5_000
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


def check_identity(config: Config) -> None:
    """Check at a start that the daemon can identify its callers, before it loads a model.

    Raises ConfigError.
    """
    Roles(config.roles)
    PacksFor(config.packs_for)
    if not config.endpoint.startswith("ipc://"):
        raise ConfigError(
            f"endpoint is {config.endpoint!r}, but a daemon listens at an ipc endpoint; besides, for holders "
            f"of a CURVE key, with --tcp-endpoint {config.endpoint}"
        )
    if config.tcp_endpoint:
        _server_key(config)


def _server_key(config: Config) -> KeyPair:
    keys = Keys(config.keys_dir)
    if not keys.clients():
        raise ConfigError(
            f"tcp_endpoint is {config.tcp_endpoint!r}, but there is no client key in {config.keys_dir}, "
            "and nobody gets in without one: run `thorpolicy keys new NAME`, or leave tcp_endpoint empty"
        )
    return keys.server()


class TcpListener:
    """Listens at `config.tcp_endpoint`; `sockets` are those that a loop has to poll besides `router`.

    Raises ConfigError if there is no key yet, or the address cannot be used.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], config: Config, counters: Counter[str]
    ) -> None:
        pair = _server_key(config)
        self._ring = KeyRing(config.keys_dir)
        self._counters = counters
        self._zap = _KeyAuthenticator(context, self._ring, counters)
        self._zap.start()
        self.router = context.socket(zmq.ROUTER)
        self.router.set(zmq.ROUTER_MANDATORY, 1)
        self.router.set(zmq.ZAP_DOMAIN, _DOMAIN.encode())
        self.router.set(zmq.CURVE_SERVER, 1)
        self.router.set(zmq.CURVE_SECRETKEY, pair.secret.encode())
        self.router.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        self.router.set(zmq.TCP_KEEPALIVE, 1)
        self.router.set(zmq.IPV6, int("[" in config.tcp_endpoint))
        limit(self.router)
        self._monitor: zmq.Socket[bytes] = self.router.get_monitor_socket(_FAILED)
        try:
            self.router.bind(config.tcp_endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"cannot listen at tcp_endpoint {config.tcp_endpoint}: {error}") from error

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """What becomes readable when `turn` has something to do."""
        return self._zap.zap_socket, self._monitor

    def turn(self) -> None:
        """Answer the handshakes that wait, and count those that failed."""
        with suppress(zmq.Again):
            while True:
                _finish(self._zap.handle_zap_message(self._zap.zap_socket.recv_multipart(zmq.NOBLOCK)))
        with suppress(zmq.Again):
            while True:
                self._monitor.recv_multipart(zmq.NOBLOCK)
                self._counters["handshakes_failed"] += 1

    def holder_of(self, frame: zmq.Frame) -> KeyHolder | None:
        """Who sent a frame; None if the key was revoked since its handshake."""
        return self._ring.find(str(frame.get("User-Id")))

    def admits(self, holder: KeyHolder) -> bool:
        """False once the key was revoked."""
        return self._ring.find(holder.public) is not None


class _KeyAuthenticator(Authenticator):
    """ZeroMQ's own handler, which asks the ring; the user id of a connection is its public key (Z85)."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], ring: KeyRing, counters: Counter[str]
    ) -> None:
        super().__init__(context)
        self._ring = ring
        self._counters = counters
        self.configure_curve_callback(_DOMAIN, self)

    def callback(self, _domain: str, public: bytes) -> bool:
        """Whether the holder of this public key may connect."""
        known = self._ring.find(public.decode("ascii")) is not None
        self._counters["keys_accepted" if known else "keys_refused"] += 1
        return known


def _finish(handling: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that waits for nothing, for our callback answers at once."""
    with suppress(StopIteration):
        handling.send(None)
