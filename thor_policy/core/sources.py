"""What sources of attributes said: each value that a decision consulted, and how fresh it was.

Owns the record of a consultation by the daemon itself. Invariant: all values are frozen, and nothing here
does input or output. Made by `daemon.consulting`; read by rules, the journal and replays, on every thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

#: The part of a question that a source describes.
Described: TypeAlias = Literal["subject", "resource"]


class Consulted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One value of a source, or why there is none.

    `element` is the attribute; None: the entry is about the whole look-up, which failed (`error`) or found
    nothing. `took_ms` is the time of the look-up, `fresh_at` the RFC 3339 time at which the value was true,
    and `quality` (0 to 1) what the source says of it. `cached`: an earlier look-up gave it. `digest` stands
    for a value that is masked.
    """

    source: str
    of: Described
    system: str
    element: str | None = None
    value: Any = None
    digest: str | None = None
    took_ms: float = 0.0
    fresh_at: str | None = None
    quality: float | None = None
    cached: bool = False
    error: str | None = None


class Push(Struct, frozen=True, kw_only=True):
    """Values of one entity that a program pushes for the source `source`; they count for `ttl_s` seconds.

    `fresh_at` is the RFC 3339 time at which they were true; without it, the time at which they came.
    """

    source: Annotated[str, Meta(min_length=1, max_length=64)]
    type: Annotated[str, Meta(min_length=1, max_length=256)]
    id: Annotated[str, Meta(min_length=1, max_length=256)]
    values: dict[str, Any]
    ttl_s: Annotated[float, Meta(gt=0, le=31_536_000)]
    fresh_at: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    quality: Annotated[float, Meta(ge=0, le=1)] | None = None


def values_of(consulted: Iterable[Consulted]) -> dict[str, dict[str, Any]]:
    """The attributes by source; a source whose look-up failed is not there."""
    values: dict[str, dict[str, Any]] = {}
    for entry in consulted:
        if entry.error is None:
            attributes = values.setdefault(entry.source, {})
            if entry.element is not None:
                attributes[entry.element] = entry.value
    return values
