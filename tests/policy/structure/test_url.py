"""url(..): URLs and addresses that were labelled before the function was written, and hostile texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import variants
from tests.structure_fuzz import run
from thor_policy.policy import yaml_text
from thor_policy.policy.structure.address import CLASSES
from thor_policy.policy.structure.url import MAX_CHARS, MEMBERS, url

DATA = Path(__file__).parents[2] / "data" / "structure"


def read(name: str) -> dict[str, list[Any]]:
    path = DATA / name
    return yaml_text.parse(path.read_text(encoding="utf-8"), dict[str, list[Any]], path)


LABELS = {
    label: [item if isinstance(item, list) else [item, None] for item in items]
    for label, items in read("urls.yaml").items()
}
CASES = [(label, text, kind) for label, items in LABELS.items() for text, kind in items]
SEEDS = [text for _, text, _ in CASES]


def reading(text: str) -> str:
    """How a pack that trusts only plain addresses of the public web reads a text."""
    result = url(text)
    if result["opaque"]:
        return "opaque"
    if result["address"] == "metadata" or result["userinfo"] or result["scheme"] not in ("http", "https"):
        return "dangerous"
    return "public" if result["address"] in ("", "public") else "internal"


def test_at_least_150_texts_are_labelled() -> None:
    assert len(CASES) >= 150
    assert len(set(SEEDS)) == len(SEEDS)


@pytest.mark.parametrize(
    ("label", "text", "kind"), CASES, ids=[f"{label} {text!a}" for label, text, _ in CASES]
)
def test_no_text_that_is_not_plainly_public_reads_as_public(label: str, text: str, kind: str | None) -> None:
    assert (reading(text) == "public") == (label == "public")
    if label == "opaque":
        assert url(text)["opaque"]
    if kind is not None:
        assert url(text)["address"] == kind


@pytest.mark.parametrize("case", read("kinds.yaml")["K21"], ids=lambda case: ascii(case["target"]))
def test_an_address_inside_has_its_class_in_every_spelling(case: dict[str, str]) -> None:
    assert url(case["target"])["address"] in ("metadata", "loopback", "private")


@pytest.mark.parametrize(
    "text",
    [
        "http://172.16.0.1/admin",
        "http://169.254.169.254/latest/user-data",
        "http://[::ffff:a9fe:a9fe]/latest/",
        "http://0251.0376.0251.0376/latest/",
        "http://x@2852039166/latest/",
        "http://2852039166/",
    ],
)
def test_addresses_that_once_passed_have_a_class_that_is_not_public(text: str) -> None:
    assert url(text)["address"] in ("metadata", "private")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("http://example.com\\@169.254.169.254/", "metadata"),
        ("http://a@b@10.0.0.1/", "private"),
        ("http://169.254.169.%32%35%34/", "metadata"),
        ("http://010.8.8.8/", "private"),  # 8.8.8.8 for those who read octal
        ("169.254.169.254/latest", "metadata"),
        ("//localhost/", "loopback"),
        ("http://[::1%25eth0]/", "loopback"),
        ("http://127.0.0.1:99999/", "loopback"),
        ("see http://10.0.0.1/ there", "private"),
        ("http://١٢٧.0.0.1/", "loopback"),
        ("url:http://169.254.169.254/", "metadata"),
        ("http://{127.0.0.1,example.com}/", "loopback"),
        ("http://99999../", ""),
    ],
)
def test_an_opaque_text_has_the_worst_class_that_a_client_may_see(text: str, kind: str) -> None:
    assert url(text)["opaque"]
    assert url(text)["address"] == kind


def test_the_parts_of_a_url_are_read() -> None:
    assert url("HTTPS://Ada@Example.COM.:8443/A%20b/../C%c3%a9?x#y") == {
        "opaque": "", "scheme": "https", "host": "example.com", "port": 8443, "userinfo": True, "path": "/Cé",
        "plain": False, "segments": ["cé"], "query": True, "address": "", "ip": "", "idn": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("http://example.com/", 80),
        ("https://example.com/", 443),
        ("https://example.com:80/", 80),
        ("ftp://example.com/", 21),
        ("wss://example.com/", 443),
        ("redis://example.com:6379/", 6379),
        ("redis://example.com:80/", 80),
        ("redis://example.com/", 0),
        ("file:///etc/passwd", 0),
    ],
)
def test_a_port_is_the_one_in_the_text_or_the_usual_one_of_the_scheme(text: str, port: int) -> None:
    assert url(text)["port"] == port


def test_a_file_has_a_path_and_no_host() -> None:
    result = url("file:///etc/passwd")
    assert (result["opaque"], result["scheme"], result["host"], result["path"]) == (
        "",
        "file",
        "",
        "/etc/passwd",
    )
    assert url("file://server/share")["opaque"] == "names a host for a file"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("https://example.com/a/B-c_d.txt", True),
        ("https://example.com/a%20b", True),
        ("https://de.wikipedia.org/wiki/Z%C3%BCrich", True),
        ("https://example.com/?x=%41/../y", True),
        ("https://example.com/%61dmin", False),
        ("https://example.com/a/../admin", False),
        ("https://example.com/a%2fadmin", False),
        ("https://example.com//admin", False),
        ("https://example.com/;/admin", False),
        ("https://example.com/%252e", False),
        ("https://example.com/%ff", False),
        ("https://example.com/a%E2%80%8Bb", False),
        ("https://exa mple.com/", False),
    ],
)
def test_a_path_that_hides_something_is_not_plain(text: str, plain: bool) -> None:
    assert url(text)["plain"] == plain


def test_segments_are_decoded_and_in_lower_case() -> None:
    assert url("https://example.com/%41dmin//Latest/")["segments"] == ["admin", "latest"]


def test_a_host_beyond_ascii_is_marked_in_either_spelling() -> None:
    assert url("https://münchen.de/")["idn"]
    assert url("https://xn--mnchen-3ya.de/")["idn"]
    assert not url("https://example.com/")["idn"]


def test_a_backslash_anywhere_is_opaque() -> None:
    assert url("https://example.com/a\\b")["opaque"] == "has a backslash"


def test_a_text_beyond_the_limits_is_opaque() -> None:
    assert url("https://example.com/" + "a" * MAX_CHARS)["opaque"] == "has more than 8192 characters"
    assert url("https://example.com" + "/a" * 65)["opaque"] == "has more than 64 segments in its path"
    assert url("https://" + "a." * 130 + "com/")["opaque"] == "has a host of more than 253 characters"


def check(text: str) -> None:
    """What holds for the result of every text."""
    result = url(text)
    assert set(result) == MEMBERS
    assert result["address"] in CLASSES
    if result["opaque"]:
        assert not result["plain"]
    elif result["scheme"] in ("http", "https"):
        other = urlsplit(text)  # another parser sees the same host
        assert (
            result["idn"]
            or (other.hostname or "").removesuffix(".") == result["host"].strip("[]")
            or (
                result["ip"] and ":" in (other.hostname or "")  # an IPv6 address in a longer form
            )
        )
        assert text.isprintable()
        assert "\\" not in text


@given(st.text() | st.from_regex(r"(?i)\A(https?|file|x)://[^/]{0,20}(/.{0,20})?\Z"))
def test_any_text_gives_a_value(text: str) -> None:
    check(text)


def test_hostile_texts_give_a_value() -> None:
    for text in variants(SEEDS, 300):
        check(text)


@pytest.mark.soak
def test_a_hundred_thousand_hostile_texts_end_in_time_and_leave_memory_flat() -> None:
    url("https://ünïcode.example/")  # loads the table of confusables
    texts = variants(SEEDS, 100_000)
    run(check, texts, limit_s=0.1, settled_after=50_000, max_growth_kib=4096)
