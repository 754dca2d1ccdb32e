"""The tcp listener: only for callers that hold a key.

Owns the listening tcp socket, and the question which key may come in. Invariant: without CURVE and a key that
the ring knows at that moment nothing gets through. Nothing here blocks. Main thread.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from functools import lru_cache
from urllib.parse import urlsplit

from zmq.utils import z85

from thor_policy.config import Config
from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Caller
from thor_policy.daemon.connection import Listener
from thor_policy.daemon.peers import Identity
from thor_policy.daemon.sockets import BACKLOG, REQUESTS
from thor_policy.protocol.curve import Curve
from thor_policy.protocol.zmtp import Bounds, Mechanism
from thor_policy.security.curve_keys import KeyHolder, KeyPair, KeyRing, Keys
from thor_policy.security.roles import PacksFor, Roles


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

    def __init__(self, config: Config, bounds: Bounds, counters: Counter[str]) -> None:
        self._secret = z85.decode(_server_key(config).secret)
        self._ring = KeyRing(config.keys_dir)
        self._counters = counters
        self._endpoint = config.tcp_endpoint
        self._bounds = bounds
        #: Until when callers are kept out, in monotonic nanoseconds.
        self._barred_ns: dict[str, int] = {}

    def bind(self) -> Listener:
        """Take connections from now on. Raises ConfigError."""
        url = urlsplit(self._endpoint)
        host, is_ipv6 = url.hostname or "", ":" in (url.hostname or "")
        try:
            opened = socket.create_server(
                ("" if host == "*" else host, url.port or 0),
                family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
                backlog=BACKLOG,
                dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
            )
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"cannot listen at tcp_endpoint {self._endpoint}: {reason}") from error
        opened.setblocking(False)
        # inherited by what is accepted
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Listener(
            opened, *REQUESTS, self._bounds, bars=True, mechanism=self._mechanism, sender=self._sender
        )

    def _mechanism(self) -> Curve:
        return Curve(self._secret, self._may_come)

    def _may_come(self, public: bytes) -> bool:
        """Whether the holder of this public key may connect."""
        holder = self._ring.find(_text_of(public))
        known = holder is not None and not self._is_barred(holder)
        self._counters["keys_accepted" if known else "keys_refused"] += 1
        return known

    def identify(self, mechanism: Mechanism) -> Identity | None:
        """Who sends by a connection; None if the key was revoked since its handshake."""
        if not isinstance(mechanism, Curve) or mechanism.public is None:
            return None
        holder = self._ring.find(_text_of(mechanism.public))
        if holder is None:
            return None
        return Identity(Caller(transport="tcp", key=holder.name), holder.roles, holder)

    def _sender(self, mechanism: Mechanism) -> str:
        identity = self.identify(mechanism)
        return "" if identity is None else identity.caller.who or ""

    def bar(self, sender: str, until_ns: int) -> None:
        """Refuse the handshakes of this caller until this monotonic time in nanoseconds."""
        now_ns = time.monotonic_ns()
        self._barred_ns = {name: until for name, until in self._barred_ns.items() if until > now_ns}
        self._barred_ns[sender] = until_ns

    def admits(self, holder: KeyHolder) -> bool:
        """False once the key was revoked."""
        return self._ring.find(holder.public) is not None

    def _is_barred(self, holder: KeyHolder) -> bool:
        sender = Caller(transport="tcp", key=holder.name).who or ""
        return self._barred_ns.get(sender, 0) > time.monotonic_ns()


@lru_cache(1_024)
def _text_of(public: bytes) -> str:
    """A key as ZeroMQ writes it (Z85)."""
    return z85.encode(public).decode("ascii")
