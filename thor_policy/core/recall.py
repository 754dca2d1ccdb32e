"""Recall: the seam of the embedder, what a search for precedents asks for, and what it answers.

Owns these values. Invariant: all are frozen, and nothing here does input or output. Used by every thread.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from msgspec import Meta, Struct

from thor_policy.core.requests import Evaluation, Json

#: Numbers in a vector.
DIMENSIONS = 384
#: Most precedents of one answer, and most characters of a text that is searched for.
MOST_PRECEDENTS, MOST_TEXT_CHARS = 50, 4_096

_Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Embedder(Protocol):
    """Turns a text into a vector (`engine.embedder`). Any thread, several at a time.

    Equal texts give equal bits, whatever else is embedded. Stub: `thor_policy.testing.WordEmbedder`.
    """

    @property
    def name(self) -> str:
        """What vectors are compared by: those of another name are of another space."""

    def embed(self, text: str) -> Any:
        """`DIMENSIONS` 32-bit floats at unit length, as an array."""


class Filters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which decisions a search considers: all that are given must hold.

    `pack` is a name, `name@version`, or `name@version+digits` as tables show it. `actor` without a type is a
    user. `since` and `until` are RFC 3339 times of recording.
    """

    pack: _Name | None = None
    type: _Name | None = None
    actor: _Name | None = None
    entity: _Name | None = None
    since: _Name | None = None
    until: _Name | None = None


class SimilarQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What past decisions are to be similar to: a decision by its `id`, a question, or a text; one of them.

    `k` is how many are wanted. Those below `least_similarity`, 0 to 1, are left out where vectors are
    compared.
    """

    id: _Name | None = None
    question: Evaluation | None = None
    text: Annotated[str, Meta(min_length=1, max_length=MOST_TEXT_CHARS)] | None = None
    k: Annotated[int, Meta(ge=1, le=MOST_PRECEDENTS)] = 5
    least_similarity: Annotated[float, Meta(ge=0, le=1)] = 0.0
    filters: Filters = Filters()


class Weights(Struct, frozen=True, kw_only=True):
    """How much each component of a precedent counts in its score; each component is 0 to 1."""

    similarity: float = 1.0
    words: float = 0.3
    favourable: float = 0.15
    reviewed: float = 0.15
    judgment_call: float = 0.1
    cited: float = 0.05
    recent: float = 0.05


class Ranked(Struct, frozen=True, kw_only=True):
    """A precedent and why it has its place.

    `outcome` is what a reviewer made of it, else what was served. `how` says what led to it: `similarity`,
    `words`, both with a `+`, or `fields`. `components` are 0 to 1, `score` is their weighted sum.
    `similarity` is the cosine of both vectors; None: one of them is missing. `confirmed` is what reviewers
    said; None: none did. `result` and `value` are how it turned out. `cited_by` counts to 100.
    """

    id: str
    at: str
    type: str
    actor: str | None
    action: str | None
    entity: str | None
    pack: str | None
    outcome: str
    score: float
    similarity: float | None
    components: dict[str, float]
    how: str
    confirmed: bool | None
    judgment_call: bool
    result: str | None
    value: float | None
    cited_by: int
    text: str


class Similar(Struct, frozen=True, kw_only=True):
    """The answer: the precedents, best first, and what they have in common.

    `by` is what was compared: `similarity`, `words`, `fields`. `note` says why something of it was not.
    `vectors` is how many decisions the index holds.
    """

    precedents: tuple[Ranked, ...]
    statistics: dict[str, Json]
    by: tuple[str, ...]
    note: str | None
    weights: dict[str, float]
    vectors: int
    took_ms: float
