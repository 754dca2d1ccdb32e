"""Vocabulary: rules read a known name in the pack's spelling, and an unknown name is never loose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.decisions import Floor
from thor_policy.core.errors import PackError
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.policy.rule_specs import Requires, Rule
from thor_policy.policy.rules import RuleBook
from thor_policy.policy.vocabulary import Vocabulary

OUTCOMES = ("allow", "review", "deny")
ACTIONS = Vocabulary(
    names={"file.read": "read", "file.delete": "removal", "permissions.update": "own limits"},
    unknown="review",
    clause="R14",
    classification="scope",
)
ROLES = Vocabulary(names=("admin", "user"))
BOTH = {"action.name": ACTIONS, "subject.properties.role": ROLES}
RULES = (
    Rule(id="reads", when='kind("action.name") == "read"', outcome="allow", final=True, because="It reads."),
    Rule(
        id="removes",
        when='action.name == "file.delete"',
        outcome="deny",
        because="Nobody removes.",
        clause="R1",
    ),
)


def book(
    *rules: Rule,
    vocabulary: Mapping[str, Vocabulary] | None = None,
    facts: Mapping[str, str] | None = None,
    **more: Any,
) -> RuleBook:
    vocabulary = {"action.name": ACTIONS} if vocabulary is None else vocabulary
    return RuleBook(
        outcomes=OUTCOMES, facts=facts or {}, rules=rules or RULES, risk=None, vocabulary=vocabulary, **more
    )


def evaluation(name: str = "file.read", *, type: str = "file", **properties: Any) -> Evaluation:
    return Evaluation(
        subject=Entity(type="user", id="alice", properties=properties),
        action=Action(name=name),
        resource=Entity(type=type, id="plan"),
    )


def floor(name: str = "file.read", *rules: Rule, **more: Any) -> Floor:
    return book(*rules, **more).apply(evaluation(name), 0.0)


# ---------------------------------------------------------------- known names


@pytest.mark.parametrize("name", ["file.read", "FILE.Read ", "ｆｉｌｅ．ｒｅａｄ"])
def test_a_known_name_is_read_in_the_spelling_of_the_pack(name: str) -> None:
    result = floor(name, facts={"name": "action.name"})
    assert (result.outcome, result.final, result.rules) == ("allow", True, ("reads",))
    assert result.facts == {"name": "file.read"}


def test_the_kind_of_a_name_is_empty_for_an_absent_and_an_unknown_one() -> None:
    facts = {"of_action": 'kind("action.name")', "of_role": 'kind("subject.properties.role")'}
    rules = book(facts=facts, vocabulary=BOTH)
    assert rules.apply(evaluation(), 0.0).facts == {"of_action": "read", "of_role": ""}
    assert rules.apply(evaluation(role="Admin"), 0.0).facts == {"of_action": "read", "of_role": "admin"}
    assert rules.apply(evaluation("other", role="boss"), 0.0).facts == {"of_action": "", "of_role": ""}


def test_a_name_of_another_script_is_known_where_the_vocabulary_has_it() -> None:
    vocabulary = {"action.name": Vocabulary(names={"файл.читать": "read", "\u0430\u0441\u0435": "read"})}
    sent = ("Файл.читать", "\u0430\u0441\u0435", "ace")
    rules = [rule for rule in RULES if rule.id == "reads"]
    outcomes = [floor(name, *rules, vocabulary=vocabulary).outcome for name in sent]
    assert outcomes == ["allow", "allow", "deny"]


def test_an_absent_member_and_one_that_is_null_are_not_unknown() -> None:
    rules = book(vocabulary=BOTH)
    assert rules.apply(evaluation(), 0.0).rules == ("reads",)
    assert rules.apply(evaluation(role=None), 0.0).rules == ("reads",)


# ---------------------------------------------------------------- unknown names


def test_an_unknown_name_gets_the_outcome_of_the_vocabulary_with_its_reason_and_clause() -> None:
    result = floor("datei.öffnen")
    assert (result.outcome, result.final, result.rules) == ("review", False, ("vocabulary:action.name",))
    assert result.because == 'The action name "datei.öffnen" is not one that this pack knows.'
    assert (result.clauses, result.classification) == (("R14",), "scope")


@pytest.mark.parametrize(
    "name", ["f\u0456le.read", "file.re\u200dad", "file.read\u0338", "file_read", "file.raed", ""]
)
def test_no_final_allow_decides_on_an_unknown_name(name: str) -> None:
    always = Rule(id="always", when="true", outcome="allow", final=True, because="Always.")
    assert floor(name, always, default="allow", rules_only=True).outcome == "review"


@pytest.mark.parametrize(
    "name",
    ["file.d\u0435lete", "\U0001d41file.delete\u200d",
     "fi\u034fle.delete", "file.delet\u0338e", "file_delete",
     "fileDelete", "file.delte", "file.dleete", "file.deletee", "file%2Edelete", "ZmlsZS5kZWxldGU="],
)  # fmt: skip
def test_rules_are_applied_to_the_known_names_that_an_unknown_one_may_stand_for(name: str) -> None:
    result = floor(name, facts={"name": "action.name"})
    assert (result.outcome, result.final) == ("deny", True)
    assert result.rules == ("removes", "vocabulary:action.name")
    assert result.facts == {"name": name}
    assert str(result.because).startswith('Nobody removes. The action name "')
    assert str(result.because).endswith(' It may stand for "file.delete".')


def test_two_unknown_names_of_one_request_are_tried_together() -> None:
    when = 'action.name == "file.delete" && subject.properties.role == "user"'
    rule = Rule(id="users", when=when, outcome="deny", because="No.")
    rules = book(rule, vocabulary={"action.name": ACTIONS, "subject.properties.role": Vocabulary(
        names=("admin", "user"), unknown="review")})  # fmt: skip
    result = rules.apply(evaluation("file_delete", role="us\u0435r"), 0.0)
    assert (result.outcome, result.rules[0]) == ("deny", "users")
    assert str(result.because).endswith('letters. It may stand for "user".')
    assert 'It may stand for "file.delete".' in str(result.because)
    assert rules.apply(evaluation("file_delete", role="adm\u0456n"), 0.0).outcome == "review"


def test_a_likely_name_never_loosens_what_the_name_that_was_sent_gets() -> None:
    rule = Rule(id="unknown", when='kind("action.name") == ""', outcome="deny", because="Unknown.")
    assert floor("file.raed", rule).outcome == "deny"


def test_the_default_outcome_of_an_unknown_name_is_the_strictest() -> None:
    rules = book(vocabulary=BOTH)
    assert rules.apply(evaluation(role="boss"), 0.0).outcome == "deny"


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        (3, "The role is a whole number, not a name."),
        ({}, "The role is a map, not a name."),
        (["admin", 3], "The role is a list of other things than names, not a name."),
        (["admin", "boss"], 'The role "boss" is not one that this pack knows.'),
        (["admin"] * 101, "The role is a list of 101 names; a list has at most 100."),
    ],
)
def test_a_value_that_is_not_a_known_name_is_unknown(role: Any, reason: str) -> None:
    result = book(vocabulary=BOTH).apply(evaluation(role=role), 0.0)
    assert (result.outcome, result.because) == ("deny", reason)


def test_each_name_of_a_list_is_read_in_the_spelling_of_the_pack() -> None:
    rules = book(vocabulary=BOTH, facts={"roles": "subject.properties.role"})
    result = rules.apply(evaluation(role=["ADMIN", " user"]), 0.0)
    assert (result.rules, result.facts) == (("reads",), {"roles": ["admin", "user"]})


def test_a_stricter_rule_and_a_missing_member_stay_stricter_than_an_unknown_name() -> None:
    rule = Rule(id="never", when="true", outcome="deny", because="Never.")
    assert floor("other", rule).rules == ("never", "vocabulary:action.name")
    requires = Requires(members={"context.reason": "string"}, outcome="review")
    result = floor("other", rule, requires=requires)
    assert (result.outcome, result.missing) == ("deny", ("context.reason",))


@pytest.mark.parametrize(
    ("request_", "member"),
    [
        (evaluation("f\u0456le.read"), "action.name"),
        (evaluation(type="f\u0456le"), "resource.type"),
        (evaluation(role="adm\u0456n"), "subject.properties.role"),
    ],
)
def test_names_must_be_plain_also_without_a_vocabulary(request_: Evaluation, member: str) -> None:
    always = Rule(id="always", when="true", outcome="allow", final=True, because="Always.")
    assert book(always, vocabulary={}).apply(request_, 0.0).outcome == "deny"
    result = book(always, vocabulary={}, not_plain="review").apply(request_, 0.0)
    assert (result.outcome, result.rules) == ("review", (f"vocabulary:{member}",))
    assert "mixes Latin and Cyrillic letters" in str(result.because)


def test_a_trace_reads_names_as_the_floor_does() -> None:
    _, traces = book().trace(evaluation("FILE.DELETE"), 0.0)
    assert [trace.state for trace in traces] == ["not", "fired"]
    _, traces = book().trace(evaluation("file_delete"), 0.0)
    assert [(trace.rule.id, trace.state) for trace in traces] == [
        ("vocabulary:action.name", "fired"),
        ("reads", "not"),
        ("removes", "not"),
    ]


@given(st.text(max_size=250), st.text(max_size=20))
def test_any_name_gets_a_floor_that_is_no_looser_than_its_vocabulary_says(name: str, role: str) -> None:
    rules = book(vocabulary=BOTH)
    result = rules.apply(evaluation(name, role=role), 0.0)
    known = name.strip().casefold() in ACTIONS.kinds
    assert result.errors == {}
    assert OUTCOMES.index(result.outcome) >= (0 if known else 1)


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("path", "vocabulary", "message"),
    [
        ("subject.id", ROLES, "must be action.name, subject.type, resource.type, or a path below context"),
        ("facts.kind", ROLES, "must be action.name"),
        (
            "context.x",
            Vocabulary(names=("a",), unknown="allow"),
            "'allow' must be one of the outcomes stricter",
        ),
        ("context.x", Vocabulary(names=("a",), unknown="no"), "'no' must be one of the outcomes stricter"),
        ("context.x", Vocabulary(names=("A.b", "a.B")), 'the names "A.b" and "a.B" are the same'),
        ("context.x", Vocabulary(names=("\u0430\u0441\u0435", "ace")), 'and "ace" look the same; rename one'),
        (
            "context.x",
            Vocabulary(names=("d\u0435l",)),
            'the name "d\u0435l" mixes Latin and Cyrillic letters',
        ),
        ("context.x", Vocabulary(names=(" a",)), 'the name " a" has blanks around it'),
        ("context.x", Vocabulary(names=("",)), "a name is empty"),
    ],
)
def test_a_vocabulary_at_fault_is_refused_when_the_pack_loads(
    path: str, vocabulary: Vocabulary, message: str
) -> None:
    with pytest.raises(PackError) as refused:
        book(Rule(id="r", when="true", outcome="deny", because="b"), vocabulary={path: vocabulary})
    assert message in str(refused.value)


def test_the_path_of_a_literal_call_of_kind_must_have_a_vocabulary() -> None:
    with pytest.raises(PackError, match=r"there is no vocabulary 'resource.type' in pack\.yaml"):
        book(facts={"kind": 'kind("resource.type")'})


def test_a_computed_path_without_a_vocabulary_is_an_error_of_its_expression() -> None:
    result = floor(facts={"kind": 'kind("action." + subject.id)'})
    assert result.errors["fact:kind"] == "there is no vocabulary 'action.alice'"
    assert not result.final
