"""The loop of the engine thread: decisions first, task steps between them, then shadow and idle work."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from tests.build import write_pack
from thor_policy.core.decisions import Decision, Scored
from thor_policy.core.engine import Fixed, FreeText, Steps
from thor_policy.core.errors import EngineError, RequestError
from thor_policy.core.requests import Action, Caller, Entity, Evaluation, Request
from thor_policy.daemon.engine_thread import EngineThread, Idle
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import Residents
from thor_policy.testing import StubEngine

#: No test waits longer than this, in seconds.
PATIENCE_S = 20
NEVER = 2**62
STEPS = (Fixed(text=" allow\nbecause:"), FreeText(name="reasoning", max_tokens=4))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return pack_files.load(write_pack(tmp_path_factory.mktemp("pack")))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return pack_files.load(write_pack(tmp_path_factory.mktemp("other"), version="2", system="Judge."))


class Gate(StubEngine):
    """A stub that scores one question for each release of `open`; it queues the questions it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.questions = threading.Semaphore(0), queue.SimpleQueue[str]()

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        self.questions.put(question)
        assert self.open.acquire(timeout=PATIENCE_S)
        return super().score(key, question, deadline_ns)


class Log:
    """A decision log that queues what it is given, in order."""

    def __init__(self) -> None:
        self.entries: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def decided(self, decision: Decision, ticket: int | None = None) -> None:
        self.entries.put(("decided", ticket))

    def explained(self, *arguments: Any) -> None:
        self.entries.put(("explained", arguments[0]))

    def shadowed(self, served: Decision, shadow: Decision, at: float) -> None:
        self.entries.put(("shadowed", (served, shadow)))

    def next(self) -> tuple[str, Any]:
        return self.entries.get(timeout=PATIENCE_S)


class Idling:
    """Idle work that is always due; its first turn after `log` is set is noted there."""

    def __init__(self) -> None:
        self.log: Log | None = None

    def wait_s(self, now_ns: int) -> float | None:
        return 0.0

    def turn(self, policy: Policy, now_ns: int, at: float) -> None:
        if self.log is not None:
            self.log.entries.put(("idle", None))
            self.log = None


def request(ticket: int, **changes: Any) -> Request:
    evaluation = Evaluation(
        subject=Entity(type="user", id=f"u{ticket}"),
        action=Action(name="look"),
        resource=Entity(type="doc", id="d"),
    )
    fields: dict[str, Any] = {
        "ticket": ticket,
        "evaluation": evaluation,
        "caller": Caller(transport="inproc"),
        "received_at": 1.8e9,
        "received_ns": time.monotonic_ns(),
        "deadline_ns": NEVER,
    }
    return Request(**fields | changes)


class Assessing(EngineThread):
    """An engine thread whose requests are assessed where they are put."""

    def start(self) -> Policy:
        self.policy = super().start()
        return self.policy

    def put(self, request: Request) -> None:
        self.submit(self.policy.assess(request))


Open = Callable[..., tuple[Assessing, Log, "queue.SimpleQueue[Any]"]]


@pytest.fixture
def open_engine_thread(pack: Pack) -> Iterator[Open]:
    opened: list[Assessing] = []

    def open_it(
        engine: StubEngine | None = None,
        *,
        on_outcome: Callable[..., None] | None = None,
        idle: Idle | None = None,
        **options: Any,
    ) -> Any:
        log, results = Log(), queue.SimpleQueue[Any]()
        collect = on_outcome or (lambda ticket, result: results.put((ticket, result)))
        works = () if idle is None else (idle,)
        engine_thread = Assessing(
            lambda: Policy(engine or StubEngine(), pack, **options), log, collect, works
        )
        engine_thread.start()
        opened.append(engine_thread)
        return engine_thread, log, results

    yield open_it
    for engine_thread in opened:
        assert engine_thread.stop(PATIENCE_S)


def result(future: Future[Any]) -> Any:
    return future.result(timeout=PATIENCE_S)


class TestTasks:
    def test_pass_their_return_value_to_the_future(self, open_engine_thread: Open) -> None:
        engine_thread, _, _ = open_engine_thread()

        def task(policy: Policy) -> Steps[int]:
            yield
            yield
            return policy.residents.active.loaded.golden_scores

        assert result(engine_thread.do(task)) == 2
        assert engine_thread.task_step_ms_max > 0

    def test_pass_their_exception_to_the_future_and_the_next_task_runs(
        self, open_engine_thread: Open
    ) -> None:
        engine_thread, _, _ = open_engine_thread()

        def failing(_: Policy) -> Steps[None]:
            yield
            raise EngineError("no")

        def running(_: Policy) -> Steps[str]:
            yield
            return "done"

        futures: list[Future[Any]] = [engine_thread.do(failing), engine_thread.do(running)]
        with pytest.raises(EngineError, match="no"):
            result(futures[0])
        assert result(futures[1]) == "done"

    def test_take_one_step_after_each_waiting_decision(self, open_engine_thread: Open) -> None:
        """A task does not hold up a stream of decisions, and the decisions do not hold up the task."""
        engine, order = Gate(), list[str]()
        engine_thread, log, _ = open_engine_thread(engine)

        def task(_: Policy) -> Steps[None]:
            for step in range(3):
                order.append(f"step {step}")
                yield

        engine_thread.put(request(0))
        engine.questions.get(timeout=PATIENCE_S)  # now the engine thread waits at the gate
        future = engine_thread.do(task)
        for ticket in (1, 2, 3, 4):
            engine_thread.put(request(ticket))
        for _ in range(5):
            engine.open.release()
            _, ticket = log.next()
            order.append(f"decision {ticket}")
        result(future)
        decided_at = [order.index(f"decision {ticket}") for ticket in range(5)]
        assert decided_at == sorted(decided_at)
        steps_at = [order.index(f"step {step}") for step in range(3)]
        assert steps_at[0] < decided_at[2]
        assert steps_at[2] < decided_at[4]

    def test_cut_off_by_a_stop_raise_shutting_down(self, open_engine_thread: Open) -> None:
        engine_thread, _, _ = open_engine_thread()
        begun, closed = threading.Event(), threading.Event()

        def endless(_: Policy) -> Steps[None]:
            try:
                while True:
                    begun.set()
                    yield
            finally:
                closed.set()

        futures: list[Future[Any]] = [engine_thread.do(endless), engine_thread.do(endless)]
        assert begun.wait(PATIENCE_S)
        assert engine_thread.stop(PATIENCE_S)
        assert closed.is_set()
        for future in (*futures, engine_thread.do(endless)):
            with pytest.raises(RequestError, match="stopping"):
                result(future)


class TestRetiring:
    def test_a_pack_finishes_though_decisions_never_stop_and_an_explanation_needs_the_pack(
        self, open_engine_thread: Open, other: Pack
    ) -> None:
        class Needy(StubEngine):
            """A stub whose explanations all wait for the prefix that they begin with."""

            def needs(self, key: str) -> bool:
                return self.explaining > 0

        tickets, ended = itertools.count(1), threading.Event()

        def ask_again(*_: Any) -> None:  # on the engine thread, so that its queue is never empty
            if not ended.is_set():
                engine_thread.put(request(next(tickets)))

        engine_thread, _, _ = open_engine_thread(Needy(), on_outcome=ask_again)

        def task(policy: Policy) -> Steps[None]:
            resident = yield from policy.loading(other, None, 0.0)
            policy.engine.explain(0, resident.key, policy.engine.score(resident.key, "", NEVER), STEPS, NEVER)
            yield from policy.retiring(resident)

        ask_again()
        try:
            assert result(engine_thread.do(task)) is None
        finally:
            ended.set()


class TestUnloading:
    def test_a_pack_answers_the_requests_that_named_it_before_it_was_unloaded(
        self, open_engine_thread: Open, pack: Pack, other: Pack
    ) -> None:
        engine = Gate()
        engine_thread, _, results = open_engine_thread(engine)
        loading = engine_thread.do(lambda policy: policy.loading(other, None, 0.0))
        engine.open.release()  # the golden question of the load
        resident, digest = result(loading), other.info.sha256

        def add(policy: Policy) -> Steps[None]:
            yield
            policy.set_residents(policy.residents.with_candidate(resident))

        def remove(policy: Policy) -> Steps[None]:
            yield
            policy.set_residents(policy.residents.without(resident))

        result(engine_thread.do(add))
        engine.questions.get(timeout=PATIENCE_S)
        engine_thread.put(request(1))
        engine.questions.get(timeout=PATIENCE_S)
        removed = engine_thread.do(remove)
        for ticket in (2, 3):
            engine_thread.put(request(ticket, pack=digest))
        engine.open.release()
        engine.open.release()
        result(removed)
        retired = engine_thread.do(lambda policy: policy.retiring(resident))
        engine.open.release()
        result(retired)
        answers = [results.get(timeout=PATIENCE_S) for _ in range(3)]
        assert [answer.pack for _, answer in answers] == [pack.info, other.info, other.info]
        with pytest.raises(RequestError, match="is not loaded"):
            engine_thread.put(request(4, pack=digest))

    def test_a_request_that_waits_is_assessed_again_where_its_pack_was_exchanged(
        self, open_engine_thread: Open, pack: Pack, other: Pack
    ) -> None:
        engine_thread, _, results = open_engine_thread()
        resident = result(engine_thread.do(lambda policy: policy.loading(other, None, 0.0)))
        engine_thread.policy.set_residents(engine_thread.policy.residents.with_candidate(resident))
        first = engine_thread.policy.residents.active
        engine_thread.policy.set_residents(engine_thread.policy.residents.with_active(resident))
        named, unnamed = (
            engine_thread.policy.assess(request(ticket, pack=name))
            for ticket, name in ((1, other.info.sha256), (2, None))
        )
        engine_thread.policy.set_residents(Residents(first))
        result(engine_thread.do(lambda policy: policy.retiring(resident)))
        engine_thread.submit(named)
        engine_thread.submit(unnamed)
        _, refused = results.get(timeout=PATIENCE_S)
        assert refused.error.code == "not_found"
        _, decision = results.get(timeout=PATIENCE_S)
        assert decision.pack == pack.info


class TestShadow:
    @pytest.fixture
    def shadowing(self, open_engine_thread: Open, other: Pack) -> Callable[..., Any]:
        def open_it(engine: StubEngine | None = None, **options: Any) -> Any:
            engine_thread, log, results = open_engine_thread(engine, **options)

            def task(policy: Policy) -> Steps[None]:
                resident = yield from policy.loading(other, None, 0.0)
                policy.set_residents(policy.residents.with_candidate(resident).with_shadow(resident))

            future = engine_thread.do(task)
            if isinstance(engine, Gate):
                engine.open.release()  # the golden question of the load
            result(future)
            if isinstance(engine, Gate):
                engine.questions.get(timeout=PATIENCE_S)
            return engine_thread, log, results

        return open_it

    def test_decides_after_the_served_decision_and_sends_no_reply(
        self, shadowing: Callable[..., Any], pack: Pack, other: Pack
    ) -> None:
        engine_thread, log, results = shadowing()
        engine_thread.put(request(1))
        assert log.next() == ("decided", 1)
        kind, (served, shadow) = log.next()
        assert kind == "shadowed"
        assert (served.pack, shadow.pack) == (pack.info, other.info)
        assert shadow.evaluation == served.evaluation
        ticket, _ = results.get(timeout=PATIENCE_S)
        assert ticket == 1
        assert results.empty()
        assert (engine_thread.counters["decisions"], engine_thread.counters["shadows"]) == (1, 1)

    def test_waits_until_no_decision_waits(self, shadowing: Callable[..., Any]) -> None:
        engine = Gate()
        engine_thread, log, _ = shadowing(engine)
        engine_thread.put(request(1))
        engine.questions.get(timeout=PATIENCE_S)
        engine_thread.put(request(2))
        engine_thread.put(request(3))
        for _ in range(6):
            engine.open.release()
        kinds = [log.next()[0] for _ in range(6)]
        assert kinds == ["decided"] * 3 + ["shadowed"] * 3

    def test_comes_before_idle_work(self, shadowing: Callable[..., Any]) -> None:
        engine, idle = Gate(), Idling()
        engine_thread, log, _ = shadowing(engine, idle=idle)
        engine_thread.put(request(1))
        engine.questions.get(timeout=PATIENCE_S)
        idle.log = log
        for _ in range(2):
            engine.open.release()
        assert [log.next()[0] for _ in range(3)] == ["decided", "shadowed", "idle"]

    def test_decisions_beyond_max_shadows_are_dropped_and_counted(
        self, shadowing: Callable[..., Any]
    ) -> None:
        engine = Gate()
        engine_thread, log, _ = shadowing(engine, max_shadows=2)
        engine_thread.put(request(1))
        engine.questions.get(timeout=PATIENCE_S)
        for ticket in (2, 3, 4):
            engine_thread.put(request(ticket))
        for _ in range(6):
            engine.open.release()
        kinds = [log.next()[0] for _ in range(6)]
        assert kinds == ["decided"] * 4 + ["shadowed"] * 2

        def count(policy: Policy) -> Steps[int]:
            yield
            return policy.counters["shadows_dropped"]

        assert result(engine_thread.do(count)) == 2


class Woken:
    """Idle work that is due only once it was woken."""

    def __init__(self) -> None:
        self.due, self.done = False, threading.Event()

    def wait_s(self, now_ns: int) -> float | None:
        return 0.0 if self.due else None

    def turn(self, policy: Policy, now_ns: int, at: float) -> None:
        self.due = False
        self.done.set()


class TestIdleWork:
    def test_begins_when_it_is_woken_while_nothing_is_decided(self, open_engine_thread: Open) -> None:
        work = Woken()
        engine_thread, _, _ = open_engine_thread(idle=work)
        work.due = True
        engine_thread.wake()
        assert work.done.wait(PATIENCE_S)
