"""Make text from requests, models and files safe to print on a terminal, in a page and in a spreadsheet.

Owns the only functions that do so. Invariant: no such text can move the cursor, hide text, change its
direction, or stack marks over other lines; and no cell of CSV begins as a formula does. Pure.
"""

from __future__ import annotations

import re
import unicodedata

#: Combining marks shown on one character; more could stack over other lines.
_MARKS = 2
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
#: What spreadsheets take for the beginning of a formula, as NFKD decomposes it (OWASP, "CSV injection");
#: the minus sign of mathematics is one too.
_FORMULA_STARTS = frozenset("=+-@\N{MINUS SIGN}")
#: Letters that are shown as blanks.
_BLANK_LETTERS = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_NOT_ASCII = re.compile(r"[^\n -~]")


def visible(text: str, *, lines: bool = False) -> str:
    """The text with every control, hidden or reordering character as an escape (`\\x1b`, `\\u202e`).

    With `lines`, line ends and tabs are not changed.
    """
    out: list[str] = []
    marks = 0
    for char in text:
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        selector = "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
        if lines and char in "\n\t":
            out.append(char)
        elif category in _ESCAPED or marks > _MARKS or selector:
            out.append(_SHORT.get(char) or _escape(ord(char)))
        else:
            out.append(" " if category == "Zs" else char)
    return "".join(out)


def paragraph(text: str) -> str:
    """As `visible`, but a line end in the text begins a line that is indented by four spaces.

    So what data holds never begins a line, as a message of ours does.
    """
    return visible(text, lines=True).replace("\n", "\n    ")


def in_json(text: str) -> str:
    """JSON whose strings have an escape for what `visible` would escape. It is decoded to the same value."""
    return _NOT_ASCII.sub(_json_escape, text)


def in_html(value: object) -> object:
    """What a template prints (`finalize`): a text as `visible` with line ends, any other value as it is."""
    return visible(value, lines=True) if type(value) is str else value


def cell(text: str) -> str:
    """The text as a cell of CSV: after an apostrophe if a spreadsheet could read it as a formula.

    Blanks before the sign count as nothing, because programs trim them; a tab or line end at the beginning is
    a sign itself. Line ends and tabs inside stay; other control characters become escapes.
    """
    safe = visible(text, lines=True)
    return f"'{safe}" if _is_formula(text) else safe


def _is_formula(text: str) -> bool:
    if text.startswith(("\t", "\r", "\n")):
        return True
    for char in text:
        for part in unicodedata.normalize("NFKD", char):
            if part in _FORMULA_STARTS:
                return True
            if unicodedata.category(part)[0] not in "ZCM" and part not in _BLANK_LETTERS:
                return False
    return False


def _json_escape(match: re.Match[str]) -> str:
    char = match[0]
    if unicodedata.category(char) not in _ESCAPED:
        return char
    return re.sub("....", r"\\u\g<0>", char.encode("utf-16-be", "surrogatepass").hex())


def _escape(point: int) -> str:
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
