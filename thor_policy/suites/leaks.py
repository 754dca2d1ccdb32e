"""Leaks: scenarios that a pack shows the model as examples.

Owns the comparison of scenarios with the examples of a pack. Invariant: a scenario that repeats an example is
reported by its id before the run, because a suite whose answers the model was shown measures nothing. Pure;
main thread.

There are four checks, in this order; the first match is reported:
    exact      the same evaluation
    canonical  the same except for the names of subject and resource, and for times
    text       similar in form and wording, by words and by letters
    embedding  similar in form and meaning; only with an embedder

The last two compare form and text separately and take the mean. Form is the share of plain values that
agree; numbers agree by how close they are. Text is the strings that contain spaces. The thresholds were
chosen on labelled pairs (tests/data/leak-pairs.yaml), not on shipped suites; docs/scenarios.md says how.
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
#: Similarity from which two questions are too similar, by wording and by meaning.
TEXT_THRESHOLD = 0.8
EMBEDDING_THRESHOLD = 0.77

_WORDS = re.compile(r"\w+")
#: A time. Times are not compared: a copy of a question usually has another one.
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*")
#: Length of the runs of letters that are compared.
_LETTERS = 3


class Leak(Struct, frozen=True, kw_only=True):
    """A scenario that is too similar to an example. `similarity` is 0 to 1."""

    scenario: str
    example: str
    look: Look
    similarity: float


class _Side(Struct, frozen=True):
    """An evaluation prepared for comparison: plain values by path, and all sentences as one text."""

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
    """The scenarios that any of the `known` evaluations gives away: examples, or training cases, by name."""
    shown = [(name, _side(evaluation)) for name, evaluation in known]
    questions = [(scenario.id, _side(scenario.evaluation())) for scenario in scenarios]
    texts = [side.text for _, side in questions]
    meaning = embedder.similarities(texts, [side.text for _, side in shown]) if embedder else None
    leaks = []
    for row, (name, question) in enumerate(questions):
        matches = [
            Leak(scenario=name, example=example, look=look, similarity=similarity)
            for column, (example, other) in enumerate(shown)
            for look, similarity in _looks(question, other, meaning[row][column] if meaning else None)
        ]
        if matches:
            leaks.append(max(matches, key=lambda leak: leak.similarity))
    return tuple(leaks)


def check(suites: Sequence[Suite], pack: Pack, embedder: Embedder | None, *, allow: bool) -> tuple[Leak, ...]:
    """The leaks of these suites. Unless `allow`, raises SuiteError with those of the first such suite."""
    leaks: list[Leak] = []
    for suite in suites:
        of_suite = find(suite.scenarios, pack, embedder)
        if of_suite and not allow:
            raise SuiteError(
                f"{suite.name}: examples of the pack {pack.info.name} give scenarios away: "
                f"{in_words(of_suite)}; write other scenarios or examples, or run with --allow-leak, which "
                "the report then says"
            )
        leaks += of_suite
    return tuple(leaks)


def in_words(leaks: Sequence[Leak]) -> str:
    """One line: each scenario, its example, the check that matched, and the similarity."""
    return "; ".join(
        f"{leak.scenario} is {leak.example} ({leak.look} {leak.similarity:.2f})" for leak in leaks
    )


def similarities(
    question: Evaluation, other: Evaluation, embedder: Embedder | None = None
) -> tuple[float, float | None]:
    """The similarity of two questions by wording and, with an embedder, by meaning; each 0 to 1."""
    left, right = _side(question), _side(other)
    meaning = embedder.similarities([left.text], [right.text])[0][0] if embedder else None
    form = _same_form(left.form, right.form)
    by_text = _both(form, left.text, right.text, _same_wording(left.text, right.text))
    return by_text, None if meaning is None else _both(form, left.text, right.text, meaning)


def _looks(left: _Side, right: _Side, meaning: float | None) -> Iterator[tuple[Look, float]]:
    """The first check that matches, with the similarity; nothing if none does."""
    if left.exact == right.exact:
        yield "exact", 1.0
        return
    if left.canonical == right.canonical:
        yield "canonical", 1.0
        return
    form = _same_form(left.form, right.form)
    if _both(form, left.text, right.text, 1.0) < min(TEXT_THRESHOLD, EMBEDDING_THRESHOLD):
        return  # below both thresholds even if the texts were equal
    by_text = _both(form, left.text, right.text, _same_wording(left.text, right.text))
    if by_text >= TEXT_THRESHOLD:
        yield "text", by_text
    elif meaning is not None:
        by_meaning = _both(form, left.text, right.text, meaning)
        if by_meaning >= EMBEDDING_THRESHOLD:
            yield "embedding", by_meaning


def _both(form: float, left: str, right: str, text: float) -> float:
    """The mean of the similarities of form and text; that of form alone if neither side has a sentence."""
    return (form + max(text, 0.0)) / 2 if left or right else form


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


def _same_form(left: Mapping[str, Json], right: Mapping[str, Json]) -> float:
    """The share of the plain values of both sides that agree; numbers agree by how close they are."""
    paths = left.keys() | right.keys()
    return sum(_same_value(left.get(path), right.get(path)) for path in paths) / len(paths) if paths else 1.0


def _same_value(left: Json, right: Json) -> float:
    if not (_is_number(left) and _is_number(right)):
        return float(type(left) is type(right) and left == right)
    difference, size = float(abs(left - right)), float(max(abs(left), abs(right)))
    return max(0.0, 1 - difference / size) if difference else 1.0


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_wording(left: str, right: str) -> float:
    """Overlap (Dice) of words or of runs of letters, whichever is larger."""
    left_words, right_words = (_WORDS.findall(text.lower()) for text in (left, right))
    return max(_overlap(left_words, right_words), _overlap(_runs(left_words), _runs(right_words)))


def _runs(words: Sequence[str]) -> list[str]:
    joined = " ".join(words)
    return [joined[start : start + _LETTERS] for start in range(len(joined))]


def _overlap(left: Sequence[str], right: Sequence[str]) -> float:
    if not left or not right:
        return 0.0
    return 2 * (Counter(left) & Counter(right)).total() / (len(left) + len(right))
