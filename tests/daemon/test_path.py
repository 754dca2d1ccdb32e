"""End to end: a daemon process, the embedded model, a real socket, a real journal, a hard kill."""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.build import write_pack
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify

#: No test waits longer than this for anything, in seconds.
PATIENCE_S = 120

#: A deadline that a busy machine keeps too, in milliseconds.
DEADLINE_MS = 110_000

HASTY = """
import sys
from pathlib import Path
from thor_policy import testing
from thor_policy.daemon import loading, service
from thor_policy.config import Config
config = Config(state_dir=Path(sys.argv[1]), endpoint=sys.argv[2])
journal = testing.open_hasty_journal if sys.argv[3] == "hasty" else loading.open_journal
with service.open_service(config, load_engine=testing.load_stub_engine, open_journal=journal) as server:
    server.run(ready=lambda: print("ready", file=sys.stderr, flush=True))
"""


def question(number: int) -> Json:
    """Even numbers are decided by the rules, odd numbers by the model."""
    trust = {"competence": 0.9, "reliability": 0.85, "integrity": 0.8 + number % 10 / 100}
    return {
        "actor_id": f"user:u{number}",
        "actor_role": "engineer",
        "t3_tensor": trust,
        "action_type": "deploy" if number % 2 else "read",
        "resource": "env:production" if number % 2 else "doc:guide",
        "timestamp": "2026-05-13T10:00:00Z",
    }


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a child process once it has written "ready" to standard error; kill it at the end in any case."""
    no_cache = os.environ | {"THOR_POLICY_CACHE_SIZE": "0"}  # every question is put to the model
    child = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True, env=no_cache)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    assert child.stderr is not None
    errors = child.stderr
    reader = threading.Thread(target=lambda: [lines.put(line) for line in errors] + [lines.put("")])
    reader.start()
    try:
        while line := lines.get(timeout=PATIENCE_S):
            if line.startswith("ready"):
                break
        else:
            pytest.fail(f"the daemon ended with status {child.wait()} before it was ready")
        yield child
    finally:
        child.kill()
        child.wait()
        reader.join()
        errors.close()


def serve(config: Config) -> tuple[str, ...]:
    arguments = ("--state-dir", str(config.state_dir), "--endpoint", config.endpoint)
    return ("-c", "from thor_policy.cli.main import main; main()", "serve", *arguments)


def ask_until_dead(
    config: Config, numbers: range, acknowledged: list[str], *, patience_s: int = PATIENCE_S
) -> None:
    with Client(config.endpoint) as client:
        for number in numbers:
            try:
                fields = {"situation": question(number), "deadline_ms": DEADLINE_MS}
                reply = client.call("evaluate", fields, timeout_ms=patience_s * 1000)
            except ThorPolicyError:
                return
            acknowledged.append(reply["context"]["decision_id"])


@pytest.mark.model
class TestDaemon:
    @pytest.mark.parametrize("each", [5, pytest.param(50, marks=pytest.mark.soak)])
    def test_has_every_acknowledged_decision_after_a_hard_kill(self, config: Config, each: int) -> None:
        """Eight clients with five questions each, or fifty with `-m soak`."""
        acknowledged: list[str] = []
        with process(*serve(config)) as daemon, ThreadPoolExecutor(8) as pool:
            askers = [
                pool.submit(ask_until_dead, config, range(n * each, n * each + each), acknowledged)
                for n in range(8)
            ]
            for asker in askers:
                asker.result(timeout=PATIENCE_S * each)
            assert len(acknowledged) == 8 * each
            with closing(sqlite3.connect(config.journal_path, isolation_level=None)) as stalled:
                # the disk is stalled: nothing can be committed, so nothing may be acknowledged, from here on
                stalled.execute("BEGIN IMMEDIATE")
                ask_until_dead(config, range(8 * each, 8 * each + 2, 2), acknowledged, patience_s=1)
                daemon.send_signal(signal.SIGKILL)
                daemon.wait()
        with Reader(config.journal_path) as reader:
            assert [id for id in acknowledged if reader.get(id) is None] == []
        assert verify(config.journal_path).ok

    def test_drains_and_exits_with_0_after_a_term_signal(self, config: Config) -> None:
        with (
            process(*serve(config)) as daemon,
            zmq.Context() as context,
            context.socket(zmq.DEALER) as opened,
        ):
            opened.set(zmq.LINGER, 0)
            opened.set(zmq.RCVTIMEO, PATIENCE_S * 1000)
            opened.connect(config.endpoint)
            for number in range(6):
                body = {"v": 1, "id": str(number), "situation": question(number), "deadline_ms": DEADLINE_MS}
                opened.send(json.dumps(body).encode())
            first = json.loads(opened.recv())
            daemon.send_signal(signal.SIGTERM)
            rest = [json.loads(opened.recv()) for _ in range(5)]
            assert daemon.wait(timeout=PATIENCE_S) == 0
        assert "decision" in first
        assert all("decision" in reply or reply["error"]["code"] == "shutting_down" for reply in rest)
        assert not config.socket_path.exists()

    def test_cuts_a_decode_off_and_exits_with_0_if_shutdown_s_is_too_short(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("THOR_POLICY_SHUTDOWN_S", "0.1")
        with (
            process(*serve(config)) as daemon,
            zmq.Context() as context,
            context.socket(zmq.DEALER) as opened,
        ):
            opened.set(zmq.LINGER, 0)
            opened.set(zmq.RCVTIMEO, PATIENCE_S * 1000)
            opened.connect(config.endpoint)
            for number in range(1, 13, 2):
                body = {"v": 1, "id": str(number), "situation": question(number), "deadline_ms": DEADLINE_MS}
                opened.send(json.dumps(body).encode())
            opened.recv()
            daemon.send_signal(signal.SIGTERM)
            last = [json.loads(opened.recv()) for _ in range(5)][-1]
            assert daemon.wait(timeout=PATIENCE_S) == 0
        assert last["error"]["code"] == "shutting_down"
        assert verify(config.journal_path).ok

    def test_gives_the_command_line_and_a_plain_socket_the_same_answer(self, config: Config) -> None:
        environment = os.environ | {"THOR_POLICY_ENDPOINT": config.endpoint}
        ask = [sys.executable, "-c", "from thor_policy.cli.main import main; main()", "ask", "--json"]
        body = json.dumps(question(1))
        with process(*serve(config)), zmq.Context() as context, context.socket(zmq.REQ) as opened:
            by_command = json.loads(subprocess.check_output([*ask, body], env=environment, text=True))
            opened.set(zmq.LINGER, 0)
            opened.set(zmq.RCVTIMEO, PATIENCE_S * 1000)
            opened.connect(config.endpoint)
            frame = {"v": 1, "id": "plain", "explain": "inline", "situation": question(1)}
            opened.send(json.dumps(frame).encode())
            by_socket = json.loads(opened.recv())
        for reply in (by_command, by_socket):
            assert set(reply) == {"v", "id", "decision", "context"}
            assert reply["context"]["tier"] == "model"
        for member in ("outcome", "probabilities", "confidence", "reasoning", "clauses", "pack", "model"):
            assert by_command["context"][member] == by_socket["context"][member]


@pytest.mark.model
@pytest.mark.parametrize(
    ("pack", "times"), [("small", 5), pytest.param("team-governance", 100, marks=pytest.mark.soak)]
)
def test_the_same_request_gets_the_same_decision_alone_and_while_explanations_run(
    config: Config, tmp_path: Path, pack: str, times: int
) -> None:
    """Five requests alone and five beside, of a small pack; with `-m soak`, 100 of the shipped pack."""
    if pack == "small":
        pack = str(write_pack(tmp_path / pack))
    with serving(replace(config, pack=pack)), ThreadPoolExecutor(2) as pool:
        stop = threading.Event()
        explained: list[Any] = []

        def ask(count: int) -> list[dict[str, Json]]:
            with Client(config.endpoint, timeout_ms=PATIENCE_S * 1000) as client:
                return [
                    client.evaluate(question(1), explain="none", deadline_ms=DEADLINE_MS)["context"]
                    for _ in range(count)
                ]

        def explain_others(first: int) -> None:
            with Client(config.endpoint, timeout_ms=PATIENCE_S * 1000) as client:
                for number in itertools.count(first):
                    if stop.is_set():
                        return
                    other = question(2 * number + 1)
                    explained.append(client.evaluate(other, explain="inline", deadline_ms=DEADLINE_MS))

        alone = ask(times)
        others = [pool.submit(explain_others, n * 1000) for n in range(2)]
        try:
            beside = ask(times)
            while len(explained) < 3 and not any(other.done() for other in others):
                beside += ask(1)
        finally:
            stop.set()
        for other in others:
            other.result(timeout=PATIENCE_S)
    assert len(explained) >= 3
    replies = alone + beside
    assert {reply["outcome"] for reply in replies} == {alone[0]["outcome"]}
    assert {json.dumps(reply["probabilities"]) for reply in replies} == {
        json.dumps(alone[0]["probabilities"])
    }


class TestReplyAfterCommit:
    """A reply is sent after the commit of its decision: with the stub engine and a stalled disk."""

    @pytest.mark.parametrize(("journal", "complete"), [("honest", True), ("hasty", False)])
    def test_holds_and_a_journal_that_replies_too_early_is_detected(
        self, config: Config, journal: str, complete: bool
    ) -> None:
        acknowledged: list[str] = []
        with (
            process("-c", HASTY, str(config.state_dir), config.endpoint, journal) as daemon,
            closing(sqlite3.connect(config.journal_path, isolation_level=None)) as stalled,
        ):
            ask_until_dead(config, range(10), acknowledged)
            stalled.execute("BEGIN IMMEDIATE")
            ask_until_dead(config, range(10, 20), acknowledged, patience_s=2)
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
            stalled.execute("ROLLBACK")
        with Reader(config.journal_path) as reader:
            missing = [id for id in acknowledged if reader.get(id) is None]
        assert len(acknowledged) >= 10
        assert (missing == []) == complete
        assert verify(config.journal_path).ok


class TestFailedStart:
    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--model", "phi-9"], "phi-9"),
            (["--model", "phi-4-q4_k_m"], "thorpolicy models pull phi-4-q4_k_m"),
            (["--pack", "nowhere"], "known packs"),
            (["--config", "/nonexistent.toml"], "/nonexistent.toml"),
            (["--endpoint", "tcp://127.0.0.1:5555"], "--tcp-endpoint"),
        ],
    )
    def test_prints_the_reason_on_one_line_and_exits_with_2(
        self, config: Config, tmp_path: Path, arguments: list[str], reason: str
    ) -> None:
        state = ["--state-dir", str(config.state_dir), "--models-dir", str(tmp_path)]
        command = [sys.executable, *serve(config)[:3], *state, *arguments]
        folder = tmp_path / "here"
        folder.mkdir()
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=folder
        )
        assert done.returncode == 2
        assert list(folder.iterdir()) == []
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("thorpolicy: ")
        assert reason in last
        assert "Traceback" not in done.stderr
