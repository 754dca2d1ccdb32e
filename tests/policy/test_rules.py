"""Rules: the floor they set, and that whatever goes wrong only tightens it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.decisions import Floor
from thor_policy.core.errors import PackError
from thor_policy.core.requests import RISKS, Action, Entity, Evaluation
from thor_policy.policy.expressions import MemberType
from thor_policy.policy.rule_checks import RuleFaults
from thor_policy.policy.rule_specs import Requires, Rule, reads_only_subject_properties
from thor_policy.policy.rules import RuleBook

OUTCOMES = ("allow", "require_mfa", "require_attestation", "deny")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()


def rule(id: str, when: str = "true", outcome: str = "deny", **more: Any) -> Rule:
    return Rule(id=id, when=when, outcome=outcome, because=f"Because of {id}.", **more)


def final(id: str, when: str = "true") -> Rule:
    return rule(id, when, "allow", final=True)


def book(
    *rules: Rule,
    facts: Mapping[str, str] | None = None,
    risk: str = '"low"',
    words: Mapping[str, Sequence[str]] | None = None,
) -> RuleBook:
    return RuleBook(outcomes=OUTCOMES, facts=facts or {}, rules=rules, risk=risk, words=words, clock="daemon")


def evaluation(**context: Any) -> Evaluation:
    return Evaluation(
        subject=Entity(type="user", id="alice", properties={"role": "developer"}),
        action=Action(name="read", properties={"method": "GET"}),
        resource=Entity(type="doc", id="handbook", properties={"pages": 3}),
        context=context,
    )


def floor(*rules: Rule, at: float = NOON, context: Mapping[str, Any] | None = None, **more: Any) -> Floor:
    return book(*rules, **more).apply(evaluation(**context or {}), at)


# ---------------------------------------------------------------- the floor


def test_without_a_match_the_floor_is_the_loosest_outcome_and_not_final() -> None:
    assert floor(rule("never", "false")) == Floor(outcome="allow", final=False, risk="low")


def test_the_strictest_match_sets_the_floor_whatever_its_place() -> None:
    rules = (rule("a", outcome="require_mfa"), rule("b", outcome="deny"), rule("c", outcome="allow"))
    for order in itertools.permutations(rules):
        result = floor(*order)
        assert (result.outcome, result.because, result.rules[0]) == ("deny", "Because of b.", "b")
        assert set(result.rules) == {"a", "b", "c"}


def test_the_floor_has_clauses_and_class_of_the_rules_that_set_it_and_the_reason_of_the_first() -> None:
    result = floor(
        rule("a", outcome="require_mfa", clause="R1", classification="first"),
        rule("b", outcome="require_attestation", clause="R2"),
        rule("c", outcome="require_attestation", clause="R3", classification="third"),
        rule("d", outcome="require_attestation", clause="R2", classification="fourth"),
    )
    assert result.outcome == "require_attestation"
    assert result.clauses == ("R2", "R3")
    assert result.classification == "third"
    assert result.because == "Because of b."
    assert result.also_because == ("Because of c.", "Because of d.")
    assert result.all_reasons == "Because of b. Because of c. Because of d."
    assert result.rules == ("b", "c", "d", "a")


def test_the_same_reason_is_given_once() -> None:
    twins = [Rule(id=name, when="true", outcome="deny", because="Nobody may.") for name in "ab"]
    assert (floor(*twins).because, floor(*twins).also_because) == ("Nobody may.", ())


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_only_the_strictest_outcome_needs_no_model(outcome: str) -> None:
    assert floor(rule("one", outcome=outcome)).final == (outcome == "deny")


def test_a_fact_can_read_every_part_of_the_request() -> None:
    facts = {
        "who": 'subject.type + ":" + subject.id',
        "role": "subject.properties.role",
        "what": "action.name",
        "how": "action.properties.method",
        "which": 'resource.type + ":" + resource.id',
        "pages": "resource.properties.pages",
        "team": "context.team[0].name",
    }
    result = floor(facts=facts, context={"team": [{"name": "core"}]})
    assert result.errors == {}
    assert result.facts == {
        "who": "user:alice",
        "role": "developer",
        "what": "read",
        "how": "GET",
        "which": "doc:handbook",
        "pages": 3,
        "team": "core",
    }


def test_a_fact_whose_name_begins_with_an_underscore_is_a_step_that_nobody_is_shown() -> None:
    facts = {"_hours": "context.seconds / 3600", "late": "_hours > 20", "_never": '"a" == "b"'}
    rules = rule("late", "late && _hours < 25", outcome="require_mfa")
    result = floor(rules, facts=facts, risk='_hours > 20 ? "high" : "low"', context={"seconds": 79_200})
    assert (result.outcome, result.risk, result.errors) == ("require_mfa", "high", {})
    assert result.facts == {"late": True}


def test_a_step_that_fails_is_named_like_any_fact() -> None:
    result = floor(facts={"_hours": "context.seconds / 3600"})
    assert list(result.errors) == ["fact:_hours"]


def test_a_trace_shows_the_parts_of_a_condition_on_steps() -> None:
    rules = book(rule("late", "_hours > 20 && _hours < 22"), facts={"_hours": "context.seconds / 3600"})
    result, (trace,) = rules.trace(evaluation(seconds=79_200), NOON)
    assert [part.value for part in trace.parts] == [True, False]
    assert (trace.state, result.facts) == ("not", {})


def test_without_a_model_the_deciding_allow_is_the_first_in_the_order_of_the_pack() -> None:
    allows = [rule("plain", outcome="allow"), final("settled"), rule("no", "false")]
    result = rules_only(*allows).apply(evaluation(), NOON)
    assert (result.because, result.also_because) == ("Because of plain.", ("Because of settled.",))


# ---------------------------------------------------------------- final allows


def test_a_final_allow_answers_when_nothing_stricter_matched() -> None:
    result = floor(rule("never", "false"), final("routine"))
    assert (result.outcome, result.final, result.rules) == ("allow", True, ("routine",))
    assert result.because == "Because of routine."
    assert result.settles("allow")


@pytest.mark.parametrize("outcome", OUTCOMES[1:])
def test_anything_stricter_outranks_a_final_allow(outcome: str) -> None:
    result = floor(final("routine"), rule("strict", outcome=outcome))
    assert (result.outcome, result.rules) == (outcome, ("strict",))
    assert result.final == (outcome == "deny")


def test_an_allow_that_is_not_final_leaves_the_decision_to_the_model() -> None:
    result = floor(rule("likely", outcome="allow"))
    assert (result.outcome, result.final) == ("allow", False)


@pytest.mark.parametrize("outcome", OUTCOMES[1:3])
def test_a_final_rule_says_exactly_its_outcome(outcome: str) -> None:
    exactly = rule("exactly", outcome=outcome, final=True)
    assert (floor(exactly).outcome, floor(exactly).final) == (outcome, True)
    assert floor(exactly, final("routine")).final
    assert not floor(exactly, rule("broken", "context.missing", "require_mfa")).final
    stricter = floor(exactly, rule("strict", outcome="deny"))
    assert (stricter.outcome, stricter.final) == ("deny", True)


# ---------------------------------------------------------------- failures tighten

FAILING = [
    ("context.missing == 1", "no such property"),
    ("context.missing.deeper == 1", "nothing to look in"),
    ("dyn(subject.id) + 1 == 2", "types that do not go together"),
    ("timestamp(subject.id) < now", "a text that is no time"),
    ("1 / 0 == 1", "division by zero"),
    ("9223372036854775807 + resource.properties.pages > 0", "an integer beyond 64 bits"),
    ('subject.id.matches("(" + "x")', "a broken pattern"),
    ("[1][resource.properties.pages] == 1", "an index out of range"),
    ("dyn(1)", "a number"),
    ('dyn("true")', "a text"),
    ("dyn(null)", "null"),
    ("dyn([true])", "a list"),
    ("dyn(0.0 / 0.0)", "not a number"),
]
FAILING_IDS = [why for _, why in FAILING]


@pytest.mark.parametrize("when", [when for when, _ in FAILING], ids=FAILING_IDS)
@pytest.mark.parametrize("outcome", OUTCOMES[1:])
def test_a_rule_that_fails_counts_as_matched(when: str, outcome: str) -> None:
    result = floor(rule("broken", when, outcome, clause="R1"))
    assert (result.outcome, result.rules, result.clauses) == (outcome, ("broken",), ("R1",))
    assert result.because == "Rule broken could not be evaluated and counts as matched."
    assert list(result.errors) == ["broken"]
    assert result.errors["broken"]


@pytest.mark.parametrize("when", [when for when, _ in FAILING], ids=FAILING_IDS)
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_rule_that_fails_disables_every_final_allow(when: str, outcome: str) -> None:
    result = floor(final("routine"), rule("broken", when, outcome))
    assert result.outcome == outcome
    assert result.final == (outcome == "deny")
    assert "routine" not in result.rules


def test_an_allow_that_fails_does_not_count_as_matched() -> None:
    result = floor(final("broken", "context.missing"))
    assert (result.outcome, result.final, result.rules, result.because) == ("allow", False, (), None)


@pytest.mark.parametrize("text", [text for text, _ in FAILING if not re.match(r"dyn\([^0s]", text)])
def test_a_failing_fact_makes_every_fact_and_rule_that_uses_it_fail(text: str) -> None:
    result = floor(
        rule("resting", "dyn(derived) == 1", "require_mfa"),
        rule("apart", "sound == 2", "require_attestation"),
        final("routine"),
        facts={"base": text, "derived": "dyn(base) == 1", "sound": "2"},
    )
    assert list(result.errors) == ["fact:base", "fact:derived", "resting"]
    assert result.facts == {"sound": 2}
    assert (result.outcome, result.final) == ("require_attestation", False)


def test_a_failing_fact_that_no_rule_uses_disables_final_allows() -> None:
    result = floor(final("routine"), facts={"spare": "context.missing"})
    assert (result.outcome, result.final) == ("allow", False)


def test_a_fact_is_not_carried_over_from_one_request_to_the_next() -> None:
    rules = book(rule("seen", 'kind == "x"'), facts={"kind": "context.kind"})
    assert rules.apply(evaluation(kind="x"), NOON).facts == {"kind": "x"}
    second = rules.apply(evaluation(), NOON)
    assert second.facts == {}
    assert list(second.errors) == ["fact:kind", "seen"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{}", {}),
        ('{"a": [1, 2.5, null, {"b": true}]}', {"a": [1, 2.5, None, {"b": True}]}),
        ("[1]", [1]),
        ("null", None),
        ("context.list", [{"k": "v"}]),
    ],
)
def test_a_fact_may_be_any_json(text: str, value: Any) -> None:
    result = floor(rule("same", f"kept == {text}"), facts={"kept": text}, context={"list": [{"k": "v"}]})
    assert (result.errors, result.facts, result.outcome) == ({}, {"kept": value}, "deny")


@pytest.mark.parametrize(
    "text",
    [
        "dyn(now)",
        'dyn(duration("1s"))',
        'dyn(b"bytes")',
        "dyn({1: 2})",
        "[1.0 / 0.0]",
        "dyn(18446744073709551615u)",
    ],
)
def test_a_fact_that_is_not_json_fails(text: str) -> None:
    result = floor(facts={"odd": text})
    assert result.facts == {}
    assert list(result.errors) == ["fact:odd"]


@pytest.mark.parametrize("text", ["now", "[now]", '{"a": [duration("1s")]}', "{1: true}", "type(1)", "[1u]"])
def test_a_fact_whose_type_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(PackError, match=r"pack: fact odd: gives an? .*, which a fact cannot be; "):
        book(facts={"odd": text})


# ---------------------------------------------------------------- risk


@pytest.mark.parametrize("risk", RISKS)
def test_risk_is_what_its_expression_says(risk: str) -> None:
    assert floor(risk=f'context.asset == "db" ? "{risk}" : "low"', context={"asset": "db"}).risk == risk


@pytest.mark.parametrize(
    "text",
    [
        '"no" + "ne"',
        '"lo".upperAscii()',
        '"" + ""',
        "dyn(1)",
        "dyn(true)",
        "dyn(null)",
        "context.missing",
        "dyn(1 / 0)",
    ],
)
def test_a_risk_that_is_unknown_or_fails_is_critical(text: str) -> None:
    assert floor(risk=text).risk == "critical"


def test_a_risk_that_no_request_can_have_is_refused() -> None:
    with pytest.raises(PackError, match="risk: gives 'hihg', which is none of low, medium, high, critical"):
        book(risk='context.asset == "db" ? "hihg" : "low"')


def test_a_failing_risk_expression_disables_final_allows() -> None:
    result = floor(final("routine"), risk="context.missing")
    assert (list(result.errors), result.final) == (["risk"], False)


# ---------------------------------------------------------------- time


def test_now_is_the_receipt_time_that_was_given_to_the_fraction_of_a_second() -> None:
    result = floor(facts={"at": "string(now)"}, at=NOON + 0.25)
    assert result.facts == {"at": "2026-01-01T12:00:00.250Z"}


@pytest.mark.parametrize(("hour", "outcome"), [(7, "deny"), (8, "allow"), (19, "allow"), (20, "deny")])
def test_a_rule_can_read_the_hour(hour: int, outcome: str) -> None:
    at = datetime(2026, 1, 1, hour, 30, tzinfo=UTC).timestamp()
    assert floor(rule("night", "now.getHours() < 8 || now.getHours() >= 20"), at=at).outcome == outcome


def test_a_time_in_the_request_can_be_compared_with_now() -> None:
    stale = rule("stale", 'now - timestamp(context.timestamp) > duration("1h")')
    for timestamp, outcome in (("2026-01-01T11:30:00Z", "allow"), ("2026-01-01T10:59:00Z", "deny")):
        assert floor(stale, context={"timestamp": timestamp}).outcome == outcome


@pytest.mark.parametrize(
    ("when", "line", "column"), [("now > now", 1, 1), ("true &&\n  string(now) != ''", 2, 10)]
)
def test_the_daemons_clock_is_no_name_of_a_pack_that_does_not_declare_it(
    when: str, line: int, column: int
) -> None:
    with pytest.raises(RuleFaults) as refused:
        RuleBook(outcomes=OUTCOMES, facts={}, rules=[rule("late", when)], risk=None)
    (fault,) = refused.value.faults
    assert (fault.line, fault.column) == (line, column)
    assert "`clock: daemon`" in fault.message


@pytest.mark.parametrize(
    ("context", "texts"),
    [
        ({}, []),
        ({"time": None, "timestamp": None}, []),
        ({"time": "2026-06-27T18:03-07:00"}, ["2026-06-28T01:03:00Z"]),
        ({"timestamp": "2026-06-27t18:03:09.25z"}, ["2026-06-27T18:03:09.250000Z"]),
        (
            {"time": "2026-06-27T18:03:00+02:00", "timestamp": "2026-06-27T10:00:00Z"},
            ["2026-06-27T16:03:00Z", "2026-06-27T10:00:00Z"],
        ),
    ],
    ids=["none", "null", "AuthZEN without seconds", "an older service", "both"],
)
def test_the_times_that_a_request_states_are_read_in_utc(context: dict[str, Any], texts: list[str]) -> None:
    result = floor(facts={"at": "stated_times()"}, context=context)
    assert result.facts == {"at": texts}
    members = [f"context.{name}" for name in ("time", "timestamp") if context.get(name)]
    assert result.time_used == dict(zip(members, texts, strict=True))


@pytest.mark.parametrize(
    "value",
    [
        "yesterday",
        "2026-06-27",
        "2026-06-27T18:03:00",
        "2026-06-27 18:03:00Z",
        "2026-13-27T18:03:00Z",
        "２026-06-27T18:03:00Z",
        "0001-01-01T00:00:00+14:00",
        "",
        1_782_907_200,
        {"at": "2026-06-27T18:03:00Z"},
    ],
)
def test_a_time_that_cannot_be_read_fails_instead_of_counting_as_none(value: Any) -> None:
    late = rule("untimed", "stated_times().size() == 0")
    result = floor(late, final("open"), context={"time": value})
    assert (result.outcome, list(result.errors)) == ("deny", ["untimed"])
    assert result.time_used == {}


def test_a_floor_names_each_time_that_its_expressions_read_and_no_other() -> None:
    context = {"time": "2026-06-27T18:03:00Z", "timestamp": "2026-06-27T10:00:00Z"}
    assert floor(rule("any"), context=context).time_used is None
    reads_one = rule("late", 'given("context.timestamp", "") > "2026"')
    assert floor(reads_one, context=context).time_used == {"context.timestamp": "2026-06-27T10:00:00Z"}
    reads_clock = rule("late", "now > timestamp(context.time)")
    assert floor(reads_clock, context=context).time_used == {
        "context.time": "2026-06-27T18:03:00Z",
        "daemon": "2026-01-01T12:00:00Z",
    }


# ---------------------------------------------------------------- mentions


def mentioned(text: str, *entries: str) -> bool:
    result = floor(
        rule("hit", 'mentions(context.text, "list")'), words={"list": entries}, context={"text": text}
    )
    assert result.errors == {}
    return result.outcome == "deny"


@pytest.mark.parametrize(
    "text",
    [
        "delete audit log",
        "delete-audit-log",
        "delete_audit_log",
        "delete.audit/log",
        "delete::audit::log",
        "deleteAuditLog",
        "DeleteAuditLog",
        "DELETE_AUDIT_LOG",
        "Delete Audit Log",
        "  delete\taudit\nlog  ",
        "please deleteAuditLog now",
        "ｄｅｌｅｔｅ　ａｕｄｉｔ　ｌｏｇ",
        "ｄｅｌｅｔｅＡｕｄｉｔＬｏｇ",
        "delete (audit) log!",
    ],
)
def test_a_phrase_is_found_however_its_words_are_joined(text: str) -> None:
    for entry in ("delete audit log", "delete-audit-log", "DELETE_AUDIT_LOG", "Delete Audit Log"):
        assert mentioned(text, entry)
    assert mentioned(text, "audit log")
    assert mentioned(text, "log")
    assert mentioned(text, "other", "audit")


@pytest.mark.parametrize("text", ["dElEtE", "DELete", "deletE", "dElEtE_audit", "audit dElEtE", "DeLeTe"])
def test_odd_capitals_do_not_hide_a_word(text: str) -> None:
    assert mentioned(text, "delete")


@pytest.mark.parametrize("text", ["undelete", "deleted", "deletes", "de lete", "d-e-l-e-t-e", "", "!?"])
def test_a_word_is_a_whole_word(text: str) -> None:
    assert not mentioned(text, "delete")


@pytest.mark.parametrize("text", ["audit the log", "log audit", "auditlog", "my-audit", "audit, then log"])
def test_a_phrase_is_its_words_in_order_and_next_to_each_other(text: str) -> None:
    assert not mentioned(text, "audit log")


@pytest.mark.parametrize("text", ["delet", "delete", "deleted", "deletion", "deleteAuditLog", "x-deleting"])
def test_a_star_stands_for_any_end_of_the_last_word(text: str) -> None:
    assert mentioned(text, "delet*")


def test_a_star_does_not_stand_for_a_beginning_or_another_word() -> None:
    assert not mentioned("undeleted", "delet*")
    assert mentioned("audit logging on", "audit log*")
    assert not mentioned("audit the logging", "audit log*")


def test_regex_characters_in_a_word_list_are_literal() -> None:
    assert not mentioned("axb", "a.b")
    assert mentioned("a.b", "a.b")
    assert mentioned("c", "c++")


@given(st.text(max_size=40))
def test_any_text_mentions_a_word_put_beside_it(text: str) -> None:
    assert mentioned(f"{text} delete", "delete")
    assert mentioned(f"{text}-DELETE-{text}", "delete")


@pytest.mark.parametrize("call", ['mentions(dyn(1), "list")', 'mentions(dyn(null), "list")'])
def test_mentions_of_a_value_that_is_not_text_fails_and_counts_as_matched(call: str) -> None:
    result = floor(rule("hit", call), words={"list": ["a"]}, context={"text": "a"})
    assert (result.outcome, list(result.errors)) == ("deny", ["hit"])


@pytest.mark.parametrize(
    ("words", "call", "message"),
    [
        ({"list": ["a"]}, 'mentions(context.text, "nonsuch")', "no word list 'nonsuch'"),
        ({"list": ["a"]}, 'starts(string(context.text).trim(), "nonsuch")', "no word list 'nonsuch'"),
        ({"list": []}, "true", "words list: the list is empty"),
        ({"list": ["a", "--"]}, "true", "words list: the entry '--' holds no word"),
    ],
)
def test_word_lists_are_checked_at_load(words: dict[str, list[str]], call: str, message: str) -> None:
    with pytest.raises(PackError, match=re.escape(message)):
        floor(rule("hit", call), words=words)


def test_mentions_ignores_invisible_characters() -> None:
    hit = rule("hit", 'mentions(context.text, "list")')
    assert floor(hit, words={"list": ["delete"]}, context={"text": "de\u200blete"}).outcome == "deny"


def test_an_error_message_is_at_most_200_characters() -> None:
    text = "x" * 10_000
    result = floor(rule("hit", "int(context.text) == 1"), context={"text": text})
    assert len(result.errors["hit"]) <= 200


# ---------------------------------------------------------------- what does not compile


@pytest.mark.parametrize("text", ["a &&", "", "subject.", "a b", "'open", "1 ? 2"])
def test_an_expression_that_is_not_cel_is_refused_with_its_name(text: str) -> None:
    for broken, message in (
        ({"rules": [rule("bad", text)]}, "here: rule bad: when: Syntax error"),
        ({"facts": {"bad": text}}, "here: fact bad: Syntax error"),
        ({"risk": text}, "here: risk: Syntax error"),
    ):
        whole: dict[str, Any] = {"outcomes": OUTCOMES, "facts": {}, "rules": [], "risk": '"low"'}
        with pytest.raises(PackError, match=f"^{message}"):
            RuleBook(**whole | broken, where="here")


def test_an_unknown_outcome_is_refused_with_the_known_ones() -> None:
    message = "rule bad: outcome 'maybe' is not one of allow, require_mfa, require_attestation, deny"
    with pytest.raises(PackError, match=message):
        book(rule("bad", outcome="maybe"))


@pytest.mark.parametrize(
    "name",
    ["subject", "action", "resource", "context", "now", "", "Upper", "a-b", "a.b", "1st", "_", "__x", "_X"],
)
def test_an_invalid_or_reserved_fact_name_is_refused(name: str) -> None:
    with pytest.raises(PackError, match=f"fact '{name}': must be lower case letters, digits and '_'"):
        book(facts={name: "1"})


@pytest.mark.parametrize("name", ["true", "in", "list", "string"])
def test_a_fact_cannot_be_called_like_a_word_of_cel(name: str) -> None:
    with pytest.raises(PackError) as refused:
        book(rule("fine", "true"), facts={name: "1", "after": "2"})
    assert str(refused.value) == f"pack: fact '{name}': is a word of CEL, which no fact can have as its name"


def test_the_strictest_of_several_outcomes() -> None:
    assert book().stricter("allow", "require_attestation", "require_mfa") == "require_attestation"


# ---------------------------------------------------------------- names


def test_a_dot_before_a_name_reads_the_variable() -> None:
    result = floor(
        rule("holds", '.kind == "doc" && .context.n == 1 && .subject.id == "alice"'),
        facts={"kind": ".resource.type"},
        context={"n": 1},
    )
    assert (result.rules, result.errors) == (("holds",), {})


def test_a_name_that_a_macro_binds_hides_a_fact_and_a_root() -> None:
    whens = ('["z"].exists(kind, kind == "z")', '[{"type": 1}].exists(resource, has(resource.type))')
    result = floor(*(rule(when, when) for when in whens), facts={"kind": "resource.type"})
    assert (result.rules, result.errors) == (whens, {})


# ---------------------------------------------------------------- declared members


def declaring(kind: MemberType, when: str, value: Any, required: bool = True) -> Floor:
    members: dict[str, MemberType] = {"context.value": kind}
    declared = RuleBook(
        outcomes=OUTCOMES,
        facts={},
        rules=[rule("holds", when)],
        risk='"low"',
        requires=Requires(members=members, outcome="require_mfa") if required else None,
        reads=None if required else members,
    )
    return declared.apply(evaluation(value=value), NOON)


@pytest.mark.parametrize(
    "when", ["!has(context.value)", 'given("context.value", 7) == 7', "!(has(context.value))"]
)
def test_null_for_a_declared_member_is_no_member(when: str) -> None:
    assert declaring("int", when, None, required=False).rules == ("holds",)
    assert declaring("int", when, None).missing == ("context.value",)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", 1.5),
        ("int", True),
        ("int", 1e30),
        ("int", 2.0**63),
        ("number", True),
        ("number", "1"),
        ("list(number)", [1, True]),
        ("list(string)", ["a", None]),
        ("timestamp", "2026-07-01 10:00:00Z"),
        ("timestamp", "2026-07-01T10:00:00"),
        ("timestamp", "9999-12-31T23:30:00-01:00"),
        ("timestamp", "0001-01-01T00:30:00+01:00"),
    ],
)
def test_a_member_of_another_type_than_declared_is_missing(kind: MemberType, value: Any) -> None:
    result = declaring(kind, "false", value)
    assert (result.outcome, result.missing, result.errors) == ("require_mfa", ("context.value",), {})


@pytest.mark.parametrize(
    ("kind", "value", "when"),
    [
        ("int", 3.0, "context.value == 3"),
        ("int", 2**63 - 1, "context.value == 9223372036854775807"),
        ("number", 3, "context.value > 2.5"),
        ("number", 2**53 + 1, "context.value == 9007199254740993"),
        ("timestamp", "2026-07-01t10:00:00+02:00", "timestamp(context.value).getHours() == 8"),
    ],
)
def test_a_member_of_its_declared_type_can_be_compared(kind: MemberType, value: Any, when: str) -> None:
    result = declaring(kind, when, value)
    assert (result.rules, result.missing, result.errors) == (("holds",), (), {})


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize(
    "when",
    [
        "!sets.contains([1], [dyn(true)])",
        "!sets.intersects([[1]], [[dyn(true)]])",
        '!sets.equivalent([{"a": dyn(1)}], [{"a": dyn(true)}])',
        "[dyn(1), true, 1.0].distinct().size() == 2",
        '[dyn("a"), 1, null, [1], {"a": 1}].distinct().size() == 5',
        "sets.contains([1, 2], [dyn(1.0)])",
        "[2, dyn(1.5)].max() == 2 && [2, dyn(1.5)].min() == 1.5",
        '["a", "c", "b"].max() == "c"',
        "[].sum() == 0 && [1, 2].sum() == 3 && [1, dyn(0.5)].sum() == 1.5",
        "[dyn(9007199254740992), 0.5, 0.5].sum() == 9007199254740993",
        "[4503599627370496.0, 4503599627370496.0].sum() < 9007199254740993",
    ],
)
def test_functions_of_lists_compare_and_add_as_cel_does(when: str) -> None:
    result = floor(rule("holds", when))
    assert (result.rules, result.errors) == (("holds",), {})


@pytest.mark.parametrize(
    "text",
    [
        "[dyn(1), true].sum()",
        '["a"].sum()',
        "[dyn(1), true].max()",
        '[dyn(1), "a"].min()',
        "[].max()",
        "[9223372036854775807, 1].sum()",
    ],
)
def test_functions_of_lists_fail_for_items_that_they_cannot_add_or_compare(text: str) -> None:
    assert list(floor(facts={"value": text}).errors) == ["fact:value"]


# ---------------------------------------------------------------- what rests on the caller's word alone


@pytest.mark.parametrize(
    ("when", "asserted"),
    [
        ("trusted", True),
        ("trusted && big", False),
        ('subject.properties.role == "admin" && big', False),
        ("by_role == 1", True),
        ('subject.properties.role == "admin"', True),
        ("has(subject.properties.role) && subject.properties.trust.integrity > 0.5", True),
        ('subject.properties.role == "admin" && action.name == "read"', False),
        ('subject.id == "alice"', False),
        ("now.getHours() < 8", False),
        ("true", False),
    ],
)
def test_reads_only_subject_properties_is_true_for_rules_that_read_nothing_else(
    when: str, asserted: bool
) -> None:
    facts = {
        "trusted": "subject.properties.trusted == true",
        "by_role": "trusted ? 1 : 2",
        "big": "resource.properties.pages > 100",
    }
    assert reads_only_subject_properties(rule("one", when), facts) == asserted


# ---------------------------------------------------------------- properties

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
)
KEYS = st.sampled_from(["role", "trust", "integrity", "level", "details", "now"]) | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=5)
ENTITIES = st.builds(Entity, type=st.text(max_size=8), id=st.text(max_size=8), properties=OBJECTS)
EVALUATIONS = st.builds(
    Evaluation,
    subject=ENTITIES,
    action=st.builds(Action, name=st.text(max_size=12), properties=OBJECTS),
    resource=ENTITIES,
    context=OBJECTS,
)

#: Expressions as packs write them; many of them fail on one request or another.
WHENS = st.sampled_from(
    [
        "true",
        "false",
        'subject.properties.role == "admin"',
        "subject.properties.trust.integrity < 0.5",
        "has(subject.properties.trust) && subject.properties.trust.integrity < 0.5",
        "context.level > 2",
        'type(context.details) == string && mentions(context.details, "list")',
        'mentions(action.name, "list")',
        'resource.id.matches("^[a-m]")',
        "context.details.size() > 3",
        "now.getHours() > 8",
        "level_known && level > 1",
        "dyn(context)",
    ]
)
FACTS = {"level_known": '"level" in context', "level": "context.level"}


@st.composite
def rule_lists(draw: st.DrawFn) -> list[Rule]:
    drawn = draw(st.lists(st.tuples(WHENS, st.sampled_from(OUTCOMES), st.booleans()), max_size=5))
    return [
        rule(f"rule-{number}", when, outcome, final=is_final)
        for number, (when, outcome, is_final) in enumerate(drawn)
    ]


def floor_of(rules: Sequence[Rule], request: Evaluation) -> Floor:
    risk = 'context.level > 2 ? "high" : "low"'
    return book(*rules, facts=FACTS, risk=risk, words={"list": ["delete*", "audit log"]}).apply(request, NOON)


def shuffled(value: Any) -> Any:
    """The same JSON with the keys of every object in the opposite order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(rule_lists(), EVALUATIONS)
def test_any_request_gets_a_floor_from_the_list_of_outcomes(rules: list[Rule], request: Evaluation) -> None:
    result = floor_of(rules, request)
    assert result.outcome in OUTCOMES
    assert result.risk in RISKS
    assert {name for name in result.rules if not name.startswith("vocabulary:")} <= {
        drawn.id for drawn in rules
    }
    assert not (result.errors and result.final and result.outcome == "allow")


@given(rule_lists(), WHENS, st.sampled_from(OUTCOMES), EVALUATIONS)
def test_adding_a_rule_never_loosens_the_floor(
    rules: list[Rule], when: str, outcome: str, request: Evaluation
) -> None:
    before = floor_of(rules, request)
    after = floor_of([*rules, rule("added", when, outcome)], request)
    assert OUTCOMES.index(after.outcome) >= OUTCOMES.index(before.outcome)
    if after.final and not before.final:
        assert after.outcome == "deny"


@given(rule_lists(), EVALUATIONS)
def test_a_final_allow_changes_no_outcome(rules: list[Rule], request: Evaluation) -> None:
    assert floor_of([*rules, final("added")], request).outcome == floor_of(rules, request).outcome


@given(rule_lists(), EVALUATIONS, st.randoms(use_true_random=False))
def test_the_order_of_rules_does_not_change_what_they_demand(
    rules: list[Rule], request: Evaluation, random: Any
) -> None:
    before = floor_of(rules, request)
    random.shuffle(rules)
    after = floor_of(rules, request)
    assert (after.outcome, after.final, after.risk) == (before.outcome, before.final, before.risk)
    assert (after.facts, after.errors.keys()) == (before.facts, before.errors.keys())
    assert sorted(after.rules) == sorted(before.rules)


@given(rule_lists(), EVALUATIONS)
def test_the_order_of_keys_changes_nothing(rules: list[Rule], request: Evaluation) -> None:
    other = Evaluation(
        subject=Entity(
            type=request.subject.type, id=request.subject.id, properties=shuffled(request.subject.properties)
        ),
        action=Action(name=request.action.name, properties=shuffled(request.action.properties)),
        resource=request.resource,
        context=shuffled(request.context),
    )
    before, after = floor_of(rules, request), floor_of(rules, other)
    assert (after.outcome, after.final, after.rules, after.facts, after.risk) == (
        before.outcome,
        before.final,
        before.rules,
        before.facts,
        before.risk,
    )
    assert after.errors.keys() == before.errors.keys()


@given(rule_lists(), EVALUATIONS)
def test_the_same_request_at_the_same_time_gets_the_same_floor(
    rules: list[Rule], request: Evaluation
) -> None:
    first, second = floor_of(rules, request), floor_of(rules, request)
    # Their wording may differ: it can hold a map, and a map of the CEL library has no order.
    assert first.errors.keys() == second.errors.keys()
    assert msgspec.structs.replace(first, errors={}) == msgspec.structs.replace(second, errors={})


# ---------------------------------------------------------------- default, and packs of rules alone


def rules_only(*rules: Rule, default: str = "deny", **more: Any) -> RuleBook:
    whole: dict[str, Any] = {"outcomes": OUTCOMES, "facts": {}, "risk": None, **more}
    return RuleBook(rules=rules, default=default, rules_only=True, **whole)


def test_the_default_decides_by_rule_where_no_rule_does() -> None:
    defaults = RuleBook(
        outcomes=OUTCOMES, facts={}, rules=[rule("no", "false")], risk='"low"', default="deny"
    )
    result = defaults.apply(evaluation(), NOON)
    assert (result.outcome, result.final, result.rules) == ("deny", True, ())
    assert result.because == "No rule decides this, so the answer is deny."
    assert result.settles("deny")


@pytest.mark.parametrize("is_final", [True, False])
def test_a_rule_that_allows_keeps_the_default_away(is_final: bool) -> None:
    permit = rule("permit", outcome="allow", final=is_final)
    book_ = RuleBook(outcomes=OUTCOMES, facts={}, rules=[permit], risk='"low"', default="deny")
    result = book_.apply(evaluation(), NOON)
    assert (result.outcome, result.final, result.because) == ("allow", is_final, "Because of permit.")


def test_an_error_leaves_the_default_and_disables_the_allow() -> None:
    permit, broken = final("permit"), final("broken", "context.missing")
    for default, outcome in (("require_mfa", "require_mfa"), ("allow", "allow")):
        book_ = RuleBook(outcomes=OUTCOMES, facts={}, rules=[permit, broken], risk='"low"', default=default)
        result = book_.apply(evaluation(), NOON)
        assert (result.outcome, result.final) == (outcome, False)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_without_a_model_every_rule_is_final(outcome: str) -> None:
    result = rules_only(rule("says", outcome=outcome)).apply(evaluation(), NOON)
    assert (result.outcome, result.final, result.rules) == (outcome, True, ("says",))


@pytest.mark.parametrize("default", OUTCOMES)
def test_without_a_model_a_failed_allow_or_fact_is_the_strictest_outcome(default: str) -> None:
    for book_ in (
        rules_only(final("broken", "context.missing"), final("permit"), default=default),
        rules_only(final("permit"), default=default, facts={"broken": "context.missing"}),
        rules_only(final("permit"), default=default, risk="context.missing"),
    ):
        result = book_.apply(evaluation(), NOON)
        assert (result.outcome, result.final, len(result.errors)) == ("deny", True, 1)
        assert "failed" in str(result.because)


def test_without_a_model_a_failed_rule_counts_as_matched() -> None:
    broken = rule("broken", "context.missing", "require_mfa")
    result = rules_only(broken, final("permit")).apply(evaluation(), NOON)
    assert (result.outcome, result.final, result.rules) == ("require_mfa", True, ("broken",))


def test_a_pack_without_a_model_needs_a_default_that_is_an_outcome() -> None:
    with pytest.raises(PackError, match="model: a pack without a model needs `default`"):
        RuleBook(outcomes=OUTCOMES, facts={}, rules=[], risk=None, rules_only=True)
    with pytest.raises(PackError, match="default: 'maybe' is not one of allow"):
        rules_only(default="maybe")


# ---------------------------------------------------------------- required members and types

NEEDS = Requires(members={"context.amount": "number", "context.who": "string"}, outcome="require_mfa")


def needing(*rules: Rule, **more: Any) -> RuleBook:
    whole: dict[str, Any] = {"outcomes": OUTCOMES, "facts": {}, "risk": '"low"', "requires": NEEDS, **more}
    return RuleBook(rules=rules, **whole)


@pytest.mark.parametrize(
    ("context", "missing"),
    [
        ({"who": "kim"}, ("context.amount",)),
        ({"who": "kim", "amount": None}, ("context.amount",)),
        ({"who": "kim", "amount": "5"}, ("context.amount",)),
        ({"who": ["kim"], "amount": True}, ("context.amount", "context.who")),
        ({}, ("context.amount", "context.who")),
    ],
)
def test_a_request_without_required_members_gets_the_stated_outcome_and_their_names(
    context: dict[str, Any], missing: tuple[str, ...]
) -> None:
    above = rule("above", "context.amount > 10.0")
    result = needing(above, final("rest")).apply(evaluation(**context), NOON)
    assert (result.outcome, result.final, result.errors) == ("require_mfa", True, {})
    assert tuple(sorted(result.missing)) == missing
    assert all(path in str(result.because) for path in missing)


def test_a_rule_that_fires_without_the_missing_members_still_counts() -> None:
    result = needing(rule("locked", 'subject.id == "alice"')).apply(evaluation(), NOON)
    assert (result.outcome, result.rules) == ("deny", ("locked",))


def test_without_a_stated_outcome_a_missing_member_is_the_strictest_one() -> None:
    strict = needing(requires=Requires(members={"context.who": "string"}))
    assert strict.apply(evaluation(), NOON).outcome == "deny"


def test_a_member_that_may_be_absent_must_have_its_type_if_it_is_there() -> None:
    book_ = book_reading({"context.note": "string"}, rule("note", 'has(context.note) && context.note == "x"'))
    assert book_.apply(evaluation(), NOON).outcome == "allow"
    assert book_.apply(evaluation(note="x"), NOON).outcome == "deny"
    assert book_.apply(evaluation(note=["x"]), NOON).missing == ("context.note",)


def book_reading(reads: Mapping[str, Any], *rules: Rule, **more: Any) -> RuleBook:
    whole: dict[str, Any] = {"outcomes": OUTCOMES, "facts": {}, "risk": '"low"', "reads": reads, **more}
    return RuleBook(rules=rules, **whole)


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("bool", [True, False], [0, "true", []]),
        ("int", [0, 5, 5.0, -(2**63)], [5.5, "5", True]),
        ("number", [0, 5, 5.5, 2**60], ["5", True, []]),
        ("string", ["", "x"], [1, ["x"], {}]),
        ("timestamp", ["2026-07-01T10:00:00Z", "2026-07-01T10:00:00.5+02:00"], ["2026-07-01", "now", 5, ""]),
        ("list", [[], [1, "x"]], ["x", {}, 1]),
        ("list(string)", [[], ["x"]], [[1], "x", ["x", None]]),
        ("list(number)", [[1, 2.5]], [["1"], [True]]),
        ("map", [{}, {"a": 1}], [[], "x"]),
    ],
)
def test_each_type_accepts_its_values_and_no_other(kind: str, right: list[Any], wrong: list[Any]) -> None:
    book_ = book_reading({"context.v": kind})
    assert [book_.apply(evaluation(v=value), NOON).missing for value in right] == [()] * len(right)
    assert [book_.apply(evaluation(v=value), NOON).missing for value in wrong] == [("context.v",)] * len(
        wrong
    )


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ('context.amount == "5"', None),  # a number may be whole or not, so the checker leaves it open
        ("context.who > 5", "no matching overload for '_>_' applied to '(string, int)'"),
        ("context.who.size() > 5", None),
        ('given("context.who", true)', "context.who is declared as string, and the default is a bool"),
        (
            'given("context.amount", 0) > 1',
            "context.amount is declared as number, and the default is an int; write 0.0",
        ),
        ('given("context.amount", 0.0) > 1', None),
        ("has(context.who) && context.who.matches('^a')", None),
    ],
)
def test_expressions_are_checked_against_the_declared_types(when: str, message: str | None) -> None:
    if message is None:
        needing(rule("typed", when))
        return
    with pytest.raises(PackError, match=re.escape(message)):
        needing(rule("typed", when))


@pytest.mark.parametrize(
    "path", ["amount", "context", "subject.id", "user.name", "context.", "resource.properties"]
)
def test_a_declared_member_lies_below_context_or_properties(path: str) -> None:
    with pytest.raises(PackError, match="must be a path below context"):
        book_reading({path: "string"})


# ---------------------------------------------------------------- what the runtime alone gets wrong


@pytest.mark.parametrize("place", ["context", "properties", "name"])
def test_text_after_a_nul_is_not_hidden_from_rules(place: str) -> None:
    hidden = Evaluation(
        subject=Entity(type="user", id="alice", properties={"note": "ok\0 rm -rf /"}),
        action=Action(name="read\0delete"),
        resource=Entity(type="doc", id="x"),
        context={"command": "ls\0; rm -rf /", "list": ["a\0rm"], "map": {"k\0rm": 1}},
    )
    whens = {
        "context": 'context.command.contains("rm") && context.list[0].contains("rm") '
        '&& context.map.exists(k, k.contains("rm")) && given("context.command", "").contains("rm")',
        "properties": 'subject.properties.note.contains("rm") && mentions(subject.properties.note, "list")',
        "name": 'action.name.contains("delete") && mentions(action.name, "deletes") && action.name != "read"',
    }
    words = {"list": ["rm"], "deletes": ["delete"]}
    assert book(rule("seen", whens[place]), words=words).apply(hidden, NOON).outcome == "deny"


def test_a_nul_in_a_literal_is_refused() -> None:
    for literal in (r"'a\000b'", r"'a\x00b'", r"'\u0000'"):
        with pytest.raises(PackError, match="a string cannot contain NUL"):
            book(rule("nul", f"subject.id == {literal}"))


@pytest.mark.parametrize(
    ("amount", "limit", "is_above"),
    [
        (2**53 + 1, 2**53, True),
        (2**53, 2**53 + 1, False),
        (2**53 + 1, float(2**53), True),
        (float(2**53), 2**53 + 1, False),
        (2**53 + 1, 2**53 + 1, False),
        (10**18 + 1, 1e18, True),
        (2**63 - 1, 2**63 - 2, True),
        (-(2**53) - 1, -(2**53), False),
        (0.5, 0, True),
        (1e300, 2**63 - 1, True),
        (5, 5.0, False),
    ],
)
def test_whole_numbers_and_doubles_compare_exactly(amount: float, limit: float, is_above: bool) -> None:
    for when in (
        "context.amount > context.limit",
        'given("context.amount", 0.0) > given("context.limit", 0.0)',
        'given("context.amount", null) > given("context.limit", null)',
    ):
        result = floor(rule("above", when), context={"amount": amount, "limit": limit})
        assert (result.errors, result.outcome) == ({}, "deny" if is_above else "allow"), when


def test_a_double_literal_above_2_53_is_refused() -> None:
    with pytest.raises(PackError, match="is compared inexactly with whole numbers; write 9007199254740992"):
        book(rule("big", "context.amount > 9007199254740992.0"))


# ---------------------------------------------------------------- why


def test_a_trace_says_of_each_rule_whether_it_fired_and_which_part_did_not_hold() -> None:
    rules = (
        rule("both", 'level > 2 && subject.id == "alice"'),
        rule("half", 'subject.id == "alice" && level > 9'),
        rule("broken", 'level > 2 && context.missing == 1 || subject.id == "x"', "require_mfa"),
    )
    result, traces = book(*rules, facts={"level": "context.level"}).trace(evaluation(level=5), NOON)
    assert (result.outcome, [trace.state for trace in traces]) == ("deny", ["fired", "not", "failed"])
    assert [(part.text, part.value) for part in traces[1].parts] == [
        ('subject.id == "alice"', True),
        ("level > 9", False),
    ]
    assert len(traces[2].parts) == 1  # `||` binds weaker: no part of it decides alone
    assert "missing" in str(traces[2].error)


@pytest.mark.parametrize("name", ["risk", "fact:kind", "vocabulary:action.name"])
def test_a_rule_cannot_have_the_name_of_another_expression(name: str) -> None:
    with pytest.raises(PackError, match=f"the id '{name}' is not free"):
        book(rule(name), facts={"kind": '"a"'})
