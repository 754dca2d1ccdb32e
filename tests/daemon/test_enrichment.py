"""Enrichment: what it takes, when it writes, what stops it, and that no decision waits for it."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec import structs

from tests.build import write_pack
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core.decisions import Decision, Floor, Scored, Traits
from thor_policy.core.engine import WrittenExplanation, all_steps
from thor_policy.core.errors import EngineError
from thor_policy.core.records import Maintenance
from thor_policy.core.requests import Action, Caller, Entity, Evaluation, Json, Request
from thor_policy.daemon.day_budget import DAY_NS
from thor_policy.daemon.enrichment import Enricher, Plan
from thor_policy.daemon.service import serving
from thor_policy.journal.events import EnrichmentBody, EnrichmentPrivate, Event
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.testing import StubEngine

S = 10**9
PLAN = Plan(mode="always", on=("exception",), per_day=100, s_per_day=3_600.0, timeout_s=60.0, quiet_s=0.25)
#: Steps of an enrichment on the stub: three texts and a choice.
STEPS = 4
PATIENCE_S = 60.0


class Clocked(StubEngine):
    """A stub each of whose scores and steps takes `step_ns` of the world's clock, and that may fail."""

    def __init__(self, world: World) -> None:
        super().__init__(bias="deny", writes="It is so.")
        self.world, self.step_ns = world, S // 10
        self.failing = ""
        self.scores = 0

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        if self.failing == "score":
            raise EngineError("the decode failed")
        self.scores += 1
        self.world.now_ns += self.step_ns
        return super().score(key, question, 2**63 - 1)

    def enrich(self, ticket: int, key: str, scored: Scored, steps: Any, deadline_ns: int) -> None:
        super().enrich(ticket, key, scored, steps, 2**63 - 1)

    def enrich_step(self) -> WrittenExplanation | None:
        if self.failing == "step":
            raise EngineError("the decode failed")
        self.world.now_ns += self.step_ns
        return super().enrich_step()


class World:
    """An enricher, its engine and policy, and one clock; `now_ns` is what every clock shows."""

    def __init__(self, pack: Pack, plan: Plan = PLAN, **more: Any) -> None:
        self.now_ns = 1_000 * S
        self.engine = Clocked(self)
        self.policy = Policy(self.engine, pack, on_judged=self.offer)
        self.recorded: list[Event] = []
        self.woken = 0
        self.enricher = Enricher(
            self.recorded.append,
            plan,
            wake=self.wake,
            day_clock=lambda: self.now_ns,
            clock=lambda: self.now_ns,
            **more,
        )
        self.tickets = itertools.count(1)

    def offer(self, *arguments: Any) -> None:
        self.enricher.offer(*arguments)

    def wake(self) -> None:
        self.woken += 1

    @property
    def counts(self) -> dict[str, int]:
        return {name: count for name, count in self.enricher.counters.items() if count}

    def decide(self, **changes: Any) -> Decision:
        """Decide a question that the rules leave to the model."""
        evaluation = Evaluation(
            subject=Entity(type="user", id="u"),
            action=Action(name="look"),
            resource=Entity(type="doc", id="d"),
            context={"details": "a text"},
        )
        fields: dict[str, Any] = {
            "ticket": next(self.tickets),
            "evaluation": evaluation,
            "caller": Caller(transport="inproc"),
            "received_at": 1.8e9,
            "received_ns": 0,
            "deadline_ns": 2**63 - 1,
        }
        return self.policy.decide(Request(**fields | changes))

    def turn(self) -> bool:
        """Wait until there is something to do, and take a turn; False if there never is, as things are."""
        wait_s = self.enricher.wait_s(self.now_ns)
        if wait_s is None:
            return False
        self.now_ns += round(wait_s * S)
        assert self.enricher.wait_s(self.now_ns) == 0
        self.enricher.turn(self.policy, self.now_ns, 1.8e9)
        return True

    def run(self) -> list[Event]:
        """Take turns until there is nothing to do; returns what was recorded meanwhile."""
        before = len(self.recorded)
        while self.turn():
            pass
        return self.recorded[before:]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return pack_files.load(write_pack(tmp_path_factory.mktemp("pack")))


@pytest.fixture
def world(pack: Pack) -> World:
    return World(pack)


class TestResult:
    def test_an_enrichment_is_an_event_with_its_texts_and_the_model(self, world: World) -> None:
        decision = world.decide()
        (event,) = world.run()
        assert (event.kind, event.subject_id, event.at) == ("enrichment", decision.id, 1.8e9)
        assert isinstance(event.body, EnrichmentBody)
        assert (event.body.why, event.body.model.sha256) == (("always",), world.engine.model.sha256)
        assert event.body.device_ms == pytest.approx(STEPS * 100)
        assert isinstance(event.private, EnrichmentPrivate)
        assert (event.private.risk, event.private.rationale) == ("It is so.", "It is so.")
        assert world.counts == {"enriched": 1}

    def test_a_question_that_the_model_scored_is_not_scored_again(self, world: World) -> None:
        world.decide()
        world.run()
        assert world.engine.scores == 1

    def test_a_decision_of_rules_alone_is_scored_for_its_enrichment(self, world: World) -> None:
        decision = world.decide()
        without = changed_decision(decision, scored=None, tier="rule")
        world.run()
        world.enricher.offer(request(), world.policy.residents.active, without)
        (event,) = world.run()
        assert world.engine.scores == 2
        assert event.body.device_ms == pytest.approx(STEPS * 100 + 100)  # type: ignore[union-attr]


def request(**changes: Any) -> Request:
    evaluation = Evaluation(
        subject=Entity(type="user", id="u"), action=Action(name="x"), resource=Entity(type="d", id="d")
    )
    fields: dict[str, Any] = {
        "ticket": 1,
        "evaluation": evaluation,
        "caller": Caller(transport="inproc"),
        "received_at": 0.0,
        "received_ns": 0,
        "deadline_ns": 1,
    }
    return Request(**fields | changes)


def changed_decision(decision: Decision, **changes: Any) -> Decision:
    return structs.replace(decision, **changes)


class TestWhatIsTaken:
    def test_the_mode_never_takes_nothing_whatever_the_caller_wants(self, pack: Pack) -> None:
        world = World(pack, changed(PLAN, mode="never"))
        world.decide(enrich="always")
        assert world.run() == []
        assert (world.woken, world.enricher.wait_s(world.now_ns)) == (0, None)

    def test_the_mode_hybrid_takes_what_has_a_trigger_and_what_a_caller_wants(self, pack: Pack) -> None:
        world = World(pack, changed(PLAN, mode="hybrid"))
        routine = world.decide()
        wanted = world.decide(enrich="always")
        floor = Floor(outcome="allow", final=False, traits=Traits(is_exception=True))
        exception = changed_decision(routine, id="e", floor=floor)
        world.enricher.offer(request(), world.policy.residents.active, exception)
        world.enricher.offer(request(enrich="never"), world.policy.residents.active, exception)
        assert [(event.subject_id, event.body.why) for event in world.run()] == [  # type: ignore[union-attr]
            (wanted.id, ("asked",)),
            ("e", ("exception",)),
        ]

    def test_what_waits_is_bounded_and_what_was_dropped_is_counted(self, pack: Pack) -> None:
        world = World(pack, changed(PLAN, most_waiting=2))
        kept = [world.decide().id for _ in range(5)][:2]
        assert world.enricher.status().waiting == 2
        assert [event.subject_id for event in world.run()] == kept
        assert world.counts == {"enriched": 2, "enrichments_dropped": 3}

    def test_a_question_with_a_masked_value_is_not_put_to_the_model_again(self, pack: Pack) -> None:
        world = World(pack, changed(PLAN, masked=("/context/details",)))
        world.decide()
        assert world.run() == []
        assert world.counts == {"enrichments_masked": 1}

    def test_a_decision_of_a_failed_engine_is_not_enriched(self, world: World) -> None:
        world.engine.failing = "score"
        assert world.decide().tier == "fallback"
        assert world.enricher.wait_s(world.now_ns) is None


class TestWhenItWrites:
    def test_it_begins_and_goes_on_only_after_a_quiet_time_without_decisions(self, world: World) -> None:
        world.decide()
        assert world.enricher.wait_s(world.now_ns) == 0.25
        world.now_ns += S // 4
        world.enricher.turn(world.policy, world.now_ns, 0.0)
        world.enricher.turn(world.policy, world.now_ns, 0.0)
        assert world.enricher.wait_s(world.now_ns) == 0
        world.decide()
        assert world.enricher.wait_s(world.now_ns) == 0.25
        assert world.recorded == []
        assert len(world.run()) == 2

    def test_decisions_that_never_stop_leave_it_no_turn(self, world: World) -> None:
        for _ in range(1_000):
            world.decide()
            world.now_ns += S // 5
            assert world.enricher.wait_s(world.now_ns) > 0  # type: ignore[operator]

    def test_each_turn_takes_one_decode_at_most(self, world: World) -> None:
        world.decide()
        while world.enricher.wait_s(world.now_ns) is not None:
            world.now_ns += round((world.enricher.wait_s(world.now_ns) or 0) * S)
            before_ns = world.now_ns
            world.enricher.turn(world.policy, world.now_ns, 0.0)
            assert world.now_ns - before_ns <= world.engine.step_ns
        assert len(world.recorded) == 1


class TestFailure:
    @pytest.mark.parametrize("where", ["step", "score"])
    def test_a_failure_is_counted_and_the_next_decision_is_enriched(self, world: World, where: str) -> None:
        first = world.decide()
        second = changed_decision(first, id="second")
        if where == "score":
            world.run()
            world.recorded.clear()
            world.enricher.offer(
                request(), world.policy.residents.active, changed_decision(first, scored=None, tier="rule")
            )
        world.engine.failing = where
        assert world.run() == []
        world.engine.failing = ""
        world.enricher.offer(request(), world.policy.residents.active, second)
        assert [event.subject_id for event in world.run()] == ["second"]
        assert world.counts["enrichments_failed"] == 1

    def test_one_that_is_not_written_in_time_is_given_up(self, pack: Pack) -> None:
        world = World(pack, changed(PLAN, timeout_s=0.25))
        world.decide()
        assert world.run() == []
        assert world.counts == {"enrichments_late": 1}

    def test_a_text_of_which_nothing_holds_is_counted_as_empty(self, world: World) -> None:
        world.engine._writes = "It costs 4711."
        world.decide()
        assert world.run() == []
        assert world.counts == {"enrichments_empty": 1}

    def test_an_erasure_forgets_what_waits_and_what_is_written(self, world: World) -> None:
        for _ in range(3):
            world.decide()
        world.turn()
        world.turn()
        world.enricher.forget()
        assert world.run() == []
        assert world.counts == {"enrichments_forgotten": 3}
        world.decide()
        assert len(world.run()) == 1

    def test_a_pack_that_was_unloaded_meanwhile_is_not_asked(self, world: World, tmp_path: Path) -> None:
        world.decide()
        other = pack_files.load(write_pack(tmp_path / "other", version="9"))
        resident = all_steps(world.policy.loading(other, None, 0.0))
        old = world.policy.residents.active
        world.policy.set_residents(world.policy.residents.with_replaced(old, resident))
        all_steps(world.policy.retiring(old))
        assert world.run() == []
        assert world.counts == {"enrichments_forgotten": 1}


class TestBudget:
    def test_the_number_stops_it_and_it_goes_on_at_the_days_turn(self, pack: Pack) -> None:
        world = World(pack, changed(PLAN, per_day=2))
        began_ns = world.now_ns
        for _ in range(3):
            world.decide()
        for _ in range(2 * (STEPS + 1)):
            world.turn()
        assert len(world.recorded) == 2
        assert world.enricher.status().today == 2
        wait_s = world.enricher.wait_s(world.now_ns)
        assert wait_s is not None
        assert world.now_ns + round(wait_s * S) == began_ns + DAY_NS
        assert len(world.run()) == 1
        status = world.enricher.status()
        assert (status.today, status.days) == (1, 1)

    def test_device_time_that_runs_out_stops_the_one_that_is_written(self, pack: Pack) -> None:
        world = World(pack, changed(PLAN, s_per_day=0.55))
        world.decide()
        world.decide()
        for _ in range(STEPS + 1):
            world.turn()
        assert len(world.recorded) == 1
        for _ in range(3 + 1):
            world.turn()
        assert world.counts == {"enriched": 1, "enrichments_over_budget": 1}
        assert world.enricher.status().today_s == pytest.approx(0.6)
        assert not world.run()

    def test_what_was_used_before_a_restart_counts(self, pack: Pack) -> None:
        world = World(pack, changed(PLAN, per_day=3), used=[(999 * S, S), (998 * S, S)])
        for _ in range(2):
            world.decide()
        for _ in range(STEPS + 1):
            world.turn()
        assert len(world.recorded) == 1
        assert world.enricher.status().today == 3
        assert world.enricher.wait_s(world.now_ns) > 80_000  # type: ignore[operator]

    @pytest.mark.parametrize("nothing", [{"per_day": 0}, {"s_per_day": 0.0}])
    def test_a_budget_of_zero_is_never_waited_for(self, pack: Pack, nothing: Json) -> None:
        world = World(pack, changed(PLAN, **nothing))
        world.decide()
        assert world.enricher.wait_s(world.now_ns) is None

    def test_status_shows_a_new_day_though_no_turn_came_since(self, world: World) -> None:
        world.decide()
        world.run()
        assert world.enricher.status().today == 1
        world.now_ns += 2 * DAY_NS
        assert world.enricher.status().today == 0


class Budgeted(RuleBasedStateMachine):
    """Decisions, turns, erasures and time in any order, beside a plain account of each day."""

    pack: Pack
    PER_DAY, S_PER_DAY, WAITING = 3, 1.5, 4

    def __init__(self) -> None:
        super().__init__()
        plan = changed(PLAN, per_day=self.PER_DAY, s_per_day=self.S_PER_DAY, most_waiting=self.WAITING)
        self.world = World(self.pack, plan)
        self.began_ns = self.world.now_ns
        self.taken = 0
        self.decided: set[str] = set()

    @rule()
    def decide(self) -> None:
        self.decided.add(self.world.decide().id)
        self.taken += 1

    @rule(count=st.integers(1, 12))
    def take_turns_that_are_due(self, count: int) -> None:
        world = self.world
        for _ in range(count):
            if world.enricher.wait_s(world.now_ns) != 0:
                return
            world.enricher.turn(world.policy, world.now_ns, float(world.now_ns))

    @rule(seconds=st.sampled_from([0.1, 0.25, 1.0, 70.0, 43_200.0, 86_400.0, 200_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now_ns += int(seconds * S)

    @rule()
    def erase(self) -> None:
        self.world.enricher.forget()

    @invariant()
    def no_day_has_more_than_its_budget(self) -> None:
        days: dict[int, list[Event]] = {}
        for event in self.world.recorded:
            days.setdefault(int((event.at - self.began_ns) // DAY_NS), []).append(event)
        for of_day in days.values():
            # one that began on the day before may end on this day
            assert len(of_day) <= self.PER_DAY + 1
        status = self.world.enricher.status()
        assert status.today <= self.PER_DAY
        assert status.today_s <= self.S_PER_DAY + 0.1 + 1e-9

    @invariant()
    def every_decision_has_one_fate_and_no_event_is_of_another(self) -> None:
        world = self.world
        status = world.enricher.status()
        fates = sum(world.enricher.counters.values())
        assert fates + status.waiting + status.running == self.taken
        assert status.waiting <= self.WAITING
        subjects = [event.subject_id for event in world.recorded]
        assert len(subjects) == len(set(subjects)) == world.enricher.counters["enriched"]
        assert set(subjects) <= self.decided


def test_budget_clock_and_erasures_in_any_order(pack: Pack) -> None:
    Budgeted.pack = pack
    run_state_machine_as_test(Budgeted, settings=settings(max_examples=40, stateful_step_count=40))


# ---------------------------------------------------------------- in a daemon


QUESTION: Json = {
    "subject": {"type": "user", "id": "ivo", "properties": {"role": "developer"}},
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "production"},
}


class Gate(StubEngine):
    """A stub whose enrichments take one step for each release of `open`; it says when it takes one."""

    def __init__(self) -> None:
        super().__init__(writes="It is so.")
        self.open, self.steps = threading.Semaphore(0), queue.SimpleQueue[None]()

    def enrich_step(self) -> WrittenExplanation | None:
        self.steps.put(None)
        assert self.open.acquire(timeout=PATIENCE_S)
        return super().enrich_step()


@pytest.fixture
def enriching(config: Config) -> Config:
    return changed(config, enrichment="hybrid", enrichment_quiet_ms=0, cache_size=0)


def enrichments(config: Config, count: int) -> list[Json]:
    """The rows, which must be this many: the daemon has stopped."""
    with Reader(config.journal_path) as reader, reader.snapshot() as connection:
        rows = connection.execute("SELECT decision_id, why, risk FROM enrichments").fetchall()
    assert len(rows) == count
    return rows


def until(client: Client, holds: Callable[[Any], bool]) -> Any:
    """The status, once it is so."""
    while not holds(status := client.status()):
        pass
    return status


def test_a_daemon_enriches_on_idle_time_and_trace_log_status_and_metrics_show_it(
    enriching: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = StubEngine(writes="It is so.")
    with serving(enriching, load_engine=lambda _: stub), Client(enriching.endpoint) as client:
        wanted = client.evaluate(QUESTION, enrich="always")["context"]["decision_id"]
        refused = client.evaluate(QUESTION, enrich="never")["context"]["decision_id"]
        status = until(client, lambda status: status.enrichment.counters["enriched"] == 1)
        assert (status.enrichment.mode, status.enrichment.today) == ("hybrid", 1)
        samples = client.metrics()["thorpolicy_enrichments_today"]["samples"]
        assert [sample["value"] for sample in samples] == [1]
        monkeypatch.setenv("THOR_POLICY_ENDPOINT", enriching.endpoint)
        assert "1 of 200" in CliRunner().invoke(cli, ["status"]).stdout
    ((decision_id, why, risk),) = enrichments(enriching, 1)
    assert (decision_id, "asked" in why, risk) == (wanted, True, "It is so.")
    state = ["--state-dir", str(enriching.state_dir)]
    for command in (["trace", wanted, *state], ["log", "show", wanted, *state]):
        shown = CliRunner().invoke(cli, command).stdout
        assert "It is so." in shown
        assert stub.model.sha256[:12] in shown
    assert "It is so." not in CliRunner().invoke(cli, ["trace", refused, *state]).stdout
    assert verify(enriching.journal_path).ok


def test_a_decision_is_made_between_two_steps_of_an_enrichment(enriching: Config) -> None:
    engine = Gate()
    with serving(enriching, load_engine=lambda _: engine), Client(enriching.endpoint) as client:
        client.evaluate(QUESTION, enrich="always")
        for _ in range(2):
            engine.steps.get(timeout=PATIENCE_S)
            answers = queue.SimpleQueue[Any]()

            def ask(answers: queue.SimpleQueue[Any] = answers) -> None:
                with Client(enriching.endpoint, timeout_ms=60_000) as other:
                    answers.put(other.evaluate(QUESTION, enrich="never", deadline_ms=60_000))

            asking = threading.Thread(target=ask)
            asking.start()
            until(client, lambda status: status.engine.waiting == 1)
            engine.open.release()
            assert answers.get(timeout=PATIENCE_S)["context"]["outcome"]
            asking.join()
            assert client.status().enrichment.running  # type: ignore[union-attr]
        for _ in range(STEPS):
            engine.open.release()
        until(client, lambda status: status.enrichment.counters["enriched"] == 1)


def test_a_stop_leaves_nothing_half_done_and_the_next_start_counts_what_was_used(enriching: Config) -> None:
    engine = Gate()
    with serving(enriching, load_engine=lambda _: engine), Client(enriching.endpoint) as client:
        client.evaluate(QUESTION, enrich="always")
        for _ in range(STEPS):
            engine.steps.get(timeout=PATIENCE_S)
            engine.open.release()
        until(client, lambda status: status.enrichment.counters["enriched"] == 1)
        client.evaluate(QUESTION, enrich="always")
        engine.steps.get(timeout=PATIENCE_S)
        for _ in range(9):
            engine.open.release()
    recorded = len(enrichments_of(enriching))
    again = StubEngine(writes="It is so.")
    with serving(enriching, load_engine=lambda _: again), Client(enriching.endpoint) as client:
        status = client.status().enrichment
        assert status is not None
        assert (status.waiting, status.running, status.today) == (0, False, recorded)
    enrichments(enriching, recorded)
    assert verify(enriching.journal_path).ok


def enrichments_of(config: Config) -> list[Json]:
    with Reader(config.journal_path) as reader, reader.snapshot() as connection:
        return connection.execute("SELECT seq FROM enrichments").fetchall()


def test_an_erasure_forgets_what_waits(enriching: Config) -> None:
    busy = changed(enriching, enrichment_quiet_ms=3_600_000)
    with serving(busy, load_engine=lambda _: StubEngine()), Client(busy.endpoint) as client:
        client.evaluate(QUESTION, enrich="always")
        client.maintenance(Maintenance(task="erase", actor="user:ivo"))
        counters = client.status().enrichment.counters  # type: ignore[union-attr]
        assert counters["enrichments_forgotten"] == 1


@pytest.mark.model
def test_the_embedded_model_enriches_a_decision(enriching: Config) -> None:
    """The text of so small a model may not hold; then it is counted, and the trace is as it was."""
    small = changed(enriching, pack=str(data_path("prompts") / "team-governance"))
    with serving(small), Client(small.endpoint, timeout_ms=60_000) as client:
        client.evaluate(QUESTION, enrich="always")
        status = until(
            client,
            lambda status: any(
                status.enrichment.counters[name] for name in ("enriched", "enrichments_empty")
            ),
        )
        assert status.enrichment.today_s > 0
        assert status.enrichment.counters["enrichments_failed"] == 0
