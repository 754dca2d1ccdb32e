"""The score cache: model scores of earlier questions.

Owns the cache. Invariant: it holds scores, not decisions, so the rules are applied to every request.
Engine thread; any thread may read the counters.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from thor_policy.core.decisions import Scored


class ScoreCache:
    """Scores of earlier questions, the last used one last: at most `size`, each for `ttl_s` seconds.

    The key holds everything that a score depends on: pack, weights, build, and the rendered question with the
    evaluation and its facts. The rules are applied to every request, so a decision with a cached score is as
    strict as any other. Times are monotonic nanoseconds.
    """

    def __init__(self, size: int, ttl_s: float) -> None:
        self._size, self._ttl_ns = size, int(ttl_s * 1e9)
        #: Look-ups (`hits`, `misses`) and removed scores (`expired`, `evicted`).
        self.counters = Counter(hits=0, misses=0, expired=0, evicted=0)
        self._entries: OrderedDict[tuple[str, ...], tuple[int, str, Scored]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: tuple[str, ...], now_ns: int) -> tuple[str, Scored] | None:
        """The id of the decision that first got this score, and the score; None if absent or too old."""
        entry = self._entries.get(key)
        if entry is None or now_ns - entry[0] > self._ttl_ns:
            self.counters["misses"] += 1
            self.counters["expired"] += self._entries.pop(key, None) is not None
            return None
        self.counters["hits"] += 1
        self._entries.move_to_end(key)
        return entry[1], entry[2]

    def put(self, key: tuple[str, ...], decision_id: str, scored: Scored, now_ns: int) -> None:
        """Keep a score; above `size`, remove the least recently used one."""
        if self._size == 0:
            return
        self._entries[key] = (now_ns, decision_id, scored)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
            self.counters["evicted"] += 1

    def clear(self) -> None:
        """Remove every score."""
        self._entries.clear()
