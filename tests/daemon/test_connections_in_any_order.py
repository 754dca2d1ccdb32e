"""Connections whose peers do anything in any order: none is kept for nothing, or looked at in vain."""

from __future__ import annotations

import socket
import tempfile
import time
from contextlib import suppress
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.daemon.test_connections import Bare, write_raw
from tests.transport_fuzz import command, frame, greeting, opening

#: What peers write: whole messages, parts of them, and what is no message.
WRITES = {
    "messages": frame(b"question") * 3,
    "an envelope": frame(b"e", 1) * 3 + frame(b"question"),
    "a long frame": frame(bytes(90_000)),
    "a part of a frame": frame(bytes(50_000), length=90_000),
    "zeros": bytes(2_000),
    "pings": command(b"PING", b"\0\0context") * 40,
    "a subscription": frame(b"\1decision"),
    "its end": frame(b"\0decision"),
    "garbage": b"\xff",
    "a greeting": greeting(),
    "frames without end": frame(b"f", 1) * 1_100,
}
#: And what they write when they come.
BEGINNINGS = {"": b"", "3.0": opening(), "3.1": opening(1), "half": greeting(), "http": b"GET /"}


class AnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="tp-")
        self.bare = Bare(f"{self._folder.name}/p.sock")
        self.bare.connections._headroom_bytes = 3_000_000
        self.bare.answer = lambda question: [question[:10], bytes(self.answer_bytes)]
        self.answer_bytes = 10
        self.later_s = 0.0

    def teardown(self) -> None:
        try:
            for peer in self.bare.peers:
                peer.close()
            self.bare.serve_until(lambda: self.bare.connections.open == 0)
            self.check_tables()
        finally:
            self.bare.connections.close(0)
            self._folder.cleanup()

    # ------------------------------------------------------------ what peers do

    @precondition(lambda self: len(self.bare.peers) < 12)
    @rule(first=st.sampled_from(sorted(BEGINNINGS)), subscribes=st.booleans())
    def come(self, first: str, subscribes: bool) -> None:
        peer = self.bare.subscriber(b"dec") if subscribes else self.bare.connect()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        if not subscribes:
            write_raw(peer, BEGINNINGS[first])

    @precondition(lambda self: self.bare.peers)
    @rule(what=st.sampled_from(sorted(WRITES)), which=st.integers(0, 99))
    def write(self, what: str, which: int) -> None:
        with suppress(OSError):
            write_raw(self.bare.peers[which % len(self.bare.peers)], WRITES[what])

    @precondition(lambda self: self.bare.peers)
    @rule(which=st.integers(0, 99), size=st.sampled_from([1, 5_000, 1_000_000]))
    def read(self, which: int, size: int) -> None:
        peer = self.bare.peers[which % len(self.bare.peers)]
        peer.setblocking(False)
        with suppress(OSError):
            while size > 0:
                size -= len(peer.recv(size)) or size

    @precondition(lambda self: self.bare.peers)
    @rule(which=st.integers(0, 99), how=st.sampled_from([None, socket.SHUT_WR, socket.SHUT_RD]))
    def leave(self, which: int, how: int | None) -> None:
        peer = self.bare.peers.pop(which % len(self.bare.peers))
        if how is None:
            peer.close()
        else:
            peer.shutdown(how)
            self.bare.peers.append(peer)

    # ------------------------------------------------------------ what the daemon does

    @rule(size=st.sampled_from([0, 10, 30_000, 200_000]))
    def answer_with(self, size: int) -> None:
        self.answer_bytes = size

    @precondition(lambda self: self.bare.senders)
    @rule(which=st.integers(0, 99), size=st.sampled_from([1, 100_000, 400_000]))
    def answer_late(self, which: int, size: int) -> None:
        self.bare.connections.send(self.bare.senders[which % len(self.bare.senders)], [bytes(size)])

    @rule(topic=st.sampled_from([b"decision", b"record"]), size=st.sampled_from([10, 300_000]))
    def publish(self, topic: bytes, size: int) -> None:
        self.bare.connections.publish([topic, bytes(size)])

    @rule(turns=st.integers(1, 3), most=st.sampled_from([1, 8, 64]))
    def serve(self, turns: int, most: int) -> None:
        for _ in range(turns):
            self.bare.serve(most)

    @rule(later_s=st.sampled_from([0.5, 3.0, 6.0, 31.0]))
    def look_at_all(self, later_s: float) -> None:
        self.bare.connections._look_at_all(time.monotonic_ns() + int(later_s * 1e9))

    @rule()
    def relieve(self) -> None:
        self.bare.connections._relieve(time.monotonic_ns())

    # ------------------------------------------------------------ what holds

    @rule()
    def where_nobody_does_anything_the_thread_sleeps(self) -> None:
        self.bare.serve_until(lambda: not (self.bare.connections._readable or self.bare.connections._resting))
        self.bare.serve_until(lambda: self.bare.connections._epoll.poll(0) == [])

    @invariant()
    def check_tables(self) -> None:
        connections: Any = self.bare.connections
        assert connections._places.total == len(connections._open)
        for table in ("_open", "_readable", "_unflushed", "_holding", "_subscribers"):
            for descriptor, connection in getattr(connections, table).items():
                assert connections._open[descriptor] is connection, table
                assert not connection.closed
                assert connection.descriptor == descriptor
        for connection in connections._open.values():
            assert connection.is_paused <= (connection.waiting_bytes > 0)
            assert connection.waiting_bytes < 3 * 2**20
            if connection.held_bytes > 100_000:
                assert (
                    connection.descriptor
                    in connections._holding | connections._readable | connections._unflushed
                )


TestConnectionsInAnyOrder = AnyOrder.TestCase
TestConnectionsInAnyOrder.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
