"""`cidr(text)` and `cidr.inside(inner, outer)`: the class of a whole range, or opaque."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.documents import ROOT
from tests.structure_fuzz import hostile_texts, run
from thor_policy.policy import yaml_text
from thor_policy.policy.structure.network import cidr, inside

_FILE = ROOT / "tests" / "data" / "structure" / "addresses.yaml"
LABELS = yaml_text.parse(_FILE.read_text(encoding="utf-8"), dict[str, list[Any]], _FILE.name)
TEXTS = [text for text, *_ in LABELS["range"]] + list(map(str, LABELS["range_opaque"]))


@pytest.mark.parametrize(("text", "kind", "addresses"), LABELS["range"], ids=ascii)
def test_the_class_of_a_range_holds_for_all_of_it(text: str, kind: str, addresses: int) -> None:
    result = cidr(text)
    assert (result["opaque"], result["class"], result["addresses"]) == ("", kind, addresses)


@pytest.mark.parametrize("text", [str(text) for text in LABELS["range_opaque"]], ids=ascii)
def test_a_text_that_is_not_plainly_a_range_is_opaque(text: str) -> None:
    result = cidr(text)
    assert result["opaque"]
    assert (result["class"], result["version"], result["addresses"]) == ("", 0, 0)


def test_the_bounds_of_a_range_and_its_host_bits_are_given() -> None:
    assert cidr("192.168.7.9/24") == {
        "opaque": "",
        "version": 4,
        "prefix": 24,
        "first": "192.168.7.0",
        "last": "192.168.7.255",
        "class": "private",
        "addresses": 256,
        "host_bits": True,
    }
    assert not cidr("192.168.7.0/24")["host_bits"]
    assert not cidr("192.168.7.9")["host_bits"]
    assert (cidr("::ffff:10.0.0.1")["version"], cidr("::ffff:10.0.0.1")["first"]) == (4, "10.0.0.1")


@pytest.mark.parametrize(
    ("inner", "outer", "is_inside"),
    [
        ("10.1.0.0/16", "10.0.0.0/8", True),
        ("10.0.0.0/8", "10.0.0.0/8", True),
        ("10.0.0.0/7", "10.0.0.0/8", False),
        ("10.0.0.1", "fd00::/8", False),
        ("fd00::1", "fd00::/8", True),
        ("::ffff:10.0.0.1", "10.0.0.0/8", True),
    ],
)
def test_a_range_is_inside_another_if_all_of_it_is(inner: str, outer: str, is_inside: bool) -> None:
    assert inside(inner, outer) == is_inside


@pytest.mark.parametrize(
    ("inner", "outer"), [("any", "10.0.0.0/8"), ("10.0.0.1", "cafe::"), ("1" * 60, "::/0")]
)
def test_an_opaque_range_is_inside_nothing_and_holds_nothing(inner: str, outer: str) -> None:
    with pytest.raises(ValueError, match=r"the (text|address)"):
        inside(inner, outer)


#: What a class says of each address, by the standard library.
_HOLDS = {
    "loopback": lambda address: address.is_loopback,
    "private": lambda address: address.is_private,
    "link_local": lambda address: address.is_link_local,
    "multicast": lambda address: address.is_multicast,
    "unspecified": lambda address: address.is_unspecified,
    "public": lambda address: address.is_global or address in ipaddress.ip_network("2000::/3"),
}
_V4 = st.builds("{}/{}".format, st.ip_addresses(v=4), st.integers(0, 32))
_V6 = st.builds("{}/{}".format, st.ip_addresses(v=6), st.integers(0, 128))


@settings(max_examples=300, deadline=None)
@given(_V4 | _V6 | st.ip_addresses().map(str))
def test_the_ends_of_a_range_have_its_class_for_the_standard_library_too(text: str) -> None:
    result = cidr(text)
    if result["opaque"]:
        assert "never allocated" in result["opaque"]
    elif result["class"] in _HOLDS:
        for end in (result["first"], result["last"]):
            assert _HOLDS[result["class"]](ipaddress.ip_address(end)), (text, end)


def _check(text: str) -> None:
    result = cidr(text)
    assert bool(result["opaque"]) != bool(result["class"])
    if not result["opaque"]:
        assert inside(text, text)
        assert text.isascii()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="0123456789abcdefx.:/%-", max_size=45))
def test_any_text_gives_a_range_or_is_opaque(text: str) -> None:
    _check(text)


@pytest.mark.soak
def test_a_hundred_thousand_hostile_ranges_end_in_time_and_leave_memory_flat() -> None:
    run(_check, hostile_texts(21, 100_000, TEXTS), limit_s=0.5)
