"""YAML that people write: words are text, other spellings are refused with their place, limits hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from thor_policy.config import data_path
from thor_policy.core.errors import PackError, SuiteError
from thor_policy.core.requests import Json
from thor_policy.policy import pack_files, yaml_text
from thor_policy.policy.yaml_text import MAX_DEPTH, Document
from thor_policy.suites import suite_files

# ---------------------------------------------------------------- the core schema


#: What YAML 1.1 reads as truth, times, dates and numbers, and what looks like a number only.
WORDS = """
off Off OFF on yes Yes no NO y n 22:30 1:20:30 190:20:30.15 2026-07-01 2026-07-01T10:00:00Z 1_000 0b11 0x 0o8
0X1F 0O17 -0x1F 1e 1e+ . + .e5 ++1 1.2.3 = <<x nan inf NaN -inf .Infinity Nil nULL tRUE None
"""


@pytest.mark.parametrize("text", WORDS.split())
def test_a_plain_word_that_yaml_1_2_knows_no_other_type_for_is_text(text: str) -> None:
    assert yaml_text.parse(f"free: {text}", Any, "f") == {"free": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None), ("Null", None), ("NULL", None), ("~", None), ("", None),
        ("true", True), ("True", True), ("TRUE", True), ("false", False), ("False", False), ("FALSE", False),
        ("0", 0), ("-7", -7), ("12", 12), (str(2**63 - 1), 2**63 - 1), (str(-(2**63)), -(2**63)),
        ("1.5", 1.5), ("-0.25", -0.25), ("100.0", 100.0), ("1e-07", 1e-07), ("1e+17", 1e17),
    ],
)  # fmt: skip
def test_null_truth_and_numbers_are_those_of_yaml_1_2(text: str, value: Json) -> None:
    read = yaml_text.parse(f"free: {text}", Any, "f")["free"]
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.10", 1.1), ("007", 7), ("012", 12), ("1e5", 100000.0), ("12e4", 120000.0),
        ("0x1F", 31), ("0o17", 15),
        ("+5", 5), ("1.", 1.0), (".5", 0.5), ("-0", 0), ("1.50E+2", 150.0), ("0.30000000000000000001", 0.3),
    ],
)  # fmt: skip
def test_a_number_in_another_spelling_is_refused_where_any_value_may_stand(text: str, value: float) -> None:
    message = f"f:1:10: {text} reads as the number {value!r}: quote it if it is text, or write {value!r}"
    for kind in (Any, dict[str, Any], dict[str, list[Any]]):
        with pytest.raises(PackError) as refusal:
            yaml_text.parse(f"free: [0, {text}]", kind, "f")
        assert str(refusal.value) == message.replace(":10:", ":11:")
    assert yaml_text.parse(f"free: ['{text}']", Any, "f") == {"free": [text]}
    assert yaml_text.parse(f"typed: {text}", dict[str, float], "f") == {"typed": value}


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: !!binary aGk=", (1, 4), "the tag !!binary is refused"),
        ("a: !!set {x}", (1, 4), "the tag !!set is refused"),
        ("a: !!timestamp 2026-07-01", (1, 4), "the tag !!timestamp is refused"),
        ("a:\n  - !!python/name:os.system ''", (2, 5), "the tag !!python/name:os.system is refused"),
        ("a: !!str 1.10", (1, 4), "the tag !!str is refused"),
        ("a: !office_hours", (1, 4), "the tag !office_hours is refused: remove it; quote a text that"),
        ("a: ! 12", (1, 4), "the tag ! is refused"),
        ("a: &x ! 12", (1, 4), "the tag ! is refused"),
        ("a: {<<: {b: 1}}", (1, 5), "the merge key << is refused"),
        ("1: a", (1, 1), "the key 1 is no text: quote it"),
        ("true: a", (1, 1), "the key true is no text: quote it"),
        ("1.10: a", (1, 1), "the key 1.10 is no text: quote it"),
        ("?\n: a", (1, 2), "the key (empty) is no text: quote it"),
        ("? [a]\n: b", (1, 3), "a key must be text, not a mapping or a list"),
        ("? {a: b}\n: b", (1, 3), "a key must be text, not a mapping or a list"),
        ("a: .nan", (1, 4), ".nan is no finite number"),
        ("a: -.inf", (1, 4), "-.inf is no finite number"),
        ("a: 1e999", (1, 4), "1e999 is no finite number"),
        (f"a: {2**63}", (1, 4), "the integer does not fit 64 bits"),
        (f"a: {-(2**63) - 1}", (1, 4), "the integer does not fit 64 bits"),
        (f"a: {'9' * 10_000}", (1, 4), "the integer does not fit 64 bits"),
        ("a: 0xFFFFFFFFFFFFFFFFF", (1, 4), "the integer does not fit 64 bits"),
        ("é: {a: 1, b: {c: 1, d: 2,\n  c: 1}}", (2, 3), "the key 'c' appears twice; first in line 1, col"),
        ("a: 1\n'a': 2", (2, 1), "the key 'a' appears twice; first in line 1, column 1"),
        ("a: b\x07", (1, 5), "the character U+0007 may not stand in YAML"),
        ("# off\u2028a: b", (1, 6), "the character U+2028 may not stand in YAML"),
        ("%YAML 1.1\n---\na: off", (1, 7), "the file is read as YAML 1.2"),
        ("a: b\n---\nc: d", (2, 1), "but found another document; a file has one document"),
        ("a: *b", (1, 4), "found undefined alias"),
        ("é: [", (2, 1), "did not find expected node content"),
        ("\ta: 1", (1, 1), "found character that cannot start any token; indent with spaces"),
        ('a: "x" == b', (1, 8), "did not find expected key"),
        ("when: a ? b : c\nof: d : e", (1, 13), "mapping values are not allowed in this context; put a"),
    ],
)  # fmt: skip
def test_what_is_no_json_or_no_yaml_is_refused_with_line_and_column(
    text: str, place: tuple[int, int], message: str
) -> None:
    (finding,) = Document(text, "f").problems(Any)
    assert (finding.line, finding.column) == place
    assert finding.message.startswith(message)
    with pytest.raises(PackError, match=r"^f:[0-9]+:[0-9]+: "):
        yaml_text.parse(text, Any, "f")


def test_a_quoted_merge_key_quoted_numbers_and_a_line_that_names_version_1_2_are_plain_yaml() -> None:
    assert yaml_text.parse("%YAML 1.2\n---\n'<<': 1\n\"1\": .\n", Any, "f") == {"<<": 1, "1": "."}


def test_a_byte_order_mark_and_the_line_ends_of_other_systems_change_no_value_and_no_place() -> None:
    document = Document("\ufeffa: 'b\r\n  c'\r\nd: e\rf: 07\r\n", "f")
    assert [(finding.line, finding.column) for finding in document.problems(Any)] == [(4, 4)]
    assert document.convert(dict[str, str | int]) == {"a": "b c", "d": "e", "f": 7}
    assert document.position("$.f") == (4, 4)


@given(st.text(st.sampled_from("ab1.: -?#'\"\\\n\t{}[],&*!|>%@~<=\x00\ud800\x85\ufeff") | st.characters()))
@example('"\\ud800"')
@example("%YAML 3.0\n---\n")
@example("%TAG ! !")
def test_any_text_is_json_or_has_problems_with_a_place_in_it(text: str) -> None:
    document = Document(text, "f")
    findings = document.problems(Any)
    if findings:
        last = text.count("\n") + text.count("\r") + 2
        assert all(1 <= finding.line <= last and finding.column >= 1 for finding in findings)
    else:
        msgspec.json.encode(document.convert(Any))
    document.place("$", 1, 1)


# ---------------------------------------------------------------- limits


def test_aliases_stand_for_what_they_name() -> None:
    text = "a: &a [1, &t text]\nb: *a\nc: {*t : *t}\n"
    value = yaml_text.parse(text, Any, "f")
    assert value == {"a": [1, "text"], "b": [1, "text"], "c": {"text": "text"}}
    assert value["a"] is not value["b"]


def test_aliases_that_multiply_without_end_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(PackError, match=r"^f:[0-9]+:[0-9]+: there are more than 1000000 values, aliases"):
        yaml_text.parse("\n".join(lines), Any, "f")


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "&a [&b {c: [*a, *b]}]"])
def test_an_alias_inside_its_own_anchor_is_refused(text: str) -> None:
    with pytest.raises(PackError, match="no alias inside its own anchor"):
        yaml_text.parse(text, Any, "f")


def test_nesting_is_limited_before_the_stack_is() -> None:
    assert yaml_text.parse("[" * MAX_DEPTH + "]" * MAX_DEPTH, Any, "f")
    for depth in (MAX_DEPTH + 1, 200_000):
        with pytest.raises(
            PackError, match=rf"^f:1:{MAX_DEPTH + 1}: nesting is deeper than {MAX_DEPTH} levels"
        ):
            yaml_text.parse("[" * depth + "]" * depth, Any, "f")


# ---------------------------------------------------------------- packs and suites

SUITE = """\
name: words
pack: door
scenarios:
  - id: N1
    title: Words
    difficulty: easy
    request:
      subject: {{type: user, id: a}}
      action: {{name: look}}
      resource: {{type: door, id: two, properties: {{free: {value}}}}}
    expect: {{outcome: allow}}
"""
FIXTURE = """\
name: words
pack: door
fixtures:
  base:
    situation: {{actor_id: a, action_type: look, resource: two, state: {{free: {value}}}}}
scenarios:
  - {{id: N1, title: Words, difficulty: easy, uses: [base], situation: {{}}, expect: {{outcome: allow}}}}
"""
AXIS = """\
name: words
pack: door
matrix:
  - id: M
    title: Words
    difficulty: easy
    situation: {{actor_id: a, action_type: look, resource: two}}
    axes:
      light:
        {value}: {{state: {{free: {value}}}}}
    expect: [{{when: {{light: {value}}}, expect: {{outcome: allow}}}}]
"""
EXAMPLE = """\
- id: X1
  evaluation:
    subject: {{type: user, id: ada}}
    action: {{name: read}}
    resource: {{type: doc, id: handbook}}
    context:
      free: {value}
  outcome: allow
  classification: granted
  risk: low
  clauses: []
  reasoning: An ordinary read.
"""


def free_value(template: str, value: str, folder: Path) -> Json:
    """The value that a suite, or the example of a pack, has where `value` is written."""
    text = template.format(value=value)
    if template is EXAMPLE:
        pack = shutil.copytree(data_path("prompts") / "team-governance", folder / "pack")
        (pack / "examples.yaml").write_text(text, encoding="utf-8")
        return pack_files.load(pack).examples[0].evaluation.context["free"]
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    scenario = suite_files.load(path).scenarios[0]
    if isinstance(scenario.request, dict):
        return scenario.request["resource"]["properties"]["free"]
    assert isinstance(scenario.situation, dict)
    return scenario.situation["state"]["free"]


@pytest.mark.parametrize(
    ("template", "value"),
    [
        (SUITE, "off"), (SUITE, "22:30"), (SUITE, "="), (SUITE, "0b11"), (FIXTURE, "yes"),
        (FIXTURE, "2026-07-01"),
        (AXIS, "No"), (AXIS, "on"), (AXIS, "1_000"), (EXAMPLE, "On"), (EXAMPLE, "2026-07-01 10:00:00"),
    ],
)  # fmt: skip
def test_a_plain_word_in_a_free_value_of_a_suite_or_an_example_is_the_text_that_stands_there(
    template: str, value: str, tmp_path: Path
) -> None:
    assert free_value(template, value, tmp_path) == value


@pytest.mark.parametrize(
    ("template", "value", "message"),
    [
        (SUITE, "1.10", r"suite\.yaml:10:58: 1\.10 reads as the number 1\.1: quote it"),
        (SUITE, "012", r"suite\.yaml:10:58: 012 reads as the number 12: quote it"),
        (SUITE, ".inf", r"suite\.yaml:10:58: \.inf is no finite number"),
        (SUITE, "1e5", r"suite\.yaml:10:58: 1e5 reads as the number 100000\.0"),
        (SUITE, str(2**70), r"suite\.yaml:10:58: the integer does not fit 64 bits"),
        (FIXTURE, "0x1F", r"suite\.yaml:5:78: 0x1F reads as the number 31"),
        (FIXTURE, "!!binary aGk=", r"suite\.yaml:5:78: the tag !!binary is refused"),
        (AXIS, "+5", r"suite\.yaml:10:9: the key \+5 is no text: quote it"),
        (EXAMPLE, "1.10", r"examples\.yaml:7:13: 1\.10 reads as the number 1\.1: quote it"),
        (EXAMPLE, "{<<: {a: 1}}", r"examples\.yaml:7:14: the merge key << is refused"),
    ],
)
def test_a_free_value_that_would_be_read_as_another_one_is_refused_with_its_place(
    template: str, value: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises((PackError, SuiteError), match=message):
        free_value(template, value, tmp_path)


def test_a_suite_with_words_of_yaml_1_1_loads_or_says_what_to_quote(tmp_path: Path) -> None:
    """Kind K09: `off` is text, and `1.10` has to be quoted."""
    text = (Path(__file__).parents[1] / "data" / "yaml-words.yaml").read_text(encoding="utf-8")
    path = tmp_path / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SuiteError, match=rf"^{path}:13:125: 1\.10 reads as the number 1\.1: quote it[^\n]*$"):
        suite_files.load(path)
    path.write_text(text.replace("owner: 1.10", 'owner: "1.10"'), encoding="utf-8")
    owners = []
    for scenario in suite_files.load(path).scenarios:
        assert isinstance(scenario.request, dict)
        owners.append(scenario.request["resource"]["properties"]["owner"])
    assert owners == ["off", "1.10"]


# ---------------------------------------------------------------- writing

#: Text with what YAML folds, escapes and indents by.
special = st.sampled_from("ab :#'\"\\\n\t-?{}[],&*!|>%@`é漢😀\u2028\x85\x07\ufeff")
words = st.text(special | st.characters(codec="utf-8"), max_size=30)
#: Text that is a number or a word to some YAML.
lookalikes = st.sampled_from(
    [
        "off",
        "1e5",
        "0o17",
        "1.10",
        "<<",
        "=",
        "2026-07-01",
        "~",
        "",
        "0x1F",
        ".5",
        "1_000",
        "+1",
        "1.",
        ".inf",
    ]
)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | words | lookalikes,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | lookalikes, inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
@example({"a": 1e17, "b": -0.0, "c": 5e-324})
@example(["a\u2028b", "\x85", "a b\u2029 c", "\ufeff", "\x7f"])
def test_what_is_written_is_read_as_the_same_json(value: Json) -> None:
    text = yaml_text.dump(value)
    read = yaml_text.parse(text, Any, "f")
    assert repr(read) == repr(value)
    assert yaml.safe_load(text) == value or "e" in text
