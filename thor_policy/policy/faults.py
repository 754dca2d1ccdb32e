"""Faults of an expression that its tokens show, and the checker does not look at.

Owns the search for members that a function's map does not have, and for what the checker accepts and the
runtime, or its binding, gets wrong. Invariant: each fault has its place in the text. Pure; any thread.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from thor_policy.policy.functions import EXACT, MEMBERS
from thor_policy.policy.tokens import (
    Token,
    bound_in,
    closing_of,
    literal_of,
    open_optionals,
    position,
    repeated_keys,
)

#: An escape of NUL in a string literal.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\(?:000|[xX]00|u0000|U00000000)")


class Fault(Struct, frozen=True, kw_only=True):
    """A fault of an expression at line and column (from 1, in code points) of its text."""

    line: int
    column: int
    message: str


def call_of(tokens: Sequence[Token]) -> str:
    """The function of `MEMBERS` whose call the whole expression is; "" if it is none."""
    is_call = [token.text for token in tokens[1:2]] == ["("] and closing_of(tokens, 1) == len(tokens) - 1
    return tokens[0].text if is_call and tokens[0].text in MEMBERS else ""


def faults_of_members(text: str, tokens: Sequence[Token], calls: Mapping[str, str]) -> Iterator[Fault]:
    """Members that a function's map does not have: of a call, or of a fact that is such a call.

    `calls` names the function (`call_of`) of each fact that is such a call.
    """
    bound = bound_in(tokens)
    signs = [token.text for token in tokens]
    for at, token in enumerate(tokens):
        if token.kind != "name" or (at and signs[at - 1] == "."):
            continue
        is_called = signs[at + 1 : at + 2] == ["("]
        if is_called and token.text in MEMBERS:
            function, end = token.text, closing_of(tokens, at + 1)
        elif not is_called and token.text in calls and token.text not in bound:
            function, end = calls[token.text], at
        else:
            continue
        name = _member_at(tokens, end + 1)
        if name is not None and name[0] not in MEMBERS[function]:
            known = sorted(MEMBERS[function])
            near = difflib.get_close_matches(name[0], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its members are {', '.join(known)}"
            line, column = position(text, name[1].offset)
            yield Fault(line=line, column=column, message=f"{function}(..) has no member {name[0]!r}; {hint}")


def _member_at(tokens: Sequence[Token], at: int) -> tuple[str, Token] | None:
    """The member that is read at a token: `.name`, `.?name` or `["name"]`; None for a call of a method."""
    texts = [token.text for token in tokens[at : at + 4]] + [""] * 4
    if texts[0] == "." and at + 1 < len(tokens):
        name = at + 1 + (texts[1] == "?")
        is_method = name + 1 < len(tokens) and tokens[name + 1].text == "("
        return None if is_method or name >= len(tokens) else (tokens[name].text, tokens[name])
    literal = literal_of(tokens[at + 1 : at + 2]) if texts[0] == "[" and texts[2] == "]" else None
    return (literal, tokens[at + 1]) if literal is not None else None


def faults_of_tokens(text: str, tokens: Sequence[Token]) -> Iterator[Fault]:
    """What the checker accepts, and the runtime, or its binding, gets wrong; and protobuf's own types."""
    faults: list[tuple[Token, str]] = []
    for at, token in enumerate(tokens):
        if token.kind == "number" and re.search("[.eE]", token.text) and not token.text.startswith("0x"):
            value = float(token.text)
            if math.isinf(value):
                faults.append((token, f"{token.text} is infinite"))
            elif EXACT <= abs(value) <= 2**63:
                whole = min(int(value), 2**63 - 1)
                faults.append(
                    (token, f"{token.text} is compared inexactly with whole numbers; write {whole}")
                )
        elif token.kind == "string":
            is_raw = re.match("[bB]?[rR]", token.text)
            if "\0" in token.text or (not is_raw and _NUL.search(token.text)):
                faults.append((token, "a string cannot contain NUL; in a request it is read as U+FFFD"))
        elif token.text == "google" and _makes_message(tokens, at):
            message = "a pack has no protobuf types; write the value itself, or timestamp(..), duration(..)"
            faults.append((token, message))
    # A list, a map, a function or dyn(..) that holds an optional value ends the process: the binding cannot
    # convert it to Python.
    ends = "an optional value must be ended where it is: add .orValue(..), .hasValue() or .value()"
    faults += [(token, ends) for token in open_optionals(tokens)]
    faults += [
        (token, f"this map has the key {token.text} twice; remove one") for token in repeated_keys(tokens)
    ]
    for token, message in faults:
        line, column = position(text, token.offset)
        yield Fault(line=line, column=column, message=message)


def _makes_message(tokens: Sequence[Token], at: int) -> bool:
    """True if the dotted name that begins at a token is followed by `{`, as a protobuf message is written."""
    while at + 2 < len(tokens) and tokens[at + 1].text == "." and tokens[at + 2].kind == "name":
        at += 2
    return at + 1 < len(tokens) and tokens[at + 1].text == "{"
