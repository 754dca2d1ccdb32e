"""`email(text)` and `emails(value)`: one address or opaque."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.documents import ROOT
from tests.structure_fuzz import hostile_texts, run
from thor_policy.policy import yaml_text
from thor_policy.policy.structure.email import MAX_CHARS, MAX_ENTRIES, email, emails

_FILE = ROOT / "tests" / "data" / "structure" / "addresses.yaml"
LABELS = yaml_text.parse(_FILE.read_text(encoding="utf-8"), dict[str, list[Any]], _FILE.name)
TEXTS = [text for text, _ in LABELS["mail"]] + LABELS["mail_opaque"]


@pytest.mark.parametrize(("text", "address"), LABELS["mail"], ids=ascii)
def test_an_address_is_normalised(text: str, address: str) -> None:
    result = email(text)
    assert (result["opaque"], result["address"]) == ("", address)
    assert f"{result['local']}@{result['domain']}" == address


@pytest.mark.parametrize("text", LABELS["mail_opaque"], ids=ascii)
def test_a_text_that_is_not_plainly_one_address_is_opaque(text: str) -> None:
    result = email(text)
    assert result["opaque"]
    assert (result["address"], result["local"], result["domain"], result["name"]) == ("", "", "", "")


@pytest.mark.parametrize(
    "label",
    ["pɑypal", "ɡoogle", "ıcloud", "fırm", "firm-ǃ", "amyʼs", "ɩndia", "bʋy", "ƽhop", "ǀogin", "maɪl",
     "paʏpal"],
)  # fmt: skip
def test_a_domain_with_a_latin_letter_that_looks_like_ascii_is_opaque(label: str) -> None:
    for written in (label, f"xn--{label.encode('punycode').decode()}"):
        assert email(f"amy@{written}.example")["opaque"]


@pytest.mark.parametrize("domain", ["straße.example", "xn--strae-oqa.example", "faß.example"])
def test_a_domain_that_programs_read_in_two_ways_is_opaque(domain: str) -> None:
    assert email(f"amy@{domain}")["opaque"]


@pytest.mark.parametrize("label", ["æble", "smørrebrød", "żółw", "mañana", "日本", "ไทย"])
def test_a_domain_in_plain_letters_of_one_script_is_read(label: str) -> None:
    assert email(f"amy@{label}.example")["domain"].startswith("xn--")


def test_the_name_before_an_address_is_given() -> None:
    assert email('"Amy Bell" <amy@firm.example>')["name"] == "Amy Bell"
    assert email("Amy Bell <amy@firm.example>")["name"] == "Amy Bell"
    assert email("amy@firm.example")["name"] == ""


@pytest.mark.parametrize(("value", "addresses"), LABELS["recipients"], ids=ascii)
def test_the_addresses_of_a_field_are_listed(value: Any, addresses: list[str]) -> None:
    entries = emails(value)
    assert [entry["address"] for entry in entries] == addresses
    assert all(bool(entry["opaque"]) == (entry["address"] == "") for entry in entries)


def test_too_many_and_too_long_entries_are_opaque() -> None:
    entries = emails(["a@firm.example"] * (MAX_ENTRIES + 1))
    assert len(entries) == MAX_ENTRIES + 1
    assert entries[-1]["opaque"] == "there are more than 200 addresses"
    assert emails("a@firm.example," * (MAX_ENTRIES + 50))[-1]["opaque"]
    assert email("a" * MAX_CHARS + "@firm.example")["opaque"] == "the address has more than 400 characters"
    assert emails([[[[[["a@firm.example"]]]]]])[0]["opaque"]


def _check(text: str) -> None:
    result = email(text)
    if not result["opaque"]:
        assert result["address"].isascii()
        assert result["address"].count("@") == 1
        assert email(result["address"])["address"] == result["address"]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80) | st.builds("{}@{}".format, st.text(max_size=20), st.text(max_size=30)))
def test_any_text_gives_one_address_that_reads_back_or_is_opaque(text: str) -> None:
    _check(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner)
)


@settings(max_examples=200, deadline=None)
@given(_JSON)
def test_any_value_gives_a_list_of_addresses(value: Any) -> None:
    assert all(bool(entry["opaque"]) != bool(entry["address"]) for entry in emails(value))


@pytest.mark.soak
def test_a_hundred_thousand_hostile_addresses_end_in_time_and_leave_memory_flat() -> None:
    run(_check, hostile_texts(21, 100_000, TEXTS), limit_s=0.5)
