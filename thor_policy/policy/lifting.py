"""How an approval, or a step-up of the caller, changes what rules and model made of a question.

Owns which outcomes of a pack can be lifted, what an approval of them binds, and the outcome that is left.
Invariant: the strictest outcome is never lifted; an approval counts only for an outcome that is no stricter
than the approved one; without one the outcome stays as it is. Pure but for `Approvals`, which the daemon
gives. Any thread.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from thor_policy.core.decisions import Obligation, PackInfo
from thor_policy.core.lifting import UNREAD, LiftedBy, Offer, Use, bare, presented, supported
from thor_policy.core.requests import Evaluation, Json
from thor_policy.policy.prompt_text import look_up
from thor_policy.policy.tokens import OF_REQUEST, names_in, paths_in

#: A path that `binds` can name.
_BINDABLE = re.compile(r"((subject|action|resource)\.properties|context)(\.[A-Za-z_][A-Za-z0-9_]*)*\Z")
#: Functions that read members of a request which their arguments do not name, and what they read.
_READS_UNNAMED = {"stated_times": "context"}


@dataclass(frozen=True, slots=True)
class Liftable:
    """What a pack says of one outcome that can be lifted."""

    lifted_by: LiftedBy
    binds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reasked:
    """A question that came with an approval, as it stands without it.

    `liftable` has what the pack says now, by outcome; `rank` the strictness of each outcome.
    """

    ticket: int
    task: str
    evaluation: Evaluation
    who: str | None
    outcome: str
    pack: PackInfo
    rank: Mapping[str, int]
    liftable: Mapping[str, Liftable]

    def is_stricter_than(self, approved: str) -> bool:
        """True if the outcome is stricter than an approved one, or one that nothing lifts."""
        rank = self.rank
        return (
            approved not in rank or rank[self.outcome] > rank[approved] or rank[self.outcome] == len(rank) - 1
        )

    def content(self, binds: Sequence[str]) -> bytes:
        """What an approval that binds these paths is bound to."""
        return content_of(self.evaluation, self.who, binds)


class Approvals(Protocol):
    """The approvals that the daemon keeps (`daemon.approvals`)."""

    def digest(self, content: bytes) -> str:
        """The keyed digest of what an approval is bound to."""

    def honour(self, reasked: Reasked) -> Use:
        """Whether an approval lifts the outcome; if so, it is taken for this decision and no other."""


@dataclass(frozen=True, slots=True)
class Lifted:
    """What is left: the outcome, whether it is an allow, and why."""

    outcome: str
    allow: bool
    use: Use | None = None
    offer: Offer | None = None
    stepped_up: bool = False


class Lifting:
    """What a pack says of its outcomes, loosest first. `read`: what rules and prompt read, by path."""

    def __init__(
        self,
        labels: Sequence[str],
        lifted_by: Mapping[str, LiftedBy],
        step_ups: Mapping[str, Sequence[Obligation]],
        read: Collection[str],
    ) -> None:
        self._labels = tuple(labels)
        self._rank = {label: rank for rank, label in enumerate(labels)}
        by_default = tuple(sorted(read))
        self._liftable = {
            label: Liftable(spec, by_default if spec.binds is None else spec.binds)
            for label, spec in lifted_by.items()
        }
        #: The paths that an approval of each outcome binds, by outcome.
        self.bound_paths = {label: liftable.binds for label, liftable in self._liftable.items()}
        self._step_ups = {
            label: frozenset({obligation.id, obligation.type})
            for label, obligations in step_ups.items()
            for obligation in obligations
        }

    def apply(
        self,
        outcome: str,
        evaluation: Evaluation,
        *,
        who: str | None,
        ticket: int,
        pack: PackInfo,
        approvals: Approvals | None,
        recorded: Use | None = None,
    ) -> Lifted:
        """What is left of an outcome. `recorded`: what an approval did then, for a question of the past."""
        loosest, context = self._labels[0], evaluation.context
        if outcome == loosest:  # an approval that is not needed stays unused
            id_ = presented(context)
            return Lifted(outcome, allow=True, use=None if id_ is None else Use(task=id_))
        use = recorded
        reasked = Reasked(
            ticket,
            presented(context) or "",
            bare(evaluation),
            who,
            outcome,
            pack,
            self._rank,
            self._liftable,
        )
        if recorded is not None and recorded.lifts is not None and reasked.is_stricter_than(recorded.lifts):
            use = Use(task=recorded.task, code="approval_insufficient")
        elif recorded is None and approvals is not None and presented(context) is not None:
            use = approvals.honour(reasked)
        if use is not None and use.lifts is not None:
            return Lifted(loosest, allow=True, use=msgspec.structs.replace(use, lifts=outcome))
        stepped_up = bool(self._step_ups.get(outcome, frozenset()) & supported(context))
        offer = self._offer(outcome, reasked, approvals)
        return Lifted(outcome, allow=stepped_up, use=use, offer=offer, stepped_up=stepped_up)

    def _offer(self, outcome: str, reasked: Reasked, approvals: Approvals | None) -> Offer | None:
        liftable = self._liftable.get(outcome)
        if liftable is None or approvals is None or reasked.who is None:
            return None
        digest = approvals.digest(reasked.content(liftable.binds))
        return Offer(lifted_by=liftable.lifted_by, binds=liftable.binds, digest=digest)


def content_of(evaluation: Evaluation, who: str | None, binds: Sequence[str]) -> bytes:
    """What an approval of a question is bound to: who asks, for whom, what, and the values at the paths.

    The two members of the context that rules and prompt do not see are left out.
    """
    evaluation = bare(evaluation)
    roots = msgspec.to_builtins(evaluation)
    parts: list[Json] = [
        *(who, evaluation.subject.type, evaluation.subject.id, evaluation.action.name),
        *(evaluation.resource.type, evaluation.resource.id),
        [[path, *_at(roots, path)] for path in sorted(binds)],
    ]
    return msgspec.json.encode(parts, order="deterministic")


def _at(roots: Mapping[str, Json], path: str) -> list[Json]:
    """The value at a dotted path; empty if there is none, which null is not."""
    parent, _, name = path.rpartition(".")
    inside = look_up(roots, parent) if parent else roots
    return [inside[name]] if isinstance(inside, Mapping) and name in inside else []


def paths_that_count(
    expressions: Collection[str], shown: Collection[str], declared: Collection[str]
) -> set[str]:
    """The members of a request that a pack reads: by its expressions, in its prompt, or as declared."""
    paths = {path for text in expressions for path in paths_in(text)} | set(shown) | set(declared)
    for name, path in _READS_UNNAMED.items():
        if any(name in names_in(text) for text in expressions):
            paths.add(path)
    of_request = {path for path in paths if path.split(".")[0] in OF_REQUEST}
    return {path for path in of_request if not any(_is_below(path, other) for other in of_request)}


def _is_below(path: str, other: str) -> bool:
    return path.startswith(f"{other}.")


def faults_of(
    labels: Sequence[str],
    lifted_by: Mapping[str, LiftedBy],
    step_ups: Mapping[str, Sequence[Obligation]],
) -> Iterator[tuple[str, str]]:
    """What is wrong with the approvals and step-ups of outcomes: the label, and the problem."""
    for label, spec in lifted_by.items():
        if label == labels[-1]:
            yield label, f"lifted_by: {label} is the strictest outcome, which nothing lifts"
        if label == labels[0]:
            yield label, f"lifted_by: {label} is the loosest outcome, which needs no approval"
        if bool(spec.steps) == bool(spec.any_of):
            yield label, "lifted_by: give either steps or any_of"
        steps = [*spec.steps, *(step for chain in spec.any_of for step in chain)]
        for step in (*steps, *((spec.break_glass,) if spec.break_glass else ())):
            if step.role is None and step.group is None:
                yield label, "lifted_by: every step needs a role or a group"
        for path in spec.binds or ():
            if not _BINDABLE.match(path) or path.partition(".")[2] in UNREAD:
                message = (
                    f"lifted_by.binds: {path!r} must be a path below context, or below properties of "
                    "subject, action or resource; their types, ids and names are always bound"
                )
                yield label, message
    for label, obligations in step_ups.items():
        if label in (labels[0], labels[-1]):
            yield label, f"step_up: {label} is the loosest or the strictest outcome"
        elif len(obligations) != 1:
            yield label, f"step_up: needs exactly one obligation; {label} has {len(obligations)}"
