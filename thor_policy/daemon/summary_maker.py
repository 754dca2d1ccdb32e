"""The maker of context summaries: a text for each decision, made after it and off its path.

Owns when they are made. Invariant: a turn makes at most `PAGE` texts, from what is committed, while nothing
waits; the journal stores one only if nothing was recorded about its decision meanwhile. A text that cannot be
made is counted and stored empty, so that it keeps no other from being made. The maintenance thread, between
its jobs. Counters may be read from any thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial

from thor_policy.core.errors import JournalError
from thor_policy.core.summaries import summary
from thor_policy.journal import summaries
from thor_policy.journal.maintenance.tasks import result_of
from thor_policy.journal.reader import Reader
from thor_policy.journal.summaries import Made
from thor_policy.journal.writer import Journal

log = logging.getLogger(__name__)

#: Texts of one turn. Storing them is one transaction.
PAGE = 25
#: Seconds until it looks again, when every decision has its summary.
REST_S = 5.0
#: A turn is postponed at most so often in a row while requests wait.
MOST_POSTPONED = 10


class SummaryMaker:
    """Makes at most `per_s` summaries each second; 0: none.

    `template_of` gets the version of a pack, as tables show it, and a type of decision; None: the default
    template. `busy` is true while requests wait. Times are monotonic nanoseconds.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        per_s: int,
        template_of: Callable[[str | None, str], str | None] = lambda *_: None,
        busy: Callable[[], bool] = lambda: False,
        now_ns: int,
    ) -> None:
        self._journal = journal
        self._each_ns = 10**9 // per_s if per_s else 0
        self._template_of = template_of
        self._busy = busy
        self._due_ns = now_ns
        self._postponed = 0
        #: Texts that were stored, that could not be made, and that were made again because of a later record;
        #: turns that could not read or write the journal.
        self.counters = Counter(
            summaries_made=0, summaries_empty=0, summaries_overtaken=0, summaries_failed=0
        )

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until the next turn; None: never."""
        return max(0, self._due_ns - now_ns) / 1e9 if self._each_ns else None

    def turn(self, now_ns: int) -> None:
        """Make the next summaries. No error is raised."""
        self._due_ns = now_ns + PAGE * self._each_ns
        if self._busy() and self._postponed < MOST_POSTPONED:
            self._postponed += 1
            return
        self._postponed = 0
        try:
            made = self._make()
            if made:
                stored = result_of(self._journal.run(partial(summaries.store, made=made)))
                self.counters["summaries_made"] += stored
                self.counters["summaries_overtaken"] += len(made) - stored
        except Exception as error:  # a damaged file may raise anything, and the thread must go on
            self.counters["summaries_failed"] += 1
            log.warning("context summaries could not be made: %s", error)
            made = []
        if not made:
            self._due_ns = now_ns + int(REST_S * 1e9)

    def _make(self) -> list[Made]:
        try:
            reader = Reader(self._journal.path)
        except JournalError:
            if self._journal.seq == 0:
                return []  # the file has no event yet
            raise
        with reader:
            decision_ids, newest = reader.summaries_due(PAGE)
            return [
                Made(decision_id=decision_id, text=self._text(reader, decision_id), upto_seq=newest)
                for decision_id in decision_ids
            ]

    def _text(self, reader: Reader, decision_id: str) -> str:
        try:
            trace = reader.trace(decision_id)
            decision = trace["decision"]
            return summary(trace, self._template_of(decision["prompt_version"], decision["decision_type"]))
        except Exception as error:
            self.counters["summaries_empty"] += 1
            log.warning("the summary of the decision %s could not be made: %s", decision_id, error)
            return ""
