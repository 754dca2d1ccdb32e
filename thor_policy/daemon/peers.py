"""Messages in, replies out: what a ROUTER needs to serve peers that may send anything.

Owns the reading of a message: envelope, sender, bounds. Invariant: nothing that a peer sends raises here; a
message whose sender cannot be identified is dropped and counted; every other one is handed on with its
envelope, which its reply gets back. Frames are counted and measured before they are copied. The thread that
owns the socket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator

import zmq
from msgspec import Struct

from thor_policy.core.errors import RequestError
from thor_policy.core.fair_queue import Lane
from thor_policy.core.requests import Caller, Role
from thor_policy.security.curve_keys import KeyHolder

#: Most frames before the request itself: routing ids of brokers, the id and the delimiter of a REQ socket.
MAX_ENVELOPE_FRAMES = 16
#: Longest frame of an envelope, in bytes: a routing id is no longer.
MAX_ENVELOPE_FRAME_BYTES = 255
#: A connection that sends a message of more frames is closed: each costs time, however short it is.
_MAX_FRAMES = 1_000


class Identity(Struct, frozen=True):
    """Who sends, as the kernel or the handshake vouches for it. `holder` is the key of a caller over tcp."""

    caller: Caller
    roles: Collection[Role]
    holder: KeyHolder | None = None


class Sender(Struct, frozen=True):
    """Who sent a request, and where its reply goes: the peer's route, the envelope, the id to echo.

    `op`, `received_ns` and `trace_id` are for the log; `lane` is whose share the request takes, and
    `size_bytes` its length.
    """

    peers: Peers
    route: bytes
    envelope: tuple[bytes, ...]
    identity: Identity
    lane: Lane
    received_ns: int
    size_bytes: int = 0
    request_id: str = ""
    op: str | None = None
    trace_id: str | None = None

    @property
    def caller(self) -> Caller:
        return self.identity.caller


class Received(Struct, frozen=True):
    """A message: its request, or why it cannot be one. `connection` is the file descriptor it came by."""

    sender: Sender
    frame: zmq.Frame
    fault: RequestError | None
    connection: int


class Peers:
    """The peers of a ROUTER. `identify` says who sent a frame; None if that one may not send any more.

    `on_message` gets the file descriptor that a message came by, who sent it, and when; `close_connection`
    that of a connection that is to be closed, and who sends by it.
    """

    def __init__(
        self,
        router: zmq.Socket[bytes],
        identify: Callable[[zmq.Frame], Identity | None],
        *,
        counters: Counter[str],
        on_message: Callable[[int, str, int], None],
        close_connection: Callable[[int, str], None],
    ) -> None:
        self.router = router
        self._identify = identify
        self._counters = counters
        self._on_message = on_message
        self._close_connection = close_connection

    def receive(self, most: int, now_ns: Callable[[], int]) -> Iterator[Received]:
        """What has arrived, `most` messages at most; never waits. `now_ns` is the monotonic clock."""
        for _ in range(most):
            try:
                frames, left_out = self._read()
            except zmq.Again:
                return
            self._counters["received"] += 1
            received = self._received(frames, left_out, now_ns())
            if received is not None:
                yield received

    def send(self, sender: Sender, frame: bytes) -> None:
        """Send a reply, without waiting; one that the peer cannot take is dropped and counted."""
        try:
            self.router.send_multipart([sender.route, *sender.envelope, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._counters["replies_dropped"] += 1

    def _read(self) -> tuple[list[zmq.Frame], int]:
        """The frames of the next message, and how many more it had. Raises zmq.Again if there is none."""
        frame = self.router.recv(zmq.NOBLOCK, copy=False)
        frames, left_out = [frame], 0
        while frame.more:
            frame = self.router.recv(zmq.NOBLOCK, copy=False)
            if len(frames) <= MAX_ENVELOPE_FRAMES + 1:
                frames.append(frame)
            else:
                left_out += 1
        return frames, left_out

    def _received(self, frames: list[zmq.Frame], left_out: int, received_ns: int) -> Received | None:
        route, *envelope, frame = frames if len(frames) > 1 else [*frames, frames[0]]
        try:
            identity = self._identify(frame)
            connection = int(frame.get(zmq.SRCFD))
        except Exception:  # a peer that left, or never was one: libzmq knows nothing of it
            self._counters["messages_of_nobody"] += 1
            return None
        share = identity.caller.who or "" if identity else ""
        self._on_message(connection, share, received_ns)
        if identity is None:
            self._counters["requests_of_revoked_keys"] += 1
            return None
        if left_out > _MAX_FRAMES:
            self._counters["connections_closed_for_frames"] += 1
            self._close_connection(connection, share)
        route_bytes = route.bytes
        fault = _fault(route_bytes, envelope, left_out)
        kept = envelope if fault is None else envelope[:MAX_ENVELOPE_FRAMES]
        sender = Sender(
            self,
            route_bytes,
            tuple(part.bytes for part in kept if len(part) <= MAX_ENVELOPE_FRAME_BYTES),
            identity,
            Lane(share, route_bytes),
            received_ns,
            len(frame),
        )
        return Received(sender, frame, fault, connection)


def _fault(route: bytes, envelope: list[zmq.Frame], left_out: int) -> RequestError | None:
    """Why a message is no request, whatever its last frame holds."""
    if left_out or len(envelope) > MAX_ENVELOPE_FRAMES:
        frames = len(envelope) + left_out
        message = f"a request is one JSON frame; an envelope has {MAX_ENVELOPE_FRAMES} frames, not {frames}"
        return RequestError("bad_request", message)
    if any(len(part) > MAX_ENVELOPE_FRAME_BYTES for part in envelope):
        message = (
            f"a request is one JSON frame; envelope frames have {MAX_ENVELOPE_FRAME_BYTES} bytes at most"
        )
        return RequestError("bad_request", message)
    if len(route) != 5 or route[0]:  # ZeroMQ's own routing ids are a zero byte and a number
        message = "a socket sets no routing id of its own: another peer that sets it first would get no reply"
        return RequestError("bad_request", message)
    return None
