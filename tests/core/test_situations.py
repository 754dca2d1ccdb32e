"""Situations: the same text before a decision and after it was recorded."""

from __future__ import annotations

import pytest
from msgspec import to_builtins

from thor_policy.core.requests import Action, Entity, Evaluation, Json
from thor_policy.core.situations import MOST_WORD_CHARS, MOST_WORDS, situation_in, situation_of

ASKED = Evaluation(
    subject=Entity(type="user", id="alice", properties={"role": "developer", "team": "core"}),
    action=Action(name="delete_table", properties={"force": True}),
    resource=Entity(type="table", id="orders", properties={}),
    context={"incident": None, "details": "drop the old table", "approved": ["bob", 2]},
)


def test_the_text_has_what_was_asked_and_not_who_asked() -> None:
    text = situation_of(ASKED)
    assert text == (
        "user developer delete table table orders drop the old table approved bob 2 incident force yes "
        "team core"
    )


def test_a_recorded_question_has_the_text_that_it_had_before() -> None:
    assert situation_in({"evaluation": to_builtins(ASKED)}, {}) == situation_of(ASKED)


def test_a_report_has_its_type_entity_and_context() -> None:
    row = {"decision_type": "risk", "entity": "ACME"}
    assert situation_in({"context": {"exposure": 3}}, row) == "risk decision about ACME exposure 3"


def test_an_erased_decision_has_no_text() -> None:
    assert situation_in(None, {"decision_type": "risk"}) == ""


def test_the_text_is_bounded() -> None:
    context = {"details": "x" * 10_000, **{f"name{n}": f"word {n}" for n in range(1_000)}}
    long = Evaluation(subject=ASKED.subject, action=ASKED.action, resource=ASKED.resource, context=context)
    words = situation_of(long).split()
    assert len(words) == MOST_WORDS
    assert max(map(len, words)) == MOST_WORD_CHARS


def test_equal_members_in_another_order_give_equal_text() -> None:
    reversed_context = dict(reversed(ASKED.context.items()))
    other = Evaluation(
        subject=ASKED.subject, action=ASKED.action, resource=ASKED.resource, context=reversed_context
    )
    assert situation_of(other) == situation_of(ASKED)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (63_527.26, "63500"),
        (-63_527.26, "-63500"),
        (0.095123, "0.0951"),
        (5_280.0, "5280"),
        (5_280, "5280"),
        (0, "0"),
        (-0.0, "-0"),
        (6_786_469, "6790000"),
        (2.5e-7, "2.5e-07"),
        (10**400, str(10**400)[:MOST_WORD_CHARS]),
        (True, "yes"),
        ("63527.26", "63527.26"),
        ("2026-04-12T13:20:00Z", "Sunday 13h"),
        ("2026-04-12T23:59:59.123456+02:00", "Sunday 23h"),
        ("2026-04-13 03:20", "Monday 3h"),
        ("2026-02-30T13:20:00Z", "2026-02-30T13:20:00Z"),
        ("2026-04-12", "2026-04-12"),
        ("at 2026-04-12T13:20:00Z", "at 2026-04-12T13:20:00Z"),
    ],
)
def test_numbers_have_three_digits_that_count_and_times_weekday_and_hour(value: Json, words: str) -> None:
    assert situation_in({"context": {"x": value}}, {}) == f"decision about x {words}"
