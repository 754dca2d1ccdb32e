"""What may reach a terminal of words that others wrote.

Owns the one way they are shown. Invariant: nothing in a request, a model's answer or a file can move the
cursor, hide text, turn its direction or pile marks over other lines. Pure.
"""

from __future__ import annotations

import unicodedata

#: Marks that may stand on one character; more could pile up over other lines.
_MARKS = 2
_BAD = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str, *, lines: bool = False) -> str:
    """The text with every character that acts, hides or reorders as an escape (`\\x1b`, `\\u202e`).

    With `lines`, ends of lines and tabs stay what they are.
    """
    out: list[str] = []
    marks = 0
    for char in text:
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        selector = "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
        if lines and char in "\n\t":
            out.append(char)
        elif category in _BAD or marks > _MARKS or selector:
            out.append(_SHORT.get(char) or _escape(ord(char)))
        else:
            out.append(" " if category == "Zs" else char)
    return "".join(out)


def _escape(point: int) -> str:
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
