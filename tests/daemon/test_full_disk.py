"""A daemon whose disk is full, read-only or failing: it sends no decision that is not recorded, refuses new
requests at once, and serves again by itself when the disk works again.

A full disk is a small file system in memory. A failing disk is a shim in front of the C library, which fails
the calls that a flag file names: a test cannot make a mounted disk read-only while a journal is open on it,
nor make it fail.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from errno import EIO, EROFS
from pathlib import Path

import pytest
import zmq

from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.core.status import Status
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import Verdict, verify

#: No test waits longer than this for anything, in seconds.
PATIENCE_S = 60
MIB = 2**20

#: `thorpolicy serve` with the stub engine.
SERVE = """
from functools import partial
from thor_policy import testing
from thor_policy.core.status import Status
from thor_policy.daemon import service
from thor_policy.cli.main import main
service.open_service = partial(service.open_service, load_engine=testing.load_stub_engine)
main()
"""

#: A question that the rules leave to the model; long, so that a commit needs fresh pages.
QUESTION: dict[str, Json] = {
    "subject": {
        "type": "user",
        "id": "alice",
        "properties": {
            "role": "engineer",
            "trust": {"competence": 0.9, "reliability": 0.9, "integrity": 0.9},
        },
    },
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "production"},
    "context": {"timestamp": "2026-05-13T10:00:00Z", "note": "x" * 30_000},
}


class Daemon:
    """A daemon process and the lines that it writes to standard error."""

    def __init__(self, config: Config, environment: dict[str, str]) -> None:
        names = ("state_dir", "endpoint", "min_free_mb", "ballast_mb", "on_full", "deadline_ms")
        settings = {f"THOR_POLICY_{name.upper()}": str(getattr(config, name)) for name in names}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "serve"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | settings | {"THOR_POLICY_MAX_TEXT_CHARS": "40000"} | environment,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.put(line)
        self._lines.put("")

    def wait_for_line(self, word: str) -> str:
        """The next line that contains `word`; fails if the daemon ends before."""
        while word not in (line := self._lines.get(timeout=PATIENCE_S)):
            assert line, f"the daemon ended with status {self._process.wait()} before a line with {word!r}"
        return line

    def status(self) -> int:
        """Its exit status, once it has ended by itself."""
        return self._process.wait(timeout=PATIENCE_S)

    def stop(self) -> int:
        self._process.terminate()
        return self.status()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()


@contextmanager
def daemon(config: Config, **environment: str) -> Iterator[Daemon]:
    started = Daemon(config, environment)
    try:
        yield started
    finally:
        started.close()


@contextmanager
def serving(config: Config, **environment: str) -> Iterator[tuple[Daemon, Client]]:
    """A daemon that is ready, and a client of it."""
    with daemon(config, **environment) as started:
        started.wait_for_line("ready")
        with Client(config.endpoint, timeout_ms=PATIENCE_S * 1000) as client:
            yield started, client


def ask(client: Client, times: int = 1) -> list[str]:
    """Ask `times` times; returns the ids of the decisions."""
    return [client.evaluate(QUESTION)["context"]["decision_id"] for _ in range(times)]


def refusal(call: Callable[[], object]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call()
    return caught.value


def wait_for(client: Client, state: str) -> Status:
    """Poll the status until its state is `state`; sends no other request, which could change the state."""
    limit = time.monotonic() + PATIENCE_S
    while (status := client.status()).state != state:
        assert time.monotonic() < limit, status
    return status


def journal_of(config: Config, acknowledged: list[str]) -> Verdict:
    """The verdict on the journal; fails if an acknowledged decision is missing."""
    with Reader(config.journal_path) as reader:
        assert [id for id in acknowledged if reader.get(id) is None] == []
    verdict = verify(config.journal_path)
    assert (verdict.problem, verdict.incomplete) == (None, None)
    return verdict


def decisions_in(config: Config) -> int:
    """How many decisions the journal holds."""
    with Reader(config.journal_path) as reader:
        return len(reader.decisions(limit=1_000))


def gaps(config: Config) -> list[dict[str, Json]]:
    """The losses that the journal records, in order."""
    with Reader(config.journal_path) as reader, reader.snapshot() as connection:
        return [json.loads(lost) for (lost,) in connection.execute("SELECT lost FROM gaps ORDER BY seq")]


# ---------------------------------------------------------------- disks of their own


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", error)).strip()
        pytest.skip(f"no file system can be mounted here ({reason}); try: unshare -rm ./scripts/test")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small(config: Config, disk: Path) -> Config:
    """A state directory on that disk: 4 MiB must be free, 2 MiB are ballast."""
    return replace(config, state_dir=disk / "state", min_free_mb=4, ballast_mb=2)


def free_bytes(disk: Path) -> int:
    file_system = os.statvfs(disk)
    return file_system.f_bavail * file_system.f_frsize


@contextmanager
def filled(disk: Path, leave: int = 0, name: str = "filler") -> Iterator[None]:
    """Fill the disk for the length of the block, so that `leave` bytes are free."""
    filler = disk / name
    try:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while (excess := free_bytes(disk) - leave) > 0:
                file.write(bytes(min(excess, MIB)))
        yield
    finally:
        filler.unlink()


@pytest.mark.skipif("THOR_POLICY_UNSHARED" in os.environ, reason="this is the namespace")
def test_a_user_who_may_not_mount_runs_these_tests_in_a_namespace() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may mount")
    unshare = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    command = [*unshare, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env=os.environ | {"THOR_POLICY_UNSHARED": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


class TestFullDisk:
    def test_refuses_new_requests_until_min_free_mb_is_free(self, disk: Path, small: Config) -> None:
        with serving(small) as (_, client):
            acknowledged = ask(client, 5)
            with filled(disk, leave=MIB):
                before = client.status().engine.counters["decisions"]
                error = refusal(lambda: ask(client))
                assert error.code == "disk_full"
                assert error.message == (
                    f"1.0 MiB are free in {small.state_dir}; min_free_mb requires 4 MiB: free space there"
                )
                assert refusal(lambda: client.outcome(acknowledged[0], "SUCCESS")).code == "disk_full"
                status = client.status()
                assert (status.state, status.trouble) == ("refusing", error.message)
                assert (status.journal.free_mb, status.journal.min_free_mb) == (1, 4)
                assert status.engine.counters["decisions"] == before
            acknowledged += ask(client)
            assert client.outcome(acknowledged[0], "SUCCESS")
            assert client.status().state == "serving"
        verdict = journal_of(small, acknowledged)
        assert verdict.gaps == 0

    def test_releases_the_ballast_to_record_an_admitted_request(self, disk: Path, small: Config) -> None:
        with serving(replace(small, min_free_mb=0)) as (_, client):
            acknowledged = ask(client)
            with filled(disk):
                acknowledged += ask(client)
                journal = client.status().journal
                assert (journal.ballast, journal.counters["ballast_released"]) == (False, 1)
        verdict = journal_of(small, acknowledged)
        assert verdict.gaps == 0

    def test_without_ballast_loses_and_counts_one_decision_then_refuses_and_recovers(
        self, disk: Path, small: Config
    ) -> None:
        with serving(replace(small, min_free_mb=0, ballast_mb=0)) as (_, client):
            acknowledged = ask(client)
            with filled(disk):
                assert refusal(lambda: ask(client)).message == "the disk is full"
                assert "min_free_mb requires 0 MiB" in refusal(lambda: ask(client)).message
                status = wait_for(client, "refusing")
                assert "full" in status.journal.failing
                assert status.engine.counters["decisions"] == 2
            wait_for(client, "serving")
            assert gaps(small) == [{"decision": 1}]
            acknowledged += ask(client)
        assert journal_of(small, acknowledged).gaps == 1

    def test_writes_the_ballast_again_when_space_is_free(self, disk: Path, small: Config) -> None:
        with serving(replace(small, min_free_mb=0)) as (_, client):
            with filled(disk):
                ask(client)
            limit = time.monotonic() + PATIENCE_S
            while not client.status().journal.ballast:
                assert time.monotonic() < limit

    def test_a_daemon_starts_if_the_ballast_is_there_and_refuses_requests(
        self, disk: Path, small: Config
    ) -> None:
        with serving(small) as (started, client):
            acknowledged = ask(client)
            assert started.stop() == 0
        with filled(disk):
            with serving(small) as (started, client):
                assert refusal(lambda: ask(client)).code == "disk_full"
                assert started.stop() == 0
            with filled(disk, name="more"), daemon(small) as started:
                assert started.wait_for_line("thorpolicy: ").endswith("the disk is full: free space on it\n")
                assert started.status() == 2
        with serving(small) as (_, client):
            acknowledged += ask(client)
        journal_of(small, acknowledged)


class TestOnFullHalt:
    def test_answers_requests_in_flight_signs_the_journal_and_exits_with_5(
        self, disk: Path, small: Config
    ) -> None:
        with (
            serving(replace(small, on_full="halt")) as (started, client),
            zmq.Context() as context,
            context.socket(zmq.DEALER) as opened,
        ):
            acknowledged = ask(client, 3)
            opened.set(zmq.LINGER, 0)
            opened.set(zmq.RCVTIMEO, PATIENCE_S * 1000)
            opened.connect(small.endpoint)
            for number in range(20):
                opened.send(json.dumps({"v": 1, "id": str(number), "request": QUESTION}).encode())
            replies = [json.loads(opened.recv())]
            with filled(disk, leave=MIB):
                replies += [json.loads(opened.recv()) for _ in range(19)]
                line = started.wait_for_line("thorpolicy: ")
                assert started.status() == 5
        assert "on_full is halt: " in line
        assert f"are free in {small.state_dir}; min_free_mb requires 4 MiB" in line
        assert {reply["error"]["code"] for reply in replies if "error" in reply} <= {
            "disk_full",
            "shutting_down",
        }
        acknowledged += [reply["context"]["decision_id"] for reply in replies if "context" in reply]
        verdict = journal_of(small, acknowledged)
        assert (verdict.complete, verdict.checkpoint_seq) == (True, verdict.events)

    def test_ends_the_daemon_without_any_request(self, disk: Path, small: Config) -> None:
        with serving(replace(small, on_full="halt")) as (started, _), filled(disk, leave=MIB):
            assert started.status() == 5


class TestReadOnlyDisk:
    def test_a_daemon_does_not_start_on_it_and_names_the_folder(self, disk: Path, small: Config) -> None:
        with serving(small) as (started, client):
            acknowledged = ask(client)
            assert started.stop() == 0
        mount("-o", "remount,ro", str(disk))
        with daemon(small) as started:
            assert str(small.state_dir) in started.wait_for_line("thorpolicy: ")
            assert started.status() == 2
        mount("-o", "remount,rw", str(disk))
        with serving(small) as (_, client):
            acknowledged += ask(client)
        journal_of(small, acknowledged)


# ---------------------------------------------------------------- disks that fail

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The file $FAULT holds an errno, and letters of the calls on the journal's files that fail with it. */
static int fails(char call, int fd, const char *path) {
    char name[4096] = "", calls[16] = "", link[64];
    FILE *flag = fopen(getenv("FAULT"), "r");
    int error = 0;
    if (!flag) return 0;
    int read = fscanf(flag, "%d %15s", &error, calls);
    fclose(flag);
    if (path) strncpy(name, path, sizeof name - 1);
    else { snprintf(link, sizeof link, "/proc/self/fd/%d", fd); readlink(link, name, sizeof name - 1); }
    if (read != 2 || !strchr(calls, call) || !strstr(name, "policy_decisions.db")) return 0;
    errno = error;
    return 1;
}
#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    return fails('w', fd, 0) ? -1 : REAL(pwrite64)(fd, data, size, at);
}
ssize_t write(int fd, const void *data, size_t size) {
    return fails('w', fd, 0) ? -1 : REAL(write)(fd, data, size);
}
int fdatasync(int fd) { return fails('s', fd, 0) ? -1 : REAL(fdatasync)(fd); }
int fsync(int fd) { return fails('s', fd, 0) ? -1 : REAL(fsync)(fd); }
int open64(const char *path, int flags, ...) {
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest);
    return flags & (O_WRONLY | O_RDWR) && fails('o', -1, path) ? -1 : REAL(open64)(path, flags, mode);
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim as a shared library."""
    folder = tmp_path_factory.mktemp("shim")
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM, encoding="utf-8")
    command = ["cc", "-O1", "-w", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


@dataclass
class Fault:
    """A daemon whose disk fails between `begin` and `end`."""

    config: Config
    daemon: Daemon
    client: Client
    flag: Path

    def begin(self, failure: str) -> None:
        """Fail from now on as `failure` says: an errno, a space and the letters of the calls."""
        self.flag.write_text(failure, encoding="ascii")

    def wait_for_recoveries(self, count: int) -> None:
        """Wait until `count` more recoveries were tried; fails if the daemon stops refusing meanwhile."""
        status = self.client.status()
        tried, decisions = (
            status.journal.counters.get("recoveries_tried", 0),
            status.engine.counters["decisions"],
        )
        limit = time.monotonic() + PATIENCE_S
        while status.journal.counters.get("recoveries_tried", 0) < tried + count:
            assert (status.state, status.engine.counters["decisions"]) == ("refusing", decisions)
            assert time.monotonic() < limit
            status = self.client.status()

    def end(self) -> None:
        self.flag.unlink()
        wait_for(self.client, "serving")


@pytest.fixture
def fault(config: Config, shim: Path, tmp_path: Path) -> Iterator[Fault]:
    flag = tmp_path / "fault"
    with serving(config, LD_PRELOAD=str(shim), FAULT=str(flag)) as (started, client):
        yield Fault(config, started, client, flag)


class TestFailingDisk:
    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            (f"{EIO} w", "disk I/O error"),
            (f"{EIO} s", "disk I/O error"),
            (f"{EIO} ws", "disk I/O error"),
            (f"{EROFS} wo", "readonly"),
        ],
        ids=["writes", "syncs", "all", "read-only"],
    )
    def test_makes_the_daemon_refuse_with_the_reason_until_the_disk_works_again(
        self, fault: Fault, kind: str, reason: str
    ) -> None:
        client, config = fault.client, fault.config
        acknowledged = ask(client, 5)
        fault.begin(kind)
        first = refusal(lambda: ask(client))
        assert (first.code, first.message) == ("unavailable", "the journal failed")
        fault.wait_for_recoveries(2)
        error = refusal(lambda: ask(client))
        assert error.code == "unavailable"
        assert error.message.startswith("the journal cannot be written (")
        assert reason in error.message
        assert refusal(lambda: client.outcome(acknowledged[0], "FAILURE")).message == error.message
        assert client.status().trouble == error.message
        assert client.status().engine.counters["decisions"] == 6

        fault.end()
        decisions_lost = sum(lost["decision"] for lost in gaps(config))
        acknowledged += ask(client, 5)
        assert client.status().journal.failing is None
        assert fault.daemon.stop() == 0
        journal_of(config, acknowledged)
        assert decisions_in(config) + decisions_lost == 11

    @pytest.mark.parametrize(
        "kind", [f"{EIO} w", f"{EIO} s", f"{EROFS} wo"], ids=["writes", "syncs", "read-only"]
    )
    def test_every_request_in_flight_is_answered_and_every_loss_is_counted(
        self, fault: Fault, kind: str
    ) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as opened:
            opened.set(zmq.LINGER, 0)
            opened.set(zmq.RCVTIMEO, PATIENCE_S * 1000)
            opened.connect(fault.config.endpoint)
            for number in range(300):
                if number == 150:
                    fault.begin(kind)
                opened.send(json.dumps({"v": 1, "id": str(number), "request": QUESTION}).encode())
            replies = [json.loads(opened.recv()) for _ in range(300)]
        wait_for(fault.client, "refusing")
        fault.end()
        made = fault.client.status().engine.counters["decisions"]
        assert {reply["error"]["code"] for reply in replies if "error" in reply} == {"unavailable"}
        assert fault.daemon.stop() == 0
        journal_of(fault.config, [reply["context"]["decision_id"] for reply in replies if "context" in reply])
        assert decisions_in(fault.config) + sum(lost["decision"] for lost in gaps(fault.config)) == made

    def test_a_loss_is_counted_once_though_the_commit_of_its_gap_event_fails(self, fault: Fault) -> None:
        ask(fault.client)
        fault.begin(f"{EIO} w")
        refusal(lambda: ask(fault.client))
        fault.begin(f"{EIO} s")
        fault.wait_for_recoveries(3)
        fault.end()
        assert gaps(fault.config) == [{"decision": 1}]

    def test_acknowledged_decisions_missing_after_a_repair_are_recorded_as_a_gap(self, fault: Fault) -> None:
        """A repaired file system may bring back older files; here the test restores older copies."""
        path = fault.config.journal_path
        files = [path, path.with_name(f"{path.name}-wal")]
        recorded = ask(fault.client, 3)
        old = [file.read_bytes() for file in files]
        ask(fault.client, 2)
        fault.begin(f"{EROFS} wo")
        refusal(lambda: ask(fault.client))
        fault.wait_for_recoveries(1)
        for file, content in zip(files, old, strict=True):
            file.write_bytes(content)
        fault.end()
        assert gaps(fault.config) == [{"decision": 1, "acknowledged": 2}]
        recorded += ask(fault.client)
        assert fault.daemon.stop() == 0
        journal_of(fault.config, recorded)
