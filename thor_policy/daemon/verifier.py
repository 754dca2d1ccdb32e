"""The background verifier: is what the journal holds still what was recorded?

Owns the rounds of the check of the whole chain and its rows, archives included, while the daemon runs.
Invariant: a turn checks at most `PAGE` events on a read-only connection and leaves no transaction open; the
first damage is logged once and stays in `damage` until a whole round finds none. It does not compare the
chain with signed checkpoints: `thorpolicy log verify` does. The maintenance thread, between its jobs: an
archive or an erasure never runs during a turn, and a round begins anew after it. Its counters and results may
be read from any thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

from thor_policy.journal.verification.verify import Verdict, verify_slowly

log = logging.getLogger(__name__)

#: Events of one turn. Those of small questions take 1.5 ms (x86_64).
PAGE = 50
#: The rest after a round lasts as long as this many events.
REST_EVENTS = 10_000
#: A turn is postponed at most so often in a row while requests wait.
MOST_POSTPONED = 10


class Verifier:
    """Checks the journal at `path`, `events_per_s` each second; 0: never.

    `busy` is true while requests wait. `changes` is a number that grows when the writer opens the file again
    after an error of the disk; a round then begins anew. Times are monotonic nanoseconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        events_per_s: int,
        busy: Callable[[], bool] = lambda: False,
        changes: Callable[[], int] = lambda: 0,
        now_ns: int,
    ) -> None:
        self._path = path
        self._event_ns = 10**9 // events_per_s if events_per_s else 0
        self._busy = busy
        self._changes = changes
        self._seen_changes = changes()
        self._due_ns = now_ns + PAGE * self._event_ns
        self._postponed = 0
        self._steps: Generator[int, None, Verdict] | None = None
        #: Every event up to this one was found sound.
        self.verified_seq = 0
        #: The first damage that the newest round found; None: there is none so far.
        self.damage: str | None = None
        #: Whole rounds, those that ended at a damage, and those that could not read the file.
        self.counters = Counter(verify_rounds=0, verify_damaged=0, verify_failed=0)

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until the next turn; None: never."""
        return max(0, self._due_ns - now_ns) / 1e9 if self._event_ns else None

    def turn(self, now_ns: int) -> None:
        """Check the next events. No error is raised."""
        self._due_ns = now_ns + PAGE * self._event_ns
        if self._busy() and self._postponed < MOST_POSTPONED:
            self._postponed += 1
            return
        self._postponed = 0
        if (changes := self._changes()) != self._seen_changes:
            self._seen_changes = changes
            self.close()
        try:
            if self._steps is None:
                self._steps = verify_slowly(self._path, PAGE)
            self.verified_seq = max(self.verified_seq, next(self._steps))
        except StopIteration as end:
            self._ended(end.value, now_ns)
        except Exception as error:  # a damaged file may raise anything, and the thread must go on
            self.counters["verify_failed"] += 1
            log.warning("the journal could not be verified: %s", error)
            self._rest(now_ns)

    def close(self) -> None:
        """End the round; the next turn begins another."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def _ended(self, verdict: Verdict, now_ns: int) -> None:
        self._rest(now_ns)
        if verdict.problem is None:
            self.counters["verify_rounds"] += 1
            self.verified_seq = verdict.events
            if self.damage is not None:
                log.warning("the journal was verified again up to event %d: no damage", verdict.events)
            self.damage = None
            return
        self.counters["verify_damaged"] += 1
        self.verified_seq = verdict.events if verdict.bad_seq is None else verdict.bad_seq - 1
        if self.damage != verdict.problem:
            self.damage = verdict.problem
            log.critical("the journal is damaged: %s; run `thorpolicy log verify`", verdict.problem)

    def _rest(self, now_ns: int) -> None:
        self._steps = None
        self._due_ns = now_ns + REST_EVENTS * self._event_ns
