"""The gateway's connection to the daemon.

Owns one client of the protocol, for all requests at the same time. Invariant: while no daemon answers, a
request is refused at once with 503; when one is back, the next request reaches it. The event loop's thread.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from thor_policy.client.aio import AsyncClient
from thor_policy.core.errors import RequestError, ThorPolicyError
from thor_policy.core.requests import Json
from thor_policy.gateway.auth import Principal
from thor_policy.gateway.problems import of_error

#: Milliseconds that the gateway waits for a reply: the daemon replies by the deadline of a request.
TIMEOUT_MS = 15_000


class Daemon:
    """The daemon at `endpoint`; a tcp endpoint needs `key`. Counts refusals in `counters`."""

    def __init__(self, endpoint: str, key: Path | None, counters: Counter[str]) -> None:
        self._client = AsyncClient(endpoint, key=key, timeout_ms=TIMEOUT_MS)
        self._counters = counters

    async def call(self, principal: Principal, op: str, **fields: Json) -> dict[str, Json]:
        """The reply to a request that `principal` makes. Raises Problem."""
        try:
            return await self.call_or_error(principal, op, **fields)
        except ThorPolicyError as error:
            raise of_error(error) from error

    async def call_or_error(self, principal: Principal, op: str, **fields: Json) -> dict[str, Json]:
        """As `call`, but raises RequestError if the daemon refuses, Unreachable if none answers."""
        try:
            return await self._client.call(op, fields | principal.fields)
        except RequestError as error:
            self._counters[f"refused_{error.code}"] += 1
            raise
        except ThorPolicyError:
            self._counters["daemon_away"] += 1
            raise

    async def alive(self) -> bool:
        """Whether a daemon listens."""
        return await self._client.alive()

    async def close(self) -> None:
        """Release the connection."""
        await self._client.close()
