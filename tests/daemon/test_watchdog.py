"""The supervisor interface: messages on a real notify socket, the watchdog, and how a hanging daemon ends."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import random_phi
import zmq

from tests.build import SCORES_AT_START
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.decisions import Decision, Explanation, Scored
from thor_policy.core.engine import WrittenExplanation
from thor_policy.core.errors import RequestError, Stalled
from thor_policy.core.requests import Action, Caller, Entity, Evaluation, Explain, Json, Request
from thor_policy.core.results import Committed, EngineResult, Explained
from thor_policy.daemon.engine_thread import EngineThread
from thor_policy.daemon.service import serving
from thor_policy.journal import events
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal, OnCommitted
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.telemetry.watchdog import Pulse, Supervisor
from thor_policy.testing import StubEngine, load_stub_engine

#: No test waits longer than this for anything, in seconds.
PATIENCE_S = 60
HALF_NS = 30 * 10**9
#: The settings of `WatchdogSec=60`.
WATCHDOG = {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}

#: `thorpolicy serve` on an engine that reports its steps on standard error: its warm-up waits for the line
#: `go`; if HANGS, the first score after it never returns. The line `hold the disk` stalls each commit.
DAEMON = """
import functools, resource, sys, threading
from thor_policy import testing
from thor_policy.daemon import loading, service
from thor_policy.cli.main import main
from thor_policy.core.errors import EngineError

class Engine(testing.StubEngine):
    scores = 0

    def score(self, *question):
        self.scores += 1
        if self.scores == AT_START:
            print("warming", file=sys.stderr, flush=True)
            if sys.stdin.readline() != "go\\n":
                raise EngineError("a decode failed")
            self.warmed()
        elif self.scores > AT_START and HANGS:
            print("hanging", file=sys.stderr, flush=True)
            if AWAITED:  # so that an orderly end would wait for this thread
                threading.Thread(target=threading.Event().wait, daemon=False).start()
            threading.Event().wait()
        return super().score(*question)

def hold(connection):  # from now on no commit returns
    def stop(sql):
        if sql == "COMMIT":
            threading.Event().wait()
    connection.set_trace_callback(stop)

def open_journal(config, on_committed, open_it=loading.open_journal):
    journal = open_it(config, on_committed)
    def listen():
        for line in sys.stdin:
            if line == "hold the disk\\n":
                journal.run(hold).result()
                print("held", file=sys.stderr, flush=True)
    Engine.warmed = threading.Thread(target=listen, daemon=True).start
    return journal

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
service.open_service = functools.partial(
    service.open_service, load_engine=lambda _: Engine(), open_journal=open_journal
)
main()
"""


def question() -> Json:
    """A question that the rules leave to the model."""
    trust = {"competence": 0.9, "reliability": 0.85, "integrity": 0.8}
    return {
        "actor_id": "user:u",
        "actor_role": "engineer",
        "t3_tensor": trust,
        "action_type": "deploy",
        "resource": "env:production",
        "timestamp": "2026-05-13T10:00:00Z",
    }


class Listener:
    """The supervisor's end of the notify socket."""

    def __init__(self, address: str) -> None:
        self.environ = {"NOTIFY_SOCKET": address}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(PATIENCE_S)
        self._socket.bind(address.replace("@", "\0", 1))

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> str:
        """Wait for the next message."""
        return self._socket.recv(4096).decode()

    def received(self) -> list[str]:
        """Every message that has arrived and was not read."""
        messages = []
        self._socket.setblocking(False)
        try:
            while True:
                messages.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return messages
        finally:
            self._socket.settimeout(PATIENCE_S)


@pytest.fixture
def listener(short_dir: Path) -> Iterator[Listener]:
    opened = Listener(f"{short_dir}/notify")
    yield opened
    opened.close()


@dataclass
class Thread:
    """A thread as the supervisor sees it."""

    alive: bool = True
    pulse: Pulse = field(default_factory=Pulse)


class TestSupervisor:
    @pytest.mark.parametrize("place", ["{}/notify", "@thor-policy{}/notify"], ids=["path", "abstract"])
    def test_gets_loading_ready_and_stopping_once_each(self, short_dir: Path, place: str) -> None:
        listener = Listener(place.format(short_dir))
        supervisor = Supervisor(listener.environ)
        supervisor.loading("loading a model")
        supervisor.ready("serving", 0)
        for stopping in (False, True, True):
            supervisor.turn(stopping, 10**15)
        assert listener.received() == [
            "STATUS=loading a model",
            "READY=1\nSTATUS=serving",
            "STOPPING=1\nSTATUS=stopping: answering what is in flight",
        ]
        listener.close()

    def test_may_be_absent(self) -> None:
        supervisor = Supervisor({})
        supervisor.ready("serving", 0)
        supervisor.turn(True, 0)

    def test_whose_socket_is_gone_is_logged_once(
        self, short_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        supervisor = Supervisor({"NOTIFY_SOCKET": f"{short_dir}/nowhere", "WATCHDOG_USEC": "1"})
        supervisor.ready("serving", 0)
        for now_ns in range(1_000, 9_000, 1_000):
            supervisor.turn(False, now_ns)
        assert [f"{short_dir}/nowhere" in record.getMessage() for record in caplog.records] == [True]

    def test_gets_a_watchdog_message_at_each_half_of_its_limit(self, listener: Listener) -> None:
        supervisor = Supervisor(listener.environ | WATCHDOG)
        supervisor.watch({"engine": Thread()})
        supervisor.ready("serving", 0)
        times = [1, HALF_NS - 1, HALF_NS, HALF_NS + 1, 2 * HALF_NS - 1, 2 * HALF_NS + 5]
        sent_at = []
        listener.received()
        for now_ns in times:
            supervisor.turn(False, now_ns)
            sent_at += [now_ns for _ in listener.received()]
        assert sent_at == [HALF_NS, 2 * HALF_NS + 5]

    @pytest.mark.parametrize("environ", [{}, {**WATCHDOG, "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
    def test_without_a_watchdog_for_this_process_gets_no_message(
        self, listener: Listener, environ: dict[str, str]
    ) -> None:
        supervisor = Supervisor(listener.environ | environ)
        supervisor.turn(False, 10**15)
        assert listener.received() == []

    def test_gets_the_name_of_a_stalled_part_instead_of_watchdog_messages(
        self, listener: Listener, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine, journal = Thread(), Thread()
        supervisor = Supervisor(listener.environ | WATCHDOG)
        supervisor.watch({"engine": engine, "journal": journal})
        start_ns = time.monotonic_ns()
        supervisor.ready("serving", start_ns - 1)
        engine.pulse.beat()
        soon_ns = time.monotonic_ns() + HALF_NS
        supervisor.turn(False, soon_ns)  # the engine began work after the last message
        assert listener.received()[1:] == ["WATCHDOG=1"]
        for turn in range(1, 4):  # and has finished nothing since
            supervisor.turn(False, soon_ns + turn * HALF_NS)
        assert listener.received() == ["STATUS=engine made no progress for 30 s"]
        assert "engine made no progress for 30 s: no WATCHDOG=1" in caplog.text
        engine.pulse.rest()
        supervisor.turn(False, soon_ns + 4 * HALF_NS)
        assert listener.received() == ["WATCHDOG=1", "STATUS=serving"]

    def test_gets_no_watchdog_message_after_a_thread_has_ended(self, listener: Listener) -> None:
        supervisor = Supervisor(listener.environ | WATCHDOG)
        supervisor.watch({"engine": Thread(alive=False)})
        supervisor.turn(False, 10**15)
        assert "WATCHDOG=1" not in listener.received()

    def test_gets_no_watchdog_message_while_the_journal_thread_is_blocked(
        self, listener: Listener, short_dir: Path
    ) -> None:
        """A real journal; a task blocks its thread until the test opens the gate."""
        supervisor = Supervisor(listener.environ | {"WATCHDOG_USEC": "1"})
        held, gate = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            held.set()
            assert gate.wait(PATIENCE_S)

        with Journal(short_dir / "journal.db") as journal:
            supervisor.watch({"journal": journal})
            task = journal.run(hold)
            try:
                assert held.wait(PATIENCE_S)
                supervisor.turn(False, time.monotonic_ns())
                listener.received()
                supervisor.turn(False, time.monotonic_ns())
                assert "WATCHDOG=1" not in listener.received()
                assert journal.pulse.stalled_s > 0
            finally:
                gate.set()
            task.result(PATIENCE_S)
            wait_until(lambda: sends_watchdog_message(supervisor, listener))


class TestPulse:
    def test_of_the_journal_beats_with_each_batch_of_a_long_queue(self, short_dir: Path) -> None:
        beats, gate = [], threading.Event()

        def committed(_: list[Committed]) -> None:
            beats.append(journal.pulse.since_ns)

        with Journal(short_dir / "journal.db", on_committed=committed, max_batch=1) as journal:
            journal.run(lambda _: gate.wait(PATIENCE_S))
            for number in range(4):
                journal.append(events.gap_event(f"number {number}", 0.0))
            gate.set()
        assert len(beats) == len(set(beats)) == 4
        assert beats == sorted(beats)
        assert beats[0] > 0

    def test_of_the_engine_beats_with_each_decision_and_each_step_of_an_explanation(
        self, shipped_pack: Pack
    ) -> None:
        beats, explained = [], threading.Event()

        class Engine(StubEngine):
            def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
                beats.append(engine_thread.pulse.since_ns)
                return super().score(pack_sha256, question, deadline_ns)

            def step(self) -> list[WrittenExplanation]:
                beats.append(engine_thread.pulse.since_ns)
                return super().step()

        def on_outcome(_: int, outcome: EngineResult) -> None:
            if isinstance(outcome, Explained):
                explained.set()

        engine_thread = EngineThread(lambda: Policy(Engine(), shipped_pack), DiscardingLog(), on_outcome)
        policy = engine_thread.start()
        engine_thread.submit(policy.assess(request("later")))
        assert explained.wait(PATIENCE_S)
        assert engine_thread.stop(PATIENCE_S)
        assert len(beats) == len(set(beats)) > 1
        assert beats == sorted(beats)
        assert beats[0] > 0


class DiscardingLog:
    """A decision log that discards everything."""

    def decided(self, decision: Decision, ticket: int | None = None) -> None:
        pass

    def explained(
        self,
        decision_id: str,
        explanation: Explanation,
        at: float,
        ticket: int | None = None,
        sender: str | None = None,
    ) -> None:
        pass


def request(explain: Explain) -> Request:
    now_ns = time.monotonic_ns()
    return Request(
        ticket=1,
        evaluation=Evaluation(
            subject=Entity(type="user", id="u"),
            action=Action(name="deploy"),
            resource=Entity(type="env", id="production"),
        ),
        caller=Caller(transport="inproc"),
        received_at=0.0,
        received_ns=now_ns,
        deadline_ns=now_ns + PATIENCE_S * 10**9,
        explain=explain,
    )


def sends_watchdog_message(supervisor: Supervisor, listener: Listener) -> bool:
    supervisor.turn(False, time.monotonic_ns())
    return "WATCHDOG=1" in listener.received()


def refused(call: Callable[[], object]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call()
    return caught.value


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, "the condition never became true"


class Daemon:
    """A `thorpolicy serve` process under a supervisor that expects a message at each turn of the loop."""

    def __init__(self, config: Config, listener: Listener, *, hangs: bool, **settings: str) -> None:
        arguments = ("serve", "--state-dir", str(config.state_dir), "--endpoint", config.endpoint)
        program = (
            DAEMON.replace("AT_START", str(SCORES_AT_START))
            .replace("HANGS", str(hangs))
            .replace("AWAITED", str("stall_s" in settings))
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | listener.environ
            | {"WATCHDOG_USEC": "1"}
            | {f"THOR_POLICY_{name.upper()}": value for name, value in settings.items()},
        )
        self.read: list[str] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put("")

    def wait_for(self, word: str) -> None:
        """Wait for a line that begins with `word`; "" waits for the end of standard error."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not (line := self._lines.get(timeout=PATIENCE_S)).startswith(word) or (word == "" and line):
            assert time.monotonic() < deadline_s, f"no line with {word!r} in time"
            self.read.append(line)
            assert line, f"the daemon ended before a line with {word!r}: {''.join(self.read)}"

    def send(self, line: str) -> None:
        """Write a line to the standard input of the daemon."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stderr):
            assert pipe is not None
            pipe.close()


@contextmanager
def daemon(config: Config, listener: Listener, *, hangs: bool = False, **settings: str) -> Iterator[Daemon]:
    """A daemon that waits in its warm-up; it is killed at the end."""
    opened = Daemon(config, listener, hangs=hangs, **settings)
    try:
        opened.wait_for("warming")
        yield opened
    finally:
        opened.close()


@contextmanager
def hung(
    config: Config, listener: Listener, **settings: str
) -> Iterator[tuple[Daemon, Client, zmq.Socket[bytes]]]:
    """A daemon with a decode that never returns, after its last watchdog message; a client and the asker."""
    with (
        daemon(config, listener, hangs=True, **settings) as opened,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as asker,
        Client(config.endpoint, timeout_ms=PATIENCE_S * 1000) as client,
    ):
        opened.send("go")
        opened.wait_for("ready")
        asker.set(zmq.LINGER, 0)
        asker.connect(config.endpoint)
        asker.send(json.dumps({"v": 1, "id": "q", "situation": question(), "deadline_ms": 60_000}).encode())
        opened.wait_for("hanging")
        while "engine" not in (message := listener.receive()) or "made no progress" not in message:
            pass
        listener.received()
        yield opened, client, asker


class TestDaemon:
    def test_sends_ready_after_the_warm_up_and_watchdog_messages_until_it_stops(
        self, config: Config, listener: Listener
    ) -> None:
        with daemon(config, listener) as opened:
            assert not any("READY" in message for message in listener.received())
            opened.send("go")
            assert listener.receive().startswith("READY=1\nSTATUS=team-governance decides at")
            for _ in range(3):  # with a limit this short, the status of a commit may come in between
                while (message := listener.receive()).startswith("STATUS="):
                    pass
                assert message == "WATCHDOG=1"
            opened.process.send_signal(signal.SIGTERM)
            while (message := listener.receive()) == "WATCHDOG=1":
                pass
            assert message.startswith("STOPPING=1")
            assert opened.process.wait(PATIENCE_S) == 0
            assert listener.received() == []

    def test_is_never_ready_if_the_model_fails_the_warm_up(self, config: Config, listener: Listener) -> None:
        with daemon(config, listener) as opened:
            opened.send("fail")
            assert opened.process.wait(PATIENCE_S) == 2
            opened.wait_for("thorpolicy: the model cannot answer the warm-up question: a decode")
        assert not any("READY" in message for message in listener.received())

    def test_with_a_hanging_decode_answers_status_but_sends_no_watchdog_message(
        self, config: Config, listener: Listener
    ) -> None:
        with hung(config, listener) as (_, client, _):
            states = [client.status() for _ in range(20)]
            assert "WATCHDOG=1" not in listener.received()
        times = [state.engine.stalled_s for state in states]
        assert times[0] < times[-1]
        assert all(state.engine.alive for state in states)
        assert any(state.journal.stalled_s == 0 for state in states)

    def test_with_a_hanging_decode_logs_the_stalled_part(self, config: Config, listener: Listener) -> None:
        with hung(config, listener) as (opened, _, _):
            start = (
                "ERROR telemetry: engine "  # may name the journal too, and may come before the decode hangs
            )
            if not any(line.startswith(start) for line in opened.read):
                opened.wait_for(start)

    def test_that_hangs_and_is_aborted_prints_the_call_that_hangs(
        self, config: Config, listener: Listener
    ) -> None:
        with hung(config, listener) as (opened, _, _):
            opened.process.send_signal(signal.SIGABRT)
            assert opened.process.wait(PATIENCE_S) == -signal.SIGABRT
            opened.wait_for("")
        assert any(line.strip().endswith("in score") for line in opened.read)

    def test_that_hangs_is_ended_by_a_second_signal(self, config: Config, listener: Listener) -> None:
        with hung(config, listener) as (opened, _, _):
            opened.process.send_signal(signal.SIGTERM)
            while not listener.receive().startswith("STOPPING=1"):
                pass
            opened.process.send_signal(signal.SIGTERM)
            assert opened.process.wait(PATIENCE_S) == -signal.SIGTERM

    def test_that_hangs_refuses_waiting_requests_and_exits_with_6_after_stall_s(
        self, config: Config, listener: Listener
    ) -> None:
        with hung(config, listener, stall_s="2", shutdown_s="0.5") as (opened, _, asker):
            asker.set(zmq.RCVTIMEO, PATIENCE_S * 1000)
            error = json.loads(asker.recv())["error"]
            assert opened.process.wait(PATIENCE_S) == 6
            opened.wait_for("thorpolicy: ")
        assert error["code"] == "unavailable"
        stall = re.match(r"engine made no progress for (\d+) s; stall_s is 2", error["message"])
        assert stall is not None
        assert int(stall[1]) >= 2, "a busy machine notices later"
        assert "WATCHDOG=1" not in listener.received()
        assert verify(config.journal_path).ok

    def test_that_hangs_refuses_waiting_requests_and_exits_with_0_after_a_signal(
        self, config: Config, listener: Listener
    ) -> None:
        with hung(config, listener, shutdown_s="0.5") as (opened, _, asker):
            opened.process.send_signal(signal.SIGTERM)
            asker.set(zmq.RCVTIMEO, PATIENCE_S * 1000)
            assert json.loads(asker.recv())["error"]["code"] == "shutting_down"
            assert opened.process.wait(PATIENCE_S) == 0
            opened.wait_for("ERROR daemon: the engine thread did not end within 0.5 s")

    def test_with_a_hanging_commit_exits_with_6_after_a_signal(
        self, config: Config, listener: Listener
    ) -> None:
        with daemon(config, listener, shutdown_s="0.5") as opened, Client(config.endpoint) as own:
            opened.send("go")
            opened.wait_for("ready")
            opened.send("hold the disk")
            opened.wait_for("held")
            assert refused(lambda: own.evaluate(question(), deadline_ms=500)).code == "expired"
            opened.process.send_signal(signal.SIGTERM)
            assert opened.process.wait(PATIENCE_S) == 6
            opened.wait_for("thorpolicy: the journal did not drain within 0.5 s")

    def test_with_a_hanging_commit_exits_with_6_after_stall_s(
        self, config: Config, listener: Listener
    ) -> None:
        with (
            daemon(config, listener, stall_s="2", shutdown_s="0.5") as opened,
            Client(config.endpoint) as own,
        ):
            opened.send("go")
            opened.wait_for("ready")
            opened.send("hold the disk")
            opened.wait_for("held")
            error = refused(lambda: own.evaluate(question(), deadline_ms=60_000))
            assert opened.process.wait(PATIENCE_S) == 6
        assert error.code == "unavailable"
        stall = re.fullmatch(r"journal made no progress for (\d+) s", error.message.split(";")[0])
        assert stall is not None
        assert int(stall[1]) >= 2, "stall_s; a busy machine notices later"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestThreadThatEnded:
    """After an unexpected error ends a thread, status shows it and new requests are refused."""

    def test_of_the_engine_makes_the_daemon_refuse_questions_but_not_records(self, config: Config) -> None:
        class Engine(StubEngine):
            def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
                if "leave" in question:
                    raise SystemExit
                return super().score(pack_sha256, question, deadline_ns)

        with serving(config, load_engine=lambda _: Engine()), Client(config.endpoint) as own:
            leave = question() | {"details": "leave"}
            assert refused(lambda: own.evaluate(leave, deadline_ms=500)).code == "expired"
            wait_until(lambda: not own.status().engine.alive)
            status, error = own.status(), refused(lambda: own.evaluate(question()))
            recorded_id = own.track_signal(agent="scout", symbol="ACME", signal="BUY")
        assert (status.state, status.journal.alive) == ("refusing", True)
        assert status.trouble == error.message == "the engine has stopped; the daemon must be restarted"
        assert error.code == "unavailable"
        assert recorded_id  # a record needs no engine

    def test_of_the_journal_makes_the_daemon_refuse_questions_and_records(self, config: Config) -> None:
        opened: list[Journal] = []

        class EndingJournal(Journal):
            ends = False

            def _transaction(self, batch: list[Any]) -> list[Committed]:
                if self.ends:
                    raise SystemExit
                return super()._transaction(batch)

        def open_ending(config: Config, on_committed: OnCommitted) -> Journal:
            opened.append(EndingJournal(config.journal_path, on_committed=on_committed))
            return opened[0]

        with (
            serving(config, load_engine=load_stub_engine, open_journal=open_ending),
            Client(config.endpoint) as own,
        ):
            assert own.evaluate(question())["context"]["decision_id"]
            opened[0].ends = True  # type: ignore[attr-defined]
            assert refused(lambda: own.evaluate(question(), deadline_ms=500)).code == "expired"
            wait_until(lambda: not own.status().journal.alive)
            status, error = own.status(), refused(lambda: own.evaluate(question()))
            of_record = refused(lambda: own.track_signal(agent="scout", symbol="ACME", signal="BUY"))
        assert (status.state, status.engine.alive) == ("refusing", True)
        assert status.trouble == error.message == "the journal has stopped; the daemon must be restarted"
        assert (error.code, of_record.code) == ("unavailable", "unavailable")
        assert verify(config.journal_path).ok

    def test_counts_as_stalled_from_the_turn_that_detects_it(self) -> None:
        supervisor = Supervisor({}, stall_s=30)
        supervisor.watch({"engine": Thread(alive=False)})
        supervisor.turn(False, 10**15)
        supervisor.turn(False, 10**15 + 29 * 10**9)
        with pytest.raises(Stalled, match="engine ended 30 s ago; stall_s is 30"):
            supervisor.turn(False, 10**15 + 30 * 10**9)


class TestStall:
    """A part that makes no progress for `stall_s` with work waiting ends the daemon; time is an argument."""

    def turns(self, stall_s: float, thread: Thread, *, stopping: bool = False, after_s: float) -> None:
        supervisor = Supervisor({}, stall_s=stall_s)
        supervisor.watch({"engine": Thread(), "journal": thread})
        supervisor.turn(stopping, max(thread.pulse.since_ns, 1) + int(after_s * 1e9))

    @pytest.fixture
    def busy(self) -> Thread:
        thread = Thread()
        thread.pulse.beat()
        return thread

    def test_names_the_part_and_the_setting(self, busy: Thread) -> None:
        self.turns(300, busy, after_s=299.9)
        with pytest.raises(Stalled, match="journal made no progress for 300 s; stall_s is 300") as caught:
            self.turns(300, busy, after_s=300)
        assert caught.value.exit_code == 6

    def test_is_never_raised_if_no_work_waits(self) -> None:
        self.turns(300, Thread(), after_s=10**6)

    def test_is_never_raised_if_stall_s_is_zero(self, busy: Thread) -> None:
        self.turns(0, busy, after_s=10**6)

    def test_is_never_raised_while_stopping_which_is_bounded_by_shutdown_s(self, busy: Thread) -> None:
        self.turns(300, busy, stopping=True, after_s=10**6)


class TestStatus:
    def test_shows_the_state_of_each_part(self, config: Config, listener: Listener) -> None:
        with daemon(config, listener) as opened, Client(config.endpoint) as client:
            opened.send("go")
            opened.wait_for("ready")
            wait_until(lambda: client.status().journal.stalled_s == 0)
            status = client.status()
        assert status.engine.stalled_s == 0
        assert status.engine.warm_up_ms > 0
        assert msgspec.to_builtins(status.maintenance) == {
            "alive": True,
            "stalled_s": 0.0,
            "task": None,
            "waiting": 0,
            "counters": {"done": 0, "failed": 0, "refused": 0},
        }
        assert status.model.file is None

    def test_names_a_changed_model_file_and_the_daemon_goes_on_deciding(
        self, config: Config, short_dir: Path
    ) -> None:
        path = random_phi.write(short_dir / "model.gguf")
        changed = replace(
            config,
            model=str(path),
            models_dir=short_dir,
            context_tokens=8192,
            max_question_tokens=1024,
            parallel_explanations=1,
        )
        with serving(changed), Client(changed.endpoint, timeout_ms=PATIENCE_S * 1000) as client:

            def probabilities() -> Json:
                answer = client.evaluate(question(), deadline_ms=PATIENCE_S * 1000)["context"]
                assert answer["tier"] == "model"
                return answer["probabilities"]

            before = probabilities()
            assert client.status().model.file == "as it was loaded"
            os.utime(path, ns=(0, 0))
            assert client.status().model.file == "written to since it was loaded"
            random_phi.write(short_dir / "other.gguf", seed=1).replace(path)
            assert client.status().model.file == "replaced since it was loaded"
            assert probabilities() == before
            path.unlink()
            assert client.status().model.file == "gone since it was loaded"
            assert probabilities() == before
