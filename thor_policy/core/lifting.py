"""What approvals can lift, as a pack declares it, and what a decision and a question say of it.

Owns the members of `lifted_by` in pack.yaml, the offer that a decision makes, and what became of an approval
that came with a question. Invariant: the two members of `context` that concern approvals and obligations are
read here, and `bare` takes them out of what rules and prompt see. All values are frozen. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Literal, TypeAlias, get_args

from msgspec import Meta, Struct

from thor_policy.core.requests import Evaluation, Json, Urgency

#: Members of `context` that neither rules nor prompt nor the key of the score cache see.
APPROVAL, SUPPORTED_OBLIGATIONS = "approval", "supported_obligations"
UNREAD = (APPROVAL, SUPPORTED_OBLIGATIONS)

#: Why an approval did not help.
ApprovalCode: TypeAlias = Literal[
    "approval_unknown",
    "approval_mismatch",
    "approval_denied",
    "approval_pending",
    "approval_expired",
    "approval_used",
    "approval_insufficient",
]
APPROVAL_CODES: tuple[ApprovalCode, ...] = get_args(ApprovalCode)
#: Whom a step keeps from approving.
Party: TypeAlias = Literal["subject", "caller"]
_Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
#: Seconds, up to 30 days.
_Seconds: TypeAlias = Annotated[int, Meta(ge=1, le=2_592_000)]


# ---------------------------------------------------------------- what a pack declares


class ApprovalStep(
    Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"excluded": "not"},
    omit_defaults=True,
):
    """Who has to approve: `quorum` persons with the role, in the group, or both.

    `excluded` (`not` in a pack) are those who may not, whatever their role: the subject of the question, and
    the caller that asked it or requested the approval. Both by default.
    """

    role: _Name | None = None
    group: _Name | None = None
    quorum: Annotated[int, Meta(ge=1, le=16)] = 1
    excluded: Party | tuple[Party, ...] = ("subject", "caller")

    def admits(self, roles: Collection[str], groups: Collection[str], parties: Collection[Party]) -> bool:
        """True for a person with these roles and groups, who is these parties to the question."""
        excluded = (self.excluded,) if isinstance(self.excluded, str) else self.excluded
        return (
            (self.role is None or self.role in roles)
            and (self.group is None or self.group in groups)
            and (self.role is not None or self.group is not None)
            and not set(excluded) & set(parties)
        )

    def __str__(self) -> str:
        who = " in ".join(part for part in (self.role, self.group and f"the group {self.group}") if part)
        return who if self.quorum == 1 else f"{self.quorum} x {who}"


Chain: TypeAlias = tuple[ApprovalStep, ...]


class LiftedBy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The approvals that lift an outcome.

    `steps` are taken in order; of the chains in `any_of`, one is enough. `break_glass` is one more chain for
    requests that their requester calls an emergency. The approval holds for `holds_s` seconds after the last
    step, for one decision (`once`) or for any number until then. It can be requested for `request_within_s`
    seconds after the decision, and stays pending for `pending_s`. It counts for questions with the same
    subject, action, resource, caller, and values at the paths `binds`; without `binds`, at all that rules and
    prompt of the pack read. `consents` are the channels of consents given elsewhere that count.
    """

    steps: Annotated[Chain, Meta(max_length=16)] = ()
    any_of: Annotated[
        tuple[Annotated[Chain, Meta(min_length=1, max_length=16)], ...], Meta(max_length=16)
    ] = ()
    break_glass: ApprovalStep | None = None
    binds: tuple[str, ...] | None = None
    holds_s: _Seconds = 3_600
    uses: Literal["once", "until"] = "once"
    request_within_s: _Seconds = 3_600
    pending_s: _Seconds = 86_400
    consents: tuple[_Name, ...] = ()

    def chains(self, urgency: Urgency) -> tuple[Chain, ...]:
        """The chains of which one must be complete, for a request of this urgency."""
        ordinary = self.any_of or (self.steps,)
        if urgency == "emergency" and self.break_glass is not None:
            return (*ordinary, (self.break_glass,))
        return ordinary


# ---------------------------------------------------------------- what a decision says


class Offer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a decision says of the approvals that can lift it. `digest` is keyed, and binds the question."""

    lifted_by: LiftedBy
    binds: tuple[str, ...]
    digest: str


class Use(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an approval did for a decision: it lifted the outcome `lifts`, or did not help (`code`).

    Both are None where the question was allowed without it.
    """

    task: str
    lifts: str | None = None
    code: ApprovalCode | None = None
    urgency: Urgency = "normal"


# ---------------------------------------------------------------- what a question says


def bare(evaluation: Evaluation) -> Evaluation:
    """The question without the members of its context that only approvals and obligations read."""
    context = evaluation.context
    if APPROVAL not in context and SUPPORTED_OBLIGATIONS not in context:
        return evaluation
    return Evaluation(
        subject=evaluation.subject,
        action=evaluation.action,
        resource=evaluation.resource,
        context={name: value for name, value in context.items() if name not in UNREAD},
    )


def presented(context: Mapping[str, Json]) -> str | None:
    """The id of the approval that a question comes with; empty if it has none that can be read."""
    if context.get(APPROVAL) is None:
        return None
    approval = context[APPROVAL]
    id_ = approval.get("id") if isinstance(approval, dict) else None
    return id_ if isinstance(id_, str) and len(id_) <= 256 else ""


def supported(context: Mapping[str, Json]) -> frozenset[str]:
    """The obligations that the caller of a question says it supports, by id or type."""
    names = context.get(SUPPORTED_OBLIGATIONS)
    return (
        frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()
    )
