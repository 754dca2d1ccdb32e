"""The section `precedents` of pack.yaml: which past decisions a question is shown beside.

Owns the type of the section, and what rules see of precedents. Invariant: without the section nothing is
looked up; with it the rules see precedents only if it says so. Pure; any thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from thor_policy.core.decisions import PackInfo
from thor_policy.core.precedents import Precedent
from thor_policy.core.recall import Filters
from thor_policy.core.requests import Evaluation

#: What a precedent must have in common with the question.
Common: TypeAlias = Literal["pack", "actor", "entity"]


class PrecedentsSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How precedents are looked up before a question is decided.

    At most `k` are taken, of at least this similarity, within `budget_ms` milliseconds; else the question is
    decided without. `same` is what they must have in common with the question. `rules`: expressions may read
    `precedents.count` and call `precedents.share(OUTCOME)`. `prompt`: the model is shown a line for each.
    """

    k: Annotated[int, Meta(ge=1, le=10)] = 3
    budget_ms: Annotated[int, Meta(ge=1, le=1_000)] = 50
    least_similarity: Annotated[float, Meta(ge=0, le=1)] = 0.6
    same: tuple[Common, ...] = ("pack",)
    type: str | None = None
    rules: bool = False
    prompt: bool = True

    def filters(self, pack: PackInfo, evaluation: Evaluation) -> Filters:
        """The filters of the look-up for a question."""
        subject, resource = evaluation.subject, evaluation.resource
        return Filters(
            pack=pack.name if "pack" in self.same else None,
            type=self.type,
            actor=f"{subject.type}:{subject.id}"[:256] if "actor" in self.same else None,
            entity=f"{resource.type}:{resource.id}"[:256] if "entity" in self.same else None,
        )


def shares_of(precedents: Sequence[Precedent]) -> dict[str, float]:
    """The share of the precedents that had each outcome, 0 to 1; an outcome that none had is not there."""
    counts = Counter(precedent.outcome for precedent in precedents)
    return {outcome: count / len(precedents) for outcome, count in counts.items()}
