"""Whether a text is what it looks like.

Owns the rules for characters that hide or imitate: controls, characters that nobody sees, compatibility forms
(UAX 15), mixed scripts and confusables (UTS 39). Invariant: printable ASCII is plain, and every text gives an
answer. Pure; any thread. The first text that is not ASCII loads the tables of `names`.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from thor_policy.policy.structure.names import INVISIBLE, prototypes, script_alias

_WORD = re.compile(r"[^\W_]+")
#: Scripts that are written together (UTS 39, section 5.2, "highly restrictive").
_TOGETHER = (
    {"LATIN", "HAN", "HIRAGANA", "KATAKANA"},
    {"LATIN", "HAN", "BOPOMOFO"},
    {"LATIN", "HAN", "HANGUL"},
)
#: Signs that split paths and URLs, or that shells read.
_MEANINGFUL = frozenset("/\\.:@?#%~$|;&<>*")
#: Marks on a letter. Normalisation takes quadratic time in their number.
_MAX_MARKS = 6
_OF_EVERY_SCRIPT = {"COMMON", "INHERITED"}


def fault(text: str) -> str:
    """Why the text is not what it looks like: "has a control character". "" if it is plain."""
    if text.isascii():
        return "" if text.isprintable() else "has a control character"
    characters = set(text)
    for character in characters:
        if not character.isascii() and unicodedata.category(character) in ("Zs", "Zl", "Zp", "Cs", "Cn"):
            return "has an unusual blank, or a character that does not exist"
    if INVISIBLE.search(text) or "\n" in text or "\t" in text or "\r" in text:
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
    look_alikes = _look_alikes()
    if any(look_alikes.get(character, "-") in _MEANINGFUL for character in characters):
        return "has a sign that looks like another one"
    return next(filter(None, (_fault_of_word(word) for word in _WORD.findall(text))), "")


def bare(text: str) -> str:
    """The text in NFKC, without characters that nobody sees and without combining marks."""
    if text.isascii():
        return INVISIBLE.sub("", text)
    marks = {ord(character): "" for character in set(text) if unicodedata.combining(character)}
    return unicodedata.normalize("NFKC", INVISIBLE.sub("", text).translate(marks))[: 2 * len(text)]


def fold(text: str) -> str:
    """The ASCII text that a reader may take this text for, in lower case; for lists of dangerous names."""
    if text.isascii():
        return INVISIBLE.sub("", text).lower()
    text = unicodedata.normalize("NFKD", bare(text))
    return text.translate({ord(character): _folded(character) for character in set(text)}).casefold()


def _folded(character: str) -> str:
    if unicodedata.combining(character):
        return ""
    digit = unicodedata.decimal(character, -1)
    return str(digit) if digit >= 0 else _look_alikes().get(character, character)


def _fault_of_word(word: str) -> str:
    if word.isascii():
        return ""
    look_alikes = _look_alikes()
    characters = set(word)
    scripts = {script_alias(character) for character in characters} - _OF_EVERY_SCRIPT
    if len(scripts) > 1 and not any(scripts <= together for together in _TOGETHER):
        return "has a word that mixes scripts"
    if all(character.isascii() or character in look_alikes for character in characters):
        return "has a word that looks like another one in Latin letters"
    return ""


@functools.cache
def _look_alikes() -> dict[str, str]:
    """The ASCII look-alike of each character that has one."""
    return {chr(code): look for code, look in prototypes().items() if look.isascii()}
