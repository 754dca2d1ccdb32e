"""The connections of a real daemon: how many each caller has, and what libzmq must never meet."""

from __future__ import annotations

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

import pytest
import zmq

from tests.transport_fuzz import frame, opening, write
from thor_policy.client.blocking import Client
from thor_policy.client.connection import Connection
from thor_policy.config import Config
from thor_policy.core.errors import RequestError, Unreachable
from thor_policy.daemon import shares
from thor_policy.daemon.connections import UNREAD_REPORTS, Connections, connection_limit, shut
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


@pytest.fixture
def served(config: Config) -> Iterator[Config]:
    with serving(replace(config, max_connections=40), load_engine=load_stub_engine) as running:
        yield running


class TestLimit:
    @pytest.mark.parametrize(
        ("wanted", "files", "limit"),
        [(4_096, 1_048_576, 4_096), (4_096, 8_192, 3_932), (4_096, 1_024, 256), (16, 64, 16)],
    )
    def test_leaves_room_for_what_is_accepted_before_it_is_seen(
        self, wanted: int, files: int, limit: int
    ) -> None:
        assert connection_limit(wanted, files) == limit

    def test_is_held_against_silent_connections_and_a_caller_that_asks_gets_in(self, served: Config) -> None:
        """V2: libzmq aborts where no file can be opened any more."""
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


class TestReports:
    def test_that_nobody_reads_stop_zeromq_from_accepting_more(self, short_dir: os.PathLike[str]) -> None:
        """What the limit rests on: ZeroMQ waits for its reports to be read before it accepts more."""
        endpoint = f"{short_dir}/p.sock"
        with zmq.Context() as context:
            router = context.socket(zmq.ROUTER)
            watched = Connections(
                capacity=9, headroom_bytes=2**30, counters=Counter(), on_closed=lambda _: None
            )
            watched.watch(router, asks=True)
            router.bind(f"ipc://{endpoint}")
            opened: list[socket.socket] = []
            with suppress(AssertionError):
                for _ in range(UNREAD_REPORTS + 200):
                    until = time.monotonic() + 1
                    attempt = socket.socket(socket.AF_UNIX)
                    attempt.setblocking(False)
                    opened.append(attempt)
                    while True:
                        try:
                            attempt.connect(endpoint)
                            break
                        except BlockingIOError:
                            assert time.monotonic() < until
            accepted = len(opened) - 1
            assert UNREAD_REPORTS <= accepted <= UNREAD_REPORTS + 102  # the queue of the listener
            watched.start()
            await_true(lambda: watched.open <= 9)
            watched.stop()
            for attempt in opened:
                attempt.close()
            router.close(linger=0)


class TestDescriptors:
    def test_that_became_another_connection_are_left_alone(self) -> None:
        """Its caller may be the same: another process of this user."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.settimeout(PATIENCE_MS / 1_000)
            inode = os.fstat(ours.fileno()).st_ino
            shut(ours.fileno(), inode + 1)
            ours.sendall(b"open")
            assert theirs.recv(4) == b"open"
            shut(ours.fileno(), inode)
            assert theirs.recv(4) == b""

    def test_that_became_another_file_are_left_alone(self, tmp_path: Path) -> None:
        """In a storm a connection's number is soon that of a file; each look at one left it open."""
        with (tmp_path / "other").open("w") as other:
            before = {path.name for path in Path("/proc/self/fd").iterdir()}
            shut(other.fileno(), 1)
            shut(2**20, 1)
            assert {path.name for path in Path("/proc/self/fd").iterdir()} == before
            other.write("still open")


class TestMemory:
    def test_that_is_short_ends_who_fills_it_and_nobody_whose_reply_waits(
        self, short_dir: os.PathLike[str]
    ) -> None:
        endpoint, counters = f"{short_dir}/p.sock", Counter[str]()
        watched = Connections(
            capacity=9, headroom_bytes=-(2**40), counters=counters, on_closed=lambda _: None
        )
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router, ExitStack() as stack:
            router.set(zmq.LINGER, 0)
            router.set(zmq.SNDHWM, 0)
            router.set(zmq.RCVTIMEO, PATIENCE_MS)
            watched.watch(router, asks=True)
            router.bind(f"ipc://{endpoint}")
            watched.start()
            stack.callback(watched.stop)
            patient, greedy = (stack.enter_context(connect(endpoint)) for _ in range(2))
            for peer, replies in ((patient, 1), (greedy, 1_000)):
                write(peer, opening() + frame(b"question"))  # and reads nothing from now on
                route, _ = router.recv_multipart()
                for _ in range(replies):
                    router.send_multipart([route, bytes(10_000)])
            await_true(lambda: watched.open == 1)
            assert counters == {"connections_closed_for_memory": 1}
            patient.sendall(frame(b"another question"))
            assert router.recv_multipart()[1] == b"another question"

    def test_that_is_short_ends_who_sends_a_message_without_end_and_keeps_it_out(
        self, config: Config
    ) -> None:
        """ZeroMQ takes its frames at once: seldom does one lie in the kernel when this is looked at."""
        config = replace(config, traffic_memory_mb=16)
        with serving(config, load_engine=load_stub_engine), ExitStack() as stack:
            path = config.endpoint.removeprefix("ipc://")
            honest = stack.enter_context(Client(config.endpoint, timeout_ms=PATIENCE_MS))
            control = stack.enter_context(Client(config.control_endpoint, timeout_ms=PATIENCE_MS))
            assert "decision" in honest.evaluate(QUESTION)
            endless = stack.enter_context(connect(path))
            write(endless, opening() + frame(b"", 1))
            frames = frame(bytes(2_000), 1) * 200_000
            with pytest.raises(OSError):
                endless.sendall(frames)
            await_true(lambda: control.status().counters.get("connections_closed_for_memory", 0) == 1)
            again = stack.enter_context(connect(path))
            await_true(lambda: control.status().counters.get("connections_refused", 0) == 1)
            again.close()
            assert "decision" in honest.evaluate(QUESTION)

    def test_that_a_caller_fills_again_and_again_keeps_it_out_twice_as_long_up_to_a_limit(self) -> None:
        watched = Connections(capacity=9, headroom_bytes=0, counters=Counter(), on_closed=lambda _: None)

        def kept_out_s(at_s: float) -> float:
            watched._keep_out("uid:1", int(at_s * 1e9))
            return watched.kept_out_until_ns("uid:1") / 1e9 - at_s

        assert [kept_out_s(at_s) for at_s in (100, 102, 105)] == [1, 2, 4]
        assert kept_out_s(106) == 3  # another connection of it, while it is kept out
        assert [kept_out_s(at_s) for at_s in (110, 120, 140)] == [8, 16, 16]
        assert kept_out_s(140 + 32) == 1  # after a long time without
        assert watched.kept_out_until_ns("uid:2") == 0


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


class TestThreads:
    def test_of_zeromq_yield_to_those_that_decide(self, config: Config, tcp_endpoint: str) -> None:
        """Where they did not, a decode beside connections without end took five times as long."""

        def is_of_zeromq(thread: Path) -> bool:
            with suppress(OSError):  # it has ended
                return (thread / "comm").read_text().startswith("ZMQbg/IO")
            return False

        def niceness() -> list[int]:
            new = [int(thread.name) for thread in THREADS.iterdir() if thread not in others]
            return [os.getpriority(os.PRIO_PROCESS, n) for n in new if is_of_zeromq(THREADS / str(n))]

        Keys(config.keys_dir).new("anybody", ("ask",), 0.0)
        others, own = set(THREADS.iterdir()), os.getpriority(os.PRIO_PROCESS, os.getpid())
        with serving(replace(config, tcp_endpoint=tcp_endpoint), load_engine=load_stub_engine):
            await_true(lambda: niceness() == [own + 4] * 2)


class TestEvents:
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
