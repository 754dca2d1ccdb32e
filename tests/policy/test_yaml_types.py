"""Every problem of a YAML file is reported in one run, each with its line and column."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from thor_policy.core.errors import PackError
from thor_policy.core.requests import Json
from thor_policy.policy import yaml_text
from thor_policy.policy.yaml_text import MAX_FINDINGS, Document


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    final: bool = False
    kind: Literal["near", "far"] = "near"
    free: Json = None


class Whole(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    title: str
    version: str
    parts: Annotated[tuple[Part, ...], Meta(min_length=1)]
    best: Part | None = None
    words: dict[Literal["low", "high"], tuple[str, ...]] = {}


EVERYTHING_WRONG = """\
title: 1.10
verzion: "1"
parts:
  - nme: a
    share: 1.5
    final: yes
    kind: fra
    free: {at: [1.50]}
  - name: b
    name: c
  - text
best:
  share: .5
words:
  low: [off, 7]
  hgh: []
"""


def test_every_problem_of_a_file_is_reported_in_one_run_in_the_order_of_the_file() -> None:
    findings = [str(finding) for finding in Document(EVERYTHING_WRONG, "f").problems(Whole)]
    assert findings == [
        'f:1:1: Object missing required field `version`',
        'f:1:8: Expected `str`, got `float` - at `$.title`: if it is text, write "1.10"',
        "f:2:1: Object contains unknown field `verzion`; is it `version`?",
        "f:4:5: Object missing required field `name` - at `$.parts[0]`",
        "f:4:5: Object contains unknown field `nme` - at `$.parts[0]`; is it `name`?",
        "f:5:12: Expected `float` <= 1.0 - at `$.parts[0].share`",
        "f:6:12: Expected `bool`, got `str` - at `$.parts[0].final`: write true or false",
        "f:7:11: Invalid enum value 'fra' - at `$.parts[0].kind`",
        "f:8:17: 1.50 reads as the number 1.5: quote it if it is text, or write 1.5",
        "f:10:5: the key 'name' appears twice; first in line 9, column 5",
        "f:11:5: Expected `object`, got `str` - at `$.parts[2]`",
        "f:12:1: Object missing required field `name` - at `$.best`",
        'f:15:14: Expected `str`, got `int` - at `$.words.low[1]`: if it is text, write "7"',
        "f:16:3: Invalid enum value 'hgh' - at `key` in `$.words`",
    ]  # fmt: skip
    with pytest.raises(PackError) as refusal:
        yaml_text.parse(EVERYTHING_WRONG, Whole, "f")
    assert str(refusal.value) == "\n".join(findings)


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rows: Annotated[dict[str, Annotated[list[int], Meta(max_length=1)]], Meta(min_length=1)]
    columns: Annotated[dict[str, int], Meta(min_length=1)]


def test_the_lengths_of_lists_and_mappings_are_checked_beside_all_else() -> None:
    findings = Document("rows:\n  a: [1, 2]\n  b: [x]\ncolumns: {}\n", "f").problems(Table)
    assert [str(finding) for finding in findings] == [
        "f:2:6: Expected `array` of length <= 1 - at `$.rows.a`",
        "f:3:7: Expected `int`, got `str` - at `$.rows.b[0]`",
        "f:4:10: Expected `object` of length >= 1 - at `$.columns`",
    ]


def test_an_unknown_member_that_is_like_none_is_answered_with_the_known_ones() -> None:
    (finding,) = Document("title: a\nversion: b\nparts: [{name: c}]\ncolour: d\n", "f").problems(Whole)
    assert str(finding) == (
        "f:4:1: Object contains unknown field `colour`; there are title, version, parts, best, words"
    )


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("", "f:1:1: Expected `object`, got `null`"),
        ("[]", "f:1:1: Expected `object`, got `array`"),
        ("title: a\nversion: b\nparts: []", "f:3:8: Expected `array` of length >= 1 - at `$.parts`"),
        ("title: a\nversion: b\nparts: {}", "f:3:8: Expected `array`, got `object` - at `$.parts`"),
        ("title: a\nversion:\nparts: [{name: a}]", "f:2:9: Expected `str`, got `null` - at `$.version`"),
    ],
)
def test_one_problem_has_its_place(text: str, finding: str) -> None:
    assert [str(each) for each in Document(text, "f").problems(Whole)] == [finding]


@pytest.mark.parametrize("kind", [Whole, Table, dict[str, Any], dict[str, Part], Any])
@given(st.integers(0, len(EVERYTHING_WRONG) - 1), st.sampled_from("?[]{}&*!|>-:#'\" a1,\n"))
def test_a_damaged_file_has_problems_or_is_another_file_and_never_an_error_of_our_own(
    kind: Any, index: int, char: str
) -> None:
    text = EVERYTHING_WRONG[:index] + char + EVERYTHING_WRONG[index + 1 :]
    assert Document(text, "f").problems(kind)


def test_keys_that_are_no_text_are_reported_beside_missing_members() -> None:
    findings = Document("? [a]\n: b\n? {c: d}\n: e\ntitle: a\nversion: b\n", "f").problems(Whole)
    assert [str(finding) for finding in findings] == [
        "f:1:1: Object missing required field `parts`",
        "f:1:3: a key must be text, not a mapping or a list",
        "f:3:3: a key must be text, not a mapping or a list",
    ]


def test_a_long_list_of_problems_ends_with_their_number() -> None:
    text = "".join(f"a{n}: 07\n" for n in range(MAX_FINDINGS + 5))
    with pytest.raises(PackError) as refusal:
        yaml_text.parse(text, Any, "f")
    lines = str(refusal.value).split("\n")
    assert len(lines) == MAX_FINDINGS + 1
    assert lines[-1] == "f: there are 5 more problems"


def test_numbers_may_be_written_in_any_way_where_numbers_stand() -> None:
    text = (
        "title: off\nversion: '1.10'\nparts: [{name: 22:30, share: 0.60, free: 0.6}, {name: b, share: 1.}]\n"
    )
    assert Document(text, "f").problems(Whole) == ()
    whole = yaml_text.parse(text, Whole, "f")
    assert (whole.title, whole.version, whole.parts[0].name) == ("off", "1.10", "22:30")
    assert [part.share for part in whole.parts] == [0.6, 1.0]
