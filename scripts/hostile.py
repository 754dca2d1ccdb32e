"""Put hostile clients of each kind beside one honest client, and measure what the honest one gets.

Owns the command of scripts/hostile, the daemon that it starts, and the processes of the clients. For each
kind, two processes with 16 hostile connections each run for some seconds. The honest client is a process of
its own: a closed loop of rule questions, one of model questions and one of `status`, each at a stated rate.
Invariant: no hostile process outlives the command, and every question of the honest client has a result.

Started as root, the hostile processes of each kind run as another user (uid 65534 and below) over the ipc
socket, or with another CURVE key over tcp (`--over tcp`). They run at nice 19: on a machine with two cores
they would otherwise take the processor, which no daemon can prevent.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import zmq
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from thor_policy.client.blocking import Client
from thor_policy.client.connection import Connection
from thor_policy.core.errors import ConfigError, ThorPolicyError, Unreachable
from thor_policy.security.curve_keys import Keys

#: Hostile processes, and connections of each.
PROCESSES, CONNECTIONS = 2, 16
#: Niceness of a hostile process, and the user that it becomes when it was started as root. Each kind has its
#: own below that one, since the daemon remembers who flooded it.
NICE, NOBODY = 19, 65_534
#: Requests that each connection of a flood keeps unanswered.
DEPTH = 64
#: Silent connections of each hostile process: together more than the file limit of the daemon.
SILENT = 700
#: Soft limit of open files with which the daemon starts: that of a systemd unit without another one.
DAEMON_FILES = 1_024
#: The honest client: deadline in milliseconds, and how much later a reply may be read.
DEADLINE_MS, GRACE_MS = 2_000, 100
#: Seconds in which the honest client runs before the hostile ones come.
LEAD_S = 2.0
#: Seconds after which the daemon must be as before, and seconds for which that is measured.
SETTLE_S, AFTER_S = 1.0, 3.0
#: Memory of the daemon, in MiB, at which a kind is stopped: it is a violation, and this machine has others.
MOST_MIB = 3_000
#: How long the daemon may take to start, in seconds.
START_S = 120
#: How long the hostile processes may go on after their time, in seconds.
LATE_S = 5
#: From how many milliseconds on it is said that the command itself, which only sleeps, slept too long.
OVERSLEPT_MS = 100.0
#: The thresholds: shares of 1, a factor, milliseconds, and the share by which memory may differ after.
ANSWERED, SERVED, SLOWER, CONTROL_MS, MEMORY = 1.0, 0.95, 5.0, 50.0, 0.20

SERVE = "from thor_policy.cli.main import main; main()"
SERVE_STUB = """
from functools import partial
from thor_policy import testing
from thor_policy.daemon import service
from thor_policy.cli.main import main
service.open_service = partial(service.open_service, load_engine=testing.load_stub_engine)
main()
"""


class Failure(Exception):
    """The run failed: the daemon did not start, or a client process ended early."""


# ---------------------------------------------------------------- frames


def situation(action: str, resource: str, role: str, **more: Any) -> dict[str, Any]:
    """A flat situation for the shipped pack."""
    return {
        "actor_id": "user:u1",
        "actor_role": role,
        "t3_tensor": {"competence": 0.8, "reliability": 0.7, "integrity": 0.8},
        "action_type": action,
        "resource": resource,
        "timestamp": "2026-03-04T13:05:00Z",
        **more,
    }


def rule_question(id: str = "", deadline_ms: int = DEADLINE_MS) -> bytes:
    """A question that a rule decides: deny."""
    question = situation("grant_admin", "role:owner", "member")
    return json.dumps({"v": 1, "id": id, "deadline_ms": deadline_ms, "situation": question}).encode()


def model_question(text: str, id: str = "", deadline_ms: int = DEADLINE_MS) -> bytes:
    """A question for the model; it is new while its text is."""
    question = situation("deploy", "env:production", "developer", details=text)
    return json.dumps({"v": 1, "id": id, "deadline_ms": deadline_ms, "situation": question}).encode()


def batch() -> bytes:
    """64 questions with text of almost the largest frame."""
    request = {
        "subject": {"type": "user", "id": "u1", "properties": {"role": "member"}},
        "resource": {"type": "role", "id": "owner", "properties": {}},
    }
    items = [
        {"action": {"name": "grant_admin", "properties": {}}, "context": {"note": "x" * 850}}
        for _ in range(64)
    ]
    return json.dumps({"v": 1, "deadline_ms": DEADLINE_MS, "request": request, "evaluations": items}).encode()


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)


def ready(socket_type: bytes) -> bytes:
    """The READY command of a client without a routing id."""
    body = b"\x05READY" + b"\x0bSocket-Type" + len(socket_type).to_bytes(4, "big") + socket_type
    return b"\x04" + bytes([len(body)]) + body


def zmtp_frame(body: bytes, *, more: bool = False) -> bytes:
    """A frame of a message on the wire."""
    return bytes([0x02 | more]) + len(body).to_bytes(8, "big") + body


# ---------------------------------------------------------------- the honest client


class Asker:
    """One socket of the honest client. `ask` returns the result of a request and its latency."""

    def __init__(self, endpoint: str, frame: Callable[[str], bytes]) -> None:
        self._endpoint, self._frame, self._ids = endpoint, frame, count(1)
        self._context = zmq.Context()
        self._socket = self._connect()

    def _connect(self) -> zmq.Socket[bytes]:
        opened = self._context.socket(zmq.DEALER)
        opened.set(zmq.LINGER, 0)
        opened.connect(self._endpoint)
        return opened

    def ask(self) -> tuple[str, float]:
        """A question; where the daemon is busy, sent again as it says. Latency is that of the first reply."""
        reply, ms = self._send()
        if (error := reply.get("error", {})).get("code") == "busy":
            time.sleep(min(error.get("retry_after_ms", 0), 2 * DEADLINE_MS) / 1_000)
            again, _ = self._send()
            return ("busy" if result_of(again) in ("served", "fallback") else "busy, untrue"), ms
        return result_of(reply), ms

    def _send(self) -> tuple[dict[str, Any], float]:
        id, start_s = str(next(self._ids)), time.monotonic()
        try:
            self._socket.send(self._frame(id), zmq.NOBLOCK)
        except zmq.Again:
            time.sleep(0.1)
        while (left_ms := int(DEADLINE_MS + GRACE_MS - (time.monotonic() - start_s) * 1e3)) > 0:
            if not self._socket.poll(left_ms):
                break
            reply: dict[str, Any] = json.loads(self._socket.recv())
            if reply.get("id") == id:
                return reply, (time.monotonic() - start_s) * 1e3
        self._socket.close()
        self._socket = self._connect()
        return {"error": {"code": "silence"}}, (time.monotonic() - start_s) * 1e3


def result_of(reply: dict[str, Any]) -> str:
    """What the reply is: served, fallback (the daemon failed to ask the model), or the code of its error."""
    if "error" in reply:
        return str(reply["error"]["code"])
    return "fallback" if reply.get("context", {}).get("tier") == "fallback" else "served"


def be_honest(endpoint: str, rates: dict[str, float]) -> None:
    """Ask until the parent closes our input; then print every sample: [kind, seconds, ms, result]."""
    path = endpoint.removeprefix("ipc://") + ".control"
    control = f"ipc://{path}" if Path(path).exists() else endpoint
    frames: dict[str, tuple[str, Callable[[str], bytes]]] = {
        "rules": (endpoint, rule_question),
        "model": (endpoint, lambda id: model_question(f"Release {random.randrange(10**12)}.", id)),
        "status": (control, lambda id: json.dumps({"v": 1, "id": id, "op": "status"}).encode()),
        "metrics": (control, lambda id: json.dumps({"v": 1, "id": id, "op": "metrics"}).encode()),
    }
    samples: list[tuple[str, float, float, str]] = []
    end = threading.Event()

    def loop(kind: str, every_s: float) -> None:
        asker, due_s = Asker(*frames[kind]), time.monotonic()
        while not end.wait(max(0.0, due_s - time.monotonic())):
            sent_s = time.monotonic()
            result, ms = asker.ask()
            samples.append((kind, sent_s, ms, result))
            due_s = max(due_s + every_s, time.monotonic())

    threads = [
        threading.Thread(target=loop, args=(kind, 1 / rate), daemon=True) for kind, rate in rates.items()
    ]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    end.set()
    for thread in threads:
        thread.join()
    print(json.dumps(samples))


# ---------------------------------------------------------------- the hostile clients


class Hostile:
    """16 connections of one kind. Each method attacks until the time `until`, and returns how often."""

    def __init__(self, connection: Connection, until: float, seed: int) -> None:
        self._connection, self._until, self._random = connection, until, random.Random(seed)
        self._context = zmq.Context()
        self.kinds: dict[str, Callable[[], int]] = {
            "rules": lambda: self._flood(rule_question),
            "model": lambda: self._flood(lambda: model_question(f"Urgent {self._random.random()}")),
            "status": self._flood_of_status,
            "huge": lambda: self._send_only([bytes(1_000_000)]),
            "frames": lambda: self._send_only([bytes(100_000)] * 1_632),
            "batches": lambda: self._flood(batch),
            "unread": self._never_read,
            "silent": self._silent,
            "subscribers": self._subscribe,
            "storm": self._storm,
            "garbage": self._garbage,
        }

    @property
    def _on(self) -> bool:
        return time.monotonic() < self._until

    def _open(self, kind: int = zmq.DEALER, endpoint: str = "") -> zmq.Socket[bytes]:
        opened = self._connection.prepare(self._context.socket(kind))
        opened.set(zmq.SNDHWM, 2 * DEPTH)
        opened.connect(endpoint or self._connection.endpoint)
        return opened

    def _flood(self, frame: Callable[[], bytes], sockets: list[zmq.Socket[bytes]] | None = None) -> int:
        """Keep `DEPTH` requests of each connection unanswered."""
        sockets = sockets or [self._open() for _ in range(CONNECTIONS)]
        poller, pending, sent = zmq.Poller(), dict.fromkeys(sockets, 0), 0
        for opened in sockets:
            poller.register(opened, zmq.POLLIN)
        while self._on:
            for opened, unanswered in pending.items():
                with suppress(zmq.Again):
                    for _ in range(DEPTH - unanswered):
                        opened.send(frame(), zmq.NOBLOCK)
                        pending[opened] += 1
                        sent += 1
            for opened, _ in poller.poll(20):
                with suppress(zmq.Again):
                    while True:
                        opened.recv(zmq.NOBLOCK)
                        pending[opened] -= 1
        return sent

    def _flood_of_status(self) -> int:
        """`status` and `metrics`, on the endpoint and on the control endpoint where there is one."""
        sockets = [self._open() for _ in range(CONNECTIONS)]
        control = self._connection.endpoint + ".control"
        if Path(control.removeprefix("ipc://")).exists():
            sockets[::2] = [self._open(endpoint=control) for _ in sockets[::2]]
        ops = [json.dumps({"v": 1, "op": op}).encode() for op in ("status", "metrics")]
        return self._flood(lambda: self._random.choice(ops), sockets)

    def _send_only(self, message: list[bytes]) -> int:
        sockets, sent = [self._open() for _ in range(CONNECTIONS)], 0
        while self._on:
            for opened in sockets:
                with suppress(zmq.Again):
                    opened.send_multipart(message, zmq.NOBLOCK, copy=False)
                    sent += 1
            time.sleep(0.001)
        return sent

    # ------------------------------------------------------------ without ZeroMQ on our side

    def _raw(self, path_end: str = "") -> socket.socket:
        endpoint = self._connection.endpoint
        if endpoint.startswith("ipc://"):
            opened = socket.socket(socket.AF_UNIX)
            address: Any = endpoint.removeprefix("ipc://") + path_end
        else:
            opened = socket.socket()
            host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
            address = (host, int(port))
        opened.settimeout(1.0)
        try:
            opened.connect(address)
        except OSError:
            opened.close()
            raise
        return opened

    def _never_read(self) -> int:
        """Requests whose replies are never read."""
        sent, opened = 0, []
        for _ in range(CONNECTIONS):
            with suppress(OSError):
                raw = self._raw()
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
                raw.sendall(GREETING + ready(b"DEALER"))
                while len(raw.recv(1_024)) < len(GREETING):  # as any client: a request behind the answer
                    continue
                raw.setblocking(False)
                opened.append(raw)
        stream = zmtp_frame(b'{"v": 1, "op": "metrics"}') + zmtp_frame(rule_question())
        rest = dict.fromkeys(opened, b"")
        while self._on:
            for raw in select.select([], list(rest), [], 0.05)[1]:
                data = rest[raw] or stream
                try:
                    rest[raw] = data[raw.send(data) :]
                    sent += not rest[raw]
                except BlockingIOError:
                    continue
                except OSError:
                    del rest[raw]
        return sent

    def _silent(self) -> int:
        """Connections that say nothing, and some that stop within the greeting."""
        opened: list[socket.socket] = []
        while self._on:
            if len(opened) < SILENT:
                with suppress(OSError):
                    opened.append(self._raw(self._random.choice(("", "", ".events"))))
                    with suppress(OSError):
                        opened[-1].send(GREETING[: self._random.choice((0, 0, 1, 10, 64))])
                    continue
            time.sleep(0.05)
        return len(opened)

    def _subscribe(self) -> int:
        """Subscribers that never read, and one client that makes events for them."""
        opened = []
        for _ in range(CONNECTIONS - 1):
            with suppress(OSError):
                raw = self._raw(".events")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
                raw.sendall(GREETING + ready(b"SUB") + b"\x04\x0a\x09SUBSCRIBE" + zmtp_frame(b"\x01"))
                opened.append(raw)
        return self._flood(rule_question, [self._open()])

    def _storm(self) -> int:
        """Connect and close, some after bytes of ZMTP 1.0, 2.0 or 3.0."""
        openings = (b"", b"\x01\x00", b"\x01\x00\x03\x00{}", b"\xff" + bytes(7) + b"\x01\x7f\x01", GREETING)
        opened = 0
        while self._on:
            with suppress(OSError), self._raw(self._random.choice(("", "", "", ".events"))) as raw:
                opened += 1
                raw.send(self._random.choice(openings))
        return opened

    def _garbage(self) -> int:
        """Bytes that are no ZMTP, some of them after a handshake."""
        opened, sent = [], 0
        while self._on:
            with suppress(OSError):
                raw = self._raw(self._random.choice(("", "", "", ".events")))
                opened.append(raw)
                sent += 1
                raw.sendall(self._random.choice((b"", GREETING, GREETING + ready(b"DEALER"))))
                raw.sendall(self._random.randbytes(self._random.choice((1, 9, 64, 300, 5_000))))
            for raw in opened[:-CONNECTIONS]:
                raw.close()
            del opened[:-CONNECTIONS]
        return sent


def be_hostile(kind: str, connection: Connection, seconds: float, seed: int) -> None:
    """One hostile process; prints how many messages it sent, or connections it opened."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))
    os.nice(NICE)
    if os.getuid() == 0 and connection.key is None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY - kinds().index(kind))
    print("ready", flush=True)
    sys.stdin.readline()
    hostile = Hostile(connection, time.monotonic() + seconds, seed)
    print(hostile.kinds[kind](), flush=True)
    os._exit(0)  # leave at once, with everything open


# ---------------------------------------------------------------- the daemon


@contextmanager
def running_daemon(folder: Path, options: argparse.Namespace) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that answers at `folder`/p.sock, with the file limit of a service. Killed at the end."""
    environment = os.environ | {"THOR_POLICY_SOCKET_MODE": "0o666", "THOR_POLICY_MODEL": options.model}
    arguments = ["serve", "--state-dir", str(folder / "state"), "--endpoint", f"ipc://{folder}/p.sock"]
    if options.over == "tcp":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments += ["--tcp-endpoint", f"tcp://127.0.0.1:{port}"]
        environment["THOR_POLICY_KEYS_DIR"] = str(folder / "keys")
        for kind in options.kinds:
            with suppress(ConfigError):  # it is there since the last daemon
                Keys(folder / "keys").new(f"hostile-{kind}", ("ask", "record"), time.time())
        options.hostile = [
            "--endpoint",
            f"tcp://127.0.0.1:{port}",
            "--key",
            str(folder / "keys/hostile-KIND.key"),
        ]

    def limit() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DAEMON_FILES, most), most))

    with (folder / "daemon.log").open("ab") as output:
        command = [sys.executable, "-c", SERVE_STUB if options.stub else SERVE, *arguments]
        daemon = subprocess.Popen(command, stdout=output, stderr=output, env=environment, preexec_fn=limit)
        try:
            _wait_until_it_answers(daemon, folder)
            yield daemon
        finally:
            daemon.kill()
            daemon.wait()


def _wait_until_it_answers(daemon: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + START_S
    with Client(f"ipc://{folder}/p.sock", timeout_ms=1_000) as client:
        while time.monotonic() < until and daemon.poll() is None:
            with suppress(Unreachable):
                client.status()
                return
            time.sleep(0.1)
    log = (folder / "daemon.log").read_text(errors="replace")
    raise Failure(f"the daemon did not start; the end of its log: {log[-500:]}")


def memory_mib(pid: int) -> float:
    """Resident memory of a process; 0 once it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def open_files(pid: int) -> int:
    """Number of files that a process has open; 0 once it has ended."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


def start(stack: ExitStack, role: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a process of clients: `honest`, or a kind of hostile ones. It is killed with the stack."""
    command = [sys.executable, str(Path(__file__).resolve()), "--as", role, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def wait_until_ready(*processes: subprocess.Popen[str]) -> None:
    """Wait until clients are ready. Raises Failure if a process ends before."""
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise Failure("a process of clients ended before it began")


def attack(*processes: subprocess.Popen[str]) -> None:
    """Let hostile clients begin."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("attack\n")
        process.stdin.flush()


def kinds() -> list[str]:
    """The kinds of hostile clients."""
    return list(Hostile(Connection("ipc://none"), 0, 0).kinds)


# ---------------------------------------------------------------- one kind


class Beside:
    """Samples of the honest client and of the daemon around one attack.

    `came_s` and `left_s` are when the hostile processes began and ended, in monotonic seconds.
    """

    def __init__(self, folder: Path, daemon: subprocess.Popen[bytes], options: argparse.Namespace) -> None:
        self._folder, self._daemon, self._options = folder, daemon, options
        self.samples: list[tuple[str, float, float, str]] = []
        #: How often the daemon barred a hostile client.
        self.barred = 0
        self.memory: list[tuple[float, float]] = []
        self.files: list[tuple[float, int]] = []
        self.start_s = self.came_s = self.left_s = 0.0
        self.attacks = 0
        #: The longest that this process, which only sleeps, slept too long, in milliseconds.
        self.overslept_ms = 0.0
        self.died = False
        self.too_large = False

    def run(self, kind: str | None, seconds: float, advance: Callable[[float], None]) -> None:
        """The honest client alone, then with hostile ones of `kind` for these seconds, then alone again."""
        rates = {"rules": self._options.rate, "model": self._options.model_rate, "status": 10, "metrics": 5}
        place = f"ipc://{self._folder}/p.sock"
        lead_s, after_s = min(LEAD_S, seconds), SETTLE_S + min(AFTER_S, seconds) if kind else 0.0
        with ExitStack() as stack:
            hostile = []
            for number in range(PROCESSES if kind else 0):
                where = getattr(self._options, "hostile", ["--endpoint", place])
                arguments = [*where, "--seconds", str(seconds), "--seed", str(number)]
                arguments = [argument.replace("KIND", str(kind)) for argument in arguments]
                hostile.append(start(stack, str(kind), *arguments))
            honest = start(stack, "honest", "--endpoint", place, "--rates", json.dumps(rates))
            wait_until_ready(*hostile, honest)
            self.start_s = time.monotonic()
            self.came_s, self.left_s = self.start_s + lead_s, self.start_s + lead_s + seconds
            waiting = list(hostile)
            while (now_s := time.monotonic()) < self.left_s + after_s:
                if waiting and now_s >= self.came_s:
                    attack(*waiting)
                    waiting, self.came_s, self.left_s = [], now_s, now_s + seconds
                mib = memory_mib(self._daemon.pid)
                self.memory.append((now_s, mib))
                self.files.append((now_s, open_files(self._daemon.pid)))
                if self._daemon.poll() is not None:
                    self.died = True
                    break
                late = now_s > self.came_s + seconds + LATE_S
                if (mib > MOST_MIB and now_s < self.left_s) or late:
                    self.too_large |= not late
                    for process in hostile:
                        process.kill()
                if any(process.poll() is None for process in hostile) and now_s >= self.left_s:
                    self.left_s = now_s  # they take a moment to end
                elif self.too_large:
                    self.left_s = min(self.left_s, now_s)
                advance(min(1.0, (now_s - self.start_s) / (lead_s + seconds + after_s)))
                slept_s = time.monotonic()
                time.sleep(0.05)
                self.overslept_ms = max(self.overslept_ms, (time.monotonic() - slept_s) * 1e3 - 50)
            for process in hostile:
                if self.died:
                    process.kill()
                self.attacks += int(process.communicate()[0].strip() or 0)
            self.samples = [tuple(sample) for sample in json.loads(honest.communicate()[0])]
        if not self.died:
            with suppress(Unreachable), Client(f"{place}.control", timeout_ms=2_000) as client:
                self.barred = client.status().counters.get("callers_barred", 0)

    # ------------------------------------------------------------ what the samples say

    def between(self, from_s: float, to_s: float, *kinds: str) -> list[tuple[str, float, float, str]]:
        return [
            sample
            for sample in self.samples
            if from_s <= sample[1] < to_s and (not kinds or sample[0] in kinds)
        ]

    def figures_of(self, from_s: float, to_s: float, *kinds: str) -> dict[str, Any]:
        """What the honest client got for the requests that it sent between two times."""
        samples = self.between(from_s, to_s, *kinds)
        times = sorted(ms for _, _, ms, _ in samples)
        results: dict[str, int] = {}
        for sample in samples:
            results[sample[3]] = results.get(sample[3], 0) + 1
        answered = results.get("served", 0) + results.get("busy", 0) + results.get("fallback", 0)
        return {
            "sent": len(samples),
            "results": results,
            "answered": answered / len(samples) if samples else 0.0,
            "served_per_s": results.get("served", 0) / (to_s - from_s),
            "p50_ms": round(times[len(times) // 2], 2) if times else None,
            "p99_ms": round(times[min(len(times) - 1, int(len(times) * 0.99))], 2) if times else None,
            "max_ms": round(times[-1], 2) if times else None,
        }


def measure_alone(beside: Beside) -> dict[str, Any]:
    """The honest client's figures while it is alone."""
    start_s, end_s = beside.start_s, beside.left_s
    kinds = {"rules": ("rules",), "model": ("model",), "control": ("status", "metrics")}
    return {name: beside.figures_of(start_s, end_s, *of) for name, of in kinds.items()}


def measure(kind: str, beside: Beside, alone: dict[str, Any]) -> dict[str, Any]:
    """All figures of one kind, with what violates a threshold."""
    kinds = {"rules": ("rules",), "model": ("model",), "control": ("status", "metrics")}
    during = {name: beside.figures_of(beside.came_s, beside.left_s, *of) for name, of in kinds.items()}
    after_s = beside.left_s + SETTLE_S
    after = {name: beside.figures_of(after_s, after_s + AFTER_S, *of) for name, of in kinds.items()}

    def level(series: list[tuple[float, float]] | list[tuple[float, int]], low: float, high: float) -> float:
        values = sorted(value for at, value in series if low <= at < high)
        return round(values[len(values) // 2], 1) if values else 0.0

    memory = {
        "before": level(beside.memory, 0, beside.came_s),
        "peak": round(max((mib for _, mib in beside.memory), default=0.0), 1),
        "after": level(beside.memory, after_s, after_s + AFTER_S),
    }
    files = {
        "before": level(beside.files, 0, beside.came_s),
        "peak": max((number for _, number in beside.files), default=0),
        "after": level(beside.files, after_s, after_s + AFTER_S),
    }
    problems = ["the daemon died"] * beside.died
    problems += [f"the daemon took {memory['peak']:.0f} MiB; the kind was stopped"] * beside.too_large
    for name, figures in () if beside.died else during.items():
        base = alone[name]
        if figures["answered"] < ANSWERED:
            problems.append(f"{name}: answered {figures['answered']:.1%}: {figures['results']}")
        if name != "control" and figures["served_per_s"] < SERVED * base["served_per_s"]:
            share = figures["served_per_s"] / max(base["served_per_s"], 1e-9)
            problems.append(f"{name}: served {share:.1%} of what it gets alone")
        slowest_ms = CONTROL_MS if name == "control" else SLOWER * (base["p99_ms"] or 0)
        if (figures["p99_ms"] or 0) > slowest_ms:
            problems.append(f"{name}: p99 is {figures['p99_ms']} ms; the limit is {slowest_ms:.1f} ms")
        if after[name]["answered"] < ANSWERED:
            problems.append(f"{name}, one second after: {after[name]['results']}")
        elif (after[name]["p99_ms"] or 0) > slowest_ms:
            problems.append(f"{name}, one second after: p99 is {after[name]['p99_ms']} ms")
    if not beside.died and memory["after"] > memory["before"] * (1 + MEMORY):
        problems.append(f"memory: {memory['before']} MiB before, {memory['after']} MiB after")
    if not beside.died and files["after"] > files["before"] + 4:
        problems.append(f"open files: {files['before']:.0f} before, {files['after']:.0f} after")
    if problems and beside.overslept_ms > OVERSLEPT_MS:
        problems[-1] += f"; this command overslept by {beside.overslept_ms:.0f} ms"
    return {
        "kind": kind,
        "attacks": beside.attacks,
        "overslept_ms": round(beside.overslept_ms, 1),
        "beside": during,
        "after": after,
        "barred": beside.barred,
        "memory_mib": memory,
        "open_files": files,
        "problems": problems,
    }


# ---------------------------------------------------------------- the command


def show(alone: dict[str, Any], kinds: list[dict[str, Any]]) -> None:
    """Print a table of 80 columns, then the violations."""
    console = Console(width=80)
    heads = ("kind", "answered", "served", "rules ms", "model ms", "control", "bars", "memory")
    table = Table(*heads, box=None)

    def cells(figures: dict[str, Any]) -> list[str]:
        sent = sum(figures[name]["sent"] for name in figures)
        answered = sum(figures[name]["answered"] * figures[name]["sent"] for name in figures)
        served = sum(figures[name]["served_per_s"] for name in ("rules", "model"))
        base = sum(alone[name]["served_per_s"] for name in ("rules", "model"))
        times = [
            f"{figures[name]['p50_ms'] or 0:.0f}/{figures[name]['p99_ms'] or 0:.0f}"
            for name in ("rules", "model", "control")
        ]
        return [f"{answered / max(sent, 1):.1%}", f"{served / max(base, 1e-9):.1%}", *times]

    table.add_row("(alone)", *cells(alone), "", "")
    barred = 0
    for figures in kinds:
        memory = figures["memory_mib"]
        sizes = f"{memory['before']:.0f} {memory['peak']:.0f} {memory['after']:.0f}"
        table.add_row(figures["kind"], *cells(figures["beside"]), str(figures["barred"] - barred), sizes)
        barred = figures["barred"]
    console.print(table)
    console.print(
        "served: rules and model, of what it gets alone; ms: p50/p99; barred: how often a hostile one"
    )
    console.print("was; memory: MiB before, peak, after")
    for figures in kinds:
        for problem in figures["problems"]:
            console.print(f"{figures['kind']}: {problem}", markup=False, highlight=False)


def run(options: argparse.Namespace, folder: Path, progress: Progress) -> dict[str, Any]:
    """Measure all kinds; returns the figures."""
    folder.chmod(0o755)  # another user must reach the socket in it
    with ExitStack() as stack:
        daemon = stack.enter_context(running_daemon(folder, options))

        def beside(kind: str | None, name: str) -> Beside:
            nonlocal daemon
            if daemon.poll() is not None:
                daemon = stack.enter_context(running_daemon(folder, options))
            run, task = Beside(folder, daemon, options), progress.add_task(name, total=1.0)
            run.run(kind, options.seconds, lambda done: progress.update(task, completed=done))
            progress.remove_task(task)
            return run

        alone = measure_alone(beside(None, "honest client alone"))
        measured: list[dict[str, Any]] = []
        for number, kind in enumerate(options.kinds, start=1):
            measured.append(measure(kind, beside(kind, f"{number} of {len(options.kinds)}: {kind}"), alone))
            if not options.json:
                problems = "; ".join(measured[-1]["problems"]) or "ok"
                print(f"{number} of {len(options.kinds)} {kind}: {problems}", file=sys.stderr)
    return {
        "seconds": options.seconds,
        "hostile": f"{PROCESSES * CONNECTIONS} connections over {options.over}, nice {NICE}",
        "engine": "stub" if options.stub else options.model,
        "alone": alone,
        "kinds": measured,
        "problems": [f"{figures['kind']}: {text}" for figures in measured for text in figures["problems"]],
    }


def main(arguments: list[str] | None = None) -> int:
    known = kinds()
    parser = argparse.ArgumentParser(
        prog="hostile",
        description="Put 32 hostile clients of each kind beside one honest client. Status 0: the honest "
        "client is served as it is alone, and one second after they leave the daemon is as before; 1: there "
        "are violations; 2: the run failed.",
    )
    parser.add_argument("--kinds", default=",".join(known), help="kinds of clients; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds of each; default: %(default)s")
    parser.add_argument(
        "--over", choices=("ipc", "tcp"), default="ipc", help="how the hostile clients come; default: ipc"
    )
    parser.add_argument("--rate", type=float, default=20.0, help="honest rule questions a second")
    parser.add_argument("--model-rate", type=float, default=0.5, help="honest model questions a second")
    parser.add_argument("--model", default="smollm2-135m-instruct-q4_1", help="model of the daemon")
    parser.add_argument("--stub", action="store_true", help="use an engine without a model")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, without progress")
    for hidden in ("--as", "--endpoint", "--rates", "--key"):  # of the processes that it starts
        parser.add_argument(hidden, dest=hidden.strip("-").replace("as", "role"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.role == "honest":
        be_honest(options.endpoint, json.loads(options.rates))
        return 0
    if options.role:
        connection = Connection.to(options.endpoint, Path(options.key) if options.key else None)
        be_hostile(options.role, connection, options.seconds, options.seed)
    options.kinds = options.kinds.split(",")
    if unknown := set(options.kinds) - set(known):
        parser.error(f"--kinds: unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with (
        tempfile.TemporaryDirectory(prefix="tp-hostile-") as folder,
        Progress(console=Console(stderr=True), transient=True, disable=options.json) as progress,
    ):
        try:
            figures = run(options, Path(folder), progress)
        except (Failure, ThorPolicyError) as error:
            print(f"hostile: {error}", file=sys.stderr)
            return 2
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        show(figures["alone"], figures["kinds"])
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
