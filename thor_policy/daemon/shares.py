"""What each caller may take: a rate of requests and of bytes, a part of the places in flight, some refusals.

Owns the account of each caller. Invariant: however much a caller asks for, it holds no more than half of
what the others leave, so it cannot take the places of those that come later; and one that does not wait after
`busy` is barred. No clock: times come in as arguments. Main thread.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass

from thor_policy.core.errors import RequestError
from thor_policy.core.fair_queue import Lane

#: Accounts kept. One that is forgotten begins anew with a full allowance.
_ACCOUNTS = 4_096
#: Refused requests of a caller that may come back in a second, those longer than a kibibyte counted by size.
_RETRIES_PER_S = 500
#: Refused requests of a caller that may wait for their turn: so many, a tenth for one that was barred; and
#: besides, whatever their length, so many.
_MOST_WAITING, _LARGEST_WAITING = 500, 4
#: What a caller sent before it could read a refusal is not held against it, for this time in seconds; and
#: again after the longer time without a refusal.
_UNAWARE_S, _QUIET_S = 0.5, 10.0
#: After this time without a refusal and without a bar, a caller that was barred is a new one, in seconds.
_FORGIVEN_S = 600.0
#: For how long a caller is barred at first, and at most; twice as long each time. In seconds.
_BARRED_S, _BARRED_MOST_S = 10.0, 320.0
#: After so many bars each is as long as the one before.
_DOUBLINGS = 5


class TokenBucket:
    """`rate` tokens a second; at most `burst` are kept."""

    __slots__ = ("_at_ns", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now_ns: int) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at_ns = burst, now_ns

    def wait_ms(self, wanted: float, now_ns: int) -> int:
        """Milliseconds until `wanted` tokens are there, or for more than `burst` until the bucket is full."""
        self._tokens = min(self._burst, self._tokens + (now_ns - self._at_ns) / 1e9 * self._rate)
        self._at_ns = now_ns
        missing = min(wanted, self._burst) - self._tokens
        return max(0, math.ceil(missing / self._rate * 1e3))

    def take(self, wanted: float) -> None:
        """Take tokens that `wait_ms` said are there; after more than `burst` the bucket is in debt."""
        self._tokens -= wanted


class Rates:
    """How many requests and bytes each caller has sent lately; 0 is no limit.

    A caller may send the requests and bytes of one second at once.
    """

    def __init__(self, requests_per_s: int, bytes_per_s: int) -> None:
        self._limits = (("requests", requests_per_s), ("bytes", bytes_per_s))
        self._accounts: OrderedDict[str, tuple[TokenBucket | None, ...]] = OrderedDict()

    def charge(
        self, share: str, now_ns: int, *, requests: int = 1, size_bytes: int = 0
    ) -> RequestError | None:
        """Charge a caller; if it has used up its rate, charge it nothing and return why it must wait."""
        account = self._account(share, now_ns)
        amounts = (requests, size_bytes)
        for (unit, limit), bucket, amount in zip(self._limits, account, amounts, strict=True):
            if bucket is not None and (wait_ms := bucket.wait_ms(amount, now_ns)):
                return RequestError(
                    "busy",
                    f"{share} sends more than {limit} {unit} a second (caller_{unit}_per_s)",
                    retry_after_ms=wait_ms,
                )
        for bucket, amount in zip(account, amounts, strict=True):
            if bucket is not None:
                bucket.take(amount)
        return None

    def _account(self, share: str, now_ns: int) -> tuple[TokenBucket | None, ...]:
        account = self._accounts.get(share)
        if account is None:
            account = tuple(TokenBucket(limit, limit, now_ns) if limit else None for _, limit in self._limits)
            self._accounts[share] = account
            if len(self._accounts) > _ACCOUNTS:
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(share)
        return account


@dataclass(slots=True)
class _Refusals:
    """The refusals of a caller: since when, when the next may come back, and how often it was barred.

    In requests of up to a kibibyte, `excused` is how much of it waited at most while it could not know that
    it must, and `largest` its longest message. `too_many` is that more waits now than may.
    """

    first_ns: int
    last_ns: int
    next_ns: int
    excused: float = 0.0
    largest: float = 0.0
    too_many: bool = False
    barred: int = 0
    barred_until_ns: int = 0
    #: After how much of the time that follows its bar the next request of a barred caller may come.
    spread_ns: int = 0

    @property
    def may_wait(self) -> float:
        """How much may wait for its turn."""
        return _MOST_WAITING / (10 if self.barred else 1) + self.excused + _LARGEST_WAITING * self.largest


class Refusals:
    """When callers that got `busy` may come back, and which of them do not wait.

    The refused requests of a caller are given times to come back, its turns, `_RETRIES_PER_S` a second, so
    that those of a caller that waits do not come all at once. Each of its requests then waits for one turn;
    those of a caller that does not wait make ever more turns, and it is barred.
    """

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, _Refusals] = OrderedDict()
        #: Those of callers that were barred, so that no number of other names makes the daemon forget them.
        self._barred: OrderedDict[str, _Refusals] = OrderedDict()

    def wait_ms(self, share: str, now_ns: int, least_ms: int, size_bytes: float = 0, parts: int = 1) -> int:
        """Note that a request was refused; in how many milliseconds it may come back, at least `least_ms`.

        `size_bytes` is its length; it is one of the `parts` of a message.
        """
        account = self._account(share, now_ns)
        waiting_ns = max(0, account.next_ns - now_ns)
        if now_ns - account.last_ns > _QUIET_S * 1e9:
            account.first_ns, account.excused, account.largest = now_ns, _weight_of(waiting_ns), 0.0
        account.last_ns = now_ns
        weight = max(1.0, size_bytes / 1_024)
        turn_ns = int(weight / _RETRIES_PER_S * 1e9)
        if now_ns < account.barred_until_ns:
            account.too_many = False
            account.spread_ns = (account.spread_ns + turn_ns) % int(_QUIET_S * 1e9)
            return max(least_ms, _ms(account.barred_until_ns + account.spread_ns - now_ns))
        account.largest = max(account.largest, weight * parts)
        account.next_ns = now_ns + waiting_ns + turn_ns
        if not account.barred and now_ns - account.first_ns <= _UNAWARE_S * 1e9:
            account.excused = max(account.excused, _weight_of(waiting_ns + turn_ns))
        account.too_many = _weight_of(waiting_ns) > account.may_wait
        return max(least_ms, _ms(waiting_ns))

    def bar_s(self, share: str, now_ns: int) -> float | None:
        """For how long this caller is to be barred from now on, in seconds; None if it is not to be."""
        account = self._accounts.get(share) or self._barred.get(share)
        if account is None or not account.too_many:
            return None
        seconds: float = min(_BARRED_S * 2 ** min(account.barred, _DOUBLINGS), _BARRED_MOST_S)
        account.barred += 1
        account.barred_until_ns = account.next_ns = now_ns + int(seconds * 1e9)
        account.too_many, account.excused, account.largest, account.spread_ns = False, 0.0, 0.0, 0
        self._accounts.pop(share, None)
        self._barred[share] = account
        self._barred.move_to_end(share)
        if len(self._barred) > _ACCOUNTS:
            del self._barred[min(self._barred, key=lambda name: self._barred[name].barred_until_ns)]
        return seconds

    def barred_ms(self, share: str, now_ns: int) -> int:
        """For how many milliseconds this caller is barred yet; 0 if it is not."""
        account = self._barred.get(share)
        return 0 if account is None else max(0, _ms(account.barred_until_ns - now_ns))

    def _account(self, share: str, now_ns: int) -> _Refusals:
        account = self._barred.get(share)
        if account is not None:
            quiet_ns = now_ns - max(account.last_ns, account.barred_until_ns)
            if quiet_ns <= _FORGIVEN_S * 1e9:
                return account
            del self._barred[share]
        account = self._accounts.get(share)
        if account is None:
            account = self._accounts[share] = _Refusals(now_ns, now_ns, now_ns)
            if len(self._accounts) > _ACCOUNTS:
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(share)
        return account


def _weight_of(waiting_ns: int) -> float:
    """How many requests have their turn in this time."""
    return waiting_ns / 1e9 * _RETRIES_PER_S


def _ms(duration_ns: int) -> int:
    return math.ceil(duration_ns / 1e6)


class Places:
    """Who holds how much of something that is limited in all: requests in flight, bytes, connections.

    A caller may hold as much as stays free, which is half of what the others leave; a connection as much as
    stays free of its caller's part. Once all have given back what they held, n callers get an n+1-th each.
    """

    def __init__(self) -> None:
        self.total = 0
        self._of_share: Counter[str] = Counter()
        self._of_lane: Counter[Lane] = Counter()

    def held(self, share: str) -> int:
        """What a caller holds."""
        return self._of_share[share]

    def has_place(self, lane: Lane, capacity: int) -> bool:
        """Whether the connection `lane` may hold one more, of `capacity` in all."""
        held = self._of_share.get(lane.share, 0)
        part = (capacity - self.total + held) / 2
        return held < part and self._of_lane.get(lane, 0) < part - held

    def take(self, lane: Lane, amount: int = 1) -> None:
        """Count what a connection takes."""
        self.total += amount
        self._of_share[lane.share] += amount
        self._of_lane[lane] += amount

    def give_back(self, lane: Lane, amount: int = 1) -> None:
        """Count what a connection no longer holds."""
        self.total -= amount
        self._of_share[lane.share] -= amount
        if not self._of_share[lane.share]:
            del self._of_share[lane.share]
        self._of_lane[lane] -= amount
        if not self._of_lane[lane]:
            del self._of_lane[lane]


def check_in_time(expected_ms: int, left_ms: int) -> None:
    """Refuse a request that would wait past its deadline. Raises RequestError."""
    if expected_ms > left_ms:
        raise RequestError(
            "busy",
            f"the requests before it take about {expected_ms} ms; its deadline is in {left_ms} ms",
            retry_after_ms=expected_ms - left_ms + 1,
        )
