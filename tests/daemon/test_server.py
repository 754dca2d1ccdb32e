"""The server, with real ZeroMQ, a real journal and the stub engine: every request gets exactly one reply,
and no decision is sent before its commit."""

from __future__ import annotations

import json
import os
import queue
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import msgspec
import pytest
import zmq

from tests.build import SCORES_AT_START
from tests.callers import as_root, replies_to
from thor_policy.client.blocking import Client
from thor_policy.client.requests import Tracked
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.approvals import Person
from thor_policy.core.decisions import Governing, PackInfo, Scored
from thor_policy.core.engine import WrittenExplanation
from thor_policy.core.errors import AlreadyRunning, ConfigError, EngineError, RequestError, Unreachable
from thor_policy.core.fair_queue import Lane
from thor_policy.core.requests import Caller, Claimed, Json, Request, Role
from thor_policy.core.results import Committed, JobDone
from thor_policy.core.status import PartsStatus, Status
from thor_policy.daemon.server import Server
from thor_policy.daemon.service import open_service, serving
from thor_policy.daemon.sockets import Mailbox
from thor_policy.journal.events import Bounds
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.security.curve_keys import Keys
from thor_policy.testing import StubEngine, load_stub_engine, stub_parts

#: No test waits longer than this for anything, in milliseconds.
PATIENCE_MS = 20_000

PACK = PackInfo(name="team-governance", version="1", sha256="0" * 64)


def quiet_parts() -> PartsStatus:
    return stub_parts(PACK)


#: A question that the rules leave to the model.
DEPLOY: dict[str, Json] = {
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
    "context": {"timestamp": "2026-05-13T10:00:00Z", "details": "Release 8."},
}


class GatedEngine(StubEngine):
    """A stub that scores nothing after the start until its gate opens; each question releases `scoring`."""

    scores = 0

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.scoring = threading.Semaphore(0)

    def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
        self.scores += 1
        if self.scores > SCORES_AT_START:
            self.scoring.release()
            assert self.gate.wait(PATIENCE_MS / 1000)
        return super().score(pack_sha256, question, deadline_ns)


class BrokenEngine(StubEngine):
    """A stub whose first score after the start raises an unexpected error."""

    scores = 0

    def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
        self.scores += 1
        if self.scores == SCORES_AT_START + 1:
            raise ZeroDivisionError("a bug")
        return super().score(pack_sha256, question, deadline_ns)


class UnexplainingEngine(StubEngine):
    """A stub whose explanations all fail."""

    def step(self) -> list[WrittenExplanation]:
        raise EngineError("a decode failed")


@pytest.fixture
def served(config: Config, tcp_endpoint: str) -> Iterator[Config]:
    Keys(config.keys_dir).new("all", get_args(Role), 0.0)
    both = replace(config, tcp_endpoint=tcp_endpoint)
    with serving(both, load_engine=load_stub_engine):
        yield both


@pytest.fixture(params=["ipc", "tcp"])
def client(served: Config, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of the daemon, over ipc and over tcp: the same calls, the same answers."""
    key = served.keys_dir / "all.key"
    with (
        Client(served.endpoint, timeout_ms=PATIENCE_MS)
        if request.param == "ipc"
        else Client(served.tcp_endpoint, key=key, timeout_ms=PATIENCE_MS) as opened
    ):
        yield opened


@contextmanager
def raw_socket(config: Config, kind: int) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(kind) as opened:
        opened.set(zmq.LINGER, 0)
        opened.set(zmq.RCVTIMEO, PATIENCE_MS)
        opened.connect(config.endpoint)
        yield opened


def evaluate_frame(**changes: Any) -> bytes:
    return json.dumps({"v": 1, "id": "q", "op": "evaluate", "request": DEPLOY} | changes).encode()


def error_of(call: Callable[[], object]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call()
    return caught.value


class TestReplies:
    def test_have_the_members_of_the_protocol(self, client: Client) -> None:
        reply = client.evaluate(DEPLOY, explain="inline")
        assert set(reply) == {"v", "id", "decision", "context"}
        context = reply["context"]
        assert set(context) - {"reason_code"} == {
            "decision_id", "outcome", "classification", "risk", "reasoning", "reasoning_source", "clauses",
            "confidence", "probabilities", "tier", "floor", "rules", "obligations", "precedents", "pack",
            "model", "tokens", "time_used", "timings_ms",
        }  # fmt: skip
        assert reply["decision"] == (context["outcome"] == "allow")
        assert context["reasoning"] is not None
        assert context["classification"] is not None

    def test_without_an_explanation_have_no_reasoning_or_classification(self, client: Client) -> None:
        context = client.evaluate(DEPLOY, explain="none")["context"]
        assert (context["reasoning"], context["classification"]) == (None, None)

    @pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER])
    def test_reach_req_and_dealer_sockets(self, served: Config, kind: int) -> None:
        with raw_socket(served, kind) as opened:
            opened.send(evaluate_frame(id="mine"))
            reply = json.loads(opened.recv())
        assert (reply["v"], reply["id"]) == (1, "mine")
        assert "decision" in reply

    def test_are_the_same_for_the_flat_situation(self, client: Client) -> None:
        flat = {
            "actor_id": "user:alice",
            "actor_role": "engineer",
            "t3_tensor": DEPLOY["subject"]["properties"]["trust"],
            "action_type": "deploy",
            "resource": "env:production",
            **DEPLOY["context"],
        }
        first, second = client.evaluate(DEPLOY)["context"], client.evaluate(flat)["context"]
        assert first["probabilities"] == second["probabilities"]
        assert first["outcome"] == second["outcome"]

    def test_are_sent_after_the_commit(self, served: Config, client: Client) -> None:
        for explain in ("none", "inline"):
            decision_id = client.evaluate(DEPLOY, explain=explain)["context"]["decision_id"]
            with Reader(served.journal_path) as reader:
                row = reader.get(decision_id)
            assert row is not None
            assert explain == "none" or row["reasoning"] is not None

    def test_go_to_the_client_that_sent_the_request(self, served: Config) -> None:
        def ask(number: int) -> bool:
            question = DEPLOY | {"subject": {"type": "user", "id": f"user{number}"}}
            with (
                Client(served.endpoint, timeout_ms=PATIENCE_MS) as own,
                Reader(served.journal_path) as reader,
            ):
                for _ in range(5):
                    row = reader.get(own.evaluate(question)["context"]["decision_id"])
                    if row is None or row["actor"] != f"user:user{number}":
                        return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(8)))


class TestCache:
    def test_a_repeated_question_reuses_the_score_and_gets_a_row_of_its_own(self, config: Config) -> None:
        cached = replace(config, cache_size=10)
        with serving(cached, load_engine=load_stub_engine), Client(cached.endpoint) as own:
            first, repeated = (own.evaluate(DEPLOY)["context"] for _ in range(2))
        assert (first["tier"], repeated["tier"]) == ("model", "cache")
        assert "original_decision_id" not in first
        assert repeated["original_decision_id"] == first["decision_id"]
        assert repeated["probabilities"] == first["probabilities"]
        with Reader(cached.journal_path) as reader:
            row = reader.get(repeated["decision_id"])
        assert row is not None
        assert (row["tier"], row["original_id"], row["outcome_seq"]) == ("cache", first["decision_id"], None)


class TestBatch:
    """Evaluations with AuthZEN semantics: in order, defaults replaced whole, errors are denials."""

    READ: Json = {
        "action": {"name": "read"},
        "resource": {"type": "doc", "id": "guide"},
    }  # the rules allow it
    TAMPER: Json = {
        "action": {"name": "delete"},
        "resource": {"type": "audit", "id": "log"},
    }  # denied by rule

    def ask(self, client: Client, items: list[Json], semantic: str = "execute_all") -> list[dict[str, Json]]:
        fields = {
            "request": DEPLOY,
            "evaluations": items,
            "options": {"evaluations_semantic": semantic},
        }
        answers: list[dict[str, Json]] = client.call("evaluate", fields)["evaluations"]
        return answers

    def test_is_answered_in_order_with_a_row_for_each_item(self, served: Config, client: Client) -> None:
        answers = self.ask(client, [self.READ, self.TAMPER, {}, self.READ])
        assert [answer["decision"] for answer in (answers[0], answers[1], answers[3])] == [True, False, True]
        with Reader(served.journal_path) as reader:
            rows = [reader.get(answer["context"]["decision_id"]) for answer in answers]
        assert [row and row["action"] for row in rows] == ["read", "delete", "deploy", "read"]

    def test_a_malformed_item_is_a_denial_with_its_error(self, client: Client) -> None:
        answers = self.ask(client, [self.READ, {"action": {"name": ""}}, 5, self.READ])
        assert [answer["decision"] for answer in answers] == [True, False, False, True]
        error = answers[1]["context"]["error"]
        assert error["status"] == 400
        assert error["message"].startswith("evaluations.1.action.name")

    @pytest.mark.parametrize(
        ("semantic", "expected"),
        [
            ("deny_on_first_deny", [True, False]),
            ("permit_on_first_permit", [True]),
            ("execute_all", [True, False, True]),
        ],
    )
    def test_stops_according_to_its_semantic(
        self, client: Client, semantic: str, expected: list[bool]
    ) -> None:
        answers = self.ask(client, [self.READ, self.TAMPER, self.READ], semantic)
        assert [answer["decision"] for answer in answers] == expected

    def test_of_no_items_is_a_single_question(self, client: Client) -> None:
        reply = client.call("evaluate", {"request": DEPLOY, "evaluations": []})
        assert reply["context"]["decision_id"]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"evaluations": [{}] * 65}, "the limit is 64"),
            ({"evaluations": {}}, "evaluations: must be an array"),
            ({"evaluations": [{}], "options": {"evaluations_semantic": "maybe"}}, "must be one of"),
            ({"evaluations": [{}], "situation": {}}, "situation"),
        ],
    )
    def test_that_is_malformed_is_refused_with_the_member(
        self, client: Client, fields: dict[str, Json], message: str
    ) -> None:
        assert message in error_of(lambda: client.call("evaluate", fields)).message


class TestExplainLater:
    def test_is_answered_at_once_and_the_explanation_follows_as_an_event(
        self, served: Config, client: Client
    ) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as events:
            events.set(zmq.LINGER, 0)
            events.set(zmq.RCVTIMEO, PATIENCE_MS)
            events.subscribe(b"")
            events.connect(served.events_endpoint)
            seen: list[tuple[bytes, dict[str, Json]]] = []
            decision_id = ""
            while not any(kind == b"explanation" for kind, _ in seen):  # a subscription takes a moment
                answer = client.evaluate(DEPLOY, explain="later")["context"]
                decision_id = answer["decision_id"]
                assert answer["reasoning"] is None
                while events.poll(50):
                    kind, body = events.recv_multipart()
                    seen.append((kind, json.loads(body)))
        explained = [body for kind, body in seen if kind == b"explanation"]
        assert explained[-1]["reasoning"] is not None
        assert any(body["decision_id"] == decision_id for kind, body in seen if kind == b"decision")
        with Reader(served.journal_path) as reader:
            row = reader.get(explained[-1]["decision_id"])
        assert row is not None
        assert row["reasoning"] == explained[-1]["reasoning"]

    def test_no_decision_event_is_published_before_its_commit(self, served: Config) -> None:
        with (
            zmq.Context() as context,
            context.socket(zmq.SUB) as events,
            Client(served.endpoint, timeout_ms=PATIENCE_MS) as own,
            closing(sqlite3.connect(served.journal_path, isolation_level=None)) as other,
        ):
            events.set(zmq.LINGER, 0)
            events.subscribe(b"decision")
            events.connect(served.events_endpoint)
            while not events.poll(50):
                own.evaluate(DEPLOY)
            while events.poll(50):
                events.recv_multipart()
            other.execute("BEGIN IMMEDIATE")
            assert error_of(lambda: own.evaluate(DEPLOY, deadline_ms=100)).code == "expired"
            assert not events.poll(50)
            other.execute("ROLLBACK")
            assert events.poll(PATIENCE_MS)
            while own.status().counters.get("decisions_late") != 1:
                pass


class TestEvents:
    def test_are_numbered_whether_or_not_somebody_listened_and_reach_each_who_comes(
        self, served: Config, client: Client
    ) -> None:
        """By the number a subscriber knows how many it missed; nothing is encoded while there is none."""
        for _ in range(3):
            client.evaluate(DEPLOY)
        sent = 3
        for _ in range(2):
            with zmq.Context() as context, context.socket(zmq.SUB) as events:
                events.set(zmq.LINGER, 0)
                events.subscribe(b"decision")
                events.connect(served.events_endpoint)
                while not events.poll(50):  # a subscription takes a moment
                    client.evaluate(DEPLOY)
                    sent += 1
                numbers = [json.loads(events.recv_multipart()[1])["number"]]
                while events.poll(50):
                    numbers.append(json.loads(events.recv_multipart()[1])["number"])
            assert numbers == list(range(numbers[0], sent + 1))
            assert numbers[0] > 3
            client.evaluate(DEPLOY)
            sent += 1


class TestCaller:
    def test_is_the_uid_from_the_kernel_and_not_a_claim_in_the_request(self, served: Config) -> None:
        question = DEPLOY | {"caller": {"uid": 4711}, "context": {"caller": {"uid": 4711}, "uid": 4711}}
        with Client(served.endpoint, timeout_ms=PATIENCE_MS) as own:
            decision_id = own.evaluate(question)["context"]["decision_id"]
        with Reader(served.journal_path) as reader:
            row = reader.get(decision_id)
        assert row is not None
        assert row["caller_uid"] == os.getuid()

    def test_must_be_the_user_or_the_group_of_the_socket(self, served: Config) -> None:
        assert served.socket_path.stat().st_mode & 0o777 == 0o660


class TestRefusals:
    @pytest.mark.parametrize(
        ("frame", "code", "message"),
        [
            (b"{", "bad_request", "not valid JSON"),
            (b"\xff\xfe", "bad_request", "not valid"),
            (b"[" * 50_000, "bad_request", ""),
            (b'{"v":1,"request":NaN}', "bad_request", "not valid JSON"),
            (evaluate_frame(v=2), "version_mismatch", "version 1"),
            (evaluate_frame(request={"action": {"name": "x"}}), "bad_request", "subject"),
            (evaluate_frame(pack="payroll"), "not_found", "payroll"),
            (evaluate_frame(pack="../../etc"), "not_found", "not loaded"),
            (evaluate_frame(padding="x" * 100_000), "too_large", "65536"),
            (
                evaluate_frame(request=DEPLOY | {"context": {"details": ["word " * 200] * 50}}),
                "too_large",
                "context.details: has 50000 characters; the limit is 2000",
            ),
        ],
    )
    def test_name_the_code_the_field_and_the_limit_and_the_daemon_goes_on(
        self, served: Config, frame: bytes, code: str, message: str
    ) -> None:
        with raw_socket(served, zmq.REQ) as opened:
            opened.send(frame)
            error = json.loads(opened.recv())["error"]
            assert error["code"] == code, error
            assert message in error["message"]
            opened.send(evaluate_frame())
            assert "decision" in json.loads(opened.recv())

    def test_of_several_frames_require_one_json_frame(self, served: Config) -> None:
        with raw_socket(served, zmq.DEALER) as opened:
            opened.send_multipart([b"one", b"x" * 256, evaluate_frame()])
            reply = json.loads(opened.recv_multipart()[-1])
        assert "one JSON frame" in reply["error"]["message"]

    def test_leave_no_row_in_the_journal(self, served: Config, client: Client) -> None:
        error_of(lambda: client.evaluate({"subject": {}, "action": {}}))
        with Reader(served.journal_path) as reader:
            assert reader.decisions() == []

    def test_are_counted_by_code(self, client: Client) -> None:
        error_of(lambda: client.call("evaluate", {"situation": {}}))
        assert client.status().counters["refused_bad_request"] == 1


class TestLoad:
    @pytest.fixture
    def engine(self) -> GatedEngine:
        return GatedEngine()

    @pytest.fixture
    def gated(self, config: Config, engine: GatedEngine) -> Iterator[Config]:
        with serving(replace(config, max_in_flight=4), load_engine=lambda _: engine) as running:
            try:
                yield running
            finally:
                engine.gate.set()

    def test_status_is_answered_while_the_model_works(self, gated: Config, engine: GatedEngine) -> None:
        with raw_socket(gated, zmq.DEALER) as opened, Client(gated.endpoint) as own:
            opened.send(evaluate_frame())
            assert engine.scoring.acquire(timeout=PATIENCE_MS / 1000)
            assert own.status().in_flight == 1
            engine.gate.set()
            assert "decision" in json.loads(opened.recv())

    def test_requests_beyond_max_in_flight_get_busy_and_retry_after_ms(
        self, gated: Config, engine: GatedEngine
    ) -> None:
        with (
            raw_socket(gated, zmq.DEALER) as opened,
            raw_socket(gated, zmq.DEALER) as another,
            Client(gated.endpoint) as own,
        ):
            opened.send(evaluate_frame(id="0"))
            assert engine.scoring.acquire(timeout=PATIENCE_MS / 1000)
            another.send(evaluate_frame(id="1"))
            patient_until = time.monotonic() + PATIENCE_MS / 1000
            while own.status().in_flight < 2:
                assert time.monotonic() < patient_until
            error = error_of(lambda: own.evaluate(DEPLOY))
            assert error.code == "busy"
            assert error.retry_after_ms is not None
            assert "the limit is 4 in all" in error.message
            assert error_of(lambda: own.control(records.Control(task="reload"))).code == "busy"
            engine.gate.set()
            assert json.loads(opened.recv())["id"] == "0"
            assert json.loads(another.recv())["id"] == "1"

    def test_a_request_expires_at_its_deadline_while_the_model_hangs(
        self, gated: Config, engine: GatedEngine
    ) -> None:
        with Client(gated.endpoint) as own:
            error = error_of(lambda: own.evaluate(DEPLOY, deadline_ms=50))
            assert error.code == "expired"
            engine.gate.set()
            assert own.evaluate(DEPLOY)["context"]["decision_id"]

    def test_a_reply_to_a_client_that_disconnected_is_counted_as_dropped(
        self, gated: Config, engine: GatedEngine
    ) -> None:
        with raw_socket(gated, zmq.DEALER) as opened:
            opened.send(evaluate_frame())
            assert engine.scoring.acquire(timeout=PATIENCE_MS / 1000)
        with Client(gated.endpoint) as own:
            until_s = time.monotonic() + PATIENCE_MS / 1_000
            while own.status().connections > 1:  # ZeroMQ has yet to see that the other one ended
                assert time.monotonic() < until_s
            engine.gate.set()
            own.evaluate(DEPLOY)
            assert own.status().counters["replies_dropped"] == 1

    def test_a_failed_explanation_does_not_cost_the_decision(self, config: Config) -> None:
        with (
            serving(config, load_engine=lambda _: UnexplainingEngine()),
            Client(config.endpoint, timeout_ms=PATIENCE_MS) as own,
        ):
            for _ in range(2):
                answer = own.evaluate(DEPLOY, explain="inline")["context"]
                assert (answer["tier"], answer["reasoning"]) == ("model", None)
            assert own.status().engine.counters["unexplained"] == 2

    def test_an_unexpected_error_is_answered_as_internal_and_the_next_request_is_decided(
        self, config: Config
    ) -> None:
        with (
            serving(config, load_engine=lambda _: BrokenEngine()),
            Client(config.endpoint, timeout_ms=PATIENCE_MS) as own,
        ):
            assert error_of(lambda: own.evaluate(DEPLOY)).code == "internal"
            assert own.evaluate(DEPLOY)["context"]["decision_id"]


@dataclass
class Idle:
    """A rules thread that takes requests and does nothing."""

    waiting_ms: int = 0
    submitted: list[Request] = field(default_factory=list)

    def expected_ms(self, lane: Lane) -> int:
        return self.waiting_ms

    def submit(self, request: Request, lane: Lane) -> None:
        self.submitted.append(request)

    def drop(self, lane: Lane) -> list[Request]:
        return []


@dataclass(frozen=True)
class Taken:
    """A record as the recorder received it."""

    record: records.Record
    record_id: str
    at: float
    caller: Caller
    ticket: int


@dataclass
class Ledger:
    """A recorder without a disk: it finishes a record when `finish` is called, or (`prompt`) at once."""

    mailbox: Mailbox
    prompt: bool = False
    taken: queue.SimpleQueue[Taken] = field(default_factory=queue.SimpleQueue)

    def write(
        self,
        record: records.Record,
        *,
        record_id: str,
        at: float,
        caller: Caller,
        ticket: int,
        idempotency: str | None = None,
        claimed: Claimed = "no",
        governing: Governing | None = None,
        person: Person | None = None,
        recorder: Person | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        taken = Taken(record, record_id, at, caller, ticket)
        self.taken.put(taken)
        if self.prompt:
            self.finish(taken)

    def next(self) -> Taken:
        return self.taken.get(timeout=PATIENCE_MS / 1000)

    def finish(self, taken: Taken, **result: Any) -> None:
        kind = records.KIND_OF[type(taken.record)]
        self.mailbox.put(Committed(**{"ticket": taken.ticket, "kind": kind, "seq": 17} | result))


@dataclass
class IdleMaintenance:
    """A maintenance thread that takes work and does none of it."""

    taken: queue.SimpleQueue[tuple[int, records.Maintenance, Caller]] = field(
        default_factory=queue.SimpleQueue
    )

    def submit(self, ticket: int, maintenance: records.Maintenance, caller: Caller) -> None:
        self.taken.put((ticket, maintenance, caller))


def stopped(needed: str, part: str | None) -> RequestError | None:
    """The refusal of a request that needs the part `needed` when `part` has stopped."""
    message = f"the {part} has stopped; the daemon must be restarted"
    return RequestError("unavailable", message) if needed == part else None


@contextmanager
def served_by(server: Server, mailbox: Mailbox) -> Iterator[None]:
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join()
        server.close()
        mailbox.close()


class TestReloadedSettings:
    """Settings that are read again, as the handler of SIGHUP does it."""

    @contextmanager
    def reloading(
        self, config: Config, *results: Config | ConfigError
    ) -> Iterator[Callable[[], tuple[Status, RequestError]]]:
        """A daemon whose settings read as `results`, one result for each reload.

        Yields a function that reloads, and returns the status and the refusal of a long deadline.
        """
        remaining, reading = iter(results), threading.Event()

        def reread() -> Config:
            reading.set()  # on the main thread, which answers a request only after it has taken the settings
            result = next(remaining)
            if isinstance(result, ConfigError):
                raise result
            return result

        with (
            open_service(config, load_engine=load_stub_engine, reread=reread) as server,
            Client(config.endpoint, timeout_ms=PATIENCE_MS) as own,
        ):
            thread = threading.Thread(target=server.run)
            thread.start()

            def reload() -> tuple[Status, RequestError]:
                reading.clear()
                server.reload()
                assert reading.wait(PATIENCE_MS / 1000)
                refusal = error_of(lambda: own.evaluate(DEPLOY, deadline_ms=9_000))
                return own.status(), refusal

            try:
                yield reload
            finally:
                server.stop()
                thread.join()

    def test_apply_at_once_and_status_names_those_that_need_a_restart(self, config: Config) -> None:
        narrower = replace(config, max_deadline_ms=8_000, deadline_ms=2_000, max_in_flight=7, cache_size=77)
        with self.reloading(config, narrower) as reload:
            status, refusal = reload()
        assert msgspec.to_builtins(status.settings) == {
            "refused": None,
            "changed": ("deadline_ms", "max_deadline_ms", "max_in_flight"),
            "need_restart": ("cache_size",),
        }
        assert status.max_in_flight == 7
        assert "deadline_ms" in refusal.message

    def test_that_are_invalid_change_nothing_and_status_shows_the_reason(self, config: Config) -> None:
        narrow = replace(config, max_deadline_ms=8_000, deadline_ms=2_000)
        broken = ConfigError("the.toml: unknown setting 'deadlines'")
        with self.reloading(
            narrow, broken, replace(narrow, roles=("user:nobody-of-that-name=ask",))
        ) as reload:
            (first, _), (second, refusal) = reload(), reload()
        assert first.settings is not None
        assert second.settings is not None
        assert first.settings.refused == "the.toml: unknown setting 'deadlines'"
        assert "nobody-of-that-name" in second.settings.refused
        assert "deadline_ms" in refusal.message


class TestAdmission:
    def test_refuses_a_request_that_would_wait_past_its_deadline(self, config: Config) -> None:
        mailbox, work = Mailbox(), Idle(waiting_ms=2_000)
        server = Server(
            config,
            mailbox=mailbox,
            rules=work,
            recorder=Ledger(mailbox),
            maintenance=IdleMaintenance(),
            describe=quiet_parts,
        )
        with served_by(server, mailbox), Client(config.endpoint, timeout_ms=PATIENCE_MS) as own:
            error = error_of(lambda: own.evaluate(DEPLOY, deadline_ms=500))
            assert error.code == "busy"
            assert error.retry_after_ms == 1501
            assert error_of(lambda: own.evaluate(DEPLOY, deadline_ms=2001)).code == "expired"
        assert len(work.submitted) == 1

    @pytest.mark.parametrize("part", ["engine", "journal"])
    def test_refuses_questions_once_the_engine_or_the_journal_has_stopped(
        self, config: Config, part: str
    ) -> None:
        mailbox, work = Mailbox(), Idle()
        server = Server(
            config,
            mailbox=mailbox,
            rules=work,
            recorder=Ledger(mailbox),
            maintenance=IdleMaintenance(),
            describe=quiet_parts,
            refusal=lambda needed: stopped(needed, part),
        )
        with served_by(server, mailbox), Client(config.endpoint, timeout_ms=PATIENCE_MS) as own:
            error = error_of(lambda: own.evaluate(DEPLOY))
            assert (error.code, error.message.split()[1]) == ("unavailable", part)
            assert (own.status().state, own.status().trouble) == ("refusing", error.message)
        assert work.submitted == []

    def test_an_unexpected_error_costs_one_request_and_the_server_goes_on(self, config: Config) -> None:
        errors: list[Exception] = [ZeroDivisionError("a bug")]

        def describe() -> PartsStatus:
            if errors:
                raise errors.pop()
            return stub_parts(PACK)

        mailbox, work = Mailbox(), Idle()
        server = Server(
            config,
            mailbox=mailbox,
            rules=work,
            recorder=Ledger(mailbox),
            maintenance=IdleMaintenance(),
            describe=describe,
        )
        with served_by(server, mailbox), Client(config.endpoint, timeout_ms=PATIENCE_MS) as own:
            assert error_of(own.status).code == "internal"
            assert own.status().counters["refused_internal"] == 1


OUTCOME: dict[str, Json] = {"decision_id": "0198", "status": "SUCCESS", "value": 12.5}


def record_frame(**changes: Any) -> bytes:
    return json.dumps({"v": 1, "id": "r", "op": "outcome", "record": OUTCOME} | changes).encode()


class TestRecords:
    """Decision reports, outcomes, reviews and the like: recorded by the journal without the engine."""

    @contextmanager
    def recording(
        self, config: Config, *, prompt: bool = False, broken: str | None = None
    ) -> Iterator[tuple[Server, Ledger]]:
        mailbox = Mailbox()
        ledger = Ledger(mailbox, prompt)
        server = Server(
            config,
            mailbox=mailbox,
            rules=Idle(),
            recorder=ledger,
            maintenance=IdleMaintenance(),
            describe=quiet_parts,
            refusal=lambda needed: stopped(needed, broken),
        )
        with served_by(server, mailbox):
            yield server, ledger

    def receive(self, opened: zmq.Socket[bytes]) -> dict[str, Json]:
        reply: dict[str, Json] = json.loads(opened.recv())
        return reply

    def counters(self, opened: zmq.Socket[bytes]) -> dict[str, Json]:
        """The counters; the server replies in order, so every reply that it sent before has arrived."""
        opened.send(json.dumps({"v": 1, "id": "m", "op": "status"}).encode())
        reply = self.receive(opened)
        assert reply["id"] == "m"
        status: dict[str, Json] = reply["status"]
        return {"in_flight": status["in_flight"], **status["counters"]}

    def test_are_answered_after_their_commit_and_not_before(self, config: Config) -> None:
        with self.recording(config) as (_, ledger), raw_socket(config, zmq.DEALER) as opened:
            opened.send(record_frame())
            taken = ledger.next()
            assert self.counters(opened)["in_flight"] == 1
            ledger.finish(taken)
            assert self.receive(opened) == {
                "v": 1,
                "id": "r",
                "recorded": {"id": taken.record_id, "kind": "outcome", "seq": 17},
            }
            assert self.counters(opened) == {"received": 3, "in_flight": 0, "outcomes_recorded": 1}

    def test_reach_the_journal_as_they_were_sent(self, config: Config) -> None:
        with self.recording(config, prompt=True) as (_, ledger), Client(config.endpoint) as own:
            ids = [own.outcome("0198", "SUCCESS", 12.5, "sold"), own.outcome("0198", "PENDING")]
            first, second = ledger.next(), ledger.next()
        assert first.record == records.Outcome(decision_id="0198", status="SUCCESS", value=12.5, note="sold")
        assert second.record == records.Outcome(decision_id="0198", status="PENDING")
        assert ids == [first.record_id, second.record_id] == sorted(ids)
        assert first.at <= second.at
        assert {uuid.UUID(record_id).version for record_id in ids} == {7}

    def test_have_the_caller_that_the_kernel_names(self, config: Config) -> None:
        claim = {"caller": {"uid": 0, "pid": 1}, "uid": 0}
        with self.recording(config) as (_, ledger), raw_socket(config, zmq.DEALER) as opened:
            opened.send(record_frame(record=OUTCOME | claim, **claim))
            taken = ledger.next()
            ledger.finish(taken)
        assert taken.caller == Caller(transport="ipc", uid=os.getuid(), gid=os.getgid(), pid=os.getpid())

    def test_of_an_unknown_decision_are_refused_with_the_message_of_the_journal(self, config: Config) -> None:
        with self.recording(config) as (_, ledger), raw_socket(config, zmq.DEALER) as opened:
            opened.send(record_frame())
            message = "decision_id: there is no decision '0198'"
            ledger.finish(ledger.next(), error="not_found", message=message)
            assert self.receive(opened)["error"] == {"code": "not_found", "message": message}
            assert self.counters(opened) == {"received": 2, "in_flight": 0, "refused_not_found": 1}

    @pytest.mark.parametrize(
        ("code", "reason"), [("disk_full", "the disk is full"), ("unavailable", "the journal failed")]
    )
    def test_that_the_journal_lost_are_refused_and_counted(
        self, config: Config, code: str, reason: str
    ) -> None:
        with self.recording(config) as (_, ledger), raw_socket(config, zmq.DEALER) as opened:
            opened.send(record_frame())
            ledger.finish(ledger.next(), error=code)
            assert self.receive(opened)["error"] == {
                "code": code,
                "message": f"it could not be recorded: {reason}",
            }
            assert self.counters(opened) == {
                "received": 2,
                "in_flight": 0,
                "outcomes_lost": 1,
                f"refused_{code}": 1,
            }

    def test_expire_before_a_late_commit_and_are_counted_after_it(self, config: Config) -> None:
        patient = replace(config, deadline_ms=config.max_deadline_ms)
        with self.recording(patient) as (_, ledger), raw_socket(patient, zmq.DEALER) as opened:
            opened.send(record_frame(deadline_ms=50))
            taken = ledger.next()
            assert self.receive(opened)["error"] == {
                "code": "expired",
                "message": f"{taken.record_id} was not committed before the deadline; it may be yet",
            }
            ledger.finish(taken)
            assert self.counters(opened) == {
                "received": 2,
                "in_flight": 0,
                "refused_expired": 1,
                "outcomes_recorded": 1,
                "outcomes_late": 1,
            }

    def test_without_a_deadline_get_deadline_ms_of_the_settings(self, config: Config) -> None:
        brief = replace(config, deadline_ms=50)
        with self.recording(brief) as (_, ledger), raw_socket(brief, zmq.DEALER) as opened:
            opened.send(record_frame(id="patient", deadline_ms=PATIENCE_MS // 4))
            opened.send(record_frame(id="brief"))
            reply = self.receive(opened)
            assert (reply["id"], reply["error"]["code"]) == ("brief", "expired")
            ledger.finish(ledger.next())
            assert self.receive(opened)["id"] == "patient"

    def test_count_among_the_requests_in_flight(self, config: Config) -> None:
        narrow = replace(config, max_in_flight=1)
        with self.recording(narrow) as (_, ledger), raw_socket(narrow, zmq.DEALER) as opened:
            opened.send(record_frame())
            first = ledger.next()
            for frame in (record_frame(id="late"), evaluate_frame(id="late")):
                opened.send(frame)
                reply = self.receive(opened)
                assert (reply["id"], reply["error"]["code"]) == ("late", "busy")
                assert "the limit is 1" in reply["error"]["message"]
                assert reply["error"]["retry_after_ms"] in (1, 2)  # one comes back after the other
            ledger.finish(first)
            assert "recorded" in self.receive(opened)
            opened.send(record_frame())
            ledger.finish(ledger.next())
            assert "recorded" in self.receive(opened)

    def test_are_recorded_after_the_engine_has_stopped(self, config: Config) -> None:
        with (
            self.recording(config, prompt=True, broken="engine"),
            Client(config.endpoint, timeout_ms=PATIENCE_MS) as own,
        ):
            assert own.outcome("0198", "SUCCESS")
            assert error_of(lambda: own.evaluate(DEPLOY)).code == "unavailable"

    def test_are_refused_once_the_journal_has_stopped(self, config: Config) -> None:
        with (
            self.recording(config, broken="journal") as (_, ledger),
            Client(config.endpoint, timeout_ms=PATIENCE_MS) as own,
        ):
            error = error_of(lambda: own.outcome("0198", "SUCCESS"))
        assert error.code == "unavailable"
        assert error.message == "the journal has stopped; the daemon must be restarted"
        assert ledger.taken.empty()

    def test_in_flight_are_answered_during_a_stop_and_later_requests_are_refused(
        self, config: Config
    ) -> None:
        with self.recording(config) as (server, ledger), raw_socket(config, zmq.DEALER) as opened:
            opened.send(record_frame())
            first = ledger.next()
            server.stop()
            opened.send(record_frame(id="late"))
            reply = self.receive(opened)
            assert (reply["id"], reply["error"]["code"]) == ("late", "shutting_down")
            ledger.finish(first)
            assert self.receive(opened)["recorded"]["id"] == first.record_id
        assert ledger.taken.empty()

    def test_in_flight_longer_than_shutdown_s_are_answered_with_shutting_down(self, config: Config) -> None:
        hasty = replace(config, shutdown_s=0.1)
        with self.recording(hasty) as (server, ledger), raw_socket(hasty, zmq.DEALER) as opened:
            opened.send(record_frame())
            ledger.next()
            server.stop()
            assert self.receive(opened)["error"]["code"] == "shutting_down"

    def test_are_refused_with_the_path_of_the_field(self, served: Config) -> None:
        with raw_socket(served, zmq.REQ) as opened:
            opened.send(record_frame(record=OUTCOME | {"status": "WON"}))
            error = self.receive(opened)["error"]
        assert error["code"] == "bad_request"
        assert error["message"] == "record.status: must be one of SUCCESS, FAILURE, PENDING"

    def test_of_every_kind_have_a_call_in_the_client_and_a_counter(self, config: Config) -> None:
        reported = records.DecisionReport(agent="trader", outcome="HOLD", tags=("t",))
        consulted = records.Consultation(system="crm", session="s", value={"tier": [1, None]})
        review = records.Review(decision_id="0198", reviewer="ines", verdict="accept")
        approval = records.Approval(decision_id="0198", approver="ines")
        node = records.Node(type="goal", title="Ship")
        edge = records.Edge(source="0198", target="0199", type="leads_to")
        state = records.TraceState(decision_id="0198", status="under_review", because="a doubt")
        with self.recording(config, prompt=True) as (_, ledger), Client(config.endpoint) as own:
            ids = [
                own.decision_report(reported),
                own.consultation(consulted),
                own.outcome("0198", "FAILURE"),
                own.review(review),
                own.approval(approval),
                own.node(node),
                own.edge(edge),
                own.trace_state(state)["id"],
            ]
            taken = [ledger.next() for _ in ids]
            counters = own.status().counters
        assert ids == [recorded.record_id for recorded in taken]
        failure = records.Outcome(decision_id="0198", status="FAILURE")
        assert [recorded.record for recorded in taken] == [
            reported, consulted, failure, review, approval, node, edge, state,
        ]  # fmt: skip
        assert counters == {"received": 9} | {
            f"{kinds}_recorded": 1
            for kinds in (
                "decision_reports",
                "consultations",
                "outcomes",
                "reviews",
                "approvals",
                "nodes",
                "edges",
                "trace_states",
            )
        }

    def test_of_trading_agents_are_sent_by_one_call(self, config: Config) -> None:
        fields: Tracked = {
            "prompt": "Buy?",
            "response": "Buy.",
            "model": "m",
            "input_tokens": 10,
            "output_tokens": 2,
            "latency_ms": 31.5,
            "confidence": 0.75,
            "context": {"price": 12.5},
            "session": "s",
        }
        with self.recording(config, prompt=True) as (_, ledger), Client(config.endpoint) as own:
            signal_id = own.track_signal(agent="scout", symbol="ACME", signal="BUY", **fields)
            risk_id = own.track_risk(agent="warden", symbol="ACME", outcome="REDUCE")
            signal, risk = ledger.next(), ledger.next()
        assert (signal.record_id, risk.record_id) == (signal_id, risk_id)
        assert signal.record == records.DecisionReport(
            type="signal", agent="scout", entity="ACME", outcome="BUY", **fields
        )
        assert risk.record == records.DecisionReport(
            type="risk", agent="warden", entity="ACME", outcome="REDUCE"
        )

    def test_are_on_the_chain_when_they_are_answered(self, served: Config, client: Client) -> None:
        decision_id = client.evaluate(DEPLOY)["context"]["decision_id"]
        before = client.status().journal.seq
        client.outcome(decision_id, "SUCCESS", 12.5)
        client.review(records.Review(decision_id=decision_id, reviewer="ines", verdict="accept"))
        reported_id = client.track_signal(agent="scout", symbol="ACME", signal="BUY")
        client.outcome(reported_id, "FAILURE")
        with closing(sqlite3.connect(served.journal_path)) as connection:
            rows = connection.execute("SELECT kind FROM events WHERE seq > ? ORDER BY seq", (before,))
            assert [kind for (kind,) in rows] == ["outcome", "review", "decision_report", "outcome"]
        assert verify(served.journal_path).ok

    def test_are_not_published_as_events(self, served: Config, client: Client) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as events:
            events.set(zmq.LINGER, 0)
            events.set(zmq.RCVTIMEO, PATIENCE_MS)
            events.subscribe(b"")
            events.connect(served.events_endpoint)
            decision_id = ""
            while not events.poll(50):  # a subscription takes a moment
                decision_id = client.evaluate(DEPLOY)["context"]["decision_id"]
            while json.loads(events.recv_multipart()[1])["decision_id"] != decision_id:
                pass
            client.track_signal(agent="scout", symbol="ACME", signal="BUY")
            later_id = client.evaluate(DEPLOY)["context"]["decision_id"]
            kind, body = events.recv_multipart()
        assert (kind, json.loads(body)["decision_id"]) == (b"decision", later_id)


def maintenance_frame(**record: Json) -> bytes:
    return json.dumps({"v": 1, "id": "u", "op": "maintenance", "record": record}).encode()


class TestMaintenance:
    """Long work on the journal: for root and the user of the daemon, done by the maintenance thread."""

    @contextmanager
    def maintaining(
        self, config: Config, *, broken: str | None = None
    ) -> Iterator[tuple[Server, Mailbox, IdleMaintenance]]:
        mailbox, maintenance_thread = Mailbox(), IdleMaintenance()
        server = Server(
            config,
            mailbox=mailbox,
            rules=Idle(),
            recorder=Ledger(mailbox),
            maintenance=maintenance_thread,
            describe=quiet_parts,
            refusal=lambda needed: stopped(needed, broken),
        )
        with served_by(server, mailbox):
            yield server, mailbox, maintenance_thread

    def test_is_answered_after_the_maintenance_thread_has_done_it_and_not_before(
        self, config: Config
    ) -> None:
        with (
            self.maintaining(config) as (_, mailbox, maintenance_thread),
            raw_socket(config, zmq.DEALER) as opened,
        ):
            opened.send(maintenance_frame(task="erase", actor="user:alice"))
            ticket, maintenance, caller = maintenance_thread.taken.get(timeout=PATIENCE_MS / 1000)
            opened.send(json.dumps({"v": 1, "id": "m", "op": "metrics"}).encode())
            in_flight = json.loads(opened.recv())["metrics"]["thorpolicy_in_flight"]
            assert in_flight["samples"][0]["value"] == 1
            mailbox.put((ticket, JobDone({"done": {"own": 3}})))
            assert json.loads(opened.recv()) == {"v": 1, "id": "u", "done": {"own": 3}}
        assert maintenance == records.Maintenance(task="erase", actor="user:alice")
        assert caller == Caller(transport="ipc", uid=os.getuid(), gid=os.getgid(), pid=os.getpid())

    def test_that_fails_is_refused_with_the_message_of_the_maintenance_thread(self, config: Config) -> None:
        with (
            self.maintaining(config) as (_, mailbox, maintenance_thread),
            raw_socket(config, zmq.DEALER) as opened,
        ):
            opened.send(maintenance_frame(task="checkpoint"))
            ticket, _, _ = maintenance_thread.taken.get(timeout=PATIENCE_MS / 1000)
            mailbox.put((ticket, JobDone(RequestError("unavailable", "the disk is full"))))
            error = json.loads(opened.recv())["error"]
        assert error == {"code": "unavailable", "message": "the disk is full"}

    @as_root
    def test_is_refused_to_another_user_who_may_open_the_socket(self, config: Config) -> None:
        config.state_dir.chmod(0o711)
        with self.maintaining(replace(config, socket_mode=0o666)) as (server, _, maintenance_thread):
            (reply,) = replies_to(config.endpoint, 65534, maintenance_frame(task="checkpoint"))
            assert reply["error"] == {
                "code": "unauthorized",
                "message": "op: maintenance needs the role control, which uid 65534 does not have; "
                "see the setting `roles`",
            }
            assert server.counters["refused_unauthorized"] == 1
        assert maintenance_thread.taken.empty()

    def test_of_a_daemon_of_another_user_is_for_root_alone(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with (
            self.maintaining(config) as (_, mailbox, maintenance_thread),
            raw_socket(config, zmq.DEALER) as own,
        ):
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
            own.send(maintenance_frame(task="checkpoint"))
            if os.getuid() == 0:
                ticket, _, _ = maintenance_thread.taken.get(timeout=PATIENCE_MS / 1000)
                mailbox.put((ticket, JobDone({"maintenance": {}})))
                assert "error" not in json.loads(own.recv())
            else:
                assert json.loads(own.recv())["error"]["code"] == "unauthorized"
        assert maintenance_thread.taken.empty()

    def test_is_refused_once_the_journal_has_stopped(self, config: Config) -> None:
        with (
            self.maintaining(config, broken="journal") as (_, _, maintenance_thread),
            Client(config.endpoint, timeout_ms=PATIENCE_MS) as own,
        ):
            error = error_of(lambda: own.maintenance(records.Maintenance(task="checkpoint")))
        assert (error.code, error.message.split()[:2]) == ("unavailable", ["the", "journal"])
        assert maintenance_thread.taken.empty()

    def test_is_done_after_the_engine_has_stopped(self, config: Config) -> None:
        with (
            self.maintaining(config, broken="engine") as (_, mailbox, maintenance_thread),
            raw_socket(config, zmq.DEALER) as own,
        ):
            own.send(maintenance_frame(task="checkpoint"))
            ticket, _, _ = maintenance_thread.taken.get(timeout=PATIENCE_MS / 1000)
            mailbox.put((ticket, JobDone({"done": {}})))
            assert json.loads(own.recv())["done"] == {}

    def test_in_flight_is_answered_during_a_stop_and_later_requests_are_refused(self, config: Config) -> None:
        with (
            self.maintaining(config) as (server, mailbox, maintenance_thread),
            raw_socket(config, zmq.DEALER) as opened,
        ):
            opened.send(maintenance_frame(task="checkpoint"))
            ticket, _, _ = maintenance_thread.taken.get(timeout=PATIENCE_MS / 1000)
            server.stop()
            opened.send(maintenance_frame(task="checkpoint"))
            assert json.loads(opened.recv())["error"]["code"] == "shutting_down"
            mailbox.put((ticket, JobDone({"done": {}})))
            assert json.loads(opened.recv())["done"] == {}
        assert maintenance_thread.taken.empty()

    def test_is_done_by_a_daemon_that_goes_on_deciding(self, served: Config, client: Client) -> None:
        decided = [client.evaluate(DEPLOY)["context"]["decision_id"] for _ in range(3)]
        done = client.maintenance(records.Maintenance(task="erase", actor="user:alice"))
        assert (done["own"], done["left"]) == (3, [])
        assert (
            client.maintenance(records.Maintenance(task="archive", before="2026-01-01T00:00:00Z"))["archived"]
            == 0
        )
        assert (
            client.maintenance(records.Maintenance(task="archive", before="9999-01-01T00:00:00Z"))["archived"]
            > 3
        )
        seq = client.maintenance(records.Maintenance(task="checkpoint"))["checkpoint"]
        assert client.evaluate(DEPLOY)["context"]["decision_id"]
        with Reader(served.journal_path) as reader:
            assert [row and row["actor"] for row in map(reader.get, decided)] == [None] * 3
        verdict = verify(served.journal_path)
        assert (verdict.ok, verdict.erased, verdict.checkpoint_seq) == (True, 3, seq)

    def test_of_a_missing_archive_segment_names_the_segment(self, served: Config, client: Client) -> None:
        client.evaluate(DEPLOY)  # an event that can be archived
        done = client.maintenance(records.Maintenance(task="archive", before="9999-01-01T00:00:00Z"))
        (segment,) = done["segments"]
        (served.state_dir / "archive" / segment).unlink()
        error = error_of(lambda: client.maintenance(records.Maintenance(task="erase", actor="user:alice")))
        assert error.code == "unavailable"
        assert segment in error.message


class TestStalledJournal:
    def test_does_not_stall_the_engine_and_holds_back_every_reply(self, served: Config) -> None:
        """Another connection holds the write lock of SQLite, so that no commit can return."""
        with (
            closing(sqlite3.connect(served.journal_path, isolation_level=None)) as other,
            raw_socket(served, zmq.DEALER) as opened,
            Client(served.endpoint, timeout_ms=PATIENCE_MS) as own,
        ):
            other.execute("BEGIN IMMEDIATE")
            for number in range(50):
                opened.send(evaluate_frame(id=str(number)))
            while own.status().engine.counters["decisions"] < 50:
                assert own.status().state == "serving"
            assert not opened.poll(0)
            other.execute("ROLLBACK")
            assert {json.loads(opened.recv())["id"] for _ in range(50)} == {str(n) for n in range(50)}


class TestLifecycle:
    def test_a_stop_answers_requests_in_flight(self, config: Config) -> None:
        engine = GatedEngine()
        with raw_socket(config, zmq.DEALER) as opened:
            with serving(config, load_engine=lambda _: engine):
                opened.send(evaluate_frame())
                assert engine.scoring.acquire(timeout=PATIENCE_MS / 1000)
                engine.gate.set()
            assert "decision" in json.loads(opened.recv())
        assert engine.closed
        assert not config.socket_path.exists()
        assert verify(config.journal_path).ok

    def test_the_loaded_model_and_pack_are_in_the_journal_before_the_first_decision(
        self, served: Config, client: Client
    ) -> None:
        client.evaluate(DEPLOY)
        with closing(sqlite3.connect(served.journal_path)) as connection:
            kinds = [row[0] for row in connection.execute("SELECT kind FROM events ORDER BY seq")]
        assert kinds == ["model_loaded", "pack_activated", "decision"]

    def test_a_second_daemon_on_the_same_endpoint_is_refused(self, served: Config, short_dir: Any) -> None:
        second = replace(served, state_dir=short_dir / "elsewhere", tcp_endpoint="")
        with pytest.raises(AlreadyRunning, match="--endpoint"), serving(second, load_engine=load_stub_engine):
            pass

    def test_a_second_daemon_on_the_same_state_directory_is_refused(self, served: Config) -> None:
        second = replace(served, endpoint=f"{served.endpoint}.second", tcp_endpoint="")
        with (
            pytest.raises(AlreadyRunning, match="--state-dir"),
            serving(second, load_engine=load_stub_engine),
        ):
            pass

    def test_a_failed_start_releases_everything(self, config: Config) -> None:
        def no_engine(_: Config) -> StubEngine:
            raise RequestError("internal", "no engine")

        for _ in range(2):
            with pytest.raises(RequestError), serving(config, load_engine=no_engine):
                pass
        with serving(config, load_engine=load_stub_engine), Client(config.endpoint) as own:
            assert own.status().state == "serving"

    def test_a_client_without_a_daemon_gets_unreachable_at_once(self, config: Config) -> None:
        with pytest.raises(Unreachable, match="thorpolicy serve"), Client(config.endpoint) as own:
            own.status()

    def test_a_client_survives_a_restart_of_the_daemon(self, config: Config) -> None:
        with Client(config.endpoint, timeout_ms=PATIENCE_MS) as own:
            for _ in range(2):
                with serving(config, load_engine=load_stub_engine):
                    assert own.evaluate(DEPLOY)["context"]["decision_id"]
