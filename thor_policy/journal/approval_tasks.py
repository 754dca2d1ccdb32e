"""Tasks of approvals, as the tables of the journal have them.

Owns what makes a `Task` of the rows of `approval_requests`, `approvals`, `approval_ends` and `decisions`, and
the approved tasks that the writer keeps in memory. Invariant: a task is made of what is recorded, and of
nothing else; an erased name is no name. The queries on any connection; the writer alone changes `Approved`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from thor_policy.core.approvals import Moment, Task, Verdict
from thor_policy.core.decisions import PackInfo
from thor_policy.core.lifting import Offer
from thor_policy.core.requests import Json
from thor_policy.journal.rewrites import ERASED

#: Reads the timestamps of events.
_TIME = datetime.fromisoformat
#: Later than every recorded time.
_EVER = "~"


#: Approved tasks that are kept in memory until they are used, at most.
KEPT = 1_000


class Spec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a task was made of: `who` asked the question, `requested_by` the approval."""

    pack: PackInfo
    offer: Offer
    who: str | None = None
    requested_by: str | None = None


_specs = msgspec.json.Decoder(Spec)


class Approved:
    """Approved tasks that can still lift something, each as the newest commit left it: at most `KEPT`.

    The writer alone changes them, after each commit. Any thread may `get` one.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}

    def get(self, task_id: str) -> Task | None:
        return self._tasks.get(task_id)

    def renew(self, changed: Iterable[Task | None], used: Iterable[str]) -> None:
        """Take the tasks that a commit changed, and the ids of those that it used."""
        for task_id in used:
            self._tasks.pop(task_id, None)
        for task in changed:
            if task is None:
                continue
            self._tasks.pop(task.id, None)
            if task.ended is None and task.granted is not None and not task.is_spent:
                self._tasks[task.id] = task
                if len(self._tasks) > KEPT:
                    del self._tasks[next(iter(self._tasks))]

    def clear(self) -> None:
        """Forget all: the journal may hold something else now."""
        self._tasks.clear()


_TASK = """
SELECT r.id, r.decision_id, r.outcome, r.spec, r.urgency, r.reason, r.timestamp, e.boot_id, e.mono_ns,
       d.actor, d.action, d.entity
FROM approval_requests r LEFT JOIN events e ON e.seq = r.seq
LEFT JOIN decisions d ON d.decision_id = r.decision_id
"""
_VERDICTS = """
SELECT a.approver, a.verdict, a.roles, a.groups, a.parties, a.channel, a.recorded_by, a.timestamp, a.evidence,
       a.comment, e.boot_id, e.mono_ns
FROM approvals a LEFT JOIN events e ON e.seq = a.seq WHERE a.task = ? AND a.timestamp < ? ORDER BY a.seq
"""


def find(connection: sqlite3.Connection, task_id: str) -> Task | None:
    """A task by its id; None if there is none."""
    row = connection.execute(f"{_TASK} WHERE r.id = ?", (task_id,)).fetchone()
    return None if row is None else _read(connection, row)


def question_of(connection: sqlite3.Connection, decision_id: str) -> Json:
    """The question that a decision answered; None if it was erased."""
    row = connection.execute(
        "SELECT situation FROM decisions WHERE decision_id = ?", (decision_id,)
    ).fetchone()
    return None if row is None or row[0] is None else msgspec.json.decode(row[0])


def tasks_about(connection: sqlite3.Connection, decision_id: str, until: str = _EVER) -> list[Task]:
    """The tasks for a decision, in order of recording; what was recorded at `until` or later is left out."""
    rows = connection.execute(
        f"{_TASK} WHERE r.decision_id = ? AND r.timestamp < ? ORDER BY r.seq", (decision_id, until)
    ).fetchall()
    return [_read(connection, row, until) for row in rows]


def newest_open(connection: sqlite3.Connection, limit: int, caller: str | None = None) -> list[Task]:
    """The newest open tasks, newest first; of one caller, if it is given. Some may have expired."""
    rows = connection.execute(
        f"{_TASK} JOIN approvals_open o ON o.seq = r.seq WHERE o.caller = coalesce(?, o.caller) "
        "ORDER BY o.seq DESC LIMIT ?",
        (caller, limit),
    ).fetchall()
    return [_read(connection, row) for row in rows]


def open_tasks(connection: sqlite3.Connection, limit: int = 10_000) -> list[Task]:
    """Tasks that are not ended, spent or denied, in order of recording; some may have expired."""
    rows = connection.execute(
        f"{_TASK} JOIN approvals_open o ON o.seq = r.seq ORDER BY o.seq LIMIT ?", (limit,)
    ).fetchall()
    return [_read(connection, row) for row in rows]


def lifted_by_record(connection: sqlite3.Connection, seq: int) -> list[str]:
    """The decisions that the task lifted for which the event `seq` is a verdict; they show its names, too."""
    rows = connection.execute(
        "SELECT d.decision_id FROM approvals a JOIN decisions d ON d.approval_task = a.task WHERE a.seq = ?",
        (seq,),
    ).fetchall()
    return [decision_id for (decision_id,) in rows]


def newest(connection: sqlite3.Connection, limit: int) -> list[Task]:
    """The newest tasks, whatever their state, newest first."""
    rows = connection.execute(f"{_TASK} ORDER BY r.seq DESC LIMIT ?", (limit,)).fetchall()
    return [_read(connection, row) for row in rows]


def _read(connection: sqlite3.Connection, row: tuple[Any, ...], until: str = _EVER) -> Task:
    task_id, decision_id, outcome, spec_text, urgency, reason, at, boot_id, mono_ns, *rest = row
    actor, action, entity = rest
    spec = _specs.decode(spec_text)
    end = connection.execute(
        "SELECT status FROM approval_ends WHERE task = ? AND timestamp < ? ORDER BY seq LIMIT 1",
        (task_id, until),
    )
    ended = end.fetchone()
    uses = connection.execute(
        "SELECT decision_id FROM decisions WHERE approval_task = ? AND timestamp < ?", (task_id, until)
    ).fetchall()
    return Task(
        id=task_id,
        decision_id=decision_id,
        outcome=outcome,
        pack=spec.pack,
        offer=spec.offer,
        who=spec.who,
        requested_by=spec.requested_by,
        requested=moment_of(boot_id, mono_ns, at),
        requested_at=at,
        urgency=urgency or "normal",
        reason=reason,
        subject=unless_erased(actor),
        action=action,
        resource=entity,
        verdicts=tuple(
            Verdict(
                name=unless_erased(name),
                approves=verdict == "approved",
                roles=_names(roles),
                groups=_names(groups),
                parties=_names(parties),  # type: ignore[arg-type]
                channel=channel,
                recorded_by=recorded_by,
                at=given_at,
                evidence=evidence,
                comment=comment,
                moment=moment_of(given_boot, given_ns, given_at),
            )
            for (
                *(name, verdict, roles, groups, parties, channel, recorded_by, given_at, evidence, comment),
                given_boot,
                given_ns,
            ) in connection.execute(_VERDICTS, (task_id, until)).fetchall()
        ),
        ended=None if ended is None else ended[0],
        used_by=tuple(decision_id for (decision_id,) in uses),
    )


def unless_erased(name: str | None) -> str | None:
    """A name; None if it, or a part of it, was erased: nobody is known by what is left."""
    return None if name is None or ERASED in name else name


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(msgspec.json.decode(text)) if text else ()


def moment_of(boot_id: str | None, ns: int | None, at: str) -> Moment:
    """When an event was recorded. An archived one has only its wall time."""
    return Moment(boot_id or "", ns or 0, _TIME(at).timestamp())
