"""Values of a request as prompt text.

Owns quoting, truncation and escaping. Invariant: the text of any value stays on one line and cannot close
the quotes around it. Pure; any thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from thor_policy.core.requests import Json

#: Strings of this form need no quotes: no space, no quote, no line end, no bracket of a special token.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,63}")


# ---------------------------------------------------------------- rendering


def look_up(roots: Mapping[str, Json], path: str) -> Json:
    """The value at a dotted path; None if there is none."""
    value: Json = roots
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def without(value: Mapping[str, Json], paths: Sequence[str]) -> dict[str, Json]:
    """The members of a map but for those at the dotted paths; a map that nothing is left of goes too."""
    here = {path for path in paths if "." not in path}
    left: dict[str, Json] = {}
    for key, item in value.items():
        deeper = [path.removeprefix(f"{key}.") for path in paths if path.startswith(f"{key}.")]
        if key in here:
            continue
        if deeper and isinstance(item, Mapping):
            if rest := without(item, deeper):
                left[key] = rest
        else:
            left[key] = item
    return left


def text_size(value: Json) -> int:
    """Number of characters in all strings of a JSON value."""
    if isinstance(value, Mapping):
        return sum(len(key) + text_size(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(text_size, value))
    return len(value) if isinstance(value, str) else 0


def show(value: Json, max_chars: int) -> str:
    """One line of text for any JSON value; equal values give equal text in any key order."""
    if isinstance(value, Mapping):
        pairs = (f"{show(key, 64)} {show(value[key], max_chars)}" for key in sorted(value, key=str))
        return _cut(", ".join(pairs), max_chars)
    if isinstance(value, list | tuple):
        return _cut(", ".join(show(item, max_chars) for item in value), max_chars)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < 1e15 else f"{value:.3e}"
    if value is None:
        return "none"
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return _quote(text, max_chars)


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _quote(text: str, max_chars: int) -> str:
    """JSON string in which every unprintable character is escaped: no line ends, no bidi tricks.

    It is truncated between two characters, so that escapes and the closing quote stay complete.
    """
    if len(text) <= max_chars and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    shown = [_escaped(char) for char in text[: max_chars + 1]]
    size = sum(map(len, shown))
    if size > max_chars:
        while size > max_chars - 1:
            size -= len(shown.pop())
        shown.append("…")
    return f'"{"".join(shown)}"'


def _escaped(char: str) -> str:
    if char.isprintable() and char not in '"\\':
        return char
    shown = json.dumps(char, ensure_ascii=False)[1:-1]
    if shown.isprintable():
        return shown
    code = ord(char)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
