"""Amounts of money, exact: `decimal(value)` and `decimal.compare(a, b)`.

Owns what counts as an amount: a number of a request, or ASCII text as JSON writes a number, without an
exponent. Invariant: an amount is read exactly or not at all; what two people could read differently (`1,000`,
`1e3`, `$5`, ` 5`, full-width digits) is opaque. Pure; any thread.

A double stands for the shortest decimal that reads back as it, which is what the sender wrote.
"""

from __future__ import annotations

import math
import re
from decimal import Context, Decimal
from typing import TypedDict

from thor_policy.core.requests import Json

#: Most digits of an amount.
MAX_DIGITS = 40
_AMOUNT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
#: Never rounds an amount of MAX_DIGITS digits.
_EXACT = Context(prec=2 * MAX_DIGITS)


class Amount(TypedDict):
    """An amount. `opaque` is why it was not understood, "" if it was. If it was not, the rest is empty.

    `text` is canonical: equal amounts have equal texts. `sign` is -1, 0 or 1; `places` counts decimals.
    """

    opaque: str
    text: str
    sign: int
    places: int


def decimal(value: Json) -> Amount:
    """The amount that a number or a text is."""
    amount = _amount(value)
    if isinstance(amount, str):
        return {"opaque": amount, "text": "", "sign": 0, "places": 0}
    text = format(amount, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return {
        "opaque": "",
        "text": text if amount else "0",
        "sign": (amount > 0) - (amount < 0),
        "places": len(text.partition(".")[2]) if amount else 0,
    }


def compare(left: Json, right: Json) -> int:
    """-1, 0 or 1, as the left amount is less, equal or more. Raises ValueError if either is opaque."""
    amounts = []
    for value in (left, right):
        amount = _amount(value)
        if isinstance(amount, str):
            raise ValueError(amount)
        amounts.append(amount)
    return int(amounts[0].compare(amounts[1], _EXACT))


def _amount(value: Json) -> Decimal | str:
    """The amount, or why there is none."""
    if type(value) is int:
        text = str(value) if value.bit_length() <= 3 * MAX_DIGITS else "9" * (MAX_DIGITS + 1)
    elif type(value) is float:
        if not math.isfinite(value):
            return "the amount is not finite"
        text = format(Decimal(repr(value)), "f")
    elif type(value) is str:
        text = value
        if not _AMOUNT.fullmatch(text[: MAX_DIGITS + 3]):
            return "the amount is no plain number: write digits, and a point before decimals"
    else:
        return "the amount is neither a number nor a text"
    if sum(map(str.isdigit, text)) > MAX_DIGITS:
        return f"the amount has more than {MAX_DIGITS} digits"
    return Decimal(text)
