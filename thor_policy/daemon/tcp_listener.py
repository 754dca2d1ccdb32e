"""The tcp listener: only for callers that hold a key.

Owns the tcp ROUTER and the handler that ZeroMQ asks about each handshake (ZAP, RFC 27). Invariant: without
CURVE and a key that the ring knows at that moment nothing gets through. Nothing here blocks. Main thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import zmq
from zmq.auth import Authenticator

from thor_policy.config import Config
from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Caller
from thor_policy.daemon.peers import Identity
from thor_policy.daemon.sockets import open_router
from thor_policy.security.curve_keys import KeyHolder, KeyPair, KeyRing, Keys
from thor_policy.security.roles import PacksFor, Roles

#: ZAP domain of the tcp ROUTER.
_DOMAIN = "tcp"


def check_identity(config: Config) -> None:
    """Check at a start that the daemon can identify its callers, before it loads a model.

    Raises ConfigError.
    """
    Roles(config.roles)
    PacksFor(config.packs_for)
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
    """Listens at `config.tcp_endpoint` once it is bound. Raises ConfigError if there is no key yet."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], config: Config, counters: Counter[str]
    ) -> None:
        pair = _server_key(config)
        self._ring = KeyRing(config.keys_dir)
        self._counters = counters
        self._zap = _KeyAuthenticator(context, self._ring, counters)
        self._zap.start()
        self.router = open_router(context, config)
        self.router.set(zmq.ZAP_DOMAIN, _DOMAIN.encode())
        self.router.set(zmq.CURVE_SERVER, 1)
        self.router.set(zmq.CURVE_SECRETKEY, pair.secret.encode())
        self.router.set(zmq.TCP_KEEPALIVE, 1)
        self.router.set(zmq.IPV6, int("[" in config.tcp_endpoint))
        self._endpoint = config.tcp_endpoint

    def bind(self) -> None:
        """Accept connections from now on. Raises ConfigError."""
        try:
            self.router.bind(self._endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"cannot listen at tcp_endpoint {self._endpoint}: {error}") from error

    @property
    def handshakes(self) -> zmq.Socket[bytes]:
        """What becomes readable when `turn` has something to do."""
        return self._zap.zap_socket

    def turn(self) -> None:
        """Answer the handshakes that wait."""
        with suppress(zmq.Again):
            while True:
                _finish(self._zap.handle_zap_message(self._zap.zap_socket.recv_multipart(zmq.NOBLOCK)))

    def identify(self, frame: zmq.Frame) -> Identity | None:
        """Who sent a frame; None if the key was revoked since its handshake."""
        holder = self._ring.find(str(frame.get("User-Id")))
        if holder is None:
            return None
        return Identity(Caller(transport="tcp", key=holder.name), holder.roles, holder)

    def bar(self, sender: str, until_ns: int) -> None:
        """Refuse the handshakes of this caller until this monotonic time in nanoseconds."""
        self._zap.bar(sender, until_ns)

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
        #: Until when callers are kept out, in monotonic nanoseconds.
        self._barred_ns: dict[str, int] = {}
        self.configure_curve_callback(_DOMAIN, self)

    def bar(self, sender: str, until_ns: int) -> None:
        """Keep this caller out until then; those whose time is over are forgotten."""
        now_ns = time.monotonic_ns()
        self._barred_ns = {name: until for name, until in self._barred_ns.items() if until > now_ns}
        self._barred_ns[sender] = until_ns

    def callback(self, _domain: str, public: bytes) -> bool:
        """Whether the holder of this public key may connect."""
        holder = self._ring.find(public.decode("ascii"))
        known = holder is not None and not self._is_barred(holder)
        self._counters["keys_accepted" if known else "keys_refused"] += 1
        return known

    def _is_barred(self, holder: KeyHolder) -> bool:
        sender = Caller(transport="tcp", key=holder.name).who or ""
        return self._barred_ns.get(sender, 0) > time.monotonic_ns()


def _finish(handling: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that waits for nothing, for our callback answers at once."""
    with suppress(StopIteration):
        handling.send(None)
