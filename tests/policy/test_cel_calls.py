"""Calls from the CEL runtime into Python: they leak nothing, and no null ends the process."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest

from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.policy.expressions import Language
from thor_policy.policy.words import WordLists

LANGUAGE = Language(words=WordLists({"list": ["delete"]}), data={"table": {"a": [1]}})


def run(expression: str, times: int, **context: Any) -> Any:
    entity = Entity(type="user", id="alice")
    evaluation = Evaluation(subject=entity, action=Action(name="read"), resource=entity, context=context)
    program = LANGUAGE.compile([expression], ())
    inputs = LANGUAGE.inputs(evaluation, 0.0)
    result = None
    for _ in range(times):
        result = program.run(inputs)
    return result


@pytest.mark.parametrize(
    "text",
    [
        'mentions(context.text, "list")',
        'starts(context.text, "list")',
        'given("context.items", [context.items]).size()',
        'given("context.map", {"k": context.items}).size()',
        'given("context.none", {"k": context.items}).size()',
        'given("context.text", "")',
        'row("table", "a")',
        "context.items.flatten()",
        "context.items.distinct()",
        "[[1], [2]].flatten().sum()",
        "[3, 1].min() + [3, 1].max()",
        "sets.contains(context.items, [[1]])",
        "sets.intersects(context.items, [[1]])",
        "sets.equivalent(context.items, [[1]])",
    ],
)
def test_a_call_of_a_function_leaks_neither_its_arguments_nor_its_result(text: str) -> None:
    context = {"text": "please delete" * 9, "items": [["a"], {"b": ["c"]}], "map": {"k": ["v"]}}
    assert isinstance(run(text, 10, **context), list)
    gc.collect()
    before = len(gc.get_objects()), sys.getallocatedblocks()
    run(text, 1000, **context)
    gc.collect()
    after = len(gc.get_objects()), sys.getallocatedblocks()
    assert after[0] - before[0] < 50
    assert after[1] - before[1] < 500


def test_the_result_of_a_call_is_held_no_longer_than_until_the_next_call() -> None:
    items = ["held"]
    run('given("context.items", []).size()', 1000, items=items)
    run('mentions("a", "list")', 1)
    assert sys.getrefcount(items) < 10


def test_a_call_that_fails_gives_the_message_of_its_exception() -> None:
    assert run('given("context.text", 1)', 1, text="a") == "context.text: a string, not a whole number"
    assert run("[1, true].max()", 1) == "a bool is no number"
    assert run("[9223372036854775807, 1].sum()", 1) == "sum: beyond 64 bits"
    assert run('given("context.text", 1) == 1 || true', 1, text="a") == [True]
    assert run("context.none", 1) == 'Key not found in map : "none"'


@pytest.mark.parametrize("text", ["context.v", '{"a": null}', "[null].flatten()", 'given("context.v", [])'])
def test_a_million_nulls_do_not_end_the_process(text: str) -> None:
    assert run(text, 250, v=[None] * 4000) is not None
    assert sys.getrefcount(None) > 2**30
