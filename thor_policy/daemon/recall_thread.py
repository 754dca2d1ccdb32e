"""The recall thread: it owns the index of precedents, and searches it for requests and for decisions.

Owns when the index is made and read. Invariant: each submitted job gets exactly one answer; a look-up for a
decision goes before every other; the index grows by one page between two jobs, so that making it delays none
by more. It reads the journal on a connection of its own and never writes. The main thread submits; nothing
waits for this thread without a limit.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import to_builtins

from thor_policy.core.errors import CatalogError, RequestError, ThorPolicyError, shutting_down
from thor_policy.core.recall import Embedder, SimilarQuery, Weights
from thor_policy.core.requests import Json
from thor_policy.core.results import JobDone
from thor_policy.core.status import RecallStatus
from thor_policy.journal.reader import Reader
from thor_policy.telemetry import logs
from thor_policy.trace.precedents import Recall

log = logging.getLogger(__name__)

#: Searches that may wait.
MOST_WAITING = 64
#: Seconds between two looks for new vectors while no job comes.
REFRESH_S = 1.0
#: A job of a decision, and one of a request.
URGENT, USUAL = 0, 1


@dataclass(order=True)
class _Job:
    """A search; `done` gets its answer, on the recall thread."""

    urgency: int
    number: int
    work: Callable[[Recall], None] = field(compare=False)
    failed: Callable[[Exception], None] = field(compare=False)


class RecallThread:
    """Searches the journal at `path`.

    `open_embedder` raises CatalogError where there is none; then words and fields are compared alone. The
    embedder and the index are opened by the first job, or by `warm`. `most` vectors are held.
    """

    def __init__(
        self,
        path: Path,
        *,
        open_embedder: Callable[[], Embedder],
        weights: Weights = Weights(),  # noqa: B008  it is frozen
        most: int = 1_000_000,
        refresh_s: float = REFRESH_S,
    ) -> None:
        self._path, self._open_embedder = path, open_embedder
        self._weights, self._most, self._refresh_s = weights, most, refresh_s
        self._jobs: list[_Job] = []
        self._number = 0
        self._due = threading.Condition()
        self._stopping = False
        self._reader: Reader | None = None
        self._recall: Recall | None = None
        self._limit = logs.Limit()
        #: Searches that were answered, that were refused because too many waited, and that failed.
        self.counters = Counter(searches=0, refused=0, failed=0)
        self.ms_total = self.ms_max = 0.0
        self._thread = threading.Thread(target=self._run, name="recall", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ any thread

    def similar(self, query: SimilarQuery, on_done: Callable[[JobDone], None]) -> None:
        """Search; `on_done` gets `{"similar": ..}` or why not, on the recall thread. Raises RequestError."""
        now = time.time()

        def work(recall: Recall) -> None:
            answer: dict[str, Json] = to_builtins(recall.search(query, now=now))
            on_done(JobDone({"similar": answer}))

        def failed(error: Exception) -> None:
            known = isinstance(error, RequestError)
            on_done(JobDone(error if known else RequestError("unavailable", f"the search failed: {error}")))  # type: ignore[arg-type]

        self.submit(work, failed, urgency=USUAL)

    def submit(
        self, work: Callable[[Recall], None], failed: Callable[[Exception], None], *, urgency: int
    ) -> None:
        """Queue a job.

        `work` is called on the recall thread, or `failed`. Raises RequestError if it is full.
        """
        with self._due:
            if self._stopping:
                raise shutting_down()
            if len(self._jobs) >= MOST_WAITING:
                self.counters["refused"] += 1
                raise RequestError("busy", f"{MOST_WAITING} searches wait already", retry_after_ms=100)
            self._number += 1
            heapq.heappush(self._jobs, _Job(urgency, self._number, work, failed))
            self._due.notify()

    def warm(self) -> None:
        """Open the embedder and make the index now, before the first job. Returns at once."""
        self.submit(lambda _: None, lambda _: None, urgency=USUAL)

    def status(self) -> RecallStatus:
        """How many vectors there are, and why there are none. Any thread."""
        recall = self._recall
        index = None if recall is None else recall.index
        searches = self.counters["searches"]
        return RecallStatus(
            vectors=0 if index is None else len(index),
            index_mb=0 if index is None else index.size_bytes >> 20,
            problem=None if recall is None else recall.problem,
            mean_ms=round(self.ms_total / searches, 3) if searches else 0.0,
            max_ms=round(self.ms_max, 3),
            counters=dict(self.counters),
        )

    def stop(self, timeout_s: float) -> None:
        """Refuse what waits, and end."""
        with self._due:
            self._stopping = True
            left, self._jobs = self._jobs, []
            self._due.notify()
        for job in left:
            job.failed(shutting_down())
        self._thread.join(timeout_s)

    # ------------------------------------------------------------ the recall thread

    def _run(self) -> None:
        behind = False  # whether the journal may have vectors that the index lacks
        while True:
            with self._due:
                if not self._jobs and not self._stopping and not behind:
                    self._due.wait(None if self._recall is None else self._refresh_s)
                if self._stopping:
                    break
                job = heapq.heappop(self._jobs) if self._jobs else None
            if job is not None:
                self._perform(job)
                behind = True
            else:
                behind = self._follow()
        self._close()

    def _perform(self, job: _Job) -> None:
        started_ns = time.monotonic_ns()
        try:
            job.work(self._opened())
        except Exception as error:  # a damaged file may raise anything, and somebody waits
            self.counters["failed"] += 1
            if not isinstance(error, RequestError):
                self._note(error)
                self._close()
            job.failed(error)
            return
        took_ms = (time.monotonic_ns() - started_ns) / 1e6
        self.counters["searches"] += 1
        self.ms_total += took_ms
        self.ms_max = max(self.ms_max, took_ms)

    def _follow(self) -> bool:
        """Take in a page of new vectors; False when there is none."""
        try:
            return self._recall is not None and self._recall.step()
        except Exception as error:  # as above
            self._note(error)
            self._close()
            return False

    def _opened(self) -> Recall:
        if self._recall is None:
            embedder, problem = None, None
            try:
                embedder = self._open_embedder()
            except CatalogError as error:
                problem = str(error)
            self._reader = Reader(self._path)
            self._recall = Recall(
                self._reader, embedder=embedder, problem=problem, weights=self._weights, most=self._most
            )
        return self._recall

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = self._recall = None

    def _note(self, error: Exception) -> None:
        if (unlogged := self._limit.admit(time.monotonic_ns())) is not None:
            known = isinstance(error, ThorPolicyError)
            log.warning(
                "precedents could not be searched: %s",
                error,
                extra=logs.fields(unlogged=unlogged or None),
                exc_info=not known,
            )
