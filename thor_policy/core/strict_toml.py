"""TOML that a person may have damaged: settings, catalogs.

Owns what such a text may be. Invariant: a text takes no more memory than a few times its length. Python's
reader keeps all beginnings of a dotted key, so that one key of 100,000 parts took all memory, and ends
deeply nested values with RecursionError. Pure; any thread.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

#: Most bytes of a text, and most parts of a key.
MAX_BYTES, MAX_PARTS = 4 * 2**20, 64

#: Strings and comments: what else has dots is a key or a number. One without an end reaches as far as it may,
#: so that no text is read twice; Python's reader refuses it.
_TEXTS = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+"{0,5}|' + r"'''(?:[^']|'(?!''))*+'{0,5}|"
    r'"(?:[^"\\\n]|\\.)*+"?|' + r"'[^'\n]*+'?|#[^\n]*+",
    re.DOTALL,
)
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:[A-Za-z0-9_-]++[ \t]*+\.[ \t]*+){{{MAX_PARTS}}}")


def decode(text: bytes) -> dict[str, Any]:
    """The values of a TOML text in UTF-8. Raises ValueError, which says what is wrong."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES} bytes")
    content = text.decode()
    without_texts = _TEXTS.sub(lambda match: "" if match.group().startswith("#") else "x", content)
    if key := _LONG_KEY.search(without_texts):
        raise ValueError(f"a key has more than {MAX_PARTS} parts: {key.group()[:32]}..")
    try:
        return tomllib.loads(content)
    except RecursionError as error:
        raise ValueError("is nested too deep") from error
