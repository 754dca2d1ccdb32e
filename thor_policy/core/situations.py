"""Situations: what was asked, as one text without what came of it.

Owns the text by which past decisions are compared. Invariant: the text of a question is the same before it is
decided and after it is recorded, so that a new question finds its equals; it has no outcome, no reason and no
id of the subject. Numbers have three digits that count, and a time is its weekday and hour: more would make
equal situations differ, and digits are most of what the embedder would have to read. Pure; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime

import msgspec

from thor_policy.core.requests import Evaluation, Json

#: Most words of a situation, of one value in it, and most characters of a word: about what the embedder
#: reads.
MOST_WORDS, VALUE_WORDS, MOST_WORD_CHARS = 140, 60, 48
#: Members of the context that come first, because most texts that people write are there.
_FIRST = ("details", "reason", "description")
#: Digits of a number that count, and from where on a number stays as it is.
_DIGITS, _LARGE = 3, 1e15
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)?", re.ASCII)


def situation_of(evaluation: Evaluation) -> str:
    """The situation of a question."""
    return _of_question(msgspec.to_builtins(evaluation))


def situation_in(private: Mapping[str, Json] | None, decision: Mapping[str, Json]) -> str:
    """The situation of a recorded decision: of its private part and its row; empty if that was erased."""
    if not private:
        return ""
    if "evaluation" in private:
        return _of_question(private["evaluation"])
    words = [*_words(decision.get("decision_type")), "decision about", *_words(decision.get("entity"))]
    words += _pairs(private.get("context") or {})
    return _text(words)


def _of_question(question: Mapping[str, Json]) -> str:
    subject, action, resource = question["subject"], question["action"], question["resource"]
    context = question.get("context") or {}
    words = [*_words(subject["type"]), *_words((subject.get("properties") or {}).get("role"))]
    words += [*_words(action["name"]), *_words(resource["type"]), *_words(resource["id"])]
    for name in _FIRST:
        words += _words(context.get(name))
    words += _pairs({name: value for name, value in context.items() if name not in _FIRST})
    for properties in (action.get("properties"), resource.get("properties"), subject.get("properties")):
        words += _pairs({name: value for name, value in (properties or {}).items() if name != "role"})
    return _text(words)


def _pairs(members: Mapping[str, Json]) -> Iterator[str]:
    """The words of each member, by name in order, so that equal maps give equal words."""
    for name in sorted(members):
        yield from _words(name)
        yield from _words(members[name])


def _words(value: Json) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(_pairs(value))[:VALUE_WORDS]
    if isinstance(value, list | tuple):
        return [word for item in value for word in _words(item)][:VALUE_WORDS]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, int | float):
        return [_number(value)]
    if _TIME.fullmatch(value):
        return _time(value)
    return str(value).replace("_", " ").split()[:VALUE_WORDS]


def _number(value: float) -> str:
    if abs(value) >= _LARGE:
        return str(value)
    return f"{float(f'{value:.{_DIGITS}g}'):.15g}"


def _time(value: str) -> list[str]:
    """Weekday and hour of a time, as it is where it was written down."""
    try:
        at = datetime.fromisoformat(value)
    except ValueError:  # there is no such day
        return [value]
    return [_DAYS[at.weekday()], f"{at.hour}h"]


def _text(words: list[str]) -> str:
    shown = (word[:MOST_WORD_CHARS] for word in words[:MOST_WORDS])
    return " ".join(shown)
