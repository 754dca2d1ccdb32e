"""The maintenance thread: long work on the journal, one task at a time, while decisions go on.

Owns who does it. Invariant: that of `JobThread`; a calibration counts only once it is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from thor_policy.core.records import Calibration, Maintenance
from thor_policy.core.requests import Caller, Json
from thor_policy.core.results import JobDone
from thor_policy.daemon.job_thread import JobThread
from thor_policy.journal.maintenance.dispatch import run_maintenance
from thor_policy.journal.writer import Journal


@dataclass(frozen=True)
class _Job:
    """A task on the journal, and who wants it done."""

    maintenance: Maintenance
    caller: Caller

    @property
    def task(self) -> str:
        return self.maintenance.task


class MaintenanceThread(JobThread[_Job]):
    """Maintains `journal`; `on_calibration` gets each calibration once it is recorded, on this thread."""

    def __init__(
        self,
        journal: Journal,
        on_outcome: Callable[[int, JobDone], None],
        *,
        on_calibration: Callable[[Calibration], None] = lambda _: None,
    ) -> None:
        self._journal = journal
        self._on_calibration = on_calibration
        super().__init__("maintenance", on_outcome)

    def submit(self, ticket: int, maintenance: Maintenance, caller: Caller) -> None:
        """Queue a task that `caller` asks for; returns at once."""
        self._submit(ticket, _Job(maintenance, caller))

    def _perform(self, job: _Job) -> dict[str, Json]:
        maintenance, caller = job.maintenance, job.caller
        done = run_maintenance(
            self._journal,
            maintenance,
            by_uid=caller.uid,
            by_key=caller.key,
            progress=lambda _: self.pulse.beat(),
        )
        if maintenance.calibration is not None:
            self._on_calibration(maintenance.calibration)
        return done
