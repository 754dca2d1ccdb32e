"""The engine thread's loop: decisions first, errands in between, the shadow when nothing else is left."""

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
    """A stub that scores one question each time `allow` is called; it says in which order it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.asked = threading.Semaphore(0), queue.SimpleQueue[str]()

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        self.asked.put(question)
        assert self.open.acquire(timeout=PATIENCE_S)
        return super().score(key, question, deadline_ns)


class Log:
    """What a journal is told, in order."""

    def __init__(self) -> None:
        self.told: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def decided(self, decision: Decision, ticket: int | None = None) -> None:
        self.told.put(("decided", ticket))

    def explained(self, *told: Any) -> None:
        self.told.put(("explained", told[0]))

    def shadowed(self, served: Decision, shadow: Decision, at: float) -> None:
        self.told.put(("shadowed", (served, shadow)))

    def next(self) -> tuple[str, Any]:
        return self.told.get(timeout=PATIENCE_S)


class Idling:
    """Idle work that is always due; it says so to a log, once."""

    def __init__(self) -> None:
        self.log: Log | None = None

    def wait_s(self, now_ns: int) -> float | None:
        return 0.0

    def turn(self, policy: Policy, now_ns: int, at: float) -> None:
        if self.log is not None:
            self.log.told.put(("idle", None))
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


Open = Callable[..., tuple[EngineThread, Log, "queue.SimpleQueue[Any]"]]


@pytest.fixture
def open_worker(pack: Pack) -> Iterator[Open]:
    opened: list[EngineThread] = []

    def open_it(
        engine: StubEngine | None = None,
        *,
        tell: Callable[..., None] | None = None,
        idle: Idle | None = None,
        **options: Any,
    ) -> Any:
        log, told = Log(), queue.SimpleQueue[Any]()
        heard = tell or (lambda *one: told.put(one))
        worker = EngineThread(lambda: Policy(engine or StubEngine(), pack, **options), log, heard, idle)
        worker.start()
        opened.append(worker)
        return worker, log, told

    yield open_it
    for worker in opened:
        assert worker.stop(PATIENCE_S)


def result(future: Future[Any]) -> Any:
    return future.result(timeout=PATIENCE_S)


class TestErrands:
    def test_come_to_what_they_return(self, open_worker: Open) -> None:
        worker, _, _ = open_worker()

        def errand(policy: Policy) -> Steps[int]:
            yield
            yield
            return policy.residents.active.loaded.golden_scores

        assert result(worker.do(errand)) == 2
        assert worker.task_step_ms_max > 0

    def test_raise_what_they_raise_and_the_next_one_runs(self, open_worker: Open) -> None:
        worker, _, _ = open_worker()

        def failing(_: Policy) -> Steps[None]:
            yield
            raise EngineError("no")

        def running(_: Policy) -> Steps[str]:
            yield
            return "done"

        futures: list[Future[Any]] = [worker.do(failing), worker.do(running)]
        with pytest.raises(EngineError, match="no"):
            result(futures[0])
        assert result(futures[1]) == "done"

    def test_take_one_step_after_each_decision_that_waits(self, open_worker: Open) -> None:
        """Neither holds the other up: not the errand a stream of decisions, nor they it."""
        engine, order = Gate(), list[str]()
        worker, log, _ = open_worker(engine)

        def errand(_: Policy) -> Steps[None]:
            for step in range(3):
                order.append(f"step {step}")
                yield

        worker.submit(request(0))
        engine.asked.get(timeout=PATIENCE_S)  # from here on it waits at the gate, and all the rest behind it
        future = worker.do(errand)
        for ticket in (1, 2, 3, 4):
            worker.submit(request(ticket))
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

    def test_that_the_end_cuts_off_say_so(self, open_worker: Open) -> None:
        worker, _, _ = open_worker()
        begun, closed = threading.Event(), threading.Event()

        def endless(_: Policy) -> Steps[None]:
            try:
                while True:
                    begun.set()
                    yield
            finally:
                closed.set()

        futures: list[Future[Any]] = [worker.do(endless), worker.do(endless)]
        assert begun.wait(PATIENCE_S)
        assert worker.stop(PATIENCE_S)
        assert closed.is_set()
        for future in (*futures, worker.do(endless)):
            with pytest.raises(RequestError, match="stopping"):
                result(future)


class TestRetiring:
    def test_ends_although_decisions_never_stop_and_an_explanation_has_to_come_first(
        self, open_worker: Open, other: Pack
    ) -> None:
        class Needy(StubEngine):
            """A stub whose explanations all wait for the prefix that they begin with."""

            def needs(self, key: str) -> bool:
                return self.explaining > 0

        tickets, ended = itertools.count(1), threading.Event()

        def ask_again(*_: Any) -> None:  # on the engine's thread, so that its queue is never empty
            if not ended.is_set():
                worker.submit(request(next(tickets)))

        worker, _, _ = open_worker(Needy(), tell=ask_again)

        def errand(policy: Policy) -> Steps[None]:
            resident = yield from policy.loading(other, None, 0.0)
            policy.engine.explain(0, resident.key, policy.engine.score(resident.key, "", NEVER), STEPS, NEVER)
            yield from policy.retiring(resident)

        ask_again()
        try:
            assert result(worker.do(errand)) is None
        finally:
            ended.set()


class TestLeaving:
    def test_a_pack_answers_those_who_named_it_before_it_left(
        self, open_worker: Open, pack: Pack, other: Pack
    ) -> None:
        engine = Gate()
        worker, _, told = open_worker(engine)
        loading = worker.do(lambda policy: policy.loading(other, None, 0.0))
        engine.open.release()  # our own question
        resident, digest = result(loading), other.info.sha256

        def joining(policy: Policy) -> Steps[None]:
            yield
            policy.set_residents(policy.residents.with_candidate(resident))

        def leaving(policy: Policy) -> Steps[None]:
            yield
            policy.set_residents(policy.residents.without(resident))

        result(worker.do(joining))
        engine.asked.get(timeout=PATIENCE_S)
        worker.submit(request(1))
        engine.asked.get(timeout=PATIENCE_S)
        left = worker.do(leaving)
        for ticket in (2, 3):
            worker.submit(request(ticket, pack=digest))
        engine.open.release()
        engine.open.release()
        result(left)
        retired = worker.do(lambda policy: policy.retiring(resident))
        engine.open.release()
        result(retired)
        answers = [told.get(timeout=PATIENCE_S) for _ in range(3)]
        assert [answer.pack for _, answer in answers] == [pack.info, other.info, other.info]
        worker.submit(request(4, pack=digest))
        _, refused = told.get(timeout=PATIENCE_S)
        assert refused.error.code == "not_found"


class TestShadow:
    @pytest.fixture
    def shadowing(self, open_worker: Open, other: Pack) -> Callable[..., Any]:
        def open_it(engine: StubEngine | None = None, **options: Any) -> Any:
            worker, log, told = open_worker(engine, **options)

            def errand(policy: Policy) -> Steps[None]:
                resident = yield from policy.loading(other, None, 0.0)
                policy.set_residents(policy.residents.with_candidate(resident).with_shadow(resident))

            future = worker.do(errand)
            if isinstance(engine, Gate):
                engine.open.release()  # our own question
            result(future)
            if isinstance(engine, Gate):
                engine.asked.get(timeout=PATIENCE_S)
            return worker, log, told

        return open_it

    def test_answers_what_was_served_afterwards_and_tells_nobody(
        self, shadowing: Callable[..., Any], pack: Pack, other: Pack
    ) -> None:
        worker, log, told = shadowing()
        worker.submit(request(1))
        assert log.next() == ("decided", 1)
        kind, (served, shadow) = log.next()
        assert kind == "shadowed"
        assert (served.pack, shadow.pack) == (pack.info, other.info)
        assert shadow.evaluation == served.evaluation
        assert [ticket for ticket, _ in [told.get(timeout=PATIENCE_S)]] == [1]
        assert told.empty()
        assert (worker.counters["decisions"], worker.counters["shadows"]) == (1, 1)

    def test_waits_until_nothing_else_is_to_be_done(self, shadowing: Callable[..., Any]) -> None:
        engine = Gate()
        worker, log, _ = shadowing(engine)
        worker.submit(request(1))
        engine.asked.get(timeout=PATIENCE_S)
        worker.submit(request(2))
        worker.submit(request(3))
        for _ in range(6):
            engine.open.release()
        kinds = [log.next()[0] for _ in range(6)]
        assert kinds == ["decided"] * 3 + ["shadowed"] * 3

    def test_idle_work_waits_until_the_shadow_has_answered_too(self, shadowing: Callable[..., Any]) -> None:
        engine, idle = Gate(), Idling()
        worker, log, _ = shadowing(engine, idle=idle)
        worker.submit(request(1))
        engine.asked.get(timeout=PATIENCE_S)
        idle.log = log
        for _ in range(2):
            engine.open.release()
        assert [log.next()[0] for _ in range(3)] == ["decided", "shadowed", "idle"]

    def test_those_above_the_limit_are_left_out_and_counted(self, shadowing: Callable[..., Any]) -> None:
        engine = Gate()
        worker, log, _ = shadowing(engine, max_shadows=2)
        worker.submit(request(1))
        engine.asked.get(timeout=PATIENCE_S)
        for ticket in (2, 3, 4):
            worker.submit(request(ticket))
        for _ in range(6):
            engine.open.release()
        kinds = [log.next()[0] for _ in range(6)]
        assert kinds == ["decided"] * 4 + ["shadowed"] * 2

        def count(policy: Policy) -> Steps[int]:
            yield
            return policy.counters["shadows_dropped"]

        assert result(worker.do(count)) == 2
