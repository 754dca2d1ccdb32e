"""Programs of a rule book: facts come before what reads them, and an expression that fails fails alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.policy.budget import Budget, RulesStopped, spending
from thor_policy.policy.expressions import Language, Type
from thor_policy.policy.rule_programs import Programs
from thor_policy.policy.words import WordLists

OTHERS = {"rule": "true", "risk": '"low"'}


def programs(facts: dict[str, str], **others: str) -> tuple[Language, Programs]:
    language = Language(words=WordLists({}))
    types: dict[str, Type] = {}
    for name, text in facts.items():
        checked = language.check(text, types)
        assert isinstance(checked, Type)
        types[name] = checked
    return language, Programs(language, facts, types, others or OTHERS)


def inputs(language: Language, **context: Any) -> dict[str, Any]:
    entity = Entity(type="user", id="kim")
    evaluation = Evaluation(subject=entity, action=Action(name="read"), resource=entity, context=context)
    return language.inputs(evaluation, 1.8e9)


def test_a_fact_is_there_for_what_reads_it_and_a_step_is_not_shown() -> None:
    language, book = programs({"a": "1", "_b": "a + 1", "c": "_b + a"}, rule="c == 3 && _b == 2")
    variables = inputs(language)
    assert book.run(variables) == ({"a": 1, "c": 3}, [True], {})
    assert variables["_b"] == 2


def test_what_fails_is_named_and_what_does_not_read_it_has_its_value() -> None:
    facts = {"bad": "context.none", "good": "1", "reads": "bad + 1", "other": "good + 1"}
    language, book = programs(facts, a="other == 2", b="reads == 1", c="good == 1")
    shown, values, errors = book.run(inputs(language))
    assert shown == {"good": 1, "other": 2}
    assert values == [True, None, True]
    assert list(errors) == ["fact:bad", "fact:reads", "b"]


def test_a_fact_that_is_no_json_counts_as_failed() -> None:
    language, book = programs({"big": "context.x / 0.0", "dynamic": "dyn(timestamp(0))"})
    shown, _, errors = book.run(inputs(language, x=1.0))
    assert shown == {}
    assert errors == {
        "fact:big": "gave a float, not a plain value",
        "fact:dynamic": "gave a datetime, not a plain value",
    }


def test_what_reads_a_fact_that_is_no_json_fails_too_where_they_are_computed_together() -> None:
    language, book = programs({"big": "1.0 / 0.0", "reads": "big > 1.0"}, rule="reads", other="true")
    assert book.run(inputs(language)) == (
        {},
        [None, True],
        {
            "fact:big": "gave a float, not a plain value",
            "fact:reads": "reads the fact big, which failed",
            "rule": "reads the fact reads, which failed",
        },
    )


@pytest.mark.parametrize("depth", [1, 12, 13, 40])
def test_each_fact_may_read_the_one_before_it_however_many_there_are(depth: int) -> None:
    facts = {"f0": "1"} | {f"f{at}": f"f{at - 1} + 1" for at in range(1, depth)}
    language, book = programs(facts, rule=f"f{depth - 1} == {depth}")
    assert book.run(inputs(language)) == ({f"f{at}": at + 1 for at in range(depth)}, [True], {})


@pytest.mark.parametrize("parentheses", [28, 30, 31])
def test_expressions_that_nest_deeply_are_computed_where_they_fit(parentheses: int) -> None:
    deep = "(" * parentheses + "a + 1" + ")" * parentheses
    language, book = programs({"a": "1", "b": deep, "c": f"{deep} + b", "d": "c + 1"}, rule="d == 5")
    assert book.run(inputs(language)) == ({"a": 1, "b": 2, "c": 4, "d": 5}, [True], {})


@given(st.lists(st.sets(st.integers(0, 19)), min_size=1, max_size=20), st.sets(st.integers(0, 19)))
def test_running_together_gives_what_running_one_by_one_gives(reads: list[set[int]], fail: set[int]) -> None:
    facts = {
        f"f{number}": " + ".join(
            [
                "context.none" if number in fail else str(number),
                *(f"f{other}" for other in sorted(needed) if other < number),
            ]
        )
        for number, needed in enumerate(reads)
    }
    others = {f"r{number}": f"f{number} >= 0" for number in range(len(reads))}
    language, book = programs(facts, **others)
    shown, values, errors = book.run(inputs(language))

    alone = inputs(language)
    failed = set()
    for name, text in facts.items():
        result = language.compile([text], facts).run(alone)
        if isinstance(result, str):
            failed.add(f"fact:{name}")
        else:
            alone[name] = result[0]
    for id_, text in others.items():
        result = language.compile([text], facts).run(alone)
        failed |= {id_} if isinstance(result, str) else set()
    assert shown == {name: alone[name] for name in facts if name in alone}
    assert set(errors) == failed
    assert values == [None if id_ in failed else True for id_ in others]


@pytest.mark.parametrize("looks", range(4))
def test_the_budget_is_looked_at_behind_each_program(looks: int) -> None:
    language, book = programs({"a": "dyn(1)", "b": "dyn(a + 1)", "c": "dyn(b + 1)"})
    now_ns = iter([0] * (looks + 1) + [10**9] * 9)  # the first reading is that of the new budget
    variables = inputs(language)
    limit = Budget(10_000.0, deadline_ns=10**9, now_ns=lambda: next(now_ns), cpu_ns=lambda: 0)
    with spending(limit), pytest.raises(RulesStopped):
        book.run(variables)
    assert [name for name in "abc" if name in variables] == list("abc"[:looks])
