"""Recall: the seam of the embedder, the filters of a search for precedents, and a precedent of a question.

Owns what a search needs and gives. Invariant: all values are frozen, and nothing here does input or output.
Used by every thread.
"""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import Struct

#: Numbers in a vector.
DIMENSIONS = 384


class Embedder(Protocol):
    """Turns a text into a vector (`engine.embedder`). Any thread, several at a time.

    Equal texts give equal bits, whatever else is embedded. Stubs: `thor_policy.testing`.
    """

    @property
    def name(self) -> str:
        """What vectors are compared by: those of another name are of another space."""

    def embed(self, text: str) -> Any:
        """`DIMENSIONS` 32-bit floats at unit length, as an array."""


class Filters(Struct, frozen=True, kw_only=True):
    """Which decisions a search considers: all that are given must hold.

    `pack` is a name, `name@version`, or the version as tables show it. `actor` without a type is a user.
    `since` and `until` are RFC 3339 times of recording.
    """

    pack: str | None = None
    type: str | None = None
    actor: str | None = None
    entity: str | None = None
    since: str | None = None
    until: str | None = None
