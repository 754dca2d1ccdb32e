"""Texts that are what they look like, and texts that hide or imitate."""

from __future__ import annotations

import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.policy.structure.plain_text import bare, fault, fold


@pytest.mark.parametrize(
    "text",
    ["", "README.md", "Übersicht.md", "résumé", "план.txt", "設計v2", "日本語の本", "한국어", "ελλάδα",
     "a – b", "naïve café"],
)  # fmt: skip
def test_a_text_in_a_writing_that_exists_is_plain(text: str) -> None:
    assert fault(text) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\0b", "control"),
        ("a\tb", "control"),
        ("é\n", "nobody sees"),
        ("a\u200bb", "nobody sees"),
        ("a\u202eb", "nobody sees"),
        ("a\u034fb", "nobody sees"),
        ("a\ue000b", "nobody sees"),
        ("a\u00a0b", "unusual blank"),
        ("a\u2003b", "unusual blank"),
        ("a\ud800b", "does not exist"),
        ("cafe\u0301", "not composed"),
        ("e" + "\u0301\u0323" * 9, "too many"),
        ("ＡＢＣ", "stand for others"),
        ("ﬁle", "stand for others"),
        ("x²", "stand for others"),
        ("a∕b", "looks like another one"),
        ("a\u2024b", "stand for others"),
        ("pаypal", "mixes Latin and Cyrillic letters"),
        ("аррӏе", 'looks like "appie"'),
        ("ıd", 'looks like "i"'),
    ],
)
def test_a_text_that_hides_or_imitates_is_not_plain(text: str, reason: str) -> None:
    assert reason in fault(text)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("ABC", "abc"),
        (".е\u200bnv", ".env"),
        ("ＥＮＶ", "env"),
        ("énv", "env"),
        ("e\u0301nv", "env"),
        ("١٢٧", "127"),
        ("ıd", "id"),
        ("ⓛocal", "local"),
    ],
)
def test_a_text_is_folded_to_what_a_reader_takes_it_for(text: str, seen: str) -> None:
    assert fold(text) == seen


@given(st.text())
def test_any_text_gives_a_value_and_a_plain_one_is_normalised(text: str) -> None:
    assert unicodedata.is_normalized("NFKC", bare(text)) or not text.isascii()
    fold(text)
    if fault(text) == "":
        assert unicodedata.is_normalized("NFKC", text)


@given(st.text(string.printable.strip() + " "))
def test_printable_ascii_is_plain(text: str) -> None:
    assert fault(text) == ""
    assert fold(text) == text.lower()
