"""How a client reaches a daemon: over ipc, or over tcp with a CURVE key.

Owns the limits of a client's socket and the handshake. Invariant: if no daemon listens, or the daemon does
not know the key, `Unreachable` is raised within seconds. Any thread; blocks for the handshake.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import zmq

from thor_policy.core.errors import ConfigError, Unreachable

if TYPE_CHECKING:
    from thor_policy.security.curve_keys import ClientKey

#: Added to an ipc endpoint; gives that of status and metrics (`Config.control_endpoint`).
CONTROL_SUFFIX = ".control"
#: Largest reply that is accepted.
MAX_REPLY_BYTES = 16 * 1024 * 1024
#: Timeout of a tcp connection with its CURVE handshake, in seconds.
_CONNECT_S = 5.0
#: The events that end it.
_CONNECTED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_CONNECT_RETRIED
)


AnySocket = TypeVar("AnySocket", bound="zmq.Socket[Any]")


class Connection(NamedTuple):
    """The path to a daemon: its endpoint, and our key for a tcp endpoint."""

    endpoint: str
    key: ClientKey | None = None

    @classmethod
    def to(cls, endpoint: str, key_file: Path | None) -> Connection:
        """The path to an endpoint; for tcp, with the key in `key_file`. Raises ConfigError."""
        if not endpoint.startswith("tcp://"):
            return cls(endpoint)
        from thor_policy.security.curve_keys import load_client_key  # needed only over tcp

        if key_file is None:
            raise ConfigError(
                f"the endpoint {endpoint} needs a key: --key FILE, with the file that `thorpolicy keys new "
                "NAME` makes on the daemon's machine"
            )
        return cls(endpoint, load_client_key(key_file))

    def control(self) -> Connection:
        """The path to the endpoint that answers status and metrics: over tcp the same."""
        if self.key is not None or self.endpoint.endswith(CONTROL_SUFFIX):
            return self
        return Connection(self.endpoint + CONTROL_SUFFIX)

    def prepare(self, opened: AnySocket) -> AnySocket:
        """Set our limits and our key on a new socket."""
        opened.set(zmq.LINGER, 0)
        opened.set(zmq.MAXMSGSIZE, MAX_REPLY_BYTES)
        if self.key is not None:
            opened.set(zmq.CURVE_SERVERKEY, self.key.server.encode())
            opened.set(zmq.CURVE_PUBLICKEY, self.key.public.encode())
            opened.set(zmq.CURVE_SECRETKEY, self.key.secret.encode())
            opened.set(zmq.IPV6, int("[" in self.endpoint))
        return opened

    def connect(self, opened: zmq.Socket[bytes]) -> None:
        """Connect a prepared socket; over tcp, wait until our key is accepted. Raises Unreachable."""
        if self.key is not None:
            self._shake_hands(opened, self.key)
        else:
            self.check()
            opened.connect(self.endpoint)

    def check(self) -> None:
        """Check that a daemon listens and, over tcp, accepts our key. Raises Unreachable."""
        if self.key is not None:
            with zmq.Context() as context, self.prepare(context.socket(zmq.DEALER)) as opened:
                self._shake_hands(opened, self.key)
        elif not self._listens():
            endpoint = self.endpoint.removesuffix(CONTROL_SUFFIX)
            raise Unreachable(f"no daemon listens at {endpoint}; start one: thorpolicy serve")

    def no_reply_error(self, timeout_ms: int) -> Unreachable:
        """The error for a request without a reply in time."""
        message = f"the daemon at {self.endpoint} gave no reply within {timeout_ms} ms"
        if self.key is not None:
            message += (
                f"; it gives none if the key {self.key.name!r} is revoked: run `thorpolicy keys list` there"
            )
        return Unreachable(message)

    def _listens(self) -> bool:
        """True when a process listens at an ipc endpoint; returns at once."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(self.endpoint.removeprefix("ipc://"))
            except BlockingIOError:  # the listener is busy
                return True
            except OSError:
                return False
        return True

    def _shake_hands(self, opened: zmq.Socket[bytes], ours: ClientKey) -> None:
        from zmq.utils.monitor import parse_monitor_message  # imports asyncio, needed only over tcp

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
            raise Unreachable(f"no daemon listens at {self.endpoint}; start it there, with tcp_endpoint set")
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise Unreachable(
                f"the daemon at {self.endpoint} does not know the key {ours.name!r}, or it was revoked (run "
                "`thorpolicy keys list` there), or is barred for a while since it did not wait after `busy`"
            )
        if event != zmq.EVENT_HANDSHAKE_SUCCEEDED:
            raise Unreachable(
                f"the process at {self.endpoint} is not the daemon that made the key {ours.name!r}: its "
                "server key differs"
            )
