"""Evasions: other spellings of the names that rules look at, which must not get a request a looser answer.

Owns the spellings of a name, and the names that a rule looks at. Invariant: only rules are asked, so the
same pack, question and time give the same comparisons. A spelling fails if its floor is looser than that of
the name as it was sent, or is a final allow where that was none. Main thread.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from thor_policy.core.decisions import Floor
from thor_policy.core.requests import Evaluation, Json
from thor_policy.policy.pack import Pack
from thor_policy.policy.rule_specs import Rule, texts_read
from thor_policy.policy.structure.names import identifier, plain
from thor_policy.policy.tokens import kinds_compared, member_comparisons, paths_in
from thor_policy.policy.vocabulary import NAMED
from thor_policy.suites.invariance import AnswerRanks, Variant, VariantComparison, compare_answers

#: Letters that look like Latin ones.
_CYRILLIC = dict(zip("aceiopsxyjhdwAEOPCTXHKMB", "асеіорѕхујһԁԝАЕОРСТХНКМВ", strict=True))
_GREEK = dict(zip("aotvypiknuABEHIKMNOPTXYZ", "αοτνγρικηυΑΒΕΗΙΚΜΝΟΡΤΧΥΖ", strict=True))
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+|[0-9]+")
#: Characters that nobody sees: joiner, grapheme joiner, variation selector, soft hyphen, filler, blank.
_UNSEEN = "\u200d\u034f\ufe0f\u00ad\u3164\u200b\u2060"
_MARKS = "\u0301\u0338\u0332\u0307"


class Spelling(NamedTuple):
    """Another way to write a name, and the class of such ways."""

    kind: str
    text: str


def spellings(name: str, languages: Mapping[str, Sequence[str]]) -> list[Spelling]:
    """At least 25 other spellings of a name of three letters or more, each once, in a fixed order."""
    distinct: dict[str, Spelling] = {}
    for spelling in _spellings(name, languages):
        if spelling.text != name:
            distinct.setdefault(spelling.text, spelling)
    return list(distinct.values())


def _spellings(name: str, languages: Mapping[str, Sequence[str]]) -> Iterator[Spelling]:
    middle = max(len(name) // 2, 1)
    head, tail = name[:middle], name[middle:]

    def of(kind: str, *texts: str) -> Iterator[Spelling]:
        return (Spelling(kind, text) for text in texts)

    yield from of("scripts", *_in_other_letters(name))
    yield from of("unseen", *(f"{head}{char}{tail}" for char in _UNSEEN), f"{name}\u200d", f"\ufeff{name}")
    yield from of("marks", *(f"{head}{mark}{tail}" for mark in _MARKS), "".join(c + "\u0336" for c in name))
    yield from of("case", name.upper(), name.title(), name.swapcase(), name.capitalize())
    yield from of(
        "blanks", f" {name}", f"{name} ", f"\t{name}", f"{name}\u00a0", f"{name}\n", f"{name}\u3000"
    )
    yield from of("separators", *_joined_otherwise(name))
    swapped = f"{name[: middle - 1]}{name[middle : middle + 1]}{name[middle - 1]}{name[middle + 1 :]}"
    wrong = f"{head}{'q' if tail[:1] != 'q' else 'z'}{tail[1:]}"
    yield from of("typos", swapped, head + tail[1:], head + tail[:1] + tail, name[1:], f"{name}s", wrong)
    yield from of("encodings", *_encoded(name))
    yield from of("languages", *_translated(name, languages))


def _in_other_letters(name: str) -> Iterator[str]:
    for table in (_CYRILLIC, _GREEK):
        at = next((n for n, char in enumerate(name) if char in table), None)
        if at is not None:
            yield f"{name[:at]}{table[name[at]]}{name[at + 1 :]}"
            yield "".join(table.get(char, char) for char in name)
    letters = [(ord(char), char) for char in name if char.isascii() and char.isalpha()]
    wide = {ord(char): chr(ord(char) + 0xFEE0) for char in map(chr, range(0x21, 0x7F))}
    bold = {code: chr((0x1D400 if char.isupper() else 0x1D41A - 32) + code - 65) for code, char in letters}
    yield name.translate(wide)
    yield name.translate(bold)
    yield name.replace("i", "\u0131").replace("l", "\u04cf").replace("g", "\u0261").replace("a", "\u0251")


def _joined_otherwise(name: str) -> Iterator[str]:
    words = _WORDS.findall(name)
    if len(words) < 2:
        words = [name[: len(name) // 2], name[len(name) // 2 :]]
    yield from (sign.join(words) for sign in (".", "_", "-", "/", ":", " ", "", "::", "\u2010", "\u00b7"))
    yield words[0].lower() + "".join(map(str.capitalize, words[1:]))


def _encoded(name: str) -> Iterator[str]:
    octets = name.encode()
    code = ord(name[0])
    yield f"%{octets[0]:02X}{name[1:]}" if name[0].isascii() else name
    yield "".join(f"%{octet:02x}" for octet in octets)
    yield f"&#{code};{name[1:]}"
    yield f"&#x{code:x};{name[1:]}"
    yield f"\\u{code:04x}{name[1:]}"
    yield f"\\x{code:02x}{name[1:]}"
    yield base64.b64encode(octets).decode()
    yield base64.urlsafe_b64encode(octets).decode().rstrip("=")


def _translated(name: str, languages: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The name with each word that the table has in another language, one text for each language."""
    words = [match[0].lower() for match in _WORDS.finditer(name)]
    known = {word: languages[word] for word in words if word in languages}
    for at in range(min(map(len, known.values()), default=0)):
        translated = {word: texts[at] for word, texts in known.items()}
        yield _WORDS.sub(lambda word, to=translated: to.get(word[0].lower(), word[0]), name)  # type: ignore[misc]


# ---------------------------------------------------------------- the names that rules look at


class _Looks(NamedTuple):
    """The members that a rule looks at: names by path, and other members with the texts that it compares."""

    names: frozenset[str]
    compared: Mapping[str, frozenset[str]]


def _looks(pack: Pack, rule: Rule) -> _Looks:
    manifest = pack.manifest
    names: set[str] = set()
    compared: dict[str, set[str]] = {}
    for text in texts_read(rule, manifest.facts):
        names |= {path for path, _ in kinds_compared(text)}
        names |= paths_in(text) & {*manifest.vocabulary, *NAMED}
        for path, literal, _, _ in member_comparisons(text, manifest.facts):
            compared.setdefault(path, set()).add(identifier(literal))
    return _Looks(frozenset(names), {path: frozenset(literals) for path, literals in compared.items()})


class Evasions:
    """The spellings of one pack's names, asked of its rules. `at` is the receipt time in Unix seconds."""

    def __init__(self, pack: Pack, languages: Mapping[str, Sequence[str]], at: float) -> None:
        self._pack, self._languages, self._at = pack, languages, at
        tighten = [rule for rule in pack.book.rules if rule.outcome != pack.loosest]
        self._looks = {rule.id: _looks(pack, rule) for rule in tighten}
        #: The deny and review rules that no question set off, whose names are not tried.
        self.untried = set(self._looks)
        self._before: dict[str, Floor] = {}

    def of(self, question: str, evaluation: Evaluation) -> Iterator[Variant]:
        """Every spelling of each name that the rules which fire on a question look at.

        `question` is the name of the question, which no other has.
        """
        self._before[question] = before = self._floor(evaluation)
        self.untried -= set(before.rules)
        request: Json = msgspec.to_builtins(evaluation)
        for path, name in self._names(before.rules, request):
            for spelling in spellings(name, self._languages):
                yield Variant(
                    scenario=question,
                    kind="evasions",
                    question={"request": _with(request, path.split("."), spelling.text)},
                    place=path,
                    detail=spelling.kind,
                    text=spelling.text,
                )

    def compare(self, variant: Variant) -> VariantComparison:
        """The floor of a variant of `of`, compared with that of its question."""
        before = self._before[variant.scenario]
        after = self._floor(msgspec.convert(variant.question["request"], Evaluation))
        comparison = compare_answers(variant, self._ranks(before), self._ranks(after))
        allowed = self._allows(after) and not self._allows(before)
        return msgspec.structs.replace(comparison, finally_allowed=allowed)

    def _names(self, fired: Sequence[str], request: Json) -> Iterator[tuple[str, str]]:
        """Each member of a request that holds a name which one of these rules looks at, and the name."""
        looks = [self._looks[rule] for rule in fired if rule in self._looks]
        for path in sorted({path for look in looks for path in (*look.names, *look.compared)}):
            value = request
            for step in path.split("."):
                value = value.get(step) if isinstance(value, dict) else None
            if isinstance(value, str) and value.strip() and plain(value):  # else it is a disguise itself
                is_name = any(path in look.names for look in looks)
                if is_name or any(identifier(value) in look.compared.get(path, ()) for look in looks):
                    yield path, value

    def _floor(self, evaluation: Evaluation) -> Floor:
        return self._pack.book.apply(evaluation, self._at)

    def _ranks(self, floor: Floor) -> AnswerRanks:
        rank = self._pack.labels.index(floor.outcome)
        return AnswerRanks(outcome=floor.outcome, rank=rank, floor_rank=rank)

    def _allows(self, floor: Floor) -> bool:
        return floor.final and floor.outcome == self._pack.loosest


def _with(value: Json, steps: Sequence[str], text: str) -> Json:
    """A copy with a text at a path. What the path does not touch is shared."""
    return text if not steps else value | {steps[0]: _with(value[steps[0]], steps[1:], text)}
