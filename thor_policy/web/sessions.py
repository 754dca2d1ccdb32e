"""Sessions of browsers: an opaque cookie, the token behind it, and the token of its forms.

Owns the cookies that were given out. Invariant: the cookie says nothing and only its digest is kept; each
request checks the bearer token behind it again, so a revoked token ends its sessions at once; the token of a
form is good in its own session alone. Time is an argument, in seconds of a clock that never steps back. The
event loop's thread.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable

from thor_policy.gateway.auth import Authenticator, Principal

#: Seconds after which a session ends: without a request, and in any case.
IDLE_S, LIFE_S = 2 * 3600, 12 * 3600
#: Sessions at once. Of more, the one that was idle longest ends.
MAX_SESSIONS = 512
#: Bytes of a cookie's secret.
_SECRET_BYTES = 32
#: Longest value of a cookie that is looked at.
_MAX_COOKIE = 128


class Session:
    """One browser. `token` is the bearer token behind it; None where none is needed.

    `closing` are what must end with the session, such as a lease on a decision under review.
    """

    def __init__(self, token: str | None, csrf: str, now: float) -> None:
        self.token = token
        self.csrf = csrf
        self.began = self.used = now
        self.streams = 0
        self.closing: list[Callable[[], Awaitable[None]]] = []

    def is_over(self, now: float) -> bool:
        """Whether its time is up."""
        return now - self.used > IDLE_S or now - self.began > LIFE_S


class Sessions:
    """The sessions of one process; they end with it. Counts in `counters`."""

    def __init__(self, authenticator: Authenticator, counters: Counter[str]) -> None:
        self._authenticator = authenticator
        self._counters = counters
        self._of_digest: dict[bytes, Session] = {}

    @property
    def required(self) -> bool:
        """Whether a session needs a token."""
        return self._authenticator.required

    async def begin(self, token: str | None, now: float) -> tuple[str, Session]:
        """A new session and the value of its cookie. Raises Unauthenticated if the token is not valid."""
        if self.required:
            self._authenticator.of_token(token or "")
        await self._make_room(now)
        cookie = secrets.token_urlsafe(_SECRET_BYTES)
        session = Session(token if self.required else None, secrets.token_urlsafe(_SECRET_BYTES), now)
        self._of_digest[_digest(cookie)] = session
        self._counters["sessions_begun"] += 1
        return cookie, session

    def of_cookie(self, cookie: str | None, now: float) -> Session | None:
        """The session of a cookie that is not over; None if there is none."""
        if cookie is None or len(cookie) > _MAX_COOKIE:
            return None
        session = self._of_digest.get(_digest(cookie))
        return None if session is None or session.is_over(now) else session

    def principal(self, session: Session) -> Principal:
        """Whom the session is of, by its token as it is now. Raises Unauthenticated."""
        return self._authenticator.of_token(session.token or "")

    async def end(self, cookie: str | None) -> None:
        """End the session of a cookie, if there is one."""
        session = self._of_digest.pop(_digest(cookie or ""), None)
        if session is not None:
            await _close(session)

    async def close(self) -> None:
        """End every session."""
        sessions, self._of_digest = list(self._of_digest.values()), {}
        for session in sessions:
            await _close(session)

    async def _make_room(self, now: float) -> None:
        over = [digest for digest, session in self._of_digest.items() if session.is_over(now)]
        if len(self._of_digest) - len(over) >= MAX_SESSIONS:
            over.append(min(self._of_digest, key=lambda digest: self._of_digest[digest].used))
            self._counters["sessions_evicted"] += 1
        for digest in over:
            if (session := self._of_digest.pop(digest, None)) is not None:
                await _close(session)


def is_its_form(session: Session, csrf: str) -> bool:
    """Whether a form came from a page of this session."""
    return hmac.compare_digest(session.csrf.encode(), csrf.encode("utf-8", "replace"))


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()


async def _close(session: Session) -> None:
    for close in session.closing:
        await close()
    session.closing.clear()
