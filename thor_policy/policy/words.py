"""Word lists of a pack: whether a name or a text contains one of the words, however the words are joined.

Owns the splitting of text into words. Invariant: a capital, a digit, a sign or an invisible character hides
no word: `deleteLog`, `DELETE_LOG`, `delete-log` and `del<U+200B>ete log` contain `delete`. Pure; any thread.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence

from thor_policy.core.errors import PackError

#: Places where a capital starts a new word: `deleteLog`, `HTTPServer`.
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W\d_]+|[0-9]+")
#: Characters that a reader does not see. The first two lines are Default_Ignorable_Code_Point of Unicode 16
#: (DerivedCoreProperties.txt), the third the rest of category Cf. Then control characters but for tab and
#: line breaks, interlinear annotation, the blank braille pattern, a null note head, a filler, and what has no
#: glyph: private use, noncharacters, U+FFFC and U+FFFD (as which NUL is read in a request).
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd\U00013430-\U0001345f"
    "\x00-\x08\x0e-\x1f\x7f-\x9f\ufff9-\uffff\u2800\U0001d159\U00016fe4"
    "\ue000-\uf8ff\ufdd0-\ufdef\U000f0000-\U0010ffff]"
)


class WordLists:
    """The compiled word lists of a pack. Raises PackError that names a list or entry without words."""

    def __init__(self, words: Mapping[str, Sequence[str]], where: str = "pack") -> None:
        for name, entries in words.items():
            if fault := fault_of(entries):
                raise PackError(f"{where}: words {name}: {fault[1]}")
        self._patterns = {name: _pattern(entries) for name, entries in words.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._patterns

    def mentions(self, text: str, name: str) -> bool:
        """True if an entry of the list `name` occurs anywhere in the text. Raises ValueError."""
        return self._pattern_of(name).search(plain_words(text)) is not None

    def starts(self, text: str, name: str) -> bool:
        """True if the text begins with an entry of the list `name`. Raises ValueError."""
        pattern = self._pattern_of(name)
        return any(pattern.match(reading) for reading in plain_words(text).split("|"))

    def _pattern_of(self, name: str) -> re.Pattern[str]:
        if name not in self._patterns:
            raise ValueError(f"there is no word list {name!r}")
        return self._patterns[name]


@functools.lru_cache(maxsize=4096)
def plain_words(text: str) -> str:
    """The words of a text, lower case, a space around each: `deleteAuditLog` is " delete audit log ".

    Other readings follow after a `|`, so that neither `dElete` nor an invisible character hides a word: the
    text without splits at capitals, and the text split where an invisible character was.
    """
    readings = [unicodedata.normalize("NFKC", text)]
    if not text.isascii() or not text.isprintable():
        seen = unicodedata.normalize("NFKC", INVISIBLE.sub("", text))
        readings = [seen, unicodedata.normalize("NFKC", INVISIBLE.sub(" ", text))]
    forms = [form for reading in readings for form in (_CAMEL.sub(" ", reading), reading)]
    return f" {' | '.join(dict.fromkeys(' '.join(_WORD.findall(form.lower())) for form in forms))} "


def fault_of(entries: Sequence[str]) -> tuple[int | None, str] | None:
    """What keeps a word list from being used, with the index of the entry if it is one."""
    for at, entry in enumerate(entries):
        if not plain_words(entry.strip("*")).strip(" |"):
            return at, f"the entry {entry!r} holds no word; give letters or digits"
    return None if entries else (None, "the list is empty; add a word or remove the list")


def _pattern(entries: Sequence[str]) -> re.Pattern[str]:
    """Pattern that matches any entry: whole words; a `*` at either end of an entry matches any letters."""
    alternatives = []
    for entry in entries:
        readings = plain_words(entry.strip("*")).strip()
        alternatives += [
            r"\w*" * entry.startswith("*") + re.escape(words) + r"\w*" * entry.endswith("*")
            for words in readings.split(" | ")
        ]
    return re.compile(f" (?:{'|'.join(alternatives)}) ")
