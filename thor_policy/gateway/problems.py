"""Errors as HTTP replies: RFC 9457 problem details.

Owns the status, the headers and the body of every error. Invariant: a reply never repeats a header of the
request, and its `detail` is text for people that names the field and the cure. Pure; any thread.
"""

from __future__ import annotations

import http
import math

import msgspec

from thor_policy.core.errors import RequestError, ThorPolicyError, Unreachable
from thor_policy.core.requests import Json
from thor_policy.protocol.messages import HTTP_STATUS

PROBLEM_JSON = b"application/problem+json"
#: Seconds after which a client may try again when the daemon is away.
AWAY_S = 1
#: Characters of a detail.
MAX_DETAIL = 1_000


class Problem(Exception):
    """An error reply: HTTP status, `code` for programs, `detail` for people, and headers of its own.

    `type` is a URN of a profile; without it the status says what kind of problem it is. `close`: what the
    client still sends of this request is not read, so the connection ends.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        type: str = "about:blank",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        close: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.type = status, code, detail, type
        self.headers = (*headers, (b"connection", b"close")) if close else headers

    def body(self) -> bytes:
        """The problem details, as JSON."""
        members: dict[str, Json] = {
            "type": self.type,
            "title": http.HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail[:MAX_DETAIL],
            "code": self.code,
        }
        return msgspec.json.encode(members)


def of_error(error: ThorPolicyError) -> Problem:
    """The reply to a request that the daemon refused, or for which no daemon answered."""
    if isinstance(error, Unreachable):
        return away("the daemon is away; try again")
    if not isinstance(error, RequestError):
        return Problem(500, "internal", "the gateway failed; its log says why")
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if error.retry_after_ms is not None or error.code in ("busy", "shutting_down", "unavailable"):
        headers = (retry_after((error.retry_after_ms or 1_000) / 1_000),)
    return Problem(HTTP_STATUS[error.code], error.code, error.message, headers=headers)


def away(detail: str) -> Problem:
    """503: no daemon answers now."""
    return Problem(503, "unavailable", detail, headers=(retry_after(AWAY_S),))


def unauthenticated(reason: str, detail: str) -> Problem:
    """401, with the challenge of RFC 6750."""
    challenge = b'Bearer realm="thor-policy"'
    if reason != "missing":
        challenge += b', error="invalid_request"' if reason == "malformed" else b', error="invalid_token"'
    return Problem(401, "unauthenticated", detail, headers=((b"www-authenticate", challenge),), close=True)


def retry_after(seconds: float) -> tuple[bytes, bytes]:
    """The header Retry-After; whole seconds, at least 1."""
    return b"retry-after", str(max(1, math.ceil(seconds))).encode()
