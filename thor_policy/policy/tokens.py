"""The text of expressions, as tokens: what it names, what it compares, where its parts begin.

Owns the reading of CEL without running it: the runtime gives no tree to Python. Invariant: it decides
nothing; the checker and lint use it for hints, and the rules for the order of facts. Pure; any thread.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

#: Calls that give an optional value, those that end one, and those that take one as their last argument.
_OPTIONAL_CALLS, _ENDS, _TAKE_OPTIONALS = (
    ("first", "last"),
    ("orValue", "hasValue", "value"),
    ("or", "optFlatMap"),
)
#: What an expression can read, but for facts.
ROOTS = ("subject", "action", "resource", "context", "data", "sources", "precedents", "now")
#: Those of them that a request has.
OF_REQUEST = ("subject", "action", "resource", "context")
#: Methods that give another spelling of a name.
_RESPELLING = ("lowerAscii", "upperAscii", "trim")
#: Words that cannot be the name of a variable.
# fmt: off
RESERVED = frozenset((
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if",
    "import", "let", "loop", "package", "namespace", "return", "var", "void", "while", "bool", "bytes",
    "double", "dyn", "int", "list", "map", "null_type", "string", "type", "uint",
))
# fmt: on
#: Macros whose first argument is a name of their own.
_BINDING = ("all", "exists", "exists_one", "map", "filter", "optMap", "optFlatMap", "bind")
_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<string>[bB]?[rR](?:\"\"\".*?\"\"\"|'''.*?'''|"[^"\n]*"|'[^'\n]*')
        |[bB]?(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    |(?P<number>0x[0-9a-fA-F]+u?|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?u?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """One token of an expression: its kind (`string`, `number`, `name`, `sign`), text and offset."""

    kind: str
    text: str
    offset: int


def tokenise(text: str) -> Iterator[Token]:
    """The tokens of an expression, without white space and comments."""
    for match in _TOKEN.finditer(text):
        if match.lastgroup and match.lastgroup != "space":
            yield Token(match.lastgroup, match[0], match.start())


@functools.lru_cache(maxsize=1024)
def names_in(text: str) -> frozenset[str]:
    """The names that an expression may use: variables, facts and functions, but no members."""
    tokens = list(tokenise(text))
    return frozenset(
        token.text for at, token in enumerate(tokens) if token.kind == "name" and not _is_member(tokens, at)
    )


def bound_in(tokens: Sequence[Token]) -> set[str]:
    """The names that macros of an expression bind, such as `s` in `steps.exists(s, s.approved)`."""
    return {
        tokens[at + 2].text
        for at, token in enumerate(tokens[:-3])
        if token.text in _BINDING and (tokens[at + 1].text, tokens[at + 3].text) == ("(", ",")
    }


def absences_in(text: str) -> set[str]:
    """The sources whose attributes an expression asks for with `!has(sources.NAME.ATTRIBUTE)`."""
    texts = [token.text for token in tokenise(text)]
    starts = range(len(texts) - 5)
    return {texts[at + 5] for at in starts if texts[at : at + 5] == ["!", "has", "(", "sources", "."]}


def _is_member(tokens: Sequence[Token], at: int) -> bool:
    """True for `b` in `a.b` and `a.?b`; false for `b` in `.b`, which is the variable."""
    dot = at - 2 if at and tokens[at - 1].text == "?" else at - 1
    if dot < 1 or tokens[dot].text != ".":
        return False
    before = tokens[dot - 1]
    return (
        before.kind in ("string", "number")
        or before.text in ")]}`"
        or (before.kind == "name" and before.text != "in")
    )


@functools.lru_cache(maxsize=1024)
def paths_in(text: str) -> frozenset[str]:
    """The members of a request that an expression reads by name or by `given`: `subject.properties.role`.

    A path that the expression computes for `given` may be any member, so all roots of a request are read.
    """
    tokens = list(tokenise(text))
    paths = set(variables_in(text))
    for at, token in enumerate(tokens):
        called = token.text == "given" and [after.text for after in tokens[at + 1 : at + 2]] == ["("]
        if token.kind == "name" and called and not _is_member(tokens, at):
            path_or_none = literal_of(next(iter(arguments_of(tokens, at + 1)), []))
            paths |= set(OF_REQUEST) if path_or_none is None else {path_or_none}
    return frozenset(paths)


@functools.lru_cache(maxsize=1024)
def variables_in(text: str) -> frozenset[str]:
    """The paths below a root that an expression reads by name: `data.limits`, `subject.properties.role`."""
    tokens = list(tokenise(text))
    paths = set()
    for at, token in enumerate(tokens):
        if token.kind != "name" or token.text not in ROOTS or _is_member(tokens, at):
            continue
        path, end = token.text, at + 1
        while end + 1 < len(tokens) and tokens[end].text == "." and tokens[end + 1].kind == "name":
            if [after.text for after in tokens[end + 2 : end + 3]] == ["("]:  # a method, no member
                break
            path, end = f"{path}.{tokens[end + 1].text}", end + 2
        paths.add(path)
    return frozenset(paths)


def literal_values(text: str) -> set[str] | None:
    """The texts that an expression can give, if it is a choice among literals; None for anything else."""
    return _values_of(list(tokenise(text)))


def comparisons(text: str) -> Iterator[tuple[str, str]]:
    """Each variable that is compared with a literal text by `==`, `!=` or `in [..]`, and the text."""
    tokens = list(tokenise(text))
    signs = [token.text for token in tokens]
    bound = bound_in(tokens)
    for at, token in enumerate(tokens):
        if token.kind != "name" or token.text in bound or _is_member(tokens, at):
            continue
        if signs[at + 1 : at + 3] in (["=", "="], ["!", "="]) and at + 3 < len(tokens):
            literal = literal_of([tokens[at + 3]])
            if literal is not None and signs[at + 4 : at + 5] not in (["+"], ["."], ["["]):
                yield token.text, literal
        elif signs[at + 1 : at + 3] == ["in", "["]:
            for item in arguments_of(tokens, at + 2):
                literal = literal_of(item)
                if literal is not None:
                    yield token.text, literal


def member_comparisons(text: str, facts: Mapping[str, str]) -> Iterator[tuple[str, str, bool, int]]:
    """Each member of a request that is compared with a literal text by `==`, `!=` or `in [..]`.

    Yields the member's path, the literal, whether the member is compared in another case or trimmed, and the
    literal's offset. A member is read by name, by `given`, or by a fact of `facts` that is nothing else.
    """
    tokens = list(tokenise(text))
    bound = bound_in(tokens)
    for at, token in enumerate(tokens):
        member = None if token.text in bound else _member_at(tokens, at, facts)
        if member is None:
            continue
        path, respelt, end = member
        for value, offset in _literals_compared(tokens, at, end):
            yield path, value, respelt, offset


def kinds_compared(text: str) -> Iterator[tuple[str, str]]:
    """Each literal text that `kind("PATH")` is compared with by `==`, `!=` or `in [..]`, and the path."""
    tokens = list(tokenise(text))
    for at, token in enumerate(tokens):
        if (
            token.text != "kind"
            or _is_member(tokens, at)
            or [t.text for t in tokens[at + 1 : at + 2]] != ["("]
        ):
            continue
        path, end = literal_of(tokens[at + 2 : at + 3]), closing_of(tokens, at + 1) + 1
        if path is not None and end == at + 4:
            yield from ((path, literal) for literal, _ in _literals_compared(tokens, at, end))


def _literals_compared(tokens: Sequence[Token], start: int, end: int) -> Iterator[tuple[str, int]]:
    """The literal texts that the operand from `start` to `end` is compared with, and their offsets."""
    signs = [token.text if token.kind != "string" else "" for token in tokens]
    literals: list[Sequence[Token]] = []
    equals, joins = (["=", "="], ["!", "="]), (["+"], ["."], ["["])
    if signs[end : end + 2] in equals and signs[end + 3 : end + 4] not in joins:
        literals.append(tokens[end + 2 : end + 3])
    elif signs[end : end + 2] == ["in", "["]:
        literals += arguments_of(tokens, end + 1)
    if start >= 3 and signs[start - 2 : start] in equals and signs[start - 4 : start - 3] != ["+"]:
        literals.append(tokens[start - 3 : start - 2])
    for literal in literals:
        value = literal_of(literal)
        if value is not None:
            yield value, literal[0].offset


def _member_at(tokens: Sequence[Token], at: int, facts: Mapping[str, str]) -> tuple[str, bool, int] | None:
    """The member of a request that begins at a token, whether a call changes it, and the index behind it."""
    token, end, changed = tokens[at], at + 1, False
    if token.kind != "name" or _is_member(tokens, at):
        return None
    calls = tokens[end].text == "(" if end < len(tokens) else False
    if token.text == "given" and calls and tokens[end + 1].kind == "string":
        path, end = literal_of([tokens[end + 1]]) or "", closing_of(tokens, end) + 1
    elif token.text in ROOTS and not calls:
        path = token.text
        while end + 1 < len(tokens) and tokens[end].text == "." and tokens[end + 1].kind == "name":
            if end + 2 < len(tokens) and tokens[end + 2].text == "(":
                break
            path, end = f"{path}.{tokens[end + 1].text}", end + 2
    elif token.text in facts and not calls:
        inner = list(tokenise(facts[token.text]))
        others = {name: other for name, other in facts.items() if name != token.text}
        member = _member_at(inner, 0, others) if inner else None
        if member is None or member[2] != len(inner):
            return None
        path, changed, _ = member
    else:
        return None
    while [t.text for t in tokens[end : end + 4 : 2]] == [".", "("] and tokens[end + 1].text in _RESPELLING:
        changed, end = True, closing_of(tokens, end + 2) + 1
    return path, changed, end


def parts_of(text: str) -> list[str]:
    """The texts of a condition between `&&`, each on one line."""
    parts = _parts(list(tokenise(text)), ("&", "&"))
    return [
        " ".join(text[part[0].offset : part[-1].offset + len(part[-1].text)].split())
        for part in parts
        if part
    ]


def never_holds(text: str) -> str | None:
    """Why a condition can never be true, where its parts joined by `&&` show it; None otherwise."""
    equal: dict[str, str | float | None] = {}
    for part in _parts(list(tokenise(text)), ("&", "&")):
        if [token.text for token in part] == ["false"]:
            return "it is false"
        signs = [token.text for token in part]
        if signs[-3:-1] == ["=", "="] and part[-1].kind in ("string", "number"):
            path = "".join(signs[:-3])
            plain = all(token.kind == "name" or token.text == "." for token in part[:-3])
            value = _value_of(part[-1])
            other = equal.setdefault(path, value) if plain else value
            if other != value and other is not None and value is not None:
                return f"{path} cannot be {json.dumps(other)} and {json.dumps(value)}"
    return None


def open_optionals(tokens: Sequence[Token]) -> Iterator[Token]:
    """Where an optional value begins that is not ended in place, by `.orValue(..)`, `[?x]` and the like."""
    texts = ["", *("" if token.kind == "string" else token.text for token in tokens), ""]
    for at, token in enumerate(tokens):
        before, text, after = texts[at : at + 3]
        if text == "?" and before == ".":
            goes_on = at - 1
        elif text == "?" and before == "[" and at > 1 and _ends_an_operand(tokens[at - 2]):
            goes_on = closing_of(tokens, at - 1) + 1
        elif (text in _OPTIONAL_CALLS and (before, after) == (".", "(")) or (
            text == "optional" and before != "." == after
        ):
            goes_on = at + 1
        else:
            continue
        if not _is_ended(tokens, goes_on):
            yield token


def repeated_keys(tokens: Sequence[Token]) -> Iterator[Token]:
    """Each literal key of a map that the same map has before, `0` and `0u` being the same key."""
    for at, token in enumerate(tokens):
        if _is_sign(token, "{"):
            seen: set[int | str] = set()
            for start in _entries(tokens, at):
                key = tokens[start]
                if [part.text for part in tokens[start + 1 : start + 2]] != [":"]:
                    continue
                number = re.fullmatch(r"(0x[0-9a-fA-F]+|[0-9]+)[uU]?", key.text)
                value = int(number[1], 16 if "x" in number[1] else 10) if number else literal_of([key])
                if value is not None and value in seen:
                    yield key
                seen |= {value} if value is not None else set()


def _is_ended(tokens: Sequence[Token], at: int) -> bool:
    """Whether members and calls from a token on, or around it, end the optional value before the token."""
    while at < len(tokens) and _is_sign(tokens[at], ".(["):
        if tokens[at].text != ".":
            at = closing_of(tokens, at) + 1
            continue
        at += 1 + (tokens[at + 1].text == "?")
        if tokens[at].text in _ENDS and at + 1 < len(tokens) and tokens[at + 1].text == "(":
            return True
        if tokens[at].text == "`":  # a name between backquotes
            at = next(n for n in range(at + 1, len(tokens)) if tokens[n].text == "`")
        at += 1
    around = [n for n in range(at) if _is_sign(tokens[n], "([{") and closing_of(tokens, n) >= at]
    if not around:
        return False
    opening = around[-1]
    if tokens[opening].text != "(":  # an entry of a list or map: `[?x]`, `{?"key": x}`
        return tokens[max(start for start in _entries(tokens, opening) if start < at)].text == "?"
    call = tokens[opening - 1].text if opening and tokens[opening - 1].kind == "name" else "in"
    if call == "has":
        return True
    return call in (*_TAKE_OPTIONALS, "in") and _is_ended(tokens, closing_of(tokens, opening) + 1)


def _is_sign(token: Token, signs: str) -> bool:
    return token.kind == "sign" and token.text in signs


def _ends_an_operand(token: Token) -> bool:
    return (token.kind in ("name", "string") and token.text != "in") or _is_sign(token, ")]}`")


def _entries(tokens: Sequence[Token], opening: int) -> list[int]:
    """Where each entry begins between a bracket and the one that closes it."""
    end, depth, starts = closing_of(tokens, opening), 0, [opening + 1]
    for at in range(opening, end):
        depth += _is_sign(tokens[at], "([{") - _is_sign(tokens[at], ")]}")
        if depth == 1 and _is_sign(tokens[at], ","):
            starts.append(at + 1)
    return [start for start in starts if start < end]


def _values_of(tokens: list[Token]) -> set[str] | None:
    while tokens and tokens[0].text == "(" and closing_of(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    literal = literal_of(tokens)
    if literal is not None:
        return {literal}
    # The `?` of `.?` is no choice.
    top = [at for at in _at_top(tokens) if tokens[at].kind == "sign" and tokens[at - 1].text != "."]
    question = next((at for at in top if tokens[at].text == "?"), None)
    if question is None:
        return None
    nested = 0
    for at in top:
        if at > question:
            nested += (tokens[at].text == "?") - (tokens[at].text == ":")
            if nested < 0:
                chosen, other = _values_of(tokens[question + 1 : at]), _values_of(tokens[at + 1 :])
                return None if chosen is None or other is None else chosen | other
    return None


def _at_top(tokens: Sequence[Token]) -> Iterator[int]:
    """The indices of tokens outside of brackets."""
    depth = 0
    for at, token in enumerate(tokens):
        closes = token.kind == "sign" and token.text in ")]}"
        depth -= closes
        if depth == 0 and not closes:
            yield at
        depth += token.kind == "sign" and token.text in "([{"


def closing_of(tokens: Sequence[Token], opening: int) -> int:
    """The index of the bracket that closes the one at `opening`; -1 if there is none."""
    depth = 0
    for at in range(opening, len(tokens)):
        if tokens[at].kind == "sign":
            depth += (tokens[at].text in "([{") - (tokens[at].text in ")]}")
            if depth == 0:
                return at
    return -1


def _parts(tokens: list[Token], operator: tuple[str, str]) -> list[list[Token]]:
    """The parts of an expression between an operator of two signs, outside of brackets.

    A single part where `||` or `?` is outside of brackets too.
    """
    top = [at for at in _at_top(tokens) if tokens[at].kind == "sign"]
    if any(tokens[at].text in "|?" for at in top):
        return [tokens]
    cuts = [at for at in top if at + 1 < len(tokens) and (tokens[at].text, tokens[at + 1].text) == operator]
    starts, ends = [0, *(at + 2 for at in cuts)], [*cuts, len(tokens)]
    return [tokens[start:end] for start, end in zip(starts, ends, strict=True)]


def arguments_of(tokens: Sequence[Token], opening: int) -> list[list[Token]]:
    """The arguments of a call, or the items of a list, by the index of the opening bracket."""
    arguments: list[list[Token]] = [[]]
    depth = 1
    for token in tokens[opening + 1 :]:
        depth += (token.text in "([{") - (token.text in ")]}") if token.kind == "sign" else 0
        if depth == 0:
            break
        if depth == 1 and token.text == "," and token.kind == "sign":
            arguments.append([])
        else:
            arguments[-1].append(token)
    return [] if arguments == [[]] else arguments


def literal_of(tokens: Sequence[Token]) -> str | None:
    """The value of a string literal without escapes; None for anything else."""
    if len(tokens) == 1 and tokens[0].kind == "string":
        text = tokens[0].text
        is_raw, text = text[0] in "rR", text.lstrip("rR")
        if text[0] in "\"'" and (is_raw or "\\" not in text):
            quotes = 3 if text[:3] in ('"""', "'''") and len(text) >= 6 else 1
            return text[quotes:-quotes]
    return None


def _value_of(token: Token) -> str | float | None:
    """The value of a number, or of a string without escapes; None where it is not known."""
    if token.kind == "string":
        return literal_of([token])
    digits = token.text.rstrip("uU")
    if digits.startswith("0x"):
        return int(digits, 16)
    return int(digits) if digits.isdigit() else float(digits)


def kind_of_literal(tokens: Sequence[Token]) -> str | None:
    """`string`, `bool`, `int` or `number` (with a point) for such a literal; None for anything else."""
    if len(tokens) == 2 and tokens[0].text == "-":
        tokens = tokens[1:]
    if len(tokens) != 1:
        return None
    if tokens[0].kind == "number":
        return "number" if re.search(r"^[0-9]*\.|[eE]", tokens[0].text) else "int"
    is_bool = tokens[0].text in ("true", "false")
    return "bool" if is_bool else "string" if tokens[0].kind == "string" else None


def position(text: str, offset: int) -> tuple[int, int]:
    """Line and column, from 1, of an offset."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
