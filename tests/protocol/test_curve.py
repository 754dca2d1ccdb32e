"""CurveZMQ, the server's half: real clients with an admitted key get through, and nobody else does."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings
from zmq.utils import z85

from tests.transport_fuzz import command, frame, greeting, property_of
from tests.zmtp_sessions import BOUNDS, Served, messages_of, served, session_of
from thor_policy.protocol.curve import Curve
from thor_policy.protocol.zmtp import COMMAND, Incoming, Session, Violation

PATIENCE_MS = 20_000
#: Long enough for a reply that must not come, in milliseconds.
SILENCE_MS = 300


class KeyPair(NamedTuple):
    public: bytes
    secret: bytes

    @classmethod
    def new(cls) -> KeyPair:
        return cls(*bindings.crypto_box_keypair())


SERVER, CLIENT, STRANGER = (KeyPair.new() for _ in range(3))


def admitting(*publics: bytes) -> Callable[[], Curve]:
    return lambda: Curve(SERVER.secret, publics.__contains__)


class Peer:
    """A client that can be made to break each rule; what it sends is fed to a session."""

    def __init__(
        self, *, pair: KeyPair = CLIENT, server: bytes = SERVER.public, admitted: bytes = b""
    ) -> None:
        self.pair, self.server = pair, server
        self.session = session_of(Curve(SERVER.secret, lambda public: public == (admitted or CLIENT.public)))
        self.brief = KeyPair.new()
        self.nonce = 0
        self.cookie = self.shared = b""

    def next_nonce(self) -> bytes:
        self.nonce += 1
        return struct.pack(">Q", self.nonce)

    def feed(self, data: bytes) -> list[Incoming]:
        return messages_of(self.session, data)

    def hello(self, *, zeros: int = 64, size: int = 200) -> bytes:
        nonce = self.next_nonce()
        box = bindings.crypto_box(bytes(zeros), b"CurveZMQHELLO---" + nonce, self.server, self.brief.secret)
        body = b"\x05HELLO\x01\x00" + bytes(72) + self.brief.public + nonce + box
        return frame(body[:size], COMMAND)

    def take_welcome(self) -> None:
        """Read what answers HELLO, as RFC 26 says."""
        welcome = self.session.outgoing.pop()
        assert welcome[:10] == b"\x04\xa8\x07WELCOME"
        nonce, box = welcome[10:26], welcome[26:]
        opened = bindings.crypto_box_open(box, b"WELCOME-" + nonce, self.server, self.brief.secret)
        server_brief, self.cookie = opened[:32], opened[32:]
        assert len(self.cookie) == 96
        self.shared = bindings.crypto_box_beforenm(server_brief, self.brief.secret)
        self.server_brief = server_brief

    def initiate(
        self,
        *,
        cookie: bytes | None = None,
        brief: bytes | None = None,
        server: bytes | None = None,
        metadata: bytes | None = None,
        nonce: bytes | None = None,
    ) -> bytes:
        vouched = (brief or self.brief.public) + (server or self.server)
        vouch = bindings.crypto_box(vouched, b"VOUCH---" + bytes(16), self.server_brief, self.pair.secret)
        own = property_of(b"Socket-Type", b"DEALER") if metadata is None else metadata
        content = self.pair.public + bytes(16) + vouch + own
        nonce = nonce or self.next_nonce()
        box = bindings.crypto_box_afternm(content, b"CurveZMQINITIATE" + nonce, self.shared)
        return frame(b"\x08INITIATE" + (cookie or self.cookie) + nonce + box, COMMAND)

    def message(self, body: bytes, flags: int = 0, nonce: bytes | None = None) -> bytes:
        nonce = nonce or self.next_nonce()
        box = bindings.crypto_box_afternm(bytes([flags]) + body, b"CurveZMQMESSAGEC" + nonce, self.shared)
        return frame(b"\x07MESSAGE" + nonce + box)

    def shake_hands(self) -> None:
        self.feed(greeting(mechanism=b"CURVE") + self.hello())
        self.take_welcome()
        self.feed(self.initiate())
        ready = self.session.outgoing.pop()
        assert ready[2:8] == b"\x05READY"
        nonce, box = ready[8:16], ready[16:]
        metadata = bindings.crypto_box_open_afternm(box, b"CurveZMQREADY---" + nonce, self.shared)
        assert property_of(b"Socket-Type", b"ROUTER") in metadata
        self.session.outgoing.clear()


@pytest.fixture
def peer() -> Peer:
    opened = Peer()
    opened.shake_hands()
    return opened


def offer(client: zmq.Socket[bytes]) -> None:
    """Send what is not answered: ZeroMQ takes nothing more for a peer that refused the handshake."""
    with suppress(zmq.Again):
        client.send(b"x", zmq.NOBLOCK)


class TestRealClients:
    @contextmanager
    def client(self, folder: Path, pair: KeyPair, server: bytes) -> Iterator[zmq.Socket[bytes]]:
        with zmq.Context() as context, context.socket(zmq.DEALER) as opened:
            opened.set(zmq.LINGER, 0)
            opened.set(zmq.RCVTIMEO, PATIENCE_MS)
            opened.set(zmq.SNDTIMEO, PATIENCE_MS)
            opened.set(zmq.CURVE_SERVERKEY, z85.encode(server))
            opened.set(zmq.CURVE_PUBLICKEY, z85.encode(pair.public))
            opened.set(zmq.CURVE_SECRETKEY, z85.encode(pair.secret))
            opened.connect(f"ipc://{folder}/p.sock")
            yield opened

    @pytest.fixture
    def server(self, short_dir: Path) -> Iterator[Served]:
        with served(short_dir / "p.sock", admitting(CLIENT.public)) as opened:
            yield opened

    def test_with_an_admitted_key_send_and_receive_messages_of_any_form(
        self, short_dir: Path, server: Served
    ) -> None:
        messages = [[b"x"], [b"", b"y" * 300], [b""] * 5, [bytes(200_000)], [b"z" * 221], [b"z" * 222]]
        with self.client(short_dir, CLIENT, SERVER.public) as client:
            for message in messages:
                client.send_multipart(message)
                assert client.recv_multipart() == message
        assert [list(incoming.frames) for incoming in server.received] == messages
        assert server.violations == []

    def test_with_another_key_are_refused_and_know_it(self, short_dir: Path, server: Served) -> None:
        with self.client(short_dir, STRANGER, SERVER.public) as client:
            monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
            offer(client)
            assert monitor.poll(PATIENCE_MS)
            client.disable_monitor()
            monitor.close()
            assert not client.poll(0)
        assert server.ended.wait(20)
        assert server.received == []
        assert server.violations[0] == "a key that is not admitted"

    def test_that_expect_another_server_get_nowhere(self, short_dir: Path, server: Served) -> None:
        with self.client(short_dir, CLIENT, STRANGER.public) as client:
            offer(client)
            assert server.ended.wait(20)
            assert not client.poll(SILENCE_MS)
        assert server.received == []
        assert server.violations[0] == "a box of the handshake does not open"

    def test_without_curve_get_nowhere(self, short_dir: Path, server: Served) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.set(zmq.LINGER, 0)
            client.connect(f"ipc://{short_dir}/p.sock")
            offer(client)
            assert server.ended.wait(20)
            assert not client.poll(SILENCE_MS)
        assert server.received == []


class TestHandshake:
    def test_as_the_specification_has_it_ends_with_the_key_of_the_peer(self, peer: Peer) -> None:
        mechanism = peer.session.mechanism
        assert isinstance(mechanism, Curve)
        assert (peer.session.is_ready, mechanism.public) == (True, CLIENT.public)
        assert peer.feed(peer.message(b"hello")) == [Incoming([b"hello"])]

    def test_proves_nothing_before_its_last_step(self) -> None:
        peer = Peer()
        peer.feed(greeting(mechanism=b"CURVE") + peer.hello())
        mechanism = peer.session.mechanism
        assert isinstance(mechanism, Curve)
        assert (peer.session.is_ready, mechanism.public) == (False, None)

    @pytest.mark.parametrize(
        "data",
        [
            command(b"READY", property_of(b"Socket-Type", b"DEALER")),
            command(b"INITIATE", bytes(300)),
            command(b"HELLO", bytes(194)),
            command(b"HELLO", b"\x01\x00" + bytes(192)),
            command(b"HELLO", b"\x01\x00" + bytes(193)),
            command(b"HELLO"),
            frame(b"\x05HELLO\x01\x00" + bytes(192)),
            frame(b"\x07MESSAGE" + bytes(30)),
        ],
    )
    def test_that_begins_with_anything_else_ends(self, data: bytes) -> None:
        with pytest.raises(Violation):
            Peer().feed(greeting(mechanism=b"CURVE") + data)

    def test_with_a_hello_for_another_server_ends(self) -> None:
        peer = Peer(server=STRANGER.public)
        with pytest.raises(Violation, match="does not open"):
            peer.feed(greeting(mechanism=b"CURVE") + peer.hello())

    @pytest.mark.parametrize("at", range(8))
    def test_with_another_name_or_version_ends(self, at: int) -> None:
        """No box holds these bytes."""
        peer = Peer()
        hello = bytearray(peer.hello())
        hello[2 + at] ^= 1
        with pytest.raises(Violation, match="no HELLO"):
            peer.feed(greeting(mechanism=b"CURVE") + bytes(hello))

    def test_with_a_key_of_zeros_ends(self) -> None:
        """Such a key gives the same secret with any other."""
        peer = Peer()
        peer.brief = KeyPair(bytes(32), peer.brief.secret)
        with pytest.raises(Violation, match="does not open"):
            peer.feed(greeting(mechanism=b"CURVE") + peer.hello())
        peer = self.started()
        peer.pair = KeyPair(bytes(32), CLIENT.secret)
        with pytest.raises(Violation, match="does not open"):
            peer.feed(peer.initiate())

    def started(self) -> Peer:
        peer = Peer()
        peer.feed(greeting(mechanism=b"CURVE") + peer.hello())
        peer.take_welcome()
        return peer

    def test_with_the_cookie_of_another_connection_ends(self) -> None:
        peer = self.started()
        with pytest.raises(Violation, match="another cookie"):
            peer.feed(peer.initiate(cookie=self.started().cookie))

    def test_with_the_nonce_of_hello_again_ends(self) -> None:
        peer = self.started()
        with pytest.raises(Violation, match="does not grow"):
            peer.feed(peer.initiate(nonce=struct.pack(">Q", 1)))

    def test_whose_vouch_is_for_another_connection_or_another_server_ends(self) -> None:
        """Else whoever gets a vouch of a peer could connect elsewhere in its name."""
        for wrong in ({"brief": KeyPair.new().public}, {"server": STRANGER.public}):
            peer = self.started()
            with pytest.raises(Violation, match="vouches for another"):
                peer.feed(peer.initiate(**wrong))

    def test_with_the_public_key_of_another_but_not_its_secret_ends(self) -> None:
        peer = self.started()
        peer.pair = KeyPair(CLIENT.public, STRANGER.secret)
        with pytest.raises(Violation, match="does not open"):
            peer.feed(peer.initiate())

    def test_with_a_key_that_is_not_admitted_ends_with_the_refusal(self) -> None:
        peer = self.started()
        peer.pair = STRANGER
        with pytest.raises(Violation, match="not admitted") as caught:
            peer.feed(peer.initiate())
        assert caught.value.reply == command(b"ERROR", b"\x03400")
        assert not peer.session.is_ready

    @pytest.mark.parametrize("metadata", [b"", property_of(b"Socket-Type", b"SUB"), b"\xff", bytes(5)])
    def test_with_wrong_metadata_ends(self, metadata: bytes) -> None:
        peer = self.started()
        with pytest.raises(Violation):
            peer.feed(peer.initiate(metadata=metadata))

    @given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
    def test_in_which_any_bit_of_a_command_is_changed_ends_or_waits(self, at: int, bit: int) -> None:
        """Some bits mean nothing: filler of HELLO, the order of what is waited for."""
        peer = self.started()
        data = bytearray(peer.initiate())
        data[at % len(data)] ^= 1 << bit
        with suppress(Violation):
            peer.feed(bytes(data))
        assert not peer.session.is_ready


class TestMessages:
    @pytest.mark.parametrize("size", [0, 1, 222, 223, 300, 70_000])
    def test_come_back_as_they_were_sealed(self, peer: Peer, size: int) -> None:
        data = peer.session.encoded([bytes(size)])
        header = 2 if data[0] == 0 else 9
        assert data[header : header + 8] == b"\x07MESSAGE"
        nonce, box = data[header + 8 : header + 16], data[header + 16 :]
        content = bindings.crypto_box_open_afternm(box, b"CurveZMQMESSAGES" + nonce, peer.shared)
        assert content == b"\0" + bytes(size)

    def test_never_have_the_same_nonce_twice(self, peer: Peer) -> None:
        sealed = [peer.session.encoded([b"x"]) for _ in range(50)]
        assert len({data[10:18] for data in sealed}) == 50

    def test_that_were_sent_before_end_the_connection(self, peer: Peer) -> None:
        data = peer.message(b"pay")
        assert peer.feed(data) == [Incoming([b"pay"])]
        with pytest.raises(Violation, match="does not grow"):
            peer.feed(data)

    def test_in_another_order_end_the_connection(self, peer: Peer) -> None:
        first, second = peer.message(b"1"), peer.message(b"2")
        peer.feed(second)
        with pytest.raises(Violation, match="does not grow"):
            peer.feed(first)

    @given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
    def test_in_which_any_bit_is_changed_are_never_taken(self, at: int, bit: int) -> None:
        peer = Peer()
        peer.shake_hands()
        data = bytearray(peer.message(b"allow nothing"))
        data[at % len(data)] ^= 1 << bit
        messages = []
        with suppress(Violation):
            messages = peer.feed(bytes(data))
        assert messages == []

    @pytest.mark.parametrize("data", [b"plain", b"\x07MESSAGE", b"\x07MESSAGE" + bytes(8) + bytes(16)])
    def test_without_a_box_end_the_connection(self, peer: Peer, data: bytes) -> None:
        with pytest.raises(Violation, match="no MESSAGE"):
            peer.feed(frame(data))

    @pytest.mark.parametrize("flags", [1, COMMAND])
    def test_whose_flags_are_outside_the_box_end_the_connection(self, peer: Peer, flags: int) -> None:
        data = peer.message(b"x")
        with pytest.raises(Violation):
            peer.feed(bytes([data[0] | flags]) + data[1:])

    def test_of_several_frames_and_commands_are_told_apart_inside_the_box(self, peer: Peer) -> None:
        data = peer.message(b"first", 1) + peer.message(b"\x04PING\0\0c", 2) + peer.message(b"last")
        assert peer.feed(data) == [Incoming([b"first", b"last"])]
        (pong,) = peer.session.outgoing
        content = bindings.crypto_box_open_afternm(pong[18:], b"CurveZMQMESSAGES" + pong[10:18], peer.shared)
        assert content == b"\2\x04PONGc"

    def test_are_bounded_as_those_of_anybody(self) -> None:
        bounds = BOUNDS._replace(frame_bytes=1_000)
        peer = Peer()
        peer.session = Session(
            peer.session.mechanism, socket_type=b"ROUTER", peer_types=(b"DEALER",), bounds=bounds
        )
        peer.shake_hands()
        with pytest.raises(Violation, match="a longer frame"):
            peer.feed(peer.message(bytes(1_000)))
