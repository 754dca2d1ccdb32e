"""The tokens of SQL, where all databases and clients split a text in the same way.

Owns what they read differently. Invariant: a text has tokens only if its strings, names, comments and
statements end in the same places in PostgreSQL, MySQL, SQLite and SQL Server, and if none of their clients
reads a command of its own in it. For any other text `Opaque` is raised. Pure; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

#: Most open brackets, and most arrays and indices, `[1]`, of a text: sqlglot takes 10 ms for some.
MAX_DEPTH, MAX_ARRAYS = 24, 8


class Opaque(Exception):
    """Why a text is not understood."""


class Token(NamedTuple):
    """`kind` is word, name (quoted), string, number, variable or sign; `text` is upper case for a word."""

    kind: str
    text: str


OPEN, NOTHING = Token("sign", "("), Token("", "")

_TOKEN = re.compile(
    r"""(?P<blank>(?:[ \t\n]|\r\n)+)
    |(?P<comment>--(?=[ \t\n]|\r\n|\Z)[^\n\\]*|/\*(?![!+]|M!)(?:(?!\*/|/\*)[^\\])*\*/)
    |(?P<string>'(?:[^']|'')*')
    |(?P<name>"[^"]*"(?!")|`[^`]*`(?!`)|\[[^\[\]]*\](?!\]))
    |(?P<number>(?:0[xX][0-9a-fA-F]+|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)(?![\w$.]))
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*(?![$\#]))
    |(?P<variable>@@?[A-Za-z_][A-Za-z0-9_]*(?![$\#])|(?<!:):[A-Za-z_][A-Za-z0-9_]*|\$[0-9]+(?![\w$])|\?)
    |(?P<sign>::|!?~\*?|<=|>=|<>|!=|\|\||->>|->|@>|<@|@@(?=[ ])|[+%<>=^&|.,();]|-(?!-)|\*(?!/)|/(?!\*))""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
#: What no text may hold anywhere, and why.
_REFUSED = (
    (re.compile(r"\\['\"`]"), "has a backslash before a quote, which databases read in two ways"),
    (re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]"), "has a control character"),
    (
        re.compile(r"\r(?!\n)"),
        "has a carriage return without a line feed, which ends a comment in some databases",
    ),
    (re.compile(r"\$\("), "has a variable of a client, $(..)"),
    (
        re.compile(r"(?im)^[ \t]*(?:[.@\\]|:(?!:)|!(?![=~])|/[ \t]*\r?$)"),
        "has a line that a client takes for a command",
    ),
    (re.compile(r"(?im)^[ \t]*(?:go|delimiter)\b"), "has a line that a client takes for a command"),
    (re.compile(r"\w/\*(?:(?!\*/).)*\*/\w", re.DOTALL), "has a comment inside a word"),
)
#: Letters directly before a string that leave its end where it is.
_PREFIXES = frozenset({"N", "X", "B", "E"})
#: A quoted name that ends in the same place whatever its quotes mean.
_PLAIN_NAME = re.compile(r"(?!.*--)[^'\"`;\\#$/*]+")


def tokens_of(text: str) -> Iterator[Token]:
    """The tokens of a text. Raises Opaque for what databases or clients split in several ways."""
    for pattern, reason in _REFUSED:
        if pattern.search(text):
            raise Opaque(reason)
    at, depth, arrays, before = 0, 0, 0, ""
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Opaque(_reason_at(text, at))
        kind, content, at = str(match.lastgroup), match[0], match.end()
        if kind in ("string", "name") and _joins(before, content):
            raise Opaque("has a quote directly after a word, which databases read in several ways")
        before = content
        if kind == "name" and not _is_plain_name(content):
            raise Opaque("has a quoted name that databases may end in several places")
        if kind in ("blank", "comment"):
            continue
        depth += {"(": 1, ")": -1}.get(content, 0)
        arrays += kind == "name" and is_array(content)
        if depth > MAX_DEPTH or arrays > MAX_ARRAYS:
            raise Opaque(f"has more than {MAX_DEPTH} open brackets, or more than {MAX_ARRAYS} of [..]")
        yield Token(kind, content.upper() if kind == "word" else content)


def _joins(before: str, quoted: str) -> bool:
    """True if the text before a quote is a part of it: `q'[..]'`, `U&"..."`, `@'x'`, `a"b"`."""
    if before.upper() in _PREFIXES and quoted[0] == "'":
        return False
    return quoted[0] != "[" and (before[-1:].isalnum() or before[-1:] in tuple("_&@:$'\"`"))


def is_array(content: str) -> bool:
    """True for `[1]`, an array of PostgreSQL or an index; `[id]` is a name in T-SQL and SQLite."""
    return content[0] == "[" and not (content[1].isalpha() or content[1] == "_")


def _is_plain_name(content: str) -> bool:
    inside = content[1:-1]
    if is_array(content):
        return (
            re.fullmatch(r"(?:[0-9]+|'[\w .-]*'|[, :])*", inside, re.ASCII) is not None and "--" not in inside
        )
    return _PLAIN_NAME.fullmatch(inside) is not None and inside.isprintable()


def _reason_at(text: str, at: int) -> str:
    rest = text[at:]
    for start, reason in (
        ("'", "has a string without an end"),
        ('"', "has a quoted name without an end, or with a quote in it"),
        ("--", "has -- without a blank behind it, which is no comment in MySQL"),
        ("/*", "has a comment that is nested, has no end, or that MySQL runs"),
        ("$", "has a $, which quotes in PostgreSQL"),
        ("#", "has a #, which is a comment in MySQL"),
        ("\\", "has a backslash outside strings, which a client takes for a command"),
    ):
        if rest.startswith(start):
            return reason
    return f"has {rest[0]!a} where databases differ"
