"""JSON with one meaning: no member twice, no number that is none, nothing replaced when it is written.

Owns the checks that msgspec leaves out: it keeps the last of two equal members, reads integers of any size,
and writes NaN as null, bytes as base64 and integers as names. Invariant: `decode` returns a value only if
every member of the text is in it and every integer fits 64 bits; `encode` returns a text only if it says what
the value says. Pure; any thread.

How `decode` finds a member that is there twice: each colon of a JSON text ends the name of a member, or
stands in a string. A colon in a string is also in the value, and a colon in the value was one in the text,
unless it was written as the escape `u003a`. So without that escape, the text and the value written again have
equally many colons if and only if no member was dropped; both counts run in C. A text with the escape is read
a second time by the decoder of the standard library, which hands out every member.
"""

from __future__ import annotations

import json
import math
from enum import Enum
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from thor_policy.core.requests import Json

#: Bounds of an integer: those of rules, SQLite and other languages.
MIN_INT, MAX_INT = -(2**63), 2**63 - 1
#: Digits of the largest integer, and the table that makes every digit a zero.
_MANY_ZEROS, _ALL_ZEROS = b"0" * len(str(MAX_INT)), bytes.maketrans(b"123456789", b"0" * 9)
#: Characters of a name that an error shows.
_SHOWN_CHARS = 40
#: The problem with an integer outside these bounds.
NO_INTEGER = "the integer does not fit 64 bits"

T = TypeVar("T")

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class JsonError(ValueError):
    """A text is no strict JSON, or a value cannot be written as JSON.

    `place` is the path of the member, such as `request.context.amount`; empty for the whole text. The
    message continues a sentence about the text: `is not valid JSON: ..`, or is `place: problem`.
    """

    def __init__(self, problem: str, place: str = "") -> None:
        super().__init__(f"{place}: {problem}" if place else problem)
        self.place = place


class TooDeep(JsonError):
    """Objects and lists are nested deeper than Python's stack allows."""


def within(place: str, name: object) -> str:
    """The path of a member or item of the value at `place`."""
    return f"{place}.{str(name)[:_SHOWN_CHARS]}" if place else str(name)[:_SHOWN_CHARS]


# ---------------------------------------------------------------- reading


def decode(text: str | bytes) -> Json:
    """The value of a JSON text in UTF-8. Raises JsonError."""
    value = parse(text)
    check_integers(value)
    return value


def decode_as(text: bytes, kind: type[T]) -> T:
    """A JSON text as a value of a type; unknown members are ignored, but must be strict JSON too.

    Raises JsonError, and what `msgspec.json.decode` raises.
    """
    value = msgspec.json.decode(text, type=kind)
    decode(text)
    return value


def parse(text: str | bytes) -> Json:
    """As `decode`, but integers may have any size: the caller must check them. Raises JsonError."""
    try:
        data = text.encode() if isinstance(text, str) else text
        try:
            value = _decode(data)
        except msgspec.ValidationError as error:  # a number overflows
            raise _fault(data) or JsonError(f"is not valid JSON: {error}") from error
        if _has_twice(data, value) and (fault := _fault(data)):
            raise fault
    except UnicodeError as error:
        raise JsonError("is not valid UTF-8") from error
    except (msgspec.DecodeError, json.JSONDecodeError) as error:
        raise JsonError(f"is not valid JSON: {error}") from error
    except RecursionError as error:
        raise TooDeep("is nested too deep") from error
    return value


def may_hold_large_integers(data: bytes) -> bool:
    """False if no integer in a JSON text has enough digits to be beyond 64 bits."""
    return _MANY_ZEROS in data.translate(_ALL_ZEROS)


def check_integers(value: Json, place: str = "") -> None:
    """Check that every integer in a decoded value, at the path `place`, fits 64 bits. Raises JsonError."""
    if _integers_fit(value):
        return
    stack = [(value, place)]
    while stack:
        part, at = stack.pop()
        if isinstance(part, dict | list):
            parts = part.items() if isinstance(part, dict) else enumerate(part)
            stack.extend((inner, within(at, name)) for name, inner in reversed(list(parts)))
        elif isinstance(part, int) and not MIN_INT <= part <= MAX_INT:
            raise JsonError(NO_INTEGER, at or "the value")


def _integers_fit(value: Json) -> bool:
    level: list[Any] = [[value]]
    while level:
        below: list[Any] = []
        for parts in level:
            for part in parts.values() if type(parts) is dict else parts:
                kind = type(part)
                if kind is dict or kind is list:
                    below.append(part)
                elif kind is int and not MIN_INT <= part <= MAX_INT:
                    return False
        level = below
    return True


def _has_twice(data: bytes, value: Json) -> bool:
    """True if an object of the text has a member twice; `value` is what msgspec read."""
    if b"u003" not in data or (b"u003a" not in data and b"u003A" not in data):
        return data.count(b":") != _encode(value).count(b":")
    try:
        _read_unlike(data.decode())
    except _Twice:
        return True
    return False


class _Twice(Exception):
    """An object has a member twice."""


def _unlike(members: list[tuple[str, Json]]) -> int:
    if len(dict(members)) != len(members):
        raise _Twice
    return 0


class _Members(list[tuple[str, Json]]):
    """The members of an object in order, also those with the same name."""


#: Most digits of an integer that Python and msgspec read.
_MAX_DIGITS = 4_300
#: Both read no integer: the values are not needed, and Python reads a long one slowly.
_read_unlike = json.JSONDecoder(object_pairs_hook=_unlike, parse_int=len).decode
_read_all = json.JSONDecoder(
    object_pairs_hook=_Members, parse_int=lambda digits: 0 if len(digits) <= _MAX_DIGITS else math.inf
).decode


def _fault(data: bytes) -> JsonError | None:
    """The first member that is there twice, or number that overflows, with its path; None without both."""
    stack: list[tuple[Json, str]] = [(_read_all(data.decode()), "")]
    while stack:
        value, place = stack.pop()
        if isinstance(value, _Members):
            names = set()
            for name, _ in value:
                if name in names:
                    return JsonError("is there twice in one object; give it one time", within(place, name))
                names.add(name)
            stack.extend((part, within(place, name)) for name, part in reversed(value))
        elif isinstance(value, list):
            stack.extend((part, within(place, at)) for at, part in reversed(list(enumerate(value))))
        elif isinstance(value, float) and math.isinf(value):
            return JsonError("the number is too large for 64 bits", place or "the value")
    return None


# ---------------------------------------------------------------- writing


def encode(value: Json) -> bytes:
    """The value as JSON; it may contain structs, tuples and enums of strings. Raises JsonError.

    What JSON cannot say is never replaced: numbers that are not finite, integers beyond 64 bits, names that
    are no strings, text with a lone surrogate, and objects of other types.
    """
    check(value)
    return _encode(value)


def check(value: Json, place: str = "") -> None:
    """Check that `value`, at the path `place`, can be written as JSON. Raises JsonError."""
    try:
        _check(value, place)
    except RecursionError as error:
        raise TooDeep("is nested too deep, or contains itself", place or "the value") from error


def _check(value: Any, place: str) -> None:
    kind = type(value)
    if kind is str:
        _check_text(value, place)
    elif kind is int:
        if not MIN_INT <= value <= MAX_INT:
            raise JsonError(f"{NO_INTEGER}; give a float or a string", place or "the value")
    elif kind is float:
        if not math.isfinite(value):
            raise JsonError(
                f"{value} is no JSON number; give a finite number, or leave the member out",
                place or "the value",
            )
    elif value is None or kind is bool:
        pass
    elif isinstance(value, dict):
        for name, part in value.items():
            if not isinstance(name, str):
                raise JsonError(f"the name {name!r:.40} is no string; make it one", place or "the value")
            _check_text(name, place)
            _check(part, within(place, name))
    elif isinstance(value, list | tuple):
        for at, part in enumerate(value):
            _check(part, within(place, at))
    elif isinstance(value, Struct):
        for name in value.__struct_fields__:
            _check(getattr(value, name), within(place, name))
    elif isinstance(value, Enum):
        _check(value.value, place)
    else:
        raise JsonError(
            f"a value of type {kind.__module__}.{kind.__qualname__} is no JSON; give a string, a number, a "
            "boolean, None, a list or a dict",
            place or "the value",
        )


def _check_text(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise JsonError(
            f"the text holds the lone surrogate {text[error.start]!a}, which UTF-8 cannot encode; remove it",
            place or "the value",
        ) from error
