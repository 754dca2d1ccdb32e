"""The rows that an event makes, and the rewrite of an earlier event that an erasure makes.

Owns `Projection` and `Rewrite`, which pass between erasure, events, projections and the batch. Invariant:
plain values that know nothing of the kinds of events. Pure; any thread.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from msgspec import Struct

from thor_policy.journal import chain

Row: TypeAlias = tuple[Any, ...]

#: The replacement of an erased name.
ERASED = "[erased]"


class Projection(NamedTuple):
    """One event's row, and the values of its group of columns in the row of the decision it is about."""

    table: str | None = None
    row: Row = ()
    changes: Row | None = None


class Rewrite(Struct, frozen=True, kw_only=True):
    """What an `erased` event does to one earlier event: its new private part, and the rows that follow.

    `private` is salt and value, or None: then nothing is left of it. The private part of an `archived` event
    is not in the database.
    """

    seq: int
    kind: str
    subject_id: str
    private: tuple[bytes, str] | None
    projection: Projection
    archived: bool = False

    @property
    def digest(self) -> bytes:
        """What the private part is verified against from now on; empty if nothing is left."""
        if self.private is None:
            return b""
        salt, value = self.private
        return chain.sealed_digest(salt, value.encode())
