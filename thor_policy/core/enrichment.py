"""An enrichment: what a model writes about a decision on idle time, for people who look at it later.

Owns the values. Invariant: all values are frozen; an enrichment changes nothing of its decision. Used by
every thread.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from msgspec import Struct

from thor_policy.core.decisions import ModelInfo

#: Which decisions the daemon enriches: none, those with a trigger or whose caller wants it, or all.
Mode: TypeAlias = Literal["never", "hybrid", "always"]
#: Why a decision is enriched: its type, an approval that lifted it, the model's doubt, or a model that
#: answers other than the rules that matched; `asked`: its caller wants it; `always`: every decision is.
Trigger: TypeAlias = Literal[
    "exception", "approval", "synthesis", "low_confidence", "disagreement", "asked", "always"
]
#: The triggers that a setting names.
TRIGGERS: tuple[Trigger, ...] = get_args(Trigger)[:5]


class Enrichment(Struct, frozen=True, kw_only=True):
    """What a model wrote about a decision.

    `alternative` is the outcome that it names as the next best, `alternatives` why not that one. A text that
    did not hold is empty, and `quality` says so. `device_ms` is the time of the device, `took_ms` the time
    from its beginning, decisions in between included.
    """

    why: tuple[Trigger, ...]
    risk: str
    alternative: str | None
    alternatives: str
    rationale: str
    quality: str
    model: ModelInfo
    generated_tokens: int
    device_ms: float
    took_ms: float
