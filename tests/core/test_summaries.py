"""Context summaries: 50 to 200 words of recorded values, the same for the same record."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.summaries import (
    ABSENT,
    DEFAULT,
    LEAST_WORDS,
    MOST_TEMPLATE_CHARS,
    MOST_WORDS,
    NAMES,
    fault_of_template,
    summary,
)


def trace(**changes: Any) -> dict[str, Any]:
    """A decision by rule on a discount, with a consent and a result; `changes` are columns of its row."""
    row: dict[str, Any] = {
        "decision_id": "d1",
        "decision_type": "exception",
        "timestamp": "2026-07-01T12:00:00.000000Z",
        "timestamp_decision": None,
        "actor": "user:alice",
        "action": "give_discount",
        "entity": "quote:Q-7",
        "decision": "require_manager",
        "floor": "require_manager",
        "tier": "rule",
        "reasoning": "It is over the limit.",
        "confidence": None,
        "confidence_level": None,
        "risk_level": "medium",
        "urgency": None,
        "is_exception": 1,
        "judgment_call": None,
        "prompt_version": "discounts@1.0.0+51c7193bbc1f",
        "lacks": ["outcome"],
    }
    return {
        "decision": row | changes,
        "event": {
            "body": {"floor": {"rules": ["over"], "because": "It is over the limit."}},
            "private": {
                "evaluation": {"context": {"details": "the customer\nwaits"}},
                "facts": {"over": True, "total": 12.5},
            },
        },
        "consultations": [
            {"system": "crm", "entity": "acme", "answer": "gold", "fresh_at": "2026-06-30T00:00:00Z"}
        ],
        "approvals": [{"verdict": "approved", "approver": "kim", "role": "manager", "channel": "phone"}],
        "supplements": [],
        "outcomes": [],
    }


def test_the_default_template_says_what_the_record_holds() -> None:
    text = summary(trace())
    assert text == (
        "A decision of the type exception was made on 2026-07-01T12:00:00Z and recorded on "
        "2026-07-01T12:00:00Z. Actor: user:alice. Action: give_discount. About: quote:Q-7. "
        "Details: the customer waits. Facts: over true, total 12.5. Decided by the rules alone; the outcome "
        "is require_manager, the least that the rules demand is require_manager. Rules that matched: over. "
        "Reasons: It is over the limit. Confidence: no level. Risk: medium. Urgency: normal. "
        "Flags: exception. Policy version: discounts@1.0.0+51c7193bbc1f. "
        "Data consulted: crm acme = gold as of 2026-06-30T00:00:00Z. "
        "Approvals: approved by kim (manager) by phone. Result: none yet. Missing from the trace: outcome."
    )


def test_the_same_record_gives_the_same_text() -> None:
    assert summary(trace()) == summary(copy.deepcopy(trace()))


def test_a_template_of_the_pack_comes_first_and_is_filled_up_to_fifty_words() -> None:
    text = summary(trace(), "{actor} asked for {action}. Result: {result}.")
    assert text.startswith("user:alice asked for give_discount. Result: none yet. A decision of the type ")
    assert LEAST_WORDS <= len(text.split()) <= MOST_WORDS


def test_a_template_that_is_long_enough_stands_alone() -> None:
    template = "{actor}: " + " ".join(["word"] * 60)
    assert summary(trace(), template) == template.replace("{actor}", "user:alice")


def test_a_value_has_at_most_twenty_words_and_no_control_character() -> None:
    text = summary(trace(reasoning="why \x1b[31m " + "so " * 500), "Because {reasoning}! " + "end " * 50)
    assert text.startswith("Because why \ufffd[31m so so ")
    assert text.count("so") == 18
    assert "\x1b" not in text


def test_the_newest_result_that_counts_is_shown() -> None:
    ended = trace() | {
        "outcomes": [
            {"status": "FAILURE", "value": -3.0, "note": "lost", "claimed": None},
            {"status": "SUCCESS", "value": 12.5, "note": None, "claimed": None},
            {"status": "FAILURE", "value": None, "note": None, "claimed": 1},
        ]
    }
    assert "Result: SUCCESS, value 12.5." in summary(ended)


def test_what_a_supplement_adds_is_shown_where_the_record_has_nothing() -> None:
    added = {"supplied": {"reasoning": "It was promised.", "actor": "nobody"}, "claimed": None}
    claimed = {"supplied": {"reasoning": "It was not."}, "claimed": 1}
    text = summary(trace(reasoning=None) | {"supplements": [added, claimed], "event": {}})
    assert "Reasons: It was promised." in text
    assert "Actor: user:alice." in text


def test_an_erased_decision_has_a_summary_without_its_values() -> None:
    erased = trace(actor=None, entity=None, reasoning=None)
    erased["event"]["private"] = None
    text = summary(erased)
    assert f"Actor: {ABSENT}." in text
    assert "over true" not in text
    assert "Reasons: not recorded." in text
    assert LEAST_WORDS <= len(text.split()) <= MOST_WORDS


@given(
    st.text(max_size=300),
    st.dictionaries(st.text(max_size=10), st.text(max_size=50), max_size=40),
    st.sampled_from([None, "{facts} {details}", "x", "{reasoning}" * 20]),
)
def test_any_record_gives_fifty_to_two_hundred_printable_words(
    text: str, facts: dict[str, str], template: str | None
) -> None:
    record = trace(reasoning=text, actor=text, entity=text)
    record["event"]["private"] |= {"facts": facts, "evaluation": {"context": {"details": text}}}
    made = summary(record, template)
    assert LEAST_WORDS <= len(made.split()) <= MOST_WORDS
    assert made == " ".join(made.split()) == summary(record, template)
    assert made.isprintable()


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (DEFAULT, None),
        ("{actor}", None),
        ("", None),
        ("{aktor}", "there is no value {aktor}; did you mean {actor}?"),
        ("{}", f"there is no value {{}}; there are {', '.join(NAMES)}"),
        ("{actor.id}", "there is no value {actor.id}; did you mean {actor}?"),
        ("{actor", "has a brace that belongs to no {name}"),
        ("{{actor}}", "has a brace that belongs to no {name}"),
        ("x" * (MOST_TEMPLATE_CHARS + 1), "has 2001 characters; the limit is 2000"),
    ],
)
def test_a_template_can_only_name_what_a_record_holds(template: str, fault: str | None) -> None:
    assert fault_of_template(template) == fault


def test_every_name_of_a_template_has_a_value() -> None:
    for name in NAMES:
        assert summary(trace(), f"[{{{name}}}] " + "end " * 50).startswith("[")
        assert f"{{{name}}}" not in summary(trace(), f"[{{{name}}}]")
