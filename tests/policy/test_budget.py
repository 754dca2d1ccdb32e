"""The time that rules may take: what stops them, what then is decided, and that no clock decides a replay."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.build import write_rules_only_pack
from thor_policy.core.decisions import Decision
from thor_policy.core.requests import NEVER_NS, Action, Caller, Entity, Evaluation, Json, Request
from thor_policy.engine.absent import NoEngine
from thor_policy.policy import budget, pack_files
from thor_policy.policy.budget import Budget, RulesStopped
from thor_policy.policy.decider import Policy
from thor_policy.policy.rule_specs import Rule
from thor_policy.policy.rules import RuleBook
from thor_policy.policy.vocabulary import Vocabulary

MS = 1_000_000


class Clock:
    """A clock that moves by `step` at each reading, and to wherever it is set."""

    def __init__(self, step: int = 0) -> None:
        self.now, self.step = 0, step

    def __call__(self) -> int:
        self.now += self.step
        return self.now


def stopped_by(limit: Budget) -> str | None:
    try:
        limit.check()
    except RulesStopped as stop:
        return stop.code
    return None


class TestBudget:
    def test_is_spent_when_the_thread_has_used_its_processor_time(self) -> None:
        wall, cpu = Clock(), Clock()
        limit = Budget(10, now_ns=wall, cpu_ns=cpu)
        wall.now = cpu.now = 10 * MS - 1
        assert stopped_by(limit) is None
        wall.now = cpu.now = 10 * MS
        assert stopped_by(limit) == "rules_budget"

    def test_is_not_spent_while_the_process_waits_or_is_stopped(self) -> None:
        wall, cpu = Clock(), Clock()
        limit = Budget(10, now_ns=wall, cpu_ns=cpu)
        for seconds in range(1, 6):
            wall.now, cpu.now = seconds * 1000 * MS, seconds * MS
            assert stopped_by(limit) is None
        wall.now, cpu.now = 5000 * MS + 5 * MS, 10 * MS
        assert stopped_by(limit) == "rules_budget"

    def test_ends_at_the_deadline_of_the_request(self) -> None:
        wall, cpu = Clock(), Clock()
        limit = Budget(10, 3 * MS, now_ns=wall, cpu_ns=cpu)
        wall.now = 3 * MS - 1
        assert stopped_by(limit) is None
        wall.now = 3 * MS
        assert stopped_by(limit) == "rules_deadline"

    def test_stays_spent_whatever_the_clocks_say_later(self) -> None:
        wall, cpu = Clock(), Clock()
        limit = Budget(10, now_ns=wall, cpu_ns=cpu)
        wall.now = cpu.now = 11 * MS
        assert stopped_by(limit) == "rules_budget"
        wall.now = cpu.now = 0
        assert stopped_by(limit) == "rules_budget"

    def test_belongs_to_one_thread(self) -> None:
        spent = Budget(0, now_ns=Clock(), cpu_ns=Clock())
        faults: list[BaseException] = []

        def check_elsewhere() -> None:
            try:
                budget.check()
            except BaseException as error:
                faults.append(error)

        with budget.spending(spent):
            with pytest.raises(RulesStopped):
                budget.check()
            thread = threading.Thread(target=check_elsewhere)
            thread.start()
            thread.join()
        budget.check()
        assert faults == []


# ---------------------------------------------------------------- rules


def book(when: str, *, facts: dict[str, str] | None = None, final: bool = True) -> RuleBook:
    return RuleBook(
        outcomes=("allow", "confirm", "deny"),
        facts=facts or {},
        rules=[Rule(id="ok", when=when, outcome="allow", because="Fine.", final=final)],
        risk='"low"',
        words={"bad": ["rm"]},
        vocabulary={"context.names": Vocabulary(names=("one", "two"), unknown="confirm")},
    )


def evaluation(**context: Json) -> Evaluation:
    return Evaluation(
        subject=Entity(type="user", id="ivo"),
        action=Action(name="read"),
        resource=Entity(type="doc", id="guide"),
        context=context,
    )


CASES = {
    "one expression": (book("true"), evaluation()),
    "calls in one expression": (
        book('["a", "b", "c"].all(text, !mentions(text, "bad"))'),
        evaluation(),
    ),
    "layers of facts": (
        book("c", facts={"a": "dyn(plain(action.name))", "b": "dyn(a)", "c": "dyn(b && a)"}),
        evaluation(),
    ),
    "facts within the last program": (
        book("c", facts={"a": "plain(action.name)", "b": "a", "c": "b && a"}),
        evaluation(),
    ),
    "facts that run outside the last program after a failure": (
        book("true", facts={"a": "plain(action.name)", "b": "a && context.missing == 1"}),
        evaluation(),
    ),
    "expressions that run singly after a failure": (
        book("true", facts={"a": "dyn(context.missing == 1)", "b": "plain(action.name)"}),
        evaluation(),
    ),
    "a list of names": (book("true"), evaluation(names=["one", "tow", "three"])),
    "a name that may stand for others": (book("true"), evaluation(names="onne")),
}


def stops(rules: RuleBook, question: Evaluation) -> Iterator[int]:
    """The looks at the clock at which a budget can end, until one lasts to the end."""
    for n in itertools.count(1):
        try:
            rules.apply(question, 0.0, Budget(n / MS, now_ns=Clock(1), cpu_ns=Clock(10**15)))
        except RulesStopped:
            yield n
        else:
            return


#: How often each case looks at the clock: behind each program, and before each call and each name of a list.
LOOKS = {
    "one expression": 1,
    "calls in one expression": 4,
    "layers of facts": 5,
    "facts within the last program": 2,
    "facts that run outside the last program after a failure": 7,
    "expressions that run singly after a failure": 6,
    "a list of names": 5,
    "a name that may stand for others": 2,
}


@pytest.mark.parametrize("name", CASES)
def test_rules_are_stopped_at_each_look_and_end_as_ever_behind_the_last(name: str) -> None:
    rules, question = CASES[name]
    assert len(list(stops(rules, question))) == LOOKS[name]
    unlimited = rules.apply(question, 0.0)
    assert rules.apply(question, 0.0, Budget(10**6)) == unlimited


@pytest.mark.parametrize(
    "when",
    [
        'mentions(action.name, "bad") || true',
        'true || mentions(action.name, "bad")',
        '!(mentions(action.name, "bad") && false)',
        '["a", "b"].exists(text, mentions(text, "bad") || text == "b")',
    ],
)
def test_no_expression_can_absorb_a_spent_budget(when: str) -> None:
    with pytest.raises(RulesStopped):
        book(when).apply(evaluation(), 0.0, Budget(0))


def test_the_budget_of_one_request_is_not_that_of_the_next() -> None:
    rules = book("true")
    with pytest.raises(RulesStopped):
        rules.apply(evaluation(), 0.0, Budget(0))
    assert rules.apply(evaluation(), 0.0).outcome == "allow"
    assert rules.apply(evaluation(), 0.0, Budget(10**6)).final


@pytest.mark.parametrize("code", budget.STOP_CODES)
def test_the_floor_of_stopped_rules_is_strictest_and_final(code: budget.StopCode) -> None:
    floor = book("true").stopped(code)
    assert (floor.outcome, floor.final, floor.facts, floor.risk) == ("deny", True, {}, "critical")
    assert floor.because == {
        "rules_budget": "The rules were stopped at their budget of processor time, so the answer is deny.",
        "rules_deadline": "The rules were stopped at the request's deadline, so the answer is deny.",
    }[code]  # fmt: skip


# ---------------------------------------------------------------- decisions


@pytest.fixture
def policy(tmp_path: Path) -> Callable[[float | None], Policy]:
    rules = "- {id: ok, when: plain(action.name), outcome: allow, because: Fine.}"
    pack = pack_files.load(write_rules_only_pack(tmp_path / "pack", rules=rules))
    return lambda budget_ms: Policy(NoEngine(), pack, rule_budget_ms=budget_ms)


def request(deadline_ns: int = NEVER_NS) -> Request:
    return Request(
        ticket=1,
        evaluation=evaluation(),
        caller=Caller(transport="inproc"),
        received_at=1.8e9,
        received_ns=0,
        deadline_ns=deadline_ns,
    )


def essence(decision: Decision) -> tuple[object, ...]:
    return decision.outcome, decision.tier, decision.reason_code, decision.floor, decision.risk


def test_a_decision_of_stopped_rules_is_a_fallback_to_the_strictest_outcome(
    policy: Callable[[float | None], Policy],
) -> None:
    decider = policy(1e-6)
    decision = decider.decide(request())
    assert (decision.tier, decision.reason_code, decision.allow) == ("fallback", "rules_budget", False)
    assert decision.outcome == decider.residents.active.pack.strictest
    assert decision.explanation is not None
    assert (decision.explanation.source, decision.explanation.reasoning) == (
        "failure", decision.floor.because,
    )  # fmt: skip
    assert decider.counters["rules_stopped"] == 1
    assert policy(10_000.0).decide(request()).tier == "rule"


def test_without_a_budget_neither_time_nor_deadline_stops_rules(
    policy: Callable[[float | None], Policy],
) -> None:
    assert policy(None).decide(request()).tier == "rule"


@pytest.mark.parametrize("code", budget.STOP_CODES)
def test_a_stop_is_decided_again_without_a_clock(
    code: budget.StopCode, policy: Callable[[float | None], Policy]
) -> None:
    first = policy(None).decide(request(), stopped=code)
    assert (first.tier, first.reason_code) == ("fallback", code)
    if code == "rules_budget":
        assert essence(first) == essence(policy(1e-6).decide(request()))
