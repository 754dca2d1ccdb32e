"""The connections of a daemon: how many each caller has, what they may hold, and when they end."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.transport_fuzz import frame, greeting, opening
from thor_policy.client.blocking import Client
from thor_policy.client.connection import Connection
from thor_policy.config import Config
from thor_policy.core.errors import RequestError, Unreachable
from thor_policy.core.requests import Caller
from thor_policy.daemon import connection, connections, shares, sockets
from thor_policy.daemon.connection import Listener
from thor_policy.daemon.connections import Connections, connection_limit
from thor_policy.daemon.peers import bounds_of
from thor_policy.daemon.service import serving
from thor_policy.security.curve_keys import Keys
from thor_policy.testing import load_stub_engine

#: No test waits longer than this for anything, in milliseconds.
PATIENCE_MS = 20_000
#: The threads of this process, by number.
THREADS = Path("/proc/self/task")
QUESTION = {
    "subject": {"type": "user", "id": "kim"},
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "staging"},
}


def await_true(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_MS / 1_000
    while not condition():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.001)


def connect(path: str) -> socket.socket:
    """A connection that says nothing; waits for the listener where its queue is full."""
    opened = socket.socket(socket.AF_UNIX)
    opened.settimeout(PATIENCE_MS / 1_000)
    until = time.monotonic() + PATIENCE_MS / 1_000
    while True:
        try:
            opened.connect(path)
        except BlockingIOError:
            assert time.monotonic() < until
            time.sleep(0.0005)
        else:
            return opened


def write_raw(peer: socket.socket, data: bytes) -> None:
    """Write as much as the other side takes at once."""
    peer.setblocking(False)
    with suppress(BlockingIOError):
        while data:
            data = data[peer.send(data) :]


class Bare:
    """Connections without a daemon, in the thread of the test: each message gets what `answer` says."""

    def __init__(self, path: str) -> None:
        self.counters: Counter[str] = Counter()
        self.connections = Connections(capacity=40, headroom_bytes=2**30, counters=self.counters)
        self.connections.listen(
            Listener(sockets.bind(Path(path), 0o600), *sockets.REQUESTS, bounds_of(524_288))
        )
        events = sockets.subscriptions(sockets.bind(Path(f"{path}.events"), 0o600))
        self.connections.listen(events)
        self.path = path
        self.peers: list[socket.socket] = []
        self.received: list[bytes] = []
        self.senders: list[connection.Connection] = []
        self.answer: Callable[[bytes], list[bytes] | None] = lambda question: [question]

    def connect(self, path: str = "") -> socket.socket:
        self.peers.append(connect(path or self.path))
        return self.peers[-1]

    def subscriber(self, *topics: bytes) -> socket.socket:
        """A subscriber that reads what the test takes from it."""
        peer = self.connect(f"{self.path}.events")
        peer.sendall(opening(socket_type=b"SUB") + b"".join(frame(b"\1" + topic) for topic in topics))
        return peer

    def serve(self, most: int = 64) -> None:
        """One turn of a loop."""
        self.connections.poll(0)
        for sender, incoming in self.connections.receive(most, time.monotonic_ns() + 10**10):
            self.received.append(incoming.frames[-1])
            self.senders.append(sender)
            if (answer := self.answer(incoming.frames[-1])) is not None:
                self.connections.send(sender, answer)
        self.connections.flush()

    def serve_until(self, condition: Callable[[], bool]) -> None:
        def turn() -> bool:
            self.serve()
            return condition()

        await_true(turn)


@pytest.fixture
def bare(short_dir: Path) -> Iterator[Bare]:
    opened = Bare(f"{short_dir}/p.sock")
    yield opened
    for peer in opened.peers:
        peer.close()
    opened.connections.close(0)


@pytest.fixture
def served(config: Config) -> Iterator[Config]:
    with serving(replace(config, max_connections=40), load_engine=load_stub_engine) as running:
        yield running


class TestLimit:
    @pytest.mark.parametrize(
        ("wanted", "files", "limit"),
        [(4_096, 1_048_576, 4_096), (4_096, 8_192, 4_096), (4_096, 1_024, 768), (16, 64, 16)],
    )
    def test_leaves_room_for_other_files(self, wanted: int, files: int, limit: int) -> None:
        assert connection_limit(wanted, files) == limit

    def test_is_held_against_silent_connections_and_a_caller_that_asks_gets_in(self, served: Config) -> None:
        """V2: there was no limit but that of open files, where libzmq aborts."""
        silent = [connect(str(served.socket_path)) for _ in range(300)]
        with Client(served.endpoint, timeout_ms=PATIENCE_MS) as client:
            assert "decision" in client.evaluate(QUESTION)
            await_true(lambda: client.status().connections <= 40)
            status = client.status()
        assert status.counters["connections_refused"] >= 260
        for opened in silent:
            opened.close()

    def test_of_open_files_is_never_met(self, config: Config) -> None:
        """V2, as it was seen: a limit of 1,024 files and more silent connections than that."""
        script = (
            "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))\n"
            "from thor_policy.daemon import connections\n"
            "connections.raise_file_limit = lambda: 1024\n"
            "from thor_policy.daemon import endpoints\n"
            "endpoints.raise_file_limit = lambda: 1024\n"
            "from thor_policy.cli import main; from thor_policy.daemon import service\n"
            "from thor_policy.testing import load_stub_engine\n"
            "from thor_policy.config import load\n"
            "import os\n"
            "with service.serving(load(None, environ=os.environ, flags={}), load_engine=load_stub_engine):\n"
            "    print('ready', flush=True); input()\n"
        )
        environment = os.environ | {
            "THOR_POLICY_STATE_DIR": str(config.state_dir),
            "THOR_POLICY_ENDPOINT": config.endpoint,
        }
        with subprocess.Popen(
            [sys.executable, "-c", script],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as daemon:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "ready\n"
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(4_096, hard), hard))
            silent = []
            for _ in range(1_500):
                silent.append(connect(str(config.socket_path)))
            with Client(config.endpoint, timeout_ms=PATIENCE_MS) as client:
                assert "decision" in client.evaluate(QUESTION)
            for opened in silent:
                opened.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            with Client(config.endpoint, timeout_ms=PATIENCE_MS) as client:
                assert "decision" in client.evaluate(QUESTION)
            daemon.communicate("\n")
            assert daemon.returncode == 0


class TestDescriptors:
    def test_that_run_out_let_nobody_in_for_a_while_and_end_nothing(
        self, bare: Bare, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """V2, at the system call: libzmq aborts there."""
        failures = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]
        accept = socket.socket.accept

        def failing(listener: socket.socket) -> Any:
            if failures:
                raise OSError(failures.pop(), "out of descriptors")
            return accept(listener)

        monkeypatch.setattr(socket.socket, "accept", failing)
        peer = bare.connect()
        bare.serve_until(lambda: bare.connections.open == 1)
        assert bare.counters["accepts_failed"] == 4
        peer.sendall(opening() + frame(b"question"))
        bare.serve_until(lambda: bare.received == [b"question"])


class TestReplies:
    def test_that_are_not_read_stop_the_reading_of_requests_and_all_come_in_the_end(self, bare: Bare) -> None:
        """Nothing is lost where a peer sends much and reads later."""
        count, size = 400, 20_000
        bare.answer = lambda question: [question, bytes(size)]
        peer = bare.connect()
        peer.setblocking(False)
        data = opening() + b"".join(frame(b"%d" % number) for number in range(count))
        peer.send(data)
        for _ in range(200):
            bare.serve()
        assert len(bare.received) < count
        held = bare.connections._open[next(iter(bare.connections._open))].waiting_bytes
        assert held < 2 * 262_144
        answers = bytearray()

        def read_all() -> bool:
            with suppress(BlockingIOError):
                while part := peer.recv(65_536):
                    answers.extend(part)
            return answers.count(b"\2" + (size).to_bytes(8, "big")) == count

        bare.serve_until(read_all)
        assert bare.received == [b"%d" % number for number in range(count)]

    def test_are_not_written_again_until_the_kernel_takes_more(
        self, bare: Bare, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each attempt copies all that waits, up to a megabyte."""
        bare.answer = lambda _: None
        bare.connect().sendall(opening() + frame(b"question"))
        bare.serve_until(lambda: len(bare.received) == 1)
        (sender,) = bare.senders
        writes = []
        flush = connection.Connection.flush
        monkeypatch.setattr(
            connection.Connection, "flush", lambda self, now_ns: writes.append(now_ns) or flush(self, now_ns)
        )
        for _ in range(100):
            bare.connections.send(sender, [bytes(200_000)])
            bare.serve()
        assert len(writes) < 5

    def test_that_are_not_read_leave_the_thread_asleep_whatever_more_arrives(self, bare: Bare) -> None:
        bare.answer = lambda _: None
        peer = bare.connect()
        peer.sendall(opening() + frame(b"question"))
        bare.serve_until(lambda: len(bare.received) == 1)
        (sender,) = bare.senders
        bare.connections.send(sender, [bytes(260_000)])
        bare.serve()
        assert sender.is_stuck
        assert not sender.is_full
        bare.connections.send(sender, [bytes(270_000)])  # more than may wait, while the kernel takes none
        peer.sendall(frame(b"more"))
        bare.serve()
        assert sender.is_paused
        assert bare.connections._epoll.poll(0) == []
        assert not bare.connections._readable

    def test_that_nobody_reads_for_long_end_the_connection(
        self, bare: Bare, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bare.answer = lambda _: [bytes(400_000)]
        peer = bare.connect()
        peer.sendall(opening() + frame(b"question"))
        bare.serve_until(lambda: bare.received == [b"question"])
        bare.connections._look_at_all(time.monotonic_ns() + int(29e9))
        assert bare.connections.open == 1
        bare.connections._look_at_all(time.monotonic_ns() + int(31e9))
        assert bare.connections.open == 0
        assert bare.counters["connections_closed_unread"] == 1

    def test_to_a_connection_that_ended_are_refused(self, bare: Bare) -> None:
        peer = bare.connect()
        peer.sendall(opening() + frame(b"question"))
        bare.answer = lambda _: None
        bare.serve_until(lambda: bare.received == [b"question"])
        peer.close()
        bare.serve_until(lambda: bare.connections.open == 0)
        assert not bare.connections.send(bare.senders[0], [b"answer"])
        assert [lane.connection for lane in bare.connections.take_ended()] == [1]


class TestHandshakes:
    @pytest.mark.parametrize("data", [b"", b"\xff", greeting(), greeting() + b"\x04"], ids=len)
    def test_that_do_not_end_are_ended(self, bare: Bare, data: bytes) -> None:
        bare.connect().sendall(data)
        bare.serve_until(lambda: bare.connections.open == 1)
        bare.connections._look_at_all(time.monotonic_ns() + int(4e9))
        assert bare.connections.open == 1
        bare.connections._look_at_all(time.monotonic_ns() + int(6e9))
        assert (bare.connections.open, bare.counters["handshakes_failed"]) == (0, 1)

    @pytest.mark.parametrize(
        "data",
        [b"GET / HTTP/1.1\r\n\r\n", greeting(major=2), greeting(mechanism=b"PLAIN"), opening(0, b"SUB")],
        ids=["http", "version", "mechanism", "socket type"],
    )
    def test_that_fail_end_the_connection_and_are_counted(self, bare: Bare, data: bytes) -> None:
        bare.connect().sendall(data)
        bare.serve_until(lambda: bare.counters["handshakes_failed"] == 1)
        assert bare.connections.open == 0


class TestTurns:
    @pytest.fixture
    def connect_as(self, bare: Bare, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
        """A connection of each of these users, which sends its user's number a hundred times."""

        def connect_all(uids: list[int]) -> None:
            waiting = iter(uids)
            monkeypatch.setattr(
                connections, "peer_of", lambda _: Caller(transport="ipc", uid=next(waiting), gid=0, pid=1)
            )
            peers = []
            for _ in uids:
                peers.append(bare.connect())
                bare.serve_until(lambda: bare.connections.open == len(peers))
            for uid, peer in zip(uids, peers, strict=True):
                peer.sendall(opening() + frame(b"%d" % uid) * 100)
            bare.answer = lambda _: None

        return connect_all

    def test_of_callers_are_equal_however_many_connections_one_has(
        self, bare: Bare, connect_as: Callable[[list[int]], None]
    ) -> None:
        connect_as([1] * 8 + [2])
        while len(bare.received) < 160:
            bare.serve(most=16)
        assert bare.received[:160].count(b"2") == pytest.approx(80, abs=16)

    def test_of_callers_are_equal_where_more_send_than_have_one_at_a_time(
        self, bare: Bare, connect_as: Callable[[list[int]], None]
    ) -> None:
        connect_as([1] * 8 + [2, 3, 4, 5])
        while len(bare.received) < 5 * 64:
            bare.serve(most=16)
        assert Counter(bare.received) == {b"%d" % uid: pytest.approx(64, abs=16) for uid in range(1, 6)}

    def test_of_the_connections_of_a_caller_are_equal_too(
        self, bare: Bare, connect_as: Callable[[list[int]], None]
    ) -> None:
        connect_as([1] * 20)
        while len(bare.received) < 20 * 16:
            bare.serve(most=16)
        assert min(Counter(bare.senders).values()) >= 8
        assert len(Counter(bare.senders)) == 20


class TestMemory:
    def test_that_is_short_ends_who_fills_it_and_nobody_else_whose_reply_waits(self, bare: Bare) -> None:
        bare.connections._headroom_bytes = 3_000_000
        bare.answer = lambda question: [bytes(1_000 * len(question))]
        patient, greedy = bare.connect(), bare.connect()
        for peer, question, count in ((patient, b"q" * 250, 1), (greedy, b"q" * 250, 1)):
            write_raw(peer, opening() + frame(question) * count)  # and reads nothing from now on
        bare.serve_until(lambda: len(bare.received) == 2)
        assert bare.connections.open == 2
        for sender in bare.senders[1:]:
            bare.connections.send(sender, [bytes(4_000_000)])
        bare.serve_until(lambda: bare.connections.open == 1)
        assert bare.counters == {"connections_closed_for_memory": 1}
        patient.sendall(frame(b"another"))
        bare.serve_until(lambda: bare.received[-1] == b"another")

    def test_that_is_short_ends_no_more_connections_than_it_must_and_the_largest_first(
        self, bare: Bare
    ) -> None:
        bare.answer = lambda _: None
        for _ in range(5):
            bare.connect().sendall(opening() + frame(b"question"))
        bare.serve_until(lambda: len(bare.received) == 5)
        sizes = [1_000_000, 5_000_000, 2_000_000, 4_000_000, 3_000_000]
        for sender, size in zip(bare.senders, sizes, strict=True):
            bare.connections.send(sender, [bytes(size)])
        bare.connections._headroom_bytes = 6_500_000
        bare.connections._holding = {sender.descriptor: sender for sender in bare.senders}
        bare.connections._relieve(time.monotonic_ns())
        assert [sender.closed for sender in bare.senders] == [False, True, False, True, False]
        assert bare.counters == {"connections_closed_for_memory": 2}

    def test_that_is_short_counts_what_has_arrived_and_is_no_message_yet(self, bare: Bare) -> None:
        bare.connections._headroom_bytes = 100_000
        peer = bare.connect()
        write_raw(peer, opening() + frame(b"x" * 200_000, length=900_000))
        bare.serve_until(lambda: bare.counters["connections_closed_for_memory"] == 1)

    def test_that_is_short_keeps_who_fills_it_out(self, config: Config) -> None:
        config = replace(config, traffic_memory_mb=16)
        question = json.dumps({"v": 1, "op": "similar", "request": {}}).encode()
        with serving(config, load_engine=load_stub_engine), ExitStack() as stack:
            control = stack.enter_context(Client(config.control_endpoint, timeout_ms=PATIENCE_MS))

            def is_kept_out() -> bool:
                counters = control.status().counters
                return (
                    counters.get("connections_closed_for_memory", 0) > 0
                    and counters.get("connections_refused", 0) > 0
                )

            greedy: list[socket.socket] = []

            def fill() -> bool:
                """Frames that are nearly complete, and replies that nobody reads."""
                opened = stack.enter_context(connect(str(config.socket_path)))
                greedy.append(opened)
                opened.setblocking(False)
                with suppress(OSError):
                    opened.send(opening() + frame(question))
                    opened.send(frame(bytes(100_000), length=120_000))
                return is_kept_out()

            await_true(fill)
            for opened in greedy:
                opened.close()

            def is_back() -> bool:
                try:
                    with Client(config.endpoint, timeout_ms=1_000) as honest:
                        return "decision" in honest.evaluate(QUESTION)
                except Unreachable:
                    return False

            await_true(is_back)

    def test_that_a_caller_fills_again_and_again_keeps_it_out_twice_as_long_up_to_a_limit(self) -> None:
        filled = Connections(capacity=9, headroom_bytes=0, counters=Counter())

        def kept_out_s(at_s: float) -> float:
            filled._keep_out("uid:1", int(at_s * 1e9))
            return filled.kept_out_until_ns("uid:1") / 1e9 - at_s

        assert [kept_out_s(at_s) for at_s in (100, 102, 105)] == [1, 2, 4]
        assert kept_out_s(106) == 3  # another connection of it, while it is kept out
        assert [kept_out_s(at_s) for at_s in (110, 120, 140)] == [8, 16, 16]
        assert kept_out_s(140 + 32) == 1  # after a long time without
        assert filled.kept_out_until_ns("uid:2") == 0
        filled.close(0)

    def test_that_a_barred_caller_fills_does_not_shorten_its_bar(self) -> None:
        """A second without connections, as for any such caller, must not replace the minutes it has left."""
        filled = Connections(capacity=9, headroom_bytes=0, counters=Counter())
        now_ns = time.monotonic_ns()
        filled.bar("uid:1", now_ns + 300 * 10**9)
        filled._keep_out("uid:1", now_ns)
        assert filled.kept_out_until_ns("uid:1") == now_ns + 300 * 10**9
        filled.close(0)


class TestBarredCaller:
    @pytest.mark.parametrize("over", ["ipc", "tcp"])
    def test_is_cut_off_and_comes_back_later_while_others_and_status_are_served(
        self, over: str, config: Config, free_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It sends on and on after `busy`; the honest one has another identity."""
        monkeypatch.setattr(shares, "_BARRED_S", 1.0)
        monkeypatch.setattr(shares, "_BARRED_MOST_S", 1.0)  # it may be barred again before that is seen
        monkeypatch.setattr(shares, "_UNAWARE_S", 0.0)
        with ExitStack() as stack:
            if over == "tcp":
                Keys(config.keys_dir).new("greedy", ("ask",), time.time())
                config = replace(config, tcp_endpoint=f"tcp://127.0.0.1:{free_port}")
            config = replace(config, caller_requests_per_s=50)
            running = stack.enter_context(serving(config, load_engine=load_stub_engine))
            key = config.keys_dir / "greedy.key" if over == "tcp" else None
            greedy = Connection.to(running.tcp_endpoint if key else running.endpoint, key)
            context = stack.enter_context(zmq.Context())
            opened = stack.enter_context(greedy.prepare(context.socket(zmq.DEALER)))
            opened.set(zmq.LINGER, 0)
            opened.connect(greedy.endpoint)
            control = stack.enter_context(Client(running.control_endpoint, timeout_ms=PATIENCE_MS))

            def is_barred() -> bool:
                with suppress(zmq.Again):
                    for _ in range(200):
                        opened.send(b'{"v": 1, "op": "evaluate"}', zmq.NOBLOCK)
                counters = control.status().counters
                return counters.get("callers_barred", 0) > 0 < counters.get("connections_closed_barred", 0)

            await_true(is_barred)
            opened.close()
            if key:
                with Client(running.endpoint, timeout_ms=PATIENCE_MS) as honest:
                    assert "decision" in honest.evaluate(QUESTION)

            def is_back() -> bool:
                try:
                    with Client(greedy.endpoint, key=key, timeout_ms=1_000) as later:
                        return "decision" in later.evaluate(QUESTION)
                except Unreachable:
                    return False
                except RequestError as error:  # it was read before its connection was closed
                    if error.code != "busy":
                        raise
                    return False

            await_true(is_back)


class TestPlaces:
    def test_of_connections_that_ended_are_free_again(self, served: Config) -> None:
        for _ in range(5):
            for opened in [connect(str(served.socket_path)) for _ in range(15)]:
                opened.close()
        with Client(served.endpoint, timeout_ms=PATIENCE_MS) as client:
            await_true(lambda: client.status().connections == 1)

    def test_what_waits_of_a_connection_that_ended_is_dropped_and_counted(self, served: Config) -> None:
        """V6: the requests of clients that had left kept others waiting for seconds."""
        frame = json.dumps({"v": 1, "request": QUESTION}).encode()
        stop = threading.Event()

        def leave() -> None:
            while not stop.is_set():
                with zmq.Context() as context, context.socket(zmq.DEALER) as opened:
                    opened.set(zmq.LINGER, 100)
                    opened.connect(served.endpoint)
                    for _ in range(300):
                        opened.send(frame)

        leaver = threading.Thread(target=leave)
        leaver.start()
        try:
            with Client(served.endpoint, timeout_ms=PATIENCE_MS) as client:
                await_true(lambda: client.status().counters.get("requests_of_closed_connections", 0) > 0)
        finally:
            stop.set()
            leaver.join()
        with Client(served.endpoint, timeout_ms=PATIENCE_MS) as client:
            assert "decision" in client.evaluate(QUESTION)
            await_true(lambda: client.status().in_flight == 0)


class TestRemotePeers:
    def test_with_many_addresses_leave_half_of_the_places_to_local_users(self, bare: Bare) -> None:
        """Each address is a caller until its key is known."""
        opened = socket.create_server(("127.0.0.1", 0))
        opened.setblocking(False)
        bare.connections.listen(Listener(opened, *sockets.REQUESTS, bounds_of(65_536), bars=True))
        address = opened.getsockname()
        with ExitStack() as stack:
            for number in range(2, 60):
                peer = stack.enter_context(socket.socket())
                peer.bind((f"127.0.0.{number}", 0))
                peer.connect(address)
            bare.serve_until(lambda: bare.counters["connections_refused"] >= 58 - 20)
            assert bare.connections.open == 20
            for number in range(10):
                bare.connect().sendall(opening() + frame(b"%d" % number))
            bare.serve_until(lambda: len(bare.received) == 10)
        bare.serve_until(lambda: bare.connections.open == 10)
        assert bare.connections._remote == 0


class TestEvents:
    def test_reach_whoever_subscribed_to_what_their_topic_begins_with(self, bare: Bare) -> None:
        topics = {b"": True, b"dec": True, b"decision": True, b"decisions": False, b"x": False}
        subscribers = {topic: bare.subscriber(topic) for topic in topics}
        both = bare.subscriber(b"x", b"d")
        bare.serve_until(lambda: len(bare.connections._subscribers) == 6)
        bare.connections.publish([b"decision", b"{}"])
        bare.connections.flush()
        message = frame(b"decision", 1) + frame(b"{}")
        for topic, reaches in topics.items():
            peer = subscribers[topic]
            peer.setblocking(False)
            assert peer.recv(4_096).endswith(message) == reaches, topic
        assert both.recv(4_096).count(message) == 1

    def test_reach_nobody_who_has_cancelled(self, bare: Bare) -> None:
        peer = bare.subscriber(b"decision")
        bare.serve_until(lambda: bare.connections.has_subscribers)
        peer.sendall(frame(b"\0decision"))
        bare.serve_until(lambda: not bare.connections.has_subscribers)

    def test_are_for_so_many_subscribers_of_a_caller(
        self, bare: Bare, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each costs time for each event, whether it reads or not."""
        monkeypatch.setattr(connections, "_MOST_SUBSCRIBERS", 3)
        for _ in range(5):
            bare.subscriber(b"decision", b"record")
        bare.serve_until(lambda: bare.counters["connections_refused"] == 2)
        assert len(bare.connections._subscribers) == 3

    def test_of_too_many_subscriptions_end_the_connection(self, bare: Bare) -> None:
        bare.subscriber(*(b"%d" % number for number in range(65)))
        bare.serve_until(lambda: bare.counters["connections_closed_for_protocol"] == 1)

    def test_of_a_subscriber_that_never_reads_are_missed_by_it_alone(self, config: Config) -> None:
        """V8: it made the publisher drop events for everybody. Both see by the numbers what they missed."""
        count = 3_000
        frame = json.dumps({"v": 1, "request": QUESTION}).encode()
        with serving(config, load_engine=load_stub_engine), zmq.Context() as context:
            silent, honest, asking = (context.socket(kind) for kind in (zmq.SUB, zmq.SUB, zmq.DEALER))
            silent.set(zmq.RCVHWM, 1)
            for opened in (silent, honest):
                opened.subscribe(b"decision")
                opened.connect(config.events_endpoint)
            asking.connect(config.endpoint)
            for opened in (silent, honest, asking):
                opened.set(zmq.LINGER, 0)
                opened.set(zmq.RCVTIMEO, PATIENCE_MS)
            while not honest.poll(50):  # until the subscription has arrived
                asking.send(frame)
                asking.recv()
            numbers = [json.loads(honest.recv_multipart()[1])["number"]]
            for _ in range(count // 100):
                for _ in range(100):
                    asking.send(frame)
                for _ in range(100):
                    asking.recv()
                    numbers.append(json.loads(honest.recv_multipart()[1])["number"])
            first = numbers[0]
            assert numbers == list(range(first, first + len(numbers)))
            for opened in (silent, honest, asking):
                opened.close()
