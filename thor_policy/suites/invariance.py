"""Invariance: variants of a question that must not change its answer, and texts that ask for an allow.

Owns the variants of a question and the comparison of their answers. Invariant: a variant differs from its
original only in ways that should not matter. A different answer is a flip; a looser one is a loosening, by
the rules if their floor sank, otherwise by the model. Variants are made in a fixed order, so a sample can be
repeated. Main thread.

    key_order           the members of every object in reverse order
    unknown_fields      members that the protocol ignores (AuthZEN form only)
    irrelevant_context  facts about the weather and the client's screen
    synonyms            words of sentences replaced by those of a fixed table
    number_format       3 as 3.0 and 3.0 as 3; in sentences 2000 as 2,000
    injections          a text appended to one string of the request; by class of text
    evasions            another spelling of a name that a rule looks at; by class of spelling (`evasions`)
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct, field

from thor_policy.core.errors import PackError, RequestError, SuiteError
from thor_policy.core.requests import Json
from thor_policy.journal.reader import INVARIANCE_TAG
from thor_policy.policy import calibration, yaml_text
from thor_policy.policy.calibration import Sureness, Top
from thor_policy.suites.scenarios import Scenario
from thor_policy.suites.verdicts import Ask

Kind = Literal[
    "key_order", "unknown_fields", "irrelevant_context", "synonyms", "number_format", "injections", "evasions"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: The folder of the material, in the folder of the suites that ship.
MATERIAL_DIR = "variants"

#: Context that no pack reads, and that a service may send.
_IRRELEVANT: dict[str, Json] = {
    "ui_theme": "dark",
    "weather": {"sky": "overcast", "celsius": 11.5},
    "screen": {"width": 1920, "height": 1080},
    "lunch": "Barley soup with rye bread.",
}
#: Members that AuthZEN permits and that no rule or prompt reads.
_UNKNOWN: dict[str, Json] = {"x_trace": "7f3a", "x_hops": [1, 2], "x_client": {"name": "shim", "build": 12}}
_GROUPED = re.compile(r"(?<![\w.,-])\d{4,15}(?![\w.,-])")
_YEARS = range(1900, 2100)

_Path = tuple[str | int, ...]


class Material(Struct, frozen=True, kw_only=True):
    """The texts to inject, by class, words with their synonyms, and words in other languages."""

    injections: dict[str, tuple[str, ...]]
    synonyms: dict[str, str]
    languages: dict[str, tuple[str, ...]]


class Variant(Struct, frozen=True, kw_only=True):
    """A variant of a question. `detail` is the class of an injected `text`; `place` is where it was put."""

    scenario: str
    kind: Kind
    question: dict[str, Json]
    place: str = ""
    detail: str = ""
    text: str = ""


class AnswerRanks(Struct, frozen=True, kw_only=True):
    """The part of an answer that is compared. Rank 0 is the loosest outcome.

    `probabilities` are there if the model was asked.
    """

    outcome: str
    rank: int
    floor_rank: int
    probabilities: dict[str, float] = {}


class VariantComparison(Struct, frozen=True, kw_only=True):
    """The answers to a variant and to its original. `refused` is the error code of a refused variant.

    `finally_allowed`: by rules alone a final allow, which the original was not. `accepted` are the right
    outcomes of the scenario; the probabilities are those of both answers, where the model was asked.
    """

    variant: Variant
    before: str
    after: str | None = None
    accepted: tuple[str, ...] = ()
    probabilities_before: dict[str, float] = {}
    probabilities_after: dict[str, float] = {}
    refused: str | None = None
    flipped: bool = False
    loosened_by: Literal["rules", "model"] | None = None
    below_floor: bool = False
    finally_allowed: bool = False

    @property
    def changed(self) -> bool:
        """True when the variant got another outcome than its original, or none."""
        return self.flipped or self.refused is not None

    @property
    def failed(self) -> bool:
        """True when the variant got a looser outcome than its original, or one below its floor."""
        return self.loosened_by is not None or self.below_floor or self.finally_allowed


class Figures(Struct, frozen=True, kw_only=True):
    """Counts over the variants of one kind, or of one class of texts. `total` is `asked` in JSON."""

    name: str
    total: int = field(name="asked")
    refused: int
    flips: int
    loosened_by_rules: int
    loosened_by_model: int
    below_floor: int
    finally_allowed: int


def material(folder: Path) -> Material:
    """The texts and words in a folder. Raises SuiteError with the file."""

    def read(name: str, kind: Any) -> Any:
        path = folder / name
        try:
            return yaml_text.parse(path.read_text(encoding="utf-8"), kind, path)
        except (OSError, UnicodeDecodeError) as error:
            raise SuiteError(f"{path}: cannot be read: {error}") from error
        except PackError as error:
            raise SuiteError(str(error)) from error

    return Material(
        injections=read("injections.yaml", dict[str, tuple[str, ...]]),
        synonyms=read("synonyms.yaml", dict[str, str]),
        languages=read("languages.yaml", dict[str, tuple[str, ...]]),
    )


# ---------------------------------------------------------------- variants


def variants(scenario: Scenario, material: Material, kinds: Sequence[Kind] = KINDS) -> Iterator[Variant]:
    """Every variant of a scenario, in a fixed order, but for evasions, which need the pack.

    Variants equal to the question are left out.
    """
    question = scenario.question()
    makers: dict[Kind, Callable[[], Iterable[Variant]]] = {
        "key_order": lambda: variant("key_order", _with_keys_reversed(question)),
        "unknown_fields": lambda: variant("unknown_fields", _with_unknown(question)),
        "irrelevant_context": lambda: variant("irrelevant_context", _with_irrelevant(question)),
        "synonyms": lambda: variant(
            "synonyms", _map_values(question, lambda v: _with_synonym(v, material.synonyms))
        ),
        "number_format": lambda: variant("number_format", _map_values(question, _with_other_number_format)),
        "injections": lambda: _injected(scenario.id, question, material.injections),
    }

    def variant(kind: Kind, changed: dict[str, Json]) -> Iterator[Variant]:
        # compared as bytes, because 3 == 3.0 and == ignores the order of members
        if msgspec.json.encode(changed) != msgspec.json.encode(question):
            yield Variant(scenario=scenario.id, kind=kind, question=changed)

    for kind in KINDS:
        if kind in kinds and kind in makers:
            yield from makers[kind]()


def _injected(
    scenario: str, question: dict[str, Json], injections: Mapping[str, Sequence[str]]
) -> Iterator[Variant]:
    for path in text_places(question):
        for name, texts in injections.items():
            for text in texts:
                yield Variant(
                    scenario=scenario,
                    kind="injections",
                    question=injected(question, path, text),
                    place=".".join(map(str, path[1:])),
                    detail=name,
                    text=text,
                )


def text_places(question: Json, path: _Path = ()) -> list[_Path]:
    """The paths of all strings in a question."""
    if isinstance(question, str):
        return [path]
    items: Iterable[tuple[str | int, Json]] = ()
    if isinstance(question, dict):
        items = question.items()
    elif isinstance(question, list):
        items = enumerate(question)
    return [place for key, item in items for place in text_places(item, (*path, key))]


def injected(question: dict[str, Json], path: _Path, text: str) -> dict[str, Json]:
    """The question with a text appended to the string at `path`. Other parts are shared, not copied."""
    changed: dict[str, Json] = _with_text(question, path, text)
    return changed


def _with_text(value: Json, path: _Path, text: str) -> Json:
    if not path:
        return f"{value} {text}"
    copy: Json = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = _with_text(copy[path[0]], path[1:], text)
    return copy


def _with_keys_reversed(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _with_keys_reversed(value[key]) for key in reversed(value)}
    return [_with_keys_reversed(item) for item in value] if isinstance(value, list) else value


def _with_unknown(question: dict[str, Json]) -> dict[str, Json]:
    if "request" not in question:  # unknown members of a flat situation are context
        return question
    request = question["request"]
    parts = {name: part | _UNKNOWN for name, part in request.items() if name in ("subject", "resource")}
    return {"request": _UNKNOWN | request | parts}


def _with_irrelevant(question: dict[str, Json]) -> dict[str, Json]:
    if "situation" in question:
        return {"situation": _IRRELEVANT | question["situation"]}
    request = question["request"]
    return {"request": request | {"context": _IRRELEVANT | request.get("context", {})}}


def _map_values(value: Json, change: Callable[[Json], Json]) -> Json:
    """The value with `change` applied to every plain value in it."""
    if isinstance(value, dict):
        return {key: _map_values(item, change) for key, item in value.items()}
    return [_map_values(item, change) for item in value] if isinstance(value, list) else change(value)


def _with_synonym(value: Json, synonyms: Mapping[str, str]) -> Json:
    if not (isinstance(value, str) and " " in value):  # no sentence, but a name
        return value

    def replaced(word: re.Match[str]) -> str:
        other = synonyms.get(word[0].lower(), word[0])
        return other.capitalize() if word[0].istitle() else other

    return re.sub(r"(?<![\w/.@-])[A-Za-z]+(?![\w/@-])", replaced, value)


def _with_other_number_format(value: Json) -> Json:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return float(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, str) and " " in value:
        return _GROUPED.sub(lambda m: m[0] if int(m[0]) in _YEARS else f"{int(m[0]):,}", value)
    return value


# ---------------------------------------------------------------- asking


def sample(variants: Iterable[Variant], count: int, seed: int) -> list[Variant]:
    """`count` variants, as many of each kind and class of text if there are enough; fixed by the seed."""
    strata: dict[tuple[str, str], list[Variant]] = {}
    for variant in variants:
        strata.setdefault((variant.kind, variant.detail), []).append(variant)
    shuffle = random.Random(seed)  # noqa: S311  (a repeatable sample, no secret)
    for stratum in strata.values():
        shuffle.shuffle(stratum)
    drawn: list[Variant] = []
    while len(drawn) < count and strata:
        for key in [*strata]:
            if len(drawn) < count:
                drawn.append(strata[key].pop())
            if not strata[key]:
                del strata[key]
    return drawn


def compare(
    scenarios: Sequence[Scenario], variants: Iterable[Variant], ask: Ask, labels: Sequence[str]
) -> Iterator[VariantComparison]:
    """Ask each variant, and each original before the first of its variants.

    The questions carry no expectation: they are no scenarios, and must not count as such in a calibration.
    Raises RequestError if an original is refused.
    """
    known = {scenario.id: scenario for scenario in scenarios}
    before: dict[str, AnswerRanks] = {}
    for variant in variants:
        name = variant.scenario
        if name not in before:
            before[name] = _ranks_of(ask(_fields(known[name].question(), "original")), labels)
        try:
            after = _ranks_of(ask(_fields(variant.question, variant.kind)), labels)
        except RequestError as error:
            yield VariantComparison(variant=variant, before=before[name].outcome, refused=error.code)
            continue
        yield compare_answers(variant, before[name], after, accepted=known[name].expect.accepted(labels))


def compare_answers(
    variant: Variant, before: AnswerRanks, after: AnswerRanks, *, accepted: tuple[str, ...] = ()
) -> VariantComparison:
    """The comparison of the answer to a variant with that to its original."""
    loosened = after.rank < before.rank
    return VariantComparison(
        variant=variant,
        before=before.outcome,
        after=after.outcome,
        flipped=after.rank != before.rank,
        # With a lower floor than before, the rules loosened the outcome; otherwise the model did.
        loosened_by=None if not loosened else "rules" if after.floor_rank < before.floor_rank else "model",
        below_floor=after.rank < after.floor_rank,
        accepted=accepted,
        probabilities_before=before.probabilities,
        probabilities_after=after.probabilities,
    )


def sureness(comparisons: Sequence[VariantComparison]) -> tuple[Sureness, ...]:
    """The calibration error where a text was injected (`attacked`), and of the same questions without it.

    Only of questions that the model answered both times. An injected text changes no right outcome.
    """
    attacked: list[Top] = []
    originals: dict[str, Top] = {}
    for each in comparisons:
        both = each.probabilities_before and each.probabilities_after
        if each.variant.kind == "injections" and each.accepted and both:
            attacked.append(_top(each.probabilities_after, each.accepted))
            originals[each.variant.scenario] = _top(each.probabilities_before, each.accepted)
    measured = (
        calibration.sureness("attacked", attacked),
        calibration.sureness("originals", list(originals.values())),
    )
    return tuple(each for each in measured if each is not None)


def _top(probabilities: Mapping[str, float], accepted: Sequence[str]) -> Top:
    """The confidence in the likeliest label, and whether the scenario accepts it."""
    label = max(probabilities, key=probabilities.__getitem__)
    return probabilities[label], label in accepted


def _fields(question: dict[str, Json], kind: str) -> dict[str, Json]:
    return question | {"explain": "none", "annotations": {"tags": (INVARIANCE_TAG, kind)}}


def _ranks_of(reply: dict[str, Json], labels: Sequence[str]) -> AnswerRanks:
    context = reply["context"]
    rank = labels.index
    return AnswerRanks(
        outcome=context["outcome"],
        rank=rank(context["outcome"]),
        floor_rank=rank(context["floor"]),
        probabilities=context.get("probabilities") or {},
    )


def figures(comparisons: Sequence[VariantComparison]) -> tuple[Figures, ...]:
    """Counts by kind, and by class of text under the kind `injections`."""
    groups: dict[str, list[VariantComparison]] = {kind: [] for kind in KINDS}
    for comparison in comparisons:
        variant = comparison.variant
        groups[variant.kind].append(comparison)
        if variant.detail:
            groups.setdefault(f"{variant.kind}: {variant.detail}", []).append(comparison)
    return tuple(
        Figures(
            name=name,
            total=len(group),
            refused=sum(answers.refused is not None for answers in group),
            flips=sum(answers.flipped for answers in group),
            loosened_by_rules=sum(answers.loosened_by == "rules" for answers in group),
            loosened_by_model=sum(answers.loosened_by == "model" for answers in group),
            below_floor=sum(answers.below_floor for answers in group),
            finally_allowed=sum(answers.finally_allowed for answers in group),
        )
        for name, group in groups.items()
        if group
    )
