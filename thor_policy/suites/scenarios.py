"""The types of a suite: a scenario, its expected answer, and the suite that holds it.

Owns only these frozen types. Invariant: a `Scenario` is complete. Defaults, fixtures and matrices of its file
are applied already, so no file is needed to ask it. Any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, get_args

from msgspec import UNSET, Meta, Struct, UnsetType

from thor_policy.core.decisions import Floor
from thor_policy.core.requests import Evaluation, Json, Risk
from thor_policy.policy.pack import Pack
from thor_policy.protocol.requests import evaluation_from

Difficulty = Literal["easy", "medium", "hard", "edge_case", "attack"]
#: Difficulties in the order in which reports show them.
DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)
#: The difficulty of scenarios in which the text of a question attacks.
ATTACK: Difficulty = "attack"

#: A share, 0 to 1.
Share = Annotated[float, Meta(ge=0, le=1)]
Milliseconds = Annotated[float, Meta(gt=0)]
#: A reason in words; never empty.
Reason = Annotated[str, Meta(min_length=1)]


class Expectation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What counts as right: exactly one of `outcome`, `one_of`, `never`; the rest is optional.

    `reasoning` lists the elements of a good reason. They are measured only where an embedder is installed,
    and fail a scenario only if its suite says how many are needed. `max_latency_ms` is the limit of the time
    from receipt to reply that the daemon reports.
    """

    outcome: str | None = None
    one_of: tuple[str, ...] = ()
    never: str | None = None
    risk: Risk | None = None
    clauses: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()
    max_latency_ms: Milliseconds | None = None

    @property
    def is_definite(self) -> bool:
        """True when exactly one of `outcome`, `one_of` and `never` is given."""
        return sum((self.outcome is not None, bool(self.one_of), self.never is not None)) == 1

    def accepted(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Every outcome that counts as right; `labels` are all outcomes of the pack."""
        if self.outcome is not None:
            return (self.outcome,)
        return self.one_of or tuple(label for label in labels if label != self.never)


class Scenario(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question and its expected answer.

    A run without --full asks the `quick` scenarios only. A scenario with `skip`, a reason, is not asked.
    `sources` has what the sources of the pack say in it: attributes by source.
    """

    id: str
    title: str
    difficulty: Difficulty
    expect: Expectation
    request: dict[str, Json] | UnsetType = UNSET
    situation: dict[str, Json] | UnsetType = UNSET
    tags: tuple[str, ...] = ()
    quick: bool = False
    skip: Reason | None = None
    sources: dict[str, dict[str, Json]] = {}

    def question(self) -> dict[str, Json]:
        """The request fields that ask this question."""
        if isinstance(self.request, dict):
            return {"request": self.request}
        return {"situation": self.situation}

    def evaluation(self) -> Evaluation:
        """The question as rules and model see it. Raises RequestError if the question is malformed."""
        return evaluation_from(self.question())


def floor_of(pack: Pack, scenario: Scenario, at: float) -> Floor:
    """What the rules of a pack make of a scenario, received at the Unix time `at`. Raises RequestError."""
    return pack.book.apply(scenario.evaluation(), at, sources=pack.stated(scenario.sources))


class Reasoning(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a suite measures reasons. An element is covered from `similarity` on (cosine of embeddings).

    `needed` is the share of the elements that a reason must cover for its scenario to pass. Without it,
    coverage is reported and fails no scenario.
    """

    similarity: Share = 0.57
    needed: Share | None = None


class Suite(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The scenarios of a file, for one pack; `pack_dir` is its directory if the file names it by path."""

    name: str
    pack: str
    scenarios: tuple[Scenario, ...]
    description: str = ""
    pack_dir: str = ""
    reasoning: Reasoning = Reasoning()


class Embedder(Protocol):
    """Measures how similar texts are in meaning."""

    @property
    def name(self) -> str: ...

    def similarities(self, texts: Sequence[str], others: Sequence[str]) -> list[list[float]]:
        """Cosine of each text (row) with each of the others (column), -1 to 1."""
