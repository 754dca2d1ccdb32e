"""The words of a shell command: quotes, escapes, braces and expansions resolved as bash resolves them.

Owns the reading of one word's characters. Invariant: a word that is not fully known holds `UNKNOWN` where the
unknown part is; nothing is guessed. Pure; any thread.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

#: Stands for a part of a word that cannot be known.
UNKNOWN = "\ufffd"
#: Words that one word may become by braces and lists, at most.
_MAX_WORDS = 256
#: Opening braces of one word, at most: they are read recursively.
_MAX_BRACES = 32
_ANSI = {
    "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", "'": "'", '"': '"', "?": "?",
}  # fmt: skip
_ANSI_CODE = re.compile(r"x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{1,4}|U[0-9a-fA-F]{1,8}|[0-7]{1,3}|c.", re.DOTALL)
_RANGE = re.compile(r"(-?\d{1,6}|[A-Za-z])\.\.(-?\d{1,6}|[A-Za-z])(?:\.\.(-?\d{1,6}))?")
_GLOB = re.compile(r"[*?\[]")


class Word(NamedTuple):
    """One argument. `inputs` are the programs of its substitutions; `splits`: it may become several words."""

    text: str
    inputs: tuple[str, ...] = ()
    splits: bool = False

    @property
    def is_known(self) -> bool:
        return UNKNOWN not in self.text

    def after(self, count: int) -> Word:
        """The word without its first characters."""
        return Word(self.text[count:], self.inputs, self.splits)


class Value(NamedTuple):
    """What an expansion gives: the texts that it can be (none: it is not known), and where it ends."""

    texts: tuple[str, ...]
    end: int
    inputs: tuple[str, ...] = ()


class Misread(Exception):
    """The characters are no single word: the parser and this module disagree."""


class _Atom(NamedTuple):
    text: str  # one character, or the value of an expansion
    quoted: bool
    choices: tuple[str, ...] = ()  # what an expansion can be, if several
    is_value: bool = False  # from an expansion: no brace, no escape


#: Gives the value of the expansion that begins at an offset: `$..`, a backtick, `<(`, `>(`.
Expand = Callable[[int], Value]


def words_of(source: str, begin: int, end: int, expand: Expand) -> list[Word]:
    """The words that `source[begin:end]` becomes. Its characters are bytes, as Latin-1. Raises Misread."""
    atoms, inputs = _atoms(source, begin, end, expand)
    if sum(_is(atom, "{") for atom in atoms) > _MAX_BRACES:
        raise Misread(f"a word has more than {_MAX_BRACES} braces")
    alternatives = list(itertools.islice(_alternatives(atoms), _MAX_WORDS + 1))
    words = [word for alternative in alternatives for word in _split(alternative, inputs)]
    if max(len(alternatives), len(words)) > _MAX_WORDS:
        raise Misread(f"a word becomes more than {_MAX_WORDS} words")
    return words


def _atoms(source: str, begin: int, end: int, expand: Expand) -> tuple[list[_Atom], tuple[str, ...]]:
    atoms: list[_Atom] = []
    inputs: list[str] = []
    at, in_quotes = begin, False

    def take(value: Value) -> int:
        inputs.extend(value.inputs)
        choices = value.texts or (UNKNOWN,)
        quoted = in_quotes and not (choices == (UNKNOWN,) and "@" in source[at : value.end])  # "$@" is many
        atoms.append(_Atom(choices[0], quoted, choices if len(choices) > 1 else (), True))
        return value.end

    while at < end:
        char = source[at]
        after = source[at + 1] if at + 1 < end else ""
        if char == "\\" and in_quotes:
            if after and after in '$`"\\':
                atoms.append(_Atom(after, True))
            elif after != "\n":
                atoms += [_Atom("\\", True), *([_Atom(after, True)] if after else [])]
            at += 2
        elif char == "\\":
            atoms += [_Atom(after, True)] if after not in ("", "\n") else []
            at += 2
        elif char == '"':
            in_quotes = not in_quotes
            atoms.append(_Atom("", True))
            at += 1
        elif char == "'" and not in_quotes:
            close = source.find("'", at + 1, end)
            if close < 0:
                raise Misread("a quote is not closed")
            atoms += [_Atom("", True), *(_Atom(quoted, True) for quoted in source[at + 1 : close])]
            at = close + 1
        elif char == "$" and after == "'" and not in_quotes:
            text, at = _ansi(source, at + 2, end)
            atoms += [_Atom("", True), *(_Atom(quoted, True) for quoted in text)]
        elif char == "$" and after == '"' and not in_quotes:
            at += 1  # translated text: the quote follows
        elif _expands(char, after, in_quotes):
            at = take(expand(at))
        elif not in_quotes and char in " \t\n;|&()<>":
            raise Misread("a word holds a sign of the shell")
        else:
            atoms.append(_Atom(char, in_quotes))
            at += 1
    if in_quotes or at > end:
        raise Misread("a quote is not closed")
    return atoms, tuple(inputs)


def _expands(char: str, after: str, in_quotes: bool) -> bool:
    """True where an expansion begins."""
    if char in "<>":
        return after == "(" and not in_quotes
    return char == "`" or (char == "$" and (after.isalnum() or after in tuple("_{([@*#?-$!")))


def _ansi(source: str, at: int, end: int) -> tuple[str, int]:
    """The text of `$'..'` from behind its quote, and where it ends."""
    text = ""
    while at < end and source[at] != "'":
        if source[at] != "\\":
            text, at = text + source[at], at + 1
            continue
        code = _ANSI_CODE.match(source, at + 1, end)
        if code is None:
            after = source[at + 1 : at + 2]
            text, at = text + _ANSI.get(after, f"\\{after}"), at + 2
            continue
        digits = code[0]
        if digits[0] == "c":
            value = ord(digits[1]) & 0x1F
        else:
            value = int(digits.lstrip("xuU"), 8 if digits[0] in "01234567" else 16)
        value &= 0xFF if digits[0] not in "uU" else 0x1FFFFF
        if value == 0 or value > 0x10FFFF or 0xD800 <= value < 0xE000:
            raise Misread("an escape gives no character")
        text += chr(value).encode().decode("latin-1") if digits[0] in "uU" else chr(value)
        at = code.end()
    if at >= end:
        raise Misread("a quote is not closed")
    return text, at + 1


def _alternatives(atoms: Sequence[_Atom]) -> Iterator[list[_Atom]]:
    """The words that braces and lists of values make of one word, in order."""
    for at, atom in enumerate(atoms):
        if atom.choices:
            for choice in atom.choices:
                for rest in _alternatives(atoms[at + 1 :]):
                    yield [*atoms[:at], _Atom(choice, atom.quoted, (), True), *rest]
            return
        if _is(atom, "{") and (brace := _brace(atoms, at)):
            parts, close = brace
            for part in parts:
                for inner in _alternatives(part):
                    for rest in _alternatives(atoms[close + 1 :]):
                        yield [*atoms[:at], *inner, *rest]
            return
    yield list(atoms)


def _is(atom: _Atom, char: str) -> bool:
    return atom.text == char and not atom.quoted and not atom.is_value


def _brace(atoms: Sequence[_Atom], opening: int) -> tuple[list[list[_Atom]], int] | None:
    """The alternatives of the brace at an index, and where it closes; None if it expands nothing."""
    depth = 0
    parts: list[list[_Atom]] = [[]]
    for at in range(opening, len(atoms)):
        atom = atoms[at]
        depth += _is(atom, "{") - _is(atom, "}")
        if depth == 0:
            if len(parts) > 1:
                return parts, at
            inside = parts[0]
            if any(part.quoted or part.is_value for part in inside):
                return None
            texts = _range("".join(part.text for part in inside))
            return ([[_Atom(char, True) for char in text] for text in texts], at) if texts else None
        if depth == 1 and _is(atom, ","):
            parts.append([])
        elif at > opening:
            parts[-1].append(atom)
    return None


def _range(text: str) -> list[str]:
    """The texts of `1..3` or `a..e`; nothing for another text."""
    match = _RANGE.fullmatch(text)
    if match is None or match[1].isalpha() != match[2].isalpha():
        return []
    letters = match[1].isalpha()
    first, last = (ord(part) if letters else int(part) for part in (match[1], match[2]))
    step = max(1, abs(int(match[3] or 1)))
    if abs(last - first) // step >= _MAX_WORDS:
        raise Misread(f"a word becomes more than {_MAX_WORDS} words")
    width = max(len(match[1]), len(match[2]))
    padded = not letters and any(re.match(r"-?0\d", part) for part in (match[1], match[2]))
    values = range(first, last + (1 if last >= first else -1), step if last >= first else -step)
    return [chr(value) if letters else str(value).zfill(width) if padded else str(value) for value in values]


def _split(atoms: Sequence[_Atom], inputs: tuple[str, ...]) -> Iterator[Word]:
    """The words of one alternative. An unquoted value is split at blanks; a quoted `~` is a name."""
    text, is_there, splits = "", False, False
    for atom in atoms:
        if atom.is_value and not atom.quoted:
            if atom.text == UNKNOWN:
                text, is_there, splits = text + UNKNOWN, True, True
                continue
            first, *others = re.split(r"[ \t\n]+", atom.text)
            text, is_there = text + first, is_there or first != ""
            for other in others:
                if is_there:
                    yield _word(text, inputs, splits)
                text, is_there, splits = other, other != "", False
        else:
            if not text and atom.text == "~" and atom.quoted and not atom.is_value:
                text = "./"
            text, is_there = text + atom.text, True
    if is_there:
        yield _word(text, inputs, splits)


def _word(text: str, inputs: tuple[str, ...], splits: bool) -> Word:
    if not text.isascii():
        parts = text.split(UNKNOWN)
        text = UNKNOWN.join(part.encode("latin-1").decode("utf-8", "replace") for part in parts)
    return Word(text, inputs, splits)


def raw(text: str) -> str:
    """A text as `words_of` reads its source: each byte one character."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("latin-1")


# ---------------------------------------------------------------- words that are paths


def joined(folder: str, path: str) -> str:
    """A path below a folder, normalised lexically; `~` and `~name` are roots, "." is the start."""
    if not path.startswith(("/", "~")) and folder not in ("", "."):
        path = f"{folder}/{path}"
    if path.startswith("~"):
        root, _, rest = path.partition("/")
        rest = posixpath.normpath(rest) if rest else "."
        return root if rest == "." else f"{root}/{rest.lstrip('/')}"
    return re.sub(r"^/+", "/", posixpath.normpath(path)) if path else "."


def hides_names(path: str) -> bool:
    """True if a part of the path is a pattern that matches hidden files by its own dot: `.e*`."""
    return any(part.startswith(".") and _GLOB.search(part) for part in path.split("/"))
