"""Scores of questions that were asked before.

Owns the cache. Invariant: it holds scores, not decisions, so rules apply to each request anew. Engine
thread; the counters may be read from any.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from thor_policy.core.decisions import Scored


class ScoreCache:
    """Scores of questions that were asked before, newest last; at most `size`, each for `ttl_s`.

    The key is all that a score follows from: pack, weights, build and the question as rendered, which holds
    the evaluation and the facts that rules made of it. Rules are applied to each request anew, so an answer
    from here is as strict as any. Times are monotonic nanoseconds.
    """

    def __init__(self, size: int, ttl_s: float) -> None:
        self._size, self._ttl_ns = size, int(ttl_s * 1e9)
        #: What became of each question (`hits`, `misses`), and of scores that are kept no more.
        self.counters = Counter(hits=0, misses=0, expired=0, evicted=0)
        self._found: OrderedDict[tuple[str, ...], tuple[int, str, Scored]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: tuple[str, ...], now_ns: int) -> tuple[str, Scored] | None:
        """The decision that was first given this score, and the score; None if there is none, or too old."""
        entry = self._found.get(key)
        if entry is None or now_ns - entry[0] > self._ttl_ns:
            self.counters["misses"] += 1
            self.counters["expired"] += self._found.pop(key, None) is not None
            return None
        self.counters["hits"] += 1
        self._found.move_to_end(key)
        return entry[1], entry[2]

    def put(self, key: tuple[str, ...], decision_id: str, scored: Scored, now_ns: int) -> None:
        """Keep a score; the one that was not used for longest makes room."""
        if self._size == 0:
            return
        self._found[key] = (now_ns, decision_id, scored)
        self._found.move_to_end(key)
        if len(self._found) > self._size:
            self._found.popitem(last=False)
            self.counters["evicted"] += 1

    def clear(self) -> None:
        """Forget everything."""
        self._found.clear()
