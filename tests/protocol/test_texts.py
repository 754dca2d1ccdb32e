"""The bounds of texts at the door: every text of a question, at any depth, before any rule reads it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.protocol.messages import EvaluateBatchRequest, EvaluateRequest, Message, RecordRequest
from thor_policy.protocol.requests import decode_request
from thor_policy.protocol.texts import _ROW, MAX_MARKS, TextLimits, has_long_row

LIMITS = TextLimits(300)
LONG = "a" * 301
MARK = "\u0301"


def ask(**parts: Any) -> dict[str, Json]:
    return {
        "subject": {"type": "user", "id": "ivo", **parts.get("subject", {})},
        "action": {"name": "read", **parts.get("action", {})},
        "resource": {"type": "doc", "id": "guide", **parts.get("resource", {})},
        "context": parts.get("context", {}),
    }


def decode(limits: TextLimits = LIMITS, *, escaped: bool = False, **members: Json) -> Message:
    text = json.dumps({"v": 1, **members}, ensure_ascii=escaped)
    return decode_request(text.encode(), max_bytes=10**6, max_deadline_ms=1_000, texts=limits)


def refusal(limits: TextLimits = LIMITS, **members: Json) -> RequestError:
    with pytest.raises(RequestError) as error:
        decode(limits, **members)
    return error.value


PLACES = [
    ({"subject": {"properties": {"role": LONG}}}, "request.subject.properties.role"),
    ({"action": {"properties": {"a": [1, {"b": LONG}]}}}, "request.action.properties.a.1.b"),
    ({"resource": {"properties": {"tags": ["x", LONG]}}}, "request.resource.properties.tags.1"),
    ({"context": {"details": LONG}}, "request.context.details"),
    ({"context": {"a": {"b": {"c": [[LONG]]}}}}, "request.context.a.b.c.0.0"),
    ({"subject": {"unknown": LONG}}, "request.subject.unknown"),
]


@pytest.mark.parametrize(("parts", "place"), PLACES, ids=[place for _, place in PLACES])
def test_a_long_text_is_refused_with_its_place_its_limit_and_the_cure(
    parts: dict[str, Json], place: str
) -> None:
    error = refusal(request=ask(**parts))
    assert error.code == "too_large"
    assert error.message == (
        f"{place}: has 301 characters; the limit is 300; shorten it, or raise limits.texts of the pack or "
        "the setting max_text_chars"
    )


@pytest.mark.parametrize("escaped", [False, True])
def test_a_text_as_long_as_the_limit_is_accepted(escaped: bool) -> None:
    for text in ("a" * 300, "é" * 300, "日" * 300):
        assert decode(request=ask(context={"details": text}), escaped=escaped)


def test_the_name_of_a_member_is_a_text_too() -> None:
    error = refusal(request=ask(context={"outer": {LONG: 1}}))
    assert error.code == "too_large"
    assert error.message.startswith("request.context.outer.aaaa")
    assert " (the name): has 301 characters" in error.message


def test_the_length_counts_in_nfkc_where_a_letter_stands_for_many() -> None:
    ligature = "\ufdfa"
    assert decode(request=ask(context={"details": ligature * 16}))
    error = refusal(request=ask(context={"details": ligature * 17}))
    assert (error.code, "has 306 characters in NFKC" in error.message) == ("too_large", True)


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize(
    ("member", "place"),
    [
        ({"request": ask(subject={"id": "a" + MARK * 31})}, "request.subject.id"),
        ({"request": ask(context={"a" + MARK * 31: 1})}, "request.context.a"),
        ({"request": ask(context={"list": ["", MARK * 31]})}, "request.context.list.1"),
        (
            {"situation": {"actor_id": "a", "action_type": "b", "resource": "c", "x": MARK * 31}},
            "situation.x",
        ),
        ({"request": ask(), "annotations": {"scenario_id": MARK * 31}}, "annotations.scenario_id"),
    ],
)
def test_a_row_of_more_than_thirty_marks_is_refused(
    member: dict[str, Json], place: str, escaped: bool
) -> None:
    with pytest.raises(RequestError) as error:
        decode(escaped=escaped, **member)
    assert error.value.code == "bad_request"
    assert error.value.message.startswith(place)
    assert "more than 30 combining marks in a row; remove some" in error.value.message


def test_thirty_marks_in_a_row_are_accepted_again_and_again() -> None:
    assert decode(request=ask(context={"details": ("a" + MARK * 30) * 9}))


def test_in_a_batch_only_the_item_with_the_long_text_is_refused() -> None:
    items = [{"context": {}}, {"context": {"details": LONG}}, {"context": {"details": "\u0301" * 31}}]
    message = decode(request=ask(), evaluations=items)
    assert isinstance(message, EvaluateBatchRequest)
    fine, long, marked = message.items
    assert isinstance(fine, EvaluateRequest)
    assert isinstance(long, RequestError)
    assert (long.code, long.message[:29]) == ("too_large", "evaluations.1.context.details")
    assert isinstance(marked, RequestError)
    assert (marked.code, marked.message[:29]) == ("bad_request", "evaluations.2.context.details")


def test_a_long_text_in_the_defaults_of_a_batch_refuses_the_batch() -> None:
    error = refusal(request=ask(context={"details": LONG}), evaluations=[{"context": {}}])
    assert (error.code, error.message[:23]) == ("too_large", "request.context.details")


class TestLimitsOfAPack:
    @staticmethod
    def limits(pack: str | None) -> Mapping[str, int]:
        return {"context.diff": 500, "action.properties.body": 400} if pack in (None, "code") else {}

    LIMITS = TextLimits(300, limits)

    @pytest.mark.parametrize(
        "members",
        [
            {"request": ask(context={"diff": "a" * 500})},
            {"request": ask(context={"diff": {"old": ["a" * 500]}})},
            {"request": ask(action={"properties": {"body": "a" * 400}})},
            {"request": ask(context={"diff": "a" * 500}), "pack": "code"},
            {"situation": {"actor_id": "a", "action_type": "b", "resource": "c", "diff": "a" * 500}},
        ],
    )
    def test_hold_at_their_path_and_below_it(self, members: dict[str, Json]) -> None:
        assert decode(self.LIMITS, **members)

    @pytest.mark.parametrize(
        ("members", "limit"),
        [
            ({"request": ask(context={"diff": "a" * 501})}, 500),
            ({"request": ask(context={"different": LONG})}, 300),
            ({"request": ask(context={"diff": "a" * 500}), "pack": "other"}, 300),
            ({"request": ask(action={"properties": {"diff": LONG}})}, 300),
            ({"situation": {"actor_id": "a", "action_type": "b", "resource": "c", "body": LONG}}, 300),
        ],
    )
    def test_hold_nowhere_else(self, members: dict[str, Json], limit: int) -> None:
        error = refusal(self.LIMITS, **members)
        assert (error.code, f"the limit is {limit};" in error.message) == ("too_large", True)

    def test_of_a_batch_hold_for_its_items(self) -> None:
        message = decode(self.LIMITS, request=ask(), evaluations=[{"context": {"diff": "a" * 500}}])
        assert isinstance(message, EvaluateBatchRequest)
        assert isinstance(message.items[0], EvaluateRequest)


def test_annotations_are_bounded_in_number_and_length() -> None:
    assert refusal(request=ask(), annotations={"tags": ["t"] * 1_100}).code == "too_large"
    assert refusal(request=ask(), annotations={"scenario_id": LONG}).code == "too_large"


def test_json_in_a_record_is_bounded_as_the_texts_of_records_are() -> None:
    def send(value: Json) -> Message:
        return decode(op="consultation", record={"system": "s", "session": "x", "value": value})

    assert isinstance(send({"body": ["a" * 32_768, MARK * 100]}), RecordRequest)
    with pytest.raises(RequestError, match=r"record\.value\.body\.0: has more than 32768 characters"):
        send({"body": ["a" * 32_769]})


def test_every_character_that_nfkd_makes_of_marks_alone_counts() -> None:
    """The pattern that looks for rows finds all of them, and each stands for two marks at most."""
    for char in map(chr, range(0x110000)):
        decomposed = unicodedata.normalize("NFKD", char)
        if all(map(unicodedata.combining, decomposed)):
            assert len(decomposed) <= 2
            assert _ROW.match(char * (MAX_MARKS // 2 + 1))
        else:
            assert not unicodedata.combining(decomposed[0])


@given(st.text(st.sampled_from("a\u0301\u0323\u0344\uff9e\u093c！ \u200d"), max_size=80))
def test_a_row_is_long_if_more_than_thirty_characters_of_nfkd_in_it_are_no_starters(text: str) -> None:
    marks, longest = 0, 0
    for char in text:
        decomposed = unicodedata.normalize("NFKD", char)
        marks = marks + len(decomposed) if all(map(unicodedata.combining, decomposed)) else 0
        longest = max(longest, marks)
    assert has_long_row(text) == (longest > MAX_MARKS)


def test_default_limits_are_those_of_the_setting() -> None:
    assert TextLimits().most_chars == 4096
    assert replace(TextLimits(), most_chars=1).longer_in("any") == {}
