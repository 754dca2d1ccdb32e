"""What a canary may decide: no floor is looser than that of the active pack."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import CALLER, CANARY, write_pack, write_rules_only_pack
from thor_policy.core.decisions import Floor
from thor_policy.core.engine import all_steps
from thor_policy.core.requests import NEVER_NS, Action, Entity, Evaluation, Request, Risk
from thor_policy.engine.engines import Engines
from thor_policy.policy import pack_files
from thor_policy.policy.canary import bounded, is_looser, misfits
from thor_policy.policy.decider import ACTIVE_FLOOR, Policy
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import OnTrial
from thor_policy.testing import StubEngine

LABELS = ("allow", "require_mfa", "require_attestation", "deny")
RANK = LABELS.index
RISKS: tuple[Risk, ...] = ("low", "medium", "high", "critical")


@st.composite
def floors(draw: st.DrawFn, rules: tuple[str, ...] = ("a", "b", "c")) -> Floor:
    outcome = draw(st.sampled_from(LABELS))
    fired = tuple(draw(st.lists(st.sampled_from(rules), unique=True)))
    return Floor(
        outcome=outcome,
        final=outcome == LABELS[-1] or draw(st.booleans()),
        rules=fired,
        clauses=fired,
        because=f"{outcome} by {fired}" if fired else None,
        risk=draw(st.sampled_from(RISKS)),
    )


@given(own=floors(), bound=floors(("b", "x", "y")))
def test_the_floor_of_a_candidate_is_the_stricter_of_both(own: Floor, bound: Floor) -> None:
    floor = bounded(own, bound, LABELS)
    assert RANK(floor.outcome) == max(RANK(own.outcome), RANK(bound.outcome))
    assert floor.because == (own if floor is own else bound).because
    assert (floor.facts, floor.risk, floor.traits) == (own.facts, own.risk, own.traits)
    assert set(own.rules) <= set(floor.rules)


@given(own=floors(), bound=floors())
def test_a_floor_at_the_strictest_outcome_asks_no_model(own: Floor, bound: Floor) -> None:
    floor = bounded(own, bound, LABELS)
    assert floor.final or floor.outcome != LABELS[-1]


@given(own=floors(), bound=floors())
def test_a_candidate_that_is_not_looser_is_left_as_it_is(own: Floor, bound: Floor) -> None:
    if not is_looser(own, bound, LABELS):
        assert RANK(own.outcome) >= RANK(bound.outcome)
        assert bounded(own, bound, LABELS) is own


@pytest.mark.parametrize(
    ("own", "bound", "looser"),
    [
        (("allow", True), ("allow", True), False),
        (("allow", True), ("allow", False), True),  # the active pack leaves it to the model
        (("allow", False), ("allow", True), False),
        (("deny", True), ("allow", False), False),
        (("require_mfa", False), ("deny", True), True),
        (("require_mfa", True), ("allow", False), True),
    ],
)
def test_a_looser_candidate_asks_for_less_or_asks_no_model(
    own: tuple[str, bool], bound: tuple[str, bool], looser: bool
) -> None:
    floors = [Floor(outcome=outcome, final=final) for outcome, final in (own, bound)]
    assert is_looser(*floors, LABELS) is looser


# ---------------------------------------------------------------- decisions

OUTCOMES = ("allow", "require_mfa", "deny")
ACTIONS = ("burn", "copy", "move")
#: For each action the outcome of a rule and whether it is final; None: no rule.
Book: TypeAlias = dict[str, tuple[str, bool] | None]
books = st.fixed_dictionaries(
    {name: st.none() | st.tuples(st.sampled_from(OUTCOMES), st.booleans()) for name in ACTIONS}
)


def pack_of(folder: Path, version: str, book: Book) -> Pack:
    rules = [
        f"- {{id: {name}, when: 'action.name == \"{name}\"', outcome: {rule[0]}, "
        f"final: {str(rule[1]).lower()}, clause: R1, because: So.}}\n"
        for name, rule in book.items()
        if rule is not None
    ]
    write_pack(folder, version=version, system=f"Judge {version}.", rules="".join(rules) or "[]")
    return pack_files.load(folder)


@settings(max_examples=40)
@given(active=books, candidate=books, bias=st.sampled_from([None, *OUTCOMES]))
def test_no_decision_of_a_candidate_is_looser_than_the_floor_of_the_active_pack(
    active: Book, candidate: Book, bias: str | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours = pack_of(Path(folder) / "a", "1", active)
        theirs = pack_of(Path(folder) / "b", "2", candidate)
    policy = Policy(Engines(StubEngine(bias=bias)), ours)
    resident = all_steps(policy.loading(theirs, None, 0.0))
    running = replace(CANARY, share=1.0, pack=theirs.info, against=ours.info)
    policy.set_residents(policy.residents.with_trial(OnTrial(running, resident)))
    for name in ACTIONS:
        question = Evaluation(
            subject=Entity(type="user", id="a"), action=Action(name=name), resource=Entity(type="doc", id="d")
        )
        request = policy.residents.enrolled(
            Request(
                ticket=1,
                evaluation=question,
                caller=CALLER,
                received_at=0.0,
                received_ns=0,
                deadline_ns=NEVER_NS,
            )
        )
        decision, bound = policy.decide(request), ours.book.apply(question, 0.0)
        assert decision.pack == theirs.info
        assert OUTCOMES.index(decision.outcome) >= OUTCOMES.index(bound.outcome)
        assert OUTCOMES.index(decision.floor.outcome) >= OUTCOMES.index(bound.outcome)
        assert decision.trial is not None
        assert (decision.trial.bound is not None) == (decision.reason_code == ACTIVE_FLOOR)


# ---------------------------------------------------------------- which candidates fit

APPROVED = """
outcomes:
  - {label: allow}
  - {label: require_mfa, lifted_by: {steps: [{role: lead}]%s}}
  - {label: deny}
"""
STEP_UP = """
outcomes:
  - {label: allow}
  - {label: require_mfa, obligations: [{id: m, type: m}]%s}
  - {label: deny}
"""
FILE = "sources: {people: {of: subject, attributes: {role: {type: string}}, table: {path: people.yaml}}}\n"


def manifest(folder: Path, more: str, *, reads: str = "true", outcome: str = "require_mfa") -> Pack:
    """A pack of rules alone with this section, and one rule that reads these members."""
    folder.mkdir(parents=True)
    outcomes = (
        "" if "outcomes:" in more else "outcomes: [{label: allow}, {label: require_mfa}, {label: deny}]\n"
    )
    head = 'name: alone\nversion: "1"\ndescription: d.\nmodel: never\ndefault: deny\n'
    (folder / "pack.yaml").write_text(head + outcomes + more)
    (folder / "people.yaml").write_text("- {id: a, role: dev}\n")
    rule = f"- {{id: r, when: '{reads}', outcome: {outcome}, because: It is so.}}\n"
    (folder / "rules.yaml").write_text(rule)
    return pack_files.load(folder)


def test_another_version_of_a_pack_fits(tmp_path: Path) -> None:
    ours, theirs = (
        pack_files.load(write_pack(tmp_path / version, version=version, system=f"Judge {version}."))
        for version in ("1", "2")
    )
    assert misfits(ours, theirs) == []


def test_another_list_of_outcomes_does_not_fit(tmp_path: Path) -> None:
    three = pack_files.load(write_rules_only_pack(tmp_path / "a", rules="[]"))
    two = manifest(tmp_path / "b", "outcomes: [{label: allow}, {label: deny}]\n", outcome="deny")
    turned = manifest(tmp_path / "c", "outcomes: [{label: allow}, {label: deny}, {label: require_mfa}]\n")
    for candidate in (two, turned):
        (problem,) = misfits(three, candidate)
        assert "give it the same outcomes in the same order" in problem


@pytest.mark.parametrize(
    ("ours", "theirs", "cure"),
    [
        (APPROVED % "", "outcomes: [{label: allow}, {label: require_mfa}, {label: deny}]", "make them equal"),
        (STEP_UP % ", step_up: true", STEP_UP % "", "make them equal"),
        (FILE, FILE.replace("string", "int"), "rename one"),
    ],
)
def test_what_would_make_an_answer_looser_does_not_fit(
    tmp_path: Path, ours: str, theirs: str, cure: str
) -> None:
    (problem,) = misfits(manifest(tmp_path / "a", ours), manifest(tmp_path / "b", theirs))
    assert cure in problem


def test_approvals_that_would_bind_fewer_members_do_not_fit(tmp_path: Path) -> None:
    reads, rest = "has(context.amount) && context.amount > 5", "true"
    ours = manifest(tmp_path / "a", APPROVED % "", reads=reads)
    theirs = manifest(tmp_path / "b", APPROVED % "", reads=rest)
    (problem,) = misfits(ours, theirs)
    assert "lifted_by.binds" in problem
    stated = APPROVED % ", binds: [context.amount]"
    ours = manifest(tmp_path / "c", stated, reads=reads)
    theirs = manifest(tmp_path / "d", stated, reads=rest)
    assert misfits(ours, theirs) == []


def test_a_source_whose_file_differs_does_not_fit(tmp_path: Path) -> None:
    ours, theirs = manifest(tmp_path / "a", FILE), manifest(tmp_path / "b", FILE)
    assert misfits(ours, theirs) == []
    (tmp_path / "b" / "people.yaml").write_text("- {id: a, role: lead}\n")
    (problem,) = misfits(ours, theirs)
    assert "whose values count for both" in problem
