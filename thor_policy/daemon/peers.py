"""Messages of peers that may send anything: whose each is, and whether it can be a request.

Owns the reading of a message: envelope, sender, bounds. Invariant: nothing that a peer sends raises here;
every message is handed on with its envelope, which its reply gets back. The thread of the connections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from msgspec import Struct

from thor_policy.core.errors import RequestError
from thor_policy.core.fair_queue import Lane
from thor_policy.core.requests import Caller, Role
from thor_policy.daemon.connection import Connection
from thor_policy.protocol.zmtp import Bounds, Incoming
from thor_policy.security.curve_keys import KeyHolder

#: Most frames before the request itself: routing ids of brokers, the id and the delimiter of a REQ socket.
MAX_ENVELOPE_FRAMES = 16
#: Longest frame of an envelope, in bytes: a routing id is no longer.
MAX_ENVELOPE_FRAME_BYTES = 255
#: A connection that sends a message of more frames is closed: each costs time, however short it is.
MAX_FRAMES = 1_000
#: A frame that is this many times as long as Config.max_request_bytes ends its connection before it is read;
#: between the two there is a reply.
_FRAME_FACTOR = 2


class Identity(Struct, frozen=True):
    """Who sends, as the kernel or the handshake vouches for it. `holder` is the key of a caller over tcp."""

    caller: Caller
    roles: Collection[Role]
    holder: KeyHolder | None = None


class Sender(Struct, frozen=True):
    """Who sent a request, and where its reply goes: the connection, the envelope, the id to echo.

    `op`, `received_ns` and `trace_id` are for the log; `lane` is whose share the request takes, and
    `size_bytes` its length.
    """

    connection: Connection
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

    def reply(self, frame: bytes) -> tuple[bytes, ...]:
        """The message that answers the request."""
        return (*self.envelope, frame)


class Received(Struct, frozen=True):
    """A message: its request, or why it cannot be one."""

    sender: Sender
    frame: bytes
    fault: RequestError | None


def bounds_of(max_request_bytes: int) -> Bounds:
    """What a peer that sends requests may send."""
    return Bounds(
        frame_bytes=_FRAME_FACTOR * max_request_bytes,
        envelope_frames=MAX_ENVELOPE_FRAMES,
        envelope_frame_bytes=MAX_ENVELOPE_FRAME_BYTES,
        more_frames=MAX_FRAMES - MAX_ENVELOPE_FRAMES - 1,
    )


def received(
    connection: Connection,
    incoming: Incoming,
    identify: Callable[[Connection], Identity | None],
    counters: Counter[str],
) -> Received | None:
    """A message as it concerns the daemon; None if its sender may not send any more.

    `identify` says who sends by a connection.
    """
    counters["received"] += 1
    identity = identify(connection)
    if identity is None:
        counters["requests_of_revoked_keys"] += 1
        return None
    share = identity.caller.who or ""
    *envelope, frame = incoming.frames
    fault = _fault(envelope, incoming.left_out) if envelope else None
    kept = envelope if fault is None else [part for part in envelope if len(part) <= MAX_ENVELOPE_FRAME_BYTES]
    lane = Lane(share, connection.lane.connection)
    sender = Sender(connection, tuple(kept), identity, lane, connection.message_ns, len(frame))
    return Received(sender, frame, fault)


def _fault(envelope: list[bytes], left_out: int) -> RequestError | None:
    """Why a message is no request, whatever its last frame holds."""
    if left_out:
        frames = len(envelope) + left_out
        message = f"a request is one JSON frame; an envelope has {MAX_ENVELOPE_FRAMES} frames, not {frames}"
        return RequestError("bad_request", message)
    if any(len(part) > MAX_ENVELOPE_FRAME_BYTES for part in envelope):
        message = (
            f"a request is one JSON frame; envelope frames have {MAX_ENVELOPE_FRAME_BYTES} bytes at most"
        )
        return RequestError("bad_request", message)
    return None
