"""The question: subject, action, resource, context, and an admitted request.

Owns the words of OpenID AuthZEN 1.0 and the caller that the kernel or a key vouches for. Invariant: all
values are frozen, and nothing here does input or output. Used by every thread.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from thor_policy.core.precedents import Precedent
from thor_policy.core.sources import Consulted

#: JSON as decoded: str, int, float, bool, None, list, dict.
Json: TypeAlias = Any

Risk = Literal["low", "medium", "high", "critical"]
#: How soon a decision is needed. An emergency is recorded like any other decision.
Urgency: TypeAlias = Literal["normal", "urgent", "emergency"]
#: Whether a decision is explained: not at all, in its reply, or afterwards as an event of its own.
Explain = Literal["none", "inline", "later"]
#: What a caller wants of the enrichment of its decision: what the settings say, none, or one in any case.
Enrich = Literal["auto", "never", "always"]
#: What a caller may do: ask, hand over records, push values of sources, approve, review, run tests, work on
#: the journal; `relay`: send requests of others, each with at most the caller's own roles.
Role = Literal["ask", "record", "push", "approve", "review", "test", "ship", "control", "relay"]
#: Whether a statement is only a claim, which counts in no figure. `unless_own`: it counts if the caller made
#: the decision that it is about.
Claimed = Literal["no", "unless_own", "yes"]

#: Between whose request it is and who relays it, in `Caller.who`.
VIA = " via "
#: A deadline that never comes, in monotonic nanoseconds.
NEVER_NS = 2**63 - 1
#: Risks from the mildest to the gravest.
RISKS: tuple[Risk, ...] = ("low", "medium", "high", "critical")


# ---------------------------------------------------------------- the question


class Entity(Struct, frozen=True, kw_only=True):
    """A subject or a resource: a type, an id within it, and properties."""

    type: str
    id: str
    properties: dict[str, Json] = {}


class Action(Struct, frozen=True, kw_only=True):
    """What the subject wants to do."""

    name: str
    properties: dict[str, Json] = {}


class Evaluation(Struct, frozen=True, kw_only=True):
    """One question: may `subject` do `action` on `resource`, in `context`?"""

    subject: Entity
    action: Action
    resource: Entity
    context: dict[str, Json] = {}


class Annotations(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a test knows about a question. Logged with the decision, never shown to rules or model.

    `expected` lists every outcome that counts as right. `claimed`: by a caller who may not say so. The daemon
    sets it, whatever the request says.
    """

    scenario_id: str | None = None
    expected: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    claimed: bool = False


class Caller(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who sent the request, as the kernel or a key vouches for it; never taken from a payload.

    `key` is the name of the CURVE key that a caller over tcp holds; the kernel's numbers are those of ipc.
    `on_behalf_of` is whose request it is, as a caller with the role `relay` states it: `token:alice`,
    `cert:edge`.
    """

    transport: Literal["ipc", "tcp", "inproc"]
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    key: str | None = None
    on_behalf_of: str | None = None

    @property
    def who(self) -> str | None:
        """`uid:1000` or `key:laptop`: the same for all processes and connections of a caller.

        Of a relayed request `token:alice via uid:990`: no relay can speak for those of another.
        """
        sender = self.sender
        if self.on_behalf_of is None or sender is None:
            return sender
        return f"{self.on_behalf_of}{VIA}{sender}"

    @property
    def sender(self) -> str | None:
        """Who sent the request itself, whether for others or not: `uid:990`, `key:edge`."""
        if self.key is not None:
            return f"key:{self.key}"
        return None if self.uid is None else f"uid:{self.uid}"


class Together(Struct, frozen=True):
    """Questions of one batch, whose decisions are recorded in one transaction: which batch, and how many."""

    batch: int
    size: int


class Member(Struct, frozen=True, kw_only=True, gc=False):
    """The arm of a canary that a request belongs to: its candidate decides, or the active pack does."""

    id: str
    arm: Literal["canary", "control"]


class Request(Struct, frozen=True, kw_only=True):
    """An admitted question on its way to the engine thread.

    `ticket` is the server's own handle for the reply. `received_at` is Unix time in seconds, stamped once
    at receipt and recorded; `received_ns` and `deadline_ns` are monotonic nanoseconds. `pack` is what the
    request calls the pack that it wants to be judged by; None: whichever is active. `idempotency` is
    recorded with the decision. `sources` is what the sources of a pack said, and `judge` the sha256 of that
    pack: while it is loaded it decides, though another became active meanwhile. `together` is the
    batch. `precedents` are what the pack asked for, best first; `precedents_note` says what of them could not
    be looked up. `member` is the arm of the canary that ran when the request was admitted.
    """

    ticket: int
    evaluation: Evaluation
    caller: Caller
    received_at: float
    received_ns: int
    deadline_ns: int
    explain: Explain = "none"
    enrich: Enrich = "auto"
    annotations: Annotations = Annotations()
    idempotency: str | None = None
    pack: str | None = None
    sources: tuple[Consulted, ...] = ()
    judge: str | None = None
    precedents: tuple[Precedent, ...] = ()
    precedents_note: str | None = None
    together: Together | None = None
    member: Member | None = None


_Time = Annotated[datetime, Meta(tz=True)]


def is_time(text: str) -> bool:
    """True for an RFC 3339 time that can be converted to UTC."""
    try:
        msgspec.convert(text, _Time).astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        return False
    return True
