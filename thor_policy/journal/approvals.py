"""The checks of the writer before a request for approvals, a verdict, an end or a use.

Owns the table `approvals_open`, and what makes a change of a task impossible. Invariant: whatever changes a
task is checked by the one writer, in the transaction that records it, against all that was recorded before;
so two verdicts cannot be one step, and one approval cannot lift two decisions. `approvals_open` can be made
again from the other tables. The journal's thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from thor_policy.core.approvals import OPEN_STATES, Moment, Person, Task, Verdict, problem_of
from thor_policy.core.decisions import PackInfo
from thor_policy.core.errors import RequestError
from thor_policy.core.lifting import Offer, Party
from thor_policy.core.requests import Json
from thor_policy.journal import events
from thor_policy.journal.approval_tasks import Approved, Spec, find, moment_of, tasks_about
from thor_policy.journal.events import Event

#: Kinds of event that are checked here, besides a decision that uses an approval.
KINDS = frozenset({"approval_request", "approval_end"})
_IN_ALL = "SELECT count(*) FROM approvals_open"
_OF_CALLER = f"{_IN_ALL} WHERE caller = ?"
_FOR_SUBJECT = f"""
{_IN_ALL} o JOIN approval_requests r ON r.seq = o.seq
JOIN decisions d ON d.decision_id = r.decision_id WHERE d.actor = ?
"""


_DELETE = "DELETE FROM approvals_open WHERE seq = (SELECT seq FROM approval_requests WHERE id = ?)"
#: What a decision used is not open any more, unless it is for any number of decisions.
_DELETE_SPENT = """
DELETE FROM approvals_open WHERE seq = (SELECT r.seq FROM approval_requests r
WHERE r.id = ? AND json_extract(r.spec, '$.offer.lifted_by.uses') IS NOT 'until')
"""


class Uncommitted(Struct):
    """What the events of a batch add to tasks, by the id of the task; `approved` are those of before."""

    approved: Approved = field(default_factory=Approved)
    tasks: dict[str, Task] = field(default_factory=dict)
    uses: dict[str, list[str]] = field(default_factory=dict)
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    denied: dict[str, Event] = field(default_factory=dict)


def concerns(event: Event) -> bool:
    """True for an event that `check` must see."""
    body: Any = event.body
    if event.kind == "decision":
        return body.use is not None or body.offer is not None
    return event.kind in KINDS or (event.kind == "approval" and (event.person is not None or "task" in body))


def _use_of(event: Event) -> str | None:
    """The task that lifted a decision."""
    use = getattr(event.body, "use", None)
    return use.task if use is not None and use.lifts is not None else None


def check(connection: sqlite3.Connection, uncommitted: Uncommitted, event: Event, now: Moment) -> Event:
    """The event as it is to be recorded. Raises RequestError if it must not be."""
    body: Any = event.body
    if event.kind == "decision":
        if body.offer is not None:
            uncommitted.denied[event.subject_id] = event
        return event if _use_of(event) is None else _check_use(connection, uncommitted, event, now)
    if event.kind == "approval_request":
        return _request(connection, uncommitted, event, now)
    task = _known(connection, uncommitted, body["task"], now)
    if event.kind == "approval_end":
        return _end(uncommitted, event, task, now)
    return _verdict(uncommitted, event, task, now)


def _known(connection: sqlite3.Connection, uncommitted: Uncommitted, task_id: str, now: Moment) -> Task:
    task = _task(connection, uncommitted, task_id, now)
    if task is None:
        raise RequestError(
            "not_found", f"task: there is no task {task_id[:64]!r}", reason_code="unknown_task"
        )
    return task


def _task(connection: sqlite3.Connection, uncommitted: Uncommitted, task_id: str, now: Moment) -> Task | None:
    """A task with what the batch adds to it."""
    task = uncommitted.tasks.get(task_id) or uncommitted.approved.get(task_id) or find(connection, task_id)
    if task is None:
        return None
    return replace(
        task,
        verdicts=(*task.verdicts, *uncommitted.verdicts.get(task_id, ())),
        ended=uncommitted.ends.get(task_id, task.ended),
        used_by=(*task.used_by, *uncommitted.uses.get(task_id, ())),
    )


def _check_use(connection: sqlite3.Connection, uncommitted: Uncommitted, event: Event, now: Moment) -> Event:
    """The last check of an approval that lifts an outcome: it was made before, but this one is final."""
    task_id = _use_of(event) or ""
    task = _task(connection, uncommitted, task_id, now)
    if task is None or task.state(now) != "approved" or task.is_spent:
        raise RequestError(
            "conflict",
            "context.approval: was used or ended meanwhile; ask again",
            reason_code="approval_used",
        )
    uncommitted.uses.setdefault(task_id, []).append(event.subject_id)
    return event


def _request(connection: sqlite3.Connection, uncommitted: Uncommitted, event: Event, now: Moment) -> Event:
    body: Any = event.body
    denied = _denied(connection, uncommitted, event.subject_id, now)
    if denied is None:
        raise RequestError(
            "not_found",
            f"decision_id: there is no decision {event.subject_id[:64]!r}",
            reason_code="invalid_denial_binding",
        )
    decision, decided, subject, about = denied
    question = body.get("question")
    if question is not None and question != about:
        raise RequestError(
            "conflict",
            "question: the decision was about another subject, action or resource",
            reason_code="invalid_denial_binding",
        )
    if decision is None:
        raise RequestError(
            "conflict", "decision_id: the decision is archived; ask again", reason_code="expired_denial"
        )
    if "offer" not in decision:
        raise RequestError(
            "conflict", "decision_id: no approval lifts this decision", reason_code="not_requestable"
        )
    who = events.who_sent(decision)
    if who is None or who != event.sender:
        raise RequestError(
            "unauthorized",
            "decision_id: only the caller that asked the question may request its approval",
            reason_code="invalid_denial_binding",
        )
    offer = msgspec.convert(decision["offer"], Offer)
    if decided.is_past(offer.lifted_by.request_within_s, now):
        raise RequestError(
            "expired",
            "decision_id: the decision is too old to be lifted; ask again",
            reason_code="expired_denial",
        )
    _check_bounds(connection, uncommitted, event, subject, now)
    spec = Spec(
        pack=msgspec.convert(decision["pack"], PackInfo), offer=offer, who=who, requested_by=event.sender
    )
    outcome = decision["outcome"]
    uncommitted.tasks[body["id"]] = Task(
        id=body["id"],
        decision_id=event.subject_id,
        outcome=outcome,
        pack=spec.pack,
        offer=offer,
        who=who,
        requested_by=event.sender,
        requested=now,
        requested_at=events.timestamp(event.at),
        urgency=body.get("urgency", "normal"),
        subject=subject,
    )
    kept = {name: value for name, value in body.items() if name != "question"}
    return replace(event, body=kept | {"outcome": outcome, "spec": msgspec.to_builtins(spec)})


def _denied(
    connection: sqlite3.Connection, uncommitted: Uncommitted, decision_id: str, now: Moment
) -> tuple[dict[str, Json] | None, Moment, str | None, dict[str, Json]] | None:
    """The body of a decision's event (None: archived), when it was recorded, its subject and question."""
    if (event := uncommitted.denied.get(decision_id)) is not None:
        private: Any = event.private
        evaluation = private.evaluation
        subject = f"{evaluation.subject.type}:{evaluation.subject.id}"
        resource = f"{evaluation.resource.type}:{evaluation.resource.id}"
        about = {"subject": subject, "action": evaluation.action.name, "resource": resource}
        return events.decode(events.encode(event.body)), now, subject, about
    row = connection.execute(
        "SELECT e.body, e.boot_id, e.mono_ns, d.timestamp, d.actor, d.action, d.entity FROM decisions d "
        "LEFT JOIN events e ON e.seq = d.seq WHERE d.decision_id = ?",
        (decision_id,),
    ).fetchone()
    if row is None:
        return None
    body, boot_id, mono_ns, at, subject, action, resource = row
    about = {"subject": subject, "action": action, "resource": resource}
    return None if body is None else events.decode(body), moment_of(boot_id, mono_ns, at), subject, about


def _check_bounds(
    connection: sqlite3.Connection, uncommitted: Uncommitted, event: Event, subject: str | None, now: Moment
) -> None:
    """Refuse a second open task for one decision, and tasks beyond the bounds."""
    open_for_decision = [
        task
        for task in (
            *tasks_about(connection, event.subject_id),
            *(task for task in uncommitted.tasks.values() if task.decision_id == event.subject_id),
        )
        if task.state(now) in (*OPEN_STATES, "approved") and not task.is_spent
    ]
    if open_for_decision:
        raise RequestError(
            "conflict",
            f"decision_id: the task {open_for_decision[0].id} for this decision is open",
            reason_code="duplicate_request",
        )
    bounds = event.bounds
    if bounds is None:
        return
    new = uncommitted.tasks.values()
    caller = bounds.of_caller, "approvals_per_caller"
    about = bounds.of_subject, "approvals_per_subject"
    for what, sql, values, more, most, setting in (
        (
            "of this caller",
            _OF_CALLER,
            (event.sender,),
            sum(task.who == event.sender for task in new),
            *caller,
        ),
        ("for this subject", _FOR_SUBJECT, (subject,), sum(task.subject == subject for task in new), *about),
        ("in all", _IN_ALL, (), len(new), bounds.in_all, "max_approvals"),
    ):
        (count,) = connection.execute(sql, values).fetchone()
        if count + more >= most:
            raise RequestError(
                "busy", f"{count + more} tasks {what} are open; the limit is {most} ({setting})"
            )


def _verdict(uncommitted: Uncommitted, event: Event, task: Task, now: Moment) -> Event:
    body: Any = event.body
    private: Any = event.private or {}
    if event.person is None:
        raise RequestError(
            "unauthorized",
            "task: the setting people does not say who this caller is",
            reason_code="approval_insufficient",
        )
    _check_open(task, now)
    consent = private.get("consent")
    verdict = _verdict_of(event, task, consent, now)
    if (problem := problem_of(task, verdict)) is not None:
        raise RequestError("unauthorized", f"task: {problem}", reason_code="approval_insufficient")
    uncommitted.verdicts.setdefault(task.id, []).append(verdict)
    recorder = None if event.recorder is None else event.recorder.name
    named: dict[str, Json] = {
        "approver": verdict.name,
        "role": ", ".join(verdict.roles) or None,
        "roles": list(verdict.roles),
        "groups": list(verdict.groups),
        "recorded_by": recorder,
        "evidence": verdict.evidence,
        "comment": private.get("comment"),
    }
    plain: dict[str, Json] = {
        "verdict": "approved" if verdict.approves else "rejected",
        "channel": verdict.channel,
        "step": sum(other.approves for other in task.verdicts) + 1,
        "parties": list(verdict.parties),
    }
    kept = {name: value for name, value in private.items() if name not in ("consent", "comment")}
    return replace(
        event,
        subject_id=task.decision_id,
        body=body | {name: value for name, value in plain.items() if value not in (None, [])},
        private=kept | {name: value for name, value in named.items() if value not in (None, [])},
    )


def _verdict_of(event: Event, task: Task, consent: Any, now: Moment) -> Verdict:
    person, recorder = event.person, event.recorder
    assert person is not None  # noqa: S101  checked by the caller
    persons = [person] if recorder is None else [person, recorder]
    return Verdict(
        name=person.name,
        approves=event.body["verdict"] == "approved",  # type: ignore[index]
        roles=person.roles,
        groups=person.groups,
        parties=_parties(persons, event.sender, task),
        channel=None if consent is None else consent["channel"],
        evidence=None if consent is None else consent.get("evidence"),
        recorded_by=None if recorder is None else recorder.name,
        at=events.timestamp(event.at),
        moment=now,
    )


def _parties(persons: Iterable[Person], sender: str | None, task: Task) -> tuple[Party, ...]:
    """What the persons are to the question; a subject whose name was erased may be any of them."""
    parties: list[Party] = []
    if task.subject is None or any(person.is_called(task.subject) for person in persons):
        parties.append("subject")
    callers = {task.who, task.requested_by} - {None}
    if sender in callers or any(person.is_called(who) for person in persons for who in callers if who):
        parties.append("caller")
    return tuple(parties)


def _end(uncommitted: Uncommitted, event: Event, task: Task, now: Moment) -> Event:
    body: Any = event.body
    status = body.get("status", "cancelled")
    if status == "cancelled":
        if event.sender is None or event.sender != task.requested_by:
            raise RequestError("unauthorized", "task: only the caller that requested it may cancel it")
        if task.state(now) != "approved":
            _check_open(task, now)
        elif task.is_spent:
            raise RequestError(
                "conflict", "task: it has lifted a decision already", reason_code="invalid_task_state"
            )
    elif task.ended is not None or task.state(now) != "expired":
        raise RequestError("conflict", f"task: is {task.state(now)}", reason_code="invalid_task_state")
    uncommitted.ends[task.id] = status
    return replace(event, subject_id=task.decision_id, body=body | {"status": status})


def _check_open(task: Task, now: Moment) -> None:
    """Refuse a change of a task that no verdict can change any more."""
    state = task.state(now)
    if state == "expired":
        raise RequestError(
            "expired", "task: it has expired; ask the question again", reason_code="task_expired"
        )
    if state not in OPEN_STATES:
        raise RequestError("conflict", f"task: is {state} already", reason_code="invalid_task_state")


# ---------------------------------------------------------------- open tasks


class Changed(Struct):
    """Tasks that the events of a batch open, use or change otherwise."""

    opened: list[tuple[int, str, str]] = field(default_factory=list)
    used: list[tuple[str]] = field(default_factory=list)
    touched: dict[str, None] = field(default_factory=dict)

    def note(self, kind: str, seq: int, body: Any, approval_task: str | None) -> None:
        """Take an event as it is recorded."""
        if kind == "approval_request":
            self.opened.append((seq, body["id"], body["spec"].get("who") or ""))
        elif kind == "decision":
            if approval_task is not None:
                self.used.append((approval_task,))
        elif "task" in body:
            self.touched[body["task"]] = None

    def keep_open(self, connection: sqlite3.Connection) -> None:
        """Update `approvals_open`, inside the caller's transaction."""
        if self.opened:
            connection.executemany("INSERT OR REPLACE INTO approvals_open VALUES (?, ?, ?)", self.opened)
        if self.used:
            connection.executemany(_DELETE_SPENT, self.used)
        for task_id in self.touched:
            task = find(connection, task_id)
            if task is not None and (
                task.ended is not None or any(not verdict.approves for verdict in task.verdicts)
            ):
                connection.execute(_DELETE, (task_id,))
