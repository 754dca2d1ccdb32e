"""A queue that serves callers in turn: each gets an equal share of the time that its work takes.

Owns the order of waiting work. Invariant: while two callers have work waiting, neither gets more than one
piece and its credit ahead of the other in time used; the connections of one caller take turns. What one
piece costs is known only when it is done, so the time is charged afterwards (start-time fair queueing). One
thread takes, any thread puts.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

#: Callers without waiting work whose used time is remembered, so that a pause does not clear it.
_REMEMBERED = 1_024


class Lane(NamedTuple):
    """Whose work it is: the caller's share, and the connection that it came by."""

    share: str
    connection: Hashable = None


#: The daemon's own work.
OWN = Lane("daemon")


class Debts:
    """Pieces of each caller that are done but for what follows them, such as their commit. Any thread.

    A caller with `most` of them waits in every queue that has these debts, until one is settled.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._owed: Counter[str] = Counter()
        self._wake: list[Callable[[], None]] = []

    def watch(self, wake: Callable[[], None]) -> None:
        """Call `wake` when a caller that waited need not wait any more."""
        self._wake.append(wake)

    def allow(self, most: int) -> None:
        """Let each caller have as many from now on."""
        more, self._most = most > self._most, most
        if more:
            for wake in self._wake:
                wake()

    def may(self, share: str) -> bool:
        """Whether this caller's next piece may be begun."""
        return self._owed[share] < self._most

    def owe(self, share: str) -> None:
        """A piece of this caller is done but for what follows it."""
        with self._lock:
            self._owed[share] += 1

    def settle(self, share: str) -> None:
        """What follows a piece of this caller is done too."""
        with self._lock:
            waited = not self.may(share)
            self._owed[share] -= 1
            if not self._owed[share]:
                del self._owed[share]
        if waited:
            for wake in self._wake:
                wake()


class _Share(Generic[T]):
    """The waiting work of one caller, by connection, and the time at which its turn begins."""

    __slots__ = ("lanes", "size", "turn_ms")

    def __init__(self, turn_ms: float) -> None:
        self.turn_ms = turn_ms
        self.size = 0
        self.lanes: OrderedDict[Hashable, deque[T]] = OrderedDict()


class FairQueue(Generic[T]):
    """Waiting work of any number of callers. `get` takes the next piece, `charge` says what it cost.

    A caller that used less than its share may catch up by `credit_ms`: so one that asks seldom is served at
    once, also just after a piece that took long. Time in which nothing waits is nobody's: what a caller used
    of it is not held against it, or one that asked alone would be behind the whole credit of a newcomer. A
    caller whose `debts` are too many waits. `clock_ns` is the monotonic clock.
    """

    def __init__(
        self,
        *,
        credit_ms: float = 1_000.0,
        debts: Debts | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._credit_ms = credit_ms
        self._clock_ns = clock_ns
        #: Since when nothing waits and nothing is worked on; None: something is.
        self._idle_ns: int | None = clock_ns()
        self._debts = debts
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._shares: dict[str, _Share[T]] = {}
        self._used_ms: OrderedDict[str, float] = OrderedDict()
        self._turn_ms = 0.0
        self._served: str | None = None
        self._size = 0
        self._closed = False
        self._nudged = False
        if debts is not None:
            debts.watch(self._wake)

    def __len__(self) -> int:
        return self._size

    def put(self, item: T, lane: Lane = OWN) -> None:
        """Queue an item behind those of its lane; returns at once."""
        with self._lock:
            if self._idle_ns is not None:
                self._turn_ms += (self._clock_ns() - self._idle_ns) / 1e6
                self._idle_ns = None
            share = self._shares.get(lane.share)
            if share is None:
                begin_ms = max(self._turn_ms - self._credit_ms, self._used_ms.pop(lane.share, 0.0))
                share = self._shares[lane.share] = _Share(begin_ms)
            lane_items = share.lanes.get(lane.connection)
            if lane_items is None:
                lane_items = share.lanes[lane.connection] = deque()
            lane_items.append(item)
            share.size += 1
            self._size += 1
            self._changed.notify()

    def ahead(self, lane: Lane) -> int:
        """How many pieces are likely to be served before one that is put into this lane now."""
        with self._lock:
            own, share = 0, self._shares.get(lane.share)
            if share is not None:
                own = min(share.size, (len(share.lanes.get(lane.connection, ())) + 1) * len(share.lanes))
            return own + sum(min(s.size, own + 1) for s in self._shares.values() if s is not share)

    def get(self, *, block: bool = True, timeout_s: float | None = None) -> T | None:
        """The next item; None once the queue is closed and empty. Raises queue.Empty if there is none yet."""
        with self._lock:
            share = self._first()
            if share is None and block:
                share = self._wait(timeout_s)
            if share is not None:
                return self._take(share)
            if self._closed and not self._size:
                return None
            raise queue.Empty

    def charge(self, cost_ms: float) -> None:
        """Charge the share of the item that `get` gave last with the milliseconds that it took."""
        with self._lock:
            if not self._size:
                self._idle_ns = self._clock_ns()
            if self._served is None:
                return
            share = self._shares.get(self._served)
            if share is not None:
                share.turn_ms += cost_ms
            else:
                self._used_ms[self._served] = self._used_ms.get(self._served, 0.0) + cost_ms

    def drop(self, lane: Lane) -> list[T]:
        """Take out what waits in a lane, such as that of a closed connection."""
        with self._lock:
            share = self._shares.get(lane.share)
            if share is None or lane.connection not in share.lanes:
                return []
            items = share.lanes.pop(lane.connection)
            self._size -= len(items)
            share.size -= len(items)
            if not share.lanes:
                self._retire(lane.share, share)
            return list(items)

    def nudge(self) -> None:
        """Let the `get` that waits, or the next one that would, end with queue.Empty if there is no item."""
        with self._lock:
            self._nudged = True
            self._changed.notify()

    def close(self) -> None:
        """Let `get` return None when nothing waits any more."""
        with self._lock:
            self._closed = True
            self._changed.notify()

    def _wait(self, timeout_s: float | None) -> str | None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (share := self._first()) is None and not (self._closed and not self._size):
            if self._nudged:
                self._nudged = False
                return None
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return None
            self._changed.wait(left_s)
        return share

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify()

    def _first(self) -> str | None:
        """Whose turn it is; None if nobody may be served."""
        shares, debts = self._shares, self._debts
        able = shares if debts is None else [name for name in shares if debts.may(name)]
        if len(able) < 2:
            return next(iter(able), None)
        return min(able, key=lambda name: shares[name].turn_ms)

    def _take(self, name: str) -> T:
        share = self._shares[name]
        connection, items = next(iter(share.lanes.items()))
        item = items.popleft()
        share.size -= 1
        self._size -= 1
        self._turn_ms = max(self._turn_ms, share.turn_ms)
        self._served = name
        if items:
            share.lanes.move_to_end(connection)
        else:
            del share.lanes[connection]
            if not share.lanes:
                self._retire(name, share)
        return item

    def _retire(self, name: str, share: _Share[T]) -> None:
        """Forget a share without work, but for the time that it has used."""
        del self._shares[name]
        self._used_ms[name] = share.turn_ms
        self._used_ms.move_to_end(name)
        while len(self._used_ms) > _REMEMBERED:
            self._used_ms.popitem(last=False)
