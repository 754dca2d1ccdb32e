"""W3C Trace Context: the trace of a caller that a decision belongs to.

Owns the form of a `traceparent`, and the tag that records it with a decision. Invariant: only a well-formed
one of version 00, with ids that are not zero, is a trace. Pure; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

#: Begins the tag of a decision that says which trace it belongs to.
TAG = "traceparent:"
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class Parent(NamedTuple):
    """The span of the caller that the decision is a part of."""

    trace_id: int
    span_id: int
    flags: int


def parse(text: object) -> Parent | None:
    """The parent that a `traceparent` names; None if it is no well-formed one of version 00."""
    match = _TRACEPARENT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    parent = Parent(*(int(part, 16) for part in match.groups()))
    return parent if parent.trace_id and parent.span_id else None


def parent_in(tags: Iterable[str]) -> Parent | None:
    """The parent that the last such tag of a decision names; None without one."""
    texts = [tag.removeprefix(TAG) for tag in tags if tag.startswith(TAG)]
    return parse(texts[-1]) if texts else None
