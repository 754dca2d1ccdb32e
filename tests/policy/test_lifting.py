"""Lifting: what a pack may say of approvals and step-ups, what approvals bind, what is left of an outcome."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from thor_policy.core.decisions import Decision
from thor_policy.core.errors import PackError
from thor_policy.core.lifting import Use, bare, presented, supported
from thor_policy.core.requests import Action, Caller, Entity, Evaluation, Json, Request
from thor_policy.engine.absent import NoEngine
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from thor_policy.policy.lifting import Reasked, content_of
from thor_policy.policy.lint import lint
from thor_policy.policy.pack import Pack
from thor_policy.policy.score_cache import ScoreCache
from thor_policy.testing import StubEngine

NEVER = 2**62
CALLER = Caller(transport="ipc", uid=1000, gid=1000, pid=42)
LIFTED_BY = "{steps: [{role: manager}]}"
PACK = """\
name: deploys
version: "1"
description: A deploy needs a person.
model: never
default: deny
outcomes:
  - label: allow
  - label: mfa
    obligations: [{id: second-factor, type: step-up}]
  - label: ask
    obligations: [{id: attest, type: custom}]
    lifted_by: LIFTED_BY
  - label: deny
"""
ASK = "- {id: ask, when: 'action.name == \"deploy\" && (true || (WHEN))', outcome: ask, because: So.}\n"
QUESTION = Evaluation(
    subject=Entity(type="user", id="zoe", properties={"role": "dev", "teams": ["web"], "note": "n"}),
    action=Action(name="deploy", properties={"mode": "fast", "note": "n"}),
    resource=Entity(type="service", id="billing", properties={"tier": "gold", "note": "n"}),
    context={"change": "CHG-1", "text": "as agreed", "deep": {"a": 1, "b": [1, 2]}, "note": "n"},
)


def write(
    folder: Path, *, lifted_by: str = LIFTED_BY, rules: str | None = None, pack: str = PACK, more: str = ""
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pack.yaml").write_text(pack.replace("LIFTED_BY", lifted_by) + more)
    (folder / "rules.yaml").write_text(ASK.replace("WHEN", "true") if rules is None else rules)
    return folder


class Answering:
    """Approvals that answer every question with one use, and keep what they were shown."""

    def __init__(self, use: Use | None = None) -> None:
        self._use = use
        self.shown: list[Reasked] = []

    def digest(self, content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    def honour(self, reasked: Reasked) -> Use:
        self.shown.append(reasked)
        assert self._use is not None, "nobody was to be asked"
        return self._use


def request_of(evaluation: Evaluation = QUESTION, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "ticket": 7,
        "evaluation": evaluation,
        "caller": CALLER,
        "received_at": 1_790_000_000.0,
        "received_ns": 0,
        "deadline_ns": NEVER,
    }
    return Request(**(values | changes))


def decided(
    pack: Pack, evaluation: Evaluation = QUESTION, approvals: Answering | None = None, **more: Any
) -> Decision:
    use = more.pop("use", None)
    return Policy(NoEngine(), pack, approvals=approvals).decide(request_of(evaluation, **more), use=use)


def with_context(**members: Json) -> Evaluation:
    return replace(QUESTION, context=QUESTION.context | members)


# ---------------------------------------------------------------- the two members that nothing else reads


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"id": "t"}, "t"),
        ({"id": "t", "status": "approved", "x": [1]}, "t"),
        ({"id": "x" * 256}, "x" * 256),
        *((hostile, "") for hostile in ("t", 7, True, [], ["t"], {}, {"id": None}, {"id": 7}, {"id": ["t"]})),
        ({"id": "x" * 257}, ""),
        ({"ID": "t"}, ""),
        ({"id": ""}, ""),
    ],
)
def test_an_approval_is_an_object_with_an_id_and_anything_else_is_one_that_nobody_knows(
    value: Json, expected: str | None
) -> None:
    assert presented({"approval": value}) == expected


def test_a_question_without_an_approval_presents_none() -> None:
    assert presented({}) is None
    assert presented({"Approval": {"id": "t"}, "context": {"approval": {"id": "t"}}}) is None


@pytest.mark.parametrize("value", [None, "mfa", {"mfa": True}, 7, True, {}])
def test_supported_obligations_are_a_list_of_names_and_anything_else_names_none(value: Json) -> None:
    assert supported({"supported_obligations": value}) == frozenset()


def test_of_a_list_of_obligations_only_the_names_count() -> None:
    assert supported({"supported_obligations": ["a", 1, None, ["b"], {"id": "c"}, "a"]}) == {"a"}
    assert supported({}) == frozenset()


def test_a_bare_question_lacks_the_two_members_and_nothing_else() -> None:
    assert bare(QUESTION) is QUESTION
    full = with_context(approval={"id": "t"}, supported_obligations=["a"])
    assert bare(full) == QUESTION
    nested = with_context(deep={"approval": 1}, approvals=[1])
    assert bare(nested) is nested
    assert bare(with_context(approval=None)) == QUESTION


# ---------------------------------------------------------------- what is bound


def offered(folder: Path, condition: str, **changes: str) -> Pack:
    return pack_files.load(write(folder, rules=ASK.replace("WHEN", condition), **changes))


def is_bound(pack: Pack, evaluation: Evaluation) -> bool:
    """True if an approval of the usual question is none of this one."""
    keeps = Answering(Use(task="t", code="approval_unknown"))
    first, second = (decided(pack, each, keeps).offer for each in (QUESTION, evaluation))
    assert first is not None
    assert second is not None
    return first.digest != second.digest


OTHER_CHANGE = with_context(change="CHG-2")
#: Ways in which a condition reads a member, and a question in which the member is another.
READINGS: list[tuple[str, Evaluation]] = [
    ('context.change == "CHG-1"', OTHER_CHANGE),
    ('context["change"] == "CHG-1"', OTHER_CHANGE),
    ('context.?change.orValue("") == "CHG-1"', OTHER_CHANGE),
    ("has(context.change)", OTHER_CHANGE),
    ("size(context.change) > 3", OTHER_CHANGE),
    ('context.change.startsWith("CHG")', OTHER_CHANGE),
    ('context.change.contains("1")', OTHER_CHANGE),
    ('context.change.lowerAscii() == "chg-1"', OTHER_CHANGE),
    ('context.change.matches("CHG-[0-9]")', OTHER_CHANGE),
    ('context.change.split("-").exists(part, part == "1")', OTHER_CHANGE),
    ('given("context.change", "") == "CHG-1"', OTHER_CHANGE),
    ("given('context.change', '') == 'CHG-1'".replace("'", '"'), OTHER_CHANGE),
    ('given("context." + "change", "") == "CHG-1"', OTHER_CHANGE),
    ('given("context.\\\\u0063hange", "") == "CHG-1"', OTHER_CHANGE),
    ('["context.change"].exists(path, given(path, "") == "CHG-1")', OTHER_CHANGE),
    ('cel.bind(c, context, c.change == "CHG-1")', OTHER_CHANGE),
    ('texts(context).exists(t, t == "CHG-1")', OTHER_CHANGE),
    ("context.deep.b.exists(item, item == 1)", with_context(deep={"a": 1, "b": [1, 2, 3]})),
    ("context.deep.b[0] == 1", with_context(deep={"a": 1, "b": [2, 2]})),
    ("context.deep.a == 1", with_context(deep={"a": 2, "b": [1, 2]})),
    ("context.deep.size() == 2", with_context(deep={"a": 2, "b": [1, 2]})),
    (
        'subject.properties.teams.all(team, team == "web")',
        replace(QUESTION, subject=replace(QUESTION.subject, properties={"teams": []})),
    ),
    (
        'resource.properties.tier.endsWith("d")',
        replace(QUESTION, resource=replace(QUESTION.resource, properties={"tier": "old"})),
    ),
    (
        "action.properties.mode.size() == 4",
        replace(QUESTION, action=replace(QUESTION.action, properties={"mode": "slow"})),
    ),
]


@pytest.mark.parametrize(("condition", "changed"), READINGS, ids=[condition for condition, _ in READINGS])
def test_a_member_that_a_rule_reads_in_any_way_is_bound(
    tmp_path: Path, condition: str, changed: Evaluation
) -> None:
    assert is_bound(offered(tmp_path, condition), changed)


@pytest.mark.parametrize(
    "more",
    [
        'facts: {is_one: context.change.contains("1")}\n',
        'risk: \'context.change.contains("1") ? "high" : "low"\'\n',
        "requires: {members: {context.change: string}}\n",
        "vocabulary: {context.change: {names: {CHG-1: one, CHG-2: two}}}\n",
        "trace: {judgment_call: 'context.change.contains(\"1\")'}\n",
    ],
    ids=["fact", "risk", "requires", "vocabulary", "trace"],
)
def test_a_member_that_another_part_of_a_pack_reads_is_bound(tmp_path: Path, more: str) -> None:
    pack = offered(tmp_path, "true", more=more)
    assert is_bound(pack, OTHER_CHANGE)
    assert not is_bound(pack, with_context(note="another"))


def test_a_member_that_the_prompt_shows_is_bound(tmp_path: Path) -> None:
    judged = PACK.replace("model: never\ndefault: deny\n", "").replace("LIFTED_BY", LIFTED_BY)
    more = "fields: [{name: change, value: context.change}]\nclassifications: [routine]\nrisk: '\"low\"'\n"
    write(tmp_path, pack=judged, more=more, rules=ASK.replace("WHEN", "true"))
    (tmp_path / "clauses.yaml").write_text("R1: One.\n")
    (tmp_path / "system.md").write_text("Decide.\n")
    (tmp_path / "examples.yaml").write_text(
        "- {id: X1, evaluation: {subject: {type: user, id: a}, action: {name: deploy}, "
        "resource: {type: doc, id: d}},\n   outcome: ask, classification: routine, risk: low, clauses: [R1], "
        "reasoning: Fine.}\n"
    )
    pack = pack_files.load(tmp_path)
    policy = Policy(StubEngine(bias="ask"), pack, approvals=Answering())
    first, other, note = (
        policy.decide(request_of(each)).offer
        for each in (QUESTION, OTHER_CHANGE, with_context(note="another"))
    )
    assert first is not None
    assert first.binds == ("action.name", "context.change")
    assert other is not None
    assert note is not None
    assert first.digest == note.digest != other.digest


@pytest.mark.parametrize(
    "changed",
    [
        replace(QUESTION, subject=replace(QUESTION.subject, id="zoë")),
        replace(QUESTION, subject=replace(QUESTION.subject, type="agent")),
        replace(QUESTION, resource=replace(QUESTION.resource, id="ledger")),
        replace(QUESTION, resource=replace(QUESTION.resource, type="job")),
    ],
)
def test_who_and_what_a_question_is_about_is_always_bound(tmp_path: Path, changed: Evaluation) -> None:
    assert is_bound(offered(tmp_path, "true"), changed)
    assert is_bound(offered(tmp_path / "b", "true", lifted_by="{steps: [{role: a}], binds: []}"), changed)


def test_action_and_caller_are_always_bound() -> None:
    other_action = replace(QUESTION, action=Action(name="erase"))
    contents = {
        content_of(QUESTION, "uid:1", ()),
        content_of(QUESTION, "uid:2", ()),
        content_of(other_action, "uid:1", ()),
    }
    assert len(contents) == 3


def test_what_nothing_reads_may_change(tmp_path: Path) -> None:
    changed = Evaluation(
        subject=replace(QUESTION.subject, properties={"role": "boss"}),
        action=replace(QUESTION.action, properties={}),
        resource=replace(QUESTION.resource, properties={"tier": 7}),
        context={"change": "CHG-1", "approval": {"id": "t"}, "supported_obligations": ["x"], "more": 1},
    )
    assert not is_bound(offered(tmp_path, 'context.change == "CHG-1"'), changed)


def test_a_pack_may_name_what_is_bound(tmp_path: Path) -> None:
    spec = "{steps: [{role: manager}], binds: [context.note, subject.properties]}"
    pack = offered(tmp_path, 'context.change == "CHG-1"', lifted_by=spec)
    assert not is_bound(pack, OTHER_CHANGE)
    assert is_bound(pack, with_context(note="another"))
    assert is_bound(pack, replace(QUESTION, subject=replace(QUESTION.subject, properties={})))


def test_a_whole_context_is_bound_without_the_members_that_nothing_reads(tmp_path: Path) -> None:
    pack = offered(tmp_path, "true", lifted_by="{steps: [{role: manager}], binds: [context]}")
    assert not is_bound(pack, with_context(approval={"id": "t"}, supported_obligations=["x"]))
    assert is_bound(pack, with_context(more=1))


@pytest.mark.parametrize(
    "value", [None, 1, 1.0, True, "1", [], {}, [1], {"a": None}, ...], ids=lambda value: repr(value)
)
def test_values_of_other_types_are_other_values_and_null_is_not_absence(value: Json) -> None:
    values = [None, 1, 1.0, True, "1", [], {}, [1], {"a": None}, ...]

    def content(value: Json) -> bytes:
        context = {} if value is ... else {"x": value}
        return content_of(replace(QUESTION, context=context), "uid:1", ("context.x",))

    same = [other for other in values if content(other) == content(value)]
    assert [repr(other) for other in same] == [repr(value)]


def test_the_order_of_members_does_not_matter() -> None:
    first, other = with_context(deep={"a": 1, "b": 2}), with_context(deep={"b": 2, "a": 1})
    assert content_of(first, "uid:1", ("context.deep",)) == content_of(other, "uid:1", ("context.deep",))
    both = ("context.change", "context.deep")
    assert content_of(first, "uid:1", both) == content_of(first, "uid:1", both[::-1])


# ---------------------------------------------------------------- what is left of an outcome

APPROVED = with_context(approval={"id": "t"})


def test_an_approval_that_is_honoured_leaves_the_loosest_outcome(tmp_path: Path) -> None:
    approvals = Answering(Use(task="t", lifts="ask"))
    decision = decided(offered(tmp_path, "true"), APPROVED, approvals)
    assert (decision.outcome, decision.allow, decision.judged) == ("allow", True, "ask")
    assert (decision.offer, decision.obligations, decision.reason_code) == (None, (), None)
    (reasked,) = approvals.shown
    assert (reasked.ticket, reasked.task, reasked.outcome, reasked.who) == (7, "t", "ask", "uid:1000")
    assert reasked.evaluation == QUESTION


def test_an_approval_that_is_refused_changes_nothing_but_the_reason_code(tmp_path: Path) -> None:
    refused = Answering(Use(task="t", code="approval_used"))
    decision = decided(offered(tmp_path, "true"), APPROVED, refused)
    assert (decision.outcome, decision.allow, decision.reason_code) == ("ask", False, "approval_used")
    assert decision.offer is not None


def test_without_an_approval_nobody_is_asked(tmp_path: Path) -> None:
    pack, approvals = offered(tmp_path, "true"), Answering()
    assert not decided(pack, QUESTION, approvals).allow
    assert not decided(pack, with_context(approval=None), approvals).allow
    assert approvals.shown == []


def test_an_approval_of_an_allowed_question_stays_unused(tmp_path: Path) -> None:
    rules = "- {id: free, when: 'true', outcome: allow, final: true, because: Free.}\n"
    decision = decided(pack_files.load(write(tmp_path, rules=rules)), APPROVED, Answering())
    assert (decision.allow, decision.use) == (True, Use(task="t"))


def test_what_nothing_lifts_offers_nothing(tmp_path: Path) -> None:
    for outcome in ("mfa", "deny"):
        rules = ASK.replace("WHEN", "true").replace("outcome: ask", f"outcome: {outcome}")
        pack = pack_files.load(write(tmp_path / outcome, rules=rules))
        decision = decided(pack, QUESTION, Answering())
        assert (decision.outcome, decision.allow, decision.offer) == (outcome, False, None)


@pytest.mark.parametrize(
    ("outcome", "approved", "stricter"),
    [
        ("mfa", "ask", False),
        ("ask", "ask", False),
        ("ask", "mfa", True),
        ("deny", "ask", True),
        ("deny", "deny", True),
        ("ask", "unknown", True),
    ],
)
def test_an_outcome_that_is_stricter_than_the_approved_one_or_the_strictest_is_not_lifted(
    tmp_path: Path, outcome: str, approved: str, stricter: bool
) -> None:
    approvals = Answering(Use(task="t", code="approval_unknown"))
    rules = ASK.replace("WHEN", "true").replace("outcome: ask", f"outcome: {outcome}")
    decided(pack_files.load(write(tmp_path, rules=rules)), APPROVED, approvals)
    assert approvals.shown[0].is_stricter_than(approved) is stricter


def test_a_caller_that_nobody_vouches_for_gets_no_offer(tmp_path: Path) -> None:
    nobody = Caller(transport="inproc")
    assert decided(offered(tmp_path, "true"), QUESTION, Answering(), caller=nobody).offer is None


def test_without_approvals_nothing_is_lifted_or_offered(tmp_path: Path) -> None:
    decision = decided(offered(tmp_path, "true"), APPROVED)
    assert (decision.allow, decision.use, decision.offer) == (False, None, None)


def test_a_question_of_the_past_is_lifted_as_it_was_then_and_nobody_is_asked(tmp_path: Path) -> None:
    pack, nobody = offered(tmp_path, "true"), Answering()
    lifted = decided(pack, APPROVED, nobody, use=Use(task="t", lifts="ask"))
    assert (lifted.outcome, lifted.use) == ("allow", Use(task="t", lifts="ask"))
    refused = decided(pack, APPROVED, nobody, use=Use(task="t", code="approval_used"))
    assert (refused.outcome, refused.reason_code) == ("ask", "approval_used")


def test_a_question_of_the_past_is_not_lifted_where_the_outcome_is_stricter_now(tmp_path: Path) -> None:
    rules = ASK.replace("WHEN", "true").replace("outcome: ask", "outcome: deny")
    pack = pack_files.load(write(tmp_path, rules=rules))
    decision = decided(pack, APPROVED, use=Use(task="t", lifts="ask"))
    assert (decision.outcome, decision.reason_code) == ("deny", "approval_insufficient")


# ---------------------------------------------------------------- step-up

STEP_UP = PACK.replace("- label: mfa\n", "- label: mfa\n    step_up: true\n")
MFA = "- {id: mfa, when: 'true', outcome: mfa, because: A second factor.}\n"


@pytest.mark.parametrize("name", ["second-factor", "step-up"])
def test_a_caller_that_supports_the_obligation_is_allowed_with_it(tmp_path: Path, name: str) -> None:
    pack = pack_files.load(write(tmp_path, pack=STEP_UP, rules=MFA))
    decision = decided(pack, with_context(supported_obligations=["other", name]))
    assert (decision.allow, decision.outcome, decision.stepped_up) == (True, "mfa", True)
    assert [obligation.id for obligation in decision.obligations] == ["second-factor"]


@pytest.mark.parametrize(
    "value", [None, [], ["other"], "second-factor", {"second-factor": 1}, ["Second-Factor"]]
)
def test_any_other_caller_is_not(tmp_path: Path, value: Json) -> None:
    pack = pack_files.load(write(tmp_path, pack=STEP_UP, rules=MFA))
    decision = decided(pack, with_context(supported_obligations=value))
    assert (decision.allow, decision.outcome, decision.stepped_up) == (False, "mfa", False)


def test_step_up_is_off_unless_the_pack_turns_it_on(tmp_path: Path) -> None:
    pack = pack_files.load(write(tmp_path, rules=MFA))
    assert not decided(pack, with_context(supported_obligations=["second-factor"])).allow


def test_no_obligation_steps_up_another_outcome(tmp_path: Path) -> None:
    pack = pack_files.load(write(tmp_path, pack=STEP_UP))
    decision = decided(pack, with_context(supported_obligations=["second-factor", "attest", "custom"]))
    assert (decision.allow, decision.outcome) == (False, "ask")


# ---------------------------------------------------------------- neither rules nor prompt nor cache see them


def test_rules_see_neither_approval_nor_supported_obligations(tmp_path: Path) -> None:
    condition = 'size(context) == 4 && texts(context).all(t, t != "secret")'
    rules = f"- {{id: only, when: '!({condition})', outcome: deny, because: It was seen.}}\n"
    pack = pack_files.load(write(tmp_path, rules=rules + ASK.replace("WHEN", "true")))
    seen = with_context(approval={"id": "secret"}, supported_obligations=["secret"])
    approvals = Answering(Use(task="secret", code="approval_unknown"))
    assert decided(pack, seen, approvals).outcome == "ask"


def test_prompt_and_cache_key_do_not_contain_them(tmp_path: Path) -> None:
    judged = PACK.replace("model: never\ndefault: deny\n", "").replace("LIFTED_BY", LIFTED_BY)
    more = "fields: [{name: all, value: context}]\nclassifications: [routine]\nrisk: '\"low\"'\n"
    write(tmp_path, pack=judged, more=more, rules="[]\n")
    (tmp_path / "clauses.yaml").write_text("R1: One.\n")
    (tmp_path / "system.md").write_text("Decide.\n")
    (tmp_path / "examples.yaml").write_text(
        "- {id: X1, evaluation: {subject: {type: user, id: a}, action: {name: deploy}, "
        "resource: {type: doc, id: d}, context: {change: c}},\n   outcome: ask, classification: routine, "
        "risk: low, clauses: [R1], reasoning: Fine.}\n"
    )
    pack = pack_files.load(tmp_path)
    approvals = Answering(Use(task="t", code="approval_unknown"))
    policy = Policy(StubEngine(bias="ask"), pack, cache=ScoreCache(10, 1e9), approvals=approvals)
    first = policy.decide(request_of())
    again = policy.decide(request_of(with_context(approval={"id": "t"}, supported_obligations=["x"])))
    assert (first.tier, again.tier, again.original) == ("model", "cache", first.id)
    assert pack.question(QUESTION, {}) == pack.question(with_context(approval={"id": "t"}), {})
    assert pack.shown_values(QUESTION) == pack.shown_values(with_context(approval={"id": "t"}))


# ---------------------------------------------------------------- faults of a pack


def faults(folder: Path) -> list[str]:
    return [str(finding) for finding in lint(folder) if finding.level == "error"]


@pytest.mark.parametrize(
    ("label", "lifted_by", "message"),
    [
        ("allow", LIFTED_BY, "allow is the loosest outcome"),
        ("deny", LIFTED_BY, "deny is the strictest outcome"),
        ("ask", "{}", "give either steps or any_of"),
        ("ask", "{steps: []}", "give either steps or any_of"),
        ("ask", "{steps: [{role: a}], any_of: [[{role: b}]]}", "give either steps or any_of"),
        ("ask", "{steps: [{quorum: 2}]}", "every step needs a role or a group"),
        ("ask", "{any_of: [[{role: a}], [{quorum: 2}]]}", "every step needs a role or a group"),
        ("ask", "{steps: [{role: a}], break_glass: {quorum: 1}}", "every step needs a role or a group"),
        *(
            ("ask", f"{{steps: [{{role: a}}], binds: ['{path}']}}", "must be a path below context")
            for path in (
                *("subject", "subject.id", "subject.type", "action.name", "resource", "facts.x", "now", ""),
                *("context.", "context..a", "contexts", "context.a-b", "data.x", "sources.s", "context.a "),
                *("context.approval", "context.supported_obligations", "subject.property"),
            )
        ),
    ],
)
def test_a_fault_of_lifted_by_is_found_with_its_line(
    tmp_path: Path, label: str, lifted_by: str, message: str
) -> None:
    pack = PACK.replace("    lifted_by: LIFTED_BY\n", "")
    pack = pack.replace(f"- label: {label}\n", f"- label: {label}\n    lifted_by: {lifted_by}\n")
    folder = write(tmp_path, pack=pack)
    line = next(n for n, text in enumerate(pack.splitlines(), 1) if f"label: {label}" in text)
    errors = [text for text in faults(folder) if message in text]
    assert errors, faults(folder)
    assert f"pack.yaml:{line}" in errors[0]
    with pytest.raises(PackError, match=r"lifted_by"):
        pack_files.load(folder)


@pytest.mark.parametrize(
    "lifted_by",
    [
        "{steps: [{role: a, quorum: 0}]}",
        "{steps: [{role: a, quorum: 17}]}",
        "{steps: [{role: ''}]}",
        "{steps: [{role: a, not: nobody}]}",
        "{steps: [{role: a}], holds_s: 0}",
        "{steps: [{role: a}], holds_s: 2592001}",
        "{steps: [{role: a}], uses: twice}",
        "{steps: [{role: a}], unknown: 1}",
        "{any_of: [[]]}",
        "{steps: {role: a}}",
    ],
)
def test_values_outside_their_limits_are_refused(tmp_path: Path, lifted_by: str) -> None:
    with pytest.raises(PackError, match=r"pack\.yaml"):
        pack_files.load(write(tmp_path, lifted_by=lifted_by))


@pytest.mark.parametrize(
    ("label", "obligations", "message"),
    [
        ("mfa", "[]", "needs exactly one obligation; mfa has 0"),
        ("mfa", "[{id: a, type: t}, {id: b, type: t}]", "needs exactly one obligation; mfa has 2"),
        ("allow", "[{id: a, type: t}]", "is the loosest or the strictest outcome"),
        ("deny", "[{id: a, type: t}]", "is the loosest or the strictest outcome"),
    ],
)
def test_a_fault_of_step_up_is_found_with_its_line(
    tmp_path: Path, label: str, obligations: str, message: str
) -> None:
    pack = PACK.replace("    obligations: [{id: second-factor, type: step-up}]\n", "")
    pack = pack.replace(
        f"- label: {label}\n", f"- label: {label}\n    step_up: true\n    obligations: {obligations}\n"
    )
    folder = write(tmp_path, pack=pack)
    line = next(n for n, text in enumerate(pack.splitlines(), 1) if f"label: {label}" in text)
    (error,) = [text for text in faults(folder) if "step_up" in text]
    assert message in error
    assert f"pack.yaml:{line}" in error


@pytest.mark.parametrize(
    "condition",
    [
        "has(context.approval)",
        "context.approval.id == 't'",
        "context.approval.id.startsWith('t')",
        "context.supported_obligations.exists(name, name == 'x')",
        'given("context.approval.id", "") == ""',
        "size(context.supported_obligations) > 0",
    ],
)
def test_a_rule_that_reads_one_of_the_two_members_is_an_error_of_lint(tmp_path: Path, condition: str) -> None:
    rules = f"- id: reads\n  when: |\n    {condition}\n  outcome: deny\n  because: So.\n"
    errors = faults(write(tmp_path, rules=rules))
    assert any("rules and prompt never see it" in text for text in errors), errors


@pytest.mark.parametrize(
    "more",
    [
        "facts: {it: has(context.approval)}\n",
        "reads: {context.supported_obligations: list}\n",
        "fields: [{name: approval, value: context.approval.id}]\n",
    ],
)
def test_a_fact_field_or_declaration_that_reads_one_is_an_error_of_lint(tmp_path: Path, more: str) -> None:
    assert any("never see it" in text for text in faults(write(tmp_path, more=more)))


def test_a_member_with_a_similar_name_is_none(tmp_path: Path) -> None:
    rules = ASK.replace("WHEN", "has(context.approvals) && has(context.approval_id)")
    assert faults(write(tmp_path, rules=rules)) == []


def paths(pack: Pack) -> tuple[str, ...]:
    offer = decided(pack, QUESTION, Answering()).offer
    assert offer is not None
    return offer.binds


def test_by_default_each_path_is_named_and_none_below_another(tmp_path: Path) -> None:
    condition = "context.deep.a == 1 && context.deep.b.size() == 2 && has(context.change)"
    assert paths(offered(tmp_path, condition)) == (
        "action.name",
        "context.change",
        "context.deep.a",
        "context.deep.b",
    )
    assert paths(offered(tmp_path / "2", f"{condition} && size(context.deep) == 2")) == (
        "action.name",
        "context.change",
        "context.deep",
    )
