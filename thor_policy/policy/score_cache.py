"""The score cache: model scores of earlier questions.

Owns the cache. Invariant: it holds scores, not decisions, so the rules are applied to every request; what it
holds weighs at most `MOST_BYTES`. Engine thread; any thread may read the counters.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from thor_policy.core.decisions import Scored
from thor_policy.policy.text_cache import weight

#: What the scores and their questions may weigh, in bytes.
MOST_BYTES = 64 * 2**20
#: Bytes of a score without its numbers, and of a number in it.
_SCORE_BYTES, _NUMBER_BYTES = 2048, 48


class ScoreCache:
    """Scores of earlier questions, the last used one last: at most `size`, each for `ttl_s` seconds.

    They weigh at most `most_bytes`; a score that weighs more is not kept.

    The key holds everything that a score depends on: pack, weights, build, and the rendered question with the
    evaluation and its facts. The rules are applied to every request, so a decision with a cached score is as
    strict as any other. Times are monotonic nanoseconds.
    """

    def __init__(self, size: int, ttl_s: float, most_bytes: int = MOST_BYTES) -> None:
        self._size, self._ttl_ns, self._most_bytes = size, int(ttl_s * 1e9), most_bytes
        #: What the scores weigh, in bytes.
        self.bytes = 0
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
            self.counters["expired"] += self._remove(key)
            return None
        self.counters["hits"] += 1
        self._entries.move_to_end(key)
        return entry[1], entry[2]

    def put(self, key: tuple[str, ...], decision_id: str, scored: Scored, now_ns: int) -> None:
        """Keep a score; above `size` and `most_bytes`, remove the least recently used ones."""
        if self._size == 0:
            return
        self._remove(key)
        self._entries[key] = (now_ns, decision_id, scored)
        self.bytes += _weight(key, scored)
        while len(self._entries) > self._size or self.bytes > self._most_bytes:
            self._remove(next(iter(self._entries)))
            self.counters["evicted"] += 1

    def clear(self) -> None:
        """Remove every score."""
        self._entries.clear()
        self.bytes = 0

    def _remove(self, key: tuple[str, ...]) -> bool:
        """Remove a score; False if there is none."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= _weight(key, entry[2])
        return entry is not None


def _weight(key: tuple[str, ...], scored: Scored) -> int:
    """Most bytes of a score with its key."""
    numbers = len(scored.suffix_tokens) + len(scored.logits) + len(scored.probabilities)
    return _SCORE_BYTES + sum(map(weight, key)) + _NUMBER_BYTES * numbers
