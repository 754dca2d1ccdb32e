"""Training samples: prompts as the daemon renders and tokenises them, each with its answer.

Owns the form of a sample. Invariant: `prompt` holds the token ids that the daemon would decode for the same
question under an adapter of the brief rendering, up to the label. Pure, given a vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from thor_policy.core.requests import Evaluation
from thor_policy.engine.native import Vocabulary
from thor_policy.policy.pack import Pack

#: Time of receipt of a case that has none, in Unix seconds: 2026-01-01 15:00 UTC, a Thursday.
AT = 1_767_279_600.0


class Case(Struct, frozen=True, kw_only=True):
    """A situation whose right outcome is known; `source` names its origin, `group` its kind."""

    pack: str
    evaluation: dict[str, Any]
    outcome: str
    clauses: tuple[str, ...] = ()
    reasoning: str = ""
    source: str = ""
    group: str = ""
    at: float = AT


class Sample(Struct, frozen=True, kw_only=True):
    """Token ids of one case.

    `prompt` ends where the label begins. `label` holds the tokens of the right label, `rest` the rest of the
    answer. `graded` says for each token of `rest` whether it is learned.
    """

    prompt: tuple[int, ...]
    label: tuple[int, ...]
    rest: tuple[int, ...]
    graded: tuple[bool, ...]
    case: Case

    def __len__(self) -> int:
        return len(self.prompt) + len(self.label) + len(self.rest)


class Unfit(ValueError):
    """A case that cannot be learned: its outcome is looser than the rules allow."""


class Renderer:
    """Makes samples of cases with one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, packs: Mapping[str, Pack]) -> None:
        self._vocabulary, self._packs = vocabulary, dict(packs)
        self._prefixes = {name: vocabulary.prompt(pack.brief_prefix) for name, pack in self._packs.items()}

    def prompt(self, case: Case, *, floor_shown: bool = True, facts_shown: bool = True) -> tuple[int, ...]:
        """The tokens of the question. Raises Unfit if rules demand more than the case's outcome.

        Without `floor_shown` the line of the floor is left out, without `facts_shown` the facts: to measure
        what each contributes.
        """
        pack = self._packs[case.pack]
        before, tail = self._prefixes[case.pack]
        evaluation = msgspec.convert(case.evaluation, Evaluation)
        floor = pack.book.apply(evaluation, case.at)
        if pack.book.stricter(floor.outcome, case.outcome) != case.outcome:
            raise Unfit(f"{case.outcome}, but {', '.join(floor.rules)} demand {floor.outcome}")
        if not facts_shown:
            floor = msgspec.structs.replace(floor, facts={})
        text = (
            pack.brief_question(evaluation, floor) if floor_shown else pack.question(evaluation, floor.facts)
        )
        text = text.removeprefix(pack.brief_prefix.question_head)
        return (*before, *self._vocabulary.tokenise(text), *tail)

    def sample(self, case: Case) -> Sample:
        """The tokens of question and answer. Raises Unfit."""
        pack, tokenise = self._packs[case.pack], self._vocabulary.tokenise
        prompt = self.prompt(case)
        floor = pack.book.apply(msgspec.convert(case.evaluation, Evaluation), case.at)
        kind = floor.classification if floor.outcome == case.outcome else None
        parts = [("\nclass:", False), (f" {kind or pack.manifest.classifications[0]}", kind is not None)]
        if case.clauses:
            parts += [("\nclauses:", True), (f" {', '.join(case.clauses)}", True)]
            if case.reasoning:
                parts += [("\nbecause:", True), (f" {case.reasoning}", True)]
        rest: list[int] = []
        graded: list[bool] = []
        for text, counts in parts:
            tokens = tokenise(text)
            rest += tokens
            graded += [counts] * len(tokens)
        return Sample(
            prompt=prompt,
            label=tuple(tokenise(f" {case.outcome}")),
            rest=tuple(rest),
            graded=tuple(graded),
            case=case,
        )

    def samples(self, cases: Iterable[Case], left_out: list[str] | None = None) -> Iterator[Sample]:
        """The samples of all cases that can be learned; the reasons for the others go to `left_out`."""
        for case in cases:
            try:
                yield self.sample(case)
            except Unfit as reason:
                if left_out is not None:
                    left_out.append(f"{case.source}: {reason}")

    def labels(self, pack: str) -> dict[str, tuple[int, ...]]:
        """The tokens of each label of a pack, loosest first."""
        return {label: tuple(self._vocabulary.tokenise(f" {label}")) for label in self._packs[pack].labels}
