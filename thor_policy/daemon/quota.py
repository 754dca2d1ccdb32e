"""The journal quota: how many bytes each caller may have recorded in a day.

Owns an account for each caller: the bytes of its events, hour by hour. Invariant: a caller may write again
when its oldest hours are `WINDOW_HOURS` old, by the monotonic clock; there are never more than `MAX_CALLERS`
accounts. What is in flight when a quota is reached is still recorded. The accounts begin anew with the
daemon. No clock of its own. Main thread.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass, field

from thor_policy.core.errors import RequestError
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

#: How long bytes count, in hours; those of an hour end to count together, so up to one hour later.
WINDOW_HOURS = 24
HOUR_NS = 3_600 * 10**9
#: Most accounts. Beyond that the one with the fewest bytes is forgotten.
MAX_CALLERS = 1_024
#: The share of a quota from which its caller is warned of.
WARN_AT = 0.8


@dataclass
class _Account:
    """Bytes by the hour in which they were recorded, oldest first; `warned`: since they last were below."""

    hours: deque[tuple[int, int]] = field(default_factory=deque)
    total: int = 0
    warned: bool = False


class JournalQuota:
    """The accounts of all callers. A quota of 0 MiB is none. Counts in `counters`."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._accounts: dict[str, _Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def check(self, who: str | None, quota_mb: int, now_ns: int) -> None:
        """Raise RequestError `busy` if a caller has used its quota; `retry_after_ms` is when it may again."""
        account = self._accounts.get(who or "")
        if account is None or not quota_mb:
            return
        self._expire(account, now_ns)
        quota_bytes = quota_mb * 2**20
        if account.total < quota_bytes:
            return
        self._counters["journal_quota_refused"] += 1
        left, room_ns = account.total, now_ns
        for hour, size in account.hours:
            left, room_ns = left - size, (hour + WINDOW_HOURS + 1) * HOUR_NS
            if left < quota_bytes:
                break
        raise RequestError(
            "busy",
            f"you have had {account.total / 2**20:.1f} MiB recorded in {WINDOW_HOURS} hours; the setting "
            f"journal_quota_mb allows {quota_mb}",
            retry_after_ms=(room_ns - now_ns) // 1_000_000 + 1,
        )

    def charge(self, who: str | None, size: int, quota_mb: int, now_ns: int) -> None:
        """Count bytes that were recorded for a caller; warn, once, from `WARN_AT` of its quota on."""
        if who is None:
            return
        account = self._accounts.get(who)
        if account is None:
            account = self._accounts[who] = _Account()
            if len(self._accounts) > MAX_CALLERS:
                self._forget_least(who, now_ns)
        self._expire(account, now_ns)
        hour = now_ns // HOUR_NS
        earlier = account.hours.pop()[1] if account.hours and account.hours[-1][0] == hour else 0
        account.hours.append((hour, earlier + size))
        account.total += size
        if account.total < WARN_AT * quota_mb * 2**20 or not quota_mb:
            account.warned = False
        elif not account.warned:
            account.warned = True
            self._counters["journal_quota_warned"] += 1
            extra = logs.fields(caller=who, recorded_mb=account.total // 2**20, journal_quota_mb=quota_mb)
            log.warning("a caller has used %d %% of its journal quota", 100 * WARN_AT, extra=extra)

    def _expire(self, account: _Account, now_ns: int) -> None:
        while account.hours and account.hours[0][0] < now_ns // HOUR_NS - WINDOW_HOURS:
            account.total -= account.hours.popleft()[1]

    def _forget_least(self, new: str, now_ns: int) -> None:
        for account in self._accounts.values():
            self._expire(account, now_ns)
        del self._accounts[min((who for who in self._accounts if who != new), key=self._total_of)]

    def _total_of(self, who: str) -> int:
        return self._accounts[who].total
