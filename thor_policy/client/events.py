"""What a daemon publishes, for a command that keeps what it shows current.

Owns a SUB socket. Invariant: an event only shortens a wait, so one that is lost delays and changes nothing.
Belongs to one thread.
"""

from __future__ import annotations

import time
from types import TracebackType

import zmq

#: Events that one wait drops at most: more than may wait in a socket.
_MOST_WAITING = 2_000


class Events:
    """The events of one `kind` at `endpoint` (`Config.events_endpoint`). Over tcp there are none."""

    def __init__(self, endpoint: str, kind: str) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        if endpoint.startswith("ipc://"):
            self._socket = self._context.socket(zmq.SUB)
            self._socket.set(zmq.LINGER, 0)
            self._socket.set(zmq.SUBSCRIBE, kind.encode())
            self._socket.connect(endpoint)

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.destroy(linger=0)

    def wait(self, timeout_s: float) -> bool:
        """Wait for an event, and drop all that are there; False if there was none within `timeout_s`."""
        if self._socket is None:
            time.sleep(timeout_s)
            return False
        if not self._socket.poll(int(timeout_s * 1_000)):
            return False
        for _ in range(_MOST_WAITING):
            if not self._socket.poll(0):
                break
            self._socket.recv_multipart()
        return True
