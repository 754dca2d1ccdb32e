"""`decimal(value)` and `decimal.compare(a, b)`: exact, or refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.documents import ROOT
from tests.structure_fuzz import hostile_texts, run
from thor_policy.policy import yaml_text
from thor_policy.policy.structure.money import compare, decimal

_FILE = ROOT / "tests" / "data" / "structure" / "addresses.yaml"
LABELS = yaml_text.parse(_FILE.read_text(encoding="utf-8"), dict[str, list[Any]], _FILE.name)
NUMBERS = (
    st.integers(-(2**63), 2**63) | st.floats(-1e15, 1e15) | st.decimals(-(10**20), 10**20, places=3).map(str)
)


@pytest.mark.parametrize(("value", "text"), LABELS["amount"], ids=ascii)
def test_an_amount_has_one_canonical_text(value: Any, text: str) -> None:
    amount = decimal(value)
    assert (amount["opaque"], amount["text"]) == ("", text)
    assert amount["sign"] == (-1 if text[0] == "-" else 0 if text == "0" else 1)
    assert amount["places"] == len(text.partition(".")[2])


@pytest.mark.parametrize(
    "value", [*LABELS["amount_opaque"], float("nan"), float("-inf"), 10**50, 1e60], ids=ascii
)
def test_what_is_not_plainly_an_amount_is_opaque_and_not_compared(value: Any) -> None:
    amount = decimal(value)
    assert amount["opaque"]
    assert (amount["text"], amount["sign"], amount["places"]) == ("", 0, 0)
    for pair in ((value, 1), ("1", value)):
        with pytest.raises(ValueError, match="the amount"):
            compare(*pair)


@pytest.mark.parametrize(
    ("left", "right", "order"),
    [
        ("10.1", 10.10, 0),
        (0.1, "0.1", 0),
        ("0.30000000000000004", 0.3, 1),
        (9007199254740993, "9007199254740992.9", 1),
        ("-1", 0, -1),
        (-0.0, 0, 0),
        ("99999999999999999999.98", "99999999999999999999.99", -1),
    ],
)
def test_amounts_are_compared_exactly(left: Any, right: Any, order: int) -> None:
    assert compare(left, right) == order
    assert compare(right, left) == -order


@settings(max_examples=200, deadline=None)
@given(NUMBERS, NUMBERS)
def test_the_order_of_amounts_is_that_of_their_canonical_texts(left: Any, right: Any) -> None:
    values = []
    for amount in map(decimal, (left, right)):
        if amount["opaque"]:
            assert "digits" in amount["opaque"]
            return
        values.append(Fraction(amount["text"]))
    assert compare(left, right) == (values[0] > values[1]) - (values[0] < values[1])


def _check(text: str) -> None:
    amount = decimal(text)
    assert bool(amount["opaque"]) != bool(amount["text"])
    if not amount["opaque"]:
        assert text.isascii()
        assert decimal(amount["text"]) == amount


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_gives_an_amount_that_reads_back_or_is_opaque(text: str) -> None:
    _check(text)


@pytest.mark.soak
def test_a_hundred_thousand_hostile_amounts_end_in_time_and_leave_memory_flat() -> None:
    known = [str(value) for value, _ in LABELS["amount"]] + [str(value) for value in LABELS["amount_opaque"]]
    run(_check, hostile_texts(21, 100_000, known), limit_s=0.5)
