"""Approvals: what lifts an outcome, who may give it, and what has become of a request for one.

Owns tasks and their states, in the words of OpenID's Access Request and Approval Profile (draft), and whether
an approval helps. Invariant: a task is approved only while one of its
chains is complete, and every verdict in it is of another person, who had the role at the time; what cannot be
read is no approval. All values are frozen, time is an argument. Pure; any thread.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.core.decisions import PackInfo
from thor_policy.core.lifting import ApprovalCode, ApprovalStep, Chain, LiftedBy, Offer, Party
from thor_policy.core.requests import VIA, Urgency

#: What a task can be. `partial`: some approvals are there, others are missing.
State: TypeAlias = Literal["pending", "partial", "approved", "denied", "expired", "cancelled"]
#: States in which a task can still be approved.
OPEN_STATES: tuple[State, ...] = ("pending", "partial")
#: Who may record a consent that was given elsewhere.
RECORDER = "recorder"
#: Letters and marks that nobody sees, beside the characters of categories C and Z.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

# ---------------------------------------------------------------- who approves


class Person(Struct, frozen=True, kw_only=True):
    """Whom the setting `people` makes of a caller. `aliases` are other names of the same person."""

    name: str
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    def is_called(self, name: str) -> bool:
        """True if `name` (`user:alice`, or only `alice`) is one of this person's names, in any spelling.

        Of a relayed request's `token:alice via uid:990` the relay does not matter.
        """
        name = name.partition(VIA)[0]
        _, _, bare = name.partition(":")
        spelt = {folded(name), folded(bare)} - {""}
        return not spelt.isdisjoint(folded(own) for own in (self.name, *self.aliases))


@lru_cache(maxsize=1024)  # few people approve many tasks
def folded(name: str) -> str:
    """A name as people read it: without differences of width, case, blanks or invisible characters."""
    seen = _UNSEEN.sub("", name)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())
    return "".join(char for char in text if unicodedata.category(char)[0] not in "CZ")


class Moment(NamedTuple):
    """A time by both clocks: nanoseconds since a boot, and Unix time in seconds.

    `back`: the wall clock stands before what was recorded, or was set back since the journal was opened.
    """

    boot_id: str
    ns: int
    at: float
    back: bool = False

    def is_past(self, seconds: float, now: Moment) -> bool:
        """True if `seconds` have passed, or if they may have.

        Within a boot the clock of the boot alone counts. Over a boot it is the wall clock, and a wall clock
        that went back is not believed.
        """
        if self.boot_id == now.boot_id:
            return now.ns - self.ns >= seconds * 1e9
        return now.back or not self.at <= now.at < self.at + seconds


class Verdict(Struct, frozen=True, kw_only=True):
    """One approval or rejection of a task. `name` is None if it was erased.

    `parties` says what the person was to the question. `roles` and `groups` are those at the time.
    `recorded_by` and `channel` are there for a consent given elsewhere.
    """

    name: str | None
    approves: bool
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    parties: tuple[Party, ...] = ()
    channel: str | None = None
    recorded_by: str | None = None
    at: str | None = None
    evidence: str | None = None
    comment: str | None = None
    moment: Moment | None = None


# ---------------------------------------------------------------- what a task is


class Task(Struct, frozen=True, kw_only=True):
    """A request to lift the outcome of a decision. `who` is the caller that asked the question.

    `ended` is a state that an event put it in for good. `used_by` are decisions that it lifted.
    """

    id: str
    decision_id: str
    outcome: str
    pack: PackInfo
    offer: Offer
    who: str | None
    requested_by: str | None
    requested: Moment
    requested_at: str
    urgency: Urgency = "normal"
    reason: str | None = None
    subject: str | None = None
    action: str | None = None
    resource: str | None = None
    verdicts: tuple[Verdict, ...] = ()
    ended: State | None = None
    used_by: tuple[str, ...] = ()

    @property
    def chains(self) -> tuple[Chain, ...]:
        return self.offer.lifted_by.chains(self.urgency)

    @property
    def granted(self) -> Moment | None:
        """When the first chain became complete; None while none is."""
        walks = (_walk(chain, self.verdicts, self.offer.lifted_by) for chain in self.chains)
        completing = [walk.newest for walk in walks if walk.complete]
        return self.verdicts[min(completing)].moment if completing else None

    def state(self, now: Moment) -> State:
        """What the task is at a time."""
        state, lifted_by, granted = self.recorded, self.offer.lifted_by, self.granted
        if state == "approved" and granted is not None:
            return "expired" if granted.is_past(lifted_by.holds_s, now) else state
        if state in OPEN_STATES and self.requested.is_past(lifted_by.pending_s, now):
            return "expired"
        return state

    @property
    def recorded(self) -> State:
        """What the task is by its events alone: `expired` only once that was recorded."""
        if self.ended is not None:
            return self.ended
        if any(not verdict.approves for verdict in self.verdicts):
            return "denied"
        if self.granted is not None:
            return "approved"
        return "partial" if self.verdicts else "pending"

    @property
    def is_spent(self) -> bool:
        """True once it has lifted the one decision that it was for."""
        return bool(self.used_by) and self.offer.lifted_by.uses == "once"

    def expires_in_s(self, now: Moment) -> float:
        """Seconds until the task expires, by the clock that counts; never below 0."""
        granted = self.granted
        start, seconds = (
            (self.requested, self.offer.lifted_by.pending_s)
            if granted is None
            else (granted, self.offer.lifted_by.holds_s)
        )
        if start.is_past(seconds, now):
            return 0.0
        passed = (now.ns - start.ns) / 1e9 if start.boot_id == now.boot_id else now.at - start.at
        return max(0.0, seconds - passed)

    def missing(self) -> list[list[str]]:
        """What each chain still needs, step by step."""
        return [_left(chain, self.verdicts, self.offer.lifted_by) for chain in self.chains]


def is_complete(chains: Iterable[Chain], verdicts: Sequence[Verdict], lifted_by: LiftedBy) -> bool:
    """True if the verdicts complete one of the chains."""
    return any(_walk(chain, verdicts, lifted_by).complete for chain in chains)


def problem_of(task: Task, verdict: Verdict) -> str | None:
    """Why a person may not give this verdict now; None if they may."""
    lifted_by = task.offer.lifted_by
    if verdict.name is None:
        return "the name of the approver is not known"
    if verdict.channel is not None and verdict.channel not in lifted_by.consents:
        known = ", ".join(lifted_by.consents) or "none"
        return f"the pack counts no consent by {verdict.channel}; it counts those by: {known}"
    if verdict.approves and any(_same(verdict, other) for other in task.verdicts):
        return "this person approved it before, or recorded a consent to it; every step needs another one"
    places = [
        (at, _walk(chain, task.verdicts, lifted_by).place, step)
        for chain in task.chains
        for at, step in enumerate(chain)
    ]
    if any(at == place and _admits(step, verdict) for at, place, step in places):
        return None
    if any(at > place and _admits(step, verdict) for at, place, step in places):
        return "an earlier step comes first: " + _alternatives(task)
    if verdict.parties and any(
        at >= place and _admits(step, _without_parties(verdict)) for at, place, step in places
    ):
        parties = " and the ".join(verdict.parties)
        return f"this person is the {parties} of the question, and may not decide on it"
    return "this person may take no step that is left: " + _alternatives(task)


def _alternatives(task: Task) -> str:
    return " or ".join(", then ".join(chain) for chain in task.missing() if chain) or "none"


def _left(chain: Chain, verdicts: Sequence[Verdict], lifted_by: LiftedBy) -> list[str]:
    place, count, _, _ = _walk(chain, verdicts, lifted_by)
    left = list(map(str, chain[place:]))
    if count and left:
        left[0] = str(replace(chain[place], quorum=chain[place].quorum - count))
    return left


class _Walk(NamedTuple):
    """How far verdicts get along a chain: steps taken, approvals for the next one, the newest that counts."""

    place: int
    of_next: int
    newest: int
    complete: bool


def _walk(chain: Chain, verdicts: Sequence[Verdict], lifted_by: LiftedBy) -> _Walk:
    place = count = newest = 0
    counted: list[Verdict] = []
    for number, verdict in enumerate(verdicts):
        if place == len(chain):
            break
        if (
            not verdict.approves
            or verdict.name is None
            or (verdict.channel is not None and verdict.channel not in lifted_by.consents)
            or any(_same(verdict, other) for other in counted)
            or not _admits(chain[place], verdict)
        ):
            continue
        counted.append(verdict)
        count, newest = count + 1, number
        if count == chain[place].quorum:
            place, count = place + 1, 0
    return _Walk(place, count, newest, complete=bool(chain) and place == len(chain))


def _admits(step: ApprovalStep, verdict: Verdict) -> bool:
    return step.admits(verdict.roles, verdict.groups, verdict.parties)


def _same(verdict: Verdict, other: Verdict) -> bool:
    """True if one person gave both, or gave one and recorded the other for somebody else."""
    pairs = (
        (verdict.name, other.name),
        (verdict.name, other.recorded_by),
        (verdict.recorded_by, other.name),
    )
    return any(
        name is not None and known is not None and folded(name) == folded(known) for name, known in pairs
    )


def _without_parties(verdict: Verdict) -> Verdict:
    return Verdict(name=verdict.name, approves=True, roles=verdict.roles, groups=verdict.groups)


def refusal_of(
    task: Task | None,
    *,
    digest: str | None,
    who: str | None,
    stricter: bool,
    pack: PackInfo,
    offer_now: LiftedBy | None,
    binds_now: Sequence[str],
    now: Moment,
) -> ApprovalCode | None:
    """Why an approval does not lift the outcome of a question that is asked again; None if it does.

    `digest` is that of the question by the task's own paths; `stricter`: the outcome is stricter than the
    approved one, or the strictest. `offer_now` and `binds_now` are those of the pack that decides now, for
    the approved outcome.
    """
    if task is None:
        return "approval_unknown"
    if digest != task.offer.digest or who != task.who or pack.name != task.pack.name:
        return "approval_mismatch"
    state = task.state(now)
    if state in ("denied", "cancelled"):
        return "approval_denied"
    if state in OPEN_STATES:
        return "approval_pending"
    if task.is_spent:
        return "approval_used"
    if state == "expired":
        return "approval_expired"
    if stricter:
        return "approval_insufficient"
    if pack.sha256 != task.pack.sha256:  # another version: it must still accept what was given
        if offer_now is None or not set(binds_now) <= set(task.offer.binds):
            return "approval_insufficient"
        as_now = replace(task, offer=replace(task.offer, lifted_by=offer_now))
        if as_now.is_spent:
            return "approval_used"
        if as_now.state(now) != "approved":
            return "approval_insufficient"
    return None
