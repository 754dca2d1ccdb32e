"""The approvals of a running daemon: which one lifts an outcome, which tasks there are, which have expired.

Owns the claims of decisions that use an approval and are not committed yet. Invariant: the state of a task is
what the journal holds, whose writer checks each use again; while a decision that uses an approval is on its
way to the journal, no other one gets it. An error of the journal is an approval that does not help. `honour`
is called by the threads that decide; `tasks` by the main thread; `turn` by the maintenance thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

from thor_policy.core.approvals import OPEN_STATES, State, Task, refusal_of
from thor_policy.core.errors import RequestError
from thor_policy.core.lifting import APPROVAL_CODES, Use
from thor_policy.core.records import ApprovalQuery
from thor_policy.core.requests import Caller, Json, Role
from thor_policy.core.results import JobDone
from thor_policy.core.status import ApprovalsStatus
from thor_policy.journal import approval_tasks, events
from thor_policy.journal.reader import Reader
from thor_policy.journal.trace_queries import Connection
from thor_policy.journal.writer import Journal
from thor_policy.policy.lifting import Reasked
from thor_policy.protocol.replies import task_item

log = logging.getLogger(__name__)

#: Seconds between two looks for tasks that have expired, at least; and by how much longer than a look.
SWEEP_S, SWEEP_SHARE = 1.0, 20
#: A search for tasks that have ended looks at so many times its limit.
SEARCHED = 4
#: Callers with one of these roles see the tasks of others.
SEES_ALL: frozenset[Role] = frozenset({"approve", "review", "control"})


class ApprovalTasks:
    """The approvals that `journal` keeps; its clocks are theirs."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._reader: Reader | None = None
        #: The task that the decision of a ticket uses, until that decision has its fate.
        self._claims: dict[int, str] = {}
        self._due_ns = 0
        self._searches = ThreadPoolExecutor(1, thread_name_prefix="approvals")
        self._open: tuple[int, float] = (0, 0.0)
        #: Approvals that lifted an outcome, and those that did not help, by code; tasks that expired; looks
        #: at the journal that failed.
        self.counters = Counter(
            used=0, expired=0, unread=0, **{f"refused_{code}": 0 for code in APPROVAL_CODES}
        )

    # ------------------------------------------------------------ deciding

    def digest(self, content: bytes) -> str:
        """The keyed digest of what an approval is bound to."""
        return self._journal.digest(content)

    def honour(self, reasked: Reasked) -> Use:
        """Whether an approval lifts the outcome; if so, no other decision gets it until `settle`."""
        with self._lock:
            task = self._find(reasked.task)
            liftable = None if task is None else reasked.liftable.get(task.outcome)
            code = refusal_of(
                task,
                digest=None if task is None else self.digest(reasked.content(task.offer.binds)),
                who=reasked.who,
                stricter=task is not None and reasked.is_stricter_than(task.outcome),
                pack=reasked.pack,
                offer_now=None if liftable is None else liftable.lifted_by,
                binds_now=() if liftable is None else liftable.binds,
                now=self._journal.moment(),
            )
            single = task is not None and task.offer.lifted_by.uses == "once"
            if code is None and single and reasked.task in self._claims.values():
                code = "approval_used"
            if task is None or code is not None:
                self.counters[f"refused_{code}"] += 1
                return Use(task=reasked.task, code=code)
            if single:
                self._claims[reasked.ticket] = task.id
            self.counters["used"] += 1
            return Use(task=task.id, lifts=task.outcome, urgency=task.urgency)

    def settle(self, ticket: int | None) -> None:
        """The request of a ticket has its fate: recorded, lost or refused. Any thread."""
        if self._claims and ticket is not None:
            with self._lock:
                self._claims.pop(ticket, None)

    def _find(self, task_id: str) -> Task | None:
        """A task as the journal has it now; None if there is none, or if it cannot be read."""
        if not task_id:
            return None
        if (task := self._journal.approved.get(task_id)) is not None:
            return task
        for _ in range(2):  # the journal may have been opened anew
            try:
                if self._reader is None:
                    self._reader = Reader(self._journal.path, any_thread=True)
                return self._reader.task(task_id)
            except Exception as error:  # a damaged file may raise anything; then the approval does not help
                self.counters["unread"] += 1
                log.warning("an approval could not be read: %s", error)
                self._close()
        return None

    def close(self) -> None:
        """Release the journal."""
        self._searches.shutdown(cancel_futures=True)
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # ------------------------------------------------------------ reading

    def tasks(
        self,
        query: ApprovalQuery,
        caller: Caller,
        roles: Collection[Role],
        on_done: Callable[[JobDone], None],
    ) -> None:
        """Look up tasks; `on_done` gets the answer on the thread of searches. A caller sees its own."""
        sees_all, now = not SEES_ALL.isdisjoint(roles), self._journal.moment()

        def may_see(task: Task) -> bool:
            return sees_all or (caller.who is not None and caller.who in (task.who, task.requested_by))

        def look_up(connection: Connection) -> dict[str, Json]:
            if query.id is not None:
                task = approval_tasks.find(connection, query.id)
                if task is None or not may_see(task):
                    raise RequestError(
                        "not_found",
                        f"record.id: there is no task {query.id[:64]!r}",
                        reason_code="unknown_task",
                    )
                question = approval_tasks.question_of(connection, task.decision_id)
                return {"task": task_item(task, now) | {"question": question}}
            only_open = set(query.states) <= {*OPEN_STATES}
            candidates = (
                approval_tasks.newest_open(connection, 2 * query.limit, None if sees_all else caller.who)
                if only_open
                else approval_tasks.newest(connection, SEARCHED * query.limit)
            )
            matching = [task for task in candidates if may_see(task) and task.state(now) in query.states]
            return {"tasks": [task_item(task, now) for task in matching[: query.limit]]}

        def answer() -> None:
            try:
                with Reader(self._journal.path) as reader, reader.snapshot() as connection:
                    on_done(JobDone(look_up(connection)))
            except RequestError as error:
                on_done(JobDone(error))
            except Exception as error:  # a damaged file may raise anything, and somebody waits
                on_done(JobDone(RequestError("unavailable", f"the approvals could not be read: {error}")))

        self._searches.submit(answer)

    # ------------------------------------------------------------ expiry

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until the next look for tasks that have expired."""
        return max(0, self._due_ns - now_ns) / 1e9

    def turn(self, now_ns: int) -> None:
        """Record which tasks have expired, so that no clock revives them. No error is raised."""
        self._due_ns = now_ns + int(SWEEP_S * 1e9)
        if self._journal.failing is None:
            begun_ns = time.monotonic_ns()
            self._look()
            self._due_ns += SWEEP_SHARE * (time.monotonic_ns() - begun_ns)

    def _look(self) -> None:
        try:
            with Reader(self._journal.path) as reader, reader.snapshot() as connection:
                tasks = approval_tasks.open_tasks(connection)
        except Exception as error:  # a damaged file may raise anything, and the thread must go on
            if self._journal.seq:
                self.counters["unread"] += 1
                log.warning("the open approvals could not be read: %s", error)
            return
        now = self._journal.moment()
        pending = []
        for task in tasks:
            state: State = task.state(now)
            if state == "expired":
                self.counters["expired"] += 1
                self._journal.append(events.approval_end(task.id, task.decision_id, "expired", now.at))
            elif state in OPEN_STATES:
                pending.append(task)
        oldest = max((max(0.0, now.at - task.requested.at) for task in pending), default=0.0)
        self._open = len(pending), oldest

    def status(self) -> ApprovalsStatus:
        """What is open, as the newest look found it."""
        pending, oldest_s = self._open
        return ApprovalsStatus(pending=pending, oldest_s=round(oldest_s, 1), counters=dict(self.counters))
