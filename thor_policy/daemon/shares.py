"""What each caller may take: a rate of requests and of bytes, and a part of the places in flight.

Owns the account of each caller. Invariant: however much a caller asks for, it holds no more than half of
what the others leave, so it cannot take the places of those that come later. No clock: times come in as
arguments. Main thread.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict

from thor_policy.core.errors import RequestError
from thor_policy.core.fair_queue import Lane

#: Accounts kept. One that is forgotten begins anew with a full allowance.
_ACCOUNTS = 4_096


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
