"""Requests with an idempotency key: done once, however often they are sent.

Owns the keys that are in flight. Invariant: of the requests with one key at most one is under way, from
before the journal is asked about the key until it is known whether its work was recorded, even if nobody
waits for the answer any more. The others wait for that, and then ask the journal in their turn. So no key
gets a second decision, not after a restart either, for the journal remembers. No socket, no clock. Main
thread.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from thor_policy.core.errors import RequestError
from thor_policy.core.idempotency import Mark
from thor_policy.core.results import PriorRecord
from thor_policy.daemon.admission import Work
from thor_policy.daemon.inflight import InFlight


@dataclass(frozen=True)
class Keyed:
    """A request that was admitted as `ticket`; its `work` begins once its key is known to be new."""

    ticket: int
    mark: Mark
    work: Work


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
        first = self._first.get(keyed.mark.digest)
        if first is None:
            self._begin(keyed)
        elif first.mark.content != keyed.mark.content:
            self._in_flight.settle(keyed.ticket, _conflict("is in flight"))
        else:
            waiting = self._waiting.setdefault(keyed.mark.digest, deque())
            if len(waiting) > len(self._in_flight):  # some have expired
                self._waiting[keyed.mark.digest] = waiting = deque(w for w in waiting if self._is_pending(w))
            waiting.append(keyed)

    def recalled(self, ticket: int, prior: PriorRecord | RequestError | None) -> None:
        """Take from the journal what it holds for the key of `ticket`."""
        first = self._first[self._digests[ticket]]
        if prior is None and self._is_pending(first):
            try:
                first.work.begin(str(first.mark))
                return  # and `ended` follows
            except RequestError as error:
                prior = error
        if isinstance(prior, RequestError):
            self._in_flight.settle(ticket, prior)
        elif prior is not None and prior.content != first.mark.content:
            self._in_flight.settle(ticket, _conflict("was sent"))
        elif prior is not None:
            self._counters["repeats_answered"] += self._is_pending(first)
            self._in_flight.settle(ticket, first.work.repeat(prior))
        self.ended(ticket)

    def ended(self, ticket: int) -> None:
        """The work of a ticket is recorded, or never will be; tickets without a key are ignored."""
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
        self._first[keyed.mark.digest] = keyed
        self._digests[keyed.ticket] = keyed.mark.digest
        self._recall(keyed.mark.digest, keyed.ticket)

    def _is_pending(self, keyed: Keyed) -> bool:
        return keyed.ticket in self._in_flight


def _conflict(how: str) -> RequestError:
    return RequestError(
        "conflict", f"idempotency_key: another request of yours {how} with this key; give this one its own"
    )
