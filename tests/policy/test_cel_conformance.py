"""CEL as the CEL project defines it: its public tests, our own functions, and any JSON and any text."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cel_conformance
import cel_doc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.policy.expressions import Language, Program
from thor_policy.policy.words import WordLists

ROOT = Path(__file__).parent.parent.parent
TABLES = {
    name: json.loads((ROOT / "tests" / "data" / name).read_text(encoding="utf-8")) for name in cel_doc.FILES
}

# ---------------------------------------------------------------- cases


@pytest.mark.parametrize("file", [file for table in TABLES.values() for file in table])
def test_every_case_of_a_file_passes_or_is_refused_at_load_for_a_named_reason(file: str) -> None:
    results = [result for result in cel_doc.results() if result.place.startswith(f"{file}/")]
    assert len(results) == sum(
        len(cases)
        for table in TABLES.values()
        for cases in table.get(file, {"sections": {}})["sections"].values()
    )
    assert [result for result in results if result.problem] == []


def test_every_feature_has_cases_and_every_other_case_is_of_something_refused() -> None:
    features = {cel_doc.feature_of(result.place) for result in cel_doc.results()}
    assert features - {None} == set(cel_doc.FEATURES)
    files_of_refusals = {file for refusal in cel_doc.REFUSALS for file in refusal.files}
    for result in cel_doc.results():
        if cel_doc.feature_of(result.place) is None:
            assert result.refusal is not None, result
            assert result.place.partition("/")[0] in files_of_refusals, result


def test_the_page_of_cel_equals_the_results_of_the_cases() -> None:
    path = ROOT / "docs" / "reference" / "cel.md"
    assert path.read_text(encoding="utf-8") == cel_doc.document(), f"run ./scripts/cel-doc > {path}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0), (1.0, 1), (True, 1), (1, True), (0.0, -0.0), (1, {"uint": 2}), (1, {"error": True}),
        ([1], [1, 1]), ([True], [1]), ("a", {"bytes": "61"}), (None, False), (math.nan, {"double": "inf"}),
        ({}, {"map": [["a", 1]]}), ({"a": 1}, {"map": []}),
        ({"a": 1.0}, {"map": [["a", 1]]}), ([], {"map": []}),
    ],
)  # fmt: skip
def test_a_value_of_another_type_or_content_is_not_the_expected_one(value: Any, expected: Any) -> None:
    assert not cel_doc.is_same(value, expected)


# ---------------------------------------------------------------- the table

SIMPLE = r"""
name: "letters"  # a comment
description: "dropped"
section {
  name: "second"
  test { name: "b" expr: "'\303\277' + " "'\\n'" value: { string_value: "\303\277\n" } }
  test: {
    name: "a", expr: "x", disable_check: true
    bindings {
      key: "x"
      value { value { list_value { values: [ {int64_value: -1}, <bool_value: true> ] } } }
    }
    type_env { name: "x" ident { type { list_type { elem_type { dyn {} } } } } }
  }
}
section {
  name: "first"
  test { name: "fails" expr: "1 / 0" eval_error { errors { message: "by zero" } } }
  test {
    name: "map" expr: "m"
    value { map_value { entries { key { uint64_value: 2 } value { double_value: -inf } } } }
  }
  test {
    name: "time" expr: "t"
    value { object_value { [type.googleapis.com/google.protobuf.Duration] { nanos: 5 } } }
  }
  test { name: "left out" expr: "Message{}" }
  test { name: "left out too" container: "a.b" expr: "1" }
}
"""


def test_the_table_has_sorted_cases_with_typed_values_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "letters.textproto").write_text(SIMPLE, encoding="utf-8")
    table = cel_conformance.table(tmp_path)
    assert table == {
        "letters": {
            "left_out": {"container": 1, "protobuf message": 1},
            "sections": {
                "first": [
                    ["fails", "1 / 0", {"error": True}],
                    ["map", "m", {"map": [[{"uint": 2}, {"double": "-inf"}]]}],
                    ["time", "t", {"duration": [0, 5]}],
                ],
                "second": [
                    [
                        "a",
                        "x",
                        True,
                        {"types": {"x": "list(dyn)"}, "bindings": {"x": [-1, True]}, "unchecked": True},
                    ],
                    ["b", "'ÿ' + '\\n'", "ÿ\n"],
                ],
            },
        }
    }
    assert json.loads("\n".join(cel_conformance.as_json(table))) == table


@pytest.mark.parametrize("name", cel_doc.FILES)
def test_a_table_is_written_as_the_script_writes_it(name: str) -> None:
    text = (ROOT / "tests" / "data" / name).read_text(encoding="utf-8")
    assert "\n".join(cel_conformance.as_json(json.loads(text))) + "\n" == text
    for file in json.loads(text).values():
        assert list(file["sections"]) == sorted(file["sections"])
        assert all(cases == sorted(cases, key=json.dumps) for cases in file["sections"].values())


@pytest.mark.parametrize("text", ["a: }", "a: 'open", "a { b: 1 } }"])
def test_what_is_no_text_format_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="not protobuf text format"):
        cel_conformance.parse(text)


def test_a_folder_without_tests_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \*\.textproto"):
        cel_conformance.table(tmp_path)


# ---------------------------------------------------------------- any JSON, any text

LANGUAGE = Language(words=WordLists({}))


def program(*texts: str) -> Program:
    for text in texts:
        assert not isinstance(LANGUAGE.check(text, {}), list), text
    return LANGUAGE.compile(texts, ())


def run(checked: Program, context: Mapping[str, Any]) -> Any:
    entity = Entity(type="user", id="alice")
    evaluation = Evaluation(
        subject=entity, action=Action(name="read"), resource=entity, context=dict(context)
    )
    return checked.run(LANGUAGE.inputs(evaluation, 0.0))


#: Any text, and more often what is mishandled: astral, combining, invisible, bidi and control characters.
CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from(
    "aZ 0'\"\\\n\r\t\0\x01\x1f\x7f\x85\xad\u0301\u0308\u200b\u200d\u202e\u2028\u2066\ufeff\ufffd\uffff"
    "\U0001f62c\U0001f468\U0001f1ee\U000e0041\U0010ffff"
)
TEXTS = st.text(CHARACTERS, max_size=12)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from(
        [
            2**53,
            2**53 + 1,
            -(2**63),
            2**63 - 1,
            -0.0,
            5e-324,
            sys.float_info.max,
            2.0**53,
            2.0**63,
            -(2.0**63),
        ]
    )
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def as_read(value: Any) -> Any:
    """The value with its types, after the changes that a request goes through before rules see it."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [as_read(item) for item in value]
    if isinstance(value, dict):
        return {as_read(key): as_read(item) for key, item in value.items()}
    if isinstance(value, float) and value.is_integer() and abs(value) >= 2**53 and -(2**63) <= value < 2**63:
        value = int(value)
    if value == 2.0**63:  # it must not compare as equal to 2**63 - 1
        value = math.nextafter(value, math.inf)
    return type(value).__name__, repr(value)


VALUE = program("context.v", "[context.v]", '{"k": context.v}')


@given(JSON)
def test_any_json_value_comes_back_unchanged_but_for_nul_and_whole_doubles_from_2_to_the_53(
    value: Any,
) -> None:
    values = run(VALUE, {"v": value})
    assert [as_read(item) for item in values] == as_read([value, [value], {"k": value}])


COMPARISONS = program(
    "size(context.a)",
    "context.a.size()",
    "context.a == context.b",
    "context.a != context.b",
    "context.a in [context.b, context.c]",
    "context.a in {context.b: 1}",
    "context.a.startsWith(context.b)",
    "context.a.endsWith(context.b)",
    "context.a.contains(context.b)",
    "context.a.indexOf(context.b)",
    "context.a + context.b",
    "context.a < context.b",
)


@given(TEXTS, TEXTS, TEXTS, st.sampled_from(["apart", "inside", "same"]))
def test_texts_are_measured_and_compared_as_in_python(a: str, b: str, c: str, relation: str) -> None:
    a = {"apart": a, "inside": c + b + a, "same": b}[relation]
    values = run(COMPARISONS, {"a": a, "b": b, "c": c})
    a, b, c = (text.replace("\0", "\ufffd") for text in (a, b, c))
    assert values == [
        len(a),
        len(a),
        a == b,
        a != b,
        a in (b, c),
        a == b,
        a.startswith(b),
        a.endswith(b),
        b in a,
        a.find(b),
        a + b,
        a < b,
    ]


ELEMENTS = program(
    "context.x in context.items",
    "context.items == context.items",
    "context.x == context.items",
    "size(context.items)",
    "context.items.distinct().size() <= context.items.size()",
)


@given(JSON, st.lists(JSON, max_size=4))
def test_in_and_equality_agree_with_python_but_for_bools_and_2_to_the_63(x: Any, items: list[Any]) -> None:
    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, bool) or isinstance(b, bool):
            return a is b
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(map(equal, a, b))
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        if isinstance(a, int | float) and isinstance(b, int | float) and 2.0**63 in (a, b):
            return float(a) == float(b)
        if isinstance(a, int | float) and isinstance(b, int | float) and 2.0**63 in (a, b):
            return float(a) == float(b)
        return bool(a == b)

    def without_nul(value: Any) -> Any:
        return json.loads(json.dumps(value, ensure_ascii=False).replace("\\u0000", "\ufffd"))

    values = run(ELEMENTS, {"x": x, "items": items})
    x, items = without_nul(x), without_nul(items)
    is_in = any(equal(x, item) for item in items)
    assert values == [is_in, True, equal(x, items), len(items), True]
