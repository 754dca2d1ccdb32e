"""Whether a text of several words, such as a path or a URL, is what it looks like.

Owns the rules beyond those of a single name (`names`): blanks, combining marks, compatibility forms (UAX 15),
and signs that look like those which split paths and URLs. Invariant: printable ASCII is plain, and every text
gives an answer in bounded time. Pure; any thread.
"""

from __future__ import annotations

import re
import unicodedata

from thor_policy.policy.structure import names

_WORD = re.compile(r"[^\W_]+")
#: Signs that split paths and URLs, or that shells read.
_MEANINGFUL = frozenset("/\\.:@?#%~$|;&<>*")
#: Marks on a letter. Normalisation takes quadratic time in their number.
_MAX_MARKS = 6


def fault(text: str) -> str:
    """Why the text is not what it looks like: "has a control character". "" if it is plain."""
    if text.isascii():
        return "" if text.isprintable() else "has a control character"
    for character in set(text):
        if not character.isascii() and unicodedata.category(character) in ("Zs", "Zl", "Zp", "Cs", "Cn"):
            return "has an unusual blank, or a character that does not exist"
    if names.INVISIBLE.search(text) or "\n" in text or "\t" in text or "\r" in text:
        return "has a character that nobody sees"
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks > _MAX_MARKS:
            return "has too many combining marks on a letter"
    if not unicodedata.is_normalized("NFC", text):
        return "has combining marks that are not composed (NFC)"
    if not unicodedata.is_normalized("NFKC", text):
        return "has characters that stand for others (NFKC)"
    if any(names.folded(character) in _MEANINGFUL for character in set(text) if not character.isascii()):
        return "has a sign that looks like another one"
    return next(filter(None, (_fault_of_word(word) for word in _WORD.findall(text))), "")


def bare(text: str) -> str:
    """The text in NFKC, without characters that nobody sees."""
    return names.composed(names.INVISIBLE.sub("", text))[: 2 * len(text)]


def fold(text: str) -> str:
    """The ASCII text that a reader may take this text for, in lower case; for lists of dangerous names."""
    if text.isascii():
        return names.INVISIBLE.sub("", text).lower()
    text = bare(text)
    digits = {ord(c): str(unicodedata.decimal(c)) for c in set(text) if unicodedata.decimal(c, -1) >= 0}
    return names.folded(text.translate(digits)).casefold()


def _fault_of_word(word: str) -> str:
    if word.isascii():
        return ""
    own = "".join(character for character in word if not character.isascii())
    return names.problem(word, declared=True) or names.problem(own) or ""
