"""Calls from the CEL runtime into Python: they leak nothing, and no null ends the process."""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
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


def test_a_thread_that_ends_leaves_nothing_behind() -> None:
    def call_in_threads(times: int) -> None:
        for _ in range(times):
            thread = threading.Thread(
                target=run, args=("context.items.distinct()", 3), kwargs={"items": items}
            )
            thread.start()
            thread.join()
        gc.collect()

    items = [[number] for number in range(100)]
    call_in_threads(10)
    before = sys.getallocatedblocks()
    call_in_threads(100)
    assert sys.getallocatedblocks() - before < 500


def test_threads_that_call_at_the_same_time_get_their_own_results() -> None:
    def call(number: int) -> set[str]:
        text = 'given("context.items", []).flatten().distinct().size() == 2 ? given("context.text", "") : "?"'
        program = LANGUAGE.compile([text], ())
        entity = Entity(type="user", id="alice")
        context = {"text": str(number) * 9, "items": [["a"], ["b"], "a"]}
        evaluation = Evaluation(subject=entity, action=Action(name="read"), resource=entity, context=context)
        inputs = LANGUAGE.inputs(evaluation, 0.0)
        return {str(program.run(inputs)) for _ in range(2000)}

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(call, range(4)))
    finally:
        sys.setswitchinterval(interval_s)
    assert results == [{str([str(number) * 9])} for number in range(4)]


def test_a_call_that_is_interrupted_leaves_the_next_calls_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(text: str, _name: str) -> bool:
        if text == "stop":
            raise KeyboardInterrupt
        return True

    language = Language(words=WordLists({"list": ["delete"]}))
    monkeypatch.setattr(WordLists, "mentions", lambda _, text, name: interrupted(text, name))
    program = language.compile(['context.items.map(text, mentions(text, "list"))'], ())
    entity = Entity(type="user", id="alice")
    for _ in range(300):
        for items, works in ((["stop"], False), (["go", "stop"], False), (["go", "go"], True)):
            evaluation = Evaluation(
                subject=entity, action=Action(name="read"), resource=entity, context={"items": items}
            )
            values = program.run(language.inputs(evaluation, 0.0))
            assert values == [[True, True]] if works else isinstance(values, str)


def test_a_call_that_fails_gives_the_message_of_its_exception() -> None:
    assert run('given("context.text", 1)', 1, text="a") == "context.text: a string, not a whole number"
    assert run("[1, true].max()", 1) == "the list has items of several types"
    assert "64 bits" in run("[9223372036854775807, 1].sum()", 1)
    assert run('given("context.text", 1) == 1 || true', 1, text="a") == [True]
    assert run("context.none", 1) == 'Key not found in map : "none"'


@pytest.mark.parametrize("text", ["context.v", '{"a": null}', "[null].flatten()", 'given("context.v", [])'])
def test_a_million_nulls_do_not_end_the_process(text: str) -> None:
    assert run(text, 250, v=[None] * 4000) is not None
    assert sys.getrefcount(None) > 2**30
