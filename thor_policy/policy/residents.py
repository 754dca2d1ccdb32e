"""Which packs are resident, and which of them decides.

Owns the table of resident packs. Invariant: exactly one pack is active, none has two roles, and a change
is another table, so whoever holds one sees a whole. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

from thor_policy.core.decisions import Floor, ModelInfo, Rendering, resident_key
from thor_policy.core.engine import LoadedPrefix
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Evaluation
from thor_policy.policy.pack import Pack

#: Digits of a pack's sha256 by which it may be named.
DIGEST_CHARS = 12

#: What a resident pack does: it decides; it decides the same again, unheard; nothing unless it is named.
Role: TypeAlias = Literal["active", "shadow", "candidate"]


@dataclass(frozen=True, eq=False)
class Resident:
    """A pack whose prompt is resident, and the model (with its adapter) that it is resident under.

    `key` is what the engine calls it.
    """

    pack: Pack
    model: ModelInfo
    loaded: LoadedPrefix

    @cached_property
    def key(self) -> str:
        return resident_key(self.pack.info.sha256, self.model.adapter)

    @property
    def rendering(self) -> Rendering:
        """How questions are put to it."""
        return self.model.adapter.rendering if self.model.adapter else "full"

    def question(self, evaluation: Evaluation, floor: Floor) -> str:
        """The text of one evaluation. Raises RequestError where it is too long."""
        if self.rendering == "brief":
            return self.pack.brief_question(evaluation, floor)
        return self.pack.question(evaluation, floor.facts)

    @cached_property
    def judged(self) -> tuple[str, str]:
        """What confidence is calibrated for: digests of the pack and of the weights."""
        return self.pack.info.sha256, self.model.identity

    def answers_to(self, told: str) -> bool:
        """True for the pack's name, `name@version`, or the beginning of its sha256."""
        info = self.pack.info
        named = told in (info.name, f"{info.name}@{info.version}")
        return named or (len(told) >= DIGEST_CHARS and info.sha256.startswith(told))

    def __str__(self) -> str:
        info = self.pack.info
        return f"{info.name}@{info.version} ({info.sha256[:DIGEST_CHARS]})"


@dataclass(frozen=True)
class Residents:
    """The resident packs and the role of each. Frozen: a change is another table, which takes its place."""

    active: Resident
    shadow: Resident | None = None
    candidates: tuple[Resident, ...] = ()

    def __iter__(self) -> Iterator[Resident]:
        """All of them, the active one first."""
        yield self.active
        if self.shadow is not None:
            yield self.shadow
        yield from self.candidates

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def role_of(self, resident: Resident) -> Role:
        """What one of them does."""
        return "active" if resident is self.active else "shadow" if resident is self.shadow else "candidate"

    def holding(self, key: str) -> Resident | None:
        """The one that the engine calls `key`."""
        return next((one for one in self if one.key == key), None)

    def answering_to(self, told: str) -> list[Resident]:
        """Those that `told` may mean."""
        return [one for one in self if one.answers_to(told)]

    def named(self, told: str) -> Resident:
        """The one that a request means: of its name, the active one first. Raises RequestError."""
        found = self.answering_to(told)
        if not found:
            loaded = ", ".join(dict.fromkeys(one.pack.info.name for one in self))
            raise RequestError("not_found", f"pack: {told[:64]!r} is not loaded; loaded: {loaded}")
        if len(found) > 1 and found[0] is not self.active:
            raise RequestError(
                "bad_request", f"pack: {told[:64]!r} may be {' or '.join(map(str, found))}; give its digest"
            )
        return found[0]

    # ------------------------------------------------------------ other tables

    def joined_by(self, resident: Resident) -> Residents:
        """With one more candidate."""
        return replace(self, candidates=(*self.candidates, resident))

    def without(self, resident: Resident) -> Residents:
        """Without one that is not active."""
        shadow = None if resident is self.shadow else self.shadow
        others = tuple(one for one in self.candidates if one is not resident)
        return Residents(self.active, shadow, others)

    def with_active(self, resident: Resident) -> Residents:
        """With another one of them deciding; the one that did so far stays as a candidate."""
        if resident is self.active:
            return self
        rest = self.without(resident)
        return Residents(resident, rest.shadow, (*rest.candidates, self.active))

    def with_shadow(self, resident: Resident | None) -> Residents:
        """With one that is not active as the shadow, or none; the one that was stays as a candidate."""
        if resident is self.shadow:
            return self
        rest = self if resident is None else self.without(resident)
        former = () if self.shadow is None else (self.shadow,)
        return Residents(self.active, resident, (*rest.candidates, *former))

    def with_exchanged(self, old: Resident, new: Resident) -> Residents:
        """With `new` in the role of `old`."""
        return Residents(
            new if old is self.active else self.active,
            new if old is self.shadow else self.shadow,
            tuple(new if one is old else one for one in self.candidates),
        )
