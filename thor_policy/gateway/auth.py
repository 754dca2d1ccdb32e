"""Who asks over HTTP: the holder of a bearer token or of a client certificate.

Owns the way from a request's credentials to the `Principal` that each request to the daemon names. Invariant:
with a tokens file a request without valid credentials is nobody's; without one every request is the
gateway's own, and the gateway listens on loopback alone. Shared by the HTTP API and the web pages. The event
loop's thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from thor_policy.core.requests import Json, Role
from thor_policy.security.tokens import Holder, TokenRing

#: Longest `Authorization` header that is looked at, in characters.
MAX_CREDENTIALS = 512


class Principal(Struct, frozen=True, kw_only=True):
    """Who asks: `token:alice` or `cert:edge` with roles; None is the gateway itself, with all of its own."""

    name: str | None = None
    roles: tuple[Role, ...] = ()

    @property
    def fields(self) -> dict[str, Json]:
        """The members that each request to the daemon of this principal has: `as`, or none."""
        return {} if self.name is None else {"as": {"name": self.name, "roles": self.roles}}

    def may(self, role: Role) -> bool:
        """Whether the principal has a role. The daemon has the last word: it may have taken it away."""
        return self.name is None or role in self.roles


#: The gateway itself, where it needs no credentials.
OWN = Principal()


class Unauthenticated(Exception):
    """A request without valid credentials; `reason` is `missing`, `malformed` or `invalid`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Authenticator:
    """Finds the principal of a request. Without a tokens file everybody is the gateway itself.

    Raises ConfigError if the file cannot be used. Counts what it refuses in `counters`.
    """

    def __init__(self, tokens_file: Path | None, counters: Counter[str]) -> None:
        self._ring = None if tokens_file is None else TokenRing(tokens_file)
        self._counters = counters

    @property
    def required(self) -> bool:
        """Whether a request needs credentials."""
        return self._ring is not None

    def of_request(self, scope: Mapping[str, Any], at: float | None = None) -> Principal:
        """The principal of an ASGI request at Unix time `at`. Raises Unauthenticated.

        A token that a request sends counts, not its certificate: a bad token is refused even with a good
        certificate.
        """
        if self._ring is None:
            return OWN
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        now = time.time() if at is None else at
        if not values:
            holder = None
            if common_name := scope.get("client_certificate"):
                holder = self._ring.certificate(common_name, now)
                if holder is None:
                    raise self._refused("invalid", "no entry of the tokens file is for this certificate")
            if holder is None:
                raise self._refused("missing", "send the header Authorization: Bearer TOKEN")
            return _principal(holder)
        scheme, _, token = values[0].decode("latin-1").strip().partition(" ")
        if len(values) > 1 or len(values[0]) > MAX_CREDENTIALS or scheme.lower() != "bearer" or not token:
            raise self._refused("malformed", "Authorization must be: Bearer TOKEN, one time")
        return self.of_token(token.strip(), now)

    def of_token(self, token: str, at: float | None = None) -> Principal:
        """The principal of a bearer token. Raises Unauthenticated."""
        if self._ring is None:
            return OWN
        now = time.time() if at is None else at
        holder = self._ring.token(token, now) if len(token) <= MAX_CREDENTIALS else None
        if holder is None:
            raise self._refused("invalid", "the token is unknown, revoked or expired")
        return _principal(holder)

    def _refused(self, reason: str, message: str) -> Unauthenticated:
        self._counters[f"unauthenticated_{reason}"] += 1
        return Unauthenticated(reason, message)


def _principal(holder: Holder) -> Principal:
    return Principal(name=holder.who, roles=holder.roles)
