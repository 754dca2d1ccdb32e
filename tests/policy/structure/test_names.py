"""Names: which texts are the same name, which are plain, and that any text is handled in bounded time."""

from __future__ import annotations

import subprocess
import sys
import unicodedata

import pytest
from confusable_homoglyphs.confusables import confusables_data
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.policy import functions
from thor_policy.policy.structure import names

TEXTS = st.text(alphabet=st.characters(), max_size=300)


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        ("File.READ ", "file.read"),
        ("\tfile.read\n", "file.read"),
        ("ｆｉｌｅ．ｒｅａｄ", "file.read"),
        ("\U0001d41f\U0001d422\U0001d425\U0001d41e", "file"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("lo\u0308schen", "löschen"),
        ("d\u0435lete", "d\u0435lete"),
        ("", ""),
    ],
)
def test_names_that_differ_in_case_width_or_blanks_have_one_identifier(text: str, identifier: str) -> None:
    assert names.identifier(text) == identifier


@pytest.mark.parametrize(
    "text",
    ["file.read", "ROLE_ADMIN", "two words", " file.read ", "löschen", "læs", "ファイル.削除", "файл.читать",
     "ｆｉｌｅ", "हटाएँ", "삭제", "lo\u0308schen", "a" * 200],
)  # fmt: skip
def test_a_name_in_the_letters_of_one_script_is_plain(text: str) -> None:
    assert names.problem(text) is None
    assert names.plain(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("d\u0435lete", "mixes Latin and Cyrillic letters"),
        ("\u03b4elete", "mixes Greek and Latin letters"),
        ("de\u4e28ete", "mixes Latin and Han letters"),
        ("\u0430\u0441\u0435", 'looks like "ace"'),
        ("f\u0131le", 'looks like "file"'),
        ("d\u0251ta.löschen", 'contains U+0251, which looks like "a"'),
        ("file\u2013read", 'looks like "file-read"'),
        ("file\u00b7löschen", "contains the sign U+00B7"),
        ("delete\u200d", "contains the unseen character U+200D"),
        ("del\u034fete", "contains the unseen character U+034F"),
        ("delete\ufe0f", "contains the unseen character U+FE0F"),
        ("de\u00adlete", "contains the unseen character U+00AD"),
        ("\u3164", "contains the unseen character U+3164"),
        ("delete\x07", "contains the unseen character U+0007"),
        ("del\nete", "contains the unseen character U+000A"),
        ("delete\ue000", "contains the unseen character U+E000"),
        ("delete\u0378", "contains the unseen character U+0378"),
        ("delet\u0338e", "contains the mark U+0338, which belongs to no letter"),
        ("de\u0301\u0301lete", "contains the mark U+0301, which belongs to no letter"),
        ("a" * 201, "has 201 characters; a name has at most 200"),
        ("a" + "\u0301" * 5000, "has 5001 characters; a name has at most 200"),
    ],
)
def test_a_name_that_a_reader_could_take_for_another_is_not_plain(text: str, problem: str) -> None:
    assert names.problem(text) == problem
    assert not names.plain(text)


def test_a_declared_name_may_look_like_latin_letters_but_not_mix_them_with_cyrillic() -> None:
    assert names.problem("\u0430\u0441\u0435", declared=True) is None
    assert names.problem("SQL実行", declared=True) is None
    assert names.problem("SQL実行") == "mixes Latin and Han letters"
    assert names.problem("\u0430ce", declared=True) == "mixes Cyrillic and Latin letters"


@pytest.mark.parametrize(
    "other",
    ["OPS-3", "ops-3 ", " Ops-3\t", "ＯＰＳ-3", "\u043eps-3", "op\u0455-3", "ops\u20103", "ops-\u200d3",
     "ops-3\u0338", "\u039f\u03a1S-3", "0ps-3"],
)  # fmt: skip
def test_two_names_that_a_reader_cannot_tell_apart_are_the_same(other: str) -> None:
    assert names.same("ops-3", other)
    assert names.same(other, "ops-3")


@pytest.mark.parametrize(
    ("a", "b"), [("ops-1", "ops-l"), ("ops-I", "ops-1"), ("warn", "wam"), ("ROO\u041c", "room")]
)
def test_ascii_letters_that_look_alike_make_the_same_name(a: str, b: str) -> None:
    assert names.same(a, b)


@pytest.mark.parametrize(("a", "b"), [("ops-3", "ops-4"), ("ops-3", "ops3"), ("josé", "jose"), ("", "a")])
def test_other_names_are_not_the_same(a: str, b: str) -> None:
    assert not names.same(a, b)


def test_the_ascii_letters_that_look_alike_are_those_of_the_library() -> None:
    for char, prototype in names._ASCII_PROTOTYPES.items():
        assert [row["c"] for row in confusables_data[char]] == [prototype]


def test_two_characters_that_look_alike_by_the_library_make_the_same_name() -> None:
    """But for those that normalisation changes first, marks, and the sign of per cent."""

    def is_kept(text: str) -> bool:
        marks = any(unicodedata.category(char)[0] == "M" for char in unicodedata.normalize("NFD", text))
        return names.composed(text) == text != "%" and not marks and not names.INVISIBLE.search(text)

    pairs = [
        (char.strip("\u200e"), row["c"].strip("\u200e"))
        for char, rows in confusables_data.items()
        for row in rows
    ]
    kept = [pair for pair in pairs if all(map(is_kept, pair))]
    assert len(kept) > 3900
    assert [pair for pair in kept if not names.same(*pair)] == []


@pytest.mark.parametrize(
    "text",
    ["file_delete", "fileDelete", "FILE DELETE", "f\u0456le.d\u0435lete", "file.dele\u200bte",
     "file%2Edelete",
     "file%252Edelete", "file.&#100;elete", "file.\\u0064elete", "file.\\x64elete", "ZmlsZS5kZWxldGU=",
     "ZmlsZS5kZWxldGU", "file.d\u0301elete"],
)  # fmt: skip
def test_a_spelling_can_be_read_as_the_name_that_it_hides(text: str) -> None:
    assert names.letters("file.delete") in names.readings(text)


@given(TEXTS)
def test_every_function_gives_a_value_for_any_text(text: str) -> None:
    identifier = names.identifier(text)
    assert names.identifier(identifier) == identifier
    assert names.same(text, text)
    assert names.same(text, identifier)
    assert names.plain(text) is (names.problem(text) is None)
    assert "\n" not in names.shown(text)
    assert all(map(str.isalnum, "".join(names.readings(text))))


@given(TEXTS, TEXTS)
def test_two_texts_are_the_same_name_however_often_they_were_compared(a: str, b: str) -> None:
    def looks(text: str) -> tuple[str, str]:
        return names.skeleton(text), names.skeleton(names.identifier(text))

    functions.forget()
    is_same = names.same(a, b)
    assert names.same(a, b) is names.same(b, a) is is_same
    functions.forget()
    assert names.same(b, a) is is_same
    if names.identifier(a) == names.identifier(b) or looks(a)[0] == looks(b)[0]:
        assert is_same
    elif looks(a) != looks(b) and looks(a)[1] != looks(b)[1]:
        assert not is_same


def test_a_capital_is_compared_as_it_looks_and_as_the_small_letter_that_it_stands_for() -> None:
    assert names.same("I", "l")
    assert names.same("I", "i")
    assert names.same("I", "\u0456")  # looks like a small i


@pytest.mark.parametrize("length", [names.MAX_NAME, names.MAX_NAME + 1])
def test_names_are_compared_alike_whether_they_are_short_enough_to_be_kept(length: int) -> None:
    name = "ops-" + "a" * (length - 4)
    for other in (name.upper(), f" {name}", name.replace("a", "\u0430"), "\u200b" + name[:-1] + "a"):
        assert names.same(name, other)
        assert names.same(other, name)
    assert not names.same(name, name[:-1] + "b")


def test_a_long_run_of_marks_is_normalised_in_pieces() -> None:
    """Normalisation takes quadratic time in a run of marks that are not in order."""
    text = "a" + "\u0315\u0300" * 100_000
    for function in (names.identifier, names.skeleton, names.folded, names.letters):
        assert len(function(text)) <= len(text)
    assert not names.same(text, "a" * 7)
    assert names.identifier("x" * 199 + "e\u0301") == "x" * 199 + "é"


def test_ascii_names_do_not_read_the_tables_of_confusable_letters() -> None:
    program = (
        "import sys; from thor_policy.policy.structure import names\n"
        "assert names.plain('file.read') and names.same('a', 'A ') and names.identifier('A') == 'a'\n"
        "assert 'confusable_homoglyphs.confusables' not in sys.modules\n"
        "assert names.prototypes.cache_info().currsize == 0\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
