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
#: What a caller sent before it could read a refusal is not held against it, for this time in seconds; and
#: again after the longer time without a refusal.
_UNAWARE_S, _QUIET_S = 0.5, 10.0
#: After this time without a refusal, a caller that sent too much is a new one, in seconds.
_FORGIVEN_S = 600.0
#: For how long a caller is barred at first, and at most; twice as long each time. In seconds.
_BARRED_S, _BARRED_MOST_S = 10.0, 320.0


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

    @property
    def in_debt(self) -> bool:
        """Whether more was taken than was there."""
        return self._tokens < 0


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
    """The refusals of a caller: since when, when the next may come back, and how often it was barred."""

    first_ns: int
    last_ns: int
    next_ns: int
    bucket: TokenBucket
    barred: int = 0
    barred_until_ns: int = 0


class Refusals:
    """When callers that got `busy` may come back, and which of them do not wait.

    The refused requests of a caller are given times to come back `_RETRIES_PER_S` a second apart, so that
    those of a caller that waits do not come all at once. One that sends more than that is barred.
    """

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, _Refusals] = OrderedDict()

    def wait_ms(self, share: str, now_ns: int, least_ms: int, size_bytes: int = 0) -> int:
        """Note that a request was refused; in how many milliseconds it may come back, at least `least_ms`."""
        account = self._accounts.get(share)
        if account is None or now_ns - account.last_ns > _FORGIVEN_S * 1e9:
            bucket = TokenBucket(_RETRIES_PER_S, _RETRIES_PER_S, now_ns)
            account = self._accounts[share] = _Refusals(now_ns, now_ns, now_ns, bucket)
            if len(self._accounts) > _ACCOUNTS:
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(share)
        if now_ns - account.last_ns > _QUIET_S * 1e9:
            account.first_ns = now_ns
        account.last_ns = now_ns
        weight = max(1.0, size_bytes / 1_024)
        turn_ns = max(account.next_ns, now_ns)
        account.next_ns = turn_ns + int(weight / _RETRIES_PER_S * 1e9)
        aware = account.barred > 0 or now_ns - account.first_ns > _UNAWARE_S * 1e9
        if aware and now_ns >= account.barred_until_ns:
            account.bucket.wait_ms(weight, now_ns)
            account.bucket.take(weight)
        return max(least_ms, math.ceil((turn_ns - now_ns) / 1e6))

    def bar_s(self, share: str, now_ns: int) -> float | None:
        """For how long this caller is to be barred from now on, in seconds; None if it is not to be."""
        account = self._accounts.get(share)
        if account is None or account.barred_until_ns > now_ns or not account.bucket.in_debt:
            return None
        seconds: float = min(_BARRED_S * 2**account.barred, _BARRED_MOST_S)
        account.barred += 1
        account.barred_until_ns = account.next_ns = now_ns + int(seconds * 1e9)
        account.bucket = TokenBucket(_RETRIES_PER_S, _RETRIES_PER_S / 10, account.barred_until_ns)
        return seconds


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
