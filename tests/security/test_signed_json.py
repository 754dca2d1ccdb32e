"""Signed JSON: canonical bytes as RFC 8785 publishes them, and a signature over every member."""

from __future__ import annotations

import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from thor_policy.core.requests import Json
from thor_policy.core.strict_json import JsonError, decode
from thor_policy.security import signed_json
from thor_policy.security.signatures import Key

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = Key(PRIVATE)
TRUSTED = {KEY.key: PRIVATE.public_key()}
FORM = "thor-policy test 1"


def test_the_example_of_rfc_8785_has_its_published_bytes() -> None:
    """Sections 3.2.2 and 3.2.4."""
    text = rb"""{
      "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
      "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
      "literals": [null, true, false]
    }"""
    assert signed_json.canonical(decode(text)) == bytes.fromhex(
        "7b226c69746572616c73223a5b6e756c6c2c747275652c66616c73655d2c226e756d62657273223a5b3333333333333333"
        "332e333333333333332c31652b33302c342e352c302e3030322c31652d32375d2c22737472696e67223a22e282ac245c75"
        "303030665c6e4127425c225c5c5c5c5c222f227d"
    )


def test_members_are_sorted_by_their_utf_16_code_units() -> None:
    """Section 3.2.3."""
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    members = decode(signed_json.canonical(dict.fromkeys(names)))
    assert list(members) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("ffefffffffffffff", "-1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("41b3de4355555555", "333333333.3333333"),
        ("41b3de4355555556", "333333333.3333334"),
        ("41b3de4355555557", "333333333.33333343"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_a_number_is_written_as_appendix_b_of_rfc_8785_says(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert signed_json.canonical(number) == text.encode()


@pytest.mark.parametrize("value", [2**53, -(2**53), float("nan"), float("inf"), "\ud800", {"a": object()}])
def test_what_canonical_json_cannot_write_is_refused(value: Json) -> None:
    with pytest.raises(JsonError, match="canonical"):
        signed_json.canonical(value)


def test_a_digest_is_the_sha256_of_the_canonical_bytes() -> None:
    assert signed_json.digest({"b": 1.0, "a": []}) == hashlib.sha256(b'{"a":[],"b":1}').hexdigest()


def test_a_document_is_accepted_in_another_order_and_another_writing_of_numbers() -> None:
    document = signed_json.sign(FORM, {"b": 0.5, "a": 100}, KEY)
    written = b'{"signature":"%s","key":"%s","form":"%s","b":5e-1,"a":1e2}' % (
        str(document["signature"]).encode(),
        KEY.key.encode(),
        FORM.encode(),
    )
    assert signed_json.problem(FORM, decode(written), TRUSTED) is None


def test_a_document_with_any_change_is_refused() -> None:
    document = signed_json.sign(FORM, {"a": {"b": 1}}, KEY)
    assert signed_json.problem(FORM, document, TRUSTED) is None
    for name in document:
        without = {other: value for other, value in document.items() if other != name}
        assert signed_json.problem(FORM, without, TRUSTED) is not None
    for change in ({"a": {"b": 2}}, {"c": None}, {"form": "thor-policy test 2"}, {"signature": "A" * 128}):
        assert signed_json.problem(FORM, document | change, TRUSTED) is not None


def test_a_signature_over_one_form_is_none_over_another() -> None:
    document = signed_json.sign(FORM, {}, KEY)
    assert signed_json.problem("thor-policy test 2", document | {"form": "thor-policy test 2"}, TRUSTED)


def test_a_key_that_is_not_trusted_is_refused() -> None:
    other = Key(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    document = signed_json.sign(FORM, {}, other)
    assert "not among the trusted" in str(signed_json.problem(FORM, document, TRUSTED))
    assert "signature is wrong" in str(signed_json.problem(FORM, document | {"key": KEY.key}, TRUSTED))
