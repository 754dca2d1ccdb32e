"""One connection of a peer: its socket, what it sends, what waits to be sent to it.

Owns the socket from its accept to its end. Invariant: nothing here blocks; what waits for the peer is bounded
by whoever queues it (`is_full`), and after `close` nothing is read or written. The thread of its socket.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from thor_policy.core.fair_queue import Lane
from thor_policy.core.requests import Caller
from thor_policy.protocol.zmtp import Bounds, Incoming, Mechanism, Null, Session

#: Bytes read from a connection at a time.
_READ_BYTES = 65_536
#: What waits for a peer beyond which nothing more is read from it, in bytes.
_FULL_BYTES = 262_144
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True)
class Listener:
    """A bound socket that does not block, and who may talk to it in which way.

    `asks`: requests come by it, otherwise subscriptions; `bars`: barred callers are kept out of it;
    `mechanism` makes that of a new connection, and `sender` says who sends by it after the handshake,
    where the kernel does not.
    """

    opened: socket.socket
    socket_type: bytes
    peer_types: Collection[bytes]
    bounds: Bounds
    asks: bool = True
    bars: bool = False
    mechanism: Callable[[], Mechanism] = Null
    sender: Callable[[Mechanism], str] = lambda _: ""


class Connection:
    """The accepted `opened`, which does not block.

    `caller` is who connected, where the kernel says it, and `lane` whose share the connection takes.
    """

    __slots__ = (
        "_opened",
        "_waiting",
        "accepted_ns",
        "asks",
        "caller",
        "closed",
        "descriptor",
        "events",
        "is_counted",
        "is_paused",
        "is_stuck",
        "lane",
        "listener",
        "may_read",
        "message_ns",
        "progress_ns",
        "sender",
        "session",
        "subscriptions",
        "waiting_bytes",
    )

    def __init__(
        self,
        opened: socket.socket,
        session: Session,
        *,
        caller: Caller | None,
        lane: Lane,
        listener: Listener,
        now_ns: int,
    ) -> None:
        self._opened = opened
        self.descriptor = opened.fileno()
        self.session = session
        self.caller = caller
        self.lane = lane
        self.listener = listener
        #: Whether requests come by it, or subscriptions.
        self.asks = listener.asks
        #: Who sends by it, once that is known: a user, or a key over tcp.
        self.sender = "" if caller is None else lane.share
        self.accepted_ns = now_ns
        #: When its newest message came; 0: none yet.
        self.message_ns = 0
        #: Since when what waits for the peer waits, or when some of it was last taken.
        self.progress_ns = now_ns
        #: For which events the connection is watched.
        self.events: int = select.EPOLLIN
        #: Whether something may have arrived; whether its silence was counted; whether the kernel left
        #: something behind at the last write; whether nothing is read from it until that is written.
        self.may_read = self.is_counted = self.is_stuck = self.is_paused = self.closed = False
        self.subscriptions: set[bytes] = set()
        self._waiting: list[bytes] = []
        self.waiting_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Memory that the connection takes: what has arrived, and what waits."""
        return self.session.held_bytes + self.waiting_bytes

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the peer that nothing more is to be read from it."""
        return self.waiting_bytes > _FULL_BYTES

    def read(self) -> bool:
        """Take in what has arrived, a part of it if it is much; False if the peer has left."""
        try:
            data = self._opened.recv(_READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            self.session.feed(data)
        return bool(data)

    def message(self) -> Incoming | None:
        """The next message; None until more arrives. Raises Violation."""
        incoming = self.session.message()
        if self.session.outgoing:
            self.take_outgoing()
        return incoming

    def take_outgoing(self) -> None:
        """Queue what the session has to say."""
        for data in self.session.outgoing:
            self.queue_bytes(data)
        self.session.outgoing.clear()

    def queue(self, frames: Sequence[bytes]) -> None:
        """Queue a message; `flush` sends it."""
        self.queue_bytes(self.session.encoded(frames))

    def queue_bytes(self, data: bytes) -> None:
        self._waiting.append(data)
        self.waiting_bytes += len(data)

    def flush(self, now_ns: int) -> bool:
        """Write what waits, as much as the kernel takes; False if the peer has left."""
        waiting = self._waiting
        data = waiting[0] if len(waiting) == 1 else b"".join(waiting)
        try:
            sent = self._opened.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        left = len(data) - sent
        self._waiting = [data[sent:]] if left else []
        if sent or not self.is_stuck:
            self.progress_ns = now_ns
        self.waiting_bytes, self.is_stuck = left, left > 0
        return True

    def finish(self, until_s: float) -> None:
        """Write what waits, until then (monotonic seconds) at most; this waits for the peer."""
        with suppress(OSError):
            self._opened.settimeout(max(0.001, until_s - time.monotonic()))
            self._opened.sendall(b"".join(self._waiting))

    def close(self) -> None:
        """End the connection; what waits is lost."""
        self.closed = True
        self._waiting, self.waiting_bytes = [], 0
        self._opened.close()


def peer_of(opened: socket.socket) -> Caller:
    """Who connected to a Unix socket, as the kernel noted then. Raises OSError."""
    pid, uid, gid = _CREDENTIALS.unpack(
        opened.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return Caller(transport="ipc", uid=uid, gid=gid, pid=pid)
