"""The bounds of the texts of a question: their length, and their combining marks in a row.

Owns the check of every text of a question, names of members included, before any rule reads it. Invariant:
a text that passes is at most as long as the setting or the pack allows at its place, also in NFKC, and has at
most `MAX_MARKS` non-starters in a row, as in the stream-safe format of UAX 15. Then Unicode normalisation,
which takes quadratic time in a row of non-starters, takes linear time. Pure; called by the main thread.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

from msgspec import Struct

from thor_policy.core import strict_json
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json

#: Most characters of a text where neither the setting `max_text_chars` nor the pack says something else.
MAX_TEXT_CHARS = 4096
#: Most non-starters in a row (UAX 15, stream-safe text format).
MAX_MARKS = 30
#: Characters that NFKC makes of one at most (UAX 15).
_MOST_IN_NFKC = 18
#: A row that may be too long: signs beyond ASCII that are no letters, and two marks that count as letters. A
#: character stands for two marks at most.
_ROW = re.compile(rf"(?:[^\w\x00-\x7f]|[\uff9e\uff9f]){{{MAX_MARKS // 2 + 1},}}")


class TextLimits(Struct, frozen=True):
    """How long a text may be: `most_chars`, or what the pack of a question says for a path.

    `longer_in` gives these paths, such as `context.diff`, with their characters, by what the question calls
    its pack (None: the active one). A limit holds for the value at its path and for all texts in it.
    """

    most_chars: int = MAX_TEXT_CHARS
    longer_in: Callable[[str | None], Mapping[str, int]] = lambda pack: {}


#: The limits without settings and packs.
DEFAULT_LIMITS = TextLimits()


class TextCheck:
    """The check of the texts of one frame, which costs nothing where the frame can hold no fault."""

    def __init__(self, frame: bytes, limits: TextLimits) -> None:
        self._limits = limits
        self._may_have_marks = not frame.isascii() or b"\\u" in frame
        self._may_be_long = len(frame) > limits.most_chars

    def check(self, raw: Json, where: str, *, root: str = "", pack: str | None = None) -> None:
        """Check the texts of a decoded value at `where`; `root` is its path in a question.

        Raises RequestError, which names the place, the limit and the cure.
        """
        if not self._may_be_long and not self._may_have_marks:
            return
        most = self._limits.most_chars
        longer = self._limits.longer_in(pack)
        stack: list[tuple[Json, str, str, int]] = [(raw, where, root, max(most, longer.get(root, 0)))]
        while stack:
            value, place, path, limit = stack.pop()
            if isinstance(value, str):
                self._check_text(value, place, limit)
            elif isinstance(value, list):
                for number, item in enumerate(value):
                    stack.append((item, strict_json.within(place, number), path, limit))
            elif isinstance(value, dict):
                for name, item in value.items():
                    at, member = strict_json.within(place, name), f"{path}.{name}" if path else name
                    self._check_text(name, f"{at} (the name)", most)
                    stack.append((item, at, member, max(limit, longer.get(member, 0))))

    def _check_text(self, text: str, place: str, limit: int) -> None:
        chars, form = len(text), ""
        if self._may_have_marks and chars <= limit and not text.isascii():
            if has_long_row(text):
                raise RequestError(
                    "bad_request",
                    f"{place}: has more than {MAX_MARKS} combining marks in a row; remove some",
                )
            if chars * _MOST_IN_NFKC > limit:
                chars, form = len(unicodedata.normalize("NFKC", text)), " in NFKC"
        if chars > limit:
            raise RequestError(
                "too_large",
                f"{place}: has {chars} characters{form}; the limit is {limit}; shorten it, or raise "
                "limits.texts of the pack or the setting max_text_chars",
            )


def has_long_row(text: str) -> bool:
    """True if more than `MAX_MARKS` non-starters of NFKD stand in a row in a text."""
    for row in _ROW.finditer(text):
        marks = 0
        for char in row[0]:
            decomposed = unicodedata.normalize("NFKD", char)
            marks = marks + len(decomposed) if all(map(unicodedata.combining, decomposed)) else 0
            if marks > MAX_MARKS:
                return True
    return False
