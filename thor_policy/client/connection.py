"""How a client reaches a daemon: over ipc, or over tcp with a CURVE key.

Owns the limits of a client's socket and the handshake. Invariant: a daemon that is not there, or that
does not know the key, is an `Unreachable` within seconds, never silence. Any thread; blocks for the
handshake.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from thor_policy.core.errors import ConfigError, Unreachable
from thor_policy.security.curve_keys import ClientKey, load_client_key

#: Replies above this are not taken from the socket.
MAX_REPLY_BYTES = 16 * 1024 * 1024
#: How long a daemon elsewhere may take to accept a connection and our key, in seconds.
_CONNECT_S = 5.0
#: What can come of that.
_CONNECTED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_CONNECT_RETRIED
)


AnySocket = TypeVar("AnySocket", bound="zmq.Socket[Any]")


class Connection(NamedTuple):
    """How to reach a daemon: `held` is the key for one elsewhere."""

    endpoint: str
    held: ClientKey | None = None

    @classmethod
    def to(cls, endpoint: str, key: Path | None) -> Connection:
        """The way to an endpoint, with the key in a file if it is a tcp endpoint. Raises ConfigError."""
        if not endpoint.startswith("tcp://"):
            return cls(endpoint)
        if key is None:
            raise ConfigError(
                f"the endpoint {endpoint} needs a key: --key FILE, as `thorpolicy keys new` made it "
                "beside the daemon"
            )
        return cls(endpoint, load_client_key(key))

    def prepare(self, opened: AnySocket) -> AnySocket:
        """A new socket with our limits and our key."""
        opened.set(zmq.LINGER, 0)
        opened.set(zmq.MAXMSGSIZE, MAX_REPLY_BYTES)
        if self.held is not None:
            opened.set(zmq.CURVE_SERVERKEY, self.held.server.encode())
            opened.set(zmq.CURVE_PUBLICKEY, self.held.public.encode())
            opened.set(zmq.CURVE_SECRETKEY, self.held.secret.encode())
            opened.set(zmq.IPV6, int("[" in self.endpoint))
        return opened

    def connect(self, opened: zmq.Socket[bytes]) -> None:
        """Connect a prepared socket; over tcp, wait until our key counts. Raises Unreachable."""
        if self.held is not None:
            self._shake_hands(opened, self.held)
        else:
            self.check()
            opened.connect(self.endpoint)

    def check(self) -> None:
        """Whether there is a daemon; over tcp, one that knows our key. Raises Unreachable."""
        if self.held is not None:
            with zmq.Context() as context, self.prepare(context.socket(zmq.DEALER)) as opened:
                self._shake_hands(opened, self.held)
        elif not self._listens():
            raise Unreachable(f"no daemon listens at {self.endpoint}; start one: thorpolicy serve")

    def silence(self, timeout_ms: int) -> Unreachable:
        told = f"the daemon at {self.endpoint} gave no reply within {timeout_ms} ms"
        if self.held is not None:
            told += f"; it gives none once the key {self.held.name!r} is revoked"
        return Unreachable(told)

    def _listens(self) -> bool:
        """True when somebody listens at an ipc endpoint; answers at once."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(self.endpoint.removeprefix("ipc://"))
            except BlockingIOError:  # whoever listens has much to do
                return True
            except OSError:
                return False
        return True

    def _shake_hands(self, opened: zmq.Socket[bytes], ours: ClientKey) -> None:
        monitor: zmq.Socket[bytes] = opened.get_monitor_socket(_CONNECTED)
        try:
            opened.connect(self.endpoint)
            if not monitor.poll(int(_CONNECT_S * 1_000)):
                raise Unreachable(f"no daemon answers at {self.endpoint} within {_CONNECT_S} s")
            event = parse_monitor_message(monitor.recv_multipart())["event"]
        except zmq.ZMQError as error:
            raise Unreachable(f"{self.endpoint} cannot be connected to: {error}") from error
        finally:
            opened.disable_monitor()
            monitor.close(linger=0)
        if event == zmq.EVENT_CONNECT_RETRIED:
            raise Unreachable(f"no daemon listens at {self.endpoint}; is its tcp_endpoint set?")
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            told = f"does not know the key {ours.name!r}, or it was revoked; `thorpolicy keys list` there"
            raise Unreachable(f"the daemon at {self.endpoint} {told}")
        if event != zmq.EVENT_HANDSHAKE_SUCCEEDED:
            told = f"is not the daemon that made the key {ours.name!r}: it cannot show that server key"
            raise Unreachable(f"what listens at {self.endpoint} {told}")
