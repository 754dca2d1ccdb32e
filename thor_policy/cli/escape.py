"""Make text from requests, models and files safe to print on a terminal.

Owns the only function that does so. Invariant: no such text can move the cursor, hide text, change its
direction, or stack marks over other lines. Pure.
"""

from __future__ import annotations

import unicodedata

#: Combining marks shown on one character; more could stack over other lines.
_MARKS = 2
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


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


def _escape(point: int) -> str:
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
