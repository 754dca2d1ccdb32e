"""The question of a recorded decision, to be put again.

Owns the way back from an event to a `Request`. Invariant: all of it comes from the record (the
evaluation, the caller, the time of receipt), so rules and prompt are what they were; a question that is
not there whole is refused with the reason. Any thread or process, on a reader of its own.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from thor_policy.core.requests import Caller, Evaluation, Request
from thor_policy.journal.reader import Reader, Record

#: Why a question cannot be put again: somebody else decided it; it was erased, or a name in it; its private
#: part is gone although nothing erased it; a value was not recorded.
Lack = Literal["decision_report", "erased", "missing", "masked"]

#: A deadline that does not come, in monotonic nanoseconds.
_NEVER_NS = 2**63 - 1


class Unasked(Exception):
    """The question cannot be put again; the message says why."""

    def __init__(self, lack: Lack, message: str) -> None:
        super().__init__(message)
        self.lack: Lack = lack


def request_of(reader: Reader, event: Record) -> Request:
    """What was asked in a decision's event, as its record tells it, without a deadline. Raises Unasked."""
    private = event["private"]
    if event["kind"] != "decision":
        raise Unasked(
            "decision_report", "it was reported, not taken here: there are no rules and no question to repeat"
        )
    by_seq = reader.erasure(event["seq"])
    if by_seq is not None:
        raise Unasked("erased", f"erased by event {by_seq}: what the question said is gone")
    if private is None:
        raise Unasked("missing", "its private part is missing: `thorpolicy log verify` says more")
    if masked := private.get("masked"):
        raise Unasked("masked", f"masked: {', '.join(masked)} was not recorded")
    return Request(
        ticket=0,
        evaluation=msgspec.convert(private["evaluation"], Evaluation),
        caller=msgspec.convert(event["body"]["caller"], Caller),
        received_at=datetime.fromisoformat(event["at"]).timestamp(),
        received_ns=0,
        deadline_ns=_NEVER_NS,
    )
