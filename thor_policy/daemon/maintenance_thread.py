"""The clerk: long work on the journal, one piece at a time, while decisions go on.

Owns a thread that may wait. Invariant: each piece of work ends in exactly one answer; when it is stopped,
what runs is finished, and what waits or comes later is refused.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable

from thor_policy.core.errors import JournalError, RequestError
from thor_policy.core.records import Calibration, Maintenance
from thor_policy.core.requests import Caller, Json
from thor_policy.core.results import JobDone
from thor_policy.journal.maintenance.dispatch import run_maintenance
from thor_policy.journal.writer import Journal
from thor_policy.telemetry.watchdog import Pulse

log = logging.getLogger(__name__)


class MaintenanceThread:
    """Does maintenance on `journal`, on a thread of its own; `tell` must not block.

    `calibrated` hears of each calibration that was recorded.
    """

    def __init__(
        self,
        journal: Journal,
        tell: Callable[[int, JobDone], None],
        *,
        calibrated: Callable[[Calibration], None] = lambda _: None,
    ) -> None:
        self._journal = journal
        self._tell = tell
        self._calibrated = calibrated
        self._stopping = False
        self._entry = threading.Lock()
        #: Beats with each bit of progress in a piece of work.
        self.pulse = Pulse()
        #: Pieces of work by what became of them.
        self.counters = Counter(done=0, failed=0, refused=0)
        #: What is being done.
        self.task: str | None = None
        self._queue: queue.SimpleQueue[tuple[int, Maintenance, Caller] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="clerk", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False when the thread has ended."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Pieces of work that have not begun."""
        return self._queue.qsize()

    def submit(self, ticket: int, maintenance: Maintenance, caller: Caller) -> None:
        """Queue a piece of work; returns at once. After a stop it is refused at once."""
        with self._entry:
            if not self._stopping:
                self._queue.put((ticket, maintenance, caller))
                return
            self.counters["refused"] += 1
        self._tell(ticket, JobDone(_stopping()))

    def stop(self, timeout_s: float) -> bool:
        """Finish what runs, then end; False if it did not within `timeout_s`."""
        with self._entry:
            self._stopping = True
            self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            ticket, maintenance, caller = item
            self.task = maintenance.task
            self.pulse.beat()
            self._tell(ticket, JobDone(self._do(maintenance, caller)))
            self.pulse.rest()
            self.task = None

    def _do(self, maintenance: Maintenance, caller: Caller) -> dict[str, Json] | RequestError:
        if self._stopping:
            with self._entry:
                self.counters["refused"] += 1
            return _stopping()
        try:
            done = run_maintenance(
                self._journal, maintenance, by_uid=caller.uid, by_key=caller.key, progress=self._beat
            )
            if maintenance.calibration is not None:
                self._calibrated(maintenance.calibration)
            self.counters["done"] += 1
            return {"done": done}
        except JournalError as error:
            self.counters["failed"] += 1
            return RequestError("unavailable", str(error))
        except Exception:
            self.counters["failed"] += 1
            log.exception("%s failed for a reason that no code foresaw", maintenance.task)
            return RequestError("internal", f"{maintenance.task} failed; the daemon's log says why")

    def _beat(self, _done: int) -> None:
        self.pulse.beat()


def _stopping() -> RequestError:
    return RequestError("shutting_down", "the daemon is stopping")
