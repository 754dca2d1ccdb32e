"""A place inside a text is found in its file, however the text is folded, quoted or escaped there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from thor_policy.policy.yaml_text import Document


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("$", (1, 1)), ("$.a", (1, 4)), ("$.b", (2, 1)), ("$.b[1]", (4, 5)), ("$.b[1].c", (4, 8)),
        ("$.b[2]", (2, 1)),
        ("$.x.y", (5, 8)), ("$.x.y.z", (6, 8)), ("$.x.q", (5, 4)), ("$.b.c", (2, 1)), ("$.nothing", (1, 1)),
        ("$.l[0][1]", (7, 9)), ("$.e", (8, 3)), ("$.f[0]", (9, 5)), ("$.a.b", (1, 4)),
    ],
)  # fmt: skip
def test_a_value_has_the_place_where_it_begins_and_what_is_absent_that_of_its_parent(
    path: str, place: tuple[int, int]
) -> None:
    text = "a: 1\nb:\n  - 1\n  - c: d\nx: {y: 1,\n  y.z: 2}\nl: [[1, 2]]\ne:\nf: [{g: 1}]\n"
    assert Document(text, "f").position(path) == place


def test_places_can_be_asked_of_a_file_that_has_problems() -> None:
    assert Document("a: 07\nb: [c]\n", "f").position("$.b[0]") == (2, 5)
    assert Document("a: [", "f").position("$.a") == (1, 1)
    assert Document("a: [", "f").place("$.a", 1, 1) == (1, 1)


ESCAPE = re.compile(r"\\(?:x..|u.{4}|U.{8}|.)")
FOLDED = """\
facts:
  kind: >-
    subject.type ==
      "user" &&
    given(x)

    || é.y
  quoted: "a\\n\\u00e9 == \\
    b"
  single: 'it''s
    odd'
  plain: &anchor one
    two
  literal: |2
      if
    so
"""


@pytest.mark.parametrize(
    ("path", "inside", "place"),
    [
        ("$.facts.kind", (1, 1), (3, 5)),
        ("$.facts.kind", (2, 3), (4, 7)),
        ("$.facts.kind", (3, 1), (5, 5)),
        ("$.facts.kind", (4, 4), (7, 8)),
        ("$.facts.kind", (4, 99), (7, 11)),
        ("$.facts.kind", (99, 1), (7, 11)),
        ("$.facts.quoted", (1, 1), (8, 12)),
        ("$.facts.quoted", (2, 1), (8, 15)),
        ("$.facts.quoted", (2, 2), (8, 21)),
        ("$.facts.quoted", (2, 6), (9, 5)),
        ("$.facts.single", (1, 4), (10, 16)),
        ("$.facts.single", (1, 6), (11, 5)),
        ("$.facts.plain", (1, 1), (12, 18)),
        ("$.facts.plain", (1, 5), (13, 5)),
        ("$.facts.literal", (1, 3), (15, 7)),
        ("$.facts.literal", (2, 2), (16, 6)),
        ("$.facts.kind", (1, 99), (3, 20)),
        ("$.facts.kind", (0, 0), (3, 5)),
        ("$.facts", (5, 5), (1, 1)),
    ],
)
def test_a_place_inside_a_text_is_found_in_the_file(
    path: str, inside: tuple[int, int], place: tuple[int, int]
) -> None:
    document = Document(FOLDED, "f")
    assert document.place(path, *inside) == place


#: Text with what YAML folds, escapes and indents by.
special = st.sampled_from("ab :#'\"\\\n\t-?{}[],&*!|>%@`é漢😀\u2028\x85\x07\ufeff")
words = st.text(special | st.characters(codec="utf-8"), max_size=30)


@st.composite
def files(draw: st.DrawFn) -> str:
    """A file with a text in some style somewhere in it."""
    text = draw(words)
    return yaml.dump(
        {"x": [{"k": text}, [text, text]]},
        Dumper=draw(st.sampled_from([yaml.SafeDumper, yaml.CSafeDumper])),
        default_style=draw(st.sampled_from([None, "'", '"', "|", ">"])),
        default_flow_style=draw(st.booleans()),
        width=draw(st.integers(5, 60)),
        indent=draw(st.integers(2, 6)),
        allow_unicode=True,
    )


def check_places(document: Document, file: str, path: str, text: str) -> None:
    """Every character of the text, or the escape that makes it, stands where `place` says, in order."""
    lines, before = file.split("\n"), (0, 0)
    line, column = 1, 1
    for char in text:
        place = document.place(path, line, column)
        rest = lines[place.line - 1][place.column - 1 :]
        assert place > before
        if escape := ESCAPE.match(rest):
            assert char == "\\" or yaml.safe_load(f'"{escape[0]}"') == char
        else:
            assert rest.startswith(char) or (rest == "" and char in " \n")
        before = place
        line, column = (line + 1, 1) if char == "\n" else (line, column + 1)


@given(files())
def test_every_character_of_a_text_is_found_in_the_file_in_any_style(file: str) -> None:
    document = Document(file, "f")
    # PyYAML writes some line breaks of YAML 1.1 as they are.
    assume(document.problems(Any) == ())
    keyed, listed = document.convert(Any)["x"]
    check_places(document, file, "$.x[0].k", keyed["k"])
    check_places(document, file, "$.x[1][0]", listed[0])
    check_places(document, file, "$.x[1][1]", listed[1])


@given(
    st.sampled_from(["|", ">", "|-", ">-", "|+", ">+"]),
    st.lists(
        st.tuples(st.integers(0, 3), st.text("ab#: \té", max_size=6).map(lambda text: text.strip("\n"))),
        min_size=1,
    ),
    st.booleans(),
    st.integers(1, 4),
)
def test_every_character_of_a_block_scalar_that_a_person_indents_is_found(
    header: str, drawn: list[tuple[int, str]], explicit: bool, indent: int
) -> None:
    body = [" " * (indent + more) + text if text.strip() else " " * more for more, text in drawn]
    header = f"{header[0]}{indent if explicit else ''}{header[1:]}"
    file = f"k: {header} # a comment\n" + "\n".join(body) + "\n# behind it\nz: 1\n"
    try:
        value = yaml.load(file, Loader=yaml.CSafeLoader)
    except yaml.YAMLError:
        assume(False)
    assert isinstance(value["k"], str)
    document = Document(file, "f")
    assert document.convert(Any) == value
    check_places(document, file, "$.k", value["k"])
