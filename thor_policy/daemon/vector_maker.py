"""The maker of vectors: the situation of each decision, embedded after it and off its path.

Owns when they are made, and the embedder, which is loaded when the first one is due. Invariant: a turn embeds
at most `PAGE` situations, each alone, while nothing waits; the journal stores none that an erasure overtook.
The maintenance thread, between its jobs. Counters and `problem` may be read from any thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial

from thor_policy.core.errors import CatalogError, JournalError
from thor_policy.core.recall import Embedder
from thor_policy.core.situations import situation_in
from thor_policy.journal import vectors
from thor_policy.journal.maintenance.tasks import result_of
from thor_policy.journal.reader import Reader
from thor_policy.journal.vectors import Made
from thor_policy.journal.writer import Journal

log = logging.getLogger(__name__)

#: Situations of one turn: each takes some milliseconds of one core. Storing them is one transaction.
PAGE = 5
#: Vectors that are looked at together where another embedder may have made them.
OTHERS_PAGE = 1_000
#: Seconds until it looks again, when every decision has its vector.
REST_S = 5.0
#: A turn is postponed at most so often in a row while requests wait.
MOST_POSTPONED = 50


class VectorMaker:
    """Makes at most `per_s` vectors each second; 0: none.

    `open_embedder` raises CatalogError where there is none: then nothing is made, and `problem` says why.
    `busy` is true while requests wait. Times are monotonic nanoseconds.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        per_s: int,
        open_embedder: Callable[[], Embedder],
        busy: Callable[[], bool] = lambda: False,
        now_ns: int,
    ) -> None:
        self._journal = journal
        self._each_ns = 10**9 // per_s if per_s else 0
        self._open_embedder = open_embedder
        self._embedder: Embedder | None = None
        self._busy = busy
        self._due_ns = now_ns
        self._postponed = 0
        #: Why there are no vectors; None while they are made.
        self.problem: str | None = None if per_s else "embeddings_per_s is 0"
        #: Vectors that were stored, that an erasure overtook, situations that could not be read, and turns
        #: that could not read or write the journal.
        self.counters = Counter(vectors_made=0, vectors_overtaken=0, vectors_empty=0, vectors_failed=0)

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until the next turn; None: never."""
        return max(0, self._due_ns - now_ns) / 1e9 if self._each_ns else None

    def turn(self, now_ns: int) -> None:
        """Make the next vectors. No error is raised."""
        self._due_ns = now_ns + PAGE * self._each_ns
        if self._busy() and self._postponed < MOST_POSTPONED:
            self._postponed += 1
            return
        self._postponed = 0
        try:
            made = self._make()
        except CatalogError as error:
            self.problem = str(error)
            log.info("no precedents by similarity: %s", error)
            self._each_ns = 0
            return
        except Exception as error:  # a damaged file may raise anything, and the thread must go on
            self.counters["vectors_failed"] += 1
            log.warning("vectors of situations could not be made: %s", error)
            made = 0
        if not made:
            self._due_ns = now_ns + int(REST_S * 1e9)

    def _make(self) -> int:
        """Make and store a page; returns how many were due. Raises CatalogError, JournalError."""
        try:
            reader = Reader(self._journal.path)
        except JournalError:
            if self._journal.seq == 0:
                return 0  # the file has no event yet
            raise
        with reader:
            decision_ids, newest = reader.vectors_due(PAGE)
            if not decision_ids:
                return 0
            embedder = self._embedder or self._open()
            made = [self._of(reader, embedder, decision_id, newest) for decision_id in decision_ids]
        stored = result_of(self._journal.run(partial(vectors.store, embedder=embedder.name, made=made)))
        self.counters["vectors_made"] += stored
        self.counters["vectors_overtaken"] += len(made) - stored
        return len(made)

    def _open(self) -> Embedder:
        """Open the embedder; vectors that another one made are due again."""
        self._embedder = embedder = self._open_embedder()
        after: int | None = 0
        while after is not None:
            empty = partial(vectors.empty_others, embedder=embedder.name, after=after, limit=OTHERS_PAGE)
            after = result_of(self._journal.run(empty))
        return embedder

    def _of(self, reader: Reader, embedder: Embedder, decision_id: str, newest: int) -> Made:
        decision = reader.get(decision_id) or {}
        vector = b""
        try:
            _, event = reader.recorded(decision_id)
            text = situation_in(event["private"], decision)
        except Exception as error:  # one that cannot be read keeps no other from being made
            self.counters["vectors_empty"] += 1
            log.warning("the situation of the decision %s could not be read: %s", decision_id, error)
            text = ""
        if text:
            vector = embedder.embed(text).astype("<f2").tobytes()
        return Made(seq=decision["seq"], vector=vector, upto_seq=newest)
