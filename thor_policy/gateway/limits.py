"""What a request may be before anything of it is understood: its host, its origin, its type, its size.

Owns the checks of a request's head, and how its body is read. Invariant: no byte of a body is read before the
head passed, none beyond `max_bytes`, and none after `BODY_S`; what is refused is counted by name. The event
loop's thread.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from thor_policy.gateway.problems import Problem

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Seconds that a client may take to send a request's head, and its body.
HEAD_S, BODY_S = 10.0, 10.0
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})


class Doorway:
    """The hosts and origins by which this gateway is called. Counts what it refuses in `counters`.

    `address` and `port` are where it listens; `public_url` is how others call it, behind a proxy too.
    """

    def __init__(
        self, address: str, port: int, *, tls: bool, public_url: str | None, counters: Counter[str]
    ) -> None:
        scheme = "https" if tls else "http"
        name = f"[{address}]" if ":" in address else address
        names = {name, *LOOPBACK_NAMES} if is_loopback(address) else {name}
        self._hosts = {f"{host}:{port}".encode() for host in names}
        if port == (443 if tls else 80):
            self._hosts |= {host.encode() for host in names}
        self._origins = {scheme.encode() + b"://" + host for host in self._hosts}
        if public_url is not None:
            parts = urlsplit(public_url)
            self._hosts.add(parts.netloc.lower().encode())
            self._origins.add(f"{parts.scheme}://{parts.netloc}".lower().encode())
        self._counters = counters

    def check(self, scope: Scope) -> None:
        """Refuse a request for another host, or from a page of another site. Raises Problem."""
        hosts = values_of(scope, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            self._counters["refused_host"] += 1
            raise Problem(400, "bad_host", "Host is not a name of this gateway; see --public-url", close=True)
        origins = values_of(scope, b"origin")
        sites = values_of(scope, b"sec-fetch-site")
        if any(origin.lower() not in self._origins for origin in origins) or b"cross-site" in sites:
            self._counters["refused_origin"] += 1
            raise Problem(403, "cross_origin", "a page of another site may not use this gateway", close=True)


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def values_of(scope: Scope, name: bytes) -> list[bytes]:
    """The values of a header, whose name is in lower case."""
    return [value for header, value in scope["headers"] if header == name]


def check_type(scope: Scope, wanted: str = "application/json") -> None:
    """Refuse a body that is no JSON in UTF-8 by its own account. Raises Problem."""
    types = values_of(scope, b"content-type")
    media, _, parameters = types[0].decode("latin-1").partition(";") if types else ("", "", "")
    if len(types) != 1 or media.strip().lower() != wanted or not _is_utf8(parameters):
        raise Problem(400, "bad_content_type", f"Content-Type must be {wanted}, in UTF-8", close=True)
    if any(value.strip().lower() != b"identity" for value in values_of(scope, b"content-encoding")):
        raise Problem(415, "bad_content_encoding", "send the body without Content-Encoding", close=True)


def _is_utf8(parameters: str) -> bool:
    charsets = [
        value.strip().strip('"').lower()
        for name, _, value in (part.partition("=") for part in parameters.split(";"))
        if name.strip().lower() == "charset"
    ]
    return set(charsets) <= _CHARSETS


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The body of a request, of at most `max_bytes`. Raises Problem, ConnectionError if the client left."""
    lengths = values_of(scope, b"content-length")
    if lengths and lengths[0].isdigit() and int(lengths[0][:20]) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError("the client left")
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        detail = f"the body did not arrive within {BODY_S:g} s"
        raise Problem(408, "too_slow", detail, close=True) from None


def _too_large(max_bytes: int) -> Problem:
    detail = f"the body has more than {max_bytes} bytes (max_request_bytes)"
    return Problem(413, "too_large", detail, close=True)


def header_names(scope: Scope) -> Iterable[bytes]:
    """The names of a request's headers, in lower case."""
    return (name for name, _ in scope["headers"])
