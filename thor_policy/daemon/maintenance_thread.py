"""The maintenance thread: long work on the journal, one task at a time, while decisions go on.

Owns who does it, and the turns of the background verifier, of the makers of summaries and vectors, and of
the approvals between the tasks. Invariant: that of `JobThread`; a calibration counts only once it is
recorded.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass

from thor_policy.core.records import Calibration, Maintenance
from thor_policy.core.requests import Caller, Json
from thor_policy.core.results import JobDone
from thor_policy.daemon.alerts import AlertWatch
from thor_policy.daemon.approvals import ApprovalTasks
from thor_policy.daemon.job_thread import JobThread
from thor_policy.daemon.memory import MemoryKeeper
from thor_policy.daemon.shipping import ShippingWatch
from thor_policy.daemon.summary_maker import SummaryMaker
from thor_policy.daemon.vector_maker import VectorMaker
from thor_policy.daemon.verifier import Verifier
from thor_policy.journal.maintenance.dispatch import run_maintenance
from thor_policy.journal.writer import Journal

#: Tasks that move or change what is stored, so that a round of the verifier must begin anew.
_REWRITING = ("archive", "erase")


@dataclass(frozen=True)
class _Job:
    """A task on the journal, and who wants it done."""

    maintenance: Maintenance
    caller: Caller

    @property
    def task(self) -> str:
        return self.maintenance.task


class MaintenanceThread(JobThread[_Job]):
    """Maintains `journal`; `on_calibration` gets each calibration once it is recorded, on this thread.

    `verifier`, `summaries`, `vectors`, `approvals`, `alerts`, `shipping` and `memory` have their turns while
    there is no task. `on_erasure` is called before an erasure and behind it.
    """

    def __init__(
        self,
        journal: Journal,
        on_outcome: Callable[[int, JobDone], None],
        *,
        on_calibration: Callable[[Calibration], None] = lambda _: None,
        verifier: Verifier | None = None,
        summaries: SummaryMaker | None = None,
        vectors: VectorMaker | None = None,
        approvals: ApprovalTasks | None = None,
        alerts: AlertWatch | None = None,
        shipping: ShippingWatch | None = None,
        memory: MemoryKeeper | None = None,
        on_erasure: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._on_erasure = on_erasure
        self._on_calibration = on_calibration
        self._verifier = verifier
        workers = (verifier, summaries, vectors, approvals, shipping, alerts, memory)
        self._idle = [worker for worker in workers if worker is not None]
        super().__init__("maintenance", on_outcome)

    def submit(self, ticket: int, maintenance: Maintenance, caller: Caller) -> None:
        """Queue a task that `caller` asks for; returns at once."""
        self._submit(ticket, _Job(maintenance, caller))

    def _take(self) -> tuple[int | None, _Job] | None:
        while True:
            now_ns = time.monotonic_ns()
            waits = [wait for worker in self._idle if (wait := worker.wait_s(now_ns)) is not None]
            try:
                item = self._queue.get(timeout=min(waits, default=None))
            except queue.Empty:
                for worker in self._idle:
                    if worker.wait_s(now_ns := time.monotonic_ns()) == 0:
                        worker.turn(now_ns)
                continue
            if self._verifier is not None and (item is None or item[1].task in _REWRITING):
                self._verifier.close()
            return item

    def _perform(self, job: _Job) -> dict[str, Json]:
        maintenance, caller = job.maintenance, job.caller
        if maintenance.task == "erase":
            self._on_erasure()
        done = run_maintenance(
            self._journal,
            maintenance,
            by_uid=caller.uid,
            by_key=caller.key,
            progress=lambda _: self.pulse.beat(),
        )
        if maintenance.task == "erase":
            self._on_erasure()  # for decisions that were made while it ran
        if maintenance.calibration is not None:
            self._on_calibration(maintenance.calibration)
        return done
