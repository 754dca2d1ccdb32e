"""Messages that were read and not handled yet, and what each caller may send.

Owns the rates of callers, the bytes that wait, and whose connection is whose. Invariant: a message beyond
its caller's share is refused before it is decoded; of the others the callers get turns of equal time,
however many connections and messages they have. No socket, no clock. Main thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from thor_policy.config import Config
from thor_policy.core.errors import RequestError
from thor_policy.core.fair_queue import FairQueue, Lane
from thor_policy.daemon.peers import Received
from thor_policy.daemon.shares import Places, Rates

#: Bytes of requests that may wait to be decoded.
_MOST_BYTES = 64 * 2**20
#: When a caller whose part of them is full may try again, in milliseconds: they are decoded at once.
_RETRY_MS = 20


class Inbox:
    """What waits to be handled; `put` takes a message in, `handle` handles messages in turn."""

    def __init__(self, config: Config) -> None:
        self._queue: FairQueue[Received] = FairQueue()
        self._bytes = Places()
        #: The lanes of each connection that sent something: a relay's has many.
        self._lanes: dict[Hashable, set[Lane]] = {}
        self.reload(config)

    def __len__(self) -> int:
        return len(self._queue)

    def reload(self, config: Config) -> None:
        """Begin anew with the rates of these settings."""
        self._rates = Rates(config.caller_requests_per_s, config.caller_bytes_per_s)

    def put(self, received: Received) -> RequestError | None:
        """Take a message in; or why not, if it is more than its caller may send now, or no request at all."""
        sender, size_bytes = received.sender, len(received.frame)
        self._lanes.setdefault(sender.lane.connection, set()).add(sender.lane)
        if not self._bytes.has_place(sender.lane, _MOST_BYTES):
            message = f"{sender.lane.share} sends requests faster than the daemon can handle them"
            return RequestError("busy", message, retry_after_ms=_RETRY_MS)
        error = self._rates.charge(sender.lane.share, sender.received_ns, size_bytes=size_bytes)
        if error is not None or received.fault is not None:
            return error or received.fault
        self._bytes.take(sender.lane, size_bytes)
        self._queue.put(received, sender.lane)
        return None

    def charge_items(self, lane: Lane, count: int, now_ns: int) -> None:
        """Charge the further evaluations of a batch. Raises RequestError `busy`."""
        error = self._rates.charge(lane.share, now_ns, requests=count)
        if error is not None:
            raise error

    def handle(self, handle: Callable[[Received], None], *, for_ns: int) -> None:
        """Hand what waits to `handle`, the callers in turn, for about this time."""
        now_ns = time.monotonic_ns()
        until_ns = now_ns + for_ns
        while self._queue and now_ns < until_ns:
            started_ns, received = now_ns, self._queue.get(block=False)
            assert received is not None  # noqa: S101  this queue is never closed
            self._bytes.give_back(received.sender.lane, len(received.frame))
            handle(received)
            now_ns = time.monotonic_ns()
            self._queue.charge((now_ns - started_ns) / 1e6)

    def drop(self, ended: Lane) -> tuple[set[Lane], int]:
        """Drop what waits of a connection that ended: its lanes, and how many messages that was."""
        lanes, dropped = self._lanes.pop(ended.connection, set()), 0
        for lane in lanes:
            for received in self._queue.drop(lane):
                self._bytes.give_back(lane, len(received.frame))
                dropped += 1
        return lanes, dropped
