"""ZMTP 3, the server's half of one connection: bytes of a peer in, messages out, and what to write to it.

Owns the format (RFC 23 and 37: https://rfc.zeromq.org/spec/23, /37). Invariant: whatever arrives, what is
kept of it is one frame and one message within the bounds; anything that is not ZMTP 3 as agreed raises
Violation, and the connection ends. No socket, no clock. One thread.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

#: Flags of a frame: another one follows in its message, its length has eight bytes, it is a command.
MORE, LONG, COMMAND = 1, 2, 4
#: Length of a greeting, and of the part by which another version shows.
GREETING_BYTES, _VERSION_AT = 64, 10
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
#: Longest command of a handshake, in bytes: a READY has a handful of properties.
_MOST_HANDSHAKE_BYTES = 4_096
#: Longest context of a PING, in bytes (RFC 37).
_MOST_CONTEXT_BYTES = 16


class Violation(Exception):
    """A peer does not speak ZMTP 3 as agreed. `reply` is what it still gets before its connection ends."""

    def __init__(self, reason: str, reply: bytes = b"") -> None:
        super().__init__(reason)
        self.reply = reply


class TooManyFrames(Violation):
    """A message has more frames than anybody needs."""


class Incoming(NamedTuple):
    """A message: its first frames and its last, and how many more it had; a command, dealt with, has none."""

    frames: Sequence[bytes]
    left_out: int = 0


class Mechanism(Protocol):
    """How a handshake goes, and what becomes of frames after it (RFC 23; RFC 26 for CURVE)."""

    name: bytes
    #: The metadata of the peer, once the handshake is over.
    metadata: bytes | None

    def greet(self, own: bytes) -> bytes:
        """The command that follows the greetings, or nothing. `own` is the metadata of the server."""

    def shake(self, command: bytes) -> bytes:
        """The command that answers one of the peer, or nothing. Raises Violation."""

    def open(self, flags: int, body: bytes) -> tuple[int, bytes]:
        """A frame as the peer meant it. Raises Violation."""

    def seal(self, flags: int, body: bytes) -> bytes:
        """The bytes of a frame."""


class Bounds(NamedTuple):
    """What one peer may send: frames of so many bytes.

    Of the frames before the last of a message, the first are kept and the others counted, up to
    `more_frames`; of one that is too long for an envelope a byte more is kept, by which that shows.
    """

    frame_bytes: int
    envelope_frames: int = 0
    envelope_frame_bytes: int = 0
    more_frames: int = 0


class Session:
    """One connection, from its greeting on. `socket_type` is ours, `peer_types` are those that may come.

    `outgoing` has what is to be written; whoever writes takes it out.
    """

    def __init__(
        self, mechanism: Mechanism, *, socket_type: bytes, peer_types: Collection[bytes], bounds: Bounds
    ) -> None:
        self.mechanism = mechanism
        self._socket_type = socket_type
        self._peer_types = peer_types
        self._bounds = bounds
        self.outgoing: list[bytes] = [greeting(mechanism.name, server=mechanism.name != b"NULL")]
        #: What has arrived and is not taken out yet, from `_at` on.
        self._data = b""
        self._at = 0
        #: What has arrived behind an incomplete frame, and how long it must be to complete it.
        self._partial = bytearray()
        self._wanted = 0
        self._frames: list[bytes] = []
        self._left_out = 0
        self._greeted = False
        #: Whether the handshake is over.
        self.is_ready = False
        self._limit = _MOST_HANDSHAKE_BYTES

    @property
    def held_bytes(self) -> int:
        """What is kept of what has arrived."""
        return len(self._data) - self._at + len(self._partial) + sum(map(len, self._frames))

    def feed(self, data: bytes) -> None:
        """Take in what has arrived."""
        if self._at < len(self._data):  # its frames were not taken out
            data = self._data[self._at :] + data
        elif self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return
            data = bytes(self._partial)
            self._partial.clear()
        self._data, self._at = data, 0

    def message(self) -> Incoming | None:
        """The next message, a command that was dealt with, or None until more arrives. Raises Violation."""
        while True:
            if not self._greeted:
                if not self._take_greeting():
                    return None
                continue
            frame = self._frame()
            if frame is None:
                return None
            flags, body = frame
            if not self.is_ready:
                self._shake(flags, body)
                return Incoming(())
            flags, body = self.mechanism.open(flags, body)
            if flags & COMMAND:
                return self._obey(body)
            if not flags & MORE:
                self._frames.append(body)
                incoming = Incoming(self._frames, self._left_out)
                self._frames, self._left_out = [], 0
                return incoming
            if len(self._frames) < self._bounds.envelope_frames:
                self._frames.append(body[: self._bounds.envelope_frame_bytes + 1])
            else:
                self._left_out += 1
                if self._left_out > self._bounds.more_frames:
                    raise TooManyFrames(f"more than {self._bounds.more_frames} frames too many")

    def encoded(self, frames: Sequence[bytes]) -> bytes:
        """The bytes of a message to the peer."""
        seal, last = self.mechanism.seal, len(frames) - 1
        if not last:
            return seal(0, frames[0])
        return b"".join([seal(MORE if at < last else 0, body) for at, body in enumerate(frames)])

    # ------------------------------------------------------------ the handshake

    def _take_greeting(self) -> bool:
        data = self._data
        if data and (data[:1] != b"\xff" or data[9:10] not in (b"", b"\x7f")):
            raise Violation("no signature of ZMTP 2 or later")
        if data[_VERSION_AT : _VERSION_AT + 1] and data[_VERSION_AT] < 3:
            raise Violation("a version of ZMTP before 3")
        if len(data) < GREETING_BYTES:
            self._keep(GREETING_BYTES if len(data) > _VERSION_AT else len(data) + 1)
            return False
        if data[12:32] != self.mechanism.name.ljust(20, b"\0"):
            raise Violation("another mechanism")
        self._at, self._greeted = GREETING_BYTES, True
        own = property_of(b"Socket-Type", self._socket_type) + property_of(b"Identity", b"")
        if first := self.mechanism.greet(own):
            self.outgoing.append(frame_of(first, COMMAND))
        return True

    def _shake(self, flags: int, body: bytes) -> None:
        if flags & ~LONG != COMMAND:
            raise Violation("no command in the handshake")
        if answer := self.mechanism.shake(body):
            self.outgoing.append(frame_of(answer, COMMAND))
        if self.mechanism.metadata is not None:
            properties = properties_in(self.mechanism.metadata)
            if properties.get(b"socket-type") not in self._peer_types:
                raise Violation("a socket type that this socket does not talk to")
            self.is_ready, self._limit = True, self._bounds.frame_bytes

    # ------------------------------------------------------------ after it

    def _obey(self, body: bytes) -> Incoming:
        """Deal with a command; what subscribes comes as the messages that it was before ZMTP 3.1."""
        name, content = named(body)
        if name == b"PING":
            if not 2 <= len(content) <= 2 + _MOST_CONTEXT_BYTES:
                raise Violation("a PING of another length")
            self.outgoing.append(self.mechanism.seal(COMMAND, b"\x04PONG" + content[2:]))
        elif name in (b"SUBSCRIBE", b"CANCEL"):
            return Incoming(((b"\1" if name == b"SUBSCRIBE" else b"\0") + content,))
        elif name == b"ERROR":
            raise Violation("the peer gave up")
        return Incoming(())

    def _frame(self) -> tuple[int, bytes] | None:
        """The next frame, flags and body; None until it is complete. Raises Violation."""
        data, at = self._data, self._at
        left = len(data) - at
        if left < 2:
            self._keep(2)
            return None
        flags = data[at]
        if flags > MORE | LONG | COMMAND or (flags & MORE and flags & COMMAND):
            raise Violation("reserved flags")
        if flags & LONG:
            if left < 9:
                self._keep(9)
                return None
            size, start = int.from_bytes(data[at + 1 : at + 9], "big"), at + 9
        else:
            size, start = data[at + 1], at + 2
        if size > self._limit:
            raise Violation("a longer frame than this socket takes")
        end = start + size
        if end > len(data):
            self._keep(end - at)
            return None
        self._at = end
        return flags, data[start:end]

    def _keep(self, wanted: int) -> None:
        """Wait for the rest of what is `wanted` bytes long."""
        if self._at < len(self._data):
            self._partial += self._data[self._at :]
        self._data, self._at, self._wanted = b"", 0, wanted


class Null:
    """The mechanism without any: the kernel says who a peer is."""

    name = b"NULL"

    def __init__(self) -> None:
        self.metadata: bytes | None = None

    def greet(self, own: bytes) -> bytes:
        return b"\x05READY" + own

    def shake(self, command: bytes) -> bytes:
        name, self.metadata = named(command)
        if name != b"READY":
            raise Violation("another command than READY")
        return b""

    def open(self, flags: int, body: bytes) -> tuple[int, bytes]:
        return flags, body

    def seal(self, flags: int, body: bytes) -> bytes:
        return frame_of(body, flags)


# ---------------------------------------------------------------- pieces


def greeting(mechanism: bytes, *, server: bool = False) -> bytes:
    """The greeting of version 3.1."""
    return _SIGNATURE + b"\x03\x01" + mechanism.ljust(20, b"\0") + bytes([server]) + bytes(31)


def frame_of(body: bytes, flags: int = 0) -> bytes:
    """The bytes of a frame."""
    size = len(body)
    if size > 255:
        return bytes((flags | LONG,)) + size.to_bytes(8, "big") + body
    return bytes((flags, size)) + body


def property_of(name: bytes, value: bytes) -> bytes:
    """The bytes of a property of the metadata."""
    return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value


def properties_in(metadata: bytes) -> dict[bytes, bytes]:
    """The properties by name in small letters. Raises Violation."""
    properties, at = {}, 0
    while at < len(metadata):
        name_end = at + 1 + metadata[at]
        value_start = name_end + 4
        value_end = value_start + int.from_bytes(metadata[name_end:value_start], "big")
        if name_end == at + 1 or value_end > len(metadata) or value_start > len(metadata):
            raise Violation("metadata with a wrong length")
        properties[metadata[at + 1 : name_end].lower()] = metadata[value_start:value_end]
        at = value_end
    return properties


def named(command: bytes) -> tuple[bytes, bytes]:
    """Name and content of a command. Raises Violation."""
    if not command or not 0 < command[0] < len(command):
        raise Violation("a command without a name")
    end = 1 + command[0]
    return command[1:end], command[end:]
