"""Names: when two texts are the same name, and which texts are plain enough to be a name at all.

Owns the comparison of identifiers (Unicode normalisation, UAX 15) and the check of their letters (UTS 39:
scripts, confusables). Invariant: every function gives a value for any text, in bounded time: text is
normalised in pieces of `_PIECE` characters, because normalisation takes quadratic time in a run of marks.
The tables of confusable-homoglyphs are read when the first name comes that is not ASCII. Pure; any thread.
"""

from __future__ import annotations

import base64
import functools
import html
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from thor_policy.policy.text_cache import kept

#: Most characters of a name.
MAX_NAME = 200
#: Characters that are normalised together.
_PIECE = 200
#: A piece ends before an ASCII character if it can, so that a letter is not separated from its marks.
_PIECES = re.compile(rf"(?s).{{1,{_PIECE}}}(?=[\x00-\x7f]|\Z)|.{{1,{_PIECE}}}")
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
#: Categories of characters without a glyph of their own: control, format, surrogate, private, unassigned,
#: and separators of lines.
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
#: ASCII characters that look like others, as in confusables.txt of UTS 39.
_ASCII_PROTOTYPES = {"0": "O", "1": "l", "I": "l", "|": "l", "m": "rn", "`": "'", '"': "''"}
#: Scripts that are written together (UTS 39). Latin letters may stand among them in a declared name.
_WRITTEN_TOGETHER = (
    frozenset({"Han", "Hiragana", "Katakana"}),
    frozenset({"Han", "Bopomofo"}),
    frozenset({"Han", "Hangul"}),
)
#: Signs beyond ASCII, among which all combining marks are.
_NO_LETTERS = re.compile(r"[^\w\x00-\x7f]+")
#: What `\u0064`, `\x64` and `\u{64}` stand for.
_ESCAPE = re.compile(r"\\u\{([0-9a-fA-F]{1,6})\}|\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
#: The digits of base64 that URLs have instead of others.
_URL_BASE64 = str.maketrans("-_", "+/")
#: Most characters whose script is kept.
_KEPT = 4096
#: Characters of a name that are shown in a reason.
_SHOWN = 60


# ---------------------------------------------------------------- the same name


def identifier(text: str) -> str:
    """The form in which names are compared: NFKC, case folded, without blanks around it."""
    if text.isascii():
        return text.lower().strip()
    return composed(composed(text).casefold()).strip()


def skeleton(text: str) -> str:
    """What a name looks like (UTS 39), whatever its case: equal for names that a reader cannot tell apart.

    Unseen characters and marks that belong to no letter are left out.
    """
    return _alike(_alike(_seen(text)).casefold())


def same(a: str, b: str) -> bool:
    """True if two texts are the same name, or look like it: for rules that tighten, never for an allow."""
    first, second = _forms(a), _forms(b)
    return first[0] == second[0] or first[1] == second[1] or first[2] == second[2]


def _forms(text: str) -> tuple[str, str, str]:
    """The identifier of a text, what the text looks like, and what its identifier looks like."""
    return _cached_forms(text) if len(text) <= MAX_NAME else _cached_forms.function(text)


@kept()
def _cached_forms(text: str) -> tuple[str, str, str]:
    seen = _seen(text)
    return identifier(text), skeleton(seen), _alike(identifier(seen))


def composed(text: str) -> str:
    """The text in NFKC, in linear time. A mark may stay apart from its letter at the end of a piece."""
    if text.isascii():
        return text
    if len(text) <= _PIECE:
        return unicodedata.normalize("NFKC", text)
    return "".join(unicodedata.normalize("NFKC", piece) for piece in _PIECES.findall(text))


def _seen(text: str) -> str:
    """The text without unseen characters, marks that belong to no letter, and blanks around it."""
    if text.isascii() and text.isprintable():
        return text.strip()
    kept = composed(INVISIBLE.sub("", text))
    return "".join(char for char in kept if not _is_loose_mark(char)).strip()


def _alike(text: str) -> str:
    """Each character replaced by the one that it looks like."""
    if not text.isascii():
        text = decomposed(text).translate(prototypes())
    return text.translate(_ASCII_TABLE)


def decomposed(text: str) -> str:
    """The text in NFD, in linear time."""
    return "".join(unicodedata.normalize("NFD", piece) for piece in _PIECES.findall(text))


_ASCII_TABLE = str.maketrans(_ASCII_PROTOTYPES)


# ---------------------------------------------------------------- plain names


def plain(text: str) -> bool:
    """True if a text can be a name: see `problem`."""
    return problem(text) is None


@kept()
def _problem(text: str, declared: bool) -> str | None:
    name = composed(text).strip()
    if (unseen := INVISIBLE.search(text)) or (unseen := INVISIBLE.search(name)):
        return f"contains the unseen character {_code(unseen[0])}"
    if unprinted := next((char for char in name if unicodedata.category(char) in _UNSEEN), None):
        return f"contains the unseen character {_code(unprinted)}"
    if name.isascii():
        return None
    if mark := next((char for char in name if _is_loose_mark(char)), None):
        return f"contains the mark {_code(mark)}, which belongs to no letter"
    scripts = scripts_of(name)
    own = set(scripts) - ({"Latin"} if declared else set())
    if len(scripts) > 1 and not any(own <= group for group in _WRITTEN_TOGETHER):
        return f"mixes {' and '.join(scripts[:3])} letters"
    return None if declared else _soft_problem(name, scripts)


def _soft_problem(name: str, scripts: Sequence[str]) -> str | None:
    """What is wrong with the letters of a name of one script, unless the pack's vocabulary has the name."""
    look = {char: decomposed(char).translate(prototypes()) for char in name if not char.isascii()}
    # A letter such as æ, which looks like two, is common in Latin names.
    alike = [char for char, other in look.items() if len(other) == 1 and other.isascii()]
    if len(alike) == len(look):
        return f"looks like {shown(name.translate(prototypes()))}"
    if alike and "Latin" in scripts:
        return f"contains {_code(alike[0])}, which looks like {shown(look[alike[0]])}"
    signs = [char for char in look if not char.isalnum() and unicodedata.category(char)[0] != "M"]
    return f"contains the sign {_code(signs[0])}" if signs else None


def problem(text: str, *, declared: bool = False) -> str | None:
    """What keeps a text from being a name, as the end of a sentence; None if it is plain.

    Refused: more than `MAX_NAME` characters, unseen characters, marks that belong to no letter, letters of
    several scripts, letters and signs that look like others. `declared`: for a name that a pack declares,
    where a whole word of another script may look like Latin letters.
    """
    if len(text) > MAX_NAME:
        return f"has {len(text)} characters; a name has at most {MAX_NAME}"
    if text.isascii() and text.isprintable():
        return None
    return _problem(text, declared)


def shown(text: str) -> str:
    """A name in quotes for a reason: on one line, short, without signs that could end the quotes."""
    kept = text[:_SHOWN] + ("…" if len(text) > _SHOWN else "")
    return '"' + "".join(c if c.isalnum() or c in " _.:/@+%-…" else f"\\u{{{ord(c):x}}}" for c in kept) + '"'


def _code(char: str) -> str:
    return f"U+{ord(char):04X}"


def _is_loose_mark(char: str) -> bool:
    """True for a combining mark that no letter before it took up in NFKC, and that belongs to no script."""
    return not char.isascii() and unicodedata.category(char)[0] == "M" and script_alias(char) == "INHERITED"


def _script(char: str) -> str | None:
    """The script of a letter, such as Latin; None for what all scripts share."""
    alias = (
        "LATIN" if char.isascii() and char.isalpha() else "COMMON" if char.isascii() else script_alias(char)
    )
    return None if alias in ("COMMON", "INHERITED") else alias.replace("_", " ").title()


def scripts_of(text: str) -> list[str]:
    """The scripts of the letters of a text, each where it comes first."""
    return list(dict.fromkeys(script for char in text if (script := _script(char))))


def imitates_latin(char: str) -> bool:
    """True for a character of another script that looks like a Latin letter, ASCII or not."""
    return script_alias(char) != "LATIN" and any(
        script_alias(other) == "LATIN" for text in _neighbours().get(char, ()) for other in text
    )


# ---------------------------------------------------------------- which name a text may stand for


def readings(text: str) -> Iterator[str]:
    """What a text may stand for: the `letters` of the text, and of what its encodings hide.

    Undone are percent signs, character references of HTML, escapes of JSON and Python, and base64.
    """
    text = text[: 4 * MAX_NAME]
    yield letters(text)
    if "%" in text or "&" in text or "\\" in text:
        for _ in range(2):
            text = html.unescape(unquote(_ESCAPE.sub(_unescaped, text)))
        yield letters(text)
    try:
        encoded = text.strip().translate(_URL_BASE64).rstrip("=") + "==="
        yield letters(base64.b64decode(encoded).decode())
    except ValueError:
        return


@kept()
def letters(text: str) -> str:
    """The letters and digits of a text as a reader sees them, lower case, whatever stands between words.

    `i` counts as `l`: a sign that looks like one of them in small letters looks like the other in capitals.
    """
    letters = filter(str.isalnum, folded(skeleton(folded(composed(text).casefold()))))
    return "".join(letters).replace("i", "l")


def _unescaped(match: re.Match[str]) -> str:
    code = int(next(filter(None, match.groups())), 16)
    return chr(code) if code <= 0x10FFFF else ""


def look(text: str) -> str:
    """A name in the ASCII letters that it looks like, without unseen characters, marks and blanks around."""
    return folded(composed(text[:MAX_NAME])).strip()


def folded(text: str) -> str:
    """The text without unseen characters and marks, each letter as the ASCII letter that it looks like."""
    if text.isascii():
        return text
    bare = _NO_LETTERS.sub(_without_marks, decomposed(INVISIBLE.sub("", text)))
    return bare.translate(prototypes())


def _without_marks(signs: re.Match[str]) -> str:
    return "".join(sign for sign in signs[0] if unicodedata.category(sign)[0] != "M")


# ---------------------------------------------------------------- tables


class _Homoglyph(Struct):
    """A character or a sequence that looks like another."""

    c: str


def load() -> None:
    """Read the tables, about 50 ms, which the first name that is not ASCII needs."""
    script_alias(next(map(chr, prototypes())))


@functools.cache
def _neighbours() -> Mapping[str, Sequence[str]]:
    """What each text looks like: each row of confusables.txt (a character and its prototype) both ways."""
    source = (resources.files("confusable_homoglyphs") / "confusables.json").read_bytes()
    rows = msgspec.json.decode(source, type=dict[str, list[_Homoglyph]])
    # Characters of scripts from right to left stand between marks of direction.
    return {key.strip("\u200e"): [row.c.strip("\u200e") for row in others] for key, others in rows.items()}


@functools.cache
def prototypes() -> Mapping[int, str]:
    """For each character that is not ASCII and looks like others: the one that stands for all of them.

    A prototype is the text with several neighbours, or, of a pair, the one that is longer or ASCII.
    """
    looks = _neighbours()

    def weight(text: str) -> tuple[bool, int, bool, int]:
        return len(looks.get(text, ())) > 1, len(text), text.isascii(), -ord(text[0])

    table = {}
    for char, others in looks.items():
        if len(char) == 1 and not char.isascii():
            best = max((char, *others), key=weight)
            if best != char:
                table[ord(char)] = best
    return table


@functools.lru_cache(maxsize=_KEPT)
def script_alias(char: str) -> str:
    """The script of a character, as `LATIN`; COMMON and INHERITED for what all scripts share."""
    from confusable_homoglyphs import categories  # reads its table, needed only here

    alias: str = categories.alias(char)
    return alias
