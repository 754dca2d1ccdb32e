"""Requests with an idempotency key: done once, however often they are sent.

Owns the keys that are in flight. Invariant: of the requests with one key at most one is under way, from
before the journal is asked about the key until the fate of what it recorded is known, whether or not
anybody still waits for its answer; the others wait for that, and then ask the journal in their turn. So
no key gets a second decision, not after a restart either, for the journal is what remembers. No socket,
no clock. Main thread.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from thor_policy.core.decisions import PriorRecord
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.daemon.inflight import InFlight


@dataclass(frozen=True)
class KeyLookup:
    """What the journal knows of a key: an answer, nothing, or why it cannot say."""

    found: PriorRecord | RequestError | None


@dataclass(frozen=True)
class Keyed:
    """A request that was admitted as `ticket` and waits to be begun.

    `start` does what it asks for, or raises RequestError; `retell` makes its reply of what was recorded.
    """

    ticket: int
    digest: str
    content: str
    start: Callable[[], None]
    retell: Callable[[PriorRecord], dict[str, Json]]


class IdempotencyKeys:
    """All keys in flight. `recall` asks the journal about a digest; the answer comes to `recalled`."""

    def __init__(
        self, in_flight: InFlight, *, recall: Callable[[str, int], None], counters: Counter[str]
    ) -> None:
        self._in_flight = in_flight
        self._recall = recall
        self._counters = counters
        self._first: dict[str, Keyed] = {}
        self._waiting: dict[str, deque[Keyed]] = {}
        self._digests: dict[int, str] = {}

    def enter(self, keyed: Keyed) -> None:
        """Take an admitted request; it is answered through its ticket."""
        first = self._first.get(keyed.digest)
        if first is None:
            self._begin(keyed)
        elif first.content != keyed.content:
            self._in_flight.settle(keyed.ticket, _conflict("is in flight"))
        else:
            waiting = self._waiting.setdefault(keyed.digest, deque())
            if len(waiting) > len(self._in_flight):  # some have expired
                self._waiting[keyed.digest] = waiting = deque(w for w in waiting if self._is_pending(w))
            waiting.append(keyed)

    def recalled(self, ticket: int, found: PriorRecord | RequestError | None) -> None:
        """Hear from the journal what it knows of the key of `ticket`."""
        first = self._first[self._digests[ticket]]
        if found is None and self._is_pending(first):
            try:
                first.start()
                return  # and `ended` follows
            except RequestError as error:
                found = error
        if isinstance(found, RequestError):
            self._in_flight.settle(ticket, found)
        elif found is not None and found.content != first.content:
            self._in_flight.settle(ticket, _conflict("was sent"))
        elif found is not None:
            self._counters["repeats_answered"] += self._is_pending(first)
            self._in_flight.settle(ticket, first.retell(found))
        self.ended(ticket)

    def ended(self, ticket: int) -> None:
        """Hear that what a request asked for is recorded, or never will be; other tickets are ignored."""
        digest = self._digests.pop(ticket, None)
        if digest is None:
            return
        del self._first[digest]
        waiting = self._waiting.pop(digest, deque())
        while waiting and not self._is_pending(waiting[0]):
            waiting.popleft()
        if waiting:
            following = waiting.popleft()
            if waiting:
                self._waiting[digest] = waiting
            self._begin(following)

    def _begin(self, keyed: Keyed) -> None:
        self._first[keyed.digest] = keyed
        self._digests[keyed.ticket] = keyed.digest
        self._recall(keyed.digest, keyed.ticket)

    def _is_pending(self, keyed: Keyed) -> bool:
        return keyed.ticket in self._in_flight


def _conflict(how: str) -> RequestError:
    return RequestError(
        "conflict", f"idempotency_key: another request of yours {how} with this key; give this one its own"
    )
