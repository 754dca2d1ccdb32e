"""A precedent as an input of a decision.

Owns the value that rules, prompt, journal and replay read. Invariant: it is frozen, and has the very text
that the model was shown. Used by every thread.
"""

from __future__ import annotations

from msgspec import Struct


class Precedent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A past decision beside a question: its `outcome`, the cosine of both situations, and its line.

    `how` says what led to it: `similarity`, `words`, both, or `fields`. `line` is the text in the prompt.
    """

    id: str
    outcome: str
    how: str
    line: str
    similarity: float | None = None
