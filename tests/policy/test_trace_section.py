"""The section `trace` of a pack: types, flags, and what the trace of each type must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.build import write_rules_only_pack
from thor_policy.core.decisions import Floor, Traits
from thor_policy.core.errors import PackError
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.policy import pack_files
from thor_policy.policy.lint import lint
from thor_policy.policy.pack import Pack

RULES = """
- {id: small, when: 'given("context.percent", 0.0) <= 20.0', outcome: allow, final: true, because: Small.}
"""
TRACE = """
facts:
  over: given("context.percent", 0.0) > 10.0
trace:
  types: [exception, emergency_access]
  decision_type: 'over ? "exception" : context.?type.orValue("policy_application")'
  is_exception: over
  urgency: 'given("context.urgency", "normal")'
  judgment_call: 'subject.id == "judge"'
  complete:
    exception: [approved_by, "edge:CITES"]
"""


def pack(folder: Path, more: str = TRACE) -> Pack:
    return pack_files.load(write_rules_only_pack(folder / "alone", rules=RULES, more=more))


def floor(pack: Pack, subject: str = "alice", **context: Any) -> Floor:
    evaluation = Evaluation(
        subject=Entity(type="user", id=subject),
        action=Action(name="give"),
        resource=Entity(type="quote", id="7"),
        context=context,
    )
    return pack.book.apply(evaluation, 0.0)


def test_expressions_say_what_kind_of_decision_it_is(tmp_path: Path) -> None:
    small = pack(tmp_path)
    assert floor(small).traits == Traits(judgment_call=False)
    assert floor(small, percent=12.0, urgency="emergency").traits == Traits(
        type="exception",
        is_exception=True,
        urgency="emergency",
        judgment_call=False,
        required=("approved_by", "edge:CITES"),
    )
    assert floor(small, "judge", type="emergency_access").traits == Traits(
        type="emergency_access", judgment_call=True
    )


def test_a_pack_without_the_section_has_plain_decisions(tmp_path: Path) -> None:
    assert floor(pack(tmp_path, "")).traits == Traits()


@pytest.mark.parametrize(
    ("context", "name", "message"),
    [
        ({"type": "nonsense"}, "trace:decision_type", "gave 'nonsense', which is none of policy_application"),
        ({"type": 7}, "trace:decision_type", "gave '7', which is none of"),
        ({"urgency": "now"}, "trace:urgency", "gave 'now', which is none of normal, urgent, emergency"),
        ({"urgency": {"a": 1}}, "trace:urgency", "a map, not a string"),
        ({"urgency": True}, "trace:urgency", "a bool, not a string"),
    ],
)
def test_a_value_that_is_not_declared_is_recorded_and_makes_the_answer_stricter(
    tmp_path: Path, context: dict[str, Any], name: str, message: str
) -> None:
    failed = floor(pack(tmp_path), **context)
    assert failed.outcome == "deny"
    assert message in failed.errors[name]
    assert (failed.traits.type, failed.traits.urgency) == ("policy_application", "normal")


def test_an_expression_that_fails_counts_as_any_failed_expression(tmp_path: Path) -> None:
    failing = pack(tmp_path, "trace: {is_exception: 'context.nothing'}")
    failed = floor(failing)
    assert (failed.outcome, list(failed.errors)) == ("deny", ["trace:is_exception"])
    assert failed.traits == Traits()
    assert floor(failing, nothing=True).traits.is_exception


def test_stopped_rules_leave_the_default_type_with_what_it_requires(tmp_path: Path) -> None:
    held = pack(tmp_path, "trace: {complete: {policy_application: [outcome]}}")
    assert held.book.stopped("rules_budget").traits == Traits(required=("outcome",))


def test_a_report_is_governed_by_what_its_type_requires(tmp_path: Path) -> None:
    small = pack(tmp_path)
    assert small.governing("exception").required == ("approved_by", "edge:CITES")
    assert small.governing("unknown").required == ()
    assert small.governing("exception").pack == small.info


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{types: [Big]}", "'Big' must be lower case letters, digits and '_'"),
        ("{complete: {exception: [outcome]}}", "'exception' is none of the types policy_application; add it"),
        ("{complete: {policy_application: [moon]}}", "'moon' is none of actor, entity, "),
        ("{complete: {policy_application: ['edge:']}}", "'edge:' is none of actor, entity, "),
        ('{complete: {policy_application: ["edge:a\'b"]}}', " is none of actor, entity, "),
        ("{summaries: {policy_application: '{akt}'}}", "there is no value {akt}"),
        ("{summaries: {other: 'x'}}", "'other' is none of the types policy_application"),
        ("{is_exception: '1'}", "gives an int, not a bool"),
        ("{decision_type: 'true'}", "gives a bool, not a string"),
        ("{urgency: 'nobody'}", "there is no name 'nobody' here"),
        ("{judgment_call: 'now > now'}", "`now` is the daemon's clock"),
        ("{colour: red}", "colour"),
    ],
)
def test_a_fault_of_the_section_is_refused_with_its_place(tmp_path: Path, section: str, message: str) -> None:
    path = write_rules_only_pack(tmp_path / "alone", rules=RULES, more=f"trace: {section}\n")
    with pytest.raises(PackError) as refusal:
        pack_files.load(path)
    assert message in str(refusal.value)
    assert [finding.file for finding in lint(path) if finding.level == "error"] == ["pack.yaml"]
    assert all(finding.line == 7 for finding in lint(path) if finding.level == "error")


def test_the_id_of_an_expression_of_the_section_is_free_for_no_rule(tmp_path: Path) -> None:
    rules = RULES.replace("small", "'trace:urgency'")
    with pytest.raises(PackError, match="is not free"):
        pack_files.load(write_rules_only_pack(tmp_path / "alone", rules=rules))
