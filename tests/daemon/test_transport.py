"""A daemon whose sockets get raw bytes: whatever a peer writes, and wherever it stops, others are answered.

The daemon is a process of its own, because that shows an end of it, whatever the cause.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.transport_fuzz import (
    KINDS,
    Stream,
    command,
    cut_everywhere,
    frame,
    old_frame,
    opening,
    streams,
    unconnected,
    write,
)
from thor_policy.client.blocking import Client
from thor_policy.config import Config

#: No test waits longer than this for a reply, in milliseconds.
PATIENCE_MS = 30_000
#: Streams between two questions of the honest client, and connections that are open at the same time.
BURST, OPEN = 250, 32
#: Growth of the daemon's memory that is allowed after the first burst, in MiB.
GROWTH_MIB = 32

SERVE = """
import sys
from pathlib import Path
from thor_policy import testing
from thor_policy.config import Config
from thor_policy.daemon import service
own = {"caller_requests_per_s": 0, "caller_bytes_per_s": 0}  # one user: honest and hostile
config = Config(state_dir=Path(sys.argv[1]), endpoint=sys.argv[2], ballast_mb=1, min_free_mb=1, **own)
with service.open_service(config, load_engine=testing.load_stub_engine) as server:
    server.run(ready=lambda: print("ready", flush=True))
"""

QUESTION = {
    "actor_id": "user:u1",
    "actor_role": "member",
    "t3_tensor": {"competence": 0.8, "reliability": 0.7, "integrity": 0.8},
    "action_type": "grant_admin",
    "resource": "role:owner",
    "timestamp": "2026-03-04T13:05:00Z",
}


class Target:
    """A daemon in a process of its own, an honest client, and raw connections to its sockets."""

    def __init__(self, config: Config, process: subprocess.Popen[str], client: Client) -> None:
        self.process, self.client = process, client
        self._paths = [str(path) for path in (config.socket_path, config.events_path)]
        control = config.socket_path.with_name(config.socket_path.name + ".control")
        self._paths += [str(control)] * control.exists()
        self._open: deque[socket.socket] = deque()
        self.written = self.connected = 0

    def attack(self, hostile: Iterable[Stream]) -> None:
        """Write each stream to one of the sockets in turn; then the honest client must be answered."""
        for stream in hostile:
            self.written += 1
            raw = unconnected()
            with suppress(OSError):
                raw.connect(self._paths[self.written % len(self._paths)])
                self.connected += 1
                write(raw, stream.data, at_once=stream.at_once)
            if stream.stays:
                self._open.append(raw)
            else:
                raw.close()
            while len(self._open) > OPEN:
                self._open.popleft().close()
        self.check_honest_client()

    def check_honest_client(self) -> None:
        assert self.process.poll() is None, f"the daemon ended after {self.written} streams"
        assert self.connected == self.written
        assert self.client.evaluate(QUESTION)["context"]["outcome"] == "deny"
        assert self.client.status().state == "serving"

    def memory_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 2**20

    def close(self) -> None:
        for raw in self._open:
            raw.close()


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    config = Config(state_dir=folder, endpoint=f"ipc://{folder}/p.sock")
    command = [sys.executable, "-c", SERVE, str(folder), config.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with Client(config.endpoint, timeout_ms=PATIENCE_MS) as client:
                attacked = Target(config, process, client)
                yield attacked
                attacked.close()
        finally:
            process.kill()
            _, errors = process.communicate()
            print(errors[-4_000:])  # shown where a test fails


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Target]:
    with target(short_dir) as attacked:
        yield attacked


def bursts(hostile: Iterable[Stream]) -> Iterator[list[Stream]]:
    burst: list[Stream] = []
    for stream in hostile:
        burst.append(stream)
        if len(burst) == BURST:
            yield burst
            burst = []
    yield burst


def test_handshakes_of_every_version_cut_at_every_byte_leave_the_daemon_serving(daemon: Target) -> None:
    for burst in bursts(cut_everywhere()):
        daemon.attack(burst)


def test_a_peer_of_zmtp_1_that_closes_before_it_is_accepted_leaves_the_daemon_serving(daemon: Target) -> None:
    """The kernel names no peer for a connection that was closed before it was accepted."""
    data = old_frame(b"") + old_frame(b'{"v": 1, "op": "status"}')
    for _ in range(4):
        daemon.attack([Stream("unversioned", data)] * BURST)


def test_half_greetings_that_stay_open_leave_the_daemon_serving(daemon: Target) -> None:
    data = opening()
    daemon.attack(Stream("half", data[:length], stays=True) for length in range(len(data)))


@pytest.mark.parametrize("seed", [1])
def test_hostile_streams_leave_the_daemon_serving(daemon: Target, seed: int) -> None:
    hostile = list(streams(seed, 2_000))
    assert {stream.kind for stream in hostile} == {*KINDS, "connect and close"}
    for burst in bursts(hostile):
        daemon.attack(burst)


def test_subscribers_that_leave_are_forgotten_where_nothing_is_published(daemon: Target) -> None:
    """Each kept its subscriptions, some 10 kB, until the next event that had a reader."""
    subscriptions = b"".join(frame(b"\1" + bytes([number]) * 200) for number in range(60))
    hostile = [Stream("subscriptions", opening(socket_type=b"SUB") + subscriptions)] * 3 * BURST
    daemon.attack(hostile)
    settled_mib = daemon.memory_mib()
    for _ in range(5):
        daemon.attack(hostile)
    until_s = time.monotonic() + PATIENCE_MS / 1_000
    while daemon.memory_mib() > settled_mib + GROWTH_MIB / 2 and time.monotonic() < until_s:
        daemon.check_honest_client()
    assert daemon.memory_mib() < settled_mib + GROWTH_MIB / 2


def test_a_ping_behind_a_full_queue_leaves_the_daemon_serving(daemon: Target) -> None:
    """A server on libzmq reads it after the peer has left, and ends the process with an assertion."""
    data = opening(1) + frame(b"{") * 70 + command(b"PING", b"\0\0")
    for _ in range(8):
        daemon.attack([Stream("commands", data)] * BURST)


@pytest.mark.soak
def test_200_000_hostile_streams_leave_the_daemon_serving_and_its_memory_flat(daemon: Target) -> None:
    settled_mib = 0.0
    for number, burst in enumerate(bursts(streams(2, 200_000))):
        daemon.attack(burst)
        if number == 80:  # a tenth: caches are full
            settled_mib = daemon.memory_mib()
    daemon.close()  # an endless message takes a megabyte for as long as its connection is open
    until_s, most_mib = time.monotonic() + PATIENCE_MS / 1_000, settled_mib + GROWTH_MIB
    while (end_mib := daemon.memory_mib()) > most_mib and time.monotonic() < until_s:
        daemon.check_honest_client()
    print(f"{daemon.written} streams, {settled_mib:.0f} MiB, at the end {end_mib:.0f} MiB")
    assert end_mib < most_mib
