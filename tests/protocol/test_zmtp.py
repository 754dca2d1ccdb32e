"""ZMTP 3, the server's half: the same messages however bytes arrive; what breaks the rules ends."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tests import transport_fuzz
from tests.transport_fuzz import command, frame, greeting, opening, property_of, ready
from tests.zmtp_sessions import BOUNDS, messages_of, served, session_of
from thor_policy.protocol import zmtp
from thor_policy.protocol.zmtp import Bounds, Incoming, Null, Session, TooManyFrames, Violation

PATIENCE_MS = 20_000
#: Bodies around the lengths at which the form of a frame changes.
BODIES = st.one_of(st.binary(max_size=40), st.sampled_from([254, 255, 256, 1_000]).map(bytes))
MESSAGES = st.lists(st.lists(BODIES, min_size=1, max_size=4), max_size=5)


def encoded(message: list[bytes]) -> bytes:
    return b"".join(frame(body, 1) for body in message[:-1]) + frame(message[-1])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


def opened(bounds: Bounds = BOUNDS) -> Session:
    """A session after its handshake, with nothing to say."""
    session = session_of(Null(), bounds)
    assert messages_of(session, opening(1)) == []
    assert session.is_ready
    session.outgoing.clear()
    return session


class TestMessages:
    @given(messages=MESSAGES, places=st.lists(st.integers(0, 5_000), max_size=12))
    def test_are_the_same_however_their_bytes_arrive(
        self, messages: list[list[bytes]], places: list[int]
    ) -> None:
        data = opening(1) + b"".join(map(encoded, messages))
        session = session_of(Null(), Bounds(1_000, 16, 1_000, 0))
        assert messages_of(session, *cut(data, places)) == [Incoming(message) for message in messages]
        assert session.held_bytes == 0

    def test_are_the_same_a_byte_at_a_time(self) -> None:
        data = opening() + encoded([b"", bytes(300)]) + command(b"PING", b"\0\0") + encoded([b"end"])
        chunks = [data[at : at + 1] for at in range(len(data))]
        assert messages_of(session_of(Null()), *chunks) == [Incoming([b"", bytes(300)]), Incoming([b"end"])]

    @given(message=st.lists(BODIES, min_size=1, max_size=4))
    def test_come_back_as_they_are_encoded(self, message: list[bytes]) -> None:
        data = opened().encoded(message)
        assert messages_of(opened(Bounds(1_000, 16, 1_000, 0)), data) == [Incoming(message)]

    @pytest.mark.parametrize(
        ("size", "header"), [(0, b"\0\0"), (255, b"\0\xff"), (256, b"\2" + bytes(6) + b"\1\0")]
    )
    def test_have_a_long_length_only_where_a_short_one_does_not_hold_it(
        self, size: int, header: bytes
    ) -> None:
        assert opened().encoded([bytes(size)]) == header + bytes(size)

    def test_of_a_real_client_come_and_go(self, short_dir: Path) -> None:
        messages = [
            [b"", b"x"],
            [b"y" * 255],
            [b"z" * 256],
            [b"", b"", bytes(100_000)],
            [b"" for _ in range(9)],
        ]
        with (
            served(short_dir / "p.sock", Null) as server,
            zmq.Context() as context,
            context.socket(zmq.DEALER) as client,
        ):
            client.set(zmq.LINGER, 0)
            client.set(zmq.RCVTIMEO, PATIENCE_MS)
            client.connect(f"ipc://{short_dir}/p.sock")
            for message in messages:
                client.send_multipart(message)
                assert client.recv_multipart() == message
        assert [list(incoming.frames) for incoming in server.received] == messages
        assert server.violations == []

    def test_keep_the_first_frames_of_an_envelope_and_the_last_and_count_the_others(self) -> None:
        session = opened(Bounds(1_000, 2, 5, 10))
        message = [b"one", b"too long", b"three", b"four", b"request"]
        assert messages_of(session, encoded(message)) == [Incoming([b"one", b"too lo", b"request"], 2)]
        assert messages_of(session, encoded([b"again"])) == [Incoming([b"again"], 0)]

    def test_of_more_frames_than_anybody_needs_end_the_connection(self) -> None:
        session = opened(Bounds(1_000, 2, 5, 10))
        assert messages_of(session, encoded([b"f"] * 13)) == [Incoming([b"f"] * 3, 10)]
        with pytest.raises(TooManyFrames):
            messages_of(session, encoded([b"f"] * 14))

    def test_of_a_frame_too_long_end_the_connection_before_it_has_arrived(self) -> None:
        session = opened(Bounds(1_000))
        assert messages_of(session, frame(bytes(1_000))) == [Incoming([bytes(1_000)])]
        with pytest.raises(Violation, match="a longer frame"):
            messages_of(session, frame(b"", length=1_001))
        with pytest.raises(Violation, match="a longer frame"):
            messages_of(opened(), frame(b"", length=2**64 - 1))


class TestHandshake:
    def test_says_the_version_the_mechanism_and_the_socket_type(self) -> None:
        session = session_of(Null())
        assert messages_of(session, opening(0, b"REQ")) == []
        assert session.outgoing[0] == zmtp.greeting(b"NULL")
        assert len(session.outgoing[0]) == zmtp.GREETING_BYTES
        properties = property_of(b"Socket-Type", b"ROUTER") + property_of(b"Identity", b"")
        assert session.outgoing[1] == command(b"READY", properties)
        assert session.is_ready

    @pytest.mark.parametrize("minor", [0, 1, 2, 255])
    def test_is_the_same_for_every_minor_version(self, minor: int) -> None:
        assert messages_of(session_of(Null()), opening(minor) + frame(b"x")) == [Incoming([b"x"])]

    def test_takes_properties_in_any_order_and_case(self) -> None:
        session = session_of(Null())
        properties = property_of(b"Identity", b"me") + property_of(b"SOCKET-type", b"DEALER")
        messages_of(session, greeting() + command(b"READY", properties))
        assert session.is_ready

    @pytest.mark.parametrize(
        "data",
        [
            b"GET / HTTP/1.1\r\n",
            b"\x01\x00",
            b"\xff" + bytes(8) + b"\x7e",
            transport_fuzz.SIGNATURE + b"\x01",
            greeting(major=2),
            greeting(major=0),
            greeting(mechanism=b"PLAIN"),
            greeting(mechanism=b"NULL\0X"),
            greeting(mechanism=b"CURVE", server=1),
            greeting() + frame(b"READY"),
            greeting() + frame(b"\x05READY" + property_of(b"Socket-Type", b"DEALER")),
            greeting() + frame(b"\x05READY" + property_of(b"Socket-Type", b"DEALER"), 1),
            greeting() + frame(b"", 1),
            greeting() + command(b"HELLO"),
            greeting() + command(b"ERROR", b"\x02no"),
            greeting() + command(b"READY"),
            greeting() + command(b"", b""),
            greeting() + command(b"READY", name_length=200),
            greeting() + command(b"READY", property_of(b"Socket-Type", b"DEALER", length=7)),
            greeting() + command(b"READY", property_of(b"Socket-Type", b"DEALER", length=5)),
            greeting() + command(b"READY", b"\x05Soc"),
            greeting() + command(b"READY", property_of(b"", b"x")),
            greeting() + command(b"READY", length=4_097),
            greeting() + ready(b"SUB"),
            greeting() + ready(b"dealer"),
            greeting() + ready(b""),
            opening() + frame(b"x", 8),
            opening() + frame(b"x", 0x80),
            opening() + frame(b"x", 5),
            opening() + frame(b"\x04PING\0\0", 5),
            opening() + command(b""),
            opening() + command(b"PING", b"\0"),
            opening() + command(b"PING", b"\0\0" + bytes(17)),
            opening() + command(b"ERROR", b"\x02no"),
        ],
    )
    def test_or_command_that_breaks_the_rules_ends_the_connection(self, data: bytes) -> None:
        with pytest.raises(Violation):
            messages_of(session_of(Null()), data)
        with pytest.raises(Violation):
            messages_of(session_of(Null()), *(data[at : at + 1] for at in range(len(data))))


class TestCommands:
    @pytest.mark.parametrize("context", [b"", b"c", b"c" * 16])
    def test_ping_is_answered_with_its_context(self, context: bytes) -> None:
        session = opened()
        assert messages_of(session, command(b"PING", b"\0\x0a" + context)) == []
        assert session.outgoing == [command(b"PONG", context)]

    def test_ping_does_not_end_a_message_that_has_begun(self) -> None:
        data = frame(b"first", 1) + command(b"PING", b"\0\0") + frame(b"last")
        assert messages_of(opened(), data) == [Incoming([b"first", b"last"])]

    @pytest.mark.parametrize(("name", "first"), [(b"SUBSCRIBE", b"\1"), (b"CANCEL", b"\0")])
    def test_that_subscribe_come_as_the_messages_of_version_3_0(self, name: bytes, first: bytes) -> None:
        assert messages_of(opened(), command(name, b"decision")) == [Incoming((first + b"decision",))]

    @pytest.mark.parametrize("name", [b"PONG", b"JOIN", b"LEAVE", b"?"])
    def test_that_mean_nothing_here_are_passed_over(self, name: bytes) -> None:
        assert messages_of(opened(), command(name, b"x") + frame(b"x")) == [Incoming([b"x"])]


class TestStreams:
    """Whatever a peer writes: a Violation or messages, and never much is kept."""

    BOUNDS = Bounds(2_000, 4, 255, 50)
    MOST_BYTES = 2_000 + 9 + 5 * 2_000

    def read(self, data: bytes, chance: random.Random) -> None:
        session = session_of(Null(), self.BOUNDS)
        at = 0
        with suppress(Violation):
            while at < len(data):
                size = chance.choice((1, 7, 64, 4_096))
                for incoming in messages_of(session, data[at : at + size]):
                    assert len(incoming.frames) <= 5
                    assert all(len(body) <= 256 for body in incoming.frames[:-1])
                assert session.held_bytes <= self.MOST_BYTES
                at += size

    @given(
        start=st.sampled_from([b"", greeting(), greeting(1), opening(), opening(1, b"REQ")]),
        rest=st.binary(max_size=400),
        seed=st.integers(0, 2**32),
    )
    def test_of_any_bytes(self, start: bytes, rest: bytes, seed: int) -> None:
        self.read(start + rest, random.Random(seed))

    @pytest.mark.parametrize("kind", sorted(transport_fuzz.KINDS))
    def test_of_each_hostile_kind(self, kind: str) -> None:
        chance = random.Random(kind)
        for _ in range(60):
            self.read(transport_fuzz.stream(chance, kind).data[:200_000], chance)


class TestMetadata:
    @given(
        properties=st.dictionaries(
            st.binary(min_size=1, max_size=20).filter(lambda name: name == name.lower()),
            st.binary(max_size=300),
            max_size=5,
        )
    )
    def test_is_read_as_it_is_written(self, properties: dict[bytes, bytes]) -> None:
        data = b"".join(zmtp.property_of(name, value) for name, value in properties.items())
        assert zmtp.properties_in(data) == properties

    @given(data=st.binary(max_size=60))
    def test_of_any_bytes_is_read_or_refused(self, data: bytes) -> None:
        with suppress(Violation):
            assert sum(len(name) + len(value) + 5 for name, value in parts(data)) <= len(data)


def parts(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    yield from zmtp.properties_in(data).items()
