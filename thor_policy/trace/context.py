"""The context of the work for an agent: goals, decisions and a session as Markdown within a token budget.

Owns the text and where it is cut. Invariant: the text never has more tokens than the budget, by the count
that the caller gives; what is left out is stated in it. A text from the journal stays on its line, without
Markdown. Any thread or process, on a reader of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from msgspec import Struct

from thor_policy.core.escape import visible
from thor_policy.journal import work_queries
from thor_policy.journal.reader import ENDING_CHARS, Reader, Record

#: Tokens of a context, unless the caller says otherwise; the least leaves room for the headings.
TOKENS, LEAST_TOKENS = 1_024, 256
#: Most lines of each section, and most characters of a title and of the name of the session.
_MOST_LINES, _MOST_CHARS, _MOST_SESSION = 50, 160, 32
#: Marks of Markdown; at the beginning also those of a list or a line.
_MARKUP = re.compile(r"[\\`*_\[\]<>#|~&!]|(?<=[0-9])[.)](?=\s|\Z)")
_BEGINNING = re.compile(r"^[-+=]")
_PIECE = re.compile(r"[A-Za-z]+|[0-9]|\n| +|.", re.ASCII | re.DOTALL)


class Context(Struct, frozen=True, kw_only=True):
    """The Markdown, its tokens by the count in use, and how many lines are left out."""

    text: str
    tokens: int
    left_out: int


class _Section(Struct):
    title: str
    lines: list[str]
    shown: int = 0


def context(
    reader: Reader,
    *,
    session: str | None = None,
    budget: int = TOKENS,
    count: Callable[[str], int] | None = None,
) -> Context:
    """Active goals, newest decisions and the newest items of a session, newest first, within `budget` tokens.

    `count` says how many tokens a text has; without it, `tokens_at_most` does. `budget` is at least
    `LEAST_TOKENS`. Each section gets a line in turn while it fits. Raises JournalError.
    """
    tokens = count or tokens_at_most
    with reader.snapshot() as connection:
        goals = work_queries.active_goals(connection, _MOST_LINES)
        decisions = work_queries.decisions(connection, _MOST_LINES)
        items = [] if session is None else work_queries.of_session(connection, session, _MOST_LINES)
    sections = [
        _Section(title="Active goals", lines=list(map(_line, goals))),
        _Section(title="Recent decisions", lines=list(map(_line, decisions))),
    ]
    if session is not None:
        title = f"Session {_plain(session, _MOST_SESSION)}"
        sections.append(_Section(title=title, lines=[_line(item, typed=True) for item in items[::-1]]))
    growing = [section for section in sections if section.lines]
    while growing:
        for section in list(growing):
            section.shown += 1
            fits = tokens(_text(sections, budget)) <= budget
            if not fits:
                section.shown -= 1
            if not fits or section.shown == len(section.lines):
                growing.remove(section)
    text = _text(sections, budget)
    left_out = sum(len(section.lines) - section.shown for section in sections)
    return Context(text=text, tokens=tokens(text), left_out=left_out)


def tokens_at_most(text: str) -> int:
    """An estimate of the tokens of a text that is meant to be too high: no model is needed for it.

    A token for every three letters of a word, for each digit, sign and line end, for each run of blanks, and
    for each byte of other characters in UTF-8.
    """
    total = 0
    for piece in _PIECE.findall(text):
        if piece[0].isascii():
            total += -(-len(piece) // 3) if piece[0].isalpha() else (piece != " ")
        else:
            total += len(piece.encode("utf-8", "surrogatepass"))
    return total


def _text(sections: list[_Section], budget: int) -> str:
    out = ["# Work", ""]
    for section in sections:
        out += [f"## {section.title}", ""]
        left = len(section.lines) - section.shown
        out += section.lines[: section.shown] or ([] if left else ["none"])
        if left:
            out.append(f"- (cut at {budget:,} tokens: {left} more)")
        out.append("")
    return "\n".join(out[:-1]) + "\n"


def _line(item: Record, *, typed: bool = False) -> str:
    facts = [item["status"]] if item["status"] != "active" else []
    if item["confidence"] is not None:
        facts.append(f"confidence {item['confidence']} %")
    facts.append(f"id ..{_plain(item['id'][-ENDING_CHARS:], ENDING_CHARS)}")
    title = _plain("(erased)" if item["title"] is None else item["title"], _MOST_CHARS)
    title = _BEGINNING.sub(r"\\\g<0>", title)
    return f"- {item['type'] + ': ' if typed else ''}{title} ({', '.join(facts)})"


def _plain(text: str, most: int) -> str:
    """The text on a line, clipped, its marks of Markdown escaped."""
    shown = visible(text).strip()
    shown = shown if len(shown) <= most else f"{shown[: most - 1]}…"
    return _MARKUP.sub(r"\\\g<0>", shown)
