"""Hostile byte streams for a ZeroMQ socket, the same each time.

Owns what a peer can write to the daemon's sockets without libzmq on its own side: greetings of ZMTP 1.0, 2.0,
3.0 and 3.1, commands and frames with wrong lengths, and all of them cut anywhere; and how it is written.
The formats: https://rfc.zeromq.org/spec/13 (1.0), /15 (2.0), /23 (3.0) and /37 (3.1).
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

#: Requests that a daemon answers, and one that it refuses.
REQUESTS = (b'{"v": 1, "op": "status"}', b'{"v": 1, "op": "metrics"}', b"{")
#: Greetings that announce version 3: signature, version, mechanism, whether it is the server, filler.
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_GREETING_BYTES = 64
#: The most bytes of one stream.
MOST_BYTES = 1_000_000
#: A connection, a write or a handshake that is not taken is given up after this time (struct timeval).
_GIVE_UP = struct.pack("@ll", 0, 200_000)


class Stream(NamedTuple):
    """What one connection writes. `stays`: it is left open until a later connection is made.

    `at_once`: what follows a handshake is written with it.
    """

    kind: str
    data: bytes
    stays: bool = False
    at_once: bool = False


def unconnected() -> socket.socket:
    """A raw connection to be made."""
    raw = socket.socket(socket.AF_UNIX)
    # a socket with a timeout of Python's would fail at once where the listener's queue is full
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        raw.setsockopt(socket.SOL_SOCKET, option, _GIVE_UP)
    return raw


def write(raw: socket.socket, data: bytes, *, at_once: bool = False) -> None:
    """Write a stream. Raises OSError where the other side takes no more.

    Unless `at_once`, the answer to a handshake is awaited, as a client of libzmq does.
    """
    end = 0 if at_once else _end_of_handshake(data)
    raw.sendall(data[:end])
    answer = 0
    while end < len(data) and end > 0 and answer <= _GREETING_BYTES:
        received = len(raw.recv(4_096))
        if not received:
            break
        answer += received
    raw.sendall(data[end:])


def _end_of_handshake(data: bytes) -> int:
    """Where a complete handshake of version 3 ends; 0 if there is none."""
    if len(data) < _GREETING_BYTES + 2 or data[0] != 0xFF or data[_GREETING_BYTES] != 4:
        return 0
    return _GREETING_BYTES + 2 + data[_GREETING_BYTES + 1]


def greeting(minor: int = 0, *, major: int = 3, mechanism: bytes = b"NULL", server: int = 0) -> bytes:
    """A greeting of ZMTP 3."""
    return SIGNATURE + bytes([major, minor]) + mechanism.ljust(20, b"\0")[:20] + bytes([server]) + bytes(31)


def frame(body: bytes, flags: int = 0, *, length: int | None = None, long: bool = False) -> bytes:
    """A frame of ZMTP 2 and 3: flags (1 more, 2 long, 4 command), length, body. `length` may be wrong."""
    length = len(body) if length is None else length
    if long or length > 255:
        return bytes([flags | 2]) + (length % 2**64).to_bytes(8, "big") + body
    return bytes([flags, length]) + body


def old_frame(body: bytes, flags: int = 0, *, length: int | None = None) -> bytes:
    """A frame of ZMTP 1.0: its length counts the flags."""
    length = len(body) + 1 if length is None else length
    return (bytes([length]) if length < 255 else b"\xff" + length.to_bytes(8, "big")) + bytes([flags]) + body


def command(
    name: bytes, body: bytes = b"", *, name_length: int | None = None, length: int | None = None
) -> bytes:
    """A command of ZMTP 3."""
    named = bytes([len(name) if name_length is None else name_length]) + name
    return frame(named + body, 4, length=length)


def property_of(name: bytes, value: bytes, *, length: int | None = None) -> bytes:
    """A property of READY."""
    length = len(value) if length is None else length
    return bytes([len(name) % 256]) + name + (length % 2**32).to_bytes(4, "big") + value


def ready(socket_type: bytes = b"DEALER", *more: bytes) -> bytes:
    """The READY command."""
    return command(b"READY", property_of(b"Socket-Type", socket_type) + b"".join(more))


def opening(minor: int = 0, socket_type: bytes = b"DEALER") -> bytes:
    """A complete handshake of version 3."""
    return greeting(minor) + ready(socket_type)


# ---------------------------------------------------------------- kinds


def _unversioned(chance: random.Random) -> bytes:
    """ZMTP 1.0: no signature, no handshake: the routing id, then frames."""
    identity = old_frame(chance.choice((b"", b"", b"x", b"\0abcd", bytes(254), bytes(300))))
    body = chance.choice((*REQUESTS, b""))
    messages = [old_frame(body, chance.choice((0, 0, 0, 1, 2, 0xFF))) for _ in range(chance.randint(0, 3))]
    if chance.random() < 0.3:
        messages.append(old_frame(body, length=chance.choice((0, 1, 255, 2**31, 2**63 - 1))))
    return identity + b"".join(messages)


def _version_2(chance: random.Random) -> bytes:
    """ZMTP 2.0: signature, revision 1, socket type, the routing id, then frames."""
    head = SIGNATURE + bytes([1, chance.choice((*range(12), 255))])
    identity = frame(chance.choice((b"", b"", b"me", bytes(255), bytes(256))))
    body = chance.choice(REQUESTS)
    return (
        head + identity + b"".join(frame(body, chance.choice((0, 0, 1))) for _ in range(chance.randint(0, 3)))
    )


def _version_3(chance: random.Random) -> bytes:
    """A handshake of 3.0, 3.1 or a version that does not exist, then requests."""
    start = greeting(chance.choice((0, 1, 2, 255)), major=chance.choice((3, 3, 3, 2, 4, 255)))
    kind = chance.choice((b"DEALER", b"REQ", b"ROUTER", b"REP", b"SUB", b"XSUB", b"PAIR", b"", b"x" * 200))
    body = chance.choice((*REQUESTS, b""))
    requests = [frame(b"", 1) + frame(body, long=chance.random() < 0.2) for _ in range(chance.randint(0, 3))]
    return start + ready(kind) + b"".join(requests)


def _mechanism(chance: random.Random) -> bytes:
    """A greeting with another mechanism, and what that mechanism would send."""
    names = (b"PLAIN", b"CURVE", b"GSSAPI", b"null", b"NULL\0X", b"", b"\xff" * 20, b"A" * 20)
    start = greeting(
        chance.choice((0, 1)), mechanism=chance.choice(names), server=chance.choice((0, 1, 2, 255))
    )
    hello = command(b"HELLO", chance.choice((b"", b"\x01a\x01b", b"\xff" * 300, bytes(194))))
    return start + chance.choice((b"", hello, ready(), hello + command(b"INITIATE", bytes(113))))


def _commands(chance: random.Random) -> bytes:
    """Commands whose lengths are wrong, before or after the handshake."""
    parts = []
    for _ in range(chance.randint(1, 4)):
        name = chance.choice(
            (
                b"READY",
                b"ERROR",
                b"SUBSCRIBE",
                b"CANCEL",
                b"PING",
                b"PONG",
                b"JOIN",
                b"LEAVE",
                b"HELLO",
                b"",
                b"?",
            )
        )
        body = chance.choice(
            (
                b"",
                bytes(2),
                b"\x00\x10" + b"c" * chance.randint(0, 40),
                b"\xff" + b"reason",
                property_of(b"Socket-Type", b"DEALER", length=chance.choice((0, 5, 7, 2**31, 2**32 - 1))),
                property_of(b"", b""),
                property_of(b"Identity", bytes(chance.choice((0, 1, 255, 256)))),
                property_of(b"x" * 255, b"y" * chance.choice((0, 300))),
            )
        )
        wrong = chance.choice((None, None, 0, 1, 4, 5, 255))
        length = chance.choice((None, None, None, 0, 1, 2, 255, 2**31, 2**63, 2**64 - 1))
        parts.append(command(name, body, name_length=wrong, length=length))
    start = chance.choice((greeting(), greeting(1), opening(), opening(1), opening(1, b"SUB")))
    return start + b"".join(parts) + chance.choice((b"", frame(b"", 1) + frame(REQUESTS[0])))


def _flags(chance: random.Random) -> bytes:
    """Frames with reserved bits, long frames with short bodies, lengths that no memory holds."""
    parts = []
    for _ in range(chance.randint(1, 5)):
        body = chance.choice((b"", b"{", REQUESTS[0], bytes(300)))
        length = chance.choice((None, None, 0, 255, 2**20, 2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1))
        parts.append(frame(body, chance.randrange(256), length=length, long=chance.random() < 0.5))
    return opening(chance.choice((0, 1))) + b"".join(parts)


def _endless(chance: random.Random) -> bytes:
    """A message that never ends: each of its frames promises another one. Bounded in bytes."""
    part = frame(bytes(chance.choice((0, 1, 255, 4_096))), 1)
    return opening() + part * (chance.choice((100, 3_000, MOST_BYTES)) // len(part))


def _subscriptions(chance: random.Random) -> bytes:
    """Subscriptions in both forms, with topics of any length, and cancellations of what was never wanted."""
    parts = []
    for _ in range(chance.randint(1, 20)):
        topic = chance.choice((b"", b"decision", chance.randbytes(chance.choice((1, 250, 3_000)))))
        old = frame(chance.choice((b"\x01", b"\x00", b"\x02")) + topic)
        parts.append(chance.choice((old, command(b"SUBSCRIBE", topic), command(b"CANCEL", topic))))
    return opening(chance.choice((0, 1)), chance.choice((b"SUB", b"XSUB", b"DEALER"))) + b"".join(parts)


def _envelopes(chance: random.Random) -> bytes:
    """A request below empty frames, as REQ_CORRELATE and brokers send it, and too many of them."""
    depth = chance.choice((0, 1, 2, 3, 8, 9, 200))
    parts = [frame(chance.choice((b"", b"id", bytes(255))), 1) for _ in range(depth)]
    return opening(socket_type=b"REQ") + b"".join(parts) + frame(chance.choice((*REQUESTS, b"")))


def _garbage(chance: random.Random) -> bytes:
    start = chance.choice((b"", b"\xff", SIGNATURE, greeting(), opening()))
    return start + chance.randbytes(chance.choice((0, 1, 8, 64, 500, 5_000)))


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "unversioned": _unversioned,
    "version 2": _version_2,
    "version 3": _version_3,
    "mechanism": _mechanism,
    "commands": _commands,
    "flags": _flags,
    "endless": _endless,
    "subscriptions": _subscriptions,
    "envelopes": _envelopes,
    "garbage": _garbage,
}


def stream(chance: random.Random, kind: str | None = None) -> Stream:
    """A stream of this kind, or of any; four of ten are cut somewhere, one of ten has a changed byte."""
    kind = kind or chance.choice(list(KINDS))
    data = KINDS[kind](chance)
    if chance.random() < 0.4:
        data = data[: chance.randint(0, len(data))]
    elif data and chance.random() < 0.15:
        at = chance.randrange(min(len(data), 300))
        data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    return Stream(kind, data, stays=chance.random() < 0.05, at_once=chance.random() < 0.2)


def streams(seed: int, count: int) -> Iterator[Stream]:
    """`count` streams of all kinds; one of ten only connects and closes."""
    chance = random.Random(seed)
    for _ in range(count):
        yield Stream("connect and close", b"") if chance.random() < 0.1 else stream(chance)


def cut_everywhere() -> Iterator[Stream]:
    """The handshake and first request of each version, cut at every byte."""
    whole = {
        "1.0": old_frame(b"") + old_frame(REQUESTS[0]),
        "2.0": SIGNATURE + b"\x01\x05" + frame(b"") + frame(REQUESTS[0]),
        "3.0": opening(0) + frame(b"", 1) + frame(REQUESTS[0]),
        "3.1": opening(1) + command(b"PING", b"\x00\x0acontext") + frame(REQUESTS[0]),
        "3.1, subscriber": opening(1, b"SUB") + command(b"SUBSCRIBE", b"decision"),
    }
    for version, data in whole.items():
        for length in range(len(data) + 1):
            yield Stream(f"{version}, cut", data[:length])
