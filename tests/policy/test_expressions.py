"""Expressions: what the checker refuses because the runtime, or its binding, gets it wrong."""

from __future__ import annotations

from typing import Any

import pytest

from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.policy.expressions import Language, Type
from thor_policy.policy.faults import Fault
from thor_policy.policy.words import WordLists

LANGUAGE = Language(words=WordLists({}), data={"table": {}, "faulty": {"ls": "reeds"}})
ANY = LANGUAGE.check("dyn(1)", {})


def faults(text: str, **facts: Type) -> list[str]:
    checked = LANGUAGE.check(text, facts)
    return [f"{fault.column}: {fault.message}" for fault in checked] if isinstance(checked, list) else []


def value(text: str, **context: Any) -> Any:
    assert faults(text) == []
    entity = Entity(type="user", id="alice")
    evaluation = Evaluation(subject=entity, action=Action(name="read"), resource=entity, context=context)
    values = LANGUAGE.compile([text], ()).run(LANGUAGE.inputs(evaluation, 0.0))
    assert isinstance(values, list), values
    return values[0]


# ---------------------------------------------------------------- optional values


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("[{'a': optional.of(1)}].distinct() == []", 8),
        ("[optional.of(1), 1].flatten().size() == 1", 2),
        ("given('context.q', {'a': 1, 'b': context.v.first()}) == {}", 44),
        ("sets.contains([], [{'a': context.?v, 'b': 1}])", 34),
        ("dyn({'a': context.?v, 'b': 1})", 19),
        ("dyn([[context.?v]])", 15),
        ("[context.v[?0], 1].flatten().size() == 2", 12),
        ("[context.v.last(), 1].distinct().size() == 2", 12),
        ("(true ? dyn(context.?v) : 1) == 1", 21),
        ("[true ? context.?v : dyn(1)].flatten().size() == 1", 17),
        ("[context.?v.optMap(x, x), 2].sum() == 1", 10),
        ("cel.bind(o, context.?v, {'a': o})", 21),
        ("[1].map(x, context.?v)", 20),
        ("context.?v", 9),
        ("context.?`k-v`.?k", 9),
        ("true ? context.?a : optional.none()", 16),
        ("optional.of(context.?a).hasValue()", 21),
        ("optional.none() == optional.none()", 1),
        ("context.?a.orValue(context.?b) == 1", 28),
        ("[?[context.?a][0]]", 12),
    ],
)
def test_an_optional_value_that_is_kept_is_refused_where_it_begins(text: str, column: int) -> None:
    message = "an optional value must be ended where it is: add .orValue(..), .hasValue() or .value()"
    assert f"{column}: {message}" in faults(text)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("context.?a.orValue(1)", 1),
        ("context.?v.orValue([])", [7, 8]),
        ("context.?m.?k.orValue(0)", 5),
        ("context.m[?'k'].orValue(0)", 5),
        ("context.v[?9].hasValue()", False),
        ("context.v.first().value()", 7),
        ("context.?m.k.orValue(0)", 5),
        ("context.?m[?'k'].orValue(0)", 5),
        ("context.m.?`a-b`.orValue(6)", 6),
        ("(true ? context.?v : optional.none()).orValue([])", [7, 8]),
        ("context.?a.or(context.?v).orValue([])", [7, 8]),
        ("context.?a.or(true ? context.?v : optional.none()).hasValue()", True),
        ("context.?m.optMap(x, x.k + 1).orValue(0)", 6),
        ("context.?m.optFlatMap(x, x.?k).orValue(0)", 5),
        ("[?context.?a, ?context.m.?k, 1]", [5, 1]),
        ("{?'a': context.?a, ?'k': context.m.?k, 'l': [?context.v.last()]}", {"k": 5, "l": [8]}),
        ("has(context.?m.k)", True),
        ("[context.?a.orValue(1), context.?v.orValue([])].flatten()", [1, 7, 8]),
        ("[1, 2].exists(x, x == context.?a.orValue(2))", True),
        ("context.m.exists(x, x in [?optional.of('k')])", True),
        ('"context.?a [?0] optional.of(1)".size()', 30),
        ("context.first == 1 && context.optional.of == 2", True),
    ],
)
def test_an_optional_value_that_is_ended_in_place_is_accepted(text: str, result: Any) -> None:
    assert value(text, v=[7, 8], m={"k": 5}, first=1, optional={"of": 2}) == result


def test_an_optional_value_that_reaches_the_result_is_an_error_and_no_exception() -> None:
    assert isinstance(LANGUAGE.compile(["dyn(optional.of(1))"], ()).run({}), str)


# ---------------------------------------------------------------- maps, literals, protobuf


@pytest.mark.parametrize(
    ("text", "column", "key"),
    [
        ("{0: 1, 0u: 2}", 8, "0u"),
        ("{0u: 1, 0x0: 2}", 9, "0x0"),
        ("{'a': 1, 'b': 2, \"a\": 3}", 18, '"a"'),
        ("[{1: {'a': 1}, 2: 3, 1: 4}]", 22, "1"),
    ],
)
def test_a_map_with_the_same_key_twice_is_refused(text: str, column: int, key: str) -> None:
    assert faults(text) == [f"{column}: this map has the key {key} twice; remove one"]


@pytest.mark.parametrize(
    "text", ["{0: 1, 1u: 2}", "{'a': {'a': 1}}", "{'0': 1, 0: 2}", "{'a': 'b', 'c': 'b'}"]
)
def test_a_map_with_different_keys_is_accepted(text: str) -> None:
    assert faults(text) == []


@pytest.mark.parametrize("text", ["r'[\\x00-\\x1f]'", 'R"\\000"', "'\\\\x00'", "br'\\x00'"])
def test_a_raw_string_may_name_nul_for_a_pattern(text: str) -> None:
    assert faults(text) == []


@pytest.mark.parametrize("text", ["'\\x00'", "'r\\x00'", '"\\000"', "b'\\x00'", "'\\\\\\u0000'", "r'\0'"])
def test_a_string_with_nul_is_refused(text: str) -> None:
    assert faults(text) == ["1: a string cannot contain NUL; in a request it is read as U+FFFD"]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("9007199254740992.0", 2**53),
        ("1e16", 10**16),
        ("9223372036854775808.0", 2**63 - 1),
    ],
)
def test_a_double_that_whole_numbers_are_compared_with_inexactly_is_refused(text: str, whole: int) -> None:
    assert faults(f"context.v > {text}") == [
        f"13: {text} is compared inexactly with whole numbers; write {whole}"
    ]
    assert faults(f"context.v > {whole}") == []


@pytest.mark.parametrize("whole", [-(2**63) + 1, -(2**53) - 1, 2**53 + 1, 2**63 - 1025])
def test_whole_doubles_of_a_request_are_compared_exactly(whole: int) -> None:
    assert float(whole) != whole
    texts = "[context.a == context.b, context.a < context.b, context.a in [context.b]]"
    assert value(texts, a=whole, b=float(whole)) == [False, whole < float(whole), False]


@pytest.mark.parametrize("text", ["1e19", "1.5e300", "9007199254740991.0", "0.5"])
def test_a_double_beyond_every_whole_number_or_below_2_to_the_53_is_accepted(text: str) -> None:
    assert value(f"[context.low < {text}, context.v > {text}]", low=0, v=2**63 - 1) == [
        True,
        float(text) < 2**63 - 1,
    ]


@pytest.mark.parametrize(
    "text",
    [
        "google.protobuf.Value{number_value: 1.0}",
        "google.protobuf.Timestamp{seconds: 5}",
        "google.protobuf.Any{}",
    ],
)
def test_protobuf_types_are_refused(text: str) -> None:
    column = text.index("google") + 1
    message = "a pack has no protobuf types; write the value itself, or timestamp(..), duration(..)"
    assert faults(text) == [f"{column}: {message}"]


def test_a_fact_or_member_may_be_named_google() -> None:
    assert isinstance(ANY, Type)
    assert faults("google.protobuf == 1", google=ANY) == []
    assert faults("context.google == 1") == []


def test_every_fault_of_a_text_has_its_place() -> None:
    checked = LANGUAGE.check("{1: 1e17,\n 1: context.?a}", {})
    assert isinstance(checked, list)
    assert [(fault.line, fault.column) for fault in checked] == [(1, 5), (2, 13), (2, 2)]
    assert all(isinstance(fault, Fault) for fault in checked)


def test_a_fact_may_have_the_name_of_a_function_and_stand_alone() -> None:
    assert isinstance(ANY, Type)
    assert faults("shell", shell=ANY) == []


# ---------------------------------------------------------------- members of what functions give


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("shell(context.a).comands != []", "18: shell(..) has no member 'comands'; did you mean 'commands'?"),
        ("shell(context.a)['kindz'] == 1", "18: shell(..) has no member 'kindz'; did you mean 'kinds'?"),
        ("shell(context.a).?urlz.hasValue()", "19: shell(..) has no member 'urlz'; did you mean 'urls'?"),
        ("1 == 1 && line.pats.size() > 0", "16: shell(..) has no member 'pats'; did you mean 'paths'?"),
        ("url(context.a).hots == ''", "16: url(..) has no member 'hots'; did you mean 'host'?"),
        ("shell(context.a, 'tables').opaque == ''", "18: there is no table 'tables' in data.yaml"),
    ],
)  # fmt: skip
def test_a_member_that_a_function_does_not_give_is_refused_at_its_place(text: str, fault: str) -> None:
    line = LANGUAGE.check("shell(context.a)", {})
    assert isinstance(line, Type)
    assert faults(text, line=line) == [fault]


@pytest.mark.parametrize(
    "text",
    [
        "shell(context.a).commands.exists(c, c.program == 'ls')",
        "line.kinds.size() + line['paths'].size() + line.size() > 0",
        "[{'kindz': 1}].exists(line, line.kindz == 1)",
        "shell(context.a, 'table').opaque == ''",
    ],
)
def test_members_that_a_function_gives_are_accepted(text: str) -> None:
    line = LANGUAGE.check("shell(context.a)", {})
    assert isinstance(line, Type)
    assert faults(text, line=line) == []


def test_a_faulty_table_of_programs_is_refused_where_it_is_named() -> None:
    (fault,) = faults("shell(context.a, 'faulty').opaque == ''")
    assert fault.startswith("18: data.yaml faulty: ls: there is no kind 'reeds'")


# ---------------------------------------------------------------- variables


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("subject . id", "alice"),
        ("subject\n  .properties\n  .role", "dev"),
        ("has(subject.properties.role)", True),
        ('subject.properties["role"]', "dev"),
        ("subject.properties.?role.orValue('')", "dev"),
        ('context["v"]', [7]),
        ("context.?v.orValue([])[0] + context.v[0]", 14),
        ("context == {'v': [7]}", True),
        ("[context, resource.properties].map(place, size(place))", [1, 0]),
        ("resource.properties.size()", 0),
        ("action.name.startsWith('re') ? resource.id : action.properties.k", "d"),
        ("[1].exists(subject, subject == 1)", True),
        ("[subject.id].map(context, context)", ["alice"]),
        ('given("subject.properties.role", "")', "dev"),
        ('["role"].map(name, given("subject.properties." + name, ""))', ["dev"]),
        ('given("subject.properties.role", "") + subject.properties.role', "devdev"),
        ("data.table.a", 1),
        ('data["table"].a', None),
        ("now > timestamp(0)", True),
        ("fact + 1", 6),
    ],
)
def test_a_program_gets_every_variable_that_it_reads(text: str, result: Any) -> None:
    language = Language(words=WordLists({}), data={"table": {"a": 1}})
    evaluation = Evaluation(
        subject=Entity(type="user", id="alice", properties={"role": "dev"}),
        action=Action(name="read"),
        resource=Entity(type="doc", id="d"),
        context={"v": [7]},
    )
    known = language.check("dyn(5)", {})
    assert isinstance(known, Type)
    if result is None:
        assert isinstance(language.check(text, {"fact": known}), list)
        return
    assert isinstance(language.check(text, {"fact": known}), Type)
    inputs = language.inputs(evaluation, 1.8e9) | {"fact": 5}
    assert language.compile([text], ("fact",)).run(inputs) == [result]


# ---------------------------------------------------------------- what checking leaves


def test_what_checking_needed_can_be_forgotten_and_later_expressions_check_and_run_as_before() -> None:
    language = Language(words=WordLists({}))
    program = language.compile(["1 + 1"], ())
    assert language.check("context.level > 3", {}) != []
    language.forget_environments()
    assert language._environments == {}
    assert program.run({}) == [2]
    assert isinstance(language.check("context.level > 3", {}), Type)
    assert language.compile(["2 + 2"], ()).run({}) == [4]
