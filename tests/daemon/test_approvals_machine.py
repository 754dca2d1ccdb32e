"""Any sequence of requests, verdicts, ends, clocks and restarts: an allow needs its complete, unexpired,
unused chain, and goes through with it. Long: ./scripts/test -m soak tests/daemon/test_approvals_machine.py"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.build import Fates
from thor_policy.core import records
from thor_policy.core.approvals import Person
from thor_policy.core.decisions import Decision
from thor_policy.core.requests import NEVER_NS, Action, Caller, Entity, Evaluation, Json, Request
from thor_policy.core.results import Committed
from thor_policy.daemon.approvals import ApprovalTasks
from thor_policy.engine.absent import NoEngine
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.telemetry.clocks import Instant

HOLDS_S, PENDING_S, REQUEST_S = 100, 200, 150
PACK = """\
name: deploys
version: "{version}"
description: Who lifts what.
model: never
default: deny
outcomes:
  - label: allow
  - label: mfa
  - label: ask
    lifted_by: {{any_of: [{chains}], break_glass: {{group: rescue}}, holds_s: 100, pending_s: 200,
                request_within_s: 150}}
  - label: deny
"""
RULES = """\
- {{id: deploy, when: 'action.name == "deploy"', outcome: {outcome}, because: So.}}
- {{id: frozen, when: 'given("context.freeze", false)', outcome: deny, because: No.}}
- {{id: change, when: '!given("context.change", "").startsWith("CHG")', outcome: deny, because: No.}}
"""
ORDINARY = "[{role: manager}, {role: security}], [{group: board, quorum: 2}]"
MORE = "[{role: manager}, {role: security}, {role: director}]"
#: The versions of the pack: their chains, and the outcome of a deploy.
VERSIONS = {"1": (ORDINARY, "ask"), "2": (ORDINARY, "ask"), "3": (MORE, "ask"), "4": (ORDINARY, "deny")}
#: The same in words of the model: each step is what a person needs, and a chain ends with its last step.
CHAINS = {
    "1": [["manager", "security"], ["board", "board"]],
    "3": [["manager", "security", "director"]],
}
CHAINS |= {"2": CHAINS["1"], "4": CHAINS["1"]}

#: What each person may be, and which uid each has.
PEOPLE: dict[str, tuple[set[str], int]] = {
    "kim": ({"manager"}, 2),
    "lee": ({"security"}, 3),
    "ann": ({"manager", "security", "board"}, 4),
    "bo": ({"board"}, 5),
    "dan": ({"director"}, 6),
    "bob": ({"rescue"}, 7),
    "zoe": ({"manager", "board"}, 8),
    "app": ({"manager", "board", "security"}, 1),
    "eve": (set(), 9),
}
GROUPS = {"board", "rescue"}
#: Questions: the subject, and the context. `same` differs from `base` only where nothing reads it.
QUESTIONS: dict[str, tuple[str, dict[str, Json]]] = {
    "base": ("ivo", {"change": "CHG-1", "note": "one"}),
    "same": ("ivo", {"change": "CHG-1", "note": "two", "supported_obligations": ["x"]}),
    "other change": ("ivo", {"change": "CHG-2"}),
    "of zoe": ("zoe", {"change": "CHG-1"}),
    "frozen": ("ivo", {"change": "CHG-1", "freeze": True}),
}
#: Which of them are one question to an approval.
BOUND = {name: "base" if name == "same" else name for name in QUESTIONS}


def person(name: str) -> Person:
    has, uid = PEOPLE[name]
    return Person(
        name=name, roles=tuple(has - GROUPS), groups=tuple(has & GROUPS), aliases=(f"uid:{uid}", str(uid))
    )


def caller(uid: int) -> Caller:
    return Caller(transport="ipc", uid=uid, gid=uid, pid=1)


@pytest.fixture(scope="session")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pack]:
    loaded = {}
    for version, (chains, outcome) in VERSIONS.items():
        folder = tmp_path_factory.mktemp(f"pack-{version}")
        (folder / "pack.yaml").write_text(PACK.format(version=version, chains=chains))
        (folder / "rules.yaml").write_text(RULES.format(outcome=outcome))
        loaded[version] = pack_files.load(folder)
    return loaded


# ---------------------------------------------------------------- the model


@dataclass
class Clock:
    """Two clocks: seconds since a boot, and wall time. `sane_from`: both, when the journal was opened."""

    boot: int = 0
    up: float = 1_000.0
    wall: float = 1_790_000_000.0
    sane_from: tuple[float, float] = (0.0, 0.0)
    newest_event: float = 0.0

    def now(self) -> tuple[int, float, float]:
        return self.boot, self.up, self.wall

    def opened(self) -> None:
        self.sane_from = self.up, max(self.wall, self.newest_event)

    def passed(self, since: tuple[int, float, float], seconds: float) -> bool:
        """True if so many seconds have passed since then, or may have."""
        boot, up, wall = since
        if boot == self.boot:
            return self.up - up >= seconds
        up_at, least = self.sane_from
        if least + (self.up - up_at) - self.wall > 1:
            return True
        return self.wall < wall or self.wall - wall >= seconds


@dataclass
class Known:
    """What the model knows of a denied decision."""

    question: str
    uid: int
    version: str
    at: tuple[int, float, float]


@dataclass
class Chain:
    """What the model knows of a task."""

    decision: str
    of: Known
    urgency: str
    at: tuple[int, float, float]
    given: list[tuple[str, tuple[int, float, float]]] = field(default_factory=list)
    dead: bool = False
    used: int = 0

    def chains(self, version: str) -> list[list[str]]:
        return CHAINS[version] + ([["rescue"]] if self.urgency == "emergency" else [])

    def next_steps(self, version: str) -> list[tuple[list[str], int, tuple[int, float, float] | None]]:
        """Of each chain: its steps, how many were taken, and when the last one was."""
        result = []
        for chain in self.chains(version):
            taken, at = 0, None
            for name, when in self.given:
                if taken < len(chain) and chain[taken] in PEOPLE[name][0]:
                    taken, at = taken + 1, when
            result.append((chain, taken, at))
        return result

    def complete_at(self, version: str) -> tuple[int, float, float] | None:
        ends = [at for chain, taken, at in self.next_steps(version) if taken == len(chain) and at is not None]
        return min(ends, key=lambda end: [when for _, when in self.given].index(end)) if ends else None

    def is_open(self, clock: Clock) -> bool:
        return (
            not self.dead
            and self.complete_at(self.of.version) is None
            and not clock.passed(self.at, PENDING_S)
        )

    def is_approved(self, clock: Clock, version: str) -> bool:
        at = self.complete_at(version)
        return not self.dead and at is not None and not clock.passed(at, HOLDS_S)

    def party(self, name: str) -> bool:
        """True for the subject of the question, and for its caller."""
        return name == QUESTIONS[self.of.question][0] or PEOPLE[name][1] == self.of.uid

    def admits(self, name: str, *, approves: bool) -> bool:
        if self.party(name) or (approves and any(name == other for other, _ in self.given)):
            return False
        steps = self.next_steps(self.of.version)
        return any(taken < len(chain) and chain[taken] in PEOPLE[name][0] for chain, taken, _ in steps)


class Machine(RuleBasedStateMachine):
    """A journal with its approvals and a policy, beside the model."""

    packs: dict[str, Pack]
    picks = st.integers(0, 50)
    names = st.sampled_from(sorted(PEOPLE))
    questions = st.sampled_from(sorted(QUESTIONS))
    uids = st.sampled_from([1, 1, 1, 2])

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="tp-")
        self.path = Path(self.folder.name) / "policy_decisions.db"
        self.clock = Clock()
        self.numbers = count(1)
        self.denied: dict[str, Known] = {}
        self.chains: dict[str, Chain] = {}
        self.version = "1"
        self.allowed_by: list[str] = []

    @initialize(
        questions=st.lists(st.sampled_from(["base", "same", "of zoe"]), min_size=1, max_size=3),
        approved=st.integers(1, 3),
    )
    def begin(self, questions: list[str], approved: int) -> None:
        """Most sequences have something to lift from the start."""
        self.open()
        for number, question in enumerate(questions):
            self.ask(question, 1)  # type: ignore[call-arg]
            if len(self.denied) > len(self.chains):
                self.request(-1, "normal", 1)  # type: ignore[call-arg]
                if number < approved:
                    self.complete(-1)  # type: ignore[call-arg]

    def open(self) -> None:
        self.fates = Fates()
        self.clock.opened()
        self.journal = Journal(
            self.path,
            on_committed=self.committed,
            synchronous="OFF",
            now=lambda: Instant(f"boot-{self.clock.boot}", round(self.clock.up * 1e9)),
            wall=lambda: self.clock.wall,
        )
        self.tasks = ApprovalTasks(self.journal)
        self.use_version(self.version)

    def committed(self, batch: list[Committed]) -> None:
        for commit in batch:  # as the daemon does
            if commit.kind == "decision":
                self.tasks.settle(commit.ticket)
        self.fates(batch)

    def close(self) -> None:
        self.journal.close()
        self.tasks.close()

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.close()
            if self.journal.seq:
                assert verify(self.path).ok
                with Reader(self.path) as reader, reader.snapshot() as connection:
                    used = connection.execute(
                        "SELECT approval_task FROM decisions WHERE approval_task IS NOT NULL"
                    ).fetchall()
                assert sorted(task for (task,) in used) == sorted(self.allowed_by)
                assert len(set(self.allowed_by)) == len(self.allowed_by)
        self.folder.cleanup()

    # ------------------------------------------------------------ what is done

    def use_version(self, version: str) -> None:
        self.version = version
        self.policy = Policy(NoEngine(), self.packs[version], approvals=self.tasks)

    def write(self, what: records.Record, uid: int, who: str | None = None) -> Committed:
        record_id = f"r{next(self.numbers)}"
        self.journal.write(
            what,
            record_id=record_id,
            at=self.clock.wall,
            caller=caller(uid),
            ticket=next(self.numbers),
            person=None if who is None else person(who),
        )
        return self.fate()

    def fate(self) -> Committed:
        (fate,) = self.fates.wait(1)
        if fate.error is None:
            self.clock.newest_event = self.clock.wall
        return fate

    def decide(self, question: str, uid: int, task: str | None) -> tuple[int, Decision]:
        subject, context = QUESTIONS[question]
        ticket = next(self.numbers)
        request = Request(
            ticket=ticket,
            evaluation=Evaluation(
                subject=Entity(type="user", id=subject),
                action=Action(name="deploy"),
                resource=Entity(type="service", id="billing"),
                context=context if task is None else context | {"approval": {"id": task}},
            ),
            caller=caller(uid),
            received_at=self.clock.wall,
            received_ns=0,
            deadline_ns=NEVER_NS,
        )
        return ticket, self.policy.decide(request)

    def record(self, ticket: int, decision: Decision) -> Committed:
        self.journal.decided(decision, ticket)
        return self.fate()

    def note(self, question: str, uid: int, decision: Decision) -> None:
        if decision.offer is not None:
            self.denied[decision.id] = Known(question, uid, self.version, self.clock.now())

    def may_lift(self, question: str, uid: int, task: str) -> bool:
        """What the model says."""
        chain = self.chains.get(task)
        return (
            chain is not None
            and not chain.used
            and VERSIONS[self.version][1] == "ask"
            and question != "frozen"
            and (BOUND[question], uid) == (BOUND[chain.of.question], chain.of.uid)
            and chain.is_approved(self.clock, chain.of.version)
            and chain.is_approved(self.clock, self.version)
        )

    def lifted(self, task: str, decision: Decision, fate: Committed) -> bool:
        """True if a client would get an allow."""
        if not decision.allow or fate.error is not None:
            return False
        self.chains[task].used += 1
        self.allowed_by.append(task)
        return True

    def pick(self, number: int, known: dict[str, Any]) -> str:
        """One of the newest, because the others are mostly over."""
        newest = list(known)[-6:]
        return newest[number % len(newest)]

    # ------------------------------------------------------------ the rules of the machine

    @rule(question=questions, uid=uids)
    def ask(self, question: str, uid: int) -> None:
        ticket, decision = self.decide(question, uid, None)
        fate = self.record(ticket, decision)
        assert not decision.allow
        assert fate.error is None
        self.note(question, uid, decision)

    @precondition(lambda self: self.denied)
    @rule(number=picks, urgency=st.sampled_from(["normal", "urgent", "emergency"]), uid=uids)
    def request(self, number: int, urgency: Any, uid: int) -> None:
        decision_id = self.pick(number, self.denied)
        known = self.denied[decision_id]
        same = [chain for chain in self.chains.values() if chain.decision == decision_id]
        taken = any(
            chain.is_open(self.clock) or (chain.is_approved(self.clock, chain.of.version) and not chain.used)
            for chain in same
        )
        fate = self.write(records.ApprovalRequest(decision_id=decision_id, urgency=urgency), uid)
        fits = uid == known.uid and not taken and not self.clock.passed(known.at, REQUEST_S)
        assert (fate.error is None) is fits, fate.message
        if fits:
            assert fate.task is not None
            self.chains[fate.task.id] = Chain(decision_id, known, urgency, self.clock.now())

    @precondition(lambda self: self.chains)
    @rule(number=picks, name=names, approves=st.sampled_from([True, True, True, True, False]))
    def judge(self, number: int, name: str, approves: bool) -> None:
        task = self.pick(number, self.chains)
        chain = self.chains[task]
        admitted = chain.is_open(self.clock) and chain.admits(name, approves=approves)
        what: records.Record = records.Approve(task=task) if approves else records.Deny(task=task)
        fate = self.write(what, PEOPLE[name][1], name)
        assert (fate.error is None) is admitted, fate.message
        if admitted and approves:
            chain.given.append((name, self.clock.now()))
        elif admitted:
            chain.dead = True

    @precondition(lambda self: self.chains)
    @rule(number=picks, name=names)
    def judge_as_nobody(self, number: int, name: str) -> None:
        fate = self.write(records.Approve(task=self.pick(number, self.chains)), PEOPLE[name][1])
        assert fate.error == "unauthorized"

    @precondition(lambda self: self.chains)
    @rule(number=picks)
    def complete(self, number: int) -> None:
        """Two people give what is missing, where they can: so that chains are often complete."""
        for name in ("kim", "lee"):  # or the board, by `judge`
            self.judge(number, name, approves=True)  # type: ignore[call-arg]

    @precondition(lambda self: self.chains)
    @rule(number=picks, uid=st.sampled_from([1, 1, 2, 3]))
    def cancel(self, number: int, uid: int) -> None:
        task = self.pick(number, self.chains)
        chain = self.chains[task]
        alive = chain.is_open(self.clock) or (
            chain.is_approved(self.clock, chain.of.version) and not chain.used
        )
        fate = self.write(records.Cancel(task=task), uid)
        assert (fate.error is None) is (alive and uid == chain.of.uid), fate.message
        if fate.error is None:
            chain.dead = True

    @precondition(lambda self: self.chains)
    @rule(number=picks)
    def ask_the_same(self, number: int) -> None:
        self.ask_again(number, None, 1)  # type: ignore[call-arg]

    @rule(question=questions, urgency=st.sampled_from(["normal", "emergency"]))
    def ask_and_request(self, question: str, urgency: Any) -> None:
        before = len(self.denied)
        self.ask(question, 1)  # type: ignore[call-arg]
        if len(self.denied) > before:
            self.request(-1, urgency, 1)  # type: ignore[call-arg]

    @precondition(lambda self: self.chains)
    @rule(number=picks, question=st.none() | questions, uid=uids)
    def ask_again(self, number: int, question: str | None, uid: int) -> None:
        task = self.pick(number, self.chains)
        chain = self.chains[task]
        question, uid = question or chain.of.question, uid if question else chain.of.uid
        expected = self.may_lift(question, uid, task)
        ticket, decision = self.decide(question, uid, task)
        fate = self.record(ticket, decision)
        assert self.lifted(task, decision, fate) is expected, decision.reason_code
        self.note(question, uid, decision)

    @precondition(lambda self: self.chains)
    @rule(number=picks, seconds=st.sampled_from([0, 0, 60, 150]), cancels=st.booleans())
    def ask_twice_at_once(self, number: int, seconds: int, cancels: bool) -> None:
        """Two questions are decided before the journal has either; time passes, or the task is cancelled."""
        task = self.pick(number, self.chains)
        chain = self.chains[task]
        question, uid = chain.of.question, chain.of.uid
        first, second = (self.decide(question, uid, task) for _ in range(2))
        if cancels:
            self.cancel(number, uid)  # type: ignore[call-arg]
        self.advance(seconds)
        expected = self.may_lift(question, uid, task)
        lifted = [
            self.lifted(task, decision, self.record(ticket, decision)) for ticket, decision in (first, second)
        ]
        assert lifted.count(True) == int(expected)

    def advance(self, seconds: float) -> None:
        self.clock.up += seconds
        self.clock.wall += seconds

    @rule(
        seconds=st.sampled_from([1, 30, 60, 99, 100, 150, 250]),
        set_by=st.sampled_from([0, 0, 0, -100_000, -250, -90, -50, -30, -0.5, 0.5, 90, 250, 100_000]),
    )
    def time_passes_and_somebody_sets_the_clock(self, seconds: float, set_by: float) -> None:
        self.advance(seconds if not set_by else 0)
        self.clock.wall += set_by

    @rule(off=st.sampled_from([None, None, 1, 20, 90, 250]))
    def start_again(self, off: float | None) -> None:
        """The daemon in the same boot, or the whole machine, which was off for some seconds."""
        self.close()
        if off is not None:
            self.clock.boot += 1
            self.clock.up, self.clock.wall = 5.0, self.clock.wall + off
        self.open()

    @rule(version=st.sampled_from(["1", "1", "1", "2", "3", "4"]))
    def load(self, version: str) -> None:
        self.use_version(version)

    @rule()
    def sweep(self) -> None:
        """What has expired is recorded as expired, so that no clock revives it."""
        before = self.tasks.counters["expired"]
        self.tasks.turn(0)
        if expired := self.tasks.counters["expired"] - before:
            assert {fate.error for fate in self.fates.wait(expired)} == {None}
            self.clock.newest_event = self.clock.wall
        for chain in self.chains.values():
            over = not chain.is_open(self.clock) and not chain.is_approved(self.clock, chain.of.version)
            chain.dead = chain.dead or over

    @rule(task=st.sampled_from(["", "unknown", "r1"]))
    def ask_with_an_approval_that_nobody_gave(self, task: str) -> None:
        ticket, decision = self.decide("base", 1, task)
        assert not decision.allow
        self.record(ticket, decision)


@pytest.mark.parametrize("examples", [15, pytest.param(1_000, marks=pytest.mark.soak)])
def test_no_sequence_allows_without_a_complete_unexpired_and_unused_chain(
    packs: dict[str, Pack], examples: int
) -> None:
    machine: Callable[[], Machine] = type("Loaded", (Machine,), {"packs": packs})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=40, suppress_health_check=list(HealthCheck)
        ),
    )
