"""The resident packs and the role of each.

Owns the table of resident packs. Invariant: exactly one pack is active, and no pack has two roles. A table
never changes; a change makes another table, so a reader always sees a complete one. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from msgspec import structs

from thor_policy.core.canary import Canary
from thor_policy.core.decisions import Adapter, Floor, ModelInfo, PackInfo, Rendering, resident_key
from thor_policy.core.engine import LoadedPrefix
from thor_policy.core.errors import RequestError
from thor_policy.core.precedents import Precedent
from thor_policy.core.requests import Evaluation, Request
from thor_policy.core.status import PackRole, PackStatus
from thor_policy.policy.pack import Pack

#: Fewest digits of a pack's sha256 that name it; also the digits that are shown.
DIGEST_CHARS = 12


def is_named(pack: PackInfo | PackStatus, name: str) -> bool:
    """True if `name` is the pack's name, `name@version`, or at least `DIGEST_CHARS` of its sha256."""
    by_name = name in (pack.name, f"{pack.name}@{pack.version}")
    return by_name or (len(name) >= DIGEST_CHARS and pack.sha256.startswith(name))


@dataclass(frozen=True, eq=False)
class Resident:
    """A pack whose prompt prefix is loaded, and the model (with its adapter) that it is loaded for.

    `key` is the engine's key of the prefix; `mark` begins it, where it is on another engine than the others.
    `prior` has the mean label probabilities of questions without content; it is empty where they were not
    asked.
    """

    pack: Pack
    model: ModelInfo
    loaded: LoadedPrefix
    mark: str = ""
    prior: dict[str, float] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        return self.mark + resident_key(self.pack.info.sha256, self.model.adapter)

    @property
    def rendering(self) -> Rendering:
        """The rendering of its questions, by its adapter."""
        return self.model.adapter.rendering if self.model.adapter else "full"

    def question(self, evaluation: Evaluation, floor: Floor, precedents: Sequence[Precedent] = ()) -> str:
        """The text of one evaluation. Raises RequestError if it is too long."""
        if self.rendering == "brief":
            return self.pack.brief_question(evaluation, floor, precedents)
        return self.pack.question(evaluation, floor.facts, precedents)

    @cached_property
    def calibration_key(self) -> tuple[str, str]:
        """What a calibration belongs to: the digests of the pack and of the weights."""
        return self.pack.info.sha256, self.model.identity

    def matches(self, name: str) -> bool:
        """True if `name` is the pack's name, `name@version`, or at least `DIGEST_CHARS` of its sha256."""
        return is_named(self.pack.info, name)

    def __str__(self) -> str:
        info = self.pack.info
        return f"{info.name}@{info.version} ({info.sha256[:DIGEST_CHARS]})"


@dataclass(frozen=True, eq=False)
class OnTrial:
    """The canary that runs, and its candidate."""

    canary: Canary
    resident: Resident


@dataclass(frozen=True)
class Residents:
    """The resident packs and the role of each. Frozen: a change makes another table."""

    active: Resident
    shadow: Resident | None = None
    candidates: tuple[Resident, ...] = ()
    trial: OnTrial | None = None

    def __iter__(self) -> Iterator[Resident]:
        """All resident packs, the active one first."""
        yield self.active
        if self.shadow is not None:
            yield self.shadow
        if self.trial is not None:
            yield self.trial.resident
        yield from self.candidates

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def role_of(self, resident: Resident) -> PackRole:
        """The role of a pack of this table."""
        if self.trial is not None and resident is self.trial.resident:
            return "canary"
        return "active" if resident is self.active else "shadow" if resident is self.shadow else "candidate"

    def adapter_for(self, pack: Pack) -> Adapter | None:
        """The adapter that a further pack would be judged with: that of the others; none for rules alone."""
        judged = (resident.model.adapter for resident in self if not resident.pack.rules_only)
        return None if pack.rules_only else next(judged, None)

    def by_key(self, key: str) -> Resident | None:
        """The pack with this engine key; None if there is none."""
        return next((resident for resident in self if resident.key == key), None)

    def matching(self, name: str) -> list[Resident]:
        """All packs that `name` matches, the active one first."""
        return [resident for resident in self if resident.matches(name)]

    def named(self, name: str) -> Resident:
        """The pack that a request names; of several matches, the active one. Raises RequestError."""
        matches = self.matching(name)
        if not matches:
            loaded = ", ".join(dict.fromkeys(resident.pack.info.name for resident in self))
            raise RequestError("not_found", f"pack: {name[:64]!r} is not loaded; loaded: {loaded}")
        if len(matches) > 1 and matches[0] is not self.active:
            raise RequestError(
                "bad_request", f"pack: {name[:64]!r} may be {' or '.join(map(str, matches))}; give its digest"
            )
        return matches[0]

    def enrolled(self, request: Request) -> Request:
        """The request with its arm of the canary that runs. One that names a pack, or is a test, has none."""
        of_test = request.annotations.scenario_id is not None and not request.annotations.claimed
        if self.trial is None or request.pack is not None or of_test:
            return request
        return structs.replace(request, member=self.trial.canary.member(request.caller))

    def on_trial(self, request: Request) -> Resident | None:
        """The candidate, if it decides this request; None: another pack does."""
        return self.trial.resident if self.trial is not None and self.arm_of(request) == "canary" else None

    def arm_of(self, request: Request) -> str | None:
        """The arm of a request, if its canary still runs."""
        member, trial = request.member, self.trial
        return (
            member.arm if member is not None and trial is not None and member.id == trial.canary.id else None
        )

    def permitted(self, name: str, listed: Collection[str] | None) -> Resident:
        """The pack that a request names, if it is active or `listed` (None: any). Raises RequestError."""
        resident = self.named(name)
        if listed is None or resident is self.active or any(map(resident.matches, listed)):
            return resident
        raise RequestError(
            "unauthorized",
            f"pack: you may not name {name[:64]!r}, which is not the active pack; leave `pack` out, or see "
            "the setting packs_for",
        )

    def long_texts(self, name: str | None) -> Mapping[str, int]:
        """The limits of texts by path that the pack states which a request names; none if it is not here."""
        try:
            return (self.active if name is None else self.named(name)).pack.long_texts
        except RequestError:
            return {}

    def template_of(self, version: str | None, decision_type: str) -> str | None:
        """The template of context summaries of a type, in the pack with that version as the tables show it.

        None if the pack is not resident, or has no template for the type.
        """
        for resident in self:
            if version is not None and version.endswith(f"+{resident.pack.info.sha256[:DIGEST_CHARS]}"):
                return resident.pack.manifest.trace.summaries.get(decision_type)
        return None

    # ------------------------------------------------------------ other tables

    def with_candidate(self, resident: Resident) -> Residents:
        """This table with one more candidate."""
        return replace(self, candidates=(*self.candidates, resident))

    def without(self, resident: Resident) -> Residents:
        """This table without a pack, which must be neither the active one nor on trial."""
        shadow = None if resident is self.shadow else self.shadow
        others = tuple(candidate for candidate in self.candidates if candidate is not resident)
        return replace(self, shadow=shadow, candidates=others)

    def with_active(self, resident: Resident) -> Residents:
        """This table with another of its packs active; the pack that was active becomes a candidate."""
        if resident is self.active:
            return self
        rest = self.without(resident)
        return replace(rest, active=resident, candidates=(*rest.candidates, self.active))

    def with_shadow(self, resident: Resident | None) -> Residents:
        """This table with another shadow, or none; the former shadow becomes a candidate.

        `resident` must not be the active pack.
        """
        if resident is self.shadow:
            return self
        rest = self if resident is None else self.without(resident)
        former = () if self.shadow is None else (self.shadow,)
        return replace(rest, shadow=resident, candidates=(*rest.candidates, *former))

    def with_trial(self, trial: OnTrial | None) -> Residents:
        """This table with this canary, or without one; the candidate of an earlier one is gone.

        The candidate may be among the candidates of this table, and is then taken from them.
        """
        rest = self if trial is None else self.without(trial.resident)
        return replace(rest, trial=trial)

    def with_trial_active(self) -> Residents:
        """This table with the pack on trial active; the pack that was active becomes a candidate.

        Where both are one pack under two adapters, the one that was active is gone.
        """
        if self.trial is None:
            return self
        new = self.trial.resident
        kept = () if new.pack.info == self.active.pack.info else (self.active,)
        return replace(self, active=new, candidates=(*self.candidates, *kept), trial=None)

    def with_replaced(self, old: Resident, new: Resident) -> Residents:
        """This table with `new` in the role of `old`."""
        return replace(
            self,
            active=new if old is self.active else self.active,
            shadow=new if old is self.shadow else self.shadow,
            candidates=tuple(new if candidate is old else candidate for candidate in self.candidates),
        )
