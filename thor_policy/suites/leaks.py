"""Leaks: scenarios that a pack shows the model as examples.

Owns the comparison of scenarios with the examples of a pack. Invariant: a scenario that repeats an
example is found by name before the run, for a suite that the model was shown the answers of measures
nothing. Pure; main thread.

Four looks, the first that finds something is told:
    exact      the same evaluation
    canonical  the same but for the names of subject and resource, and for times
    text       similar in form and wording, by words and by letters
    embedding  similar in form and meaning; only with an embedder

The last two compare form and text apart and take their mean. Form: the share of plain values that agree,
numbers by how close they are. Text: what is written in sentences. The thresholds were chosen on labelled
pairs (tests/leak-pairs.yaml), not on the suites that ship; docs/explanation/suites.md says how.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from thor_policy.core.errors import SuiteError
from thor_policy.core.requests import Evaluation, Json
from thor_policy.policy.pack import Pack
from thor_policy.suites.scenarios import Embedder, Scenario, Suite

Look = Literal["exact", "canonical", "text", "embedding"]
#: From here on two questions are too similar, by wording and by meaning.
TEXT_THRESHOLD = 0.8
EMBEDDING_THRESHOLD = 0.77

_WORDS = re.compile(r"\w+")
#: What a time looks like: it says nothing about the question that its copy would keep.
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*")
#: Letters that are compared at a time.
_LETTERS = 3


class Leak(Struct, frozen=True, kw_only=True):
    """A scenario that is too similar to an example. `similarity` is 0 to 1."""

    scenario: str
    example: str
    look: Look
    similarity: float


class _Side(Struct, frozen=True):
    """An evaluation as it is compared: plain values by path, and its sentences as one text."""

    exact: bytes
    canonical: bytes
    form: dict[str, Json]
    text: str


def find(scenarios: Sequence[Scenario], pack: Pack, embedder: Embedder | None = None) -> tuple[Leak, ...]:
    """The scenarios that an example of the pack gives away, each with its most similar example."""
    return among(scenarios, [(example.id, example.evaluation) for example in pack.examples], embedder)


def among(
    scenarios: Sequence[Scenario],
    known: Sequence[tuple[str, Evaluation]],
    embedder: Embedder | None = None,
) -> tuple[Leak, ...]:
    """The scenarios that something with a name gives away: an example, or a case that was trained on."""
    shown = [(name, _side(evaluation)) for name, evaluation in known]
    asked = [(scenario.id, _side(scenario.evaluation())) for scenario in scenarios]
    texts = [side.text for _, side in asked]
    meaning = embedder.similarities(texts, [side.text for _, side in shown]) if embedder else None
    leaks = []
    for row, (name, one) in enumerate(asked):
        found = [
            Leak(scenario=name, example=example, look=look, similarity=similarity)
            for column, (example, other) in enumerate(shown)
            for look, similarity in _looks(one, other, meaning[row][column] if meaning else None)
        ]
        if found:
            leaks.append(max(found, key=lambda leak: leak.similarity))
    return tuple(leaks)


def check(suites: Sequence[Suite], pack: Pack, embedder: Embedder | None, *, allow: bool) -> tuple[Leak, ...]:
    """The leaks of these suites. Raises SuiteError naming those of the first suite, unless allowed."""
    leaks: list[Leak] = []
    for one in suites:
        found = find(one.scenarios, pack, embedder)
        if found and not allow:
            raise SuiteError(
                f"{one.name}: the examples of {pack.info.name} show what is asked: {told(found)}; write "
                "other scenarios or examples, or run with --allow-leak, which the report then says"
            )
        leaks += found
    return tuple(leaks)


def told(found: Sequence[Leak]) -> str:
    """Leaks in words."""
    return "; ".join(
        f"{leak.scenario} is {leak.example} ({leak.look} {leak.similarity:.2f})" for leak in found
    )


def similarities(
    one: Evaluation, other: Evaluation, embedder: Embedder | None = None
) -> tuple[float, float | None]:
    """How similar two questions are by wording and, with an embedder, by meaning; 0 to 1."""
    left, right = _side(one), _side(other)
    meaning = embedder.similarities([left.text], [right.text])[0][0] if embedder else None
    form = _same_form(left.form, right.form)
    by_text = _both(form, left.text, right.text, _same_wording(left.text, right.text))
    return by_text, None if meaning is None else _both(form, left.text, right.text, meaning)


def _looks(one: _Side, other: _Side, meaning: float | None) -> Iterator[tuple[Look, float]]:
    if one.exact == other.exact:
        yield "exact", 1.0
        return
    if one.canonical == other.canonical:
        yield "canonical", 1.0
        return
    form = _same_form(one.form, other.form)
    if _both(form, one.text, other.text, 1.0) < min(TEXT_THRESHOLD, EMBEDDING_THRESHOLD):
        return  # no wording could make up for it
    by_text = _both(form, one.text, other.text, _same_wording(one.text, other.text))
    if by_text >= TEXT_THRESHOLD:
        yield "text", by_text
    elif meaning is not None:
        by_meaning = _both(form, one.text, other.text, meaning)
        if by_meaning >= EMBEDDING_THRESHOLD:
            yield "embedding", by_meaning


def _both(form: float, one: str, other: str, text: float) -> float:
    """Form and text weigh the same; where nobody writes a sentence there is only form."""
    return (form + max(text, 0.0)) / 2 if one or other else form


def _side(evaluation: Evaluation) -> _Side:
    raw = msgspec.to_builtins(evaluation)
    exact = msgspec.json.encode(raw, order="deterministic")
    raw["subject"]["id"] = raw["resource"]["id"] = None
    leaves = {path: value for path, value in _leaves(raw) if value is not None and not _is_time(value)}
    canonical = msgspec.json.encode(leaves, order="deterministic")
    sentences = {path: value for path, value in leaves.items() if isinstance(value, str) and " " in value}
    form = {path: value for path, value in leaves.items() if path not in sentences}
    return _Side(exact, canonical, form, " ".join(sentences[path] for path in sorted(sentences)))


def _leaves(value: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    items: Iterable[tuple[object, Json]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield path, value
        return
    for key, item in items:
        yield from _leaves(item, f"{path}.{key}")


def _is_time(value: Json) -> bool:
    return isinstance(value, str) and _TIME.fullmatch(value) is not None


def _same_form(one: Mapping[str, Json], other: Mapping[str, Json]) -> float:
    """Share of the plain values of both that agree, numbers by how close they are."""
    paths = one.keys() | other.keys()
    return sum(_same_value(one.get(path), other.get(path)) for path in paths) / len(paths) if paths else 1.0


def _same_value(one: Json, other: Json) -> float:
    if not (_is_number(one) and _is_number(other)):
        return float(type(one) is type(other) and one == other)
    apart, size = float(abs(one - other)), float(max(abs(one), abs(other)))
    return max(0.0, 1 - apart / size) if apart else 1.0


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_wording(one: str, other: str) -> float:
    """Overlap of words or of runs of letters, whichever is larger (Dice)."""
    left, right = (_WORDS.findall(text.lower()) for text in (one, other))
    return max(_overlap(left, right), _overlap(_runs(left), _runs(right)))


def _runs(words: Sequence[str]) -> list[str]:
    joined = " ".join(words)
    return [joined[start : start + _LETTERS] for start in range(len(joined))]


def _overlap(one: Sequence[str], other: Sequence[str]) -> float:
    if not one or not other:
        return 0.0
    return 2 * (Counter(one) & Counter(other)).total() / (len(one) + len(other))
