"""The vocabulary of a pack: the names that a member of a request can have, and what an unknown name means.

Owns the lookup of a name: its spelling and kind in the pack, or why it is unknown, and which names it may
stand for. Invariant: a name that a vocabulary does not have, or that is not plain, is never read as known.
Pure; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct

from thor_policy.core.requests import Json
from thor_policy.policy import budget
from thor_policy.policy.functions import json_type, with_article
from thor_policy.policy.structure import names

#: Members whose values must be plain names also where a pack has no vocabulary for them.
NAMED = ("action.name", "resource.type", "subject.type", "subject.properties.role")
#: Begins the id of the rule that an unknown name counts as, before the member's path.
RULE_ID = "vocabulary:"
#: Most names that an unknown name is tried as.
_MOST_LIKELY = 4
#: Most names of a member that is a list.
_MOST_LISTED = 100
#: Shorter names differ from others by one letter too often.
_SHORTEST_MISSPELT = 3

_PATH = re.compile(
    r"subject\.type|resource\.type|action\.name"
    r"|(?:(?:subject|action|resource)\.properties|context)(?:\.[A-Za-z_][A-Za-z0-9_]*)+"
)

#: Names with their kinds, or a list of names, each being its own kind.
Names = (
    Annotated[dict[str, Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]
    | Annotated[tuple[str, ...], Meta(min_length=1)]
)


class Vocabulary(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The names that one member of a request can have.

    A request with another name gets at least the outcome `unknown` (by default the strictest), for `clause`
    and `classification`.
    """

    names: Names
    unknown: str | None = None
    clause: str | None = None
    classification: str | None = None

    @property
    def kinds(self) -> dict[str, str]:
        """Each name with its kind."""
        return dict(self.names) if isinstance(self.names, Mapping) else {name: name for name in self.names}


class Reading(NamedTuple):
    """What rules read at a member of a request instead of what was sent.

    `because` says why a name is unknown, None if none is; then `likely` has what the value may stand for.
    """

    path: str
    value: Json
    because: str | None = None
    likely: tuple[Json, ...] = ()


class Vocabularies:
    """The vocabularies of a pack by the path of their member, ready to look names up."""

    def __init__(self, vocabularies: Mapping[str, Vocabulary]) -> None:
        self._names = {path: _Names(vocabulary.kinds) for path, vocabulary in vocabularies.items()}
        self._paths = [(path, path.split(".")) for path in dict.fromkeys((*vocabularies, *NAMED))]

    def read(self, roots: Mapping[str, Any]) -> list[Reading]:
        """What rules read at each member with a vocabulary that is there, and at each that is not plain."""
        readings = []
        for path, steps in self._paths:
            value: Json = roots
            for step in steps:
                value = value.get(step) if type(value) is dict else None
            if value is not None:
                known = self._names.get(path)
                if known is not None or type(value) is not str or not names.plain(value):
                    readings.append(self._reading(path, value))
        return readings

    def kinds(self, values: Mapping[str, Json]) -> dict[str, str]:
        """For each member with a vocabulary: the kind of the name that rules read there, "" without one."""
        kinds = dict.fromkeys(self._names, "")
        for path, value in values.items():
            if path in kinds and type(value) is str:
                kinds[path] = self._names[path].kinds.get(value, "")
        return kinds

    def _reading(self, path: str, value: Json) -> Reading:
        known = self._names.get(path)
        if type(value) is str:
            return _reading(path, value, known)
        if known is None:
            return Reading(path, value)
        if type(value) is not list or not all(type(item) is str for item in value):
            kind = "list of other things than names" if type(value) is list else json_type(value)
            return Reading(path, value, f"The {_noun(path)} is {with_article(kind)}, not a name.")
        if len(value) > _MOST_LISTED:
            reason = f"The {_noun(path)} is a list of {len(value)} names; a list has at most {_MOST_LISTED}."
            return Reading(path, value, reason)
        items = []
        for item in value:
            budget.check()
            items.append(_reading(path, item, known))
        reasons = [item.because for item in items if item.because]
        likely = [item.likely[0] if item.likely else item.value for item in items]
        read = [item.value for item in items]
        return Reading(path, read, reasons[0] if reasons else None, (likely,) if likely != read else ())


class _Names:
    """The names of one vocabulary, by spelling and by what may be written instead."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.kinds = dict(kinds)
        self.by_identifier = {names.identifier(name): name for name in kinds}
        self._by_letters: dict[str, dict[str, None]] = {}
        for name in kinds:
            for form in _misspelt(names.letters(name)):
                self._by_letters.setdefault(form, {})[name] = None

    def likely(self, text: str) -> tuple[str, ...]:
        """The names that an unknown text may stand for, in the vocabulary's order; the nearest first."""
        likely: dict[str, None] = {}
        for letters in dict.fromkeys(names.readings(text)):
            for form in _misspelt(letters):
                likely |= self._by_letters.get(form, {})
        return tuple(likely)[:_MOST_LIKELY]


def _misspelt(letters: str) -> Iterator[str]:
    """The letters, and the letters without one of them.

    Two words with a form in common differ by a letter too much, a wrong letter, or two exchanged ones.
    """
    yield letters
    if _SHORTEST_MISSPELT <= len(letters) <= names.MAX_NAME:
        yield from (letters[:at] + letters[at + 1 :] for at in range(len(letters)))


def _reading(path: str, text: str, known: _Names | None) -> Reading:
    if known is not None and text in known.kinds:
        return Reading(path, text)
    if known is not None and len(text) <= names.MAX_NAME:
        spelling = known.by_identifier.get(names.identifier(text))
        if spelling is not None:
            return Reading(path, spelling)
    problem = names.problem(text)
    if problem is None and known is None:
        return Reading(path, text)
    reason = f"The {_noun(path)} {names.shown(text)} {problem or 'is not one that this pack knows'}."
    return Reading(path, text, reason, known.likely(text) if known else (names.look(text),))


def _noun(path: str) -> str:
    """How a reason calls the member at a path: `action name`, `role`, `incident status`."""
    root, last = path.split(".")[0], path.split(".")[-1].replace("_", " ")
    return f"{root} {last}" if path in NAMED[:3] else last


# ---------------------------------------------------------------- checking


def faults_of(path: str, vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    """What is wrong with a vocabulary: the place below it (`.names[2]`), and the fault."""
    if not _PATH.fullmatch(path):
        below = "a path below context or below properties of subject, action or resource"
        yield "", f"must be action.name, subject.type, resource.type, or {below}"
    is_map = isinstance(vocabulary.names, Mapping)
    identifiers: dict[str, str] = {}
    looks: dict[str, str] = {}
    for at, name in enumerate(vocabulary.names):
        place = f".names.{name}" if is_map else f".names[{at}]"
        identifier, look = names.identifier(name), names.skeleton(name)
        if not identifier:
            yield place, "a name is empty; remove it"
        elif name != name.strip():
            yield place, f"the name {names.shown(name)} has blanks around it; remove them"
        elif problem := names.problem(name, declared=True):
            yield place, f"the name {names.shown(name)} {problem}"
        elif identifier in identifiers:
            other = names.shown(identifiers[identifier])
            yield place, f"the names {other} and {names.shown(name)} are the same; remove one"
        elif look in looks and not (name.isascii() and looks[look].isascii()):
            yield (
                place,
                f"the names {names.shown(looks[look])} and {names.shown(name)} look the same; rename one",
            )
        identifiers.setdefault(identifier, name)
        looks.setdefault(look, name)
