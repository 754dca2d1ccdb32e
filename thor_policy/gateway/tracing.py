"""The identity of a request across systems: X-Request-ID and W3C Trace Context.

Owns what of both is echoed, continued and recorded. Invariant: an X-Request-ID goes back exactly as it came,
on every reply, or not at all if no header could hold it; a traceparent is continued only if it is
well-formed. Pure; any thread.
"""

from __future__ import annotations

import re
import secrets

from thor_policy.gateway.limits import Scope, values_of

REQUEST_ID = b"x-request-id"
#: What no header may hold, and a tab: a reply with it would be another reply.
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
#: Begins the tag of a decision that says which trace it belongs to.
TAG = "traceparent:"


def echoed(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The X-Request-ID of a request's headers, for the reply."""
    return [(name, value) for name, value in headers if name == REQUEST_ID and _UNSAFE.search(value) is None]


def continued(scope: Scope) -> bytes | None:
    """The traceparent of this gateway's part of the caller's trace; None without one."""
    values = values_of(scope, b"traceparent")
    match = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        return None
    return b"00-%s-%s-%s" % (match[1], secrets.token_hex(8).encode(), match[3])
