"""A thread for long work: one job at a time, while decisions go on.

Owns the queue of jobs and the thread that performs them. Invariant: each job that was submitted with a
ticket ends in exactly one answer; a stop finishes the job that runs, and refuses those that wait or come
later. The thread may wait for the disk and for other threads.
"""

from __future__ import annotations

import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from thor_policy.core.errors import (
    CatalogError,
    EngineError,
    JournalError,
    PackError,
    RequestError,
    shutting_down,
)
from thor_policy.core.requests import Json
from thor_policy.core.results import JobDone
from thor_policy.telemetry.watchdog import Pulse

log = logging.getLogger(__name__)


class Job(Protocol):
    """Work that can be named: `task` is the task of a request."""

    @property
    def task(self) -> str: ...


J = TypeVar("J", bound=Job)


class JobThread(ABC, Generic[J]):
    """Performs jobs on a thread called `name`; `on_outcome` gets each answer there, and must not block.

    A subclass says in `_perform` what a job does, and how others submit one. It sets its own attributes
    before it calls this constructor, which starts the thread.
    """

    def __init__(self, name: str, on_outcome: Callable[[int, JobDone], None]) -> None:
        self._on_outcome = on_outcome
        self._stopping = False
        self._entry = threading.Lock()
        #: Beats with each bit of progress in a job.
        self.pulse = Pulse()
        #: Jobs by what became of them.
        self.counters = Counter(done=0, failed=0, refused=0)
        #: The task of the job that runs.
        self.task: str | None = None
        self._queue: queue.SimpleQueue[tuple[int | None, J] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False when the thread has ended."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return self._queue.qsize()

    def _submit(self, ticket: int, job: J) -> None:
        """Queue a job; returns at once. After a stop it is refused at once."""
        with self._entry:
            if not self._stopping:
                self._queue.put((ticket, job))
                return
            self.counters["refused"] += 1
        self._on_outcome(ticket, JobDone(shutting_down()))

    def _post(self, job: J) -> None:
        """Queue a job that nobody waits for; safe in a signal handler."""
        self._queue.put((None, job))

    def stop(self, timeout_s: float) -> bool:
        """Finish the job that runs, then end; False if it did not end within `timeout_s`."""
        with self._entry:
            self._stopping = True
            self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @abstractmethod
    def _perform(self, job: J) -> dict[str, Json]:
        """Do a job, and return what was done. A ThorPolicyError becomes the answer."""

    def _take(self) -> tuple[int | None, J] | None:
        """Wait for the next job; None: the end."""
        return self._queue.get()

    def _run(self) -> None:
        while (item := self._take()) is not None:
            ticket, job = item
            self.task = job.task
            self.pulse.beat()
            answer = self._answer(job)
            if ticket is not None:
                self._on_outcome(ticket, JobDone(answer))
            self.pulse.rest()
            self.task = None

    def _answer(self, job: J) -> dict[str, Json] | RequestError:
        if self._stopping:
            with self._entry:
                self.counters["refused"] += 1
            return shutting_down()
        try:
            done = self._perform(job)
        except Exception as error:
            self.counters["failed"] += 1
            return _refusal(job, error)
        self.counters["done"] += 1
        return {"done": done}


def _refusal(job: Job, error: Exception) -> RequestError:
    """The answer to a job that failed; an error that is none of ours is logged."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, PackError | CatalogError):
        return RequestError("bad_request", str(error))
    if isinstance(error, EngineError | JournalError):
        return RequestError("unavailable", str(error))
    log.error("%s failed with an unexpected error", job.task, exc_info=error)
    return RequestError("internal", f"{job.task} failed; the daemon's log says why")
