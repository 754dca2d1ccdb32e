"""The identity of a request across systems: X-Request-ID and W3C Trace Context.

Owns what of both is echoed and sent on. Invariant: an X-Request-ID goes back exactly as it came, on every
reply, or not at all if no header could hold it; a traceparent is sent on only if it is well-formed. The
gateway makes no span: the daemon's span is a part of the caller's. Pure; any thread.
"""

from __future__ import annotations

import re

from thor_policy.core import trace_context
from thor_policy.gateway.limits import Scope, values_of

REQUEST_ID = b"x-request-id"
#: What no header may hold, and a tab: a reply with it would be another reply.
_UNSAFE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
#: A traceparent of any version, the later ones with more at the end.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


def echoed(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The X-Request-ID of a request's headers, for the reply."""
    return [(name, value) for name, value in headers if name == REQUEST_ID and _UNSAFE.search(value) is None]


def continued(scope: Scope) -> str | None:
    """The traceparent of the caller's span, as version 00; None without one."""
    values = values_of(scope, b"traceparent")
    match = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        return None
    text = f"00-{match[1].decode()}-{match[2].decode()}-{match[3].decode()}"
    return None if trace_context.parse(text) is None else text
