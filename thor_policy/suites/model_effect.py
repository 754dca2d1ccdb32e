"""What the model adds to the rules of a pack, and what it costs.

Owns the comparison of served outcomes with those of the rules alone. Invariant: the model can only tighten,
so it never adds a too loose outcome; each change is counted one time, as right, as wrong, or as neither.
Every share has a 95 % Wilson interval. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from thor_policy.suites.intervals import Paired, Rate, paired, rate


class Case(Struct, frozen=True, kw_only=True):
    """An answer with its floor. `scored`: by the model. `doubt`: its stricter label did not count."""

    floor: str
    outcome: str
    accepted: Sequence[str]
    scored: bool
    doubt: bool = False


class Outcomes(Struct, frozen=True, kw_only=True):
    """How many outcomes are right, stricter than every accepted one needs, or looser than all of them."""

    right: Rate
    strict: int
    loose: int


class Effect(Struct, frozen=True, kw_only=True):
    """Outcomes of the `rules` alone and `served` ones, of the same questions.

    `changed` outcomes are stricter than the floor. `rightly`: the floor was wrong and the outcome is right;
    `wrongly`: the reverse. Of the others both are wrong. `difference` is that of the shares of right ones.
    """

    name: str
    questions: int
    scored: int
    rules: Outcomes
    served: Outcomes
    changed: int
    rightly: Rate
    wrongly: Rate
    doubts: int
    difference: Paired

    @property
    def costs(self) -> bool:
        """True if the model changed outcomes, and more of them wrongly than rightly."""
        return self.wrongly.hits > self.rightly.hits


def effect_of(name: str, labels: Sequence[str], cases: Iterable[Case]) -> Effect:
    """The effect of the model on these answers. `labels` has the loosest first."""
    cases = list(cases)
    changed = [case for case in cases if case.outcome != case.floor]
    gained = sum(case.outcome in case.accepted and case.floor not in case.accepted for case in changed)
    lost = sum(case.floor in case.accepted and case.outcome not in case.accepted for case in changed)
    return Effect(
        name=name,
        questions=len(cases),
        scored=sum(case.scored for case in cases),
        rules=_outcomes(labels, [(case.floor, case.accepted) for case in cases]),
        served=_outcomes(labels, [(case.outcome, case.accepted) for case in cases]),
        changed=len(changed),
        rightly=rate(gained, len(changed)),
        wrongly=rate(lost, len(changed)),
        doubts=sum(case.doubt for case in cases),
        difference=paired(gained, lost, len(cases)),
    )


def _outcomes(labels: Sequence[str], pairs: Sequence[tuple[str, Sequence[str]]]) -> Outcomes:
    rank = {label: number for number, label in enumerate(labels)}
    loose = sum(
        rank.get(outcome, 0) < min(rank.get(label, 0) for label in accepted) for outcome, accepted in pairs
    )
    right = sum(outcome in accepted for outcome, accepted in pairs)
    return Outcomes(right=rate(right, len(pairs)), strict=len(pairs) - right - loose, loose=loose)
