"""Values that programs push, each for a time.

Owns the store of pushed values. Invariant: a value counts until its time is over and not a moment longer; the
store is in memory, so none survives a restart: a source whose values are gone says that it has none, and a
required one then fails. A caller holds a bounded number and size. Any thread.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from thor_policy.core import strict_json
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.core.sources import Push
from thor_policy.policy.source_specs import Pushed, SourceSpec
from thor_policy.sources.source import Found, SourceError, at_time, found_in, listed


class _Entry(NamedTuple):
    by: str
    size: int
    until_ns: int
    pushed_ns: int
    at: float
    push: Push


class PushedValues:
    """What was pushed, by source, type and id. A caller may hold `most` entries of `most_bytes` in all."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, str, str], _Entry] = OrderedDict()
        self._held: Counter[str] = Counter()
        self._held_bytes: Counter[str] = Counter()
        #: What came of pushes, and values whose time was over.
        self.counters = Counter(pushed=0, refused=0, expired=0)

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, push: Push, by: str, *, at: float, now_ns: int) -> None:
        """Keep the values of one entity, in place of those that were pushed before; `by` is `Caller.who`.

        `at` is Unix time, `now_ns` the same moment on the monotonic clock. Raises RequestError `busy` if the
        caller holds too much already.
        """
        key = push.source, push.type, push.id
        size = sum(map(len, key)) + len(strict_json.encode(push.values))
        with self._lock:
            before = self._entries.get(key)
            own = before is not None and before.by == by
            held, held_bytes = (
                self._held[by] - own,
                self._held_bytes[by] - (before.size if before and own else 0),
            )
            if held >= self._most or held_bytes + size > self._most_bytes:
                self._expire(by, now_ns)
                before = self._entries.get(key)
                own = before is not None and before.by == by
                held = self._held[by] - own
                held_bytes = self._held_bytes[by] - (before.size if before and own else 0)
            if held >= self._most or held_bytes + size > self._most_bytes:
                self.counters["refused"] += 1
                raise RequestError(
                    "busy",
                    f"record: you hold {held} pushed entities of {held_bytes} bytes; the limits are "
                    f"{self._most} (max_pushed) and {self._most_bytes} (max_pushed_mb): push fewer, or for a "
                    "shorter time",
                )
            if before is not None:
                self._remove(key)
            until_ns = now_ns + int(push.ttl_s * 1e9)
            self._entries[key] = _Entry(by, size, until_ns, now_ns, at, push)
            self._held[by] += 1
            self._held_bytes[by] += size
            self.counters["pushed"] += 1

    def get(
        self, source: str, type: str, id: str, now_ns: int, max_ttl_s: float
    ) -> tuple[Push, float] | None:
        """What was pushed of an entity and when (Unix seconds); None if nothing counts now."""
        key = source, type, id
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if now_ns >= min(entry.until_ns, entry.pushed_ns + int(max_ttl_s * 1e9)):
                self._remove(key)
                self.counters["expired"] += 1
                return None
            return entry.push, entry.at

    def ids(self, source: str, type: str, now_ns: int) -> list[str]:
        """The ids of the entities of a type that have values now."""
        with self._lock:
            return [
                id
                for (own, kind, id), entry in self._entries.items()
                if (own, kind) == (source, type) and now_ns < entry.until_ns
            ]

    def _expire(self, by: str, now_ns: int) -> None:
        """Forget what a caller pushed and what counts no longer."""
        for key in [k for k, entry in self._entries.items() if entry.by == by and now_ns >= entry.until_ns]:
            self._remove(key)
            self.counters["expired"] += 1

    def _remove(self, key: tuple[str, str, str]) -> None:
        entry = self._entries.pop(key)
        self._held[entry.by] -= 1
        self._held_bytes[entry.by] -= entry.size
        if not self._held[entry.by]:
            del self._held[entry.by], self._held_bytes[entry.by]


class PushedSource:
    """The values that were pushed for the source `name`; `clock_ns` is monotonic.

    An entity without values is a failure, not an absence: nobody knows what it would be.
    """

    problem: str | None = None

    def __init__(
        self, name: str, spec: SourceSpec, pushed: Pushed, store: PushedValues, clock_ns: Callable[[], int]
    ) -> None:
        self._name, self._spec, self._pushed = name, spec, pushed
        self._store, self._clock_ns = store, clock_ns

    def look_up(self, type: str, id: str, deadline_ns: int) -> Found | None:
        kept = self._store.get(self._name, type, id, self._clock_ns(), self._pushed.max_ttl_s)
        if kept is None:
            raise SourceError("nothing was pushed, or its time is over")
        push, at = kept
        result = found_in(self._spec, push.values, fresh_at=push.fresh_at or at_time(at))
        quality: Json = push.quality if result.quality is None else result.quality
        return Found(values=result.values, fresh_at=result.fresh_at, quality=quality)

    def listing(self, type: str, deadline_ns: int) -> list[str]:
        return listed(self._store.ids(self._name, type, self._clock_ns()))

    def close(self) -> None:
        pass
