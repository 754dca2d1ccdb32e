"""The rules thread: what rules decide never waits for the model; the rest reaches it with its floor."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from tests.build import write_pack
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.decisions import Decision, Scored
from thor_policy.core.errors import RequestError
from thor_policy.core.fair_queue import OWN, Debts, Lane
from thor_policy.core.requests import NEVER_NS, Action, Caller, Entity, Evaluation, Json, Request, Together
from thor_policy.core.results import Refused
from thor_policy.daemon.rules_thread import RulesThread
from thor_policy.daemon.service import serving
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Assessment, Policy
from thor_policy.testing import StubEngine

#: No test waits longer than this, in seconds.
PATIENCE_S = 20
RULES = """
- id: never
  when: action.name == "erase"
  outcome: deny
  because: Nothing is erased.
"""


class Engine:
    """Where the rules thread hands requests on; it keeps them."""

    def __init__(self, waiting: int = 0) -> None:
        self.alive, self.mean_decision_ms, self.waiting = True, 100.0, waiting
        self.submitted = queue.SimpleQueue[tuple[Assessment, Lane]]()

    def ahead(self, lane: Lane) -> int:
        return self.waiting

    def submit(self, assessment: Assessment, lane: Lane) -> None:
        self.submitted.put((assessment, lane))

    def drop(self, lane: Lane) -> list[Request]:
        return []


class Log:
    """A decision log that notes what it gets."""

    def __init__(self) -> None:
        self.decided_tickets = queue.SimpleQueue[int | None]()

    def decided(self, decision: Decision, ticket: int | None = None) -> None:
        self.decided_tickets.put(ticket)

    def explained(self, *arguments: Any) -> None:
        raise AssertionError("rules explain nothing")

    shadowed = explained


def request(ticket: int, action: str = "look", **changes: Any) -> Request:
    fields: dict[str, Any] = {
        "ticket": ticket,
        "evaluation": Evaluation(
            subject=Entity(type="user", id="kim"),
            action=Action(name=action),
            resource=Entity(type="doc", id="d"),
        ),
        "caller": Caller(transport="ipc", uid=1),
        "received_at": 1.8e9,
        "received_ns": time.monotonic_ns(),
        "deadline_ns": NEVER_NS,
    }
    return Request(**fields | changes)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy(StubEngine(), pack_files.load(write_pack(tmp_path_factory.mktemp("pack"), rules=RULES)))


Open = Callable[..., tuple[RulesThread, Log, "queue.SimpleQueue[Any]"]]


@pytest.fixture
def open_rules_thread(policy: Policy) -> Iterator[Open]:
    with ExitStack() as stack:

        def open_it(engine: Engine, debts: Debts | None = None) -> Any:
            log, results = Log(), queue.SimpleQueue[Any]()
            opened = RulesThread(
                policy,
                engine,
                log,
                lambda ticket, result: results.put((ticket, result)),
                debts or Debts(64),
            )
            opened.start()
            stack.callback(opened.stop, PATIENCE_S)
            return opened, log, results

        yield open_it


def test_what_rules_decide_is_recorded_and_the_rest_reaches_the_engine(open_rules_thread: Open) -> None:
    engine, lane = Engine(), Lane("uid:1", 7)
    rules, log, results = open_rules_thread(engine)
    rules.submit(request(1, "erase"), lane)
    rules.submit(request(2), lane)
    assert log.decided_tickets.get(timeout=PATIENCE_S) == 1
    ticket, decision = results.get(timeout=PATIENCE_S)
    assert (ticket, decision.outcome, decision.tier) == (1, "deny", "rule")
    assessment, kept = engine.submitted.get(timeout=PATIENCE_S)
    assert (assessment.request.ticket, assessment.floor.outcome, kept) == (2, "allow", lane)
    assert rules.stop(PATIENCE_S)
    assert rules.counters == {"decisions": 1, "for_the_model": 1, "refused": 0, "internal_errors": 0}


def test_a_question_that_would_wait_for_the_model_past_its_deadline_is_busy(open_rules_thread: Open) -> None:
    engine = Engine(waiting=1_000)
    rules, _, results = open_rules_thread(engine)
    soon_ns = time.monotonic_ns() + PATIENCE_S * 10**9
    rules.submit(request(1, deadline_ns=soon_ns))
    _, refused = results.get(timeout=PATIENCE_S)
    assert refused.error.code == "busy"
    assert 80_000 < refused.error.retry_after_ms <= 100_001
    rules.submit(request(2, "erase", deadline_ns=soon_ns))  # which the model is not asked for
    assert results.get(timeout=PATIENCE_S)[1].outcome == "deny"


@pytest.mark.parametrize(
    ("changes", "code"), [({"deadline_ns": 1}, "expired"), ({"pack": "nobody"}, "not_found")]
)
def test_a_request_that_cannot_be_assessed_is_refused(
    open_rules_thread: Open, changes: dict[str, Any], code: str
) -> None:
    rules, log, results = open_rules_thread(Engine())
    rules.submit(request(1, "erase", **changes))
    ticket, refused = results.get(timeout=PATIENCE_S)
    assert (ticket, type(refused), refused.error.code) == (1, Refused, code)
    assert log.decided_tickets.empty()


def test_an_unexpected_error_costs_one_request(
    open_rules_thread: Open, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Engine):
        def submit(self, assessment: Assessment, lane: Lane) -> None:
            raise ZeroDivisionError("a bug")

    rules, _, results = open_rules_thread(Broken())
    rules.submit(request(1))
    assert results.get(timeout=PATIENCE_S)[1].error.code == "internal"
    rules.submit(request(2, "erase"))
    assert results.get(timeout=PATIENCE_S)[1].outcome == "deny"
    assert "a bug" in caplog.text


def test_a_caller_with_too_many_uncommitted_decisions_waits(open_rules_thread: Open) -> None:
    debts = Debts(1)
    rules, log, _ = open_rules_thread(Engine(), debts)
    for ticket in (1, 2):
        rules.submit(request(ticket, "erase"), Lane("uid:1"))
    rules.submit(request(3, "erase", caller=Caller(transport="ipc", uid=2)), Lane("uid:2"))
    assert [log.decided_tickets.get(timeout=PATIENCE_S) for _ in range(2)] == [1, 3]
    assert rules.waiting == 1
    debts.settle("uid:1")
    assert log.decided_tickets.get(timeout=PATIENCE_S) == 2


def test_without_its_engine_or_its_thread_nothing_is_taken(open_rules_thread: Open) -> None:
    engine = Engine()
    rules, _, _ = open_rules_thread(engine)
    assert rules.refusal() is None
    engine.alive = False
    assert "engine has stopped" in str(rules.refusal())
    engine.alive = True
    assert rules.stop(PATIENCE_S)
    assert "rules have stopped" in str(rules.refusal())


def test_what_waits_in_a_lane_can_be_taken_out(policy: Policy) -> None:
    rules = RulesThread(policy, Engine(), Log(), lambda *_: None, Debts(64))  # not started
    rules.submit(request(1), Lane("uid:1", 7))
    rules.submit(request(2), OWN)
    assert [dropped.ticket for dropped in rules.drop(Lane("uid:1", 7))] == [1]
    assert rules.waiting == 1


def test_a_daemon_answers_by_rules_while_a_decode_hangs(config: Config) -> None:
    """V6: an honest caller's rule questions waited behind each decode of a flood."""
    begun, go_on = threading.Event(), threading.Event()

    class Hanging(StubEngine):
        def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
            if "wait" in question:
                begun.set()
                assert go_on.wait(PATIENCE_S)
            return super().score(pack_sha256, question, deadline_ns)

    trust: dict[str, Json] = {"competence": 0.8, "reliability": 0.7, "integrity": 0.8}
    by_rule: dict[str, Json] = {
        "actor_id": "user:u1",
        "actor_role": "member",
        "t3_tensor": trust,
        "action_type": "grant_admin",
        "resource": "role:owner",
        "timestamp": "2026-03-04T13:05:00Z",
    }
    by_model = by_rule | {"actor_role": "developer", "action_type": "deploy", "resource": "env:production"}
    patient = replace(config, deadline_ms=PATIENCE_S * 1_000)
    with serving(patient, load_engine=lambda _: Hanging()), ExitStack() as stack:
        clients = [Client(patient.endpoint, timeout_ms=PATIENCE_S * 1_000) for _ in range(2)]
        first, second = map(stack.enter_context, clients)
        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.append(first.evaluate(by_model | {"details": "wait"}))
        )
        asking.start()
        assert begun.wait(PATIENCE_S)
        try:
            assert second.evaluate(by_rule)["context"]["outcome"] == "deny"
            with pytest.raises(RequestError, match="before the deadline"):
                second.evaluate(by_model, deadline_ms=50)
            assert answers == []
        finally:
            go_on.set()
            asking.join(PATIENCE_S)
        assert answers[0]["context"]["tier"] == "model"


@pytest.mark.parametrize("there", [1, 2, 3])
def test_decisions_of_a_batch_are_recorded_as_one_and_one_that_lacks_some_is_not_kept_waiting(
    policy: Policy, there: int
) -> None:
    log, recorded = Log(), queue.SimpleQueue[list[int]]()
    opened = RulesThread(
        policy,
        Engine(),
        log,
        lambda *_: None,
        Debts(64),
        record_together=lambda decisions: recorded.put([ticket for _, ticket in decisions]),
    )
    for ticket in range(there):
        opened.submit(request(ticket, "erase", together=Together(batch=1, size=3)))
    opened.start()
    assert recorded.get(timeout=PATIENCE_S) == list(range(there))
    opened.submit(request(9, "erase"))
    assert log.decided_tickets.get(timeout=PATIENCE_S) == 9
    assert opened.stop(PATIENCE_S)
