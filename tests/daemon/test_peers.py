"""Messages of peers that may send anything, at a real daemon with the stub engine."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import zmq

from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.daemon.peers import MAX_ENVELOPE_FRAMES
from thor_policy.daemon.service import serving
from thor_policy.testing import load_stub_engine

#: No test waits longer than this for anything, in milliseconds.
PATIENCE_MS = 20_000

QUESTION = {
    "subject": {"type": "user", "id": "kim"},
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "staging"},
}
#: What a peer of ZMTP 1.0 sends first: an anonymous identity, and a message of one frame.
ZMTP_1 = b"\x01\x00" + b"\x03\x00{}"


@pytest.fixture
def served(config: Config) -> Iterator[Config]:
    with serving(config, load_engine=load_stub_engine):
        yield config


@contextmanager
def peer(config: Config, kind: int, **options: Any) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(kind) as opened:
        opened.set(zmq.LINGER, 0)
        opened.set(zmq.RCVTIMEO, PATIENCE_MS)
        opened.set(zmq.SNDTIMEO, PATIENCE_MS)
        for name, value in options.items():
            opened.set(getattr(zmq, name), value)
        opened.connect(config.endpoint)
        yield opened


def request(request_id: str = "q") -> bytes:
    return json.dumps({"v": 1, "id": request_id, "request": QUESTION}).encode()


def raw_connection(config: Config) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX)
    opened.settimeout(PATIENCE_MS / 1_000)
    opened.connect(str(config.socket_path))
    return opened


def counter(config: Config, name: str, least: int) -> int:
    """The value of a counter, once it is at least this."""
    until = time.monotonic() + PATIENCE_MS / 1_000
    with Client(config.endpoint, timeout_ms=PATIENCE_MS) as client:
        while (value := client.status().counters.get(name, 0)) < least and time.monotonic() < until:
            pass
    return value


class TestUnidentifiedPeers:
    @pytest.mark.parametrize("closes", [True, False], ids=["closes", "stays"])
    def test_of_zmtp_1_are_refused_and_the_daemon_goes_on(self, served: Config, closes: bool) -> None:
        """V1: the kernel's word on such a peer is missing, and reading it ended the daemon."""
        opened = [raw_connection(served) for _ in range(20)]
        for connection in opened:
            connection.sendall(ZMTP_1)
            if closes:
                connection.close()
            else:
                while connection.recv(1_000):  # the daemon's greeting, then the end
                    pass
                connection.close()
        with Client(served.endpoint, timeout_ms=PATIENCE_MS) as client:
            assert "decision" in client.evaluate(QUESTION)


class TestEnvelopes:
    def test_of_a_req_socket_that_correlates_come_back(self, served: Config) -> None:
        """K30: its reply lacked the empty delimiter, so that the socket dropped it."""
        with peer(served, zmq.REQ, REQ_RELAXED=1, REQ_CORRELATE=1) as opened:
            opened.send(b"{")
            assert json.loads(opened.recv())["error"]["code"] == "bad_request"
            opened.send(request())
            assert "decision" in json.loads(opened.recv())

    @pytest.mark.parametrize("brokers", [1, 2, 3])
    def test_of_brokers_come_back(self, served: Config, brokers: int) -> None:
        """K30: a chain of ROUTER-DEALER brokers, as the ZeroMQ guide has them."""
        with peer(served, zmq.DEALER) as opened:
            envelope = [bytes([0, number, 2, 3, 4]) for number in range(brokers)]
            opened.send_multipart([*envelope, b"", request("mine")])
            *returned, reply = opened.recv_multipart()
        assert returned == [*envelope, b""]
        assert json.loads(reply)["id"] == "mine"

    @pytest.mark.parametrize("depth", [0, 1, 2, 5, MAX_ENVELOPE_FRAMES - 1, MAX_ENVELOPE_FRAMES])
    def test_of_any_depth_up_to_the_bound_come_back_with_refusals_too(
        self, served: Config, depth: int
    ) -> None:
        envelope = [f"{number}".encode() * number for number in range(depth)]
        with peer(served, zmq.DEALER) as opened:
            for frame, member in ((request(), "decision"), (b"{", "error")):
                opened.send_multipart([*envelope, frame])
                *returned, reply = opened.recv_multipart()
                assert returned == envelope
                assert member in json.loads(reply)

    @pytest.mark.parametrize(
        "frames",
        [
            [b"a"] * (MAX_ENVELOPE_FRAMES + 1),
            [b"a"] * 900,
            [b"x" * 256],
            [b"", b"x" * 60_000],
        ],
        ids=["deep", "deepest", "long", "longest"],
    )
    def test_beyond_the_bounds_are_refused_with_the_bound(self, served: Config, frames: list[bytes]) -> None:
        with peer(served, zmq.DEALER) as opened:
            opened.send_multipart([*frames, request()])
            error = json.loads(opened.recv_multipart()[-1])["error"]
            assert error["code"] == "bad_request"
            assert "one JSON frame" in error["message"]
            opened.send(request())
            assert "decision" in json.loads(opened.recv())

    def test_of_thousands_of_frames_close_the_connection(self, served: Config) -> None:
        """V7: a message of 1,632 frames was copied whole."""
        with peer(served, zmq.DEALER) as opened:
            opened.send_multipart([b"a"] * 5_000)
            assert counter(served, "connections_closed_for_frames", 1) == 1
        with Client(served.endpoint, timeout_ms=PATIENCE_MS) as client:
            assert "decision" in client.evaluate(QUESTION)


class TestRoutingIds:
    @pytest.mark.parametrize("routing_id", [b"svc-1", b"x", b"\x01" * 5, b"\0kgE\x67", b"y" * 255])
    def test_that_sockets_set_themselves_mean_nothing_and_each_gets_its_own_replies(
        self, served: Config, routing_id: bytes
    ) -> None:
        """K31: whoever took a service's routing id first muted it."""
        with (
            peer(served, zmq.DEALER, ROUTING_ID=routing_id) as first,
            peer(served, zmq.DEALER, ROUTING_ID=routing_id) as second,
        ):
            for name, opened in (("first", first), ("second", second), ("again", first)):
                opened.send(request(name))
                reply = json.loads(opened.recv())
                assert (reply["id"], "decision" in reply) == (name, True)
