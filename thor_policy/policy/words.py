"""Word lists of a pack: whether a name or a text contains one of the words, however the words are joined.

Owns the splitting of text into words. Invariant: a capital, a digit, a sign, an invisible character, a mark
or a letter that looks like another hides no word: `deleteLog`, `DELETE_LOG`, `delete-log`, `del<U+200B>ete`
and `d<U+0435>lete` contain `delete`. Pure; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from thor_policy.core.errors import PackError
from thor_policy.policy.structure.names import INVISIBLE, composed, folded
from thor_policy.policy.text_cache import kept

#: Places where a capital starts a new word: `deleteLog`, `HTTPServer`.
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W\d_]+|[0-9]+")


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
        pattern = self._patterns.get(name)
        if pattern is None:
            raise ValueError(f"there is no word list {name!r}")
        return pattern


@kept(8 * 2**20)
def plain_words(text: str) -> str:
    """The words of a text, lower case, a space around each: `deleteAuditLog` is " delete audit log ".

    Other readings follow after a `|`, so that neither `dElete` nor an invisible character, a mark or a letter
    that looks like another hides a word: the text without splits at capitals, the text split where an
    invisible character was, and the text in the ASCII letters that it looks like.
    """
    readings = [text]
    if not text.isascii() or not text.isprintable():
        seen = composed(INVISIBLE.sub("", text))
        readings = [seen, composed(INVISIBLE.sub(" ", text)), folded(seen), folded(seen.lower())]
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
