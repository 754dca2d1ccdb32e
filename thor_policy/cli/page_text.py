"""Lines of styled text for screens and plain output: how a page wraps, fits, cuts and names its fields.

Owns the layout that the pages of `review` and `approvals` share. Invariant: no line is wider than its
terminal, and text from a request or a model reaches a line only through `visible`. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from rich.cells import cell_len

from thor_policy.core.escape import visible
from thor_policy.core.requests import Json

#: Text with the name of its style.
Span = tuple[str, str]
Line = list[Span]

#: Characters of one value that are shown unless the page is in full.
SHORT_CHARS = 200
#: Columns of the field names on the left.
_NAMES = 11


def wrapped(text: str, width: int) -> list[str]:
    """The text as lines of at most `width` columns, broken at spaces if possible."""
    lines: list[str] = []
    line, used = "", 0
    for word in text.split(" "):
        size = cell_len(word)
        if line and used + 1 + size <= width:
            line, used = f"{line} {word}", used + 1 + size
            continue
        if line:
            lines.append(line)
        line, used = word, size
        if size > width:
            *whole, line = split_word(word, width)
            lines += whole
            used = cell_len(line)
    return [*lines, line]


def split_word(word: str, width: int) -> list[str]:
    """The word as parts of at most `width` columns."""
    parts: list[str] = []
    start = used = 0
    for place, char in enumerate(word):
        size = cell_len(char)
        if used + size > width:
            parts.append(word[start:place])
            start, used = place, 0
        used += size
    return [*parts, word[start:]]


def fit(text: str, width: int) -> str:
    """The text, cut to `width` columns."""
    return text if cell_len(text) <= width else f"{split_word(text, width - 1)[0]}…"


def style_of(outcome: str) -> str:
    """The style of an outcome."""
    return {"allow": "allow", "deny": "deny"}.get(outcome, "between")


def headline(left: str, right: str, width: int) -> Line:
    """The first line of a page: what it is about, and on the right when, and the end of an id."""
    left = fit(left, max(4, width - cell_len(right) - 3))
    gap = " " * max(2, width - 1 - cell_len(left) - cell_len(right))
    return [("name", f" {left}"), ("", gap[1:]), ("quiet", right)]


def fields(name: str, text: str, width: int, style: str = "") -> list[Line]:
    """The name on the left and the text beside it; no line if the text is empty."""
    if not text:
        return []
    first, *rest = wrapped(text, width - _NAMES - 2)
    name = fit(name, _NAMES - 1)
    head: Line = [("name", f" {name}{' ' * (_NAMES - 1 - cell_len(name))} "), (style, first)]
    return [head, *([("", " " * (_NAMES + 1)), (style, line)] for line in rest)]


def question_text(situation: Json, full: bool) -> str:
    """The properties and the context of a question."""
    if not isinstance(situation, dict):
        return "(erased)"
    if "action" not in situation:
        return " · ".join(named_values(situation, full))
    pairs: list[str] = []
    for name in ("subject", "action", "resource"):
        part = situation.get(name)
        if isinstance(part, dict):
            pairs += named_values(part.get("properties") or {}, full)
    return " · ".join([*pairs, *named_values(situation.get("context") or {}, full)]) or "(nothing else)"


def named_values(value: Mapping[str, Json], full: bool, depth: int = 0) -> Iterator[str]:
    """Each name with its value."""
    for name, member in value.items():
        key = cut(str(name), full)
        if isinstance(member, dict) and member and depth < 3:
            yield f"{key} ({', '.join(named_values(member, full, depth + 1))})"
        else:
            text = member if isinstance(member, str) else json.dumps(member, ensure_ascii=False)
            yield f"{key} {cut(text, full)}"


def cut(text: str, full: bool) -> str:
    """The text, made visible; unless `full`, the beginning of a long one."""
    if full or len(text) <= SHORT_CHARS:
        return visible(text)
    return f"{visible(text[:SHORT_CHARS])}… ({len(text):,} characters; z shows all)"


def as_text(lines: Sequence[Line]) -> list[str]:
    """The lines without their styles."""
    return ["".join(text for _, text in line).rstrip() for line in lines]
