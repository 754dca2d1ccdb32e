"""Tasks of approvals as events of a journal: a denial that can be lifted, the request, verdicts, the use."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from tests.build import CALLER, NOON, by_model, record
from thor_policy.core import records
from thor_policy.core.approvals import Person
from thor_policy.core.decisions import Decision
from thor_policy.core.lifting import ApprovalStep, LiftedBy, Offer, Use
from thor_policy.core.requests import Caller, Urgency
from thor_policy.journal import events
from thor_policy.journal.events import Event

KIM = Person(name="kim", roles=("manager",), aliases=("uid:61002", "61002"))
LEE = Person(name="lee", roles=("security",), aliases=("uid:61003", "61003"))
ANN = Person(name="ann", roles=("recorder",), aliases=("uid:61004", "61004"))
LIFTED_BY = LiftedBy(
    steps=(ApprovalStep(role="manager"), ApprovalStep(role="security")),
    break_glass=ApprovalStep(role="manager"),
    consents=("email",),
)
_numbers = itertools.count(1)


def liftable(**changes: Any) -> Decision:
    """A denial that a manager and security can lift."""
    offer = Offer(lifted_by=LIFTED_BY, binds=(), digest="d" * 64)
    return by_model(**{"outcome": "require_attestation", "allow": False, "offer": offer} | changes)


def requested(decision: Decision, *, task: str = "task-1", at: float = NOON + 1, **members: Any) -> Event:
    """The request to lift a decision, by its caller."""
    request = records.ApprovalRequest(decision_id=decision.id, **members)
    return events.record_event(request, record_id=task, at=at, caller=CALLER)


def given(
    person: Person,
    *,
    task: str = "task-1",
    at: float = NOON + 2,
    denies: bool = False,
    recorder: Person | None = None,
    **members: Any,
) -> Event:
    """A person's verdict, sent by the caller that the person is, or by a recorder."""
    verdict = (records.Deny if denies else records.Approve)(task=task, **members)
    uid = int((recorder or person).aliases[-1])
    return events.record_event(
        verdict,
        record_id=f"verdict-{next(_numbers)}",
        at=at,
        caller=Caller(transport="ipc", uid=uid, gid=uid, pid=7),
        person=person,
        recorder=recorder,
    )


def cancelled(*, task: str = "task-1", at: float = NOON + 4, **members: Any) -> Event:
    """The end of a task by its requester."""
    end = records.Cancel(task=task, **members)
    return events.record_event(end, record_id=f"end-{next(_numbers)}", at=at, caller=CALLER)


def lifted(
    *, task: str = "task-1", at: float = NOON + 5, urgency: Urgency = "normal", **changes: Any
) -> Decision:
    """The allow of a question that was asked again with an approved task."""
    use = Use(task=task, lifts="require_attestation", urgency=urgency)
    return by_model(**{"outcome": "allow", "allow": True, "use": use, "at": at} | changes)


def lift(path: Path, *, task: str = "task-1", **changes: Any) -> tuple[Decision, Decision]:
    """Record a denial, its request, two approvals and the allow; returns the denial and the allow."""
    denied, allowed = liftable(), lifted(task=task, **changes)
    record(path, denied)
    record(path, requested(denied, task=task, reason="release 7"), given(KIM, task=task))
    record(path, given(LEE, task=task))
    record(path, allowed)
    return denied, allowed
