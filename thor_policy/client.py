"""The Python client: ask a daemon, with a timeout on everything.

Owns one socket and its correlation ids. Invariant: each call returns the reply to that call or raises; a
reply that comes after its timeout is dropped with the socket it came to. One client per thread.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Sequence
from types import TracebackType

import zmq

from thor_policy import wire
from thor_policy.core import Json
from thor_policy.errors import Unreachable

#: Added to a deadline before the client gives up: the daemon answers at the deadline, not before.
GRACE_MS = 1_000


class Client:
    """A connection to the daemon at `endpoint`; it reconnects by itself.

    `timeout_ms` bounds calls that carry no deadline of their own.
    """

    def __init__(self, endpoint: str, *, timeout_ms: int = 30_000) -> None:
        self.endpoint = endpoint
        self._timeout_ms = timeout_ms
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._ids = (f"{os.getpid()}-{number}" for number in itertools.count(1))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the socket; safe to call twice."""
        if not self._context.closed:
            self._context.destroy(linger=0)

    def alive(self) -> bool:
        """True when somebody listens at an ipc endpoint; answers at once."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(self.endpoint.removeprefix("ipc://"))
            except OSError:
                return False
        return True

    def evaluate(
        self,
        question: Json,
        *,
        explain: str = "none",
        deadline_ms: int | None = None,
        annotations: dict[str, Json] | None = None,
    ) -> dict[str, Json]:
        """The reply to an AuthZEN evaluation or a flat situation (docs/protocol.md).

        Raises RequestError if it is refused, Unreachable if no reply comes in time.
        """
        fields = wire.question_fields(question) | {"explain": explain}
        if deadline_ms is not None:
            fields["deadline_ms"] = deadline_ms
        if annotations:
            fields["annotations"] = annotations
        timeout_ms = deadline_ms + GRACE_MS if deadline_ms else self._timeout_ms
        return self.call("evaluate", fields, timeout_ms=timeout_ms)

    def status(self) -> dict[str, Json]:
        """What the daemon says of itself."""
        status: dict[str, Json] = self.call("status", {})["status"]
        return status

    def call(self, op: str, fields: dict[str, Json], *, timeout_ms: int | None = None) -> dict[str, Json]:
        """One round trip of any operation."""
        request_id = next(self._ids)
        frames = self._round_trip(wire.encode_request(request_id, op, fields), timeout_ms or self._timeout_ms)
        return wire.decode_reply(frames[-1])

    def _round_trip(self, frame: bytes, timeout_ms: int) -> Sequence[bytes]:
        connection = self._connection()
        connection.send(frame)
        if connection.poll(timeout_ms):
            return connection.recv_multipart()
        connection.close(linger=0)
        self._socket = None
        raise Unreachable(f"the daemon at {self.endpoint} gave no reply within {timeout_ms} ms")

    def _connection(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            if not self.alive():
                raise Unreachable(f"no daemon listens at {self.endpoint}; start one: thorpolicy serve")
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.set(zmq.LINGER, 0)
            self._socket.set(zmq.MAXMSGSIZE, 16 * 1024 * 1024)
            self._socket.connect(self.endpoint)
        return self._socket
